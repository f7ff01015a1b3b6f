"""Consumers: tags, order, fairness, priorities, exclusive use, prefetch, cancel."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from pamqp.commands import Basic, Channel, Queue

from tests.live.conversation import (
    Case,
    Client,
    Message,
    Talk,
    check,
    refusal,
    show,
    table,
    unique,
    until,
)

Connect = Callable[..., Client]
Q = unique("queue")

STREAM_ARGUMENTS: dict[str, dict[str, Any]] = {
    "x-stream-offset": {"x-stream-offset": 5},
    "x-stream-match-unfiltered": {"x-stream-offset": 5, "x-stream-match-unfiltered": True},
    "x-stream-filter": {"x-stream-match-unfiltered": True, "x-stream-filter": "a"},
}
NO_INTEGERS: dict[str, Any] = {
    "bool": True,
    "void": None,
    "float": 2.5,
    "decimal": Decimal("1.5"),
    "array": [1],
    "table": {},
}
REFUSALS = [
    Case(
        "queue missing",
        [],
        Basic.Consume(queue=Q),
        404,
        f"NOT_FOUND - no queue '{Q}' in vhost '/'",
    ),
    Case(
        "no queue declared before",
        [],
        Basic.Consume(queue=""),
        404,
        "NOT_FOUND - no previously declared queue",
    ),
    Case(
        "get: queue missing",
        [],
        Basic.Get(queue=Q),
        404,
        f"NOT_FOUND - no queue '{Q}' in vhost '/'",
    ),
    Case(
        "get: no queue declared before",
        [],
        Basic.Get(queue=""),
        404,
        "NOT_FOUND - no previously declared queue",
    ),
    Case(
        "tag in use",
        [Queue.Declare(queue=Q), Basic.Consume(queue=Q, consumer_tag="t")],
        Basic.Consume(queue=Q, consumer_tag="t"),
        530,
        "NOT_ALLOWED - attempt to reuse consumer tag 't'",
    ),
    Case(
        "exclusive, but others consume",
        [Queue.Declare(queue=Q), Basic.Consume(queue=Q)],
        Basic.Consume(queue=Q, exclusive=True),
        403,
        f"ACCESS_REFUSED - queue '{Q}' in vhost '/' in exclusive use",
    ),
    Case(
        "somebody consumes exclusively",
        [Queue.Declare(queue=Q), Basic.Consume(queue=Q, exclusive=True)],
        Basic.Consume(queue=Q),
        403,
        f"ACCESS_REFUSED - queue '{Q}' in vhost '/' in exclusive use",
    ),
    Case(
        "priority that is no number",
        [Queue.Declare(queue=Q)],
        Basic.Consume(queue=Q, arguments={"x-priority": "high"}),
        406,
        f"PRECONDITION_FAILED - invalid arg 'x-priority' for queue '{Q}' in vhost '/': "
        '"expected integer, got longstr"',
    ),
    *(
        Case(
            f"{key} is for streams only",
            [Queue.Declare(queue=Q), Basic.Consume(queue=Q, exclusive=True)],
            Basic.Consume(queue=Q, arguments=arguments),
            406,
            f"PRECONDITION_FAILED - invalid arg '{key}' for queue '{Q}' in vhost '/' "
            "of queue type rabbit_classic_queue",
            newer=True,
        )
        for key, arguments in STREAM_ARGUMENTS.items()
    ),
    *(
        Case(
            f"priority that is a {name}",
            [Queue.Declare(queue=Q), Basic.Consume(queue=Q, exclusive=True)],
            Basic.Consume(queue=Q, arguments={"x-priority": value, "x-stream-offset": 5}),
            406,
            f"PRECONDITION_FAILED - invalid arg 'x-priority' for queue '{Q}' in vhost '/': "
            f'"expected integer, got {name}"',
            newer=True,
        )
        for name, value in NO_INTEGERS.items()
    ),
    Case(
        "prefetch size",
        [],
        Basic.Qos(prefetch_size=1),
        540,
        "NOT_IMPLEMENTED - prefetch_size!=0 (1)",
    ),
    Case(
        "recover without requeue",
        [],
        Basic.Recover(requeue=False),
        540,
        "NOT_IMPLEMENTED - requeue=false",
    ),
]


@table(REFUSALS)
def test_refusal(talk: Talk, case: Case) -> None:
    check(talk, case)


def test_server_names_tags(talk: Talk) -> None:
    queue = talk.queue()
    first, second = talk.consume(queue), talk.consume(queue)
    assert first.startswith("amq.ctag-") and second.startswith("amq.ctag-") and first != second


def test_tag_may_be_used_on_another_channel_and_again_after_cancel(connect: Connect) -> None:
    client = connect()
    queue = client.channel(1).queue()
    client.inboxes.clear()
    one, two = Talk(client, 1), client.channel(2)
    for talk in (one, two):
        assert talk.consume(queue, "t") == "t"
    assert one.call(Basic.Cancel("t")).consumer_tag == "t"
    assert one.consume(queue, "t") == "t"


def test_delivery_carries_all(talk: Talk) -> None:
    exchange, queue = talk.exchange("topic"), talk.queue()
    talk.bind(queue, exchange, "#")
    tag = talk.consume(queue)
    talk.publish(exchange, "a.b", b"body", content_type="text/plain", headers={"h": "v"})
    message = talk.expect(
        Basic.Deliver,
        consumer_tag=tag,
        delivery_tag=1,
        redelivered=False,
        exchange=exchange,
        routing_key="a.b",
    )
    assert message.body == b"body"
    assert message.properties.content_type == "text/plain"
    assert message.properties.headers == {"h": "v"}


def test_consume_ok_precedes_deliveries(talk: Talk) -> None:
    queue = talk.queue()
    for _ in range(5):
        talk.publish("", queue, b"x")
    until(lambda: talk.ready(queue) == 5, "five messages")
    talk.send(Basic.Consume(queue=queue, consumer_tag="t"))
    talk.expect(Basic.ConsumeOk, consumer_tag="t")
    assert [m.method.delivery_tag for m in talk.deliveries(5)] == [1, 2, 3, 4, 5]


def test_consume_nowait(talk: Talk) -> None:
    queue = talk.queue()
    talk.send(Basic.Consume(queue=queue, consumer_tag="t", nowait=True))
    talk.publish("", queue, b"x")
    talk.expect(Basic.Deliver, consumer_tag="t")
    talk.send(Basic.Cancel("t", nowait=True))
    until(lambda: talk.consumers(queue) == 0, "no consumer")


def test_no_local_is_ignored(talk: Talk) -> None:
    queue = talk.queue()
    talk.consume(queue, no_local=True)
    talk.publish("", queue, b"own")
    assert talk.expect(Basic.Deliver).body == b"own"


def test_no_ack_frees_at_once(talk: Talk) -> None:
    queue = talk.queue()
    talk.consume(queue, no_ack=True)
    talk.publish("", queue, b"x")
    message = talk.expect(Basic.Deliver)
    assert talk.call(Queue.Delete(queue=queue, if_empty=True)).message_count == 0
    value = talk.next()
    assert isinstance(value, Basic.Cancel)
    assert talk.refused(Basic.Ack(message.method.delivery_tag)) == refusal(
        406, "PRECONDITION_FAILED - unknown delivery tag 1", Basic.Ack
    )


def test_get_says_how_many_remain(talk: Talk) -> None:
    queue = talk.queue()
    assert talk.get(queue) is None
    for number in range(3):
        talk.publish("", queue, b"%d" % number)
    until(lambda: talk.ready(queue) == 3, "three messages")
    for number in range(3):
        message = talk.get(queue)
        assert message is not None
        method = message.method
        assert (message.body, method.message_count) == (b"%d" % number, 2 - number)
        assert (method.delivery_tag, method.redelivered) == (number + 1, False)
        assert (method.exchange, method.routing_key) == ("", queue)
    assert talk.get(queue) is None


def test_get_empty_has_an_empty_field(talk: Talk) -> None:
    reply = talk.call(Basic.Get(queue=talk.queue()))
    assert isinstance(reply, Basic.GetEmpty) and reply.cluster_id == ""


def test_consumers_take_turns(talk: Talk) -> None:
    queue = talk.queue()
    tags = [talk.consume(queue, no_ack=True) for _ in range(3)]
    for _ in range(30):
        talk.publish("", queue, b"x")
    got = [m.method.consumer_tag for m in talk.deliveries(30)]
    assert [got.count(tag) for tag in tags] == [10, 10, 10]


def test_connections_share_a_queue(connect: Connect) -> None:
    talks = [connect().channel() for _ in range(3)]
    queue = talks[0].queue()
    for talk in talks:
        talk.call(Basic.Qos(prefetch_count=1))
        talk.consume(queue)
    for _ in range(5):
        for _ in talks:
            talks[0].publish("", queue, b"x")
        tags = [talk.expect(Basic.Deliver).method.delivery_tag for talk in talks]
        for talk, tag in zip(talks, tags, strict=True):
            talk.send(Basic.Ack(tag))
        for talk in talks:
            talk.quiet(queue)


def test_higher_priority_first(talk: Talk) -> None:
    queue = talk.queue()
    talk.call(Basic.Qos(prefetch_count=2))
    low = talk.consume(queue, "low", arguments={"x-priority": -5})
    plain = talk.consume(queue, "plain")
    high = talk.consume(queue, "high", arguments={"x-priority": 10})
    for _ in range(6):
        talk.publish("", queue, b"x")
    got = [m.method.consumer_tag for m in talk.deliveries(6)]
    assert got == [high, high, plain, plain, low, low]


def test_priorities_are_64_bits_wide(talk: Talk) -> None:
    queue = talk.queue()
    talk.call(Basic.Qos(prefetch_count=1))
    values = {"lowest": -(2**62), "low": -1, "plain": 0, "high": 300, "highest": 2**40}
    for tag, value in values.items():
        talk.consume(queue, tag, arguments={"x-priority": value})
    for _ in values:
        talk.publish("", queue, b"x")
    got = [m.method.consumer_tag for m in talk.deliveries(len(values))]
    assert got == list(reversed(values))


def test_lower_priority_helps_while_the_higher_is_full(talk: Talk) -> None:
    queue = talk.queue()
    talk.call(Basic.Qos(prefetch_count=1))
    talk.consume(queue, "high", arguments={"x-priority": 1})
    talk.consume(queue, "low")
    got = []
    for _ in range(2):
        talk.publish("", queue, b"x")
        got.append(talk.expect(Basic.Deliver).method)
    assert [method.consumer_tag for method in got] == ["high", "low"]
    for method in reversed(got):
        talk.send(Basic.Ack(method.delivery_tag))
    talk.quiet(queue)
    talk.publish("", queue, b"x")
    talk.expect(Basic.Deliver, consumer_tag="high")


def test_cancel_stops_deliveries_and_keeps_what_is_unacknowledged(talk: Talk) -> None:
    queue = talk.queue()
    tag = talk.consume(queue)
    talk.publish("", queue, b"held")
    message = talk.expect(Basic.Deliver)
    assert talk.call(Basic.Cancel(tag)).consumer_tag == tag
    talk.publish("", queue, b"kept")
    until(lambda: talk.ready(queue) == 1, "the second one waits")
    talk.quiet(queue)
    talk.send(Basic.Ack(message.method.delivery_tag))
    talk.call(Channel.Flow(active=True))
    assert talk.drain(queue) == [b"kept"]


def test_cancel_of_an_unknown_tag(talk: Talk) -> None:
    assert talk.call(Basic.Cancel("nobody")).consumer_tag == "nobody"


def test_deleting_a_queue_tells_its_consumers(connect: Connect) -> None:
    talk, other = connect().channel(), connect().channel()
    queue = talk.queue()
    tags = {talk.consume(queue), talk.consume(queue)}
    other.call(Queue.Delete(queue=queue))
    assert {talk.expect(Basic.Cancel, nowait=True).consumer_tag for _ in tags} == tags
    talk.declare(queue)


def test_client_without_the_capability_is_not_told(connect: Connect) -> None:
    talk, other = connect(capabilities={}).channel(), connect().channel()
    queue = talk.queue()
    talk.consume(queue)
    other.call(Queue.Delete(queue=queue))
    other.declare(queue)
    talk.quiet(queue)


def test_exclusive_use_ends_with_the_consumer(talk: Talk) -> None:
    queue = talk.queue()
    tag = talk.consume(queue, exclusive=True)
    talk.call(Basic.Cancel(tag))
    talk.consume(queue)
    talk.consume(queue)


# prefetch


def filled(talk: Talk, count: int) -> str:
    """A queue with `count` numbered messages."""
    queue = talk.queue()
    for number in range(count):
        talk.publish("", queue, b"%d" % number)
    until(lambda: talk.ready(queue) == count, "all messages")
    return queue


def test_prefetch_holds_for_each_consumer_opened_later(talk: Talk) -> None:
    queue = filled(talk, 10)
    talk.call(Basic.Qos(prefetch_count=2))
    talk.consume(queue, "first")
    assert {m.method.consumer_tag for m in talk.deliveries(2)} == {"first"}
    talk.call(Basic.Qos(prefetch_count=3))
    talk.consume(queue, "second")
    assert {m.method.consumer_tag for m in talk.deliveries(3)} == {"second"}
    talk.quiet(queue)


def test_prefetch_zero_is_no_limit(talk: Talk) -> None:
    queue = filled(talk, 50)
    talk.call(Basic.Qos(prefetch_count=1))
    talk.call(Basic.Qos(prefetch_count=0))
    talk.consume(queue)
    talk.deliveries(50)


def test_ack_makes_room(talk: Talk) -> None:
    queue = filled(talk, 6)
    talk.call(Basic.Qos(prefetch_count=2))
    talk.consume(queue)
    talk.deliveries(2)
    talk.quiet(queue)
    talk.send(Basic.Ack(1))
    assert talk.expect(Basic.Deliver).body == b"2"
    talk.quiet(queue)
    talk.send(Basic.Ack(3, multiple=True))
    assert [m.body for m in talk.deliveries(2)] == [b"3", b"4"]
    talk.quiet(queue)
    talk.send(Basic.Reject(4, requeue=False))
    assert talk.expect(Basic.Deliver).body == b"5"


def test_global_prefetch_is_shared_by_the_channel(talk: Talk) -> None:
    queue = filled(talk, 10)
    talk.call(Basic.Qos(prefetch_count=3, global_=True))
    talk.consume(queue, "first")
    talk.deliveries(3)
    talk.consume(queue, "second")
    talk.quiet(queue)
    talk.send(Basic.Ack(3, multiple=True))
    talk.deliveries(3)
    talk.quiet(queue)


def test_global_prefetch_changes_live_consumers(talk: Talk) -> None:
    queue = filled(talk, 10)
    talk.call(Basic.Qos(prefetch_count=1, global_=True))
    talk.consume(queue)
    talk.deliveries(1)
    talk.quiet(queue)
    talk.call(Basic.Qos(prefetch_count=4, global_=True))
    talk.deliveries(3)
    talk.quiet(queue)
    talk.call(Basic.Qos(prefetch_count=0, global_=True))
    talk.deliveries(6)


def test_both_prefetches_hold_at_once(talk: Talk) -> None:
    queue = filled(talk, 10)
    talk.call(Basic.Qos(prefetch_count=2))
    talk.call(Basic.Qos(prefetch_count=3, global_=True))
    talk.consume(queue, "first")
    talk.deliveries(2)
    talk.quiet(queue)
    talk.consume(queue, "second")
    talk.expect(Basic.Deliver, consumer_tag="second")
    talk.quiet(queue)


def test_get_does_not_count_for_prefetch(talk: Talk) -> None:
    queue = filled(talk, 4)
    talk.call(Basic.Qos(prefetch_count=1))
    assert talk.get(queue) and talk.get(queue)
    talk.consume(queue)
    assert talk.expect(Basic.Deliver).body == b"2"
    talk.quiet(queue)


def test_no_ack_consumers_have_no_prefetch(talk: Talk) -> None:
    queue = filled(talk, 10)
    talk.call(Basic.Qos(prefetch_count=1))
    talk.consume(queue, no_ack=True)
    talk.deliveries(10)


def test_slow_consumer_leaves_the_rest_to_others(connect: Connect) -> None:
    slow, quick = connect().channel(), connect().channel()
    queue = slow.queue()
    slow.call(Basic.Qos(prefetch_count=1))
    slow.consume(queue)
    quick.consume(queue)
    for number in range(10):
        slow.publish("", queue, b"%d" % number)
    slow.expect(Basic.Deliver)
    assert len(quick.deliveries(9)) == 9


def test_large_backlog_is_delivered_in_order(talk: Talk) -> None:
    queue = filled(talk, 3000)
    talk.call(Basic.Qos(prefetch_count=100))
    talk.consume(queue)
    for number in range(3000):
        value = talk.next()
        assert isinstance(value, Message) and value.body == b"%d" % number, show(value)
        if number % 50 == 49:
            talk.send(Basic.Ack(value.method.delivery_tag, multiple=True))


@pytest.mark.parametrize("count", [1, 7])
def test_tags_count_per_channel(connect: Connect, count: int) -> None:
    client = connect()
    for number in (1, 2):
        talk = client.channel(number)
        queue = filled(talk, count)
        talk.consume(queue)
        assert [m.method.delivery_tag for m in talk.deliveries(count)] == list(range(1, count + 1))
