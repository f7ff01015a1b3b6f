"""`qlog inspect history`: what became of the messages of a queue, as far as the files tell.

The log says when a message was published. The ledger says up to where a queue's messages were
delivered, and which are settled, with a time to the second if that came after the snapshot at the
file's head. Of what the snapshot has, only an upper bound of the time is known. What the files do
not say is shown as unknown, never guessed.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import typer

from qlog.storage import journal
from qlog.tools.inspect.command import OfVhost, command, find_lanes, stop
from qlog.tools.inspect.look.decode import decoded, target_lines, time_cell, time_text
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.selection import Selection, chosen, parse_offsets
from qlog.tools.inspect.look.settlements import batches_of, lane_of, settled_ranges
from qlog.tools.inspect.rows import Cell, Report, Time, counted, name, number, text

_WITHIN_MS = 1000  # a ledger batch without a time of its own is at most so much later
_PUBLISHED = ("time", "exchange", "routing_key", "body_bytes", "file", "position")
_ROUTED = ("vhost", "queue", "lane", "offset")
_Story = dict[str, Any]  # of one message in one queue, as JSON has it


# The first and the end of some offsets, and when and where the ledger tells of them, as JSON has it.
_Event = tuple[int, int, dict[str, Any]]
_Events = dict[str, list[_Event]]  # `delivered` and `settled` of a lane, in the ledger's order


def _cell(event: dict[str, Any] | None) -> Cell:
    if event is None:
        return "no"
    if event["after"] is None:
        return ["yes", "(when: ?)"]
    return Time(event["after"] + ("" if event["before"] == event["after"] else " +1s"))


def _told(event: dict[str, Any]) -> str:
    after, before, batch = event["after"], event["before"], event["ledger_batch"]
    where = f"ledger batch {batch}"
    if batch is None:
        where = "in the snapshot that the ledger's file begins with"
    if after is None:
        when = f"before {before}" if before else "it is not known when"
    else:
        when = after if after == before else f"between {after} and {before}"
    return f"{when} ({where})"


def _what(story: _Story) -> Cell:
    """Damage, where it was published to, and which it is."""
    lines = [f"DAMAGED: {story['damage']}"] if story["damage"] else []
    published = story["published"]
    if published["exchange"] is not None:
        lines.append(f"{published['exchange'] or '(default)'} / {published['routing_key']}")
    if story["message_id"] is not None:
        lines.append(f"id {story['message_id']}")
    return lines


_COLUMNS = (
    number("offset"),
    number("LSN", "lsn"),
    text("published\n(UTC)", lambda story: time_cell(story["published"]["time"])),
    name("exchange / key", _what),
    text("delivered", lambda story: _cell(story["delivered"])),
    text("settled", lambda story: _cell(story["settled"])),
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
    found = (entry for entry in chosen(directory, selection) if entry.record is not None)
    entries = list(islice(found, limit + 1))
    more = len(entries) > limit
    items = []
    for entry in entries[:limit]:
        items.append(decoded(directory, entry))
        if entry.damage is not None:
            report.damage.append(entry.as_damage(f": {entry.damage}"))
    events = _events(directory, lane_ids)  # read after the log: it knows of all that was there
    first, end = selection.offsets or (0, 1 << 64)
    stories = [
        _story(item, target["lane"], target["offset"], events)
        for item in items
        for target in item["targets"]
        if target["lane"] in lane_ids and first <= target["offset"] < end
    ]
    if not stories and message_id is None and end == first + 1:
        stories = [_story(None, lane_id, first, events) for lane_id in sorted(lane_ids)]
    report.content = {"vhost": vhost, "queue": queue, "messages": stories, "more": more}
    what = f"{counted(len(stories), 'message')} of '{queue}'"
    if more:
        what += f"; there are more: --offset {stories[-1]['offset'] + 1}-"
    if not stories:
        what += " in the log"
    if len(stories) == 1:
        story = stories[0]
        if story["published"] is None:
            what = f"the log has no #{story['offset']}"
        report.facts(_life(story), title=f"#{story['offset']}")
    else:
        report.table(_COLUMNS, stories)
    report.say(what)


def _events(directory: Directory, lane_ids: frozenset[int]) -> dict[int, _Events]:
    """The events of each lane. Those in the snapshot came before the first time in the file."""
    found: dict[int, _Events] = {lane_id: {"delivered": [], "settled": []} for lane_id in lane_ids}
    ids = directory.ledger_ids()
    if not ids:
        return found
    view = directory.ledger_file(ids[-1])
    times = (one.time_ms for one in batches_of(directory, view) if not one.is_snapshot)
    first_ms = next((time_ms for time_ms in times if time_ms is not None), None)
    for batch in batches_of(directory, view):
        after_ms = None if batch.is_snapshot else batch.time_ms
        before_ms = first_ms
        if after_ms is not None:
            has_time = any(isinstance(record, journal.Time) for record in batch.records)
            before_ms = after_ms if has_time else after_ms + _WITHIN_MS
        when = {
            "after": time_text(after_ms),
            "before": time_text(before_ms),
            "ledger_batch": None if batch.is_snapshot else batch.number,
        }
        for record in batch.records:
            lane = found.get(lane_of(record) or -1)
            if lane is None:
                continue
            lane["settled"] += [(first, end, when) for first, end in settled_ranges(record)]
            if isinstance(record, journal.Delivered):
                lane["delivered"].append((0, record.upto, when))
            elif isinstance(record, journal.LaneState):
                lane["delivered"].append((0, record.delivered, when))
    return found


def _story(
    item: dict[str, Any] | None, lane_id: int, offset: int, events: dict[int, _Events]
) -> _Story:
    """`item`: the message; None when the log does not have it."""
    published = routed_to = None
    if item is not None:
        published = {key: item[key] for key in _PUBLISHED}
        routed_to = [{key: target[key] for key in _ROUTED} for target in item["targets"]]
    return {
        "lane": lane_id,
        "offset": offset,
        "lsn": None if item is None else item["lsn"],
        "message_id": ((item or {}).get("properties") or {}).get("message_id"),
        "published": published,
        "routed_to": routed_to,
        "delivered": _first(events[lane_id]["delivered"], offset),
        "settled": _first(events[lane_id]["settled"], offset),
        "dead_lettered": None,
        "damage": None if item is None else item["damage"],
    }


def _first(events: list[_Event], offset: int) -> dict[str, Any] | None:
    """What is told first of this message."""
    return next((when for first, end, when in events if first <= offset < end), None)


def _life(story: _Story) -> Iterator[tuple[str, Cell]]:
    """One message's life, line by line."""
    published = story["published"]
    unsettled = "no: it waits"
    if published is None:
        yield "published", "the log does not have it (any more)"
        unsettled = "nothing says so: it may never have been"
    else:
        to = f"exchange '{published['exchange']}', routing key '{published['routing_key']}'"
        lines = [f"{published['time'] or '?'} to {to}"]
        if story["damage"]:
            lines.append(f"DAMAGED: {story['damage']}")
        if story["message_id"] is not None:
            lines.append(f"message_id {story['message_id']}")
        place = f"{published['file']} at byte {published['position']}"
        lines.append(f"LSN {story['lsn']}, {published['body_bytes']:,} bytes, {place}")
        yield "published", lines
        yield "routed to", target_lines(story["routed_to"])
    delivered, settled = story["delivered"], story["settled"]
    yield "delivered", "not yet" if delivered is None else _told(delivered)
    yield "settled", unsettled if settled is None else _told(settled)
