"""Acknowledging: ack, nack, reject, recover, requeueing, and wrong tags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pamqp.commands import Basic, Channel, Queue

from tests.live.conversation import Case, Client, Talk, check, refusal, table, until

Connect = Callable[..., Client]


def unknown(method: object, tag: int) -> Case:
    """A row: a tag that was never given out."""
    return Case(
        f"{getattr(method, 'name', '')} of tag {tag}",
        [],
        method,
        406,
        f"PRECONDITION_FAILED - unknown delivery tag {tag}",
    )


REFUSALS = [
    unknown(Basic.Ack(1), 1),
    unknown(Basic.Ack(99), 99),
    unknown(Basic.Ack(0), 0),
    unknown(Basic.Ack(7, multiple=True), 7),
    unknown(Basic.Nack(82), 82),
    unknown(Basic.Nack(82, multiple=True), 82),
    unknown(Basic.Reject(3), 3),
    unknown(Basic.Ack((1 << 63) - 1), (1 << 63) - 1),
]


@table(REFUSALS)
def test_refusal(talk: Talk, case: Case) -> None:
    check(talk, case)


def held(talk: Talk, count: int, **options: Any) -> tuple[str, list[int]]:
    """A queue with `count` numbered messages, all delivered; their tags."""
    queue = talk.queue(**options)
    for number in range(count):
        talk.publish("", queue, b"%d" % number)
    talk.consume(queue, "holder")
    tags = [m.method.delivery_tag for m in talk.deliveries(count)]
    talk.call(Basic.Cancel("holder"))
    return queue, tags


def left(talk: Talk, queue: str) -> list[bytes]:
    """What comes back once the channel is closed, in order."""
    client, number = talk.client, talk.number
    talk.close()
    return client.channel(number).drain(queue)


# what is sent after five messages 0 to 4 (tags 1 to 5) were delivered, and what is left of them
SETTLED = [
    pytest.param([Basic.Ack(1)], [1, 2, 3, 4], id="one"),
    pytest.param([Basic.Ack(3)], [0, 1, 3, 4], id="one in the middle"),
    pytest.param([Basic.Ack(3, multiple=True)], [3, 4], id="several"),
    pytest.param([Basic.Ack(0, multiple=True)], [], id="all"),
    pytest.param([Basic.Ack(2), Basic.Ack(4, multiple=True)], [4], id="several round one"),
    pytest.param([Basic.Nack(2, requeue=False)], [0, 2, 3, 4], id="nack one"),
    pytest.param([Basic.Nack(2, multiple=True, requeue=False)], [2, 3, 4], id="nack several"),
    pytest.param([Basic.Nack(0, multiple=True, requeue=False)], [], id="nack all"),
    pytest.param([Basic.Reject(5, requeue=False)], [0, 1, 2, 3], id="reject"),
    pytest.param([Basic.Ack(tag) for tag in (5, 3, 1, 2, 4)], [], id="out of order"),
]


@pytest.mark.parametrize(("methods", "remaining"), SETTLED)
def test_settling(talk: Talk, methods: list[object], remaining: list[int]) -> None:
    queue, _ = held(talk, 5)
    talk.send(*methods)
    assert left(talk, queue) == [b"%d" % number for number in remaining]


REQUEUED = [
    pytest.param([Basic.Nack(0, multiple=True, requeue=True)], [0, 1, 2, 3, 4], id="nack all"),
    pytest.param([Basic.Nack(3, multiple=True, requeue=True)], [0, 1, 2], id="nack several"),
    pytest.param([Basic.Nack(3, requeue=True)], [2], id="nack one"),
    pytest.param([Basic.Reject(2, requeue=True)], [1], id="reject"),
    pytest.param(
        [Basic.Reject(tag, requeue=True) for tag in (4, 1, 5, 2)], [0, 1, 3, 4], id="back in place"
    ),
    pytest.param([Basic.Recover(requeue=True)], [0, 1, 2, 3, 4], id="recover"),
]


@pytest.mark.parametrize(("methods", "ready"), REQUEUED)
def test_requeueing_puts_messages_back_in_place(
    talk: Talk, methods: list[object], ready: list[int]
) -> None:
    queue, _ = held(talk, 5)
    talk.publish("", queue, b"new")
    talk.send(*methods)
    if isinstance(methods[0], Basic.Recover):
        talk.expect(Basic.RecoverOk)
    until(lambda: talk.ready(queue) == len(ready) + 1, "requeued")
    got = [talk.get_soon(queue) for _ in range(len(ready) + 1)]
    assert [m.body for m in got] == [b"%d" % number for number in ready] + [b"new"]
    assert [m.method.redelivered for m in got] == [True] * len(ready) + [False]


def test_requeued_message_is_delivered_again_at_once(talk: Talk) -> None:
    queue = talk.queue()
    talk.publish("", queue, b"x")
    talk.consume(queue)
    first = talk.expect(Basic.Deliver, redelivered=False)
    talk.send(Basic.Nack(first.method.delivery_tag, requeue=True))
    second = talk.expect(Basic.Deliver, redelivered=True)
    assert second.method.delivery_tag == first.method.delivery_tag + 1
    talk.send(Basic.Reject(second.method.delivery_tag, requeue=True))
    talk.expect(Basic.Deliver, redelivered=True)


def test_message_requeued_by_a_dying_connection_is_redelivered(connect: Connect) -> None:
    client, talk = connect(), connect().channel()
    queue, _ = held(client.channel(), 3)
    talk.consume(queue)
    client.abort()
    got = talk.deliveries(3)
    assert [(m.body, m.method.redelivered) for m in got] == [
        (b"0", True),
        (b"1", True),
        (b"2", True),
    ]


@pytest.mark.parametrize(
    "second",
    [Basic.Ack(2), Basic.Nack(2), Basic.Reject(2), Basic.Ack(2, multiple=True)],
    ids=lambda method: f"{method.name} {getattr(method, 'multiple', '')}",
)
def test_settling_twice(talk: Talk, second: object) -> None:
    held(talk, 2)
    talk.send(Basic.Ack(2, multiple=True))
    assert talk.refused(second) == refusal(
        406, "PRECONDITION_FAILED - unknown delivery tag 2", second
    )


def test_tag_of_another_channel(connect: Connect) -> None:
    client = connect()
    held(client.channel(1), 1)
    assert client.channel(2).refused(Basic.Ack(1)).code == 406


def test_multiple_zero_without_anything_held(talk: Talk) -> None:
    talk.send(Basic.Ack(0, multiple=True), Basic.Nack(0, multiple=True))
    talk.call(Channel.Flow(active=True))


def test_refused_ack_settles_nothing(connect: Connect) -> None:
    client = connect()
    talk = client.channel(1)
    queue, _ = held(talk, 3)
    assert talk.refused(Basic.Ack(9, multiple=True)).code == 406
    assert client.channel(1).drain(queue) == [b"0", b"1", b"2"]


def test_multiple_reaches_over_queues(talk: Talk) -> None:
    queues = [talk.queue() for _ in range(3)]
    for queue in queues:
        talk.publish("", queue, b"x")
        talk.get_soon(queue)
    talk.send(Basic.Ack(3, multiple=True))
    client = talk.client
    talk.close()
    again = client.channel(1)
    assert [again.get(queue) for queue in queues] == [None] * 3


def test_acks_outlive_their_queue(connect: Connect) -> None:
    talk, other = connect().channel(), connect().channel()
    queue, tags = held(talk, 2)
    other.call(Queue.Delete(queue=queue))
    talk.send(*(Basic.Ack(tag) for tag in tags))
    talk.call(Channel.Flow(active=True))


def test_recover_delivers_again(talk: Talk) -> None:
    queue = talk.queue()
    for number in range(3):
        talk.publish("", queue, b"%d" % number)
    talk.consume(queue)
    talk.deliveries(3)
    talk.send(Basic.Ack(2), Basic.Recover(requeue=True))
    values = [talk.next() for _ in range(3)]
    methods = [getattr(value, "method", value) for value in values]
    assert any(isinstance(method, Basic.RecoverOk) for method in methods)
    again = [value for value in values if hasattr(value, "body")]
    assert [(m.body, m.method.redelivered) for m in again] == [(b"0", True), (b"2", True)]


def test_recover_async_has_no_answer(talk: Talk) -> None:
    queue, _ = held(talk, 2)
    talk.send(Basic.RecoverAsync(requeue=True))
    until(lambda: talk.ready(queue) == 2, "requeued")


def test_requeue_to_a_deleted_queue_is_nothing(connect: Connect) -> None:
    talk, other = connect().channel(), connect().channel()
    queue, _ = held(talk, 2)
    other.call(Queue.Delete(queue=queue))
    talk.send(Basic.Nack(0, multiple=True, requeue=True))
    talk.call(Channel.Flow(active=True))
    assert talk.refused(Queue.Declare(queue=queue, passive=True)).code == 404


def test_many_tags_held_at_once(talk: Talk) -> None:
    """Every other one settled from the end, the rest back in place."""
    count = 2000
    queue = talk.queue()
    for number in range(count):
        talk.publish("", queue, b"%d" % number)
    talk.consume(queue)
    talk.deliveries(count)
    talk.send(*(Basic.Ack(tag) for tag in range(count, 0, -2)))
    assert left(talk, queue) == [b"%d" % number for number in range(0, count, 2)]
