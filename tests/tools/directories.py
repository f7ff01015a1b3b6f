"""Data directories to inspect, made by the real store; and proof that inspecting left them alone.

Two durable queues: every message goes to `orders` (lane 1), and with `audit` (lane 2) too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
from typer.testing import CliRunner

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Properties, encode_properties
from qlog.server.amqp.values import encode_table
from qlog.storage.settings import StoreSettings
from qlog.storage.store import Store
from qlog.tools.cli import app

SETTINGS = StoreSettings(segment_bytes_max=1 << 16, ledger_bytes_max=1 << 16, index_reserve_bytes=0)
NOW_MS = 1_700_000_000_000
RUN = 10  # messages appended together; each run is a batch of its own


def body(number: int) -> bytes:
    """The body of a message by its LSN; 50 messages or so fill a segment."""
    return f"message {number} ".encode() + b"x" * 1000


@contextmanager
def opened(directory: Path) -> Iterator[Store[Envelope]]:
    """A store on the directory, closed in good order."""
    store = Store.open(directory, decode=Envelope.unpack, notify=lambda: None, settings=SETTINGS)
    try:
        yield store
    finally:
        store.close()


def fill(store: Store[Envelope], count: int, *, settled: int = 0) -> None:
    """Define the queues, publish so many messages, and settle the first of `orders`."""
    lanes = [store.lane(store.new_lane_id()) for _ in range(2)]
    for name, lane in zip(("orders", "audit"), lanes, strict=True):
        value = {"lane": lane.id, "auto_delete": False, "arguments": encode_table({})}
        store.catalog.put("queue", json.dumps(["/", name]), msgpack.packb(value))
    store.catalog.put("vhost", json.dumps(["/"]), msgpack.packb({}))
    properties = encode_properties(
        Properties(content_type="text/plain", delivery_mode=2, headers={"n": 1, "raw": b"\xff"})
    )
    for start in range(0, count, RUN):
        bodies = [body(number) for number in range(start, start + RUN)]
        metas = [Envelope.pack("amq.topic", "orders.new", properties, len(bodies[0]))] * RUN
        store.append(lanes, metas, bodies, persistent=True, now_ms=NOW_MS)
        assert store.settle_down()
    if settled:
        lanes[0].settle(0, settled)
        lanes[0].note_delivered(settled + 1)
        assert store.settle_down()


def stopped(directory: Path, count: int = 200, *, settled: int = 0) -> Path:
    """What a broker leaves that was stopped: sealed segments."""
    with opened(directory) as store:
        fill(store, count, settled=settled)
    return directory


def killed(directory: Path, count: int = 200, *, settled: int = 0) -> Path:
    """What a broker leaves that was killed: the last segment is not sealed."""
    source = directory.with_name(directory.name + "-running")
    with opened(source) as store:
        fill(store, count, settled=settled)
        # What is being prepared may get its name meanwhile.
        shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.qseg.new"))
    shutil.rmtree(source)
    return directory


def fingerprint(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Of every file and directory: when it was changed, its size, a hash of its bytes."""
    found = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        status = path.stat()
        data = b"" if path.is_dir() else path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        found[str(path)] = (status.st_mtime_ns, status.st_size, digest)
    return found


def inspect(directory: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    """The JSON of an inspect command, which must end so and change nothing."""
    before = fingerprint(directory)
    result = CliRunner().invoke(
        app, ["inspect", *arguments, "--data-dir", str(directory), "--json"]
    )
    assert result.exit_code == status, result.output
    assert fingerprint(directory) == before
    document: dict[str, Any] = json.loads(result.stdout)
    assert document["schema"] == f"qlog.inspect.{arguments[0]}/1"
    assert bool(document["damage"]) == (status == 1)
    return document


def segments_of(directory: Path) -> list[Path]:
    """The files of the log, in order."""
    return sorted((directory / "log").glob("*.qseg"))


def flip(path: Path, position: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)
