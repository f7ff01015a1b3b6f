"""Streams across kill -9: offsets have no gaps and never change, and no confirmed message is lost.

Messages are published and read while they are moved to segments, so that a kill comes anywhere:
before a message is in the log, between log and segment, between segment and settlement.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingConnection
from pika.exceptions import AMQPError

from tests.crash.test_dead_letters import broker, open_channel
from tests.live.server import BrokerProcess

__all__ = ["broker"]  # a fixture

ROUNDS = 3
ARGUMENTS: dict[str, Any] = {
    "x-queue-type": "stream",
    "x-stream-max-segment-size-bytes": 500_000,
}


class Publisher(threading.Thread):
    """Publishes until the broker is gone; `confirmed` were promised to be there."""

    def __init__(self, broker: BrokerProcess, number: int, chance: random.Random) -> None:
        super().__init__()
        self.url = broker.url
        self.number = number
        self.chance = random.Random(chance.random())
        self.confirmed: list[bytes] = []

    def run(self) -> None:
        try:
            channel = BlockingConnection(pika.URLParameters(self.url)).channel()
            channel.confirm_delivery()
            while True:
                label = b"%d.%d:" % (self.number, len(self.confirmed))
                body = label + self.chance.randbytes(self.chance.choice((10, 1000, 60_000)))
                channel.basic_publish("", "stream", body)
                self.confirmed.append(body)
        except (AMQPError, OSError):
            pass


class Watcher(threading.Thread):
    """Reads until the broker is gone; `seen` has what is at which offset."""

    def __init__(self, broker: BrokerProcess) -> None:
        super().__init__()
        self.url = broker.url
        self.seen: dict[int, bytes] = {}

    def run(self) -> None:
        try:
            channel = BlockingConnection(pika.URLParameters(self.url)).channel()
            channel.basic_qos(prefetch_count=50)
            arguments: dict[str, Any] = {"x-stream-offset": "first"}
            for method, properties, body in channel.consume("stream", arguments=arguments):
                headers: dict[str, Any] = properties.headers or {}
                self.seen[headers["x-stream-offset"]] = body
                channel.basic_ack(method.delivery_tag)
        except (AMQPError, OSError):
            pass


def read_all(broker: BrokerProcess) -> dict[int, bytes]:
    channel = open_channel(broker)
    count = channel.queue_declare("stream", passive=True).method.message_count
    channel.basic_qos(prefetch_count=100)
    arguments: dict[str, Any] = {"x-stream-offset": "first"}
    found: dict[int, bytes] = {}
    if count:
        for method, properties, body in channel.consume("stream", arguments=arguments):
            headers: dict[str, Any] = properties.headers or {}
            found[headers["x-stream-offset"]] = body
            channel.basic_ack(method.delivery_tag)
            if len(found) == count:
                break
    channel.connection.close()
    return found


def test_a_stream_survives_kills(broker: BrokerProcess) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    open_channel(broker).queue_declare("stream", durable=True, arguments=ARGUMENTS)
    known: dict[int, bytes] = {}
    moved = 0
    for number in range(ROUNDS):
        publisher, watcher = Publisher(broker, number, chance), Watcher(broker)
        publisher.start()
        watcher.start()
        time.sleep(chance.uniform(0.2, 1.2))
        broker.kill()
        publisher.join()
        watcher.join()
        broker.start()
        found = read_all(broker)
        assert list(found) == list(range(len(found))), "the offsets have gaps"
        assert {offset: found.get(offset) for offset in known} == known
        assert {offset: found.get(offset) for offset in watcher.seen} == watcher.seen
        new = [body for offset, body in found.items() if offset not in known]
        count = len(publisher.confirmed)
        assert new[:count] == publisher.confirmed
        assert len(new) <= count + 1, "a message is there twice"
        known = found
        moved += len(list((broker.data_dir / "streams").iterdir())) > 1
    assert known and moved
