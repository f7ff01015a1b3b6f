"""`qlog inspect ledger` and `qlog inspect index`: what they show, and what does not agree."""

from __future__ import annotations

import json
import shutil
from array import array
from pathlib import Path
from typing import Any

import msgpack
import pytest
from typer.testing import CliRunner

from qlog.server.amqp.envelope import Envelope
from qlog.storage.index.index import Index, LaneUpdate, Placed
from qlog.storage.journal import LaneState
from qlog.tools.cli import app
from qlog.tools.inspect.look.settlements import ranges_text, settled_ranges
from tests.tools.directories import (
    NOW_MS,
    fill,
    flip,
    inspect,
    killed,
    opened,
    segments_of,
    stopped,
)


def records(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [
        record
        for batch in document["batches"]
        for record in batch["records"]
        if record["kind"] == kind
    ]


# -- ledger


def test_the_ledger_names_what_was_settled(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as store:
        fill(store, 100, settled=60)
        store.lane(2).settle(5, 1)
        store.lane(2).settle(7, 3)
    document = inspect(tmp_path / "data", "ledger", "--from", "0", "--full")
    acks = records(document, "ack")
    assert [(ack["queue"], ack["ranges"]) for ack in acks] == [
        ("orders", [[0, 59]]),
        ("audit", [[5, 5], [7, 9]]),
    ]
    assert [item["delivered_below"] for item in records(document, "delivered")] == [61]
    assert document["files"][0]["state"] == "current"
    assert [batch["number"] for batch in document["batches"]] == list(
        range(document["files"][0]["batches"])
    )
    document = inspect(tmp_path / "data", "ledger", "--queue", "audit")
    assert [ack["queue"] for ack in records(document, "ack")] == ["audit"]


def test_a_snapshot_is_summarised_unless_all_is_asked_for(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as store:
        fill(store, 100, settled=60)
        store.lane(2).settle(5, 1)
    with opened(tmp_path / "data"):
        pass
    brief = inspect(tmp_path / "data", "ledger", "--from", "0", "--limit", "1")["batches"][0]
    assert brief["snapshot"] and brief["records"] == [] and brief["record_count"] == 8
    full = inspect(tmp_path / "data", "ledger", "--from", "0", "--limit", "1", "--full")
    assert [(lane["queue"], lane["ranges"]) for lane in records(full, "lane")] == [
        ("orders", [[0, 59]]),
        ("audit", [[5, 5]]),
    ]


def test_definitions_are_in_the_ledger_without_their_secrets(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with opened(directory) as store:
        fill(store, 10)
        name = json.dumps(["me"])
        store.catalog.put("user", name, msgpack.packb({"password_hash": "hidden"}))
        store.catalog.delete("user", name)
    document = inspect(directory, "ledger", "--from", "0", "--full")
    defined = [
        (item["name"], item["deleted"])
        for item in records(document, "defined")
        if item["what"] in ("queue", "user")
    ]
    assert defined == [
        (json.dumps(["/", "orders"]), False),
        (json.dumps(["/", "audit"]), False),
        (name, False),
        (name, True),
    ]
    arguments = ["inspect", "ledger", "--from", "0", "--full", "--data-dir", str(directory)]
    text = CliRunner().invoke(app, arguments).stdout
    assert "queue 'audit' in vhost '/' was defined" in text and "user 'me' was deleted" in text
    assert "hidden" not in text + json.dumps(document)


def test_segments_given_up_are_in_the_ledger(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as store:
        fill(store, 200)
        for lane_id in (1, 2):
            store.lane(lane_id).settle(0, 200)
        for _ in range(4):
            assert store.checkpoint()
    given_up = records(inspect(tmp_path / "data", "ledger"), "segment_given_up")
    assert [item["id"] for item in given_up][:2] == [1, 2]


def test_damage_in_the_ledger_is_a_batch_of_its_own(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", settled=120)
    (path,) = (directory / "ledger").glob("*.qack")
    flip(path, 64 + 49)
    document = inspect(directory, "ledger", "--from", "0", status=1)
    assert document["batches"][0]["damage"] and document["batches"][0]["position"] == 64
    assert document["batches"][1]["damage"] is None


def test_ranges() -> None:
    lane = LaneState(7, 600, 300, 0, {1: (1 << 60) - 1, 2: 5})
    assert settled_ranges(lane) == [(0, 314), (508, 509), (510, 511)]
    assert ranges_text([(0, 313), (508, 508), (510, 510)]) == "0-313, 508, 510"
    assert ranges_text([(at, at) for at in range(0, 40, 2)], 2) == "0, 2 and 18 more ranges"


# -- index


@pytest.mark.parametrize("make", [stopped, killed])
def test_a_sound_index_agrees(make: Any, tmp_path: Path) -> None:
    directory = make(tmp_path / "data", settled=120)
    document = inspect(directory, "index")
    comparison = document["comparison"]
    assert comparison["differences"] == comparison["wrong_counts"] == []
    if make is stopped:
        assert comparison["pointers"] == 280
        assert [lane["pointers"] for lane in document["lanes"]] == [80, 200]
        assert document["index"]["checkpoint"]["lsn"] == 200
        assert sum(segment["unsettled"] for segment in document["segments"]) == 280
    assert inspect(directory, "index", "--no-compare")["comparison"] is None


def change(directory: Path, update: LaneUpdate) -> None:
    """Write to the index what no checkpoint would."""
    index = Index(directory / "index.lmdb", map_bytes=1 << 24)
    index.apply([update], (), None)
    index.close()


def test_a_pointer_to_the_wrong_place_is_named(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", settled=120)
    wrong = Placed(150, 1, array("I", [64, 70]), array("I", [1000, 1000]), array("I", [9, 9]))
    change(directory, LaneUpdate(1, 200, 200, 120, 121, placed=[wrong]))
    document = inspect(directory, "index", status=1)
    (difference,) = document["comparison"]["differences"]
    assert (difference["queue"], difference["offset_first"], difference["offset_end"]) == (
        "orders",
        150,
        152,
    )
    assert difference["what"] == "a pointer to a record that is not there"


def test_a_message_without_a_pointer_is_named(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    change(directory, LaneUpdate(2, 200, 200, 10, 0))  # a floor that the ledger knows nothing of
    document = inspect(directory, "index", status=1)
    (difference,) = document["comparison"]["differences"]
    assert (difference["queue"], difference["offset_first"], difference["offset_end"]) == (
        "audit",
        0,
        10,
    )
    assert difference["what"] == "settled by the index, and not by the ledger"


def test_pointers_to_nothing_are_named(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    wrong = Placed(200, 9, array("I", [64]), array("I", [1000]), array("I", [9]))
    change(directory, LaneUpdate(2, 201, 201, 0, 0, placed=[wrong]))
    (difference,) = inspect(directory, "index", status=1)["comparison"]["differences"]
    assert difference["what"] == "a pointer to a segment that is not there"


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    path = directory / "index.lmdb" / "data.mdb"
    document = inspect(directory, "index")
    segment = segments_of(directory)[0]
    assert document["segments"][0]["id"] == int(segment.stem)
    data = path.read_bytes()
    block = data.index(array("I", [1, 112, 0]).tobytes()[:8])  # the first pointer of a block
    flip(path, block + 16 * 20)
    document = inspect(directory, "index", status=1)
    assert any("damaged" in item["what"] for item in document["damage"])


def test_without_an_index_there_is_nothing_to_compare(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    shutil.rmtree(directory / "index.lmdb")
    document = inspect(directory, "index")
    assert document["index"] is None and "missing" in document["notes"][0]


# -- what came with format 3


def with_the_new_records(directory: Path) -> Path:
    """Messages that are due, came back, and were restored."""
    with opened(directory) as store:
        fill(store, 20)
        lane = store.lane(1)
        metas = [Envelope.pack("", "orders", b"\0\0", 4)] * 3
        dues = [NOW_MS + 5000 + at for at in range(3)]
        store.append([lane], metas, [b"late"] * 3, persistent=True, now_ms=NOW_MS, dues_ms=dues)
        lane.settle(4, 3)
        lane.note_attempts(2, 2, 3)
        assert store.settle_down()
        assert lane.restore(5, 1) == [5, 6]
        assert store.checkpoint()
    return directory


def test_attempts_and_restored_messages_are_in_the_ledger(tmp_path: Path) -> None:
    directory = with_the_new_records(tmp_path / "data")
    batches = inspect(directory, "ledger", "--from", "0")["batches"]
    found = [record for batch in batches for record in batch["records"]]
    attempts = {"kind": "attempts", "lane": 1, "ranges": [[2, 3, 3]]}
    restored = {"kind": "restored", "lane": 1, "ranges": [[5, 5]]}
    for expected in (attempts, restored):
        assert expected | {"vhost": "/", "queue": "orders"} in found
    arguments = ["inspect", "ledger", "--from", "0", "--data-dir", str(directory)]
    text = CliRunner().invoke(app, arguments).stdout
    assert "came back 3 times: 2-3" in text and "restored 5" in text
    queues = {one["queue"]: one for one in inspect(directory, "queues")["queues"]}
    assert queues["orders"]["unsettled"] == 21


def test_due_times_are_shown_and_verified(tmp_path: Path) -> None:
    directory = with_the_new_records(tmp_path / "data")
    for command in ("verify", "index"):
        assert inspect(directory, command)["damage"] == []
    fields = inspect(directory, "message", "20")["fields"]
    (due,) = [field for field in fields if field["part"] == "due time"]
    assert due["value"].startswith(str(NOW_MS + 5000))
    index = Index(directory / "index.lmdb", map_bytes=1 << 24)
    with index._env.begin(write=True) as transaction, transaction.cursor(db=index._due) as cursor:
        assert cursor.first() and cursor.delete()
    index.close()
    document = inspect(directory, "index", status=1)
    assert any(
        text.endswith(" differs from the log in 1 due time")
        for text in document["comparison"]["wrong_counts"]
    )
