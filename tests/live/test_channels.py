"""Channels: opening, closing, numbers, flow, and what a closed one ignores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pamqp.commands import Basic, Channel, Confirm, Connection, Queue, Tx

from tests.live.conversation import (
    Case,
    Client,
    Talk,
    check,
    encode_frame,
    refusal,
    table,
    unique,
)

Connect = Callable[..., Client]
MISSING = unique("missing")

REFUSALS = [
    Case(
        "second open",
        [],
        Channel.Open(),
        504,
        "CHANNEL_ERROR - second 'channel.open' seen",
    ),
    Case(
        "flow stopped by the client",
        [],
        Channel.Flow(active=False),
        540,
        "NOT_IMPLEMENTED - active=false",
    ),
    Case(
        "commit without select",
        [],
        Tx.Commit(),
        406,
        "PRECONDITION_FAILED - channel is not transactional",
    ),
    Case(
        "rollback without select",
        [],
        Tx.Rollback(),
        406,
        "PRECONDITION_FAILED - channel is not transactional",
    ),
    Case(
        "confirm, then tx",
        [Confirm.Select()],
        Tx.Select(),
        406,
        "PRECONDITION_FAILED - cannot switch from confirm to tx mode",
    ),
    Case(
        "tx, then confirm",
        [Tx.Select()],
        Confirm.Select(),
        406,
        "PRECONDITION_FAILED - cannot switch from tx to confirm mode",
    ),
    Case(
        "a method only servers send",
        [],
        Queue.DeclareOk("q", 0, 0),
        503,
        "COMMAND_INVALID - unimplemented method",
    ),
    Case(
        "connection method on a channel",
        [],
        Connection.Open("/"),
        503,
        "COMMAND_INVALID - unimplemented method",
    ),
]


@table(REFUSALS)
def test_refusal(talk: Talk, case: Case) -> None:
    check(talk, case)


@pytest.mark.parametrize(
    "method",
    [Queue.Declare(queue=MISSING), Basic.Ack(1), Channel.Close(200, "", 0, 0)],
    ids=lambda method: method.name,
)
def test_method_on_a_channel_never_opened(connect: Connect, method: object) -> None:
    client = connect()
    client.send(7, method)
    assert client.refusal(7) == refusal(504, "CHANNEL_ERROR - expected 'channel.open'", method)
    assert client.at_end()


def test_channel_method_on_channel_0(connect: Connect) -> None:
    client = connect()
    client.send(0, Channel.Open())
    assert client.refusal(0) == refusal(
        504, "CHANNEL_ERROR - unexpected method in connection state running", Channel.Open
    )


def test_number_above_the_negotiated_maximum(connect: Connect) -> None:
    client = connect(channel_max=5)
    for number in range(1, 6):
        client.channel(number)
    client.send(6, Channel.Open())
    got = client.refusal(6)
    assert got == refusal(
        530,
        "NOT_ALLOWED - number of channels opened (5) has reached the negotiated channel_max (5)",
    )


def test_numbers_may_be_taken_in_any_order_and_again(connect: Connect) -> None:
    client = connect()
    for number in (2047, 3, 1):
        talk = client.channel(number)
        queue = talk.declare("", exclusive=True)
        talk.publish("", queue, b"x")
        assert talk.get_soon(queue).body == b"x"
        talk.close()
    assert client.channel(3).get(queue) is not None, "the ack was never given"


def test_channels_work_side_by_side(connect: Connect) -> None:
    client = connect()
    talks = [client.channel(number) for number in range(1, 21)]
    queues = [talk.declare("", exclusive=True) for talk in talks]
    for talk, queue in zip(talks, queues, strict=True):
        talk.consume(queue, no_ack=True)
    for talk, queue in zip(talks, reversed(queues), strict=True):
        talk.publish("", queue, queue.encode())
    for talk, queue in zip(talks, queues, strict=True):
        assert talk.expect(Basic.Deliver).body == queue.encode()


def test_closed_channel_ignores_all_until_close_ok(connect: Connect) -> None:
    """What the client had under way when the server closed the channel has no effect."""
    client = connect()
    talk, other = client.channel(1), client.channel(2)
    queue = other.declare("", exclusive=True)
    talk.send(Queue.Declare(queue=MISSING, passive=True))
    talk.expect(Channel.Close, reply_code=404)
    talk.publish("", queue, b"too late")
    talk.send(Queue.Declare(queue=MISSING, passive=True))
    talk.send(Queue.Purge(queue=queue), Basic.Ack(99))
    talk.send(Channel.CloseOk())
    client.channel(1).call(Queue.Declare(queue=queue, passive=True))
    assert other.drain(queue) == []


def test_content_under_way_when_the_channel_is_closed_is_swallowed(connect: Connect) -> None:
    client = connect()
    talk = client.channel()
    talk.publish(MISSING, "", b"x" * 300_000)
    talk.publish(MISSING, "", b"y" * 300_000)
    assert talk.refusal() == refusal(
        404, f"NOT_FOUND - no exchange '{MISSING}' in vhost '/'", Basic.Publish
    )
    client.channel(1)


def test_both_sides_may_close_at_once(connect: Connect) -> None:
    """A client that closes a channel which the server has just closed gets its close-ok."""
    client = connect()
    talk = client.channel()
    talk.send(Queue.Declare(queue=MISSING, passive=True), Channel.Close(200, "bye", 0, 0))
    talk.expect(Channel.Close, reply_code=404)
    talk.expect(Channel.CloseOk)
    talk.send(Channel.CloseOk())
    client.channel(1)


def test_close_answers_close_ok_and_frees_the_number(connect: Connect) -> None:
    client = connect()
    for _ in range(3):
        client.call(1, Channel.Open())
        client.call(1, Channel.Close(200, "done", 0, 0))


def test_close_requeues_what_was_not_acknowledged(connect: Connect) -> None:
    client = connect()
    talk = client.channel()
    queue = talk.declare("", exclusive=True)
    for number in range(3):
        talk.publish("", queue, b"%d" % number)
    talk.consume(queue)
    assert [m.body for m in talk.deliveries(3)] == [b"0", b"1", b"2"]
    talk.close()
    again = client.channel(2)
    messages = [again.get_soon(queue) for _ in range(3)]
    assert [(m.body, m.method.redelivered) for m in messages] == [
        (b"0", True),
        (b"1", True),
        (b"2", True),
    ]


def test_flow_of_an_active_channel(talk: Talk) -> None:
    assert talk.call(Channel.Flow(active=True)).active is True


def test_access_request_is_granted(talk: Talk) -> None:
    """Obsolete since 0-9-1, still spoken by old clients: realm, then five bits."""
    talk.send(encode_frame(1, talk.number, b"\x00\x1e\x00\x0a\x05/data\x1f"))
    frame = talk.client.read_frame()
    assert (frame.channel, frame.payload) == (1, b"\x00\x1e\x00\x0b\x00\x01")
