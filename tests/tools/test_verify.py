"""`qlog inspect verify`: sound directories have no findings, and each damage has its own."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest
from typer.testing import CliRunner

from qlog.storage.bytes.disk import OSDisk
from qlog.storage.index.index import Index, _close_block, _open_block
from qlog.storage.settings import StoreSettings
from qlog.storage.write.segment import BatchFile, seal
from qlog.tools.cli import app
from tests.live.server import BrokerProcess
from tests.storage.probe import probe
from tests.tools.directories import (
    flip,
    inspect,
    killed,
    opened,
    segments_of,
    stopped,
)


@pytest.mark.parametrize("make", [stopped, killed])
def test_a_sound_directory_has_no_findings(make: Any, tmp_path: Path) -> None:
    document = inspect(make(tmp_path / "data", settled=120), "verify")
    checked = {item["name"]: (item["checked"], item["damaged"]) for item in document["checks"]}
    assert checked["messages"] == (200, 0)
    assert checked["definitions"][0] >= 4 and checked["index pointers"][0] in (0, 280)
    assert not any(damaged for _, damaged in checked.values())


def test_an_empty_directory_is_sound(tmp_path: Path) -> None:
    with opened(tmp_path / "data"):
        pass
    inspect(tmp_path / "data", "verify")


def test_a_running_broker_is_sound(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "data").start()
    try:
        document = inspect_running(tmp_path / "data")
        assert document["in_use"] and not document["damage"]
    finally:
        broker.terminate()


def inspect_running(directory: Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["inspect", "verify", "--data-dir", str(directory), "--json"])
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.mark.parametrize("make", [stopped, killed])
def test_a_damaged_message_is_named_with_its_queues(make: Any, tmp_path: Path) -> None:
    directory = make(tmp_path / "data", settled=3)
    path = segments_of(directory)[0]
    flip(path, path.read_bytes().index(b"message 7 ") + 20)
    (damage,) = inspect(directory, "verify", status=1)["damage"]
    assert damage["file"] == "log/0000000001.qseg"
    assert damage["lsn_first"] <= 7 < damage["lsn_end"] and damage["messages_lost"] == 1
    assert damage["position"] < path.read_bytes().index(b"message 8 ") < damage["end"]
    concerned = [
        (item["queue"], item["offset_first"], item["unsettled"]) for item in damage["queues"]
    ]
    assert concerned == [("orders", 7, 1), ("audit", 7, 1)]


def test_a_missing_segment_is_named_with_its_messages(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", settled=10)
    segments_of(directory)[0].unlink()
    document = inspect(directory, "verify", status=1)
    (missing,) = [item for item in document["damage"] if item["file"].startswith("log")]
    assert "missing" in missing["what"]
    counts = {item["queue"]: item["messages"] for item in missing["queues"]}
    assert counts["audit"] == counts["orders"] + 10 > 40
    assert all(item["file"] == "index.lmdb" for item in document["damage"] if item != missing)


def test_a_footer_of_other_messages_is_noticed(tmp_path: Path) -> None:
    """Both are whole, and do not belong together: no checksum can tell."""
    directory = stopped(tmp_path / "data")
    path = segments_of(directory)[0]
    with opened(directory) as store:
        uuid = probe(store).identity.uuid
    file = BatchFile(OSDisk(), path, uuid, 1)
    trailer = file.trailer()
    assert trailer is not None
    columns = file.columns(trailer)
    assert columns is not None
    file.close()
    columns.firsts[0] += 1
    seal(OSDisk(), path, uuid, columns, trailer.base_lsn, trailer.end_lsn, trailer.log_end)
    document = inspect(directory, "verify", status=1)
    whats = [item["what"] for item in document["damage"] if item["file"].startswith("log")]
    assert whats == ["the footer is whole, and is not of these messages"]


def test_a_pointer_that_leads_elsewhere_is_noticed(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", settled=3)
    settings = StoreSettings()
    index = Index(directory / "index.lmdb", map_bytes=settings.index_map_bytes)
    key = struct.pack(">IQ", 1, 0)
    with index._env.begin(write=True) as transaction:
        columns = _open_block(key, transaction.get(key, db=index._blocks))
        columns[4 * 5 + 1] += 8
        transaction.put(key, _close_block(key, columns), db=index._blocks)
    index.close()
    document = inspect(directory, "verify", status=1)
    assert [item["file"] for item in document["damage"]] == ["index.lmdb"] * 2
    assert all("orders #5" in item["what"] for item in document["damage"])
    for command in ("verify", "index"):
        assert "rebuild-index" in inspect(directory, command, status=1)["notes"][-1]
    (ledger,) = (directory / "ledger").glob("*.qack")
    flip(ledger, 64 + 60)
    for command in ("verify", "index"):
        advice = inspect(directory, command, status=1)["notes"][-1]
        assert "repair" in advice and "rebuild-index" not in advice


def test_definitions_that_do_not_fit_are_named(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    with opened(directory) as store:
        twice = {"lane": 1, "auto_delete": False, "arguments": b"\0\0\0\0"}
        store.catalog.put("queue", json.dumps(["gone", "twin"]), msgpack.packb(twice))
        binding = json.dumps(["/", "nowhere", "queue", "nothing", "key", "00000000"])
        store.catalog.put("binding", binding, msgpack.packb({}))
    document = inspect(directory, "verify", status=1)
    text = "\n".join(item["what"] for item in document["damage"])
    for part in ("vhost 'gone'", "exchange 'nowhere'", "queue 'nothing'", "it has lane 1, as"):
        assert part in text
    assert len(document["damage"]) == 4


def test_a_catalog_entry_that_is_damaged_is_named(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    path = directory / "catalog.lmdb" / "data.mdb"
    data = path.read_bytes()
    for at in range(len(data)):  # also in pages that are not in use
        if data.startswith(b'\x00["/", "audit"]', at):
            flip(path, at + len(b'\x00["/", "audit"]') + 12)
    document = inspect(directory, "verify", status=1)
    assert "queue 'audit' in vhost '/'" in document["damage"][0]["what"]


def test_a_catalog_that_was_cut_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    for name in ("catalog.lmdb", "index.lmdb"):
        copy = tmp_path / name
        shutil.copytree(directory, copy)
        path = copy / name / "data.mdb"
        path.write_bytes(path.read_bytes()[:12288])
        document = inspect(copy, "verify", status=1)
        assert any(
            item["file"].startswith(name) and "cut off" in item["what"]
            for item in document["damage"]
        )
