"""Reads messages from the disk, in large sequential reads, and verifies each by itself.

Promises to return what was appended for the lane and qseq, or to raise. Knows files by segment id,
and nothing about which messages are wanted.
"""

import struct
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import lt
from typing import Generic

import lmdb
from xxhash import xxh3_64_intdigest

from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.record import (
    DUE,
    MESSAGE,
    RECORD_HEADER_BYTES,
    TARGET_BYTES,
    Record,
    fixed_bytes,
    record_seed,
    run_unpacker,
    unpack_alike,
    unpack_record,
)
from qlog.storage.errors import CorruptLog, OutOfDescriptors, Shortage, shortage_of
from qlog.storage.index.index import SPILL, Index
from qlog.storage.index.rows import IndexDoubt
from qlog.storage.lanes.run import M, Pointers, Slice

_FILES_MAX = 64
_METAS_MAX = 4096
_META_BYTES_MAX = 1024  # larger metas are not remembered: 4096 of them would be much
# After so many unknown metas in a row, the rest of a read is not looked up: each of its messages
# has a meta of its own.
_STRANGERS_MAX = 16
_SPAN_BYTES_MAX = 1 << 20  # the largest read
_GAP_BYTES_MAX = 16 << 10  # reading so many unwanted bytes is cheaper than another call
_AHEAD_BYTES = 1 << 20
_AHEAD_MIN_BYTES = 64 << 10  # when reads in order are smaller, the system reads ahead by itself
_ALIKE_MIN = 8  # records; fewer are looked at one by one
_HEAD_BYTES = RECORD_HEADER_BYTES + TARGET_BYTES  # of a record with one target
_UNPACK_ONE = run_unpacker(1)


class Reader(Generic[M]):
    """Reads by pointer. `decode` is that of `Store.open`."""

    def __init__(self, disk: Disk, paths: Paths, decode: Callable[[bytes, int, int], M]) -> None:
        self._disk = disk
        self._paths = paths
        self._decode = decode
        self._files: OrderedDict[int, int] = OrderedDict()
        self._metas: dict[tuple[bytes, int], M] = {}

    def fetch(self, lane_id: int, qseq: int, pointers: Pointers, into: Slice[M]) -> None:
        """Add the messages to the slice.

        Raises CorruptLog, OutOfDescriptors; the slice is then as before.
        """
        segment_id = pointers.segment_id
        positions = pointers.positions
        lengths = pointers.lengths
        count = len(positions)
        start = 0
        got = len(into.bodies)
        try:
            file = self._file(segment_id)
            while start < count:
                end, span_end = _span(positions, lengths, start)
                base = positions[start]
                data = self._disk.read(file, span_end - base, base)
                if end == count and span_end - base > _AHEAD_MIN_BYTES:
                    self._disk.will_read(file, _AHEAD_BYTES, span_end)
                alike = None
                length = lengths[start]
                if (
                    end - start >= _ALIKE_MIN
                    and positions[end - 1] - base == length * (end - start - 1)
                    and lengths[start:end].count(length) == end - start
                ):
                    alike = unpack_alike(data, end - start, length)
                if alike is not None and alike[:2] == (lane_id, qseq + start):
                    size = len(alike.bodies[0])
                    many = end - start
                    meta = self._meta(alike.packed, size)
                    into.add(
                        [meta] * many, alike.bodies, alike.times_ms, [size] * many, alike.dues_ms
                    )
                else:
                    self._unpack(data, base, lane_id, qseq, pointers, start, end, into)
                start = end
        except OSError as error:
            into.keep(got)
            if shortage_of(error) is Shortage.DESCRIPTORS:
                raise OutOfDescriptors(
                    f"{self._path(segment_id)} cannot be opened now: {error.strerror}; "
                    "raise `ulimit -n`"
                ) from error
            raise CorruptLog(
                f"{self._path(segment_id)} cannot be read: {error.strerror}; check the disk"
            ) from error
        except CorruptLog:
            into.keep(got)
            raise

    def _meta(self, packed: bytes, body_bytes: int) -> M:
        """The decoded meta. Call it only for bytes that were verified."""
        meta = self._metas.get((packed, body_bytes))
        if meta is None:
            meta = self._decode(packed, body_bytes, xxh3_64_intdigest(packed))
            self._remember(meta, packed, body_bytes)
        return meta

    def _remember(self, meta: M, packed: bytes, body_bytes: int) -> None:
        known = self._metas
        if len(packed) <= _META_BYTES_MAX:
            if len(known) >= _METAS_MAX:
                known.clear()
            known[packed, body_bytes] = meta

    def forget(self, segment_id: int) -> None:
        """The segment is about to be unlinked."""
        file = self._files.pop(segment_id, None)
        if file is not None:
            self._disk.close(file)

    def close(self) -> None:
        """Close all files; those that are read again are opened again."""
        for file in self._files.values():
            self._disk.close(file)
        self._files.clear()

    def _path(self, segment_id: int) -> str:
        paths = self._paths
        path = paths.spill_file if segment_id >= SPILL else paths.segment
        return str(path(segment_id))

    def _file(self, segment_id: int) -> int:
        files = self._files
        file = files.get(segment_id)
        if file is not None:
            files.move_to_end(segment_id)
            return file
        paths = self._paths
        path = (paths.spill_file if segment_id >= SPILL else paths.segment)(segment_id)
        try:
            file = self._disk.open(path)
        except OSError as error:
            if not files or shortage_of(error) is not Shortage.DESCRIPTORS:
                raise
            self.close()  # the reader itself may hold the descriptors
            file = self._disk.open(path)
        files[segment_id] = file
        if len(files) > _FILES_MAX:
            self._disk.close(files.popitem(last=False)[1])
        return file

    def _unpack(
        self,
        data: bytes,
        base: int,
        lane_id: int,
        qseq: int,
        pointers: Pointers,
        start: int,
        end: int,
        into: Slice[M],
    ) -> None:
        """Slice the records out of `data`, which was read at `base`. Speed matters here."""
        positions = pointers.positions
        lengths = pointers.lengths
        unpack = _UNPACK_ONE
        known = self._metas
        metas: list[M] = []
        bodies: list[bytes] = []
        times: list[int] = []
        dues: dict[int, int] = {}  # by place
        expected = qseq + start
        packed = b""
        packed_hash = 0
        body_bytes = -1
        meta: M | None = None
        strangers = 0
        for position, length in zip(positions[start:end], lengths[start:end], strict=True):
            at = position - base
            try:
                actual, meta_bytes, kind, flags, _, target_count, time, digest, lane, number = (
                    unpack(data, at)
                )
            except struct.error:  # the file ends here
                raise self._corrupt(pointers.segment_id, position) from None
            body_at = at + _HEAD_BYTES + meta_bytes
            due = 0
            if target_count != 1 or flags & DUE:
                record = unpack_record(data, at)
                if record is None or not _goes_to(record, lane_id, expected):
                    raise self._corrupt(pointers.segment_id, position)
                body_at = at + fixed_bytes(flags, target_count) + meta_bytes
                due = record.due_ms
            elif lane != lane_id or number != expected:
                raise self._corrupt(pointers.segment_id, position)
            body = data[body_at : at + length]
            before, packed = packed, data[body_at - meta_bytes : body_at]
            if packed != before or len(body) != body_bytes:
                body_bytes = len(body)
                meta = known.get((packed, body_bytes)) if strangers < _STRANGERS_MAX else None
                strangers = strangers + 1 if meta is None else 0
                packed_hash = xxh3_64_intdigest(packed) if meta is None else meta.packed_hash
            if due:
                seed = record_seed(packed_hash, time, kind, flags, due)
            else:
                seed = packed_hash ^ time ^ (kind << 56) ^ (flags << 48)
            if xxh3_64_intdigest(body, seed) != digest or actual != length or kind != MESSAGE:
                raise self._corrupt(pointers.segment_id, position)
            if meta is None:  # decoded only now, after it was verified
                meta = self._decode(packed, body_bytes, packed_hash)
                if strangers < _STRANGERS_MAX:
                    self._remember(meta, packed, body_bytes)
            if due:
                dues[len(bodies)] = due
            metas.append(meta)
            bodies.append(body)
            times.append(time)
            expected += 1
        due_list = [dues.get(at, 0) for at in range(len(bodies))] if dues else None
        into.add(metas, bodies, times, list(map(len, bodies)), due_list)

    def _corrupt(self, segment_id: int, position: int) -> CorruptLog:
        return CorruptLog(
            f"{self._path(segment_id)} is damaged at byte {position}: a message there is not what "
            "was written; run `qlog inspect segments`"
        )


def _goes_to(record: Record, lane_id: int, qseq: int) -> bool:
    return (lane_id, qseq) in zip(record.targets[0::2], record.targets[1::2], strict=True)


def _span(positions: "array[int]", lengths: "array[int]", start: int) -> tuple[int, int]:
    """How much to read at once from record `start` on: (the record behind, where the bytes end)."""
    count = len(positions)
    end = positions[-1] + lengths[-1]
    size = end - positions[start]
    if (  # as nearly always: all of it, without a look at each
        start == 0
        and size <= _SPAN_BYTES_MAX
        and size - sum(lengths) <= _GAP_BYTES_MAX
        and all(map(lt, positions, positions[1:]))
    ):
        return count, end
    limit = positions[start] + _SPAN_BYTES_MAX
    end = positions[start] + lengths[start]
    at = start + 1
    while (
        at < count
        and 0 <= positions[at] - end <= _GAP_BYTES_MAX
        and positions[at] + lengths[at] <= limit
    ):
        end = positions[at] + lengths[at]
        at += 1
    return at, end


class DiskShelf(Generic[M]):
    """The `Shelf` of all lanes: the index says where messages are, the reader reads them."""

    index: Index  # set when recovery is done with it; nothing is read before
    on_doubt: Callable[[Exception], CorruptLog]  # set by the store
    may_restore: Callable[[int], bool]  # set by the store

    def __init__(self, reader: Reader[M]) -> None:
        self.fetch = reader.fetch

    def pointers(self, lane_id: int, qseq: int, count_max: int) -> Pointers:
        """See `Shelf`. When the index is wrong, `on_doubt` is told, and says what to raise."""
        try:
            return self.index.pointers(lane_id, qseq, count_max)
        except (IndexDoubt, lmdb.Error) as doubt:
            raise self.on_doubt(doubt) from doubt

    def segments(self, lane_id: int, block: int) -> Sequence[int]:
        """See `Shelf`."""
        try:
            return self.index.segments_of(lane_id, block)
        except (IndexDoubt, lmdb.Error) as doubt:
            raise self.on_doubt(doubt) from doubt
