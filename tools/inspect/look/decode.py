"""A record of the log in the words of AMQP: for JSON, and for people.

What does not decode is called damaged, and the rest is shown. In JSON, octets that are no text are
`{"base64": …}`, and values for which JSON has no type are text.
"""

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import AMQPError
from qlog.storage.bytes.record import Record
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.reader import Entry
from qlog.tools.inspect.look.salvage import pairs
from qlog.tools.inspect.rows import (
    Bytes,
    Cell,
    Time,
    body_in_json,
    name,
    number,
    octets_in_json,
    text,
    well_formed,
)

DUMP_OCTETS = 16  # a line
_DUMP_OCTETS_NARROW = 8  # in a column of a table
UNDECODABLE = (ValueError, TypeError, AttributeError, AMQPError)  # an envelope that is damaged


def decoded(directory: Directory, entry: Entry) -> dict[str, Any]:
    """A message for JSON, without its body. `damage` says what is wrong with it."""
    item: dict[str, Any] = {
        "lsn": entry.lsn,
        "lsn_end": entry.lsn_end,
        "file": entry.file,
        "position": entry.position,
        "stored_bytes": entry.length,
        "damage": entry.damage,
    }
    record = entry.record
    if record is None:
        return item
    item["time"] = time_text(record.timestamp_ms)
    item["timestamp_ms"] = record.timestamp_ms
    if record.due_ms:
        item |= {"due": time_text(record.due_ms), "due_ms": record.due_ms}
    item["body_bytes"] = len(record.body)
    item["exchange"] = item["routing_key"] = item["properties"] = None
    try:
        envelope = Envelope.unpack(record.meta, len(record.body))
        exchange, routing_key = well_formed(envelope.exchange), well_formed(envelope.routing_key)
        properties = properties_of(envelope)
    except UNDECODABLE:
        item["damage"] = entry.damage or "its exchange, routing key and properties do not decode"
    else:
        item |= {"exchange": exchange, "routing_key": routing_key, "properties": properties}
    item["targets"] = [directory.target(*target) for target in pairs(record.targets)]
    return item


def properties_of(envelope: Envelope) -> dict[str, Any]:
    """The properties that are set, for JSON. Raises HardError when they are malformed."""
    properties = envelope.decoded_properties()
    pairs = ((one.name, getattr(properties, one.name)) for one in fields(properties))
    return {key: json_value(value) for key, value in pairs if value is not None}


def json_value(value: Any) -> Any:
    """A value of a field table for JSON."""
    match value:
        case bool() | None:
            return value
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else str(value)
        case str():
            return well_formed(value)
        case bytes() | bytearray() | memoryview():
            return octets_in_json(value)
        case dict():
            return {well_formed(key): json_value(item) for key, item in value.items()}
        case list() | tuple():
            return [json_value(item) for item in value]
    return well_formed(str(value))


def time_text(timestamp_ms: int | None) -> str | None:
    """UTC, in ISO 8601; None when there is no time, or no calendar has it."""
    if timestamp_ms is None:
        return None
    try:
        time = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):  # of a damaged message
        return None
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def time_cell(time: str | None) -> Cell:
    return "?" if time is None else Time(time)


def brief(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def lines_of(item: dict[str, Any]) -> list[str]:
    """What a message is, for people: damage, where it was published to, its properties."""
    lines = []
    if item["damage"] is not None:
        lines.append(f"DAMAGED: {item['damage']}")
    if item.get("exchange") is not None:
        lines.append(f"{item['exchange'] or '(default)'} / {item['routing_key']}")
        lines += (f"{key}={brief(value)}" for key, value in item["properties"].items())
    if "due_ms" in item:
        lines.append(f"due {item['due'] or item['due_ms']}")
    return lines


def target_lines(targets: Iterable[dict[str, Any]]) -> list[str]:
    """Where a message went, for people; with its states there, if they are known."""
    lines = []
    for target in targets:
        queue = queue_text(target["vhost"], target["queue"], target["lane"])
        state = target.get("state")
        lines.append(f"{queue} #{target['offset']}" + (f" {state}" if state else ""))
    return lines


def queue_text(vhost: str | None, queue: str | None, lane: int) -> str:
    """A queue, named in a table; by its lane when its name is lost or it is gone."""
    if queue is None:
        return f"lane {lane}"
    return queue if vhost in ("/", None) else f"{vhost}: {queue}"


def lane_text(directory: Directory, lane_id: int) -> str:
    return queue_text(**directory.named(lane_id))


def _targets(item: dict[str, Any]) -> Cell:
    return target_lines(item["targets"]) if "targets" in item else None


# A row is (item, more lines to what it is). In damaged bytes, perhaps no message can be told.
MESSAGE_COLUMNS = (
    number("LSN", lambda row: row[0]["lsn"]),
    text("time (UTC)", lambda row: time_cell(row[0]["time"]) if "time" in row[0] else None),
    number("size", lambda row: Bytes(row[0].get("body_bytes", row[0]["stored_bytes"]))),
    name("message", lambda row: [*lines_of(row[0]), *row[1]]),
    name("queue #offset", lambda row: _targets(row[0])),
)


@dataclass(frozen=True, slots=True)
class Bodies:
    """How bodies are shown: so many characters or octets of each."""

    shown_max: int
    as_hex: bool

    def add(self, item: dict[str, Any], record: Record) -> list[str]:
        """Add the whole body to a message for JSON; the lines of it for people."""
        body = record.body
        item |= body_in_json(body)
        decoded = "\0"
        with suppress(UnicodeDecodeError):
            decoded = body.decode()
        if not self.as_hex and all(char.isprintable() or char in "\r\n\t" for char in decoded):
            if len(decoded) <= self.shown_max:
                return [f"body {decoded}"]
            return [f"body {decoded[: self.shown_max]}… ({len(decoded)} characters)"]
        shown = dump(body[: self.shown_max], _DUMP_OCTETS_NARROW)
        lines = [line.replace("  ", " ", 1) for line in shown]
        if len(body) > self.shown_max:
            lines.append(f"… ({len(body)} octets)")
        return ["body in hexadecimal", *lines]


def dump(data: bytes, octets: int = DUMP_OCTETS) -> list[str]:
    """Octets in hexadecimal, and as text where they are ASCII."""
    lines = []
    for at in range(0, len(data), octets):
        part = data[at : at + octets]
        text = "".join(chr(octet) if 32 <= octet < 127 else "." for octet in part)
        lines.append(f"{part.hex(' ').ljust(3 * octets - 1)}  {text}")
    return lines
