"""Where a consumer of a stream begins (`x-stream-offset`), what it wants (`x-stream-filter`), and
spans of time such as `7D`, as RabbitMQ reads them (rabbit_stream_queue, rabbit_date_time).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import raw_headers
from qlog.server.amqp.values import Table, Timestamp, Value, type_name
from qlog.storage.streams.stream import Stream

_SPAN = re.compile(r"([0-9]+)([YMDhms])\Z")
_SECOND_MS = 1000
_DAY_MS = 24 * 3600 * _SECOND_MS
_UNITS_MS = {
    "Y": 365 * _DAY_MS,
    "M": 30 * _DAY_MS,
    "D": _DAY_MS,
    "h": 3600 * _SECOND_MS,
    "m": 60 * _SECOND_MS,
    "s": _SECOND_MS,
}
FILTER_VALUE = b"x-stream-filter-value"


def span_ms(text: str) -> int | None:
    """A span of time above 0 in milliseconds; None: it is none."""
    found = _SPAN.match(text)
    span = int(found[1]) * _UNITS_MS[found[2]] if found else 0
    return span or None


def offset_complaint(value: Value) -> str | None:
    """What is wrong with the value of `x-stream-offset`; None: nothing.

    RabbitMQ 4.0.5 ends the connection (541) for some of what is refused here.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return None
    if isinstance(value, str) and (value in ("first", "last", "next") or span_ms(value)):
        return None
    if isinstance(value, str):
        text = f'<<"{value}">>'
    else:
        text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{{invalid_stream_offset_arg,{{{type_name(value)},{text}}}}}"


def first_offset(value: Value, stream: Stream[Envelope], now_ms: int) -> int:
    """Where a consumer begins. Raises CorruptLog, OutOfDescriptors.

    `last` is the last message, where RabbitMQ begins with the first message of the last chunk; and
    a time is found to the message, not to the chunk.
    """
    if isinstance(value, Timestamp):
        return stream.since(int(value) * _SECOND_MS)
    if isinstance(value, int):
        return max(value, 0)
    if value == "first":
        return stream.first
    if value == "last":
        return max(stream.end - 1, stream.first)
    if isinstance(value, str) and (span := span_ms(value)) is not None:
        return stream.since(max(now_ms - span, 0))
    return stream.end


@dataclass(frozen=True, slots=True)
class Filter:
    """The messages that a consumer wants: by their filter values, and those that have none."""

    values: frozenset[str]
    unfiltered: bool

    def wants(self, value: str) -> bool:
        """`value`: of a message; empty if it has none."""
        return value in self.values or (self.unfiltered and not value)


def filter_of(arguments: Table) -> Filter | None:
    """What the arguments of a consumer ask for; None: all messages."""
    asked = arguments.get("x-stream-filter")
    values = [asked] if isinstance(asked, str) else asked
    if not isinstance(values, list):
        return None
    wanted = frozenset(value for value in values if isinstance(value, str))
    unfiltered = arguments.get("x-stream-match-unfiltered") is True
    return Filter(wanted, unfiltered or "" in wanted)


def filter_value(envelope: Envelope) -> str:
    """The filter value of a message; empty if it has none, or one that is no string."""
    if FILTER_VALUE not in envelope.properties:  # as mostly, where filters are not used
        return ""
    raw = raw_headers(envelope.properties).get(FILTER_VALUE, b"")
    return raw[5:].decode(errors="replace") if raw[:1] == b"S" else ""
