"""A message byte by byte: every field from the file's header to the body, and every checksum.

A damaged message is taken apart as far as its lengths allow; the rest is shown as bytes. Promises
that the fields of a record cover all of its bytes, in order.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
from xxhash import xxh3_64_intdigest

from qlog.server.amqp import properties as amqp
from qlog.server.amqp.errors import AMQPError
from qlog.storage.bytes import batch, record
from qlog.storage.bytes.checks import place_seed
from qlog.storage.start.examine import Verdict
from qlog.tools.inspect.look.decode import brief, json_value, time_text
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.reader import Entry


@dataclass(frozen=True, slots=True)
class Field:
    """Some bytes of a file, and what they mean."""

    part: str
    position: int
    data: bytes
    name: str
    value: str

    @property
    def hex(self) -> str:
        return self.data.hex()


@dataclass(frozen=True, slots=True)
class Checksum:
    """`right` is None when it cannot be computed."""

    of: str
    right: bool | None
    covers: str
    note: str = ""


_FLAGS = ((record.PERSISTENT, "persistent"), (record.DUE, "due time"))


def _flags(value: int) -> str:
    names = [name for flag, name in _FLAGS if value & flag]
    return f"{value:#x}" + (f" ({', '.join(names)})" if names else "")


def _time(value: int) -> str:
    return f"{value} ({time_text(value) or 'no such time'})"


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


# How the fields of headers are called, in the order of their layouts, and how some are shown.
_FILE_HEADER_NAMES = (
    "magic, version, header length, flags, directory uuid, file id, (unused), first LSN, epoch, "
    "xxh3"
)
_BATCH_HEADER_NAMES = "magic, check, body length, records, epoch, first LSN, durable LSN, xxh3"
_RECORD_HEADER_NAMES = "length, meta length, type, flags, (unused), targets, timestamp, xxh3"
_Shown = dict[str, Callable[[Any], str]]
_SHOWN: _Shown = {
    "magic": lambda value: hex(value) if isinstance(value, int) else repr(value)[2:-1],
    "check": hex,
    "flags": hex,
    "xxh3": hex,
}
_SHOWN_OF_RECORD: _Shown = _SHOWN | {
    "type": lambda value: f"{value} ({'message' if value == record.MESSAGE else 'unknown'})",
    "flags": _flags,
    "timestamp": _time,
}


_Piece = tuple[int, str, str]  # where a field ends, its name and its value
_UNDECODABLE = (
    *(AMQPError, IndexError, ValueError, struct.error),
    *(msgpack.UnpackException, msgpack.exceptions.ExtraData),
)


def _cut(part: str, data: bytes, position: int, pieces: Iterator[_Piece]) -> Iterator[Field]:
    """The fields of a part, of which each begins where the one before it ends."""
    at = 0
    try:
        for end, name, value in pieces:
            yield Field(part, position + at, data[at:end], name, value)
            at = end
    except _UNDECODABLE:
        yield Field(part, position + at, data[at:], "?", "does not decode")


def _split(
    layout: struct.Struct, names: str, data: bytes, shown: _Shown = _SHOWN
) -> Iterator[_Piece]:
    end = 0
    codes = re.findall(r"\d*[a-zA-Z]", layout.format)
    for code, name, value in zip(codes, names.split(", "), layout.unpack(data), strict=True):
        end += struct.calcsize("<" + code)
        yield end, name, shown.get(name, _plain)(value)


def fields_of(
    directory: Directory, entry: Entry, batch_at: int | None
) -> tuple[list[Field], list[Checksum]]:
    """All fields from the file's header on that concern this message, and the checksums.

    `batch_at`: where the header of its batch is, if that is known.
    """
    view = entry.view
    found: list[Field] = []
    checks: list[Checksum] = []
    head = directory.read(view, batch.FILE_HEADER_BYTES, 0)
    if len(head) == batch.FILE_HEADER_BYTES:
        pieces = _split(batch.FILE_HEADER, _FILE_HEADER_NAMES, head)
        found += _cut("file header", head, 0, pieces)
        *_, file_id, _, _, _, digest = batch.FILE_HEADER.unpack(head)
        right = xxh3_64_intdigest(head[:-8], file_id) == digest
        note = ""
        if right and view.header_verdict is not Verdict.WHOLE:
            note = "but it is another file's, or another directory's"
        checks.append(Checksum("file header", right, "the file header", note))
    if batch_at is not None:
        found += _batch(directory, entry, batch_at, checks)
    data = directory.read(view, entry.length, entry.position)
    found += _record(directory, data, entry.position, checks)
    if view.trailer is not None:
        right = view.footer_verdict is Verdict.WHOLE
        note = entry.damage if entry.damage is not None and "footer" in entry.damage else ""
        checks.append(Checksum("footer", right, "where each record of the segment lies", note))
    return found, checks


def batch_position(directory: Directory, entry: Entry) -> int | None:
    """Where the header of a message's batch is, whole or not; None: it is not known."""
    position = entry.position
    for stretch in directory.stretches(entry.view):
        if not stretch.position <= position < stretch.end:
            continue
        if stretch.verdict is Verdict.WHOLE:
            return stretch.position
        data = directory.read(entry.view, stretch.end - stretch.position, stretch.position)
        place = at = position - stretch.position
        while (
            at := data.rfind(batch.BATCH_MAGIC_BYTES, 0, at + len(batch.BATCH_MAGIC_BYTES) - 1)
        ) >= 0:
            header = batch.unpack_batch_header(data, at)
            if header and at < place < at + batch.BATCH_HEADER_BYTES + header.body_bytes:
                return stretch.position + at
            if not at:
                break
        return None
    return None


def _batch(
    directory: Directory, entry: Entry, position: int, checks: list[Checksum]
) -> Iterator[Field]:
    view = entry.view
    data = directory.read(view, batch.BATCH_HEADER_BYTES, position)
    header = batch.unpack_batch_header(data)
    if header is None:
        return
    body_at = position + batch.BATCH_HEADER_BYTES
    body = directory.read(view, header.body_bytes, body_at)
    seed = place_seed(directory.identity.uuid, view.file_id, position)
    right = len(body) == header.body_bytes and batch.batch_is_whole(seed, data, body, header.digest)
    covers = f"bytes {position + 8} to {body_at - 9}"
    checks.append(Checksum("batch header", batch.batch_header_is_whole(seed, data), covers))
    covers = f"bytes {position} to {body_at + header.body_bytes - 1}"
    checks.append(Checksum("batch", right, covers))
    pieces = _split(batch.BATCH_HEADER, _BATCH_HEADER_NAMES, data)
    yield from _cut("batch header", data, position, pieces)


def _record(
    directory: Directory, data: bytes, position: int, checks: list[Checksum]
) -> Iterator[Field]:
    if len(data) < record.RECORD_HEADER_BYTES:
        yield Field("record", position, data, "?", "too short for a record's header")
        return
    head = data[: record.RECORD_HEADER_BYTES]
    pieces = _split(record.RECORD_HEADER, _RECORD_HEADER_NAMES, head, _SHOWN_OF_RECORD)
    yield from _cut("record header", head, position, pieces)
    length, meta_bytes, kind, flags, _, target_count, timestamp, digest = (
        record.RECORD_HEADER.unpack(head)
    )
    meta_at = record.fixed_bytes(flags, target_count)
    body_at = meta_at + meta_bytes
    if not (meta_at <= body_at <= length <= len(data)):
        checks.append(Checksum("record", None, "the body", "the lengths do not fit together"))
        rest = data[record.RECORD_HEADER_BYTES :]
        yield Field("record", position + record.RECORD_HEADER_BYTES, rest, "?", "no telling")
        return
    targets_at = meta_at - record.TARGET_BYTES * target_count
    due_ms = 0
    if flags & record.DUE:
        due = data[record.RECORD_HEADER_BYTES : targets_at]
        (due_ms,) = record.DUE_TIME.unpack(due)
        place = position + record.RECORD_HEADER_BYTES
        yield Field("due time", place, due, "due time", _time(due_ms))
    for at in range(targets_at, meta_at, record.TARGET_BYTES):
        lane_id, qseq = record.TARGET.unpack_from(data, at)
        queue = directory.owners.get(lane_id)
        name = f"lane {lane_id}" if queue is None else f"queue '{queue.name}'"
        yield Field("targets", position + at, data[at : at + 4], "lane", f"{lane_id} ({name})")
        yield Field("targets", position + at + 4, data[at + 4 : at + 12], "offset", str(qseq))
    meta = list(
        _cut("meta", data[meta_at:body_at], position + meta_at, _meta(data[meta_at:body_at]))
    )
    yield from meta
    if meta and meta[-1].name == "properties":
        raw_at = meta[-1].position + len(meta[-1].data) - position
        raw = data[raw_at:body_at]
        yield from _cut("properties", raw, position + raw_at, _properties(raw))
    body = data[body_at:length]
    yield Field("body", position + body_at, body, "body", "")
    seed = record.record_seed(
        xxh3_64_intdigest(data[meta_at:body_at]), timestamp, kind, flags, due_ms
    )
    right = xxh3_64_intdigest(body, seed) == digest
    covers = "meta, times, type, flags and body (not lengths and targets: the batch's does)"
    checks.append(Checksum("record", right, covers))


def _meta(meta: bytes) -> Iterator[_Piece]:
    """An array of exchange, routing key and properties, in msgpack; the properties are left out."""
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(meta)
    if unpacker.read_array_header() != 3:
        raise ValueError("not three values")
    yield unpacker.tell(), "msgpack", "an array of 3"
    for name in ("exchange", "routing key"):
        value = unpacker.unpack()
        yield unpacker.tell(), name, repr(value)
    raw = unpacker.unpack()
    if not isinstance(raw, bytes) or unpacker.tell() != len(meta):
        raise ValueError("no properties")
    yield len(meta) - len(raw), "properties", f"{len(raw)} B"


def _properties(raw: bytes) -> Iterator[_Piece]:
    decoded = amqp.decode_properties(raw)
    spans = list(amqp.spans_of(raw))
    yield 2, "flags", ", ".join(name for name, *_ in spans) or "none is set"
    for name, _, end in spans:
        yield end, name, brief(json_value(getattr(decoded, name)))
