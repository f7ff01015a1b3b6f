"""Records of the ledger, its files, and what a full disk does to them."""

import errno
from collections import defaultdict
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.storage import journal
from qlog.storage.bytes.datadir import Paths, numbered
from qlog.storage.journal import Defined, Delivered
from qlog.storage.lanes.settled import Settled, lane_entries
from qlog.storage.start.fold import LaneFacts
from qlog.storage.write.ledger import (
    ACK,
    ATTEMPTS,
    DEFINED,
    DELIVERED,
    LANE,
    LANE_DELETED,
    RESTORED,
    SEGMENT_DROPPED,
    SEGMENT_REPLACED,
    SEGMENTS,
    SNAPSHOT_END,
    TIME,
    LedgerWriter,
    Record,
    SegmentDropped,
    SegmentReplaced,
    Segments,
    SnapshotEnd,
    Unknown,
    pack_body,
    unpack_body,
)
from qlog.storage.write.segment import BatchFile
from tests.storage.support import FaultyDisk, FullDisk

UUID = b"u" * 16

U62 = st.integers(0, 2**62)
U31 = st.integers(0, 2**31)
pairs = st.lists(
    st.tuples(U62, st.integers(1, 2**31)).map(lambda p: (p[0], p[0] + p[1])), max_size=20
)
flat = pairs.map(lambda ranges: [limit for pair in ranges for limit in pair])
triples = st.lists(st.tuples(U62, st.integers(1, 2**31), U31), max_size=20).map(
    lambda found: [part for first, count, n in found for part in (first, first + count, n)]
)
names = st.text(max_size=10)
records = st.one_of(
    st.builds(journal.Settled, U31, flat),
    st.builds(journal.Restored, U31, flat),
    st.builds(journal.Delivered, U31, U62),
    st.builds(journal.Attempts, U31, triples),
    st.builds(
        journal.LaneState, U31, U62, U62, U62, st.dictionaries(U31, st.integers(0, 2**256 - 1))
    ),
    st.builds(journal.LaneDeleted, U31),
    st.builds(journal.Defined, names, names, st.none() | st.binary(max_size=50)),
    st.builds(journal.Time, U62),
    st.builds(Segments, U31, U62, st.lists(U31)),
    st.builds(SegmentDropped, U31, U62),
    st.builds(SegmentReplaced, U31, st.lists(U31)),
    st.builds(SnapshotEnd),
)


@given(st.lists(records, max_size=20), U62)
def test_records_come_back_from_their_bytes(given: list[Record], durable_lsn: int) -> None:
    found_lsn, found = unpack_body(pack_body(given, durable_lsn))
    assert (found_lsn, found) == (durable_lsn, given)
    assert list(map(type, found)) == list(map(type, given))  # equal tuples may differ in kind


def test_the_bytes_of_a_record_are_those_that_format_3_has() -> None:
    packed = [
        [ACK, 1, 5, 2, 3, 4],
        [LANE_DELETED, 1],
        [DELIVERED, 1, 8],
        [LANE, 1, 900, 10, 20, 2, b"\3" + bytes(31)],
        [SEGMENTS, 4, 77, 2, 3],
        [SEGMENT_DROPPED, 2, 50],
        [SNAPSHOT_END],
        [TIME, 1000],
        [SEGMENT_REPLACED, 1 << 30, 2, 3],
        [ATTEMPTS, 1, 5, 2, 7, -7, 1, 8],
        [RESTORED, 1, 5, 2],
        [DEFINED, "queue", "name", b"value"],
        [DEFINED, "queue", "name", None],
    ]
    typed: list[Record] = [
        journal.Settled(1, [5, 7, 10, 14]),
        journal.LaneDeleted(1),
        journal.Delivered(1, 8),
        journal.LaneState(1, 900, 10, 20, {2: 3}),
        Segments(4, 77, [2, 3]),
        SegmentDropped(2, 50),
        SnapshotEnd(),
        journal.Time(1000),
        SegmentReplaced(1 << 30, [2, 3]),
        journal.Attempts(1, [5, 7, 7, 0, 1, 8]),
        journal.Restored(1, [5, 7]),
        journal.Defined("queue", "name", b"value"),
        journal.Defined("queue", "name", None),
    ]
    assert msgpack.unpackb(pack_body(typed, 7)) == [7, *packed]
    assert unpack_body(msgpack.packb([7, *packed])) == (7, typed)


def test_a_record_that_is_not_known_is_passed_on() -> None:
    assert unpack_body(msgpack.packb([0, [99, 1, 2]])) == (0, [Unknown([99, 1, 2])])


@given(pairs.map(lambda ranges: [(a % 5000, a % 5000 + (b - a) % 2000) for a, b in ranges]))
def test_a_lane_comes_back_from_a_snapshot(ranges: list[tuple[int, int]]) -> None:
    settled = Settled()
    for first, end in ranges:
        settled.mark(first, end)
    settled.delivered = 9
    lanes: dict[int, Settled] = defaultdict(Settled)
    facts = LaneFacts(lanes.__getitem__)
    entries: list[Record] = [*lane_entries(1, 7777, settled)]
    for entry in unpack_body(pack_body(entries, 0))[1]:
        assert isinstance(entry, journal.OfLane)
        facts.apply(entry)
    again = lanes[1]
    assert (again.floor, again.bits, again.full) == (settled.floor, settled.bits, settled.full)
    assert again.delivered == 9 and facts.named_upto[1] >= 7777


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
    writer.roll([Delivered(2, 3)], 77)
    writer.append([Delivered(1, 5)], 80)
    assert records_of(writer, tmp_path) == [
        (77, [Delivered(2, 3), SnapshotEnd()]),
        (80, [Delivered(1, 5)]),
    ]
    assert writer.dirty
    writer.sync()
    assert not writer.dirty
    writer.close()


def test_the_next_file_takes_over_whole(writer: LedgerWriter, tmp_path: Path) -> None:
    writer.roll([], 0)
    while not writer.wants_roll:
        writer.append([Delivered(1, 5)], 0)
    number = writer.position.number
    writer.roll([Delivered(1, 1)], 9)
    assert numbered(FaultyDisk(), tmp_path / "ledger", ".qack") == [1, 2]
    writer.remove_older()
    assert numbered(FaultyDisk(), tmp_path / "ledger", ".qack") == [2]
    assert writer.position.number == number + 1
    assert records_of(writer, tmp_path) == [(9, [Delivered(1, 1), SnapshotEnd()])]
    writer.close()


def test_a_snapshot_larger_than_a_file_gets_a_larger_one(
    writer: LedgerWriter, tmp_path: Path
) -> None:
    writer.roll([Defined("kind", str(at), b"x" * 100) for at in range(2500)], 0)
    assert not writer.wants_roll
    assert sum(len(records) for _, records in records_of(writer, tmp_path)) == 2501
    writer.close()


@pytest.mark.parametrize("operation", ["write", "allocate", "rename"])
def test_a_roll_without_space_leaves_the_old_file_in_use(tmp_path: Path, operation: str) -> None:
    paths = Paths(tmp_path)
    disk = FaultyDisk()
    disk.make_directory(paths.ledger)
    writer = LedgerWriter(disk, paths, UUID, 1, file_bytes=4096)
    writer.roll([], 0)
    writer.append([Delivered(1, 1)], 0)
    full = OSError(errno.ENOSPC, "No space left on device")
    disk.fail = lambda asked: full if asked == operation else None
    with pytest.raises(OSError, match="No space"):
        writer.roll([Delivered(1, 1)], 0)
    disk.fail = lambda asked: None
    writer.append([Delivered(1, 2)], 0)
    assert records_of(writer, tmp_path)[1:] == [(0, [Delivered(1, 1)]), (0, [Delivered(1, 2)])]
    writer.roll([Delivered(1, 1)], 0)
    assert records_of(writer, tmp_path) == [(0, [Delivered(1, 1), SnapshotEnd()])]
    writer.close()


@pytest.fixture
def full(tmp_path: Path) -> tuple[FullDisk, LedgerWriter]:
    """A writer with two files' space, its snapshots so far small; then the disk is full."""
    disk = FullDisk()
    disk.make_directory(Paths(tmp_path).ledger)
    writer = LedgerWriter(disk, Paths(tmp_path), UUID, 1, file_bytes=8192)
    writer.roll([], 0)
    writer.reserve()
    disk.full = True
    return disk, writer


def spare_bytes(tmp_path: Path) -> int:
    return (tmp_path / "ledger" / "next.new").stat().st_size


def test_a_snapshot_that_just_fits_takes_what_is_reserved(
    full: tuple[FullDisk, LedgerWriter], tmp_path: Path
) -> None:
    _, writer = full
    writer.roll([Defined("kind", str(1), b"x" * 5000)], 0)
    assert not writer.wants_roll
    assert records_of(writer, tmp_path) == [
        (0, [Defined("kind", str(1), b"x" * 5000), SnapshotEnd()])
    ]
    writer.append([Delivered(2, 3)], 0)
    writer.close()


def test_a_snapshot_too_large_for_what_is_reserved_leaves_it_reserved(
    full: tuple[FullDisk, LedgerWriter], tmp_path: Path
) -> None:
    disk, writer = full
    with pytest.raises(OSError, match="No space"):
        writer.roll([Defined("kind", str(1), b"x" * 9000)], 0)
    assert spare_bytes(tmp_path) == 8192
    writer.append([Delivered(2, 3)], 0)
    writer.roll([Defined("kind", str(1), b"x" * 100)], 0)  # it has become smaller
    assert len(records_of(writer, tmp_path)) == 1
    disk.full = False
    writer.roll([Defined("kind", str(1), b"x" * 9000)], 0)
    writer.reserve()
    assert spare_bytes(tmp_path) >= 18_000  # as much again
    writer.close()


def test_what_an_earlier_run_reserved_is_kept_and_blank(
    full: tuple[FullDisk, LedgerWriter], tmp_path: Path
) -> None:
    disk, writer = full
    # Killed in the middle of a roll: what it wrote would be valid where it stands.
    disk.fail = lambda operation: OSError(errno.EIO, "gone") if operation == "rename" else None
    with pytest.raises(OSError, match="gone"):
        writer.roll([Delivered(7, 7), Defined("kind", str(8), b"x" * 3000)], 0)
    disk.fail = lambda operation: None
    writer.close()
    writer = LedgerWriter(disk, Paths(tmp_path), UUID, 1, file_bytes=8192, file_id=1, number=1)
    writer.remove_older()
    writer.roll([Delivered(1, 1)], 0)
    assert records_of(writer, tmp_path) == [(0, [Delivered(1, 1), SnapshotEnd()])]
    current = Paths(tmp_path).ledger_file(writer.position.file_id)
    assert not current.read_bytes()[writer.position.position :].strip(b"\0")
    assert current.stat().st_size == 8192
    writer.close()


def test_the_old_file_is_the_next_one_when_there_is_no_space(
    full: tuple[FullDisk, LedgerWriter], tmp_path: Path
) -> None:
    _, writer = full
    for number in range(3):
        start = writer.roll([Delivered(number, 1)], 0)
        writer.remove_older()
        assert start.file_id == writer.position.file_id
        assert start.number == writer.position.number - 1
        writer.append([Delivered(number, 1)], 0)
        assert [records for _, records in records_of(writer, tmp_path)] == [
            [Delivered(number, 1), SnapshotEnd()],
            [Delivered(number, 1)],
        ]
        assert sorted(path.suffix for path in Paths(tmp_path).ledger.iterdir()) == [".new", ".qack"]
    writer.close()


def test_a_kill_right_after_a_roll_leaves_a_reserve(
    full: tuple[FullDisk, LedgerWriter], tmp_path: Path
) -> None:
    disk, writer = full
    writer.roll([Delivered(1, 1)], 0)
    position = writer.position
    writer.close()
    assert not (tmp_path / "ledger" / "next.new").exists()
    writer = LedgerWriter(
        disk,
        Paths(tmp_path),
        UUID,
        2,
        file_bytes=8192,
        file_id=position.file_id,
        number=position.number,
    )
    writer.remove_older()
    writer.roll([Delivered(2, 2)], 0)
    writer.remove_older()
    assert writer.position.file_id == position.file_id + 1
    assert records_of(writer, tmp_path) == [(0, [Delivered(2, 2), SnapshotEnd()])]
    writer.close()


def test_a_start_without_a_reserve_makes_do_with_less(tmp_path: Path) -> None:
    class NearlyFullDisk(FaultyDisk):
        def allocate(self, file: int, size: int) -> None:
            if size > 3000:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().allocate(file, size)

    disk = NearlyFullDisk()
    disk.make_directory(Paths(tmp_path).ledger)
    writer = LedgerWriter(disk, Paths(tmp_path), UUID, 1, file_bytes=8192)
    with pytest.raises(OSError, match="No space"):
        writer.roll([Defined("kind", str(1), b"x" * 2000)], 0)
    writer.roll([Delivered(1, 1)], 0)
    assert not writer.wants_roll
    assert records_of(writer, tmp_path) == [(0, [Delivered(1, 1), SnapshotEnd()])]
    writer.close()


def test_a_file_that_has_more_than_the_old_one_does_not_continue_it(writer: LedgerWriter) -> None:
    """A full disk: the snapshot has what there was no room for in the old file."""
    writer.roll([], 0)
    end = writer.position.number
    assert writer.roll([Delivered(1, 1)], 0, gap=True).number == end + 1
    end = writer.position.number
    assert writer.roll([Delivered(1, 1)], 0).number == end
    writer.close()


def test_files_are_kept_for_who_has_not_read_them_unless_the_disk_is_full(
    full: tuple[FullDisk, LedgerWriter], tmp_path: Path
) -> None:
    disk, writer = full
    disk.full = False
    writer.keep_from = writer.position.number
    for _ in range(3):
        writer.append([Delivered(1, 1)], 0)
        writer.roll([], 0)
        writer.remove_older()
    ledger = tmp_path / "ledger"
    assert numbered(disk, ledger, ".qack") == [1, 2, 3, 4]
    writer.keep_from += 3  # a batch of the first file, its snapshot's successor, and its own
    writer.roll([], 0)
    disk.full = True
    writer.remove_older()
    assert len(numbered(disk, ledger, ".qack")) == 3 and spare_bytes(tmp_path)
    writer.close()
