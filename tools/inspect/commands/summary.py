"""`qlog inspect summary`: a data directory at a glance, and what to run next.

Looks only at what is quick: definitions, ledger, index, the ends of segments, and no message but
the oldest and the newest. So it finds what would keep a broker from starting, but not every flipped
bit: for that there is `verify`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from qlog.tools.inspect.look.log import LaneTally, Segment, Survey
    from qlog.tools.inspect.rows import Cell, Report

_QUEUES_SHOWN_MAX = 5
_PARTS = ("log", "ledger", "index.lmdb", "catalog.lmdb", "spill", "quarantine")


def summary(data_dir: DataDir = DATA_DIR_DEFAULT, as_json: AsJson = False) -> None:
    """Show a directory at a glance, and what to do.

    Is a broker running, how much is there, what waits, what would the next start do, is anything
    damaged that can be seen quickly.
    """
    directory = look_at(data_dir)
    try:
        report = _report(directory)
    except PermissionError as error:
        stop_for_rights(error)
    finish(report, as_json=as_json)


def _report(directory: Directory) -> Report:
    from qlog.tools.inspect.commands.catalog import definitions_of
    from qlog.tools.inspect.look.decode import queue_text, time_text
    from qlog.tools.inspect.look.environment import Forbidden
    from qlog.tools.inspect.look.log import survey, tally, views_of
    from qlog.tools.inspect.rows import Bytes, Column, Facts, Report, Table, counted, progress

    views = views_of(directory)
    found = survey(directory, views, verify=False, advance=lambda size: None)
    lanes: dict[int, LaneTally] = {}
    by_state: dict[str, dict[str, int]] = {}
    oldest_waiting_ms: int | None = None
    with progress("counting", sum(segment.size_bytes for segment in found.segments)) as bar:
        for segment in found.segments:
            state = by_state.setdefault(
                segment.state, {"segments": 0, "size_bytes": 0, "records": 0, "unsettled": 0}
            )
            state["segments"] += 1
            state["size_bytes"] += segment.size_bytes
            state["records"] += segment.records
            if segment.counts:
                live = tally(directory, segment.columns, lanes).live
                state["unsettled"] += live
                if live and oldest_waiting_ms is None:
                    oldest_waiting_ms = _first_waiting_ms(directory, segment)
            bar.advance(segment.size_bytes)
    try:
        definitions = definitions_of(directory)
    except Forbidden as error:
        stop(str(error))
    report = Report("summary", str(directory.root), directory.in_use)
    report.notes = directory.notes + found.notes
    report.damage = directory.damage + found.damage
    counting = [segment for segment in found.segments if segment.counts]
    records = sum(segment.records for segment in counting)
    waiting = sum(state["unsettled"] for state in by_state.values())
    oldest_ms, newest_ms = _edge_ms(directory, counting, 0), _edge_ms(directory, counting, -1)
    end_lsn = max((segment.end_lsn or 0 for segment in counting), default=0)
    start = _next_start(directory, found, end_lsn)
    commands = list(_commands(report, waiting, end_lsn))
    identity = directory.catalog_facts.identity
    parts = {part: _size(directory.paths.root / part) for part in _PARTS}
    free_bytes = _free_bytes(directory.paths.root)
    top = sorted(lanes.items(), key=lambda item: -item[1].unsettled)[:_QUEUES_SHOWN_MAX]
    times = {"oldest": oldest_ms, "newest": newest_ms, "oldest_unsettled": oldest_waiting_ms}
    report.content = {
        "running": directory.in_use,
        "uuid": None if identity is None else identity.uuid.hex(),
        "epoch": None if identity is None else identity.epoch,
        "format": None if identity is None else identity.version,
        "sizes": {part: {"files": files, "bytes": size} for part, (files, size) in parts.items()},
        "disk_free_bytes": free_bytes,
        "segments": by_state,
        "end_lsn": end_lsn,
        "messages": {"in_log": records, "unsettled": waiting},
        "definitions": {kind: len(items) for kind, items in definitions.items()},
        "times": {name: None if ms is None else time_text(ms) for name, ms in times.items()},
        "next_start": start,
        "run_next": commands,
    }
    now_ms = time.time_ns() // 1_000_000
    broker = "a broker is running on it" if directory.in_use else _how_it_ended(directory, end_lsn)
    about: list[tuple[str, Cell]] = [("broker", broker)]
    if identity is not None:
        about.append(
            (
                "identity",
                f"uuid {identity.uuid.hex()}, epoch {identity.epoch}, format {identity.version}",
            )
        )
    about += [
        (
            "messages",
            f"{records:,} in the log, {waiting:,} of them wait in a queue; next LSN {end_lsn:,}",
        ),
        (
            "defined",
            ", ".join(counted(len(items), kind[:-1]) for kind, items in definitions.items()),
        ),
        ("newest message", _ago(newest_ms, now_ms)),
        ("oldest message", _ago(oldest_ms, now_ms)),
        ("oldest that waits", _ago(oldest_waiting_ms, now_ms)),
        ("the next start", start["text"]),
        ("free on the disk", "?" if free_bytes is None else Bytes(free_bytes)),
    ]
    report.sections.append(Facts("", about))
    report.sections.append(
        Table(
            "",
            (Column("part"), Column("files", right=True), Column("size", right=True)),
            [(part, files, Bytes(size)) for part, (files, size) in parts.items() if files],
        )
    )
    report.sections.append(
        Table(
            "",
            (
                Column("segments"),
                Column("count", right=True),
                Column("size", right=True),
                Column("records", right=True),
                Column("unsettled", right=True),
            ),
            [
                (
                    name,
                    state["segments"],
                    Bytes(state["size_bytes"]),
                    state["records"],
                    state["unsettled"],
                )
                for name, state in by_state.items()
            ],
        )
    )
    rows: list[Sequence[Cell]] = []
    for lane_id, lane in top:
        if lane.unsettled:
            queue = directory.queue_of(lane_id)
            name = queue_text(
                None if queue is None else queue.vhost,
                None if queue is None else queue.name,
                lane_id,
            )
            rows.append((name, lane.unsettled, lane.handed_out, Bytes(lane.stored_bytes)))
    report.sections.append(
        Table(
            "",
            (
                Column("longest queues", name=True),
                Column("unsettled", right=True),
                Column("handed out", right=True),
                Column("size", right=True),
            ),
            rows,
        )
    )
    report.sections.append(Facts("run next", [(item["command"], item["why"]) for item in commands]))
    in_use = ", in use by a broker" if directory.in_use else ""
    verdict = "nothing damaged by a quick look"
    if report.damage:
        verdict = f"DAMAGED ({counted(len(report.damage), 'finding')})"
    report.summary = f"{directory.root}{in_use}: {verdict}"
    return report


def _how_it_ended(directory: Directory, end_lsn: int) -> str:
    identity = directory.catalog_facts.identity
    if identity is None:
        return "not running"
    if identity.closed_lsn >= end_lsn:
        return "not running; it was stopped in good order"
    return "not running; it was killed, or the machine went down"


def _ago(time_ms: int | None, now_ms: int) -> str:
    from qlog.tools.inspect.look.decode import time_text

    if time_ms is None or (text := time_text(time_ms)) is None:
        return "-"
    seconds = (now_ms - time_ms) / 1000
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1)):
        if abs(seconds) >= 2 * size or size == 1:
            return f"{text} ({seconds / size:,.0f} {unit} ago)"
    return text


def _size(path: Path) -> tuple[int, int]:
    """How many files are in a directory, and their bytes."""
    files = size = 0
    for found in path.rglob("*") if path.is_dir() else ():
        try:
            if found.is_file():
                size += found.stat().st_size
                files += 1
        except FileNotFoundError:  # of a running broker
            continue
    return files, size


def _free_bytes(path: Path) -> int | None:
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def _edge_ms(directory: Directory, segments: list[Segment], at: int) -> int | None:
    """When the first (0) or the last (-1) message of the log was published."""
    for segment in segments if at == 0 else reversed(segments):
        if segment.columns.positions:
            return _time_ms(directory, segment, segment.columns.positions[at])
    return None


def _first_waiting_ms(directory: Directory, segment: Segment) -> int | None:
    """When the first message of a segment was published that some queue waits for."""
    for lane_ids, firsts, positions, *_ in segment.columns.runs():
        live = 0
        for lane_id, first in zip(lane_ids, firsts, strict=True):
            live |= directory.unsettled(lane_id, first, len(positions))
        if live:
            return _time_ms(directory, segment, positions[(live & -live).bit_length() - 1])
    return None


def _time_ms(directory: Directory, segment: Segment, position: int) -> int | None:
    from qlog.storage.bytes.record import RECORD_HEADER, RECORD_HEADER_BYTES

    try:
        path = directory.paths.segment(segment.segment_id)
        data = directory.read_file(path, RECORD_HEADER_BYTES, position)
    except FileNotFoundError:
        return None
    if len(data) < RECORD_HEADER_BYTES:
        return None
    return int(RECORD_HEADER.unpack(data)[6]) or None  # 0: it cannot be read


def _next_start(directory: Directory, found: Survey, end_lsn: int) -> dict[str, Any]:
    """What recovery would do now; on a running broker, if it were killed now."""
    from qlog.tools.inspect.rows import Bytes, counted

    index = directory.index_facts
    rebuild: str | None = None
    if index is None:
        rebuild = "it is damaged" if directory.paths.index.is_dir() else "it is missing"
    elif index.doubt:
        rebuild = index.doubt
    checkpoint = None if index is None else index.checkpoint
    replayed = bytes_replayed = 0
    if checkpoint is not None and rebuild is None:
        replayed = max(end_lsn - checkpoint.lsn, 0)
        for segment in found.segments:
            if segment.counts and (segment.end_lsn or 0) > checkpoint.lsn:
                begun = checkpoint.position if segment.segment_id == checkpoint.segment_id else 0
                bytes_replayed += max(segment.used_bytes - begun, 0)
    refusals = directory.refusals()
    texts = []
    if directory.in_use:
        texts.append("were the broker killed now:")
    if refusals:
        texts.append(f"is refused: {refusals[0].error()}")
    elif rebuild is not None and (found.segments or directory.ledger_ids()):
        texts.append(f"rebuilds the index, since {rebuild}")
    elif rebuild is not None:
        texts.append("begins with nothing")
    elif replayed:
        size = Bytes(bytes_replayed).human()
        texts.append(f"replays {counted(replayed, 'message')} ({size}) behind the checkpoint")
    else:
        texts.append("has nothing to replay")
    return {
        "refused": bool(refusals),
        "rebuilds_index": rebuild,
        "messages_replayed": replayed,
        "bytes_replayed": bytes_replayed,
        "text": " ".join(texts),
    }


def _commands(report: Report, waiting: int, end_lsn: int) -> Iterator[dict[str, str]]:
    """What to run next, and why."""
    files = {item.file for item in report.damage}
    if files - {"index.lmdb"}:
        yield {"command": "qlog inspect verify", "why": "finds all that is damaged"}
        yield {
            "command": "qlog inspect repair",
            "why": "says what a repair would save and lose; changes nothing by itself",
        }
    elif files:
        yield {
            "command": "qlog inspect verify",
            "why": "says what is wrong with the index, and whether nothing else is",
        }
        yield {
            "command": "qlog inspect rebuild-index",
            "why": "makes it anew; nothing is lost when nothing else is damaged",
        }
    if waiting:
        yield {"command": "qlog inspect queues", "why": "says what waits where"}
    if end_lsn and not files:
        yield {"command": "qlog inspect verify", "why": "looks at every checksum"}
    if not end_lsn and not files:
        yield {"command": "qlog inspect catalog", "why": "shows what is defined"}
