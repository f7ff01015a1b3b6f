"""Publishing: returns, confirms, transactions, and what is checked in a message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pamqp.commands import Basic, Channel, Confirm, Exchange, Queue, Tx

from tests.live.conversation import (
    Case,
    Client,
    Talk,
    check,
    encode_content,
    encode_frame,
    encode_raw_content,
    refusal,
    table,
    unique,
    until,
)

Connect = Callable[..., Client]
X = unique("exchange")


def publish_with(
    exchange: str = "amq.direct", data: bytes = b"x", **properties: Any
) -> list[object]:
    """A publish on channel 1 with these properties."""
    return [
        Basic.Publish(exchange=exchange, routing_key="k"),
        encode_content(1, data, Basic.Properties(**properties)),
    ]


def bad_expiration(value: str, reason: str) -> Case:
    """A row: an expiration that is no number of milliseconds."""
    return Case(
        f"expiration {value!r}",
        [],
        publish_with(expiration=value),
        406,
        f"PRECONDITION_FAILED - invalid expiration '{value}': {reason}",
    )


REFUSALS = [
    Case(
        "exchange missing",
        [],
        publish_with(X),
        404,
        f"NOT_FOUND - no exchange '{X}' in vhost '/'",
    ),
    Case(
        "immediate",
        [],
        [Basic.Publish(exchange="", routing_key="k", immediate=True), encode_content(1, b"x")],
        540,
        "NOT_IMPLEMENTED - immediate=true",
    ),
    bad_expiration("-1", "{value_negative,-1}"),
    bad_expiration("soon", "no_integer"),
    bad_expiration("10x", '{leftover_string,"x"}'),
    bad_expiration("1.5", '{leftover_string,".5"}'),
    bad_expiration(" 5", "no_integer"),
    bad_expiration("315360000001", "{value_too_large,315360000001}"),
    Case(
        "user_id of someone else",
        [],
        publish_with(user_id="somebody"),
        406,
        "PRECONDITION_FAILED - user_id property set to 'somebody' but authenticated user was "
        "'guest'",
    ),
    Case(
        "the exchange is looked at before the properties",
        [],
        publish_with(X, expiration="soon", user_id="somebody", headers={"CC": "x"}),
        404,
        f"NOT_FOUND - no exchange '{X}' in vhost '/'",
    ),
    Case(
        "expiration before CC before user_id",
        [],
        publish_with(expiration="soon", user_id="somebody", headers={"CC": "x"}),
        406,
        "PRECONDITION_FAILED - invalid expiration 'soon': no_integer",
        newer=True,
    ),
]


@table(REFUSALS)
def test_refusal(talk: Talk, case: Case) -> None:
    check(talk, case)


@pytest.mark.newer
def test_message_larger_than_the_largest(talk: Talk) -> None:
    size = 128 * 1024 * 1024 + 1
    queue = talk.queue()
    talk.send(
        Basic.Publish(exchange="", routing_key=queue),
        encode_frame(2, 1, b"\x00\x3c\x00\x00" + size.to_bytes(8, "big") + b"\x00\x00"),
    )
    assert talk.refusal() == refusal(
        406,
        f"PRECONDITION_FAILED - message size {size} is larger than max size {size - 1}",
        Basic.Publish,
    )


def test_largest_message_passes(talk: Talk) -> None:
    queue = talk.queue()
    data = bytes(range(256)) * 65536
    talk.publish("", queue, data)
    assert talk.get_soon(queue, no_ack=True).body == data


@pytest.mark.parametrize("expiration", ["0", "60000", "315360000000", "+5000", "007000"])
def test_expirations_that_are_accepted(talk: Talk, expiration: str) -> None:
    queue = talk.queue()
    talk.publish("", queue, b"x", expiration=expiration)
    if int(expiration):
        assert talk.get_soon(queue).properties.expiration == expiration
    talk.call(Channel.Flow(active=True))


@pytest.mark.parametrize("mode", [0, 3, 255])
def test_other_delivery_modes_are_kept(talk: Talk, mode: int) -> None:
    """RabbitMQ 3.10 refused them; to 4.0 such a message is transient."""
    queue = talk.queue()
    talk.send(
        Basic.Publish(exchange="", routing_key=queue),
        encode_raw_content(1, b"x", b"\x10\x00" + bytes([mode])),
    )
    assert talk.get_soon(queue).properties.delivery_mode == mode


def test_own_user_id_is_kept(talk: Talk) -> None:
    queue = talk.queue()
    talk.publish("", queue, b"x", user_id="guest")
    assert talk.get_soon(queue).properties.user_id == "guest"


# bodies: sizes around one frame of 4096 bytes, and the frames they come in
SIZES = [0, 1, 4087, 4088, 4089, 8176, 8177, 100_000]


def test_bodies_around_the_frame_size(connect: Connect) -> None:
    talk = connect(frame_max=4096).channel()
    queue = talk.declare("", exclusive=True)
    for size in SIZES:
        data = bytes(i & 0xFF for i in range(size))
        talk.publish("", queue, data)
        message = talk.get_soon(queue, no_ack=True)
        assert message.body == data
        full, rest = divmod(size, 4088)
        assert message.body_frame_bytes == (4088,) * full + ((rest,) if rest else ())


def test_body_in_frames_of_any_size(talk: Talk) -> None:
    """Frames smaller than allowed, and empty ones, in the middle of a body."""
    queue = talk.queue()
    pieces = [b"a", b"", b"bc", b"", b"def" * 100, b"g"]
    size = sum(map(len, pieces))
    talk.send(
        Basic.Publish(exchange="", routing_key=queue),
        encode_frame(2, 1, b"\x00\x3c\x00\x00" + size.to_bytes(8, "big") + b"\x00\x00"),
        *(encode_frame(3, 1, piece) for piece in pieces),
    )
    assert talk.get_soon(queue).body == b"".join(pieces)


def test_contents_of_channels_may_interleave(connect: Connect) -> None:
    client = connect()
    one, two = client.channel(1), client.channel(2)
    queue = one.declare("", exclusive=True)
    head = b"\x00\x3c\x00\x00" + (2).to_bytes(8, "big") + b"\x00\x00"
    one.send(Basic.Publish(exchange="", routing_key=queue))
    two.send(Basic.Publish(exchange="", routing_key=queue))
    client.write(encode_frame(2, 1, head) + encode_frame(2, 2, head))
    client.write(encode_frame(3, 2, b"B") + encode_frame(3, 1, b"A"))
    client.write(encode_frame(3, 2, b"b") + encode_frame(3, 1, b"a"))
    assert sorted([one.get_soon(queue).body, one.get_soon(queue).body]) == [b"Aa", b"Bb"]


def test_other_methods_may_stand_between_on_other_channels(connect: Connect) -> None:
    client = connect()
    one, two = client.channel(1), client.channel(2)
    queue = one.queue()
    one.send(Basic.Publish(exchange="", routing_key=queue))
    two.call(Queue.Declare(queue=queue))
    client.write(encode_frame(8, 0, b""))
    one.send(encode_content(1, b"x"))
    assert one.get_soon(queue).body == b"x"


def test_unroutable_and_mandatory_comes_back_whole(talk: Talk) -> None:
    key = unique("missing")
    talk.publish("amq.direct", key, b"y" * 200_000, mandatory=True, message_id="m", priority=3)
    message = talk.expect(
        Basic.Return, reply_code=312, reply_text="NO_ROUTE", exchange="amq.direct", routing_key=key
    )
    assert message.body == b"y" * 200_000
    assert (message.properties.message_id, message.properties.priority) == ("m", 3)


def test_unroutable_without_mandatory_is_dropped(talk: Talk) -> None:
    talk.publish("amq.direct", unique("missing"), b"x")
    talk.call(Channel.Flow(active=True))


def test_return_precedes_the_confirm(talk: Talk) -> None:
    talk.confirm()
    for _ in range(3):
        talk.publish("", unique("missing"), b"x", mandatory=True)
        talk.expect(Basic.Return)
        talk.expect(Basic.Ack)


def test_every_publish_is_confirmed_once(talk: Talk) -> None:
    talk.confirm()
    queue = talk.queue(durable=True)
    for number in range(500):
        target = [queue, unique("missing")][number % 2]
        talk.publish("", target, b"x", delivery_mode=2 if number % 3 else 1)
    confirms = talk.confirmed(500)
    assert {kind for _, _, kind in confirms} == {"ack"}
    assert talk.ready(queue) == 250


def test_confirms_count_from_select_on(talk: Talk) -> None:
    queue = talk.queue()
    talk.publish("", queue, b"before")
    talk.confirm()
    talk.publish("", queue, b"after")
    assert talk.expect(Basic.Ack).delivery_tag == 1
    talk.confirm()
    talk.publish("", queue, b"after a second select")
    assert talk.expect(Basic.Ack).delivery_tag == 2


def test_confirm_select_nowait(talk: Talk) -> None:
    talk.send(Confirm.Select(nowait=True))
    talk.publish("", unique("missing"), b"x")
    talk.expect(Basic.Ack, delivery_tag=1)


def test_confirmed_message_is_there(talk: Talk) -> None:
    talk.confirm()
    queue = talk.queue(durable=True)
    for number in range(1, 20):
        talk.publish("", queue, b"x", delivery_mode=2)
        talk.expect(Basic.Ack)
        assert talk.ready(queue) == number


def test_publish_to_a_queue_that_goes_away_is_confirmed(connect: Connect) -> None:
    talk, other = connect().channel(), connect().channel()
    talk.confirm()
    queue = talk.queue(durable=True)
    for _ in range(200):
        talk.publish("", queue, b"x", delivery_mode=2)
    other.call(Queue.Delete(queue=queue))
    assert {kind for _, _, kind in talk.confirmed(200)} == {"ack"}


def test_full_queue_that_rejects_nacks(talk: Talk) -> None:
    talk.confirm()
    queue = talk.queue(arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    talk.publish("", queue, b"first")
    talk.expect(Basic.Ack)
    talk.publish("", queue, b"second")
    talk.expect(Basic.Nack, delivery_tag=2)


def test_order_of_one_publisher_is_kept(talk: Talk) -> None:
    queue = talk.queue()
    for number in range(1000):
        talk.publish("", queue, b"%d" % number)
    talk.consume(queue, no_ack=True)
    assert [m.body for m in talk.deliveries(1000)] == [b"%d" % n for n in range(1000)]


def test_publish_and_declare_keep_their_order(talk: Talk) -> None:
    """A method after publishes on the same channel sees what they did."""
    exchange = talk.exchange("fanout")
    queue = talk.queue()
    talk.publish(exchange, "", b"not bound yet")
    talk.bind(queue, exchange)
    talk.publish(exchange, "", b"bound")
    talk.call(Queue.Unbind(queue=queue, exchange=exchange, routing_key=""))
    talk.publish(exchange, "", b"no longer bound")
    talk.call(Exchange.Delete(exchange=exchange))
    assert talk.drain(queue) == [b"bound"]


# transactions


def test_commit_publishes(talk: Talk) -> None:
    queue = talk.queue()
    talk.call(Tx.Select())
    for number in range(3):
        talk.publish("", queue, b"%d" % number)
    assert talk.ready(queue) == 0
    talk.call(Tx.Commit())
    assert talk.drain(queue) == [b"0", b"1", b"2"]


def test_rollback_drops_publishes(talk: Talk) -> None:
    queue = talk.queue()
    talk.call(Tx.Select())
    talk.publish("", queue, b"x")
    talk.call(Tx.Rollback())
    talk.call(Tx.Commit())
    assert talk.ready(queue) == 0


def test_acks_wait_for_the_commit(connect: Connect) -> None:
    client = connect()
    talk, other = client.channel(1), client.channel(2)
    queue = talk.declare("", exclusive=True)
    for number in range(4):
        talk.publish("", queue, b"%d" % number)
    talk.call(Tx.Select())
    held = [talk.get_soon(queue) for _ in range(4)]
    talk.send(Basic.Ack(held[1].method.delivery_tag, multiple=True))
    talk.call(Tx.Commit())
    talk.send(Basic.Ack(held[2].method.delivery_tag))
    talk.close()
    assert [other.get_soon(queue).body, other.get_soon(queue).body] == [b"2", b"3"]


def test_rollback_gives_acks_back(talk: Talk) -> None:
    queue = talk.queue()
    talk.publish("", queue, b"x")
    talk.call(Tx.Select())
    held = talk.get_soon(queue)
    talk.send(Basic.Ack(held.method.delivery_tag))
    talk.call(Tx.Rollback())
    talk.send(Basic.Reject(held.method.delivery_tag, requeue=True))
    talk.call(Tx.Commit())
    assert talk.get_soon(queue).method.redelivered


def test_closing_an_open_transaction_drops_it(connect: Connect) -> None:
    client = connect()
    talk, other = client.channel(1), client.channel(2)
    queue = talk.declare("", exclusive=True)
    talk.call(Tx.Select())
    talk.publish("", queue, b"x")
    talk.close()
    assert other.drain(queue) == []


def test_unroutable_in_a_transaction_comes_back_with_the_commit(talk: Talk) -> None:
    talk.call(Tx.Select())
    talk.publish("", unique("missing"), b"x", mandatory=True)
    talk.call(Channel.Flow(active=True))
    talk.send(Tx.Commit())
    talk.expect(Basic.Return)
    talk.expect(Tx.CommitOk)


def test_unknown_tag_in_a_transaction_is_refused_at_once(talk: Talk) -> None:
    talk.call(Tx.Select())
    assert talk.refused(Basic.Ack(5)) == refusal(
        406, "PRECONDITION_FAILED - unknown delivery tag 5", Basic.Ack
    )


def test_persistent_and_transient_arrive_in_order(talk: Talk) -> None:
    queue = talk.queue(durable=True)
    for number in range(50):
        talk.publish("", queue, b"%d" % number, delivery_mode=1 + number % 2)
    until(lambda: talk.ready(queue) == 50, "fifty messages")
    assert talk.drain(queue) == [b"%d" % number for number in range(50)]
