"""`qlog inspect ledger`: what the ack ledger says, batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
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
    stop_for_rights,
)

if TYPE_CHECKING:
    from qlog.storage.write.ledger import Record
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.look.settlements import LedgerBatch
    from qlog.tools.inspect.rows import Report


def ledger(
    data_dir: DataDir = DATA_DIR_DEFAULT,
    from_batch: Annotated[
        int | None,
        typer.Option(
            "--from", metavar="BATCH", min=0, help="Begin with this batch. [default: the last ones]"
        ),
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only what concerns this queue.")
    ] = None,
    vhost: OfVhost = "/",
    limit: Annotated[int, typer.Option(min=1, help="Show so many batches at most.")] = 20,
    full: Annotated[
        bool, typer.Option("--full", help="Show each record of the snapshot at a file's head too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show acks, deliveries, segments given up.

    A file begins with a snapshot of all that counts, so the newest one is enough; batches of
    what came since follow. A batch without a time was written within a second of the time before.
    """
    directory = look_at(data_dir)
    lane_ids = None if queue is None else find_lanes(directory, vhost, queue)
    try:
        report = _report(directory, from_batch, lane_ids, limit, full)
    except PermissionError as error:
        stop_for_rights(error)
    finish(report, as_json=as_json)


def _report(
    directory: Directory,
    from_batch: int | None,
    lane_ids: frozenset[int] | None,
    limit: int,
    full: bool,
) -> Report:
    from qlog.tools.inspect.look.settlements import batches_of
    from qlog.tools.inspect.rows import Bytes, Column, Report, Table, counted

    report = Report("ledger", str(directory.root), directory.in_use)
    files: list[dict[str, Any]] = []
    chosen: deque[tuple[str, LedgerBatch]] = deque()
    next_batch: int | None = None
    ids = directory.ledger_ids()
    for file_id in ids:
        try:
            view = directory.ledger_file(file_id)
            name = directory.relative(view.path)
            state = "current" if file_id == ids[-1] else "superseded"
            file: dict[str, Any] = {
                "id": file_id,
                "file": name,
                "state": state,
                "size_bytes": view.size,
            }
            file |= {"header": str(view.header_verdict), "used_bytes": 0}
            file |= {"batches": 0, "records": 0}
            for batch in batches_of(directory, view):
                file["batches"] += batch.damage is None
                file["records"] += len(batch.records)
                file["used_bytes"] = batch.end
                if lane_ids is not None:
                    batch.records = list(_about(batch.records, lane_ids))
                    if not batch.records and batch.damage is None:
                        continue
                if from_batch is None:
                    chosen.append((name, batch))
                    if len(chosen) > limit:
                        chosen.popleft()
                elif batch.number is None or batch.number >= from_batch:
                    if len(chosen) < limit:
                        chosen.append((name, batch))
                    elif next_batch is None:
                        next_batch = batch.number
        except FileNotFoundError:  # the next file took over
            continue
        files.append(file)
    report.sections = [
        Table(
            "",
            (
                Column("file"),
                Column("state"),
                Column("header"),
                Column("size", right=True),
                Column("used", right=True),
                Column("batches", right=True),
                Column("records", right=True),
            ),
            [
                (
                    file["file"],
                    file["state"],
                    file["header"],
                    Bytes(file["size_bytes"]),
                    Bytes(file["used_bytes"]),
                    file["batches"],
                    file["records"],
                )
                for file in files
            ],
        ),
        Table(
            "",
            (
                Column("batch", right=True),
                Column("time (UTC)"),
                Column("queue", name=True),
                Column("what", name=True),
            ),
            [row for _, batch in chosen for row in _rows(directory, batch, full)],
        ),
    ]
    items = [_item(directory, name, batch, full) for name, batch in chosen]
    report.content = {"files": files, "batches": items, "next_batch": next_batch}
    total = sum(file["batches"] for file in files)
    in_use = ", in use by a broker" if directory.in_use else ""
    report.summary = (
        f"{directory.root}{in_use}: {counted(len(files), 'ledger file')}, "
        f"{counted(total, 'batch').replace('batchs', 'batches')}"
    )
    if next_batch is not None:
        report.summary += f"; there are more: --from {next_batch}"
    elif from_batch is None and len(chosen) < total and lane_ids is None:
        report.summary += f"; these are the last {len(chosen)}: --from 0 shows the first"
    report.notes = list(directory.notes)
    report.damage = list(directory.damage)
    return report


def _about(records: list[Record], lane_ids: frozenset[int]) -> Iterator[Record]:
    from qlog.tools.inspect.look.settlements import lane_of

    return (record for record in records if lane_of(record) in lane_ids)


def _item(directory: Directory, file: str, batch: LedgerBatch, full: bool) -> dict[str, Any]:
    from qlog.tools.inspect.look.decode import time_text
    from qlog.tools.inspect.look.settlements import described

    records = []
    for record in batch.records if full or not batch.is_snapshot else ():
        item = described(record)
        if "lane" in item:
            owner = directory.queue_of(item["lane"])
            item["vhost"] = None if owner is None else owner.vhost
            item["queue"] = None if owner is None else owner.name
        records.append(item)
    return {
        "number": batch.number,
        "file": file,
        "position": batch.position,
        "end": batch.end,
        "epoch": batch.epoch,
        "time": None if batch.time_ms is None else time_text(batch.time_ms),
        "log_durable_lsn": batch.log_durable_lsn,
        "ledger_durable_batch": batch.synced_number,
        "snapshot": batch.is_snapshot,
        "record_count": len(batch.records),
        "records": records,
        "damage": batch.damage,
    }


def _rows(directory: Directory, batch: LedgerBatch, full: bool) -> Iterator[tuple[Any, ...]]:
    """What a batch says, for people: a row for each queue."""
    from qlog.tools.inspect.look.decode import queue_text, time_text
    from qlog.tools.inspect.look.settlements import lane_of

    number = "?" if batch.number is None else str(batch.number)
    time = None if batch.time_ms is None else time_text(batch.time_ms)
    if batch.damage is not None:
        size = batch.end - batch.position
        yield number, None, None, f"DAMAGED: {size} bytes from {batch.position}: {batch.damage}"
        return
    lines: dict[int | None, list[str]] = {}
    for record in batch.records:
        text = _text(record)
        lane_id = lane_of(record)
        if text and (full or not batch.is_snapshot or lane_id is None):
            lines.setdefault(lane_id, []).append(text)
    if batch.is_snapshot and not full:
        lanes = sum(lane_of(record) is not None for record in batch.records)
        noun = "1 lane" if lanes == 1 else f"{lanes:,} lanes"
        lines = {None: [f"snapshot of {noun} (--full shows them)", *lines.get(None, [])]}
    for lane_id, texts in lines.items():
        name = None
        if lane_id is not None:
            owner = directory.queue_of(lane_id)
            name = queue_text(
                None if owner is None else owner.vhost,
                None if owner is None else owner.name,
                lane_id,
            )
        yield number, time, name, texts


def _text(record: Record) -> str:
    """A record for people; empty when it is shown otherwise."""
    from qlog.tools.inspect.look.settlements import described, ranges_text, settled_ranges

    item = described(record)
    match item["kind"]:
        case "ack":
            return f"settled {ranges_text(settled_ranges(record))}"
        case "lane":
            settled = ranges_text(settled_ranges(record)) or "none"
            return (
                f"next {item['next_offset']}, delivered below {item['delivered_below']}, "
                f"settled {settled}"
            )
        case "delivered":
            return f"delivered below {item['delivered_below']}"
        case "attempts":
            return "; ".join(
                f"came back {number} times: {ranges_text([(first, last + 1)])}"
                for first, last, number in item["ranges"]
            )
        case "lane_deleted":
            return "the queue was deleted"
        case "segments":
            ids = ranges_text(_runs_of(item["ids"])) or "none"
            return f"segments there: {ids}; the next is {item['next_id']}"
        case "segment_given_up":
            return f"segment {item['id']} was given up"
        case "segments_replaced":
            return f"segment {item['id']} replaces {ranges_text(_runs_of(item['ids']))}"
        case "time":
            return ""
        case "snapshot_end":
            return "the snapshot is complete"
    return f"unknown: {item['raw']}"


def _runs_of(ids: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in sorted(ids):
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs
