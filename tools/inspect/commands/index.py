"""`qlog inspect index`: what is in the index, and whether it agrees with log and ledger."""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated

import typer

from qlog.storage.index.index import SPILL
from qlog.tools.inspect.command import command
from qlog.tools.inspect.look.decode import queue_text
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.environment import Unreadable
from qlog.tools.inspect.look.pointers import (
    Comparison,
    IndexContents,
    look_at_index,
    read_contents,
)
from qlog.tools.inspect.rows import (
    Bytes,
    Cell,
    Damage,
    Report,
    counted,
    name,
    number,
    picked,
    size,
)

_DIFFERENCES_SHOWN_MAX = 50
_LANE_COLUMNS = (
    number("lane"),
    name("queue", lambda row: queue_text(row["vhost"], row["queue"], row["lane"])),
    number("pointers"),
    number("spilled"),
    number("blocks"),
    number("floor"),
    number("complete\nbelow", "complete_below"),
    number("next", "next_offset"),
)
_LANE_FIELDS = "next_offset=next_qseq complete_below=placed_upto floor delivered_below=delivered"
_SEGMENT_COLUMNS = (
    number("segment", "id"),
    number("pointers", "unsettled"),
    size("size", "unsettled_bytes"),
)


@command
def index(
    directory: Directory,
    report: Report,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Hold it against log and ledger.")
    ] = True,
) -> None:
    """Show the index; compare it with the log.

    The index says where the messages are; it is derived from log and ledger, and can be made anew
    at any time. Every message that waits must have a pointer to its record, and every pointer its
    record. On a running broker it is as of the last checkpoint.
    """
    contents = comparison = None
    try:
        if compare:
            contents, found, comparison = look_at_index(directory)
            report.damage += [item for item in found.damage if item not in directory.damage]
        else:
            contents = read_contents(directory.paths.index)
    except Unreadable:
        if directory.index_facts.readable:
            contents = read_contents(directory.paths.index)  # it changed: now it must be readable
    report.content = {"index": None, "lanes": [], "segments": [], "spill": None, "comparison": None}
    if contents is None:
        report.say("no index")
        report.notes += advice(report.all_damage)
        return
    _show(directory, report, contents)
    if comparison is not None:
        _show_comparison(directory, report, comparison)
    waiting = sum(row.alive + row.spilled for row in contents.lanes.values())
    agrees = comparison is not None and not report.all_damage
    report.say(
        f"{len(contents.lanes):,} lanes, {waiting:,} pointers to messages that wait"
        + ("; it agrees with log and ledger" if agrees else "")
    )
    report.notes += advice(report.all_damage)


def _show(directory: Directory, report: Report, contents: IndexContents) -> None:
    at = None
    if contents.checkpoint is not None:
        at = picked(contents.checkpoint, "lsn epoch segment=segment_id position ledger spill_next")
    report.content["index"] = {
        "checkpoint": at,
        "file_bytes": contents.file_bytes,
        **picked(contents.usage, "map_bytes page_bytes pages pages_used=used"),
    }
    report.facts(_facts(contents))
    blocks = Counter(lane_id for lane_id, _ in contents.blocks)
    lanes = [
        {
            "lane": lane_id,
            **directory.named(lane_id),
            **picked(row, "pointers=alive spilled"),
            "blocks": blocks[lane_id],
            **picked(row, _LANE_FIELDS),
        }
        for lane_id, row in sorted(contents.lanes.items())
    ]
    report.table(_LANE_COLUMNS, lanes, key="lanes")
    every = [
        {"id": segment_id, **picked(live, "unsettled=count unsettled_bytes=size")}
        for segment_id, live in sorted(contents.live.items())
    ]
    rows = [row for row in every if row["id"] < SPILL]
    spilled = every[len(rows) :]
    spill = {"files": len(spilled)}
    spill |= {key: sum(row[key] for row in spilled) for key in ("unsettled", "unsettled_bytes")}
    report.content |= {"segments": rows, "spill": spill}
    last = {"id": f"spill/ ({counted(spill['files'], 'file')})", **spill}
    report.table(_SEGMENT_COLUMNS, [*rows, last] if spill["unsettled"] else rows)
    report.damage += [Damage("index.lmdb", what) for what in contents.damaged]


def _facts(contents: IndexContents) -> Iterator[tuple[str, Cell]]:
    usage = contents.usage
    checkpoint = contents.checkpoint
    if checkpoint is None:
        yield "checkpoint", "none: it was never finished; the next start makes it anew"
    else:
        at = checkpoint.ledger
        yield "checkpoint", f"LSN {checkpoint.lsn:,}, epoch {checkpoint.epoch}"
        yield "  in the log", f"segment {checkpoint.segment_id}, byte {checkpoint.position}"
        where = f"file {at.file_id}, batch {at.number}, byte {at.position}"
        yield "  in the ledger", where
    by_database = ", ".join(f"{key} {pages:,}" for key, pages in usage.used.items())
    used = sum(usage.used.values())
    yield "file", Bytes(contents.file_bytes)
    yield "  pages", [f"{usage.pages:,}, of which {used:,} hold data", by_database]


def _show_comparison(directory: Directory, report: Report, comparison: Comparison) -> None:
    items = [difference.document(directory) for difference in comparison.differences]
    report.content["comparison"] = {
        "pointers": comparison.pointers,
        "spilled": comparison.spilled,
        "differences": items,
        "wrong_counts": comparison.counts,
    }
    texts = [str(item["text"]) for item in items] + comparison.counts
    shown = texts[:_DIFFERENCES_SHOWN_MAX]
    if len(texts) > len(shown):
        shown.append(f"{len(texts) - len(shown)} more differences (all with --json)")
    report.damage += [Damage("index.lmdb", what) for what in shown]


def advice(damage: list[Damage]) -> Iterator[str]:
    """What to do when index or catalog are wrong, as notes."""
    files = {item.file for item in damage}
    if files and files <= {"index.lmdb", "catalog.lmdb"}:
        yield (
            "index and catalog are derived: nothing is lost by this; a start makes them anew, and "
            "so does `qlog inspect rebuild-index`"
        )
    elif "index.lmdb" in files:
        yield (
            "not only the index is damaged: `qlog inspect repair` has it made anew after what only "
            "the index still knows was saved"
        )
