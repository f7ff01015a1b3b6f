"""Messages back from disk, each verified by itself, in large sequential reads.

It promises that what it returns is what was appended for this lane and qseq, or raises. It knows
files by segment id and nothing about which messages are wanted.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic

import lmdb
from xxhash import xxh3_64_intdigest

from qlog.storage.datadir import Paths, mark_doubt
from qlog.storage.disk import Disk
from qlog.storage.errors import CorruptLog
from qlog.storage.format import (
    MESSAGE,
    RECORD_HEADER_BYTES,
    TARGET_BYTES,
    record_seed,
    run_unpacker,
    unpack_record,
)
from qlog.storage.index import SPILL, Index, IndexDoubt
from qlog.storage.lane import M, Pointers

_FILES_MAX = 64
_METAS_MAX = 4096
_SPAN_BYTES_MAX = 1 << 20  # one read
_GAP_BYTES_MAX = 16 << 10  # rather read so many bytes of others than make another call
_AHEAD_BYTES = 1 << 20


class Reader(Generic[M]):
    """Reads by pointer. `decode` makes a meta from its bytes and the size of its body."""

    def __init__(self, disk: Disk, paths: Paths, decode: Callable[[bytes, int], M]) -> None:
        self._disk = disk
        self._paths = paths
        self._decode = decode
        self._files: OrderedDict[int, int] = OrderedDict()
        self._metas: dict[tuple[bytes, int], M] = {}

    def fetch(
        self, lane_id: int, qseq: int, pointers: Pointers, metas: list[M], bodies: list[bytes]
    ) -> None:
        """Add the messages to the lists. Raises CorruptLog; the lists are then as before."""
        segment_id = pointers.segment_id
        positions = pointers.positions
        lengths = pointers.lengths
        count = len(positions)
        start = 0
        got = len(bodies)
        try:
            file = self._file(segment_id)
            while start < count:
                end = start + 1
                span_end = positions[start] + lengths[start]
                span_max = positions[start] + _SPAN_BYTES_MAX
                while (
                    end < count
                    and 0 <= positions[end] - span_end <= _GAP_BYTES_MAX
                    and positions[end] + lengths[end] <= span_max
                ):
                    span_end = positions[end] + lengths[end]
                    end += 1
                base = positions[start]
                data = self._disk.read(file, span_end - base, base)
                if end == count:
                    self._disk.will_read(file, _AHEAD_BYTES, span_end)
                self._unpack(data, base, lane_id, qseq, pointers, start, end, metas, bodies)
                start = end
        except OSError as error:
            del metas[got:], bodies[got:]
            raise CorruptLog(
                f"{self._path(segment_id)} cannot be read: {error.strerror}; check the disk"
            ) from error
        except CorruptLog:
            del metas[got:], bodies[got:]
            raise

    def forget(self, segment_id: int) -> None:
        """The segment is about to be unlinked."""
        file = self._files.pop(segment_id, None)
        if file is not None:
            self._disk.close(file)

    def close(self) -> None:
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
        file = files[segment_id] = self._disk.open(path)
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
        metas: list[M],
        bodies: list[bytes],
    ) -> None:
        """Slice the records out of `data`, which was read at `base`; the hot path of a cold read."""
        positions = pointers.positions
        lengths = pointers.lengths
        unpack = run_unpacker(1)
        known = self._metas
        head = RECORD_HEADER_BYTES + TARGET_BYTES
        span = len(data)
        expected = qseq + start
        for position, length in zip(positions[start:end], lengths[start:end], strict=True):
            at = position - base
            stop = at + length
            if stop > span or length < head:
                raise self._corrupt(pointers.segment_id, position)
            actual, meta_bytes, kind, flags, _, target_count, timestamp, digest, lane, number = (
                unpack(data, at)
            )
            body_at = at + head + meta_bytes
            if target_count != 1 or lane != lane_id or number != expected:
                if target_count == 1 or not self._is_target(data, at, lane_id, expected):
                    raise self._corrupt(pointers.segment_id, position)
                body_at += TARGET_BYTES * (target_count - 1)
            if actual != length or body_at > stop or kind != MESSAGE:
                raise self._corrupt(pointers.segment_id, position)
            packed = data[body_at - meta_bytes : body_at]
            body = data[body_at:stop]
            meta = known.get((packed, stop - body_at))
            seed = (
                record_seed(xxh3_64_intdigest(packed), timestamp, kind, flags)
                if meta is None
                else record_seed(meta.packed_hash, timestamp, kind, flags)
            )
            if xxh3_64_intdigest(body, seed) != digest:
                raise self._corrupt(pointers.segment_id, position)
            if meta is None:
                if len(known) >= _METAS_MAX:
                    known.clear()
                meta = known[packed, stop - body_at] = self._decode(packed, stop - body_at)
            metas.append(meta)
            bodies.append(body)
            expected += 1

    @staticmethod
    def _is_target(data: bytes, at: int, lane_id: int, qseq: int) -> bool:
        record = unpack_record(data, at)
        if record is None:
            return False
        return (lane_id, qseq) in zip(record.targets[0::2], record.targets[1::2], strict=True)

    def _corrupt(self, segment_id: int, position: int) -> CorruptLog:
        return CorruptLog(
            f"{self._path(segment_id)} is damaged at byte {position}: a message there is not what "
            "was written; run `qlog inspect verify`"
        )


class DiskShelf(Generic[M]):
    """What lanes read from: the index says where, the reader reads."""

    index: Index  # set when recovery is done with it; nothing is read before

    def __init__(self, disk: Disk, paths: Paths, reader: Reader[M]) -> None:
        self._disk = disk
        self._paths = paths
        self.fetch = reader.fetch

    def pointers(self, lane_id: int, qseq: int, count_max: int) -> Pointers:
        """See `Shelf`. Raises CorruptLog when the index is wrong; the next start rebuilds it."""
        try:
            return self.index.pointers(lane_id, qseq, count_max)
        except (IndexDoubt, lmdb.Error) as doubt:
            mark_doubt(self._disk, self._paths)
            raise CorruptLog(
                f"the index {self._paths.index} is damaged ({doubt}); start again, and it is rebuilt"
            ) from doubt
