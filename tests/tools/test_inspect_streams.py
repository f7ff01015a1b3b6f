"""`qlog inspect streams`, and streams in `verify` and `summary`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgpack
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Properties, encode_properties
from qlog.server.amqp.values import encode_table
from qlog.server.broker.broker import Broker
from qlog.server.broker.queues.stream import StreamQueue
from qlog.server.broker.settings import BrokerSettings
from qlog.storage.store import Store
from qlog.storage.streams.stream import Cursor
from qlog.tools.cli import app
from qlog.tools.inspect import rows
from tests.storage.support import FaultyDisk, ManualWorker
from tests.tools.directories import NOW_MS, SETTINGS, inspect

COUNT = 300
STREAMS = replace(SETTINGS, stream_segment_bytes=20_000, stream_batch_bytes=4_000)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a stream of 300 messages, 10 of them still in the log; and a killed copy."""
    directory = tmp_path_factory.mktemp("streams") / "data"
    workers: list[ManualWorker] = []

    def new_worker(name: str, notify: object) -> ManualWorker:
        workers.append(ManualWorker())
        return workers[-1]

    store: Store[Envelope] = Store.open(
        directory,
        decode=Envelope.unpack,
        notify=lambda: None,
        settings=STREAMS,
        disk=FaultyDisk(),
        new_worker=new_worker,
    )
    lane_id = store.new_lane_id()
    with store.catalog.transaction():
        value = {
            "lane": lane_id,
            "auto_delete": False,
            "arguments": encode_table({"x-queue-type": "stream"}),
        }
        store.catalog.put("vhost", json.dumps(["/"]), msgpack.packb({}))
        store.catalog.put("queue", json.dumps(["/", "events"]), msgpack.packb(value))
        store.define_stream(lane_id)
    lane = store.lane(lane_id)
    stream = store.stream(lane)
    properties = encode_properties(Properties(delivery_mode=2))
    for start in range(0, COUNT, 10):
        if start == COUNT - 10:  # all before is moved
            now_s = 0.0
            while lane.alive:
                now_s += 2.0
                store.tick(now_s)
                store.settle_down()
                workers[1].wait()
                store.advance()
        bodies = [b"%d " % (start + at) + bytes(500) for at in range(10)]
        metas = [Envelope.pack("", "events", properties, len(body)) for body in bodies]
        store.append([lane], metas, bodies, persistent=True, now_ms=NOW_MS + start)
        store.stream_touched(stream)
        assert store.settle_down()
    assert store.checkpoint()
    store.close()
    return directory


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def test_the_streams_are_shown(data: Path) -> None:
    document = inspect(data, "streams")
    (stream,) = document["streams"]
    assert (stream["vhost"], stream["queue"]) == ("/", "events")
    assert (stream["first_offset"], stream["moved_below"]) == (0, COUNT - 10)
    segments = stream["segments"]
    assert len(segments) > 3
    assert [one["sealed"] for one in segments] == [True] * (len(segments) - 1) + [False]
    ends = [one["end_offset"] for one in segments]
    assert [one["first_offset"] for one in segments] == [0, *ends[:-1]]
    assert ends[-1] == COUNT - 10
    on_disk = [path.stat().st_size for path in sorted((data / "streams").iterdir())]
    assert [one["size_bytes"] for one in segments] == on_disk


def test_verify_reads_them(data: Path) -> None:
    document = inspect(data, "verify")
    checks = {item["name"]: (item["checked"], item["damaged"]) for item in document["checks"]}
    assert checks["stream messages"] == (COUNT - 10, 0)
    assert inspect(data, "summary")["sizes"]["streams"]["files"] > 3


@pytest.mark.parametrize("position", [70, 5000, -30])
def test_verify_names_what_is_damaged(data: Path, position: int) -> None:
    path = sorted((data / "streams").iterdir())[1]
    octets = bytearray(path.read_bytes())
    octets[position] ^= 0x10
    path.write_bytes(octets)
    document = inspect(data, "verify", status=1)
    assert {item["file"] for item in document["damage"]} <= {f"streams/{path.name}", "streams"}
    checks = {item["name"]: item["damaged"] for item in document["checks"]}
    assert checks["stream messages"] >= 1


def test_a_missing_segment_is_named_at_a_glance(data: Path) -> None:
    path = sorted((data / "streams").iterdir())[1]
    path.unlink()
    document = inspect(data, "streams", status=1)
    (damage,) = document["damage"]
    assert "are missing or damaged" in damage["what"]


def test_every_flipped_byte_is_damage(data: Path) -> None:
    """In any segment: each byte of a file stands under some checksum."""
    for path in sorted((data / "streams").iterdir())[::2]:
        whole = path.read_bytes()
        for position in range(0, len(whole), 9973):
            octets = bytearray(whole)
            octets[position] ^= 0x01
            path.write_bytes(octets)
            inspect(data, "verify", status=1)
        path.write_bytes(whole)
    inspect(data, "verify")


@pytest.mark.parametrize("options", [(), ("--queue", "events"), ("--settled",)])
def test_an_export_has_each_message_once(
    data: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    output = tmp_path / "messages.jsonl"
    inspect(data, "export", "-o", str(output), *options)
    items = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [item["queues"][0]["offset"] for item in items] == list(range(COUNT))
    assert [int(item["body"].split()[0]) for item in items] == list(range(COUNT))
    assert {item["routing_key"] for item in items} == {"events"}
    assert items[0]["timestamp_ms"] == NOW_MS and items[-1]["timestamp_ms"] == NOW_MS + COUNT - 10


def test_an_export_names_what_it_cannot_read(data: Path, tmp_path: Path) -> None:
    path = sorted((data / "streams").iterdir())[1]
    octets = bytearray(path.read_bytes())
    octets[5000] ^= 0x10
    path.write_bytes(octets)
    output = tmp_path / "messages.jsonl"
    document = inspect(data, "export", "-o", str(output), status=1)
    assert [item["file"] for item in document["damage"]] == [f"streams/{path.name}"]
    assert COUNT // 2 < len(output.read_bytes().splitlines()) < COUNT


@pytest.mark.parametrize("also", [(), ("catalog.lmdb",), ("catalog.lmdb", "index.lmdb")])
def test_a_repair_without_the_ledger_keeps_streams(data: Path, also: tuple[str, ...]) -> None:
    """The ledger said how far they were moved, and the catalog that they are streams."""
    (ledger,) = (data / "ledger").glob("*.qack")
    ledger.write_bytes(bytes(ledger.stat().st_size))
    for name in also:
        shutil.rmtree(data / name)
    arguments = ["inspect", "repair", "--accept-loss", "--data-dir", str(data)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    store: Store[Envelope] = Store.open(
        data, decode=Envelope.unpack, notify=lambda: None, settings=STREAMS
    )
    broker = Broker(store, BrokerSettings())
    try:
        name = "events" if not also else "qlog.recovered.1"
        found = broker.vhosts["/"].queues[name]
        assert isinstance(found, StreamQueue)
        assert found.ready == COUNT
        assert bodies_of(store, found) == list(range(COUNT))
        assert not store.take_findings()
    finally:
        store.close()


def bodies_of(store: Store[Envelope], queue: StreamQueue) -> list[int]:
    """The numbers in the bodies of a stream's messages."""
    stream = store.stream(queue.lane)
    cursor: Cursor[Envelope] = Cursor(stream, 0)
    found = []
    while (chunk := cursor.next(stream.end)) is not None:
        bodies = chunk.messages.bodies[cursor.offset - chunk.first :]
        found += [int(body.split()[0]) for body in bodies]
        cursor.advance(chunk, len(bodies))
    cursor.close()
    return found


def test_streams_fit_a_terminal_as_a_table(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(rows, "_is_terminal", lambda: True)
    result = CliRunner().invoke(app, ["inspect", "streams", "--data-dir", str(made)])
    assert result.exit_code == 0
    head, *_ = (line for line in result.stdout.splitlines() if line.startswith("vhost"))
    assert head.split()[:7] == ["vhost", "stream", "lane", "first", "moved", "segments", "size"]
