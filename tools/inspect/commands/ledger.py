"""`qlog inspect ledger`: what the ledger says, batch by batch. No secrets are shown."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import typer

from qlog.storage.journal import Defined
from qlog.tools.inspect.command import OfQueue, OfVhost, command, find_lanes
from qlog.tools.inspect.look.decode import lane_text
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.settlements import (
    LedgerBatch,
    batches_of,
    described,
    lane_of,
    told,
)
from qlog.tools.inspect.rows import Cell, Report, counted, name, number, picked, size, text


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
_FIELDS = (
    "number file position end epoch time log_durable_lsn ledger_durable_batch=synced_number "
    "snapshot=is_snapshot record_count"
)
_LINE_COLUMNS = (number("batch", 0), text("time (UTC)", 1), name("queue", 2), name("what", 3))


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
    queue: OfQueue = None,
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
    files: list[_File] = []
    batches = _read(directory, lane_ids, files)
    next_batch = None
    if from_batch is None:
        chosen = list(deque(batches, maxlen=limit))
    else:
        batches = (one for one in batches if one.number is None or one.number >= from_batch)
        chosen = list(islice(batches, limit))
        for batch in batches:  # to the end: the files are counted
            next_batch = batch.number if next_batch is None else next_batch
    report.table(_FILE_COLUMNS, files, key="files")
    report.table(_LINE_COLUMNS, [row for one in chosen for row in _rows(directory, one, full)])
    report.content["batches"] = [_document(directory, batch, full) for batch in chosen]
    report.content["next_batch"] = next_batch
    total = sum(file.batches for file in files)
    more = ""
    if next_batch is not None:
        more = f"; there are more: --from {next_batch}"
    elif from_batch is None and len(chosen) < total and lane_ids is None:
        more = f"; these are the last {len(chosen)}: --from 0 shows the first"
    noun = "batch" if total == 1 else "batches"
    report.say(f"{counted(len(files), 'ledger file')}, {total:,} {noun}{more}")


def _read(
    directory: Directory, lane_ids: frozenset[int] | None, files: list[_File]
) -> Iterator[LedgerBatch]:
    """The batches that concern these lanes, or all; `files` is filled in."""
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
                    yield batch
        except FileNotFoundError:  # the next file took over
            continue
        files.append(file)


def _document(directory: Directory, batch: LedgerBatch, full: bool) -> dict[str, Any]:
    records = []
    for record in batch.records if full or not batch.is_snapshot else ():
        item = described(record)
        if "lane" in item:
            item |= directory.named(item["lane"])
        records.append(item)
    return picked(batch, _FIELDS) | {"records": records, "damage": batch.damage}


def _rows(directory: Directory, batch: LedgerBatch, full: bool) -> Iterator[tuple[Cell, ...]]:
    """A batch for people: a row for each queue."""
    number = "?" if batch.number is None else str(batch.number)
    if batch.damage is not None:
        bytes_ = batch.end - batch.position
        yield number, None, None, f"DAMAGED: {bytes_} bytes from {batch.position}: {batch.damage}"
        return
    lines: dict[int | None, list[str]] = {}
    counts: Counter[str] = Counter()
    for record in batch.records:
        lane_id = lane_of(record)
        if batch.is_snapshot and not full and (lane_id is not None or isinstance(record, Defined)):
            counts["definition" if lane_id is None else "lane"] += 1
        elif line := told(described(record)):
            lines.setdefault(lane_id, []).append(line)
    if batch.is_snapshot and not full:
        of = f"{counted(counts['lane'], 'lane')} and {counted(counts['definition'], 'definition')}"
        lines = {None: [f"snapshot of {of} (--full shows them)", *lines.get(None, [])]}
    for lane_id, texts in lines.items():
        yield number, batch.time, None if lane_id is None else lane_text(directory, lane_id), texts
