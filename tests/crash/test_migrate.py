"""Messages move from one broker to another while `qlog ctl migrate` and both brokers are killed.

The source is a qlog, too: it speaks RabbitMQ's protocol and API.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from qlog.tools.ctl.api import Api, ApiError, Unreachable
from tests.live.server import NO_HTTP, ROOT, BrokerProcess, free_ports

MESSAGES = 1000
PREFETCH = 100
QUEUES: dict[str, dict[str, Any]] = {
    "classic": {},
    "quorum": {"x-queue-type": "quorum"},
    "stream": {"x-queue-type": "stream"},
    "short-lived": {},
}
KILLS = 4


@pytest.fixture
def source(tmp_path: Path) -> Iterator[BrokerProcess]:
    """The broker that is left, with its API on a port."""
    port, management = free_ports(2)
    settings = {**NO_HTTP, "QLOG_MANAGEMENT_PORT": str(management)}
    broker = BrokerProcess(tmp_path / "source", port=port, settings=settings).start()
    yield broker
    end(broker)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[BrokerProcess]:
    """The broker that everything moves to."""
    broker = BrokerProcess(tmp_path / "target", settings=NO_HTTP).start()
    yield broker
    end(broker)


def end(broker: BrokerProcess) -> None:
    if broker.process is not None and broker.process.poll() is None:
        broker.kill()


def open_channel(broker: BrokerProcess) -> BlockingChannel:
    return BlockingConnection(pika.URLParameters(broker.url)).channel()


def migrate(source: BrokerProcess, target: BrokerProcess, *words: str) -> subprocess.Popen[str]:
    """`qlog ctl migrate`, which has begun."""
    api = f"http://guest:guest@127.0.0.1:{source.settings['QLOG_MANAGEMENT_PORT']}"
    command = [sys.executable, "-m", "qlog", "ctl", "migrate", "--from", api, "--amqp", source.url]
    return subprocess.Popen(
        [*command, "--prefetch", str(PREFETCH), "--formatter", "json", *words],
        cwd=ROOT,
        env={**os.environ, "QLOG_DATA_DIR": str(target.data_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fill(source: BrokerProcess, count: int) -> None:
    """Each queue gets messages through an exchange, with all that a message may have."""
    channel = open_channel(source)
    channel.exchange_declare("ex", "topic", durable=True)
    for name, arguments in QUEUES.items():
        auto_delete = name == "short-lived"
        channel.queue_declare(name, durable=True, auto_delete=auto_delete, arguments=arguments)
        channel.queue_bind(name, "ex", f"{name}.#")
    channel.tx_select()
    for name in QUEUES:
        for number in range(count):
            properties = pika.BasicProperties(
                delivery_mode=2, message_id=str(number), headers={"n": number}, expiration="9999999"
            )
            channel.basic_publish("ex", f"{name}.{number % 7}", b"%d" % number, properties)
    channel.tx_commit()
    channel.connection.close()


def taken(broker: BrokerProcess, name: str) -> list[int]:
    """The numbers of all messages of a queue, in order; each of them is as it was published."""
    channel = open_channel(broker)
    channel.basic_qos(prefetch_count=500)
    arguments = {"x-stream-offset": "first"} if name == "stream" else {}
    found = []
    for method, properties, body in channel.consume(
        name, arguments=arguments, inactivity_timeout=3
    ):
        if method is None:
            break
        number = int(body)
        assert (method.exchange, method.routing_key) == ("ex", f"{name}.{number % 7}")
        assert properties.headers["n"] == number and properties.message_id == body.decode()
        assert (properties.delivery_mode, properties.expiration) == (2, "9999999")
        found.append(number)
        channel.basic_ack(method.delivery_tag)
    channel.connection.close()
    return found


def wait_for_messages(target: BrokerProcess, count: int) -> None:
    """Until so many have arrived, or all that come."""
    api = Api(str(target.data_dir))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            queues = api.ask("GET", ("queues",), query={"columns": "messages"})
        except (ApiError, Unreachable):
            queues = []
        if sum(queue.get("messages") or 0 for queue in queues) >= count:
            return
        time.sleep(0.005)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", ["ctl", "target", "source"])
def test_nothing_is_lost_and_what_comes_twice_is_counted(
    source: BrokerProcess, target: BrokerProcess, victim: str
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    fill(source, MESSAGES)
    killers: dict[str, Callable[[subprocess.Popen[str]], None]] = {
        "ctl": lambda process: process.kill(),
        "target": lambda process: target.kill(),
        "source": lambda process: source.kill(),
    }
    whole = MESSAGES * len(QUEUES)
    for number in range(KILLS):
        process = migrate(source, target)
        wait_for_messages(target, whole * number // KILLS + chance.randrange(whole // KILLS))
        killers[victim](process)
        out, err = process.communicate(timeout=120)
        print(process.returncode, err)
        for broker in (source, target):
            if broker.process is not None and broker.process.poll() is not None:
                broker.start()
    process = migrate(source, target)
    out, err = process.communicate(timeout=120)
    print(err)
    assert process.returncode == 0, err
    rows = {row["queue"]: row for row in json.loads(out)}
    assert {row["state"] for row in rows.values()} == {"done"}
    for name in QUEUES:
        numbers = taken(target, name)
        assert set(numbers) == set(range(MESSAGES)), name
        firsts = list(dict.fromkeys(numbers))
        assert firsts == sorted(firsts), f"{name}: the order is another"
        doubled = len(numbers) - MESSAGES
        print(f"{name}: {doubled} came twice")
        assert doubled <= PREFETCH * KILLS and (name != "stream" or not doubled)
        if victim == "target":
            assert doubled == 0, "nothing was in flight at RabbitMQ's side"
    left = [taken(source, name) for name in QUEUES if name != "stream"]
    assert left == [[], [], []]


def test_a_migration_that_nobody_interrupts(source: BrokerProcess, target: BrokerProcess) -> None:
    """What is planned, moved and left, and what a second one does."""
    fill(source, 300)
    held = open_channel(source)
    held.queue_declare("exclusive", exclusive=True)
    held.queue_declare("busy", durable=True)
    held.basic_publish("", "busy", b"1", pika.BasicProperties(delivery_mode=2))
    held.basic_consume("busy", lambda *_: None)
    process = migrate(source, target, "--dry-run")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    plans = {row["queue"]: row["state"] for row in json.loads(out)}
    assert plans["classic"] == plans["quorum"] == "moves"
    assert plans["stream"].startswith("read from the remembered offset")
    assert plans["short-lived"] == "moves, without a consumer (auto-delete)"
    assert plans["exclusive"].startswith("does not move: exclusive")
    assert plans["busy"] == "1 consumers: stop them first"
    assert Api(str(target.data_dir)).ask("GET", ("queues",)) == []  # nothing was done
    process = migrate(source, target)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 69
    assert "queue 'busy' in vhost '/': it has 1 consumers" in err
    assert "1200 messages moved; 0 dropped as seen; 0 possibly twice" in err
    held.connection.close()
    process = migrate(source, target)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    moved = {row["queue"]: row["moved"] for row in json.loads(out)}
    assert moved == {"busy": 1, "classic": 0, "quorum": 0, "stream": 0, "short-lived": 0}
    for name in QUEUES:
        assert taken(target, name) == list(range(300))
    channel = open_channel(target)
    channel.basic_publish("ex", "classic.1", b"7")  # the definitions are there, too
    assert channel.basic_get("classic")[2] == b"7"


@pytest.mark.timeout(240)
def test_definitions_whose_import_was_killed_are_whole_after_another(
    target: BrokerProcess,
) -> None:
    """All that a document has is there in the end, each once, and what was there stays."""
    names = [f"q{number}" for number in range(2000)]
    document = {
        "vhosts": [{"name": "v"}],
        "exchanges": [{"vhost": "v", "name": "ex", "type": "topic", "durable": True}],
        "queues": [{"vhost": "v", "name": name, "durable": True} for name in names],
        "bindings": [
            {
                "vhost": "v",
                "source": "ex",
                "destination": name,
                "destination_type": "queue",
                "routing_key": name,
            }
            for name in names
        ],
    }
    file = target.data_dir.parent / "definitions.json"
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "qlog", "ctl", "import_definitions", str(file)]
    environment = {**os.environ, "QLOG_DATA_DIR": str(target.data_dir)}
    api = Api(str(target.data_dir))
    parts = []
    for share in (0.2, 0.6):
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        while _objects(api, "queues") + _objects(api, "bindings") < share * 2 * len(names):
            assert process.poll() is None or process.returncode == 0
            if process.returncode == 0:
                break
        target.kill()
        process.communicate(timeout=60)
        target.start()
        parts.append(_objects(api, "queues"))
    print("queues after the kills:", parts)
    assert (
        subprocess.run(command, cwd=ROOT, env=environment, timeout=120, check=False).returncode == 0
    )
    queues = [queue["name"] for queue in api.ask("GET", ("queues", "v"))]
    bound = Counter(
        binding["destination"]
        for binding in api.ask("GET", ("bindings", "v"))
        if binding["source"] == "ex"
    )
    assert sorted(queues) == sorted(names) and bound == Counter(names)
    target.kill()
    target.start()
    assert sorted(queue["name"] for queue in api.ask("GET", ("queues", "v"))) == sorted(names)


def _objects(api: Api, kind: str) -> int:
    """How many queues or bindings the vhost has; 0 while there is no vhost, or no API."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return len(api.ask("GET", (kind, "v"), query={"columns": "vhost"}))
        except ApiError:
            return 0
        except Unreachable:
            assert time.monotonic() < deadline
            time.sleep(0.02)
