"""`qlog inspect history`: what became of the messages of a queue, as far as the files tell.

When a message was published stands in the log. The ledger says up to where a queue's messages were
delivered, and which are settled, with a time to the second for what came after its file's snapshot;
of what stands in the snapshot it is known only that it came before. What the files do not say is
shown as unknown, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlog.tools.inspect.command import (
    DATA_DIR_DEFAULT,
    AsJson,
    DataDir,
    OfVhost,
    find_lanes,
    finish,
    look_at,
    stop,
    stop_for_rights,
)

if TYPE_CHECKING:
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.look.selection import Selection
    from qlog.tools.inspect.rows import Cell, Report

_WITHIN_MS = 1000  # a ledger batch without a time of its own is at most so much later


def history(
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="A durable queue.")],
    data_dir: DataDir = DATA_DIR_DEFAULT,
    vhost: OfVhost = "/",
    offset: Annotated[
        str | None,
        typer.Option(metavar="N[-N]", help="Only this offset, or a range: 7-9, 7-, -9."),
    ] = None,
    message_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Only messages with this message_id.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show so many messages at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what became of a queue's messages.

    When they were published, routed, delivered and settled. Settled: acknowledged, rejected or purged; the ledger does not say which. Oldest first, of what
    the log still has.
    """
    directory = look_at(data_dir)
    from qlog.tools.inspect.look.selection import Selection, parse_offsets

    selection = Selection(lane_ids=find_lanes(directory, vhost, queue), message_id=message_id)
    try:
        selection.offsets = None if offset is None else parse_offsets(offset)
    except ValueError as error:
        stop(str(error))
    try:
        report = _report(directory, vhost, queue, selection, limit)
    except PermissionError as error:
        stop_for_rights(error)
    finish(report, as_json=as_json)


@dataclass(slots=True)
class _Event:
    """The ledger says something of these offsets. Times in ms; None: not known."""

    first: int
    end: int
    batch: int | None  # None: the snapshot
    after_ms: int | None = None
    before_ms: int | None = None

    def for_json(self) -> dict[str, Any]:
        from qlog.tools.inspect.look.decode import time_text

        return {
            "after": None if self.after_ms is None else time_text(self.after_ms),
            "before": None if self.before_ms is None else time_text(self.before_ms),
            "ledger_batch": self.batch,
        }


@dataclass(slots=True)
class _LaneEvents:
    """What the ledger says of one lane, in its order."""

    delivered: list[_Event]
    settled: list[_Event]


def _events(directory: Directory, lane_ids: frozenset[int]) -> dict[int, _LaneEvents]:
    """By lane. What is in the snapshot came before the first time in the file."""
    from qlog.storage.write.ledger import DELIVERED, LANE, TIME
    from qlog.tools.inspect.look.settlements import batches_of, lane_of, settled_ranges

    found = {lane_id: _LaneEvents([], []) for lane_id in lane_ids}
    timeless: list[_Event] = []
    ids = directory.ledger_ids()
    for batch in batches_of(directory, directory.ledger_file(ids[-1])) if ids else ():
        number = None if batch.is_snapshot else batch.number
        after_ms = before_ms = None if batch.is_snapshot else batch.time_ms
        if before_ms is not None:
            for event in timeless:
                event.before_ms = before_ms
            timeless.clear()
            if all(record[0] != TIME for record in batch.records):
                before_ms += _WITHIN_MS
        for record in batch.records:
            lane = found.get(lane_of(record) or -1)
            if lane is None:
                continue
            events = [_Event(*ends, number, after_ms, before_ms) for ends in settled_ranges(record)]
            lane.settled += events
            if record[0] in (DELIVERED, LANE):
                below = record[2] if record[0] == DELIVERED else record[4]
                delivered = _Event(0, below, number, after_ms, before_ms)
                lane.delivered.append(delivered)
                events.append(delivered)
            if after_ms is None:
                timeless += events
    return found


def _first(events: list[_Event], offset: int) -> _Event | None:
    """The first that says it of this message."""
    return next((event for event in events if event.first <= offset < event.end), None)


def _report(
    directory: Directory, vhost: str, queue: str, selection: Selection, limit: int
) -> Report:
    from qlog.tools.inspect.look.decode import decoded
    from qlog.tools.inspect.look.log import views_of
    from qlog.tools.inspect.look.reader import messages
    from qlog.tools.inspect.rows import Column, Damage, Report, counted, progress

    lane_ids = selection.lane_ids
    assert lane_ids is not None
    views = views_of(directory)
    items: list[dict[str, Any]] = []
    more = False
    report = Report("history", str(directory.root), directory.in_use)
    report.notes = list(directory.notes)
    report.damage = list(directory.damage)
    with progress("searching", sum(view.size for view in views)) as bar:
        for view, entry in messages(directory, views, 0, lane_ids, selection.offsets):
            bar.advance(entry.length)
            record = entry.record
            if record is None or not selection.takes(directory, record):
                continue
            if len(items) == limit:
                more = True
                break
            file = directory.relative(view.path)
            items.append(decoded(directory, file, entry))
            if entry.damage is not None:
                end = entry.position + entry.length
                what = f"LSN {entry.lsn}: {entry.damage}"
                report.damage.append(
                    Damage(file, what, entry.position, end, entry.lsn, entry.lsn_end, 1)
                )
    events = _events(directory, lane_ids)  # read after the log: it knows of all that was there
    stories = [
        _story(directory, item, target, events)
        for item in items
        for target in item["targets"]
        if target["lane"] in lane_ids
        and (
            selection.offsets is None
            or selection.offsets[0] <= target["offset"] < selection.offsets[1]
        )
    ]
    if not stories and selection.offsets is not None and selection.message_id is None:
        first, end = selection.offsets
        if end == first + 1:
            targets = ({"lane": lane_id, "offset": first} for lane_id in sorted(lane_ids))
            stories += [_story(directory, None, target, events) for target in targets]
    report.content = {"vhost": vhost, "queue": queue, "messages": stories, "more": more}
    in_use = ", in use by a broker" if directory.in_use else ""
    report.summary = f"{directory.root}{in_use}: {counted(len(stories), 'message')} of '{queue}'"
    if more:
        report.summary += f"; there are more: --offset {stories[-1]['offset'] + 1}-"
    if not stories:
        report.summary += " in the log"
    if len(stories) == 1 and stories[0]["published"] is None:
        report.summary = f"{directory.root}{in_use}: the log has no #{stories[0]['offset']}"
    if len(stories) == 1:
        _tell(report, stories[0])
        return report
    report.columns = (
        Column("offset", right=True),
        Column("LSN", right=True),
        Column("published\n(UTC)"),
        Column("exchange / key", name=True),
        Column("delivered"),
        Column("settled"),
    )
    report.rows = [_row(story) for story in stories]
    return report


def _story(
    directory: Directory,
    item: dict[str, Any] | None,
    target: dict[str, Any],
    events: dict[int, _LaneEvents],
) -> dict[str, Any]:
    """One message in one queue, for JSON. `item` None: the log does not have it."""
    lane_id, offset = target["lane"], target["offset"]
    lane = events[lane_id]
    delivered, settled = _first(lane.delivered, offset), _first(lane.settled, offset)
    story: dict[str, Any] = {
        "lane": lane_id,
        "offset": offset,
        "lsn": None,
        "message_id": None,
        "published": None,
        "routed_to": None,
        "delivered": None if delivered is None else delivered.for_json(),
        "settled": None if settled is None else settled.for_json(),
        "dead_lettered": None,
        "damage": None,
    }
    if item is not None:
        properties = item["properties"] or {}
        story |= {
            "lsn": item["lsn"],
            "message_id": properties.get("message_id"),
            "published": {
                "time": item["time"],
                "exchange": item["exchange"],
                "routing_key": item["routing_key"],
                "body_bytes": item["body_bytes"],
                "file": item["file"],
                "position": item["position"],
            },
            "routed_to": [
                {name: target[name] for name in ("vhost", "queue", "lane", "offset")}
                for target in item["targets"]
            ],
            "damage": item["damage"],
        }
    return story


def _row(story: dict[str, Any]) -> tuple[Cell, ...]:
    from qlog.tools.inspect.look.decode import time_cell

    published = story["published"]
    what = [f"DAMAGED: {story['damage']}"] if story["damage"] else []
    if published["exchange"] is not None:
        what.append(f"{published['exchange'] or '(default)'} / {published['routing_key']}")
    if story["message_id"] is not None:
        what.append(f"id {story['message_id']}")
    return (
        str(story["offset"]),
        str(story["lsn"]),
        time_cell(published["time"]),
        what,
        _when_cell(story["delivered"]),
        _when_cell(story["settled"]),
    )


def _when_cell(event: dict[str, Any] | None) -> Cell:
    from qlog.tools.inspect.rows import Time

    if event is None:
        return "no"
    if event["after"] is None:
        return ["yes", "(when: ?)"]
    return Time(event["after"] + ("" if event["before"] == event["after"] else " +1s"))


def _when(event: dict[str, Any]) -> str:
    """When something in the ledger happened, for people."""
    where = f"ledger batch {event['ledger_batch']}"
    if event["ledger_batch"] is None:
        where = "in the snapshot that the ledger's file begins with"
    if event["after"] is None:
        before = f"before {event['before']}" if event["before"] else "it is not known when"
        return f"{before} ({where})"
    if event["after"] == event["before"]:
        return f"{event['after']} ({where})"
    return f"between {event['after']} and {event['before']} ({where})"


def _tell(report: Report, story: dict[str, Any]) -> None:
    """One message's life, line by line."""
    from qlog.tools.inspect.look.decode import queue_text
    from qlog.tools.inspect.rows import Facts

    published = story["published"]
    rows: list[tuple[str, Cell]] = []
    if published is None:
        rows.append(("published", "the log does not have it (any more)"))
    else:
        to = f"exchange '{published['exchange']}', routing key '{published['routing_key']}'"
        lines = [f"{published['time'] or '?'} to {to}"]
        if story["damage"]:
            lines.append(f"DAMAGED: {story['damage']}")
        if story["message_id"] is not None:
            lines.append(f"message_id {story['message_id']}")
        lines.append(
            f"LSN {story['lsn']}, {published['body_bytes']:,} bytes, {published['file']} at byte "
            f"{published['position']}"
        )
        rows.append(("published", lines))
        names = [
            f"{queue_text(target['vhost'], target['queue'], target['lane'])} #{target['offset']}"
            for target in story["routed_to"]
        ]
        rows.append(("routed to", names))
    delivered, settled = story["delivered"], story["settled"]
    rows.append(("delivered", "not yet" if delivered is None else _when(delivered)))
    rows.append(("settled", "no: it waits" if settled is None else _when(settled)))
    if published is None and settled is None:
        rows[-1] = ("settled", "nothing says so: it may never have been")
    report.sections.append(Facts(f"#{story['offset']}", rows))
