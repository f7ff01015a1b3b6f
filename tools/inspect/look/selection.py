"""Which messages are asked for: options turned into a test of a message.

Raises ValueError with a text for one line when an option cannot be understood. Knows nothing of
files; what costs least is tested first.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from qlog.server.amqp.envelope import Envelope
from qlog.storage.bytes.record import Record
from qlog.tools.inspect.look.decode import UNDECODABLE, brief, properties_of
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import views_of
from qlog.tools.inspect.look.reader import Entry, messages
from qlog.tools.inspect.look.salvage import pairs
from qlog.tools.inspect.rows import progress

_KNOWN_MAX = 4096
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_RELATIVE = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")


def parse_time(text: str, now_ms: int) -> int:
    """Milliseconds since 1970 of `10m` (ago), `2026-11-23`, `2026-11-23T06:11:01.5` (UTC) …"""
    found = _RELATIVE.fullmatch(text.strip())
    if found:
        return now_ms - int(float(found[1]) * _UNITS_MS[found[2]])
    try:
        time = datetime.fromisoformat(text.strip())
        if time.tzinfo is None:
            time = time.replace(tzinfo=UTC)
        return int(time.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is not a time: give one such as 2026-11-23T06:11:01 (UTC, unless it names "
            "its zone), or how long ago, such as 10m, 2h or 3d"
        ) from None


def parse_offsets(text: str) -> tuple[int, int]:
    """(first, end) of `7`, `7-9` (both count), `7-` or `-9`."""
    found = re.fullmatch(r"(\d*)(-?)(\d*)", text.strip())
    if found is None or not (found[1] or found[3]):
        raise ValueError(f"{text!r} is no offset, nor a range such as 100-199, 100- or -99")
    first = int(found[1] or 0)
    end = int(found[3]) + 1 if found[3] else 1 << 64 if found[2] else first + 1
    if end <= first:
        raise ValueError(f"the range {text} ends before it begins")
    return first, end


def parse_header(text: str) -> tuple[str, str]:
    """(name, value) of `name=value`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{text!r} is no header: give name=value")
    return name, value


class KeyPattern:
    """A routing key, or a pattern as of topic exchanges: `*` is a word, `#` any number of them."""

    def __init__(self, text: str) -> None:
        words = {"*": r"[^.]*\.", "#": r"(?:[^.]*\.)*"}
        parts = (words.get(word) or re.escape(word + ".") for word in text.split("."))
        self._pattern = re.compile("".join(parts), re.DOTALL)

    def matches(self, key: str) -> bool:
        return self._pattern.fullmatch(key + ".") is not None


@dataclass(slots=True)
class Selection:
    """What to show; the default is everything."""

    lane_ids: frozenset[int] | None = None
    offsets: tuple[int, int] | None = None  # of those lanes: first, end
    since_ms: int | None = None
    until_ms: int | None = None  # exclusive
    key: KeyPattern | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    message_id: str | None = None
    settled: bool | None = None  # None: both
    _known: dict[bytes, bool] = field(default_factory=dict, compare=False, repr=False)  # by meta

    def takes(self, directory: Directory, record: Record) -> bool:
        """Whether a message is selected.

        A damaged message of the queues is: it may be any message.
        """
        targets = [
            target
            for target in pairs(record.targets)
            if self.lane_ids is None or target[0] in self.lane_ids
        ]
        if self.offsets is not None:
            first, end = self.offsets
            targets = [target for target in targets if first <= target[1] < end]
            if not targets:
                return False
        if not record.whole:
            return True
        time_ms = record.timestamp_ms
        if self.since_ms is not None and time_ms < self.since_ms:
            return False
        if self.until_ms is not None and time_ms >= self.until_ms:
            return False
        if self.settled is not None:
            waits = any(directory.unsettled(lane_id, qseq, 1) for lane_id, qseq in targets)
            if waits == self.settled:
                return False
        if self.key is None and not self.headers and self.message_id is None:
            return True
        if record.meta not in self._known:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[record.meta] = self._takes_meta(record)
        return self._known[record.meta]

    def _takes_meta(self, record: Record) -> bool:
        """Whether exchange, key and properties are what is asked for."""
        meta = record.meta
        texts = [name for name, _ in self.headers]
        texts += [] if self.message_id is None else [self.message_id]
        if any(
            text.encode("utf-8", "surrogateescape") not in meta
            for text in texts
            if "\\x" not in text  # octets that are no text are shown so
        ):
            return False  # as are most, which are not decoded for it
        try:
            envelope = Envelope.unpack(meta, len(record.body))
            properties = properties_of(envelope)
        except UNDECODABLE:
            return True  # damaged as well, though its checksum is right
        if self.key is not None and not self.key.matches(envelope.routing_key):
            return False
        if self.message_id is not None and properties.get("message_id") != self.message_id:
            return False
        headers: dict[str, Any] = properties.get("headers", {})
        return all(
            name in headers and brief(headers[name]) == value for name, value in self.headers
        )


def chosen(
    directory: Directory, selection: Selection, from_lsn: int = 0, *, doing: str = "searching"
) -> Iterator[Entry]:
    """The messages of the log from an LSN on that are selected, and what may be one of them.

    `doing`: what the bar says; without it there is none.
    """
    views = views_of(directory)
    with progress(doing, sum(view.size for view in views) if doing else 0) as advance:
        lane_ids, offsets = selection.lane_ids, selection.offsets
        for entry in messages(directory, views, from_lsn, lane_ids, offsets):
            advance(entry.length)
            if entry.record is None or selection.takes(directory, entry.record):
                yield entry
