"""`qlog inspect ledger`: what the ledger says, batch by batch. No secrets are shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Annotated, Any

import typer

from qlog.storage.journal import Defined
from qlog.storage.write.ledger import Record
from qlog.tools.inspect.command import OfVhost, command, find_lanes
from qlog.tools.inspect.look.decode import lane_text, time_text
from qlog.tools.inspect.look.definitions import entry_text
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.settlements import (
    LedgerBatch,
    batches_of,
    described,
    lane_of,
    ranges_text,
    settled_ranges,
)
from qlog.tools.inspect.rows import Cell, Report, counted, name, number, size, text


@dataclass(slots=True)
class _File:
    id: int
    file: str
    state: str
    size_bytes: int
    header: str
    used_bytes: int = 0
    batches: int = 0
    records: int = 0


_FILE_COLUMNS = (
    text("file"),
    text("state"),
    text("header"),
    size("size", "size_bytes"),
    size("used", "used_bytes"),
    number("batches"),
    number("records"),
)
_LINE_COLUMNS = (
    number("batch", itemgetter(0)),
    text("time (UTC)", itemgetter(1)),
    name("queue", itemgetter(2)),
    name("what", itemgetter(3)),
)


@dataclass(slots=True)
class _Batches:
    """The batches to be shown: all from a number on, or the last ones."""

    first: int | None
    limit: int
    chosen: deque[tuple[str, LedgerBatch]]
    next_batch: int | None = None

    def take(self, file: str, batch: LedgerBatch) -> None:
        """Take in one more batch."""
        if self.first is None:
            self.chosen.append((file, batch))
            if len(self.chosen) > self.limit:
                self.chosen.popleft()
        elif batch.number is None or batch.number >= self.first:
            if len(self.chosen) < self.limit:
                self.chosen.append((file, batch))
            elif self.next_batch is None:
                self.next_batch = batch.number


@command
def ledger(
    directory: Directory,
    report: Report,
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
) -> None:
    """Show acks, deliveries, definitions, segments given up.

    A file begins with a snapshot of all that counts, so the newest one is enough; batches of
    what came since follow. A batch without a time was written within a second of the time before.
    """
    lane_ids = None if queue is None else find_lanes(directory, vhost, queue)
    batches = _Batches(from_batch, limit, deque())
    files = list(_read(directory, lane_ids, batches))
    report.table(_FILE_COLUMNS, files, key="files")
    lines = [row for _, batch in batches.chosen for row in _rows(directory, batch, full)]
    report.table(_LINE_COLUMNS, lines)
    report.content["batches"] = [
        _document(directory, file, batch, full) for file, batch in batches.chosen
    ]
    report.content["next_batch"] = batches.next_batch
    total = sum(file.batches for file in files)
    shown = len(batches.chosen)
    more = ""
    if batches.next_batch is not None:
        more = f"; there are more: --from {batches.next_batch}"
    elif from_batch is None and shown < total and lane_ids is None:
        more = f"; these are the last {shown}: --from 0 shows the first"
    noun = "batch" if total == 1 else "batches"
    report.say(f"{counted(len(files), 'ledger file')}, {total:,} {noun}{more}")


def _read(
    directory: Directory, lane_ids: frozenset[int] | None, batches: _Batches
) -> Iterator[_File]:
    ids = directory.ledger_ids()
    for file_id in ids:
        try:
            view = directory.ledger_file(file_id)
            state = "current" if file_id == ids[-1] else "superseded"
            header = str(view.header_verdict)
            file = _File(file_id, directory.relative(view.path), state, view.size, header)
            for batch in batches_of(directory, view):
                file.batches += batch.damage is None
                file.records += len(batch.records)
                file.used_bytes = batch.end
                if lane_ids is not None:
                    batch.records = [one for one in batch.records if lane_of(one) in lane_ids]
                if lane_ids is None or batch.records or batch.damage is not None:
                    batches.take(file.file, batch)
        except FileNotFoundError:  # the next file took over
            continue
        yield file


def _document(directory: Directory, file: str, batch: LedgerBatch, full: bool) -> dict[str, Any]:
    records = []
    for record in batch.records if full or not batch.is_snapshot else ():
        item = described(record)
        if "lane" in item:
            item |= directory.named(item["lane"])
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


def _rows(directory: Directory, batch: LedgerBatch, full: bool) -> Iterator[tuple[Cell, ...]]:
    """A batch for people: a row for each queue."""
    what = "?" if batch.number is None else str(batch.number)
    time = None if batch.time_ms is None else time_text(batch.time_ms)
    if batch.damage is not None:
        bytes_ = batch.end - batch.position
        yield what, None, None, f"DAMAGED: {bytes_} bytes from {batch.position}: {batch.damage}"
        return
    lines: dict[int | None, list[str]] = {}
    for record in batch.records:
        line = _text(record)
        lane_id = lane_of(record)
        in_brief = batch.is_snapshot and not full
        if line and not (in_brief and (lane_id is not None or isinstance(record, Defined))):
            lines.setdefault(lane_id, []).append(line)
    if batch.is_snapshot and not full:
        lanes = counted(sum(lane_of(one) is not None for one in batch.records), "lane")
        defined = counted(sum(isinstance(one, Defined) for one in batch.records), "definition")
        brief = f"snapshot of {lanes} and {defined} (--full shows them)"
        lines = {None: [brief, *lines.get(None, [])]}
    for lane_id, texts in lines.items():
        yield what, time, None if lane_id is None else lane_text(directory, lane_id), texts


def _text(record: Record) -> str:
    """A record for people; empty when it is shown otherwise."""
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
        case "restored":
            ranges = [(first, last + 1) for first, last in item["ranges"]]
            return f"restored {ranges_text(ranges)}"
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
        case "defined":
            text = entry_text(item["what"], item["name"])
            return f"{text} was deleted" if item["deleted"] else f"{text} was defined"
        case "snapshot_end":
            return "the snapshot is complete"
    return f"unknown: {item['raw']}"


def _runs_of(ids: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for one in sorted(ids):
        if runs and runs[-1][1] == one:
            runs[-1] = (runs[-1][0], one + 1)
        else:
            runs.append((one, one + 1))
    return runs
