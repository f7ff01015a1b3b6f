"""Delayed messages across kill -9: none is lost, and none comes before its time."""

from __future__ import annotations

import random
import time

from pika import BasicProperties

from tests.crash.test_dead_letters import broker, drain, open_channel
from tests.live.server import BrokerProcess

__all__ = ["broker"]  # a fixture

ROUNDS = 3
COUNT = 60
DELAY_MS = 400
DEADLINE_S = 60.0


def test_delayed_messages_come_whenever_the_broker_is_killed(broker: BrokerProcess) -> None:
    """Killed while they wait, while they are released, or when some copies are there."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    channel = open_channel(broker)
    channel.exchange_declare(
        "delayed", "x-delayed-message", durable=True, arguments={"x-delayed-type": "fanout"}
    )
    channel.queue_declare("q", durable=True)
    channel.queue_bind("q", "delayed")
    for number in range(ROUNDS):
        channel.confirm_delivery()
        due_s: dict[bytes, float] = {}
        for count in range(COUNT):
            body = b"%d.%d" % (number, count)
            delay_ms = DELAY_MS + chance.randrange(DELAY_MS)
            due_s[body] = time.time() + delay_ms / 1000
            properties = BasicProperties(headers={"x-delay": delay_ms}, delivery_mode=2)
            channel.basic_publish("delayed", "", body, properties)
        time.sleep(chance.random() * DELAY_MS * 2 / 1000)
        broker.kill()
        broker.start()
        channel = open_channel(broker)
        found: set[bytes] = set()
        end = time.monotonic() + DEADLINE_S
        while not due_s.keys() <= found and time.monotonic() < end:
            new = set(drain(channel, "q"))
            now_s = time.time()
            assert all(due_s[body] <= now_s for body in new if body in due_s)
            found |= new
        assert due_s.keys() <= found


def test_one_that_is_released_does_not_come_again(broker: BrokerProcess) -> None:
    channel = open_channel(broker)
    channel.exchange_declare(
        "delayed", "x-delayed-message", durable=True, arguments={"x-delayed-type": "fanout"}
    )
    channel.queue_declare("q", durable=True)
    channel.queue_bind("q", "delayed")
    channel.confirm_delivery()
    for body, delay_ms in (b"soon", 1), (b"later", 1500):
        properties = BasicProperties(headers={"x-delay": delay_ms}, delivery_mode=2)
        channel.basic_publish("delayed", "", body, properties)
    assert _next(broker) == b"soon"
    channel = open_channel(broker)
    channel.queue_declare("other", durable=True)  # the acknowledgement is durable with it
    broker.kill()
    broker.start()
    assert _next(broker) == b"later"


def _next(broker: BrokerProcess) -> bytes:
    """The next message of q, acknowledged."""
    channel = open_channel(broker)
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        method, _, body = channel.basic_get("q")
        if method is not None:
            channel.basic_ack(method.delivery_tag)
            channel.connection.close()
            assert isinstance(body, bytes)
            return body
        time.sleep(0.01)
    raise AssertionError("nothing came")
