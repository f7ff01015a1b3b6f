"""Records of the ledger, its files, and what a full disk does to them."""

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.storage.datadir import Paths, numbered
from qlog.storage.ledger import (
    SNAPSHOT_END,
    LedgerWriter,
    Record,
    ack_ranges,
    ack_record,
    lane_bitmaps,
    lane_record,
    unpack_body,
)
from qlog.storage.segment import BatchFile
from tests.storage.support import FaultyDisk

UUID = b"u" * 16

pairs = st.lists(
    st.tuples(st.integers(0, 2**62), st.integers(1, 2**31)).map(lambda p: (p[0], p[0] + p[1])),
    max_size=20,
)


@given(pairs)
def test_ack_ranges_come_back_in_their_order(ranges: list[tuple[int, int]]) -> None:
    record = ack_record(7, [limit for pair in ranges for limit in pair])
    assert record[1] == 7
    assert list(ack_ranges(record)) == ranges


@given(st.dictionaries(st.integers(0, 2**50), st.integers(0, 2**255 - 1), max_size=5))
def test_bitmaps_come_back(acked: dict[int, int]) -> None:
    record = lane_record(1, 2, 3, 4, acked)
    assert record[1:5] == [1, 2, 3, 4] and lane_bitmaps(record) == acked


@pytest.fixture
def writer(tmp_path: Path) -> LedgerWriter:
    paths = Paths(tmp_path)
    disk = FaultyDisk()
    disk.make_directory(paths.ledger)
    return LedgerWriter(disk, paths, UUID, 1, file_bytes=4096)


def records_of(writer: LedgerWriter, tmp_path: Path) -> list[tuple[int, list[Record]]]:
    file_id = writer.position.file_id
    path = Paths(tmp_path).ledger_file(file_id)
    file = BatchFile(FaultyDisk(), path, UUID, file_id)
    assert file.header_belongs_here
    found = [unpack_body(batch.body) for batch in file.batches()]
    file.close()
    return found


def test_a_file_begins_with_a_snapshot(writer: LedgerWriter, tmp_path: Path) -> None:
    writer.roll([[1, 2, 3]], 77, above=0)
    writer.append([[3, 1, 5]], 80)
    assert records_of(writer, tmp_path) == [
        (77, [[1, 2, 3], [SNAPSHOT_END]]),
        (80, [[3, 1, 5]]),
    ]
    assert writer.dirty
    writer.sync()
    assert not writer.dirty
    writer.close()


def test_the_next_file_takes_over_whole(writer: LedgerWriter, tmp_path: Path) -> None:
    writer.roll([], 0, above=4)
    while not writer.wants_roll:
        writer.append([[3, 1, 5]], 0)
    number = writer.position.number
    writer.roll([[1, 1, 1]], 9, above=0)
    assert numbered(FaultyDisk(), tmp_path / "ledger", ".qack") == [5, 6]
    writer.remove_older()
    assert numbered(FaultyDisk(), tmp_path / "ledger", ".qack") == [6]
    assert writer.position.number == number + 1
    assert records_of(writer, tmp_path) == [(9, [[1, 1, 1], [SNAPSHOT_END]])]
    writer.close()


def test_a_snapshot_larger_than_a_file_gets_a_larger_one(
    writer: LedgerWriter, tmp_path: Path
) -> None:
    writer.roll([[1, at, b"x" * 100] for at in range(2500)], 0, above=0)
    assert not writer.wants_roll
    assert sum(len(records) for _, records in records_of(writer, tmp_path)) == 2501
    writer.close()


@pytest.mark.parametrize("operation", ["write", "allocate", "rename"])
def test_a_roll_without_space_leaves_the_old_file_in_use(tmp_path: Path, operation: str) -> None:
    paths = Paths(tmp_path)
    disk = FaultyDisk()
    disk.make_directory(paths.ledger)
    writer = LedgerWriter(disk, paths, UUID, 1, file_bytes=4096)
    writer.roll([], 0, above=0)
    writer.append([[3, 1, 1]], 0)
    full = OSError(errno.ENOSPC, "No space left on device")
    disk.fail = lambda asked: full if asked == operation else None
    with pytest.raises(OSError, match="No space"):
        writer.roll([[1, 1, 1]], 0, above=0)
    disk.fail = lambda asked: None
    writer.append([[3, 1, 2]], 0)
    assert records_of(writer, tmp_path)[1:] == [(0, [[3, 1, 1]]), (0, [[3, 1, 2]])]
    writer.roll([[1, 1, 1]], 0, above=0)
    assert records_of(writer, tmp_path) == [(0, [[1, 1, 1], [SNAPSHOT_END]])]
    writer.close()
