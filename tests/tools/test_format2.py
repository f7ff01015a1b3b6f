"""What qlog 0.1.0 kept, in format 2, is not lost: exported by it, it is imported by this one."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pika
import pytest
from typer.testing import CliRunner

from qlog.storage.errors import OtherFormat
from qlog.storage.store import Store
from qlog.tools.cli import app
from tests.live.server import BrokerProcess
from tests.storage.support import decode, ignore
from tests.tools.directories import fingerprint
from tests.tools.format2 import QUEUES, left

DATA = Path(__file__).parent / "data"
ADVICE = (
    "has format 2, this qlog reads format 3; export its messages with the qlog that wrote it (qlog "
    "0.1.0), `qlog inspect export`, and bring them into this one, `qlog inspect import`"
)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    running = BrokerProcess(tmp_path / "broker").start()
    yield running
    assert running.terminate()[0] == 0


def test_its_export_is_imported_with_every_message(broker: BrokerProcess) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    for queue in QUEUES:
        channel.queue_declare(queue, durable=True)
    arguments = ["inspect", "import", str(DATA / "format2.jsonl"), "--url", broker.url]
    result = CliRunner().invoke(app, arguments)
    assert result.stdout == "20 messages published and confirmed\n", result.output
    expected = {
        queue: [(one.body, {"delivery_mode": 2, **one.properties}) for one in published]
        for queue, published in left().items()
    }
    assert {queue: list(drained(channel, queue)) for queue in QUEUES} == expected
    connection.close()


def drained(channel: Any, queue: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The bodies and properties of all messages of a queue, in order."""
    while True:
        method, properties, payload = channel.basic_get(queue, auto_ack=True)
        if method is None:
            return
        found = {name: value for name, value in vars(properties).items() if value is not None}
        for name, value in found.get("headers", {}).items():
            if isinstance(value, datetime):  # pika forgets that it is UTC
                found["headers"][name] = value.replace(tzinfo=UTC)
        yield payload, found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with tarfile.open(DATA / "format2.tar.xz") as archive:
        archive.extractall(tmp_path / "data", filter="data")
    return tmp_path / "data"


def test_its_directory_is_refused_with_what_to_do(directory: Path) -> None:
    before = fingerprint(directory)
    with pytest.raises(OtherFormat) as caught:
        Store.open(directory, decode=decode, notify=ignore)
    assert ADVICE in str(caught.value)
    assert "\n" not in str(caught.value)
    after = fingerprint(directory)
    assert {path: one[2] for path, one in after.items() if not path.endswith("lock.mdb")} == {
        path: one[2] for path, one in before.items() if not path.endswith("lock.mdb")
    }


@pytest.mark.parametrize("command", ["summary", "queues", "export", "verify", "repair"])
def test_inspect_says_what_to_do_with_it(directory: Path, command: str) -> None:
    result = CliRunner().invoke(app, ["inspect", command, "--data-dir", str(directory)])
    assert result.exit_code == 2 and ADVICE in result.output
    assert len(result.output.splitlines()) == 1
