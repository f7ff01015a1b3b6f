"""One file of batches: create it, read it back batch by batch, seal it, cut a torn tail.

Log segments and ledger files have the same frame, so both are read here. Whether a bad batch is a
torn tail or damage is decided in start/judge.py, which knows the other files.
"""

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qlog.storage.bytes.batch import (
    BATCH_HEADER_BYTES,
    BATCH_MAGIC_BYTES,
    FILE_HEADER_BYTES,
    BatchHeader,
    FileHeader,
    batch_header_is_whole,
    batch_is_whole,
    unpack_batch_header,
    unpack_file_header,
)
from qlog.storage.bytes.checks import place_seed
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.footer import (
    TRAILER_BYTES,
    Columns,
    Trailer,
    pack_footer,
    unpack_columns,
    unpack_trailer,
)
from qlog.storage.bytes.record import (
    DUE,
    DUE_TIME,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    TARGET,
    TARGET_BYTES,
    fixed_bytes,
)

_WINDOW_BYTES = 1 << 20
_ZEROS = bytes(_WINDOW_BYTES)


@dataclass(frozen=True, slots=True)
class Batch:
    """A whole batch, as read."""

    position: int
    header: BatchHeader
    body: bytes

    @property
    def end(self) -> int:
        return self.position + BATCH_HEADER_BYTES + len(self.body)


class BatchFile:
    """An open file with a file header and batches, for reading."""

    def __init__(self, disk: Disk, path: Path, uuid: bytes, file_id: int) -> None:
        self.path = path
        self.file_id = file_id
        self._disk = disk
        self._uuid = uuid
        self._seed = place_seed(uuid, file_id, 0)
        self._file = disk.open(path)
        try:
            self.size = disk.size(self._file)
            head = disk.read(self._file, FILE_HEADER_BYTES, 0)
        except BaseException:
            disk.close(self._file)
            raise
        self._zeros_from = self.size  # from here to the end of the file zeros were found
        self.header: FileHeader | None = unpack_file_header(head)

    def close(self) -> None:
        self._disk.close(self._file)

    def read(self, size: int, offset: int) -> bytes:
        return self._disk.read(self._file, size, offset)

    @property
    def header_belongs_here(self) -> bool:
        """The header is whole, and is this file's: same directory, same id."""
        header = self.header
        return header is not None and header.uuid == self._uuid and header.file_id == self.file_id

    def header_at(self, position: int) -> BatchHeader | None:
        """The batch header at this place, if it is whole; the body may be damaged."""
        head = self.read(BATCH_HEADER_BYTES, position)
        return unpack_batch_header(head) if self._has_header(position, head) else None

    def batch_at(self, position: int) -> Batch | None:
        """The batch at this place if it is whole."""
        head = self.read(BATCH_HEADER_BYTES, position)
        header = unpack_batch_header(head) if self._has_header(position, head) else None
        if header is None or position + BATCH_HEADER_BYTES + header.body_bytes > self.size:
            return None
        body = self.read(header.body_bytes, position + BATCH_HEADER_BYTES)
        if not batch_is_whole(self._seed ^ position, head, body, header.digest):
            return None
        return Batch(position, header, body)

    def _has_header(self, position: int, data: bytes, offset: int = 0) -> bool:
        """Whether a batch begins at `position`; its bytes are at `offset` in `data`."""
        return batch_header_is_whole(self._seed ^ position, data, offset)

    def batches(self, position: int = FILE_HEADER_BYTES) -> Iterator[Batch]:
        """The unbroken sequence of whole batches from `position` on; bases are not checked."""
        while (batch := self.batch_at(position)) is not None:
            yield batch
            position = batch.end

    def whole_batches_after(self, position: int) -> Iterator[Batch]:
        """Every whole batch from `position` on, also behind damage.

        Publishers can send bodies that look like batches: of these only the header is read.
        """
        end = self.used_end(position)
        while position < end:
            size = min(_WINDOW_BYTES, end - position)
            window = self.read(size + BATCH_HEADER_BYTES, position)  # a header may cross its end
            at = window.find(BATCH_MAGIC_BYTES)
            while 0 <= at < size:
                if self._has_header(position + at, window, at):
                    batch = self.batch_at(position + at)
                    if batch is not None:
                        yield batch
                        position = batch.end
                        break
                at = window.find(BATCH_MAGIC_BYTES, at + 1)
            else:
                position += size

    def used_end(self, position: int) -> int:
        """Where the zeros at the end of the file begin, at `position` or behind it."""
        while self._zeros_from > position:
            start = max(position, self._zeros_from - _WINDOW_BYTES)
            data = self.read(self._zeros_from - start, start)
            if data != _ZEROS[: len(data)]:  # far faster than to strip zeros
                self._zeros_from = start + len(data.rstrip(b"\0"))
                break
            self._zeros_from = start
        return max(position, self._zeros_from)

    def trailer(self) -> Trailer | None:
        """The trailer of a sealed segment, not verified; None when it is not sealed."""
        if self.size < FILE_HEADER_BYTES + TRAILER_BYTES:
            return None
        trailer = unpack_trailer(self.read(TRAILER_BYTES, self.size - TRAILER_BYTES))
        if (
            trailer is None
            or trailer.segment_id != self.file_id
            or trailer.log_end + trailer.footer_bytes + TRAILER_BYTES != self.size
        ):
            return None
        return trailer

    def columns(self, trailer: Trailer) -> Columns | None:
        """The footer of a sealed segment; None when it is damaged."""
        data = self.read(self.size - trailer.log_end, trailer.log_end)
        return unpack_columns(data, trailer, self._uuid)

    def records(self) -> Columns | None:
        """The columns of a sealed segment, from its batches if the footer is damaged.

        None when the segment is not sealed, or not all of its batches are whole.
        """
        trailer = self.trailer()
        if trailer is None:
            return None
        columns = self.columns(trailer)
        if columns is None:
            columns = Columns()
            end = FILE_HEADER_BYTES
            for batch in self.batches():
                columns.extend(columns_of(batch))
                end = batch.end
            if end != trailer.log_end:
                return None
        return columns


def seal(
    disk: Disk, path: Path, uuid: bytes, columns: Columns, base_lsn: int, end_lsn: int, log_end: int
) -> None:
    """Write the footer, cut the file behind it, and sync. Raises OSError.

    It may be done again after a crash in the middle: it replaces whatever is behind `log_end`.
    """
    footer = pack_footer(columns, uuid, int(path.stem), base_lsn, end_lsn, log_end)
    file = disk.open(path, write=True)
    try:
        disk.write(file, [footer], log_end)
        disk.truncate(file, log_end + len(footer))
        disk.sync_data(file)
    finally:
        disk.close(file)


def columns_of(batch: Batch) -> Columns:
    """Where a batch's records lie, and to which lanes they went.

    The records' own hashes are not checked: the batch's hash covers them.
    """
    columns = Columns()
    body = batch.body
    base = batch.position + BATCH_HEADER_BYTES
    unpack = RECORD_HEADER.unpack_from
    one_target = TARGET.unpack_from
    offset = 0
    positions, lengths, sizes, dues = array("I"), array("I"), array("I"), array("Q")
    run_targets: tuple[int, ...] = ()
    expected: tuple[int, ...] = ()  # the targets of a next record that continues the run
    run_due = 0
    times: set[int] = set()
    while offset < len(body):
        length, meta_bytes, _, flags, _, target_count, timestamp_ms, _ = unpack(body, offset)
        fixed = fixed_bytes(flags, target_count)
        due = flags & DUE
        if target_count == 1:
            targets = one_target(body, offset + fixed - TARGET_BYTES)
            following = (targets[0], targets[1] + 1)
        else:
            targets = struct.unpack_from(
                "<" + "IQ" * target_count, body, offset + fixed - TARGET_BYTES * target_count
            )
            following = tuple(part + (index & 1) for index, part in enumerate(targets))
        if targets != expected or due != run_due:
            if positions:
                columns.add(
                    run_targets[0::2], run_targets[1::2], positions, lengths, sizes, dues or None
                )
                positions, lengths, sizes, dues = array("I"), array("I"), array("I"), array("Q")
            run_targets = targets
            run_due = due
        expected = following
        positions.append(base + offset)
        lengths.append(length)
        sizes.append(length - fixed - meta_bytes)
        if due:
            dues.append(DUE_TIME.unpack_from(body, offset + RECORD_HEADER_BYTES)[0])
        times.add(timestamp_ms)
        offset += length
    if positions:
        columns.add(run_targets[0::2], run_targets[1::2], positions, lengths, sizes, dues or None)
        columns.note_times(min(times), max(times))
    return columns
