"""Declaring, deleting, purging and binding queues; exclusive, auto-delete and server-named ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pamqp.commands import Basic, Channel, Exchange, Queue

from tests.live.conversation import Case, Client, Talk, check, refusal, table, unique, until

Connect = Callable[..., Client]
Q = unique("queue")
X = unique("exchange")
RS = f"queue '{Q}' in vhost '/'"
LOCKED = (
    "RESOURCE_LOCKED - cannot obtain exclusive access to locked {}. It could be originally "
    "declared on another connection or the exclusive property value does not match that of "
    "the original declaration."
)


def different(
    argument: str,
    received: str,
    current: str,
    first: dict[str, Any],
    then: dict[str, Any],
) -> Case:
    """A row: declared with `first`, then with `then`."""
    return Case(
        f"redeclared with other {argument}: {received}, was {current}",
        [Queue.Declare(**{"queue": Q, **first})],
        Queue.Declare(**{"queue": Q, **then}),
        406,
        f"PRECONDITION_FAILED - inequivalent arg '{argument}' for {RS}: "
        f"received {received} but current is {current}",
    )


def argument(name: str, value: Any, reason: str, **others: Any) -> Case:
    """A row: an argument's value that is refused."""
    return Case(
        f"argument {name} = {value!r}",
        [],
        Queue.Declare(queue=Q, arguments={name: value, **others}),
        406,
        f"PRECONDITION_FAILED - invalid arg '{name}' for {RS}: {reason}",
    )


def args(**values: Any) -> dict[str, Any]:
    """Keyword names to argument names: x_message_ttl is x-message-ttl."""
    return {"arguments": {name.replace("_", "-"): value for name, value in values.items()}}


REFUSALS = [
    different("durable", "'true'", "'false'", {}, {"durable": True}),
    different("durable", "'false'", "'true'", {"durable": True}, {}),
    different("auto_delete", "'true'", "'false'", {}, {"auto_delete": True}),
    different(
        "durable",
        "'true'",
        "'false'",
        {},
        {"durable": True, "auto_delete": True, **args(x_message_ttl=1000)},
    ),
    different(
        "x-message-ttl",
        "none",
        "the value '70000' of type 'signedint'",
        args(x_message_ttl=70_000),
        {},
    ),
    different(
        "x-message-ttl",
        "the value '70000' of type 'signedint'",
        "none",
        {},
        args(x_message_ttl=70_000),
    ),
    different(
        "x-message-ttl",
        "'70001'",
        "'70000'",
        args(x_message_ttl=70_000),
        args(x_message_ttl=70_001),
    ),
    different(
        "x-expires",
        "none",
        "the value '60000' of type 'unsignedshort'",
        args(x_expires=60_000),
        {},
    ),
    different(
        "x-dead-letter-exchange",
        "'b'",
        "'a'",
        args(x_dead_letter_exchange="a"),
        args(x_dead_letter_exchange="b"),
    ),
    different(
        "x-dead-letter-routing-key",
        "'b'",
        "'a'",
        args(x_dead_letter_exchange="a", x_dead_letter_routing_key="a"),
        args(x_dead_letter_exchange="a", x_dead_letter_routing_key="b"),
    ),
    different("x-max-length", "'2'", "'1'", args(x_max_length=1), args(x_max_length=2)),
    different(
        "x-max-length-bytes", "'2'", "'1'", args(x_max_length_bytes=1), args(x_max_length_bytes=2)
    ),
    different(
        "x-overflow",
        "'reject-publish'",
        "'drop-head'",
        args(x_overflow="drop-head"),
        args(x_overflow="reject-publish"),
    ),
    different("x-max-priority", "'3'", "'2'", args(x_max_priority=2), args(x_max_priority=3)),
    different(
        "x-single-active-consumer",
        "'false'",
        "'true'",
        args(x_single_active_consumer=True),
        args(x_single_active_consumer=False),
    ),
    different(
        "x-single-active-consumer",
        "the value 'false' of type 'bool'",
        "none",
        args(),
        args(x_single_active_consumer=False),
    ),
    different(
        "x-single-active-consumer",
        "none",
        "the value 'true' of type 'bool'",
        args(x_single_active_consumer=True),
        args(),
    ),
    argument("x-message-ttl", -1, "{value_negative,-1}"),
    argument("x-message-ttl", "soon", '"expected integer, got longstr"'),
    argument("x-expires", 0, "{value_zero,0}"),
    argument("x-expires", -1, "{value_negative,-1}"),
    argument("x-expires", "soon", '"expected integer, got longstr"'),
    argument("x-max-length", -1, "{value_negative,-1}"),
    argument("x-max-length", "long", '"expected integer, got longstr"'),
    argument("x-max-length-bytes", -1, "{value_negative,-1}"),
    argument("x-max-priority", 256, "{max_value_exceeded,256}"),
    argument("x-max-priority", -1, "{value_negative,-1}"),
    argument("x-max-priority", "5", '"expected integer, got longstr"'),
    argument("x-max-priority", 2.0, '"expected integer, got float"'),
    argument("x-max-priority", True, '"expected integer, got bool"'),
    argument("x-overflow", "nonsense", "invalid_overflow"),
    argument("x-dead-letter-routing-key", "k", "routing_key_but_no_dlx_defined"),
    Case(
        "argument x-dead-letter-exchange that is no string",
        [],
        Queue.Declare(queue=Q, arguments={"x-dead-letter-exchange": 70_000}),
        406,
        f"PRECONDITION_FAILED - invalid type 'signedint' for arg 'x-dead-letter-exchange' in {RS}",
    ),
    argument("x-queue-type", "nonsense", "\"unsupported queue type 'nonsense'\""),
    argument("x-single-active-consumer", "yes", "{unacceptable_type,longstr}"),
    argument("x-single-active-consumer", None, "{unacceptable_type,void}"),
    argument("x-single-active-consumer", 2.5, "{unacceptable_type,float}"),
    Case(
        "passive and missing",
        [],
        Queue.Declare(queue=Q, passive=True),
        404,
        f"NOT_FOUND - no {RS}",
    ),
    Case(
        "reserved prefix",
        [],
        Queue.Declare(queue="amq.mine"),
        403,
        "ACCESS_REFUSED - queue name 'amq.mine' contains reserved prefix 'amq.*'",
    ),
    Case(
        "no queue declared before on this channel",
        [],
        Queue.Bind(queue="", exchange="amq.direct", routing_key="k"),
        404,
        "NOT_FOUND - no previously declared queue",
    ),
    Case("purge: missing", [], Queue.Purge(queue=Q), 404, f"NOT_FOUND - no {RS}"),
    Case(
        "purge: no queue declared before",
        [],
        Queue.Purge(queue=""),
        404,
        "NOT_FOUND - no previously declared queue",
    ),
    Case(
        "delete: no queue declared before",
        [],
        Queue.Delete(queue=""),
        404,
        "NOT_FOUND - no previously declared queue",
    ),
    Case(
        "bind: queue missing",
        [],
        Queue.Bind(queue=Q, exchange="amq.direct", routing_key="k"),
        404,
        f"NOT_FOUND - no {RS}",
    ),
    Case(
        "bind: exchange missing",
        [Queue.Declare(queue=Q)],
        Queue.Bind(queue=Q, exchange=X, routing_key="k"),
        404,
        f"NOT_FOUND - no exchange '{X}' in vhost '/'",
    ),
    Case(
        "bind to the default exchange",
        [Queue.Declare(queue=Q)],
        Queue.Bind(queue=Q, exchange="", routing_key="k"),
        403,
        "ACCESS_REFUSED - operation not permitted on the default exchange",
    ),
    Case(
        "unbind from the default exchange",
        [Queue.Declare(queue=Q)],
        Queue.Unbind(queue=Q, exchange="", routing_key="k"),
        403,
        "ACCESS_REFUSED - operation not permitted on the default exchange",
    ),
    Case(
        "delete if unused, but consumed",
        [Queue.Declare(queue=Q), Basic.Consume(queue=Q)],
        Queue.Delete(queue=Q, if_unused=True),
        406,
        f"PRECONDITION_FAILED - {RS} in use",
    ),
]


@table(REFUSALS)
def test_refusal(talk: Talk, case: Case) -> None:
    check(talk, case)


def test_delete_if_empty_of_a_full_queue(talk: Talk) -> None:
    queue = talk.queue()
    talk.publish("", queue, b"x")
    assert talk.refused(Queue.Delete(queue=queue, if_empty=True)) == refusal(
        406, f"PRECONDITION_FAILED - queue '{queue}' in vhost '/' not empty", Queue.Delete
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"durable": True},
        {"auto_delete": True},
        {"exclusive": True},
        args(x_message_ttl=60_000, x_expires=300_000),
        args(x_queue_mode="lazy"),
        args(x_queue_type="classic"),
        args(x_unknown="tolerated"),
        args(x_max_length=10, x_overflow="reject-publish"),
        {"durable": True, **args(x_queue_type="quorum")},
        {"exclusive": True, "auto_delete": True, **args(x_expires=10_000)},
    ],
    ids=str,
)
def test_redeclare_the_same(talk: Talk, options: dict[str, Any]) -> None:
    queue = talk.queue(**options)
    talk.call(Queue.Declare(queue=queue, **options))
    talk.call(Queue.Declare(queue=queue, passive=True))


def test_unknown_arguments_are_not_compared(talk: Talk) -> None:
    queue = talk.queue(**args(x_mine=1))
    talk.declare(queue, **args(x_mine=2))
    talk.declare(queue)


def test_integers_are_equal_across_widths(talk: Talk) -> None:
    """A short, then a long: the number counts. Raw tables, since pamqp picks the width."""
    queue = unique("widths")
    talk.client.queues.add(queue)
    for encoded in (b"s\x03\xe8", b"I\x00\x00\x03\xe8", b"l" + (1000).to_bytes(8, "big")):
        table_bytes = b"\x0dx-message-ttl" + encoded
        name = queue.encode()
        payload = (
            b"\x00\x32\x00\x0a\x00\x00"
            + bytes([len(name)])
            + name
            + b"\x00"
            + len(table_bytes).to_bytes(4, "big")
            + table_bytes
        )
        talk.send(b"\x01\x00\x01" + len(payload).to_bytes(4, "big") + payload + b"\xce")
        talk.expect(Queue.DeclareOk)


def test_absent_queue_type_is_classic(talk: Talk) -> None:
    queue = talk.queue(durable=True)
    talk.declare(queue, durable=True, **args(x_queue_type="classic"))


@pytest.mark.newer
def test_another_queue_type_is_not_equivalent(talk: Talk) -> None:
    queue = talk.queue(durable=True)
    declare = Queue.Declare(queue=queue, durable=True, **args(x_queue_type="quorum"))
    assert talk.refused(declare) == refusal(
        406,
        f"PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue '{queue}' in vhost '/': "
        "received 'quorum' but current is 'classic'",
        Queue.Declare,
    )


def test_passive_compares_nothing(talk: Talk) -> None:
    queue = talk.queue()
    talk.call(Queue.Declare(queue=queue, passive=True, durable=True, auto_delete=True))


def test_declare_counts_ready_messages_and_consumers(talk: Talk) -> None:
    queue = talk.queue()
    reply = talk.call(Queue.Declare(queue=queue))
    assert (reply.queue, reply.message_count, reply.consumer_count) == (queue, 0, 0)
    for _ in range(3):
        talk.publish("", queue, b"x")
    assert talk.get_soon(queue)
    until(lambda: talk.ready(queue) == 2, "one unacknowledged of three")
    talk.call(Basic.Qos(prefetch_count=1))
    talk.consume(queue)
    talk.expect(Basic.Deliver)
    reply = talk.call(Queue.Declare(queue=queue))
    assert (reply.message_count, reply.consumer_count) == (1, 1)


def test_delete_says_how_many_messages_went(talk: Talk) -> None:
    queue = talk.queue()
    for _ in range(3):
        talk.publish("", queue, b"x")
    until(lambda: talk.ready(queue) == 3, "three messages")
    assert talk.call(Queue.Delete(queue=queue)).message_count == 3
    assert talk.call(Queue.Delete(queue=queue)).message_count == 0


def test_delete_of_what_is_not_there_succeeds(talk: Talk) -> None:
    reply = talk.call(Queue.Delete(queue=unique(), if_unused=True, if_empty=True))
    assert reply.message_count == 0


def test_purge_takes_ready_messages_only(talk: Talk) -> None:
    queue = talk.queue()
    for number in range(4):
        talk.publish("", queue, b"%d" % number)
    held = talk.get_soon(queue)
    until(lambda: talk.ready(queue) == 3, "three ready")
    assert talk.call(Queue.Purge(queue=queue)).message_count == 3
    talk.send(Basic.Reject(held.method.delivery_tag, requeue=True))
    assert talk.get_soon(queue).body == b"0"


def test_server_names_queues(talk: Talk) -> None:
    first, second = talk.declare("", exclusive=True), talk.declare("", exclusive=True)
    assert first.startswith("amq.gen-") and second.startswith("amq.gen-")
    assert first != second
    talk.call(Queue.Declare(queue=first, passive=True))


def test_server_named_queue_cannot_be_declared_by_name(talk: Talk) -> None:
    name = talk.declare("", exclusive=True)
    assert talk.refused(Queue.Declare(queue=name, exclusive=True)) == refusal(
        403,
        f"ACCESS_REFUSED - queue name '{name}' contains reserved prefix 'amq.*'",
        Queue.Declare,
    )


def test_empty_name_means_the_queue_declared_last(talk: Talk) -> None:
    talk.queue()
    queue = talk.queue()
    talk.bind("", "amq.direct", "")
    talk.publish("amq.direct", queue, b"bound by its own name")
    assert talk.get_soon("", no_ack=True).body == b"bound by its own name"
    tag = talk.consume("")
    talk.publish("", queue, b"consumed")
    assert talk.expect(Basic.Deliver, consumer_tag=tag).body == b"consumed"
    talk.call(Basic.Cancel(tag))
    talk.call(Queue.Purge(queue=""))
    talk.call(Queue.Unbind(queue="", exchange="amq.direct", routing_key=""))
    talk.call(Queue.Delete(queue=""))
    assert talk.refused(Queue.Declare(queue=queue, passive=True)).code == 404


def test_empty_name_with_a_key_keeps_the_key(talk: Talk) -> None:
    talk.queue()
    key = unique("key")
    talk.bind("", "amq.direct", key)
    talk.publish("amq.direct", key, b"x")
    assert talk.get_soon("").body == b"x"


EXCLUSIVE_OPERATIONS = [
    lambda queue: Queue.Declare(queue=queue),
    lambda queue: Queue.Declare(queue=queue, exclusive=True),
    lambda queue: Queue.Declare(queue=queue, passive=True),
    lambda queue: Queue.Bind(queue=queue, exchange="amq.direct", routing_key="k"),
    lambda queue: Queue.Purge(queue=queue),
    lambda queue: Queue.Delete(queue=queue),
    lambda queue: Basic.Get(queue=queue),
    lambda queue: Basic.Consume(queue=queue),
]


@pytest.mark.parametrize("operation", EXCLUSIVE_OPERATIONS, ids=lambda o: str(o("q").name))
def test_exclusive_is_locked_to_others(
    connect: Connect, operation: Callable[[str], object]
) -> None:
    owner, other = connect().channel(), connect().channel()
    queue = owner.queue(exclusive=True)
    method = operation(queue)
    assert other.refused(method) == refusal(
        405, LOCKED.format(f"queue '{queue}' in vhost '/'"), method
    )


def test_exclusive_against_a_shared_queue(connect: Connect) -> None:
    talk = connect().channel()
    queue = talk.queue()
    assert talk.refused(Queue.Declare(queue=queue, exclusive=True)) == refusal(
        405, LOCKED.format(f"queue '{queue}' in vhost '/'"), Queue.Declare
    )


def test_exclusive_is_shared_by_the_channels_of_its_connection(connect: Connect) -> None:
    client = connect()
    queue = client.channel(1).queue(exclusive=True)
    second = client.channel(2)
    second.declare(queue, exclusive=True)
    second.publish("", queue, b"x")
    assert second.get_soon(queue).body == b"x"


def test_exclusive_takes_messages_from_others(connect: Connect) -> None:
    owner, other = connect().channel(), connect().channel()
    queue = owner.queue(exclusive=True)
    other.publish("", queue, b"x")
    assert owner.get_soon(queue).body == b"x"


def test_exclusive_is_gone_before_close_ok(connect: Connect) -> None:
    other = connect().channel()
    for _ in range(20):
        client = connect()
        queue = client.channel().queue(exclusive=True)
        client.close()
        other.declare(queue, exclusive=True)
        other.call(Queue.Delete(queue=queue))


def test_exclusive_goes_with_a_broken_connection(connect: Connect) -> None:
    owner = connect()
    queue = owner.channel().queue(exclusive=True)
    watcher = connect()
    owner.abort()

    def is_gone() -> bool:
        reply = watcher.channel(1).refused(Queue.Declare(queue=queue, passive=True))
        assert reply.code in (404, 405)
        return reply.code == 404

    until(is_gone, "the exclusive queue is gone")


def test_auto_delete_goes_with_its_last_consumer(talk: Talk) -> None:
    queue = talk.queue(auto_delete=True)
    talk.call(Queue.Declare(queue=queue, passive=True))
    first, second = talk.consume(queue), talk.consume(queue)
    talk.call(Basic.Cancel(first))
    talk.call(Queue.Declare(queue=queue, passive=True))
    talk.call(Basic.Cancel(second))
    assert talk.refused(Queue.Declare(queue=queue, passive=True)).code == 404


def test_auto_delete_goes_with_the_channel(connect: Connect) -> None:
    client = connect()
    talk = client.channel(1)
    queue = talk.queue(auto_delete=True)
    talk.consume(queue)
    talk.close()
    other = client.channel(2)
    assert other.refused(Queue.Declare(queue=queue, passive=True)).code == 404


def test_auto_delete_without_a_consumer_stays(connect: Connect) -> None:
    client = connect()
    talk = client.channel(1)
    queue = talk.queue(auto_delete=True)
    talk.publish("", queue, b"x")
    assert talk.get_soon(queue, no_ack=True)
    talk.close()
    client.channel(2).call(Queue.Declare(queue=queue, passive=True))


def test_binding_twice_is_once(talk: Talk) -> None:
    queue, exchange = talk.queue(), talk.exchange("direct")
    talk.bind(queue, exchange, "k")
    talk.bind(queue, exchange, "k")
    talk.publish(exchange, "k", b"x")
    talk.publish(exchange, "k", b"y")
    until(lambda: talk.ready(queue) == 2, "one copy each")
    talk.call(Queue.Unbind(queue=queue, exchange=exchange, routing_key="k"))
    talk.publish(exchange, "k", b"z", mandatory=True)
    assert talk.expect(Basic.Return).body == b"z"


def test_bindings_differ_by_arguments(talk: Talk) -> None:
    queue, exchange = talk.queue(), talk.exchange("direct")
    talk.bind(queue, exchange, "k", {"a": 1})
    talk.bind(queue, exchange, "k", {"a": 2})
    talk.call(Queue.Unbind(queue=queue, exchange=exchange, routing_key="k", arguments={"a": 1}))
    talk.publish(exchange, "k", b"x", mandatory=True)
    assert talk.get_soon(queue).body == b"x"


def test_unbind_of_what_is_not_there_succeeds(talk: Talk) -> None:
    queue = talk.queue()
    for q, x, key in [
        (queue, "amq.direct", unique()),
        (queue, unique(), "k"),
        (unique(), "amq.direct", "k"),
        (unique(), unique(), "k"),
    ]:
        talk.call(Queue.Unbind(queue=q, exchange=x, routing_key=key))


def test_nowait_variants(talk: Talk) -> None:
    queue = unique("nowait")
    talk.send(
        Queue.Declare(queue=queue, nowait=True),
        Queue.Bind(queue=queue, exchange="amq.fanout", nowait=True),
        Basic.Publish(exchange="", routing_key=queue),
        b"\x02\x00\x01\x00\x00\x00\x0e\x00\x3c" + bytes(12) + b"\xce",
        Queue.Purge(queue=queue, nowait=True),
    )
    assert talk.ready(queue) == 0
    talk.send(Queue.Delete(queue=queue, nowait=True))
    assert talk.refused(Queue.Declare(queue=queue, passive=True)).code == 404


def test_error_of_a_nowait_method_closes_the_channel(talk: Talk) -> None:
    queue = talk.queue()
    assert talk.refused(Queue.Declare(queue=queue, durable=True, nowait=True)).code == 406


def test_passive_declare_from_elsewhere_sees_the_queue(connect: Connect) -> None:
    queue = connect().channel().queue()
    assert connect().channel().ready(queue) == 0


def test_ten_names_in_one_write(talk: Talk) -> None:
    """Answers come in the order of the questions."""
    names = [unique("batch") for _ in range(10)]
    talk.send(*(Queue.Declare(queue=name) for name in names), Channel.Flow(active=True))
    for name in names:
        talk.expect(Queue.DeclareOk, queue=name)
    talk.expect(Channel.FlowOk)
    talk.send(*(Queue.Delete(queue=name) for name in names), Exchange.Delete(exchange=unique()))
    for _ in names:
        talk.expect(Queue.DeleteOk)
    talk.expect(Exchange.DeleteOk)
