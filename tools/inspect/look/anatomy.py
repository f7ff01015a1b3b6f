"""A message byte by byte: every field from the file's header to the body, and every checksum.

A damaged message is taken apart as far as its lengths allow; the rest is shown as bytes. Promises
that the fields of a record cover all of its bytes, in order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import msgpack
from xxhash import xxh3_64_intdigest

from qlog.server.amqp.errors import AMQPError
from qlog.server.amqp.properties import (
    STEP_MODE,
    STEP_SHORTSTR,
    STEP_TABLE,
    Properties,
    decode_properties,
    steps_of,
)
from qlog.server.amqp.values import skip_table
from qlog.storage.bytes.batch import (
    BATCH_HEADER,
    BATCH_HEADER_BYTES,
    FILE_HEADER,
    FILE_HEADER_BYTES,
    batch_header_is_whole,
    batch_is_whole,
    unpack_batch_header,
)
from qlog.storage.bytes.checks import place_seed
from qlog.storage.bytes.record import (
    DUE,
    DUE_TIME,
    MESSAGE,
    PERSISTENT,
    RECORD_HEADER,
    RECORD_HEADER_BYTES,
    TARGET_BYTES,
    fixed_bytes,
    record_seed,
)
from qlog.tools.inspect.look.decode import brief, json_value, time_text
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.find import Found


@dataclass(frozen=True, slots=True)
class Field:
    """Some bytes of a file, and what they mean."""

    part: str
    position: int
    data: bytes
    name: str
    value: str

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "part": self.part,
            "name": self.name,
            "position": self.position,
            "hex": self.data.hex(),
            "value": self.value,
        }


@dataclass(frozen=True, slots=True)
class Checksum:
    """`right` is None when it cannot be computed."""

    what: str
    right: bool | None
    covers: str
    note: str = ""


_FILE_HEADER_NAMES = (
    "magic",
    "version",
    "header length",
    "flags",
    "directory uuid",
    "file id",
    "(unused)",
    "first LSN",
    "epoch",
    "xxh3",
)
_BATCH_HEADER_NAMES = (
    "magic",
    "check",
    "body length",
    "records",
    "epoch",
    "first LSN",
    "durable LSN",
    "xxh3",
)
_FLAGS = ((PERSISTENT, "persistent"), (DUE, "due time"))
_RECORD_HEADER_NAMES = (
    "length",
    "meta length",
    "type",
    "flags",
    "(unused)",
    "targets",
    "timestamp",
    "xxh3",
)


def _split(
    part: str, layout: struct.Struct, names: tuple[str, ...], data: bytes, position: int
) -> Iterator[tuple[Field, Any]]:
    """The fields of a header, with their values."""
    offset = 0
    codes = _codes(layout.format)
    for code, name, value in zip(codes, names, layout.unpack(data), strict=True):
        size = struct.calcsize("<" + code)
        text = value.hex() if isinstance(value, bytes) else str(value)
        if name in ("xxh3", "check", "flags") or (name == "magic" and isinstance(value, int)):
            text = f"{value:#x}"
        elif name == "magic":
            text = repr(value)[2:-1]
        yield Field(part, position + offset, data[offset : offset + size], name, text), value
        offset += size


def _codes(layout: str) -> Iterator[str]:
    digits = ""
    for char in layout.lstrip("<"):
        if char.isdigit():
            digits += char
        else:
            yield digits + char
            digits = ""


def fields_of(
    directory: Directory, found: Found, batch_position: int | None
) -> tuple[list[Field], list[Checksum]]:
    """All fields from the file's header on that concern this message, and the checksums."""
    view, entry = found.view, found.entry
    result: list[Field] = []
    checks: list[Checksum] = []
    head = directory.read(view, FILE_HEADER_BYTES, 0)
    if len(head) == FILE_HEADER_BYTES:
        split = list(_split("file header", FILE_HEADER, _FILE_HEADER_NAMES, head, 0))
        result += [field for field, _ in split]
        file_id, digest = split[5][1], split[-1][1]
        right = xxh3_64_intdigest(head[:-8], file_id) == digest
        note = ""
        if right and str(view.header_verdict) != "whole":
            note = "but it is another file's, or another directory's"
        checks.append(Checksum("file header", right, "the file header", note))
    if batch_position is not None:
        result += _batch(directory, found, batch_position, checks)
    data = directory.read(view, entry.length, entry.position)
    result += _record(directory, data, entry.position, checks)
    if view.trailer is not None:
        right = str(view.footer_verdict) == "whole"
        note = "" if entry.damage is None or "footer" not in entry.damage else entry.damage
        checks.append(Checksum("footer", right, "where each record of the segment lies", note))
    return result, checks


def _batch(
    directory: Directory, found: Found, position: int, checks: list[Checksum]
) -> list[Field]:
    view = found.view
    data = directory.read(view, BATCH_HEADER_BYTES, position)
    header = unpack_batch_header(data)
    if header is None:
        return []
    body = directory.read(view, header.body_bytes, position + BATCH_HEADER_BYTES)
    seed = place_seed(directory.identity.uuid, view.file_id, position)
    right = len(body) == header.body_bytes and batch_is_whole(seed, data, body, header.digest)
    sound = batch_header_is_whole(seed, data)
    covers = f"bytes {position + 8} to {position + BATCH_HEADER_BYTES - 9}"
    checks.append(Checksum("batch header", sound, covers))
    covers = f"bytes {position} to {position + BATCH_HEADER_BYTES + header.body_bytes - 1}"
    checks.append(Checksum("batch", right, covers))
    return [
        field
        for field, _ in _split("batch header", BATCH_HEADER, _BATCH_HEADER_NAMES, data, position)
    ]


def _record(
    directory: Directory, data: bytes, position: int, checks: list[Checksum]
) -> Iterator[Field]:
    if len(data) < RECORD_HEADER_BYTES:
        yield Field("record", position, data, "?", "too short for a record's header")
        return
    head = data[:RECORD_HEADER_BYTES]
    for field, value in _split(
        "record header", RECORD_HEADER, _RECORD_HEADER_NAMES, head, position
    ):
        text = field.value
        if field.name == "type":
            text += " (message)" if value == MESSAGE else " (unknown)"
        elif field.name == "flags":
            names = [name for flag, name in _FLAGS if value & flag]
            text += f" ({', '.join(names)})" if names else ""
        elif field.name == "timestamp":
            text += f" ({time_text(value) or 'no such time'})"
        yield Field(field.part, field.position, field.data, field.name, text)
    length, meta_bytes, kind, flags, _, target_count, timestamp, digest = RECORD_HEADER.unpack(head)
    meta_at = fixed_bytes(flags, target_count)
    body_at = meta_at + meta_bytes
    if not (meta_at <= body_at <= length <= len(data)):
        checks.append(Checksum("record", None, "the body", "the lengths do not fit together"))
        yield Field(
            "record", position + RECORD_HEADER_BYTES, data[RECORD_HEADER_BYTES:], "?", "no telling"
        )
        return
    targets_at = meta_at - TARGET_BYTES * target_count
    due_ms = 0
    if flags & DUE:
        (due_ms,) = DUE_TIME.unpack_from(data, RECORD_HEADER_BYTES)
        due = data[RECORD_HEADER_BYTES:targets_at]
        text = f"{due_ms} ({time_text(due_ms) or 'no such time'})"
        yield Field("due time", position + RECORD_HEADER_BYTES, due, "due time", text)
    for at in range(targets_at, meta_at, TARGET_BYTES):
        lane_id, qseq = struct.unpack_from("<IQ", data, at)
        queue = directory.queue_of(lane_id)
        name = f"lane {lane_id}" if queue is None else f"queue '{queue.name}'"
        yield Field("targets", position + at, data[at : at + 4], "lane", f"{lane_id} ({name})")
        yield Field("targets", position + at + 4, data[at + 4 : at + 12], "offset", str(qseq))
    yield from _meta(data[meta_at:body_at], position + meta_at)
    body = data[body_at:length]
    yield Field("body", position + body_at, body, "body", "")
    seed = record_seed(xxh3_64_intdigest(data[meta_at:body_at]), timestamp, kind, flags, due_ms)
    right = xxh3_64_intdigest(body, seed) == digest
    covers = "meta, times, type, flags and body (not lengths and targets: the batch's does)"
    checks.append(Checksum("record", right, covers))


def _meta(meta: bytes, position: int) -> Iterator[Field]:
    spans: list[tuple[int, int, Any]] = []
    unpacker = msgpack.Unpacker(strict_map_key=False)
    unpacker.feed(meta)
    start = 0
    try:
        count = unpacker.read_array_header()
        at = unpacker.tell()
        if count != 3:
            raise ValueError("not three values")
        yield Field("meta", position, meta[:at], "msgpack", "an array of 3")
        start = at
        for _ in range(count):
            value = unpacker.unpack()
            spans.append((start, unpacker.tell(), value))
            start = unpacker.tell()
        _, end, raw = spans[2]
        if not isinstance(raw, bytes) or end != len(meta):
            raise ValueError("no properties")
    except (ValueError, msgpack.UnpackException, msgpack.exceptions.ExtraData):
        yield Field("meta", position + start, meta[start:], "?", "does not decode")
        return
    for (first, end, value), name in zip(spans, ("exchange", "routing key"), strict=False):
        yield Field("meta", position + first, meta[first:end], name, repr(value))
    first, end, _ = spans[2]
    head = end - first - len(raw)
    yield Field("meta", position + first, meta[first : first + head], "properties", f"{len(raw)} B")
    yield from _properties(raw, position + first + head)


def _properties(raw: bytes, position: int) -> Iterator[Field]:
    at = 0
    try:
        flags = int.from_bytes(raw[:2], "big")
        names = [
            field.name for bit, field in enumerate(fields(Properties)) if flags & 1 << (15 - bit)
        ]
        decoded = decode_properties(raw)
        yield Field("properties", position, raw[:2], "flags", ", ".join(names) or "none is set")
        at = 2
        for name, step in zip(names, steps_of(raw[:2]), strict=True):
            end = at + step
            if step == STEP_SHORTSTR:
                end = at + 1 + raw[at]
            elif step == STEP_TABLE:
                end = skip_table(raw, at)
            elif step == STEP_MODE:
                end = at + 1
            value = brief(json_value(getattr(decoded, name)))
            yield Field("properties", position + at, raw[at:end], name, value)
            at = end
    except (AMQPError, IndexError, ValueError, struct.error):
        yield Field("properties", position + at, raw[at:], "?", "does not decode")
