"""`qlog inspect queues`: what waits in which queue, as far as a directory can tell.

Only the broker's memory says which consumer holds a message. A directory says which messages are
`unsettled`, and how many of these lie below the delivered high-water mark: these were handed to a
consumer once, and are with one now, or came back. Transient messages are in a directory only if
they were paged out.
"""

from typing import Annotated, Any

import typer

from qlog.tools.inspect.command import command
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import LaneTally, survey, tallied
from qlog.tools.inspect.rows import Report, counted, name, number, size


def _queue_text(queue: str | None, priority: int | None) -> str:
    if queue is None:
        return "? (its name is lost)"
    return f"{queue}, priority {priority}" if priority else queue


_COLUMNS = (
    name("vhost", lambda row: "?" if row["vhost"] is None else row["vhost"]),
    name("queue", lambda row: _queue_text(row["queue"], row["priority"])),
    number("lane", lambda row: row["lanes"][0]),
    number("un-\nsettled", "unsettled"),
    number("handed\nout", "handed_out"),
    number("first", "first_offset"),
    number("next", "next_offset"),
    number("deliv-\nered", "delivered_below"),
    size("size", "stored_bytes"),
)


@command
def queues(
    directory: Directory,
    report: Report,
    vhost: Annotated[str | None, typer.Option(help="Of this vhost only. [default: all]")] = None,
) -> None:
    """Show what waits in which queue.

    Unsettled: not acknowledged yet. Handed out: of those, at or below the delivered high-water, so
    given to a consumer at least once. Which of them a consumer holds now, only the running broker
    knows. Offsets count the messages of a queue from 0: first is the oldest that is unsettled, next
    is what the next message gets, and all below delivered were given to a consumer once. A priority
    queue has a row, with offsets of its own, for each priority that was used.
    """
    found = survey(directory)
    lanes, _ = tallied(directory, found.segments)
    rows = []
    nameless = 0
    for lane_id in directory.lanes():
        row = _row(directory, lane_id, lanes.get(lane_id, LaneTally()))
        if row["queue"] is None and not row["unsettled"]:
            nameless += 1
        elif vhost is None or row["vhost"] == vhost:
            rows.append(row)
    rows.sort(key=lambda row: (str(row["vhost"]), str(row["queue"]), -(row["priority"] or 0)))
    report.table(_COLUMNS, rows, key="queues")
    total = sum(row["unsettled"] for row in rows)
    # What has lost its name counts as one queue a lane.
    queue_count = len({(row["vhost"], row["queue"] or row["lanes"][0]) for row in rows})
    report.say(f"{counted(queue_count, 'durable queue')}, {counted(total, 'unsettled message')}")
    report.take(found)
    if nameless and directory.in_use:
        report.notes.append(
            f"{nameless} more queues are not durable: what they hold only the broker knows"
        )


def _row(directory: Directory, lane_id: int, tally: LaneTally) -> dict[str, Any]:
    """What log, ledger and index know of a lane."""
    ledger = directory.ledger
    queue = directory.owners.get(lane_id)
    state = ledger.lanes.get(lane_id)
    indexed = directory.index_facts.lanes.get(lane_id)
    next_offset = max(tally.next_qseq, ledger.next_qseq(lane_id))
    delivered = 0 if state is None else state.delivered
    if indexed is not None:
        next_offset = max(next_offset, indexed.next_qseq)
        delivered = max(delivered, indexed.delivered)
    return {
        "vhost": None if queue is None else queue.vhost,
        "queue": None if queue is None else queue.name,
        "durable": None if queue is None else True,
        "priority": None if queue is None else queue.level_of(lane_id),
        "lanes": [lane_id],
        "unsettled": tally.unsettled,
        "handed_out": tally.handed_out,
        "first_offset": tally.first_qseq,
        "next_offset": next_offset,
        "delivered_below": delivered,
        "stored_bytes": tally.stored_bytes,
        "spilled": 0 if indexed is None else indexed.spilled,
    }
