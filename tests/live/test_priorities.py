"""Message priorities (`x-max-priority`), tried with RabbitMQ 4.0.5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pamqp.commands import Basic, Queue

from tests.live.conversation import Client, Message, Talk, encode_content, refusal, until

Connect = Callable[..., Client]
ALL = (None, 0, 1, 2, 3, 4, 5, 255, 1, None, 255, 10, 9, 11)


def priority_queue(talk: Talk, maximum: int, durable: bool = False) -> str:
    return talk.queue(arguments={"x-max-priority": maximum}, durable=durable)


def publish(talk: Talk, queue: str, priorities: Sequence[int | None]) -> None:
    """One message for each priority, whose body is its index; all are ready then."""
    before = talk.ready(queue)
    for number, priority in enumerate(priorities):
        properties: dict[str, Any] = {} if priority is None else {"priority": priority}
        talk.publish("", queue, b"%d" % number, delivery_mode=2, **properties)
    until(lambda: talk.ready(queue) == before + len(priorities), "all messages")


def in_order(priorities: Sequence[int | None], maximum: int) -> list[bytes]:
    """The bodies as they leave a queue: the highest first, and in their order of one level."""

    def level(number: int) -> int:
        return min(priorities[number] or 0, max(maximum, 1))

    numbers = sorted(range(len(priorities)), key=lambda number: -level(number))
    return [b"%d" % number for number in numbers]


@pytest.mark.parametrize("maximum", [0, 1, 3, 10, 255])
def test_highest_first_and_in_order_within_a_level(talk: Talk, maximum: int) -> None:
    """None counts as 0, what is above the maximum as the maximum, and a maximum of 0 as 1."""
    queue = priority_queue(talk, maximum)
    publish(talk, queue, ALL)
    assert talk.drain(queue) == in_order(ALL, maximum)


@pytest.mark.parametrize("maximum", [3, 255])
def test_a_consumer_gets_them_in_the_same_order(talk: Talk, maximum: int) -> None:
    queue = priority_queue(talk, maximum)
    publish(talk, queue, ALL)
    talk.consume(queue, no_ack=True)
    assert [m.body for m in talk.deliveries(len(ALL))] == in_order(ALL, maximum)


def test_priorities_mean_nothing_to_other_queues(talk: Talk) -> None:
    queue = talk.queue()
    publish(talk, queue, ALL)
    assert talk.drain(queue) == in_order([None] * len(ALL), 1)


def test_priority_of_a_message_stays_as_it_was(talk: Talk) -> None:
    queue = priority_queue(talk, 2)
    publish(talk, queue, [200])
    message = talk.get(queue)
    assert message is not None and message.properties.priority == 200


def test_next_one_is_the_highest_of_that_moment(talk: Talk) -> None:
    queue = priority_queue(talk, 9)
    talk.call(Basic.Qos(prefetch_count=1))
    publish(talk, queue, [1, 1])
    talk.consume(queue)
    got = [talk.expect(Basic.Deliver)]
    publish(talk, queue, [5, 9, 0])
    for _ in range(4):
        talk.send(Basic.Ack(got[-1].method.delivery_tag))
        got.append(talk.expect(Basic.Deliver))
    assert [m.body for m in got] == [b"0", b"1", b"0", b"1", b"2"]
    assert [m.properties.priority for m in got] == [1, 9, 5, 1, 0]


def test_what_is_with_a_consumer_is_not_called_back(talk: Talk) -> None:
    queue = priority_queue(talk, 9)
    talk.consume(queue)
    talk.call(Queue.Declare(queue=queue, passive=True))
    for priority in (1, 5, 3, 9):
        content = encode_content(1, b"%d" % priority, Basic.Properties(priority=priority))
        talk.send(Basic.Publish(routing_key=queue), content)
        assert talk.expect(Basic.Deliver).body == b"%d" % priority


def test_requeued_messages_go_back_to_their_places(talk: Talk) -> None:
    queue = priority_queue(talk, 5)
    publish(talk, queue, [1, 2, 1, 2, 5, 5])
    got = [talk.get(queue) for _ in range(6)]
    tags = {m.body: m.method.delivery_tag for m in got if m is not None}
    assert list(tags) == [b"4", b"5", b"1", b"3", b"0", b"2"]
    publish(talk, queue, [5, 2, 0])
    for body in (b"2", b"4", b"1", b"3"):
        talk.send(Basic.Reject(tags[body], requeue=True))
    until(lambda: talk.ready(queue) == 7, "those that came back")
    again = [talk.get(queue) for _ in range(7)]
    assert [(m.body, m.method.redelivered) for m in again if m is not None] == [
        (b"4", True),
        (b"0", False),
        (b"1", True),
        (b"3", True),
        (b"1", False),
        (b"2", True),
        (b"2", False),
    ]


def test_channel_that_closes_gives_all_levels_back(connect: Connect) -> None:
    talk, other = connect().channel(), connect().channel()
    queue = priority_queue(talk, 5)
    publish(talk, queue, [1, 5, None, 3])
    other.consume(queue)
    other.deliveries(4)
    other.close()
    until(lambda: talk.ready(queue) == 4, "all are back")
    assert talk.drain(queue) == [b"1", b"3", b"0", b"2"]


def test_counts_are_those_of_all_levels(talk: Talk) -> None:
    queue = priority_queue(talk, 5)
    publish(talk, queue, [1, 2, None, 5, 5])
    got = [talk.get(queue), talk.get(queue)]
    assert [m.method.message_count for m in got if m is not None] == [4, 3]
    assert talk.ready(queue) == 3
    assert talk.call(Queue.Purge(queue=queue)).message_count == 3
    assert talk.ready(queue) == 0
    for message in got:
        assert message is not None
        talk.send(Basic.Reject(message.method.delivery_tag, requeue=True))
    until(lambda: talk.ready(queue) == 2, "what was out is still there")
    assert talk.call(Queue.Delete(queue=queue)).message_count == 2


def test_queue_with_messages_of_a_higher_level_only_is_not_empty(talk: Talk) -> None:
    queue = priority_queue(talk, 5)
    publish(talk, queue, [3])
    assert talk.refused(Queue.Delete(queue=queue, if_empty=True)) == refusal(
        406, f"PRECONDITION_FAILED - queue '{queue}' in vhost '/' not empty", Queue.Delete
    )


def test_confirms_and_transactions(talk: Talk, connect: Connect) -> None:
    queue = priority_queue(talk, 5, durable=True)
    talk.confirm()
    for number in range(20):
        talk.publish("", queue, b"%d" % number, delivery_mode=2, priority=number % 7)
    assert {kind for _, _, kind in talk.confirmed(20)} == {"ack"}
    other = connect().channel()
    other.call(Basic.Qos(prefetch_count=1))
    other.consume(queue)
    assert other.expect(Basic.Deliver).body == b"5"


def test_one_consumer_of_higher_priority_gets_the_highest_messages(talk: Talk) -> None:
    queue = priority_queue(talk, 5)
    publish(talk, queue, [1, 5, 3, 4])
    talk.call(Basic.Qos(prefetch_count=2))
    talk.send(
        Basic.Consume(queue=queue, consumer_tag="low"),
        Basic.Consume(queue=queue, consumer_tag="high", arguments={"x-priority": 1}),
    )
    talk.expect(Basic.ConsumeOk, consumer_tag="low")
    got: dict[str, list[bytes]] = {"low": [], "high": []}
    while sum(map(len, got.values())) < 4:
        value = talk.next()
        if not isinstance(value, Basic.ConsumeOk):
            got[value.method.consumer_tag].append(value.body)
    assert got == {"low": [b"1", b"3"], "high": [b"2", b"0"]}


@pytest.mark.parametrize(
    ("overflow", "left"),
    [("drop-head", [b"4", b"1", b"3"]), ("reject-publish", [b"2", b"0", b"1"])],
)
def test_head_that_a_limit_drops_is_the_highest(
    talk: Talk, overflow: str, left: list[bytes]
) -> None:
    arguments = {"x-max-priority": 9, "x-max-length": 3, "x-overflow": overflow}
    queue = talk.queue(arguments=arguments)
    talk.confirm()
    for number, priority in enumerate((5, 1, 9, 0, 3, 7)):
        talk.publish("", queue, b"%d" % number, priority=priority)
    talk.confirmed(6)
    assert talk.drain(queue) == left


def test_dead_letters_keep_their_priority(talk: Talk) -> None:
    target = priority_queue(talk, 9)
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": target}
    source = talk.queue(arguments=arguments)
    publish(talk, source, [1, 9, None, 5])
    for _ in range(4):
        message = talk.get(source)
        assert message is not None
        talk.send(Basic.Reject(message.method.delivery_tag, requeue=False))
    until(lambda: talk.ready(target) == 4, "all are dead-lettered")
    assert talk.drain(target) == [b"1", b"3", b"0", b"2"]


def test_single_active_consumer_of_a_priority_queue(talk: Talk) -> None:
    queue = talk.queue(arguments={"x-max-priority": 5, "x-single-active-consumer": True})
    publish(talk, queue, [1, 5, 3])
    talk.call(Basic.Qos(prefetch_count=2))
    for tag in ("a", "b"):
        talk.send(Basic.Consume(queue=queue, consumer_tag=tag))
    talk.expect(Basic.ConsumeOk, consumer_tag="a")
    got: list[tuple[str, bytes]] = []
    while len(got) < 2:
        if not isinstance(value := talk.next(), Basic.ConsumeOk):
            got.append((value.method.consumer_tag, value.body))
    assert got == [("a", b"1"), ("a", b"2")]
    talk.send(Basic.Cancel("a"))
    while len(got) < 3:
        if isinstance(value := talk.next(), Message):
            got.append((value.method.consumer_tag, value.body))
    assert got[2] == ("b", b"0")
