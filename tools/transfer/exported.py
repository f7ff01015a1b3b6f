"""A message in a file of `qlog inspect export`: one JSON document a line, or one msgpack map.

Promises that what is read back has the same body and the same properties, octet for octet, and
what the broker knew of the message beside them (`record`, for few messages). Values of headers are
pairs of their AMQP type (the letter of the field table grammar) and themselves. In JSON, octets
that are no UTF-8 are `{"base64": …}`; in msgpack octets are octets. Where properties would not come
back exactly, `properties_raw` has them as they were.
"""

import base64
import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from functools import lru_cache
from io import BufferedReader
from typing import Any, BinaryIO

import msgpack

from qlog.server.amqp import values
from qlog.server.amqp.envelope import NO_RECORD, Envelope, Record
from qlog.server.amqp.errors import AMQPError
from qlog.server.amqp.properties import Properties, decode_properties, encode_properties
from qlog.tools.inspect.rows import body_in_json, octets_in_json

SCHEMA = "qlog.message/1"
_NAME_BYTES_MAX = 255  # a shortstr
_PROPERTIES_MAX = 1024  # so many are remembered: those of many messages are the same

# What reading raises when a field is missing or of another kind than it should be.
_UNFIT = (
    *(AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError),
    *(AMQPError, struct.error),
)

# What values are read as that are one thing in JSON and in msgpack.
_PLAIN: dict[str, Callable[[Any], values.Value]] = {
    "b": values.Int8,
    "B": values.UInt8,
    "s": values.Int16,
    "u": values.UInt16,
    "i": values.UInt32,
    "I": int,
    "L": values.Int64Capital,
    "T": values.Timestamp,
    "f": values.Float32,
    "d": float,
    "x": bytes,
    "t": bool,
    "V": lambda _: None,
}


class Malformed(Exception):
    """The input is no exported message; `str()` says why, in one line."""


@dataclass(frozen=True, slots=True)
class Message:
    """What an import needs of a message. `queues` are (vhost, queue), in the file's order."""

    queues: tuple[tuple[str, str], ...]
    envelope: Envelope
    body: bytes


def item_of(envelope: Envelope, body: bytes) -> dict[str, Any]:
    """Exchange, routing key, properties and body, with octets as octets."""
    properties, exact = _described(envelope.properties)
    item: dict[str, Any] = {
        "exchange": envelope.exchange,
        "routing_key": envelope.routing_key,
        "properties": properties,
        "body": body,
    }
    if not exact:
        item["properties_raw"] = envelope.properties
    record = envelope.record
    if record is not NO_RECORD:
        item["record"] = record.as_table()
    return item


@lru_cache(_PROPERTIES_MAX)
def _described(raw: bytes) -> tuple[dict[str, Any] | None, bool]:
    """Properties, and whether they come back from a file as they were."""
    properties = None
    try:
        properties = _plain_properties(decode_properties(raw))
        told = json.dumps(properties, default=octets_in_json)
        back = _properties_of(json.loads(told, object_hook=_octets))
        return properties, encode_properties(back) == raw
    except (AMQPError, ValueError):
        return properties, False


def as_json(item: dict[str, Any]) -> bytes:
    plain = item | body_in_json(item["body"])
    return json.dumps(plain, separators=(",", ":"), default=octets_in_json).encode() + b"\n"


def as_msgpack(item: dict[str, Any]) -> bytes:
    return msgpack.packb(item, unicode_errors="surrogateescape")


def read_messages(stream: BufferedReader) -> Iterator[tuple[int, Message]]:
    """(how many bytes were read, message) of each. Raises Malformed."""
    first = stream.peek(1)[:1]
    if not first:
        return
    items = _json_items(stream) if first == b"{" else _msgpack_items(stream)
    for number, (position, item) in enumerate(items, 1):
        try:
            yield position, _message(item)
        except _UNFIT as error:
            raise Malformed(
                f"message {number} is not one of `qlog inspect export`: {error!r}"
            ) from error


def _json_items(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    position = 0
    for line in stream:
        position += len(line)
        if line.strip():
            try:
                yield position, json.loads(line, object_hook=_octets)
            except (ValueError, RecursionError) as error:
                raise Malformed(f"before byte {position} there is no JSON: {error}") from error


def _msgpack_items(stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    position = 0
    unpacker = msgpack.Unpacker(stream, unicode_errors="surrogateescape", max_buffer_size=1 << 31)
    while True:
        try:
            item = unpacker.unpack()
        except msgpack.OutOfData:
            if unpacker.tell() > position:
                raise Malformed(f"the message at byte {position} is cut off") from None
            return
        except ValueError as error:
            raise Malformed(f"at byte {position} there is no msgpack: {error}") from error
        position = unpacker.tell()
        yield position, item


def _message(item: dict[str, Any]) -> Message:
    if item["schema"] != SCHEMA:
        raise ValueError(f"its schema is {item['schema']!r}, and not {SCHEMA!r}")
    raw = item.get("properties_raw")
    if raw is None:
        raw = encode_properties(_properties_of(item["properties"]))
    body = item["body"]
    if not isinstance(body, bytes):
        in_base64 = item["body_encoding"] == "base64"
        body = base64.b64decode(body, validate=True) if in_base64 else body.encode()
    told = item.get("record")
    record = NO_RECORD if told is None else Record.of_table(told)
    envelope = Envelope.pack(item["exchange"], item["routing_key"], raw, len(body), record)
    envelope.decoded_properties()
    queues = tuple(
        (_name(target["vhost"]), _name(target["queue"]))
        for target in item["queues"]
        if target["queue"] is not None and target["state"] != "deleted"
    )
    return Message(queues, envelope, body)


def _name(text: Any) -> str:
    if not isinstance(text, str) or len(text.encode()) > _NAME_BYTES_MAX:
        raise ValueError(f"{text!r} can name no queue")
    return text


# -- values


def _plain_properties(properties: Properties) -> dict[str, Any]:
    """The properties that are set; headers with their types."""
    plain = {}
    for field in fields(properties):
        value = getattr(properties, field.name)
        if field.name == "headers" and value is not None:
            value = {key: _plain(one) for key, one in value.items()}
        if value is not None:
            plain[field.name] = int(value) if isinstance(value, int) else value
    return plain


def _properties_of(plain: dict[str, Any]) -> Properties:
    known = {field.name: plain.get(field.name) for field in fields(Properties)}
    if known["headers"] is not None:
        known["headers"] = {key: _value(one) for key, one in known["headers"].items()}
    if known["timestamp"] is not None:
        known["timestamp"] = values.Timestamp(known["timestamp"])
    return Properties(**known)


def _plain(value: values.Value) -> list[Any]:
    """A header's value as [type, value]."""
    match value:
        case dict():
            return ["F", {key: _plain(one) for key, one in value.items()}]
        case list() | tuple():
            return ["A", [_plain(one) for one in value]]
        case values.DecimalValue():
            return ["D", [value.scale, value.unscaled]]
        case datetime():
            return ["T", int(value.timestamp())]
    match value:
        case bool() | None | str():
            plain: Any = value
        case int():
            plain = int(value)
        case float():
            plain = float(value) if math.isfinite(value) else str(float(value))
        case bytes():
            plain = bytes(value)
        case _:
            raise ValueError(f"no type for {value!r}")
    return [values.encode_value(value)[:1].decode(), plain]


def _value(plain: list[Any]) -> values.Value:
    letter, value = plain
    match letter:
        case "F":
            return {key: _value(one) for key, one in value.items()}
        case "A":
            return [_value(one) for one in value]
        case "D":
            return values.DecimalValue(*value)
        case "S":
            return values.LongStr(value) if isinstance(value, bytes) else str(value)
        case "l":
            return values.Int64(value) if -(2**31) <= value < 2**31 else int(value)
    return _PLAIN[letter](value)


def _octets(value: dict[str, Any]) -> Any:
    """The octets that an object of JSON stands for, or the object."""
    match value:
        case {"base64": str(text), **rest} if not rest:
            return base64.b64decode(text, validate=True)
    return value
