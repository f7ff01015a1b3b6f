"""One message, found in the log by its LSN or by queue and offset, with the batch it stands in."""

from __future__ import annotations

from dataclasses import dataclass

from qlog.storage.bytes.batch import BATCH_HEADER_BYTES, BATCH_MAGIC_BYTES, unpack_batch_header
from qlog.storage.start.examine import FileView, Verdict
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import views_of
from qlog.tools.inspect.look.reader import Entry, messages
from qlog.tools.inspect.look.selection import Selection


@dataclass(frozen=True, slots=True)
class Found:
    """A message and where it lies."""

    view: FileView
    entry: Entry


def by_lsn(directory: Directory, lsn: int) -> Found | None:
    """The message, damaged or not; None when the log does not have it."""
    for view, entry in messages(directory, views_of(directory), lsn):
        if entry.lsn == lsn or (entry.lsn < lsn and (entry.lsn_end is None or entry.lsn_end > lsn)):
            return Found(view, entry)
        if entry.lsn > lsn:
            break
    return None


def by_offset(directory: Directory, lane_ids: frozenset[int], offset: int) -> Found | None:
    """The message at an offset of a queue. A damaged one is found if its targets are known."""
    selection = Selection(lane_ids=lane_ids, offsets=(offset, offset + 1))
    for view, entry in messages(directory, views_of(directory), 0, lane_ids, selection.offsets):
        if entry.record is not None and selection.takes(directory, entry.record):
            return Found(view, entry)
    return None


def batch_position(directory: Directory, found: Found) -> tuple[int | None, bool]:
    """(where the header of its batch is, whether that batch is whole); None: it is not known."""
    position = found.entry.position
    for stretch in directory.stretches(found.view):
        if not stretch.position <= position < stretch.end:
            continue
        if stretch.verdict is Verdict.WHOLE:
            return stretch.position, True
        data = directory.read(found.view, stretch.end - stretch.position, stretch.position)
        return _last_header_before(data, stretch.position, position), False
    return None, False


def _last_header_before(data: bytes, base: int, position: int) -> int | None:
    """In damaged bytes: the batch header that the record at `position` seems to belong to."""
    at = position - base
    while (at := data.rfind(BATCH_MAGIC_BYTES, 0, at + len(BATCH_MAGIC_BYTES) - 1)) >= 0:
        header = unpack_batch_header(data, at)
        if header is not None:
            end = at + BATCH_HEADER_BYTES + header.body_bytes
            if at < position - base < end:
                return base + at
        if not at:
            break
    return None
