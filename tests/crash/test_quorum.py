"""Quorum queues across kill -9: how often a message came back is known after the next start."""

from __future__ import annotations

import random
from typing import Any

from pika.adapters.blocking_connection import BlockingChannel

from tests.crash.test_dead_letters import broker, drain, fill, open_channel
from tests.live.server import BrokerProcess

__all__ = ["broker"]  # a fixture

ROUNDS = 5
LIMIT = 3
TAKEN = 200


def take(channel: BlockingChannel, count: int) -> list[tuple[int, bytes, int]]:
    """Messages of the queue: delivery tag, body, and how often it came back."""
    found = []
    for _ in range(count):
        method, properties, body = channel.basic_get("q")
        if method is None:
            break
        headers: dict[str, Any] = properties.headers or {}
        found.append((method.delivery_tag, body, int(headers.get("x-delivery-count", 0))))
    return found


def give_back(channel: BlockingChannel, taken: list[tuple[int, bytes, int]]) -> None:
    """In the order in which they are given here."""
    for tag, _, _ in taken:
        channel.basic_nack(tag, requeue=True)
    channel.connection.process_data_events(0)


def test_counts_survive_a_kill(broker: BrokerProcess) -> None:
    """A count may lack what was counted in the last moments, and is never forgotten or made up.

    What came back too often is dead, or in its queue still, or both when the kill came between.
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    channel = open_channel(broker)
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "dead",
    }
    channel.queue_declare("q", durable=True, arguments=arguments)
    channel.queue_declare("dead", durable=True)
    bodies = fill(channel, "q", b"", priorities=(None, 9))
    counts = dict.fromkeys(bodies, 0)
    dead: set[bytes] = set()
    for number in range(ROUNDS):
        taken = take(channel, TAKEN)
        assert taken
        chance.shuffle(taken)
        certain = taken[: chance.randrange(TAKEN // 2, TAKEN)]
        give_back(channel, certain)
        # A declare is answered when it is in the ledger, and so is all that was noted before it.
        channel.queue_declare(f"marker{number}", durable=True)
        given_back_last = taken[len(certain) : len(certain) + chance.randrange(20)]
        give_back(channel, given_back_last)
        broker.kill()
        broker.start()
        for _, body, _ in certain:
            counts[body] += 1
        channel = open_channel(broker)
        dead.update(drain(channel, "dead"))
        uncertain = {body for _, body, _ in given_back_last}
        found = {body: count for _, body, count in take(channel, len(bodies))}
        for body in bodies - dead - found.keys():
            raise AssertionError(f"{body!r} is nowhere")
        for body, count in found.items():
            known = counts[body]
            assert known <= count <= known + (body in uncertain) or (
                known > LIMIT and count == LIMIT
            ), (body, count, known)
            counts[body] = min(count, LIMIT)
        for body in dead - found.keys():
            assert counts[body] + (body in uncertain) > LIMIT
            counts[body] = LIMIT + 1
        broker.kill()  # deliveries that end so are not counted
        broker.start()
        channel = open_channel(broker)
    assert dead
