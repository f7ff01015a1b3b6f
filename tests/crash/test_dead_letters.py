"""Dead letters across kill -9: a message is in its queue, or in that of its dead letters, or both."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from tests.live.server import BrokerProcess

MESSAGES = 400
ROUNDS = 6


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker of this test's own."""
    broker = BrokerProcess(tmp_path / "data").start()
    yield broker
    if broker.process is not None and broker.process.poll() is None:
        broker.kill()


def open_channel(broker: BrokerProcess) -> BlockingChannel:
    return BlockingConnection(pika.URLParameters(broker.url)).channel()


def drain(channel: BlockingChannel, queue: str) -> list[bytes]:
    """All that is ready, taken for good."""
    bodies = []
    while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
        bodies.append(got[2])
    return bodies


def fill(
    channel: BlockingChannel,
    queue: str,
    prefix: bytes,
    expiration: str | None = None,
    priorities: Sequence[int | None] = (None,),
) -> set[bytes]:
    """Confirmed messages, each with other properties, and with the priorities in turn."""
    bodies = {prefix + b"%d" % number for number in range(MESSAGES)}
    channel.confirm_delivery()
    for body, priority in zip(sorted(bodies), cycle(priorities), strict=False):
        properties = pika.BasicProperties(
            delivery_mode=2, message_id=body.decode(), expiration=expiration, priority=priority
        )
        channel.basic_publish("", queue, body, properties)
    return bodies


def reject_all(channel: BlockingChannel, queue: str) -> None:
    """Take everything and reject it in two pieces; return at once."""
    tags = []
    while (got := channel.basic_get(queue))[0] is not None:
        tags.append(got[0].delivery_tag)
    channel.basic_nack(tags[len(tags) // 2], multiple=True, requeue=False)
    channel.basic_nack(tags[-1], multiple=True, requeue=False)
    channel.connection.process_data_events(0)


@pytest.mark.parametrize("limit", [None, 10])
def test_no_dead_letter_is_lost_when_the_broker_is_killed(
    broker: BrokerProcess, limit: int | None
) -> None:
    """Rejected in a burst, or dropped at a limit while they are published."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    channel = open_channel(broker)
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    if limit is not None:
        arguments["x-max-length"] = limit  # type: ignore[assignment]
    channel.queue_declare("source", durable=True, arguments=arguments)
    channel.queue_declare("dead", durable=True)
    found_in_both = 0
    for number in range(ROUNDS):
        bodies = fill(channel, "source", b"%d." % number)
        if limit is None:
            reject_all(channel, "source")
        time.sleep(chance.random() * 0.02)  # anywhere in the hand-over
        broker.kill()
        broker.start()
        channel = open_channel(broker)
        source, dead = drain(channel, "source"), drain(channel, "dead")
        # A message that is in both may be dead-lettered again by the start, if there is a limit.
        assert len(source) == len(set(source))
        assert set(source) | set(dead) == bodies
        found_in_both += len(set(source) & set(dead))
    print(f"{found_in_both} messages were found in both queues")


def test_dead_letters_tell_the_same_after_a_kill(broker: BrokerProcess) -> None:
    """What the broker notes beside the properties is kept, too: earlier deaths, keys of BCC."""
    channel = open_channel(broker)
    channel.confirm_delivery()
    channel.exchange_declare("direct", "direct", durable=True)
    channel.queue_declare("first", durable=True, arguments={"x-dead-letter-exchange": "direct"})
    channel.queue_declare(
        "second",
        durable=True,
        arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "last"},
    )
    channel.queue_declare("last", durable=True)
    channel.queue_declare("fence", durable=True)
    channel.queue_bind("second", "direct", "hidden")
    headers = {"BCC": ["hidden"], "x-death": "mine"}
    properties = pika.BasicProperties(delivery_mode=2, headers=headers)
    channel.basic_publish("", "first", b"body", properties)
    for queue in ("first", "second"):
        broker.kill()
        broker.start()
        channel = open_channel(broker)
        method, _, _ = channel.basic_get(queue)
        assert method is not None, queue
        channel.basic_reject(method.delivery_tag, requeue=False)
        end = time.monotonic() + 20
        following = "second" if queue == "first" else "last"
        while not channel.queue_declare(following, passive=True).method.message_count:
            assert time.monotonic() < end
            time.sleep(0.01)
        channel.confirm_delivery()
        # What is confirmed came after the copy in the log, so the copy is durable, too.
        channel.basic_publish("", "fence", b"", pika.BasicProperties(delivery_mode=2))
    method, got, _ = channel.basic_get("last")
    assert method is not None
    deaths = [(death["queue"], death["routing-keys"]) for death in got.headers["x-death"]]
    assert deaths == [("second", ["first"]), ("first", ["first"])]
