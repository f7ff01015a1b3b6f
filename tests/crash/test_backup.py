"""A backup of a broker that works, kill -9 in the middle of it, and what a restore gives."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pika
import pytest

from qlog.server.listeners import SOCKET_NAME
from qlog.storage.bytes.manifest import MANIFEST
from tests.live.server import ROOT, BrokerProcess

COUNT = 500
SETTINGS = {"QLOG_SEGMENT_BYTES_MAX": str(256 << 10)}


class Owner(http.client.HTTPConnection):
    """The API by the socket in the data directory."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = data_dir / SOCKET_NAME

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))

    def ask(self, method: str, document: Any = None) -> dict[str, Any]:
        """The answer, whatever its status."""
        try:
            self.request(method, "/api/qlog/backups", json.dumps(document) if document else None)
            answer: dict[str, Any] = json.loads(self.getresponse().read())
        finally:
            self.close()
        return answer


def begin(data_dir: Path, target: Path, bytes_per_s: int) -> Owner:
    """Have a backup begun."""
    owner = Owner(data_dir)
    asked = {"directory": str(target), "bytes_per_s": bytes_per_s}
    deadline = time.monotonic() + 30
    while True:  # HTTP begins after AMQP
        try:
            assert owner.ask("POST", asked)["state"] == "running"
            return owner
        except (FileNotFoundError, ConnectionError):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def until(owner: Owner, state: str) -> dict[str, Any]:
    """Wait until a backup is in a state."""
    deadline = time.monotonic() + 60
    while (said := owner.ask("GET"))["state"] != state:
        assert said["state"] == "running" and time.monotonic() < deadline, said
        time.sleep(0.05)
    return said


def restored(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """`qlog restore`."""
    command = [sys.executable, "-m", "qlog", "restore", str(source), "--data-dir", str(target)]
    return subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )


def taken(broker: BrokerProcess) -> list[bytes]:
    """All bodies of the queue q, in order; they are there afterwards as well."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        found = []
        while (got := channel.basic_get("q"))[0] is not None:
            found.append(got[2])
        return found


@pytest.mark.timeout(240)
def test_a_kill_in_the_middle_leaves_a_whole_backup_or_none(tmp_path: Path) -> None:
    target = tmp_path / "backup"
    broker = BrokerProcess(tmp_path / "data", settings=SETTINGS).start()
    body = b"%06d" + bytes(6000)
    sent = 0
    try:
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("q", durable=True)
        properties = pika.BasicProperties(delivery_mode=2)

        def publish(count: int) -> None:
            nonlocal sent
            for _ in range(count):
                channel.basic_publish("", "q", body % sent, properties)
                sent += 1

        publish(COUNT)
        # Kill it while it copies its first backup, at the lowest speed: there is none.
        begin(broker.data_dir, target, 1 << 20)
        deadline = time.monotonic() + 30
        while not list(target.glob("log/*.qseg")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        broker.kill()
        refused = restored(target, tmp_path / "none")
        assert refused.returncode == 1 and not (tmp_path / "none").exists()
        assert refused.stderr == (
            f"qlog: {target} has no whole backup: {MANIFEST}, which is written last, is not there\n"
        )
        broker.start()
        assert not list((broker.data_dir / "backup.staging").glob("*/*"))
        first = until(begin(broker.data_dir, target, 0), "made")
        # Kill it while it copies the second one: the first is whole, and is all there is.
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        channel = connection.channel()
        channel.confirm_delivery()
        publish(COUNT)
        begin(broker.data_dir, target, 1 << 20)
        before = {path.name for path in target.glob("log/*")}
        while {path.name for path in target.glob("log/*")} == before:
            assert time.monotonic() < deadline + 60
            time.sleep(0.02)
        broker.kill()
        assert restored(target, tmp_path / "old").returncode == 0
        # The third one adds what is new.
        broker.start()
        third = until(begin(broker.data_dir, target, 0), "made")
        assert third["bytes"] > first["bytes"] and third["bytes_copied"] < third["bytes"] * 0.7
        expected = taken(broker)
        assert len(expected) == sent
    finally:
        broker.kill()
    assert restored(target, tmp_path / "new").returncode == 0
    for name, bodies in (("old", expected[:COUNT]), ("new", expected)):
        broker = BrokerProcess(tmp_path / name, settings=SETTINGS).start()
        try:
            assert taken(broker) == bodies
        finally:
            broker.kill()
