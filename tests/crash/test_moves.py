"""Moves and redrives across kill -9: nothing is lost, and what is doubled is counted."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from qlog.tools.ctl.api import Api, ApiError, Unreachable
from tests.live.server import BrokerProcess

MESSAGES = 600
ROUNDS = 3
DEAD = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker of this test's own."""
    broker = BrokerProcess(tmp_path / "data").start()
    yield broker
    if broker.process is not None and broker.process.poll() is None:
        broker.kill()


def open_channel(broker: BrokerProcess) -> BlockingChannel:
    return BlockingConnection(pika.URLParameters(broker.url)).channel()


def walk(api: Api, queue: str, what: str, asked: dict[str, Any]) -> int:
    """Move all, as `qlog ctl` does; how many were moved."""
    moved: int = 0
    while True:
        answer = api.ask("POST", ("qlog", "queues", "/", queue, what), body=asked)
        moved += answer["moved"]
        if answer["next"] is None:
            return moved
        asked |= {"from": answer["next"], "ends": answer["ends"]}


def break_off(broker: BrokerProcess, api: Api, queue: str, what: str, after_s: float) -> None:
    """Begin to move, kill the broker, and start it again."""

    def begin() -> None:
        with suppress(Unreachable, ApiError):
            walk(api, queue, what, {"to": "other"})

    api.node()  # the modules that serve HTTP are loaded for the first request
    thread = threading.Thread(target=begin)
    thread.start()
    time.sleep(after_s)
    broker.kill()
    thread.join()
    broker.start()


def drain(channel: BlockingChannel, queue: str) -> list[bytes]:
    """All that is ready."""
    bodies = []
    while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
        bodies.append(got[2])
    return bodies


@pytest.mark.parametrize("what", ["move", "redrive"])
def test_nothing_is_lost_when_the_broker_is_killed(broker: BrokerProcess, what: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    api = Api(str(broker.data_dir))
    channel = open_channel(broker)
    channel.queue_declare("work", durable=True, arguments=DEAD)
    channel.queue_declare("dead", durable=True)
    channel.queue_declare("other", durable=True)
    wanted = {b"%d" % number for number in range(MESSAGES)}
    channel.tx_select()
    for body in sorted(wanted):
        # Each has properties of its own, so that the copies are made one by one.
        properties = pika.BasicProperties(delivery_mode=2, message_id=body.decode())
        channel.basic_publish("", "work", body, properties)
    channel.tx_commit()
    if what == "redrive":
        dead_letter_all(broker)
    source, target = ("work", "other") if what == "move" else ("dead", "work")
    for _ in range(ROUNDS):
        break_off(broker, api, source, what, chance.random() * 0.06)
        there = open_channel(broker).queue_declare(target, passive=True).method.message_count
        print(f"{there} messages were moved")
    walk(api, source, what, {"to": "other"})
    channel = open_channel(broker)
    assert drain(channel, source) == []
    found = Counter(drain(channel, target))
    assert set(found) == wanted
    doubled = sum(found.values()) - MESSAGES
    print(f"{doubled} messages came twice")
    # At most what had no settlement on the disk yet, each time: one request's messages.
    assert doubled <= ROUNDS * MESSAGES


def dead_letter_all(broker: BrokerProcess) -> None:
    """Reject everything, and wait until it is in the queue of dead letters."""
    channel = open_channel(broker)
    tag = 0
    while (got := channel.basic_get("work"))[0] is not None:
        tag = got[0].delivery_tag
    channel.basic_nack(tag, multiple=True, requeue=False)
    end = time.monotonic() + 30
    while channel.queue_declare("dead", passive=True).method.message_count < MESSAGES:
        assert time.monotonic() < end
        time.sleep(0.02)
