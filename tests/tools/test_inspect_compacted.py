"""`qlog inspect` while segments are compacted, and afterwards: sparse files, and those replaced."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from qlog.server.amqp.envelope import Envelope
from qlog.storage.start.fold import COMPACTED
from qlog.storage.store import Store
from tests.tools.directories import SETTINGS, body, fill, flip, inspect

EAGER = replace(SETTINGS, compact_age_s=0.0, compact_bytes_per_s=1 << 40)


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Copies of one directory, from before a compaction of it to after; one message in ten waits."""
    root = tmp_path_factory.mktemp("compacted")
    store: Store[Envelope] = Store.open(
        root / "data", decode=Envelope.unpack, notify=lambda: None, settings=EAGER
    )
    fill(store, 300)
    for lane_id in (1, 2):
        for qseq in range(200):
            if qseq % 10:
                store.lane(lane_id).settle(qseq, 1)
    assert store.settle_down()
    copies = [root / "copy0"]
    shutil.copytree(root / "data", copies[0])
    names: list[str] = []
    for step in range(60):
        store.tick(step / 2)
        assert store.checkpoint()
        found = sorted(path.name for path in (root / "data" / "log").iterdir())
        if found != names:
            names = found
            copies.append(root / f"copy{len(copies)}")
            shutil.copytree(root / "data", copies[-1])
    store.close()
    return [*copies, root / "data"]


WAITING = [*range(0, 200, 10), *range(200, 300)]


def test_at_every_moment_each_message_is_there_once(moments: list[Path]) -> None:
    states = set()
    for directory in moments:
        segments = inspect(directory, "segments")
        states |= {item["state"] for item in segments["segments"]}
        assert segments["totals"]["live"] == len(WAITING)
        for queue in inspect(directory, "queues")["queues"]:
            assert (queue["unsettled"], queue["next_offset"]) == (len(WAITING), 300)
        document = inspect(directory, "messages", "--limit", "1000", "--unsettled", "--body")
        assert [item["lsn"] for item in document["messages"]] == WAITING
        for item in document["messages"]:
            assert item["body"].encode() == body(item["lsn"])
        inspect(directory, "index")
        inspect(directory, "ledger", "--full")
    assert {"sealed", "compacted", "replaced"} <= states


def test_damage_in_a_compacted_segment_is_named(moments: list[Path], tmp_path: Path) -> None:
    directory = tmp_path / "data"
    shutil.copytree(moments[-1], directory)
    path = next(path for path in (directory / "log").glob("*.qseg") if int(path.stem) >= COMPACTED)
    data = path.read_bytes()
    lsn = next(lsn for lsn in WAITING if b"message %d " % lsn in data)
    flip(path, data.index(b"message %d " % lsn) + 500)
    (damage,) = inspect(directory, "segments", status=1)["damage"]
    assert damage["lsn_first"] <= lsn < damage["lsn_end"] and damage["messages_lost"] == 1
    document = inspect(directory, "messages", "--limit", "1000", "--unsettled", status=1)
    assert [item["lsn"] for item in document["messages"]] == WAITING
    assert [item["lsn"] for item in document["messages"] if item["damage"]] == [lsn]


def test_a_new_segment_that_nothing_was_written_to_is_sound(
    moments: list[Path], tmp_path: Path
) -> None:
    """What was compacted has higher numbers, and older messages."""
    directory = tmp_path / "data"
    shutil.copytree(moments[-1], directory)
    ids = [int(path.stem) for path in (directory / "log").iterdir()]
    newest = 1 + max([0, *(id_ for id_ in ids if id_ < COMPACTED)])
    assert max(ids) >= COMPACTED
    (directory / "log" / f"{newest:010d}.qseg").write_bytes(bytes(16384))
    assert inspect(directory, "verify", status=0)["damage"] == []
    *_, last = inspect(directory, "segments")["segments"]
    assert (last["id"], last["state"]) == (newest, "reserved")
