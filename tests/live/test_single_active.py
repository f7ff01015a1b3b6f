"""Single active consumer: who gets the messages of a queue, and who gets them next.

Tried with RabbitMQ 4.0.5. Its classic and quorum queues differ in what a consumer of higher
priority does to the active one, in basic.get and in exclusive consumers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from pamqp.commands import Basic, Channel

from tests.live.conversation import Client, Message, Talk, refusal, until

Connect = Callable[..., Client]

TYPES = ("classic", pytest.param("quorum", marks=pytest.mark.newer))
each_type = pytest.mark.parametrize("kind", TYPES)
QUORUM_ONLY = pytest.mark.newer  # quorum queues of RabbitMQ 3.10 know no priority among these


class Group:
    """The consumers of one queue, each on a connection of its own, known by their tags."""

    def __init__(self, connect: Connect, kind: str) -> None:
        self.connect = connect
        self.publisher = connect().channel()
        arguments = {"x-single-active-consumer": True, "x-queue-type": kind}
        self.queue = self.publisher.queue(durable=True, arguments=arguments)
        self.talks: dict[str, Talk] = {}
        self.published = 0

    def join(self, tag: str, priority: int | None = None, prefetch: int = 0) -> Talk:
        """One more consumer."""
        talk = self.talks[tag] = self.connect().channel()
        talk.call(Basic.Qos(prefetch_count=prefetch))
        arguments: dict[str, Any] = {} if priority is None else {"x-priority": priority}
        talk.consume(self.queue, tag, arguments=arguments)
        return talk

    def leave(self, tag: str) -> None:
        """A consumer is cancelled; it keeps what it has unacknowledged."""
        self.talks[tag].call(Basic.Cancel(tag))

    def publish(self) -> bytes:
        """One more message, whose body is its number."""
        body = b"%d" % self.published
        self.published += 1
        self.publisher.publish("", self.queue, body)
        return body

    def gets(self, tag: str) -> Message:
        """A message is published, and this consumer gets it."""
        body = self.publish()
        return self.delivered(tag, body)

    def delivered(self, tag: str, body: bytes) -> Message:
        """This consumer gets this message next."""
        message: Message = self.talks[tag].expect(Basic.Deliver, consumer_tag=tag)
        assert message.body == body
        return message

    def silent(self, *tags: str) -> None:
        """Nothing is under way to these consumers."""
        for tag in tags:
            self.talks[tag].quiet(self.queue)


@each_type
def test_next_in_the_order_of_registration(connect: Connect, kind: str) -> None:
    group = Group(connect, kind)
    for tag in "abcd":
        group.join(tag)
    for index, tag in enumerate("abcd"):
        for _ in range(3):
            group.gets(tag)
        group.silent(*"abcd"[index + 1 :])
        group.leave(tag)


@each_type
def test_who_comes_back_is_the_last(connect: Connect, kind: str) -> None:
    group = Group(connect, kind)
    for tag in "abc":
        group.join(tag)
    group.leave("a")
    group.talks["a"].consume(group.queue, "a")
    for tag in "bca":
        group.gets(tag)
        group.leave(tag)


@each_type
def test_one_that_waits_may_leave(connect: Connect, kind: str) -> None:
    group = Group(connect, kind)
    for tag in "abc":
        group.join(tag)
    group.leave("b")
    group.gets("a")
    group.leave("a")
    group.gets("c")


@each_type
def test_nobody_helps_one_that_is_full(connect: Connect, kind: str) -> None:
    group = Group(connect, kind)
    group.join("a", prefetch=1)
    group.join("b")
    message = group.gets("a")
    second = group.publish()
    group.silent("a", "b")
    group.talks["a"].send(Basic.Ack(message.method.delivery_tag))
    group.delivered("a", second)
    third = group.publish()
    group.silent("a", "b")
    group.leave("a")
    group.delivered("b", third)


@each_type
def test_cancelled_one_keeps_what_it_has(connect: Connect, kind: str) -> None:
    group = Group(connect, kind)
    a, _ = group.join("a"), group.join("b")
    held = [group.gets("a").method.delivery_tag for _ in range(3)]
    group.leave("a")
    group.gets("b")
    a.send(Basic.Nack(held[1], requeue=True))
    assert group.delivered("b", b"1").method.redelivered
    a.send(Basic.Ack(held[0]))
    a.client.abort()
    assert group.delivered("b", b"2").method.redelivered


@each_type
def test_all_goes_to_the_next_when_a_connection_is_lost(connect: Connect, kind: str) -> None:
    group = Group(connect, kind)
    for tag in "abc":
        group.join(tag)
    for _ in range(3):
        group.gets("a")
    group.talks["a"].client.abort()
    assert all(group.delivered("b", b"%d" % number).method.redelivered for number in range(3))
    group.silent("c")


@each_type
def test_two_on_one_channel(connect: Connect, kind: str) -> None:
    group = Group(connect, kind)
    x = group.join("x")
    group.talks["y"] = x
    x.consume(group.queue, "y")
    group.join("z")
    group.gets("x")
    group.leave("x")
    group.gets("y")
    x.send(Channel.Close(200, "", 0, 0))
    assert [m.body for m in group.talks["z"].deliveries(2)] == [b"0", b"1"]


@each_type
def test_next_is_the_first_of_the_highest_priority(connect: Connect, kind: str) -> None:
    group = Group(connect, kind)
    for tag, priority in {"d": 9, "a": 0, "b": 5, "c": 5, "e": None}.items():
        group.join(tag, priority)
    for tag in "dbcae":
        group.gets(tag)
        group.leave(tag)


def test_higher_priority_waits_in_a_classic_queue(connect: Connect) -> None:
    group = Group(connect, "classic")
    group.join("a", 0)
    group.join("b", 5)
    message = group.gets("a")
    group.talks["a"].send(Basic.Ack(message.method.delivery_tag))
    group.gets("a")
    group.silent("b")


@QUORUM_ONLY
def test_higher_priority_takes_over_in_a_quorum_queue(connect: Connect) -> None:
    group = Group(connect, "quorum")
    group.join("a", 0)
    group.join("b", 5)
    group.gets("b")
    group.join("c", 5)
    group.gets("b")
    group.silent("a", "c")


@QUORUM_ONLY
def test_take_over_waits_for_what_is_unacknowledged(connect: Connect) -> None:
    group = Group(connect, "quorum")
    a = group.join("a", 0)
    held = [group.gets("a").method.delivery_tag for _ in range(2)]
    group.join("b", 5)
    body = group.publish()
    group.silent("a", "b")
    a.send(Basic.Ack(held[0]))
    a.quiet(group.queue)
    group.silent("a", "b")
    a.send(Basic.Ack(held[1]))
    group.delivered("b", body)
    group.gets("b")


@QUORUM_ONLY
def test_who_was_taken_over_from_is_the_first_of_its_priority(connect: Connect) -> None:
    group = Group(connect, "quorum")
    for tag, priority in {"b": 5, "c": 5, "d": 7}.items():
        group.join(tag, priority)
    group.gets("d")
    group.leave("d")
    group.gets("b")
    group.silent("c")


@QUORUM_ONLY
def test_active_one_goes_on_when_the_higher_leaves(connect: Connect) -> None:
    """RabbitMQ waits until the active consumer has settled all that it had; qlog need not."""
    group = Group(connect, "quorum")
    a = group.join("a", 3)
    message = group.gets("a")
    group.join("b", 5)
    group.join("c", 1)
    group.leave("b")
    a.send(Basic.Ack(message.method.delivery_tag))
    group.gets("a")
    group.silent("c")


# basic.get, exclusive consumers, and counts


@pytest.mark.parametrize(
    ("kind", "count"), [("classic", 3), pytest.param("quorum", 1, marks=pytest.mark.newer)]
)
def test_consumers_that_a_declare_tells_of(connect: Connect, kind: str, count: int) -> None:
    """All of a classic queue, the active one of a quorum queue."""
    group = Group(connect, kind)
    for tag in "abc":
        group.join(tag)
    until(lambda: has_consumers(group.publisher, group.queue, count), f"{count} consumers")


def test_get_from_a_classic_queue(connect: Connect) -> None:
    group = Group(connect, "classic")
    body = group.publish()
    assert group.publisher.get_soon(group.queue).body == body


@pytest.mark.newer
def test_get_from_a_quorum_queue_is_refused(connect: Connect) -> None:
    group = Group(connect, "quorum")
    assert group.publisher.refused(Basic.Get(queue=group.queue)) == refusal(
        405,
        f"RESOURCE_LOCKED - cannot obtain access to locked queue '{group.queue}' in vhost '/'. "
        "basic.get operations are not supported by quorum queues with single active consumer",
        Basic.Get,
    )


@pytest.mark.parametrize("busy", [False, True])
def test_exclusive_consumer_of_a_classic_queue_is_refused(connect: Connect, busy: bool) -> None:
    group = Group(connect, "classic")
    if busy:
        group.join("a")
    assert group.publisher.refused(Basic.Consume(queue=group.queue, exclusive=True)) == refusal(
        403, f"ACCESS_REFUSED - queue '{group.queue}' in vhost '/' in exclusive use", Basic.Consume
    )


def has_consumers(talk: Talk, queue: str, count: int) -> bool:
    return talk.consumers(queue) == count


@pytest.mark.newer
def test_exclusive_consumers_of_quorum_queues_are_like_others(talk: Talk) -> None:
    for single_active in (False, True):
        arguments = {"x-queue-type": "quorum", "x-single-active-consumer": single_active}
        queue = talk.queue(durable=True, arguments=arguments)
        talk.consume(queue, exclusive=True)
        talk.consume(queue)
        talk.consume(queue, exclusive=True)
        count = 1 if single_active else 3
        until(partial(has_consumers, talk, queue, count), f"{count} consumers")
