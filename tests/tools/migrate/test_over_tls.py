"""`qlog ctl migrate` over TLS. The source is a qlog, which speaks RabbitMQ's protocol and API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from tests.live.server import ROOT, BrokerProcess, free_ports
from tests.server.net.authority import broker_files, ca_file

BODIES = [b"%d" % number for number in range(250)]
BODIES[100] = bytes(range(256)) * 8000  # some hundred records of TLS


@pytest.fixture
def source(tmp_path: Path) -> Iterator[BrokerProcess]:
    (management,) = free_ports(1)
    settings = broker_files(tmp_path) | {"tls_port": 0, "management_tls_port": management}
    environment = {f"QLOG_{name.upper()}": str(value) for name, value in settings.items()}
    broker = BrokerProcess(tmp_path / "source", settings=environment).start()
    yield broker
    broker.kill()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[BrokerProcess]:
    broker = BrokerProcess(tmp_path / "target").start()
    yield broker
    broker.kill()


def migrate(
    source: BrokerProcess, target: BrokerProcess, *options: str, trusted: str
) -> subprocess.CompletedProcess[str]:
    """The command; `trusted` is the file of the authorities."""
    api = f"https://127.0.0.1:{source.settings['QLOG_MANAGEMENT_TLS_PORT']}"
    amqp = f"amqps://127.0.0.1:{source.tls_port}"
    command = ["ctl", "migrate", "--from", api, "--amqp", amqp, "--formatter", "json", *options]
    return subprocess.run(
        [sys.executable, "-m", "qlog", *command],
        cwd=ROOT,
        env={**os.environ, "QLOG_DATA_DIR": str(target.data_dir), "SSL_CERT_FILE": trusted},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_everything_moves(source: BrokerProcess, target: BrokerProcess, tmp_path: Path) -> None:
    with pika.BlockingConnection(pika.URLParameters(source.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("q", durable=True)
        channel.queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
        channel.confirm_delivery()
        for name in ("q", "s"):
            for body in BODIES:
                channel.basic_publish("", name, body)
    ended = migrate(source, target, "--prefetch", "60", trusted=ca_file(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert {row["queue"]: (row["moved"], row["state"]) for row in json.loads(ended.stdout)} == {
        "q": (len(BODIES), "done"),
        "s": (len(BODIES), "done"),
    }
    with pika.BlockingConnection(pika.URLParameters(target.url)) as connection:
        channel = connection.channel()
        assert [channel.basic_get("q", auto_ack=True)[2] for _ in BODIES] == BODIES


def test_who_is_not_trusted_is_said_in_one_line(
    source: BrokerProcess, target: BrokerProcess, tmp_path: Path
) -> None:
    nobody = tmp_path / "nobody.crt"
    nobody.touch()
    ended = migrate(source, target, trusted=str(nobody))
    assert ended.returncode == 69
    assert ended.stderr.startswith("Error:\nRabbitMQ's management API at https://127.0.0.1:")
    assert "certificate verify failed" in ended.stderr and "Traceback" not in ended.stderr
