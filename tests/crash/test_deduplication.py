"""Deduplication across kill -9: who publishes again what was not confirmed loses and doubles nothing."""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest
from pika import BasicProperties
from pika.exceptions import AMQPError

from tests.crash.test_dead_letters import broker, drain, open_channel
from tests.live.server import BrokerProcess

__all__ = ["broker"]  # a fixture

ROUNDS = 3
COUNT = 150


@pytest.mark.parametrize("where", ["exchange", "queue"])
def test_published_again_after_a_kill(broker: BrokerProcess, where: str) -> None:
    """Exactly once: all that was confirmed; once, and perhaps twice: what was under way."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    channel = open_channel(broker)
    arguments = {"x-message-deduplication": True} if where == "queue" else {}
    channel.queue_declare("q", durable=True, arguments=arguments)
    exchange, key = "", "q"
    if where == "exchange":
        exchange, key = "once", ""
        channel.exchange_declare(
            exchange, "x-message-deduplication", durable=True, arguments={"x-cache-size": 10_000}
        )
        channel.queue_bind("q", exchange)
    confirmed: set[bytes] = set()
    published: list[bytes] = []
    for number in range(ROUNDS):
        names = [b"%d.%d" % (number, count) for count in range(COUNT)]
        published += names
        killer = threading.Timer(chance.random() * 0.5, broker.kill)
        killer.start()
        try:
            channel = open_channel(broker)
            channel.confirm_delivery()
            for name in names:
                channel.basic_publish(exchange, key, name, _named(name))
                confirmed.add(name)
        except (AMQPError, OSError):
            pass  # it was killed meanwhile
        killer.join()
        broker.start()
        channel = open_channel(broker)
        channel.confirm_delivery()
        for name in published:
            channel.basic_publish(exchange, key, name, _named(name))
    counts = Counter(drain(channel, "q"))
    assert counts.keys() == set(published)
    assert {name: counts[name] for name in confirmed} == dict.fromkeys(confirmed, 1)
    assert max(counts.values()) <= 2


def _named(name: bytes) -> BasicProperties:
    return BasicProperties(delivery_mode=2, headers={"x-deduplication-header": name.decode()})
