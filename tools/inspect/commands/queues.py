"""`qlog inspect queues`: what waits in which queue, as far as a directory can tell.

Only the broker's memory says which consumer holds a message. A directory says which messages are
`unsettled`, and how many of these lie below the delivered high-water mark: these were handed to a
consumer once, and are with one now, or came back. Transient messages are in a directory only if
they were paged out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from qlog.tools.inspect.command import command
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import LaneTally, survey, tallied, views_of
from qlog.tools.inspect.rows import Report, counted, name, number, size


@dataclass(frozen=True, slots=True)
class _Row:
    vhost: str | None
    queue: str | None
    durable: bool | None
    lanes: list[int]
    unsettled: int
    handed_out: int
    first_offset: int | None
    next_offset: int
    delivered_below: int
    stored_bytes: int
    spilled: int

    @classmethod
    def of(cls, directory: Directory, lane_id: int, lane: LaneTally) -> _Row:
        """What is known of a lane: by the log, the ledger and the index."""
        ledger, index = directory.ledger, directory.index_facts
        queue = directory.queue_of(lane_id)
        state = ledger.lanes.get(lane_id)
        row = None if index is None else index.lanes.get(lane_id)
        indexed = (0, 0, 0) if row is None else (row.next_qseq, row.delivered, row.spilled)
        return cls(
            None if queue is None else queue.vhost,
            None if queue is None else queue.name,
            None if queue is None else True,
            [lane_id],
            lane.unsettled,
            lane.handed_out,
            lane.first_qseq,
            max(lane.next_qseq, ledger.next_qseq(lane_id), indexed[0]),
            max(0 if state is None else state.delivered, indexed[1]),
            lane.stored_bytes,
            indexed[2],
        )


_COLUMNS = (
    name("vhost", lambda row: "?" if row.vhost is None else row.vhost),
    name("queue", lambda row: "? (its name is lost)" if row.queue is None else row.queue),
    number("lane", lambda row: row.lanes[0]),
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
    is what the next message gets, and all below delivered were given to a consumer once.
    """
    found = survey(directory, views_of(directory), verify=False)
    lanes = tallied(directory, found.segments)
    rows = []
    nameless = 0
    for lane_id in directory.lanes():
        row = _Row.of(directory, lane_id, lanes.get(lane_id, LaneTally()))
        if row.queue is None and not row.unsettled:
            nameless += 1
        elif vhost is None or row.vhost == vhost:
            rows.append(row)
    rows.sort(key=lambda row: (str(row.vhost), str(row.queue)))
    report.table(_COLUMNS, rows, key="queues")
    total = sum(row.unsettled for row in rows)
    report.say(f"{counted(len(rows), 'durable queue')}, {counted(total, 'unsettled message')}")
    report.notes += found.notes
    if nameless and directory.in_use:
        report.notes.append(
            f"{nameless} more queues are not durable: what they hold only the broker knows"
        )
    report.damage += found.damage
