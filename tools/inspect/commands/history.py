"""`qlog inspect history`: what became of the messages of a queue, as far as the files tell.

The log says when a message was published. The ledger says up to where a queue's messages were
delivered, and which are settled, with a time to the second if that came after the snapshot at the
file's head. Of what the snapshot has, only an upper bound of the time is known. What the files do
not say is shown as unknown, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from qlog.storage import journal
from qlog.tools.inspect.command import OfVhost, command, find_lanes, stop
from qlog.tools.inspect.look.decode import decoded, queue_text, time_cell, time_text
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import views_of
from qlog.tools.inspect.look.reader import messages
from qlog.tools.inspect.look.selection import Selection, parse_offsets
from qlog.tools.inspect.look.settlements import batches_of, lane_of, settled_ranges
from qlog.tools.inspect.rows import Cell, Report, Time, counted, name, number, progress, text

_WITHIN_MS = 1000  # a ledger batch without a time of its own is at most so much later


@dataclass(slots=True)
class _Event:
    """A record of the ledger about these offsets. Times are in ms; None: not known."""

    first: int
    end: int
    batch: int | None  # None: the snapshot
    after_ms: int | None = None
    before_ms: int | None = None

    @property
    def after(self) -> str | None:
        """For JSON."""
        return None if self.after_ms is None else time_text(self.after_ms)

    @property
    def before(self) -> str | None:
        """For JSON."""
        return None if self.before_ms is None else time_text(self.before_ms)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {"after": self.after, "before": self.before, "ledger_batch": self.batch}

    def cell(self) -> Cell:
        """For a table."""
        if self.after is None:
            return ["yes", "(when: ?)"]
        return Time(self.after + ("" if self.before == self.after else " +1s"))

    def told(self) -> str:
        """For people."""
        where = f"ledger batch {self.batch}"
        if self.batch is None:
            where = "in the snapshot that the ledger's file begins with"
        if self.after is None:
            before = f"before {self.before}" if self.before else "it is not known when"
            return f"{before} ({where})"
        if self.after == self.before:
            return f"{self.after} ({where})"
        return f"between {self.after} and {self.before} ({where})"


@dataclass(slots=True)
class _LaneEvents:
    """What the ledger says of one lane, in its order."""

    delivered: list[_Event]
    settled: list[_Event]


@dataclass(frozen=True, slots=True)
class _Story:
    """One message in one queue. `message` is None when the log does not have it."""

    target: dict[str, Any]
    message: dict[str, Any] | None
    delivered: _Event | None
    settled: _Event | None

    @property
    def offset(self) -> int:
        """In the queue."""
        return int(self.target["offset"])

    @property
    def message_id(self) -> Any:
        """The property."""
        properties = (self.message or {}).get("properties") or {}
        return properties.get("message_id")

    def document(self) -> dict[str, Any]:
        """For JSON."""
        item = self.message
        published = routed_to = None
        if item is not None:
            published = {
                key: item[key]
                for key in ("time", "exchange", "routing_key", "body_bytes", "file", "position")
            }
            routed_to = [
                {key: target[key] for key in ("vhost", "queue", "lane", "offset")}
                for target in item["targets"]
            ]
        return {
            "lane": self.target["lane"],
            "offset": self.offset,
            "lsn": None if item is None else item["lsn"],
            "message_id": self.message_id,
            "published": published,
            "routed_to": routed_to,
            "delivered": None if self.delivered is None else self.delivered.document(),
            "settled": None if self.settled is None else self.settled.document(),
            "dead_lettered": None,
            "damage": None if item is None else item["damage"],
        }

    def what(self) -> Cell:
        """Damage, where it was published to, and which it is."""
        item = self.message or {}
        lines = [f"DAMAGED: {item['damage']}"] if item.get("damage") else []
        if item.get("exchange") is not None:
            lines.append(f"{item['exchange'] or '(default)'} / {item['routing_key']}")
        if self.message_id is not None:
            lines.append(f"id {self.message_id}")
        return lines


_COLUMNS = (
    number("offset"),
    number("LSN", lambda story: story.message["lsn"]),
    text("published\n(UTC)", lambda story: time_cell(story.message["time"])),
    name("exchange / key", lambda story: story.what()),
    text("delivered", lambda story: "no" if story.delivered is None else story.delivered.cell()),
    text("settled", lambda story: "no" if story.settled is None else story.settled.cell()),
)


@command
def history(
    directory: Directory,
    report: Report,
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="A durable queue.")],
    vhost: OfVhost = "/",
    offset: Annotated[
        str | None, typer.Option(metavar="N[-N]", help="Only this offset, or a range: 7-9, 7-, -9.")
    ] = None,
    message_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Only messages with this message_id.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show so many messages at most.")] = 20,
) -> None:
    """Show what became of a queue's messages.

    When they were published, routed, delivered and settled. Settled: acknowledged, rejected or
    purged; the ledger does not say which. Oldest first, of what the log still has.
    """
    lane_ids = find_lanes(directory, vhost, queue)
    selection = Selection(lane_ids=lane_ids, message_id=message_id)
    try:
        selection.offsets = None if offset is None else parse_offsets(offset)
    except ValueError as error:
        stop(str(error))
    items, more = _found(directory, report, selection, limit)
    events = _events(directory, lane_ids)  # read after the log: it knows of all that was there
    first, end = selection.offsets or (0, 1 << 64)
    targets = [
        (item, target)
        for item in items
        for target in item["targets"]
        if target["lane"] in lane_ids and first <= target["offset"] < end
    ]
    stories = [_story(item, target, events) for item, target in targets]
    if not stories and message_id is None and end == first + 1:
        stories = [
            _story(None, {"lane": lane_id, "offset": first}, events) for lane_id in sorted(lane_ids)
        ]
    report.content = {
        "vhost": vhost,
        "queue": queue,
        "messages": [story.document() for story in stories],
        "more": more,
    }
    what = f"{counted(len(stories), 'message')} of '{queue}'"
    if more:
        what += f"; there are more: --offset {stories[-1].offset + 1}-"
    if not stories:
        what += " in the log"
    if len(stories) == 1:
        if stories[0].message is None:
            what = f"the log has no #{stories[0].offset}"
        report.facts(_told(stories[0]), title=f"#{stories[0].offset}")
    else:
        report.table(_COLUMNS, stories)
    report.say(what)


def _found(
    directory: Directory, report: Report, selection: Selection, limit: int
) -> tuple[list[dict[str, Any]], bool]:
    """The messages for JSON, and whether there are more."""
    views = views_of(directory)
    items: list[dict[str, Any]] = []
    with progress("searching", sum(view.size for view in views)) as bar:
        for view, entry in messages(directory, views, 0, selection.lane_ids, selection.offsets):
            bar.advance(entry.length)
            if entry.record is None or not selection.takes(directory, entry.record):
                continue
            if len(items) == limit:
                return items, True
            file = directory.relative(view.path)
            items.append(decoded(directory, file, entry))
            if entry.damage is not None:
                report.damage.append(entry.as_damage(file, f": {entry.damage}"))
    return items, False


def _events(directory: Directory, lane_ids: frozenset[int]) -> dict[int, _LaneEvents]:
    """The events of each lane. Those in the snapshot came before the first time in the file."""
    found = {lane_id: _LaneEvents([], []) for lane_id in lane_ids}
    timeless: list[_Event] = []
    ids = directory.ledger_ids()
    for batch in batches_of(directory, directory.ledger_file(ids[-1])) if ids else ():
        batch_number = None if batch.is_snapshot else batch.number
        after_ms = before_ms = None if batch.is_snapshot else batch.time_ms
        if before_ms is not None:
            for event in timeless:
                event.before_ms = before_ms
            timeless.clear()
            if not any(isinstance(record, journal.Time) for record in batch.records):
                before_ms += _WITHIN_MS
        for record in batch.records:
            lane = found.get(lane_of(record) or -1)
            if lane is None:
                continue
            events = [
                _Event(*ends, batch_number, after_ms, before_ms) for ends in settled_ranges(record)
            ]
            lane.settled += events
            below = None
            if isinstance(record, journal.Delivered):
                below = record.upto
            elif isinstance(record, journal.LaneState):
                below = record.delivered
            if below is not None:
                delivered = _Event(0, below, batch_number, after_ms, before_ms)
                lane.delivered.append(delivered)
                events.append(delivered)
            if after_ms is None:
                timeless += events
    return found


def _story(
    item: dict[str, Any] | None, target: dict[str, Any], events: dict[int, _LaneEvents]
) -> _Story:
    lane = events[target["lane"]]
    offset = target["offset"]
    return _Story(target, item, _first(lane.delivered, offset), _first(lane.settled, offset))


def _first(events: list[_Event], offset: int) -> _Event | None:
    """The first event that is about this message."""
    return next((event for event in events if event.first <= offset < event.end), None)


def _told(story: _Story) -> list[tuple[str, Cell]]:
    """One message's life, line by line."""
    item, delivered, settled = story.message, story.delivered, story.settled
    rows: list[tuple[str, Cell]] = []
    if item is None:
        rows.append(("published", "the log does not have it (any more)"))
    else:
        to = f"exchange '{item['exchange']}', routing key '{item['routing_key']}'"
        lines = [f"{item['time'] or '?'} to {to}"]
        if item["damage"]:
            lines.append(f"DAMAGED: {item['damage']}")
        if story.message_id is not None:
            lines.append(f"message_id {story.message_id}")
        lines.append(
            f"LSN {item['lsn']}, {item['body_bytes']:,} bytes, {item['file']} at byte "
            f"{item['position']}"
        )
        rows.append(("published", lines))
        names = [
            f"{queue_text(target['vhost'], target['queue'], target['lane'])} #{target['offset']}"
            for target in item["targets"]
        ]
        rows.append(("routed to", names))
    rows.append(("delivered", "not yet" if delivered is None else delivered.told()))
    unsettled = "no: it waits"
    if item is None:
        unsettled = "nothing says so: it may never have been"
    rows.append(("settled", unsettled if settled is None else settled.told()))
    return rows
