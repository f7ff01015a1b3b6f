"""`qlog inspect queues`: what waits in which queue, as far as a directory can tell.

Who holds a message without having settled it is in the broker's memory alone: a directory knows
`unsettled` messages, and of those how many lie below the delivered high-water, so that they were
handed to a consumer once, and are with one now or came back. Transient messages are in it only as
far as they were paged out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qlog.tools.inspect.command import (
    DATA_DIR_DEFAULT,
    AsJson,
    DataDir,
    finish,
    look_at,
    stop_for_rights,
)

if TYPE_CHECKING:
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.rows import Report


def queues(
    data_dir: DataDir = DATA_DIR_DEFAULT,
    vhost: Annotated[str | None, typer.Option(help="Of this vhost only. [default: all]")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what waits in which queue.

    Unsettled: not acknowledged yet. Handed out: of those, at or below the delivered high-water, so
    given to a consumer at least once. Which of them a consumer holds now, only the running broker
    knows. Offsets count the messages of a queue from 0: first is the oldest that is unsettled, next
    is what the next message gets, and all below delivered were given to a consumer once.
    """
    directory = look_at(data_dir)
    try:
        report = _report(directory, vhost)
    except PermissionError as error:
        stop_for_rights(error)
    finish(report, as_json=as_json)


def _report(directory: Directory, vhost: str | None) -> Report:
    from qlog.tools.inspect.look.log import LaneTally, survey, tally, views_of
    from qlog.tools.inspect.rows import Bytes, Column, Report, counted, progress

    views = views_of(directory)
    found = survey(directory, views, verify=False, advance=lambda size: None)
    tallies: dict[int, LaneTally] = {}
    with progress("counting", sum(segment.size_bytes for segment in found.segments)) as bar:
        for segment in found.segments:
            if segment.counts:
                tally(directory, segment.columns, tallies)
            bar.advance(segment.size_bytes)
    report = Report("queues", str(directory.root), directory.in_use)
    report.columns = (
        Column("vhost", name=True),
        Column("queue", name=True),
        Column("lane", right=True),
        Column("un-\nsettled", right=True),
        Column("handed\nout", right=True),
        Column("first", right=True),
        Column("next", right=True),
        Column("deliv-\nered", right=True),
        Column("size", right=True),
    )
    indexed = {} if directory.index_facts is None else directory.index_facts.lanes
    items = []
    nameless = 0
    for lane_id in directory.lanes():
        queue = directory.queue_of(lane_id)
        lane = tallies.get(lane_id, LaneTally())
        if queue is None and not lane.unsettled:
            nameless += 1
            continue
        if vhost is not None and (queue is None or queue.vhost != vhost):
            continue
        state = directory.ledger.lanes.get(lane_id)
        row = indexed.get(lane_id)
        next_qseq = max(
            lane.next_qseq,
            directory.ledger.next_qseq(lane_id),
            0 if row is None else row.next_qseq,
        )
        first_qseq = lane.first_qseq
        delivered = max(
            0 if state is None else state.delivered, 0 if row is None else row.delivered
        )
        items.append(
            {
                "vhost": None if queue is None else queue.vhost,
                "queue": None if queue is None else queue.name,
                "durable": None if queue is None else True,
                "lanes": [lane_id],
                "unsettled": lane.unsettled,
                "handed_out": lane.handed_out,
                "first_offset": first_qseq,
                "next_offset": next_qseq,
                "delivered_below": delivered,
                "stored_bytes": lane.stored_bytes,
                "spilled": 0 if row is None else row.spilled,
            }
        )
        report.rows.append(
            (
                "?" if queue is None else queue.vhost,
                "? (its name is lost)" if queue is None else queue.name,
                str(lane_id),
                lane.unsettled,
                lane.handed_out,
                first_qseq,
                next_qseq,
                delivered,
                Bytes(lane.stored_bytes),
            )
        )
    order = sorted(
        range(len(items)), key=lambda at: (str(items[at]["vhost"]), str(items[at]["queue"]))
    )
    report.rows = [report.rows[at] for at in order]
    report.content = {"queues": [items[at] for at in order]}
    total = sum(int(str(item["unsettled"])) for item in items)
    in_use = ", in use by a broker" if directory.in_use else ""
    report.summary = (
        f"{directory.root}{in_use}: {counted(len(items), 'durable queue')}, "
        f"{counted(total, 'unsettled message')}"
    )
    report.notes = directory.notes + found.notes
    if nameless and directory.in_use:
        report.notes.append(
            f"{nameless} more queues are not durable: what they hold only the broker knows"
        )
    report.damage = directory.damage + found.damage
    return report
