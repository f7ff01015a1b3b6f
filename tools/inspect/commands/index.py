"""`qlog inspect index`: what is in the index, and whether it agrees with log and ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlog.tools.inspect.command import (
    DATA_DIR_DEFAULT,
    AsJson,
    DataDir,
    finish,
    look_at,
    stop,
    stop_for_rights,
)

if TYPE_CHECKING:
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.look.pointers import Comparison, Difference, IndexContents
    from qlog.tools.inspect.rows import Damage, Report

_LOOKS_MAX = 4
_DIFFERENCES_SHOWN_MAX = 50


def index(
    data_dir: DataDir = DATA_DIR_DEFAULT,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Hold it against log and ledger.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Show the index; compare it with the log.

    The index says where the messages are; it is derived from log and ledger, and can be made anew
    at any time. Every message that waits must have a pointer to its record, and every pointer its
    record. On a running broker it is as of the last checkpoint.
    """
    directory = look_at(data_dir)
    try:
        report = _report(directory, compare)
        report.notes += advice(report.damage)
    except PermissionError as error:
        stop_for_rights(error)
    finish(report, as_json=as_json)


def _report(directory: Directory, compare: bool) -> Report:
    from qlog.tools.inspect.look.environment import Forbidden, Unreadable
    from qlog.tools.inspect.look.pointers import read_contents
    from qlog.tools.inspect.rows import Report

    report = Report("index", str(directory.root), directory.in_use)
    contents = None
    comparison = None
    try:
        contents, comparison = look(directory, compare)
        for _ in range(_LOOKS_MAX - 1 if directory.in_use else 0):
            if comparison is None or not (comparison.differences or comparison.counts):
                break  # else a checkpoint or a compaction may have come in between
            directory = type(directory)(directory.root)
            contents, comparison = look(directory, compare)
    except Forbidden as error:
        stop(str(error))
    except Unreadable:
        if directory.index_facts is not None:
            contents = read_contents(directory.paths.index)  # it changed: now it must be readable
    report.notes = list(directory.notes)
    report.damage = list(directory.damage)
    in_use = ", in use by a broker" if directory.in_use else ""
    report.content = {"index": None, "lanes": [], "segments": [], "spill": None, "comparison": None}
    if contents is None:
        report.summary = f"{directory.root}{in_use}: no index"
        return report
    _show(directory, report, contents)
    if comparison is not None:
        _show_comparison(directory, report, contents, comparison)
    report.summary = (
        f"{directory.root}{in_use}: {len(contents.lanes):,} lanes, "
        f"{sum(row.alive + row.spilled for row in contents.lanes.values()):,} pointers to messages "
        "that wait"
    )
    if comparison is not None and not report.damage:
        report.summary += "; it agrees with log and ledger"
    return report


def look(directory: Directory, compare: bool) -> tuple[IndexContents, Comparison | None]:
    """The index first: ledger and log, read after it, then know at least as much."""
    from qlog.tools.inspect.look.log import survey, views_of
    from qlog.tools.inspect.look.pointers import compare as compare_pointers
    from qlog.tools.inspect.look.pointers import read_contents
    from qlog.tools.inspect.rows import progress

    contents = read_contents(directory.paths.index)
    if not compare:
        return contents, None
    directory.refresh()
    views = views_of(directory)
    found = survey(directory, views, verify=False, advance=lambda size: None)
    with progress("comparing", sum(view.size for view in views)) as bar:
        comparison = compare_pointers(directory, contents, found.segments, bar.advance)
    for item in found.damage:
        if item not in directory.damage:
            directory.damage.append(item)
    return contents, comparison


def _show(directory: Directory, report: Report, contents: IndexContents) -> None:
    from qlog.storage.index.index import SPILL, Live
    from qlog.tools.inspect.look.decode import queue_text
    from qlog.tools.inspect.rows import Bytes, Cell, Column, Damage, Facts, Table, counted

    usage = contents.usage
    checkpoint = contents.checkpoint
    used = sum(usage.used.values())
    facts: list[tuple[str, Cell]] = []
    if checkpoint is None:
        facts.append(("checkpoint", "none: it was never finished; the next start builds it anew"))
    else:
        at = checkpoint.ledger
        facts += [
            ("checkpoint", f"LSN {checkpoint.lsn:,}, epoch {checkpoint.epoch}"),
            (
                "  in the log",
                f"segment {checkpoint.segment_id}, byte {checkpoint.position}",
            ),
            (
                "  in the ledger",
                f"file {at.file_id}, batch {at.number}, byte {at.position}",
            ),
        ]
    by_database = ", ".join(f"{name} {pages:,}" for name, pages in usage.used.items())
    facts += [
        ("file", Bytes(contents.file_bytes)),
        ("  pages", [f"{usage.pages:,}, of which {used:,} hold data", by_database]),
    ]
    report.sections.append(Facts("", facts))
    lanes = []
    rows: list[Sequence[Cell]] = []
    blocks: dict[int, int] = {}
    for lane_id, _ in contents.blocks:
        blocks[lane_id] = blocks.get(lane_id, 0) + 1
    for lane_id, row in sorted(contents.lanes.items()):
        queue = directory.queue_of(lane_id)
        vhost, name = (None, None) if queue is None else (queue.vhost, queue.name)
        lanes.append(
            {
                "lane": lane_id,
                "vhost": vhost,
                "queue": name,
                "pointers": row.alive,
                "spilled": row.spilled,
                "blocks": blocks.get(lane_id, 0),
                "next_offset": row.next_qseq,
                "complete_below": row.placed_upto,
                "floor": row.floor,
                "delivered_below": row.delivered,
            }
        )
        rows.append(
            (
                str(lane_id),
                queue_text(vhost, name, lane_id),
                row.alive,
                row.spilled,
                blocks.get(lane_id, 0),
                row.floor,
                row.placed_upto,
                row.next_qseq,
            )
        )
    report.sections.append(
        Table(
            "",
            (
                Column("lane", right=True),
                Column("queue", name=True),
                Column("pointers", right=True),
                Column("spilled", right=True),
                Column("blocks", right=True),
                Column("floor", right=True),
                Column("complete\nbelow", right=True),
                Column("next", right=True),
            ),
            rows,
        )
    )
    live = sorted(item for item in contents.live.items() if item[0] < SPILL)
    paged = [item for segment_id, item in contents.live.items() if segment_id >= SPILL]
    spill = Live(sum(item.count for item in paged), sum(item.size for item in paged))
    rows = [(str(segment_id), item.count, Bytes(item.size)) for segment_id, item in live]
    if spill.count:
        rows.append((f"spill/ ({counted(len(paged), 'file')})", spill.count, Bytes(spill.size)))
    report.sections.append(
        Table(
            "",
            (
                Column("segment", right=True),
                Column("pointers", right=True),
                Column("size", right=True),
            ),
            rows,
        )
    )
    report.content |= {
        "index": {
            "checkpoint": None
            if checkpoint is None
            else {
                "lsn": checkpoint.lsn,
                "epoch": checkpoint.epoch,
                "segment": checkpoint.segment_id,
                "position": checkpoint.position,
                "ledger": asdict(checkpoint.ledger),
                "spill_next": checkpoint.spill_next,
            },
            "file_bytes": contents.file_bytes,
            "map_bytes": usage.map_bytes,
            "page_bytes": usage.page_bytes,
            "pages": usage.pages,
            "pages_used": usage.used,
        },
        "lanes": lanes,
        "segments": [
            {"id": segment_id, "unsettled": item.count, "unsettled_bytes": item.size}
            for segment_id, item in live
        ],
        "spill": {
            "files": len(paged),
            "unsettled": spill.count,
            "unsettled_bytes": spill.size,
        },
    }
    for text in contents.damaged:
        report.damage.append(Damage("index.lmdb", text))


def _show_comparison(
    directory: Directory, report: Report, contents: IndexContents, comparison: Comparison
) -> None:
    from qlog.tools.inspect.rows import Damage

    items = [described(directory, difference) for difference in comparison.differences]
    report.content["comparison"] = {
        "pointers": comparison.pointers,
        "spilled": comparison.spilled,
        "differences": items,
        "wrong_counts": comparison.counts,
    }
    texts = [str(item["text"]) for item in items] + comparison.counts
    for text in texts[:_DIFFERENCES_SHOWN_MAX]:
        report.damage.append(Damage("index.lmdb", text))
    more = len(texts) - _DIFFERENCES_SHOWN_MAX
    if more > 0:
        report.damage.append(Damage("index.lmdb", f"{more} more differences (all with --json)"))


def advice(damage: Sequence[Damage]) -> Iterator[str]:
    """What to do when the index is wrong, as notes."""
    apart = [item.file.startswith("index.lmdb") for item in damage]
    if any(apart) and all(apart):
        yield (
            "the index is derived: no message is lost by this; `qlog inspect rebuild-index` makes "
            "it anew"
        )
    elif any(apart):
        yield (
            "not only the index is damaged: `qlog inspect repair` has it made anew after what only "
            "the index still knows was saved"
        )


def described(directory: Directory, difference: Difference) -> dict[str, Any]:
    """A difference for JSON; its `text` is for people."""
    from qlog.tools.inspect.look.decode import queue_text

    queue = directory.queue_of(difference.lane_id)
    vhost, name = (None, None) if queue is None else (queue.vhost, queue.name)
    which = f"#{difference.first}"
    if difference.end > difference.first + 1:
        which += f"-{difference.end - 1}"
    text = f"{queue_text(vhost, name, difference.lane_id)} {which}: {difference.what}"
    where = []
    if difference.lsn is not None:
        where.append(f"LSN {difference.lsn}")
    if difference.segment_id is not None:
        where.append(f"segment {difference.segment_id} byte {difference.position}")
    if where:
        text += f" ({', '.join(where)})"
    return {
        "vhost": vhost,
        "queue": name,
        "lane": difference.lane_id,
        "offset_first": difference.first,
        "offset_end": difference.end,
        "what": difference.what,
        "lsn": difference.lsn,
        "segment": difference.segment_id,
        "position": difference.position,
        "text": text,
    }
