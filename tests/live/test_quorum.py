"""Quorum queues, as a client sees them. Tried with RabbitMQ 4.0.5."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pika
import pytest
from pamqp.commands import Basic, Queue
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from qlog.server.broker.queues.arguments import COMPARED
from tests.live.conversation import Client, Talk, refusal, unique, until
from tests.live.dead import Got, Yard, yard_at

pytestmark = pytest.mark.newer

QUORUM = {"x-queue-type": "quorum"}
Q = "<queue>"


@pytest.fixture
def yard(broker_url: str) -> Iterator[Yard]:
    with yard_at(broker_url) as yard:
        yield yard


def quorum(yard: Yard, *bodies: bytes, **arguments: Any) -> None:
    """A quorum queue with messages."""
    yard.queue("q", x_queue_type="quorum", **arguments)
    for body in bodies:
        assert yard.publish("q", body)


def nack(yard: Yard, got: Got) -> None:
    yard.channel.basic_nack(got.tag, requeue=True)


def shown(yard: Yard, count: int) -> list[tuple[bytes, int | None]]:
    """The next messages, taken: bodies and counts."""
    found = [yard.take("q") for _ in range(count)]
    assert yard.nothing("q")
    return [(got.body, got.headers.get("x-delivery-count")) for got in found]


# --- what comes back


def ready(channel: BlockingChannel, queue: str) -> Any:
    """The next message, as pika has it; None: there is none."""
    got = channel.basic_get(queue)
    return None if got[0] is None else got


def by_nack(channel: BlockingChannel, tag: int) -> None:
    channel.basic_nack(tag, requeue=True)


def by_nack_of_all(channel: BlockingChannel, tag: int) -> None:
    channel.basic_nack(0, multiple=True, requeue=True)


def by_reject(channel: BlockingChannel, tag: int) -> None:
    channel.basic_reject(tag, requeue=True)


def by_recover(channel: BlockingChannel, tag: int) -> None:
    channel.basic_recover(requeue=True)


def by_channel_close(channel: BlockingChannel, tag: int) -> None:
    channel.close()


def by_connection_close(channel: BlockingChannel, tag: int) -> None:
    channel.connection.close()


def by_transaction(channel: BlockingChannel, tag: int) -> None:
    channel.tx_select()
    channel.basic_nack(tag, requeue=True)
    channel.tx_commit()


@pytest.mark.parametrize(
    "back",
    [
        by_nack,
        by_nack_of_all,
        by_reject,
        by_recover,
        by_channel_close,
        by_connection_close,
        by_transaction,
    ],
)
def test_each_return_counts(
    yard: Yard, broker_url: str, back: Callable[[BlockingChannel, int], None]
) -> None:
    quorum(yard, b"a")
    for count in (None, 1, 2):
        connection = BlockingConnection(pika.URLParameters(broker_url))
        channel = connection.channel()
        method, properties, _ = until(partial(ready, channel, yard.name("q")), "a message")
        assert (properties.headers or {}).get("x-delivery-count") == count
        back(channel, method.delivery_tag)
        if connection.is_open:
            connection.close()


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ([0], [b"0"]),
        ([2, 0, 1], [b"2", b"0", b"1"]),
        ([3, 1], [b"3", b"1"]),
    ],
)
def test_what_came_back_comes_first_and_in_the_order_in_which_it_came_back(
    yard: Yard, limit: int | None, returned: list[int], expected: list[bytes]
) -> None:
    arguments = {} if limit is None else {"x_delivery_limit": limit}
    quorum(yard, *(b"%d" % number for number in range(6)), **arguments)
    got = [yard.take("q") for _ in range(4)]
    for index in returned:
        nack(yard, got[index])
    counted = [(body, 1) for body in expected]
    assert shown(yard, len(expected) + 2) == [*counted, (b"4", None), (b"5", None)]


def test_one_that_comes_back_again_and_again_is_behind_the_others(yard: Yard) -> None:
    quorum(yard, *(b"%d" % number for number in range(4)))
    first, second = yard.take("q"), yard.take("q")
    nack(yard, first)
    nack(yard, second)
    nack(yard, yard.take("q"))
    assert shown(yard, 4) == [(b"1", 1), (b"0", 2), (b"2", None), (b"3", None)]


@pytest.mark.parametrize(("returned", "expected"), [([0], [b"0"]), ([2, 0, 1], [b"2", b"0", b"1"])])
def test_without_a_limit_what_is_given_back_is_behind_all_else(
    yard: Yard, returned: list[int], expected: list[bytes]
) -> None:
    quorum(yard, *(b"%d" % number for number in range(6)), x_delivery_limit=-1)
    got = [yard.take("q") for _ in range(4)]
    for index in returned:
        nack(yard, got[index])
    counted = [(body, 1) for body in expected]
    assert shown(yard, len(expected) + 2) == [(b"4", None), (b"5", None), *counted]


def test_without_a_limit_what_comes_later_is_behind_what_was_given_back(yard: Yard) -> None:
    quorum(yard, b"0", b"1", b"2", x_delivery_limit=-1)
    nack(yard, yard.take("q"))
    yard.publish("q", b"3")
    nack(yard, yard.take("q"))
    assert shown(yard, 4) == [(b"2", None), (b"0", 1), (b"3", None), (b"1", 1)]


def test_without_a_limit_what_is_lost_comes_first(yard: Yard, broker_url: str) -> None:
    quorum(yard, b"0", b"1", b"2", x_delivery_limit=-1)
    with BlockingConnection(pika.URLParameters(broker_url)) as connection:
        for _ in range(2):
            connection.channel().basic_get(yard.name("q"))
    until(lambda: ready_count(yard) == 3, "all are back")
    got = [yard.take("q") for _ in range(3)]
    assert sorted(got_.body for got_ in got[:2]) == [b"0", b"1"]
    assert got[2].body == b"2"


@pytest.mark.parametrize("all_at_once", [by_nack_of_all, by_recover])
def test_what_comes_back_together_keeps_its_order(
    yard: Yard, all_at_once: Callable[[BlockingChannel, int], None]
) -> None:
    quorum(yard, *(b"%d" % number for number in range(5)))
    for _ in range(3):
        yard.take("q")
    all_at_once(yard.channel, 0)
    assert shown(yard, 5) == [(b"0", 1), (b"1", 1), (b"2", 1), (b"3", None), (b"4", None)]


def test_the_count_is_among_the_headers_by_its_name(yard: Yard) -> None:
    """Other properties stay; a header of that name is replaced when there is a count."""
    quorum(yard)
    headers = {"z": 1, "a": 2, "x-delivery-count": 7}
    yard.publish("q", b"m", headers=headers, expiration="600000", delivery_mode=1, type="t")
    got = yard.take("q")
    assert got.headers == headers
    nack(yard, got)
    got = yard.take("q")
    assert list(got.headers.items()) == [("a", 2), ("x-delivery-count", 1), ("z", 1)]
    properties = got.properties
    assert (properties.expiration, properties.delivery_mode) == ("600000", 1)
    assert properties.type == "t"


def test_a_consumer_sees_the_same(talk: Talk) -> None:
    queue = talk.queue(durable=True, arguments=QUORUM)
    talk.publish("", queue, b"a")
    talk.call(Basic.Qos(prefetch_count=1))
    talk.consume(queue, "c")
    for count in range(3):
        (message,) = talk.deliveries(1)
        assert (message.properties.headers or {}).get("x-delivery-count") == (count or None)
        assert message.method.redelivered is (count > 0)
        talk.send(Basic.Nack(message.method.delivery_tag, requeue=True))


def ready_count(yard: Yard) -> int:
    declared = yard.channel.queue_declare(yard.name("q"), passive=True)
    return int(declared.method.message_count)


# --- the limit


@pytest.mark.parametrize(
    ("arguments", "deliveries"),
    [
        ({}, 21),
        ({"x_delivery_limit": 0}, 1),
        ({"x_delivery_limit": 2}, 3),
    ],
)
def test_what_comes_back_too_often_is_dead_lettered(
    yard: Yard, arguments: dict[str, Any], deliveries: int
) -> None:
    yard.queue("dead")
    quorum(yard, b"a", to="dead", **arguments)
    for _ in range(deliveries):
        nack(yard, yard.take("q"))
    got = yard.take("dead")
    assert yard.nothing("q")
    assert "x-delivery-count" not in got.headers
    assert [(death["reason"], death["count"]) for death in got.deaths] == [("delivery_limit", 1)]


def test_without_a_dead_letter_exchange_it_is_dropped(yard: Yard) -> None:
    quorum(yard, b"a", x_delivery_limit=1)
    for _ in range(2):
        nack(yard, yard.take("q"))
    assert yard.nothing("q")


@pytest.mark.parametrize("limit", [-1, -5])
def test_a_negative_limit_is_none(yard: Yard, limit: int) -> None:
    quorum(yard, b"a", x_delivery_limit=limit)
    for _ in range(25):
        nack(yard, yard.take("q"))
    assert shown(yard, 1) == [(b"a", 25)]


def test_a_rejection_is_dead_lettered_as_one(yard: Yard) -> None:
    yard.queue("dead")
    quorum(yard, b"a", to="dead", x_delivery_limit=1)
    nack(yard, yard.take("q"))
    yard.reject("q")
    assert [death["reason"] for death in yard.take("dead").deaths] == ["rejected"]


# --- what is refused

DECLARED: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    ({"durable": False}, {}, "invalid property 'non-durable' for {rs}"),
    ({"exclusive": True}, {}, "invalid property 'exclusive-owner' for {rs}"),
    ({"auto_delete": True}, {}, "invalid property 'auto-delete' for {rs}"),
    (
        {"durable": False, "exclusive": True, "auto_delete": True},
        {},
        "invalid property 'auto-delete' for {rs}",
    ),
    *(
        ({}, {key: value}, f"invalid arg '{key}' for {{rs}} of queue type rabbit_quorum_queue")
        for key, value in {
            "x-max-priority": 3,
            "x-queue-mode": "lazy",
            "x-queue-version": 2,
            "x-queue-master-locator": "min-masters",
            "x-max-age": "1D",
            "x-initial-cluster-size": 3,
            "x-stream-max-segment-size-bytes": 1000,
        }.items()
    ),
    *(
        ({}, {key: value}, f"invalid arg '{key}' for {{rs}}: {complaint}")
        for key, value, complaint in [
            ("x-overflow", "foo", "invalid_overflow"),
            ("x-dead-letter-strategy", "foo", "invalid_dlx_strategy"),
            ("x-queue-leader-locator", "foo", "invalid_queue_locator_arg"),
            ("x-quorum-initial-group-size", 0, "{{value_zero,0}}"),
            ("x-quorum-initial-group-size", -1, "{{value_negative,-1}}"),
            ("x-quorum-initial-group-size", "x", '"expected integer, got longstr"'),
            ("x-single-active-consumer", "x", "{{unacceptable_type,longstr}}"),
        ]
    ),
    *(
        ({}, {key: value}, None)
        for key, value in [
            ("x-overflow", "reject-publish-dlx"),
            ("x-overflow", "reject-publish"),
            ("x-delivery-limit", -1),
            ("x-delivery-limit", "a"),
            ("x-quorum-initial-group-size", 3),
            ("x-quorum-target-group-size", 3),
            ("x-max-in-memory-length", 3),
            ("x-max-in-memory-bytes", 3),
            ("x-dead-letter-strategy", "at-least-once"),
            ("x-queue-leader-locator", "balanced"),
            ("x-single-active-consumer", True),
            ("x-consumer-timeout", 1000),
            ("x-delayed-retry-type", "all"),
            ("x-unknown", 3),
        ]
    ),
]


@pytest.mark.parametrize(("options", "arguments", "complaint"), DECLARED, ids=str)
def test_declare(
    talk: Talk, options: dict[str, Any], arguments: dict[str, Any], complaint: str | None
) -> None:
    queue = unique("quorum")
    declare = Queue.Declare(
        queue=queue, **{"durable": True, "arguments": {**QUORUM, **arguments}, **options}
    )
    if complaint is None:
        talk.client.queues.add(queue)
        talk.call(declare)
        return
    text = complaint.format(rs=f"queue '{queue}' in vhost '/'")
    assert talk.refused(declare) == refusal(406, f"PRECONDITION_FAILED - {text}", Queue.Declare)


NONE_RECEIVED = (
    "'x-delivery-limit' …: received none but current is the value '100000' of type 'signedint'"
)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (
            {},
            {"x-queue-type": "classic"},
            "'x-queue-type' …: received 'classic' but current is 'quorum'",
        ),
        ({}, None, "'x-queue-type' …: received 'classic' but current is 'quorum'"),
        (
            {"x-delivery-limit": 100_000},
            QUORUM,
            NONE_RECEIVED,
        ),
        (
            {"x-delivery-limit": 3},
            {**QUORUM, "x-delivery-limit": 4},
            "'x-delivery-limit' …: received '4' but current is '3'",
        ),
        (
            {},
            {**QUORUM, "x-delivery-limit": "x"},
            "'x-delivery-limit' …: received the value 'x' of type 'longstr' but current is none",
        ),
    ],
)
def test_declare_otherwise(
    talk: Talk, before: dict[str, Any], after: dict[str, Any] | None, text: str
) -> None:
    queue = talk.queue(durable=True, arguments={**QUORUM, **before})
    declare = Queue.Declare(queue=queue, durable=True, arguments=after or {})
    said = text.replace("…", f"for queue '{queue}' in vhost '/'")
    assert talk.refused(declare) == refusal(
        406, f"PRECONDITION_FAILED - inequivalent arg {said}", Queue.Declare
    )


VALUES: dict[str, Any] = {
    "x-dead-letter-exchange": "a",
    "x-dead-letter-routing-key": "k",
    "x-dead-letter-strategy": "at-least-once",
    "x-delivery-limit": 4,
    "x-expires": 60_000,
    "x-max-in-memory-bytes": 5,
    "x-max-in-memory-length": 5,
    "x-max-length": 5,
    "x-max-length-bytes": 5,
    "x-max-priority": 3,
    "x-message-ttl": 1000,
    "x-overflow": "drop-head",
    "x-queue-leader-locator": "balanced",
    "x-queue-master-locator": "min-masters",
    "x-queue-mode": "lazy",
    "x-queue-version": 2,
    "x-quorum-initial-group-size": 3,
    "x-single-active-consumer": True,
}


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_differences_are_told_in_one_order(connect: Callable[..., Client], kind: str) -> None:
    """Which argument is named first, when several differ; the type is one of them."""
    keys = COMPARED[kind]
    table = {"x-queue-type": kind, **{key: VALUES[key] for key in keys if key != "x-queue-type"}}
    client = connect()
    queue = client.channel().queue(durable=True, arguments=table)
    other = {"classic": "quorum", "quorum": "classic"}[kind]
    said: dict[str, Any] = {"x-queue-type": other}
    for number, key in enumerate(keys, 2):
        declare = Queue.Declare(queue=queue, durable=True, arguments=said)
        text = client.channel(number).refused(declare).text
        assert text.startswith(f"PRECONDITION_FAILED - inequivalent arg '{key}' for ")
        said[key] = table[key]
    client.channel(100).call(Queue.Declare(queue=queue, durable=True, arguments=said))


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_consumer_timeout_is_not_compared(talk: Talk, kind: str) -> None:
    table: dict[str, Any] = {"x-queue-type": kind}
    queue = talk.queue(durable=True, arguments=table)
    table["x-consumer-timeout"] = 60_000
    talk.call(Queue.Declare(queue=queue, durable=True, arguments=table))


@pytest.mark.parametrize("no_ack", [False, True])
def test_a_prefetch_for_the_channel_is_refused(talk: Talk, no_ack: bool) -> None:
    queue = talk.queue(durable=True, arguments=QUORUM)
    talk.call(Basic.Qos(prefetch_count=5, global_=True))
    consume = Basic.Consume(queue=queue, no_ack=no_ack)
    assert talk.refused(consume) == refusal(
        540,
        f"NOT_IMPLEMENTED - queue '{queue}' in vhost '/' does not support global qos",
        Basic.Consume,
    )


def test_arguments_of_consumers_are_looked_at_before(talk: Talk) -> None:
    queue = talk.queue(durable=True, arguments=QUORUM)
    talk.call(Basic.Qos(prefetch_count=5, global_=True))
    assert talk.refused(Basic.Consume(queue=queue, arguments={"x-priority": "a"})).code == 406


@pytest.mark.parametrize("count", [0, 5])
def test_a_prefetch_for_the_channel_that_comes_later_or_goes_is_not(talk: Talk, count: int) -> None:
    queue = talk.queue(durable=True, arguments=QUORUM)
    if not count:
        talk.call(Basic.Qos(prefetch_count=5, global_=True))
        talk.call(Basic.Qos(prefetch_count=0, global_=True))
    talk.consume(queue, "c")
    talk.call(Basic.Qos(prefetch_count=count, global_=True))
    talk.publish("", queue, b"a")
    (message,) = talk.deliveries(1)
    assert message.body == b"a"


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        ({"if_unused": True}, "if-unused"),
        ({"if_empty": True}, "if-empty"),
        ({"if_unused": True, "if_empty": True}, "if-unused"),
    ],
)
def test_delete_with_a_condition_is_refused(talk: Talk, flags: dict[str, bool], flag: str) -> None:
    queue = talk.queue(durable=True, arguments=QUORUM)
    assert talk.refused(Queue.Delete(queue=queue, **flags)) == refusal(
        540,
        f"NOT_IMPLEMENTED - cannot delete queue '{queue}' in vhost '/'. queue.delete operations "
        f"with {flag} flag set are not supported by quorum queues",
        Queue.Delete,
    )
    talk.client.queues.add(queue)


def test_consumers_are_never_exclusive(connect: Callable[..., Client]) -> None:
    talk = connect().channel()
    queue = talk.queue(durable=True, arguments=QUORUM)
    talk.call(Basic.Consume(queue=queue, exclusive=True))
    talk.call(Basic.Consume(queue=queue, exclusive=True))


def test_what_is_confirmed_is_there(talk: Talk) -> None:
    queue = talk.queue(durable=True, arguments=QUORUM)
    talk.confirm()
    talk.publish("", queue, b"a")
    talk.confirmed(1)
    message = talk.get(queue)
    assert message is not None and message.body == b"a"


# --- two priorities


def ranked(yard: Yard, *priorities: int | None, start: int = 0, **arguments: Any) -> None:
    """Messages with these priorities, which their bodies tell with their numbers."""
    if not start:
        quorum(yard, **arguments)
    for number, priority in enumerate(priorities, start):
        assert yard.publish("q", ranks(priority, number), priority=priority)


def ranks(priority: int | None, number: int) -> bytes:
    return b"%s.%d" % (b"-" if priority is None else b"%d" % priority, number)


def taken(yard: Yard, count: int) -> str:
    """The bodies of the next messages, all of which there are."""
    found = [yard.take("q").body.decode() for _ in range(count)]
    assert yard.nothing("q")
    return " ".join(found)


@pytest.mark.parametrize(
    ("priorities", "expected"),
    [
        # Those above 4 are high.
        ((None, 0, 4, 5, 9, 255, 1), "5.3 9.4 -.0 255.5 0.1 4.2 1.6"),
        # Two high ones for each low one,
        ([0] * 3 + [9] * 7, "9.3 9.4 0.0 9.5 9.6 0.1 9.7 9.8 0.2 9.9"),
        ([0, 9] * 4, "9.1 9.3 0.0 9.5 9.7 0.2 0.4 0.6"),
        # but all high ones that came before all low ones.
        ([9] * 5 + [0] * 3, "9.0 9.1 9.2 9.3 9.4 0.5 0.6 0.7"),
        ([0] + [9] * 5 + [0] * 2, "9.1 9.2 0.0 9.3 9.4 9.5 0.6 0.7"),
    ],
)
def test_high_messages_go_first_two_for_each_low_one(
    yard: Yard, priorities: list[int | None], expected: str
) -> None:
    ranked(yard, *priorities)
    assert taken(yard, len(priorities)) == expected


@pytest.mark.parametrize(
    ("before", "expected"), [(1, "9 0 9 9 0"), (2, "0 9 9 0 9"), (3, "9 9 0 9 0")]
)
def test_low_messages_that_were_taken_before_count(yard: Yard, before: int, expected: str) -> None:
    ranked(yard, *[0] * before)
    for _ in range(before):
        yard.take("q")
    ranked(yard, 0, 0, 9, 9, 9, start=before)
    assert " ".join(each.split(".")[0] for each in taken(yard, 5).split()) == expected


def test_a_consumer_gets_them_in_the_same_order(yard: Yard) -> None:
    ranked(yard, *[0] * 3, *[9] * 5)
    yard.channel.basic_qos(prefetch_count=3)
    found = []
    for method, _, body in yard.channel.consume(yard.name("q"), inactivity_timeout=5):
        assert method is not None
        found.append(body.decode())
        yard.channel.basic_ack(method.delivery_tag)
        if len(found) == 8:
            break
    yard.channel.cancel()
    assert " ".join(found) == "9.3 9.4 0.0 9.5 9.6 0.1 9.7 0.2"


def test_what_came_back_goes_before_all_whatever_its_priority(yard: Yard) -> None:
    ranked(yard, 0, 0, 0, 9, 9, 9)
    got = [yard.take("q") for _ in range(4)]
    assert [each.body for each in got] == [b"9.3", b"9.4", b"0.0", b"9.5"]
    for index in (2, 0, 1, 3):
        nack(yard, got[index])
    assert shown(yard, 6) == [
        (b"0.0", 1),
        (b"9.3", 1),
        (b"9.4", 1),
        (b"9.5", 1),
        (b"0.1", None),
        (b"0.2", None),
    ]


@pytest.mark.parametrize(
    ("priorities", "left"),
    [([0, 0, 0, 9, 9, 9, 0, 9], "9.7 0.1 0.2 0.6"), ([9, 0] * 4, "9.6 0.3 0.5 0.7")],
)
def test_a_limit_drops_what_is_next(yard: Yard, priorities: list[int], left: str) -> None:
    ranked(yard, *priorities, x_max_length=4)
    assert taken(yard, 4) == left


def test_counts_and_purges_are_of_both(yard: Yard) -> None:
    ranked(yard, 9, 0, 9, 0, 0)
    name = yard.name("q")
    assert yard.channel.queue_declare(name, passive=True).method.message_count == 5
    yard.take("q")
    assert yard.channel.queue_purge(name).method.message_count == 4
    assert yard.nothing("q")


def test_dead_letters_of_both_keep_their_priorities(yard: Yard) -> None:
    yard.queue("dead", x_queue_type="quorum")
    ranked(yard, 0, 9, 0, 9, x_dead_letter_exchange="", x_dead_letter_routing_key=yard.name("dead"))
    for _ in range(4):
        yard.reject("q")
    found = [yard.take("dead") for _ in range(4)]
    assert {(each.body, each.properties.priority) for each in found} == {
        (b"0.0", 0),
        (b"9.1", 9),
        (b"0.2", 0),
        (b"9.3", 9),
    }


def test_those_that_expire_do_so_whatever_their_priority(yard: Yard) -> None:
    ranked(yard, 0, 9, 0, 9, x_message_ttl=100)

    def empty() -> bool:
        return not yard.channel.queue_declare(yard.name("q"), passive=True).method.message_count

    until(empty, "all have expired")
    assert yard.nothing("q")
