"""Layouts: what is packed is unpacked, and no flipped bit goes unseen."""

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.storage.bytes.batch import (
    BATCH_HEADER_BYTES,
    FILE_HEADER_BYTES,
    SEGMENT_MAGIC,
    batch_header_is_whole,
    batch_is_whole,
    pack_batch,
    pack_file_header,
    unpack_batch_header,
    unpack_file_header,
)
from qlog.storage.bytes.checks import place_seed
from qlog.storage.bytes.footer import (
    TRAILER_BYTES,
    Columns,
    pack_footer,
    unpack_columns,
    unpack_trailer,
)
from qlog.storage.bytes.record import (
    DUE,
    DUE_BYTES,
    MESSAGE,
    PERSISTENT,
    Meta,
    measure,
    pack_run,
    record_lengths,
    unpack_alike,
    unpack_records,
)
from tests.storage.support import envelope

UUID = bytes(range(16))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_file_header_says_what_was_packed() -> None:
    data = pack_file_header(SEGMENT_MAGIC, UUID, 7, 1 << 40, 3)
    assert len(data) == FILE_HEADER_BYTES
    header = unpack_file_header(data + b"more")
    assert header is not None
    assert (header.magic, header.version, header.uuid) == (SEGMENT_MAGIC, 3, UUID)
    assert (header.file_id, header.base, header.epoch) == (7, 1 << 40, 3)


@pytest.mark.parametrize("bit", range(FILE_HEADER_BYTES * 8))
def test_any_flipped_bit_of_a_file_header_is_seen(bit: int) -> None:
    assert unpack_file_header(flipped(pack_file_header(SEGMENT_MAGIC, UUID, 7, 9, 3), bit)) is None


def test_the_first_bytes_of_a_batch_are_fixed() -> None:
    """A change here is a new format version."""
    data = pack_batch(place_seed(UUID, 1, 64), 1, 2, 3, 4, b"body")
    assert data[:40].hex() == (
        "7cb4518f" "8283b5de" "04000000" "01000000"
        "0200000000000000" "0300000000000000" "0400000000000000"
    )  # fmt: skip


_u32 = st.integers(0, 2**32 - 1)
_u64 = st.integers(0, 2**64 - 1)


def packed(
    lanes: Sequence[int],
    firsts: Sequence[int],
    metas: Sequence[Meta],
    bodies: Sequence[bytes],
    flags: int,
    times_ms: Sequence[int],
    dues_ms: Sequence[int] | None,
) -> "tuple[bytes, array[int], array[int]]":
    """A run's records, their lengths, and the sizes of their bodies."""
    measured = record_lengths(len(lanes), metas, bodies, has_dues=dues_ms is not None)
    lengths, sizes = measured.lengths, measured.sizes
    assert measured.record_bytes == sum(lengths) and measured.body_bytes == sum(sizes)
    same_time = len(set(times_ms)) == 1
    times = times_ms[0], None if same_time else times_ms
    parts = pack_run(lanes, firsts, metas, bodies, lengths, flags, *times, dues_ms)
    return b"".join(parts), lengths, sizes


@given(
    seed=_u64,
    other_seed=_u64,
    fields=st.tuples(_u32, _u64, _u64, _u64),
    body=st.binary(max_size=50),
    before=st.binary(max_size=9),
    bit=st.integers(0, 8 * BATCH_HEADER_BYTES - 1),
)
def test_a_batch_header_says_what_was_packed_and_is_whole_only_there(
    seed: int,
    other_seed: int,
    fields: tuple[int, int, int, int],
    body: bytes,
    before: bytes,
    bit: int,
) -> None:
    packed = pack_batch(seed, *fields, body)
    at = len(before)
    assert len(packed) == BATCH_HEADER_BYTES
    header = unpack_batch_header(before + packed, at)
    assert header is not None
    assert (header.count, header.epoch, header.base, header.durable) == fields
    assert header.body_bytes == len(body)
    assert batch_header_is_whole(seed, before + packed, at)  # without a look at the body
    assert batch_header_is_whole(other_seed, packed) == (other_seed == seed)
    assert not batch_header_is_whole(seed, packed[:-1])
    damaged = flipped(packed, bit)
    if bit < 32:
        assert unpack_batch_header(damaged) is None
    else:  # the last eight bytes are of the whole batch
        assert batch_header_is_whole(seed, damaged) == (bit >= 8 * (BATCH_HEADER_BYTES - 8))


@given(st.binary(max_size=50), st.data())
def test_any_flipped_bit_of_a_batch_is_seen(body: bytes, data: st.DataObject) -> None:
    seed = place_seed(UUID, 1, 64)
    packed = pack_batch(seed, 1, 2, 3, 4, body) + body
    bit = data.draw(st.integers(0, len(packed) * 8 - 1))
    damaged = flipped(packed, bit)
    header = unpack_batch_header(damaged)
    whole = header is not None and (
        header.body_bytes == len(body)
        and batch_is_whole(seed, damaged[:48], damaged[BATCH_HEADER_BYTES:], header.digest)
    )
    assert not whole


def test_a_batch_is_valid_only_where_it_was_written() -> None:
    body = b"body"
    packed = pack_batch(place_seed(UUID, 1, 64), 1, 2, 3, 4, body)
    header = unpack_batch_header(packed)
    assert header is not None
    assert batch_is_whole(place_seed(UUID, 1, 64), packed, body, header.digest)
    for seed in (place_seed(UUID, 1, 65), place_seed(UUID, 2, 64), place_seed(b"x" * 16, 1, 64)):
        assert not batch_is_whole(seed, packed, body, header.digest)


@given(
    bodies=st.lists(st.binary(max_size=40), min_size=1, max_size=8),
    names=st.lists(st.binary(max_size=10), min_size=1, max_size=3),
    lanes=st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**63)), min_size=1, max_size=4
    ),
    timestamp=st.integers(0, 2**63),
    due=st.none() | st.integers(1, 2**63),
    same_time=st.booleans(),
)
def test_records_come_back_as_they_were(
    bodies: list[bytes],
    names: list[bytes],
    lanes: list[tuple[int, int]],
    timestamp: int,
    due: int | None,
    same_time: bool,
) -> None:
    metas = [envelope(names[at % len(names)]) for at in range(len(bodies))]
    ids = [lane for lane, _ in lanes]
    firsts = [first for _, first in lanes]
    dues = None if due is None else [due + at for at in range(len(bodies))]
    times = [timestamp + (0 if same_time else at) for at in range(len(bodies))]
    data, lengths, sizes = packed(ids, firsts, metas, bodies, PERSISTENT, times, dues)
    assert sum(lengths) == len(data)
    measured = measure(data, lengths)
    assert measured.sizes == sizes
    assert measured.dues_ms == (None if dues is None else array("Q", dues))
    assert (measured.earliest_ms, measured.latest_ms) == (times[0], times[-1])
    records = list(unpack_records(data))
    assert [record.body for record in records] == bodies
    assert [record.meta for record in records] == [meta.packed for meta in metas]
    assert [record.length for record in records] == list(lengths)
    for at, record in enumerate(records):
        assert record.whole and record.kind == MESSAGE
        assert record.flags == (PERSISTENT if dues is None else PERSISTENT | DUE)
        assert record.due_ms == (0 if dues is None else dues[at])
        assert record.timestamp_ms == times[at]
        assert record.targets[0::2] == tuple(ids)
        assert record.targets[1::2] == tuple(first + at for first in firsts)


def test_a_flipped_bit_of_meta_body_or_times_makes_a_record_unwhole() -> None:
    data, _, _ = packed([1], [2], [envelope(b"meta")], [b"body"], 0, [5], [5])
    times = range(16 * 8, 24 * 8), range(32 * 8, 40 * 8)  # of the message, and when it is due
    for bit in (*times[0], *times[1], *range(data.index(b"meta") * 8, len(data) * 8)):
        assert not any(record.whole for record in unpack_records(flipped(data, bit)))


def test_the_same_change_of_both_times_does_not_go_unseen() -> None:
    data, _, _ = packed([1], [2], [envelope(b"meta")], [b"body"], 0, [5], [5])
    for bit in range(64):
        twice = flipped(flipped(data, 16 * 8 + bit), 32 * 8 + bit)
        assert not any(record.whole for record in unpack_records(twice))


@given(
    runs=st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 2**63), st.none() | st.integers(1, 2**63)),
        min_size=1,
        max_size=3,
    ),
    body_bytes=st.integers(0, 30),
    bit=st.none() | st.integers(0, 10_000),
)
def test_records_that_are_alike_are_unpacked_together(
    runs: list[tuple[int, int, int | None]], body_bytes: int, bit: int | None
) -> None:
    """Or not at all, when anything is wrong with them."""
    data = b""
    qseq = 7
    for count, timestamp, due in runs:
        bodies = [b"%03d" % (qseq + at) + b"x" * body_bytes for at in range(count)]
        dues = None if due is None else [due + at for at in range(count)]
        times = [timestamp] * count
        data += packed([3], [qseq], [envelope()] * count, bodies, 1, times, dues)[0]
        qseq += count
    if bit is not None:
        data = flipped(data, bit % (8 * len(data)))
    records = list(unpack_records(data))
    length = records[0].length if records else 0
    together = unpack_alike(data, qseq - 7, length)
    same_flags = len({due is None for _, _, due in runs}) == 1
    if bit is None:
        assert (together is not None) == same_flags
    if together is None:
        return
    assert len(records) == qseq - 7 and all(record.whole for record in records)
    assert together.lane_id == records[0].targets[0]
    assert together.bodies == tuple(record.body for record in records)
    assert together.times_ms == tuple(record.timestamp_ms for record in records)
    dues_ms = tuple(record.due_ms for record in records)
    assert (together.dues_ms or (0,) * len(records)) == dues_ms


def test_a_run_without_due_times_is_as_small_as_it_was() -> None:
    _, with_dues, _ = packed([1], [2], [envelope()], [b"body"], 0, [5], [9])
    _, without, _ = packed([1], [2], [envelope()], [b"body"], 0, [5], None)
    assert with_dues[0] == without[0] + DUE_BYTES


def test_a_footer_comes_back_and_no_flipped_bit_goes_unseen() -> None:
    columns = Columns()
    columns.add([1], [10], array("I", [112, 200]), array("I", [88, 50]), array("I", [9, 8]))
    columns.note_times(1000, 1000)
    columns.add(
        [1, 2], [12, 0], array("I", [250]), array("I", [60]), array("I", [7]), array("Q", [1 << 41])
    )
    columns.note_times(900, 1001)
    data = pack_footer(columns, UUID, 3, 100, 103, 310)
    assert len(data) == columns.packed_bytes
    trailer = unpack_trailer(data[-TRAILER_BYTES:])
    assert trailer is not None
    assert (trailer.base_lsn, trailer.end_lsn, trailer.log_end) == (100, 103, 310)
    assert (trailer.earliest_ms, trailer.latest_ms) == (900, 1001)
    found = unpack_columns(data, trailer, UUID)
    assert found is not None
    assert list(found.runs()) == list(columns.runs())
    assert [run.dues_ms for run in found.runs()] == [None, array("Q", [1 << 41])]
    for bit in range(len(data) * 8):
        damaged = flipped(data, bit)
        trailer = unpack_trailer(damaged[-TRAILER_BYTES:])
        assert trailer is None or unpack_columns(damaged, trailer, UUID) is None
