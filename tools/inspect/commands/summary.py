"""`qlog inspect summary`: a data directory at a glance, and what to run next.

Reads only what is quick to read: definitions, ledger, index, the ends of segments, the oldest and
the newest message. So it finds what would keep a broker from starting, but not every flipped bit;
`verify` finds those.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from qlog.storage.bytes.record import RECORD_HEADER, RECORD_HEADER_BYTES
from qlog.tools.inspect.command import command
from qlog.tools.inspect.commands.catalog import definitions_of
from qlog.tools.inspect.look.decode import lane_text, time_text
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import Segment, SegmentTally, survey, tallied, views_of
from qlog.tools.inspect.rows import (
    Bytes,
    Cell,
    Report,
    counted,
    document_of,
    name,
    number,
    size,
    text,
)

_QUEUES_SHOWN_MAX = 5
_PARTS = ("log", "ledger", "index.lmdb", "catalog.lmdb", "spill", "quarantine")
_PART_COLUMNS = (text("part"), number("files"), size("size", "bytes"))
_STATE_COLUMNS = (
    text("segments", "_state"),
    number("count", "segments"),
    size("size", "size_bytes"),
    number("records"),
    number("unsettled"),
)
_QUEUE_COLUMNS = (
    name("longest queues", "queue"),
    number("unsettled"),
    number("handed out", "handed_out"),
    size("size", "stored_bytes"),
)


@dataclass(slots=True)
class _State:
    """The segments in one state."""

    _state: str
    segments: int = 0
    size_bytes: int = 0
    records: int = 0
    unsettled: int = 0


@dataclass(slots=True)
class _Start:
    """What the next start would do; for a running broker, if it were killed now."""

    refused: bool
    rebuilds_index: str | None
    rebuilds_catalog: str | None
    messages_replayed: int = 0
    bytes_replayed: int = 0
    text: str = ""


@dataclass(slots=True)
class _Command:
    """A command to run next."""

    command: str
    why: str


@command
def summary(directory: Directory, report: Report) -> None:
    """Show a directory at a glance, and what to do.

    Is a broker running, how much is there, what waits, what would the next start do, is anything
    damaged that can be seen quickly.
    """
    found = survey(directory, views_of(directory), verify=False)
    segments = [segment for segment in found.segments if segment.counts]
    states: dict[str, _State] = {}
    for segment in found.segments:
        state = states.setdefault(segment.state, _State(segment.state))
        state.segments += 1
        state.size_bytes += segment.size_bytes
        state.records += segment.records
    waits: list[Segment] = []

    def count(segment: Segment, live: SegmentTally) -> None:
        states[segment.state].unsettled += live.live
        if live.live:
            waits.append(segment)

    lanes = tallied(directory, found.segments, count)
    report.notes += found.notes
    report.damage += found.damage
    end_lsn = max((segment.end_lsn or 0 for segment in segments), default=0)
    start = _next_start(directory, found.segments, end_lsn)
    times = {
        "oldest": _edge_ms(directory, segments, 0),
        "newest": _edge_ms(directory, segments[::-1], -1),
        "oldest_unsettled": _first_waiting_ms(directory, waits[0]) if waits else None,
    }
    waiting = sum(state.unsettled for state in states.values())
    messages = {"in_log": sum(segment.records for segment in segments), "unsettled": waiting}
    definitions = {kind: len(items) for kind, items in definitions_of(directory).items()}
    commands = list(_commands(report, waiting, end_lsn))
    _show(directory, report, start, end_lsn, times, messages, definitions, states.values())
    longest = [
        {"queue": lane_text(directory, lane_id), **asdict(lane)}
        for lane_id, lane in sorted(lanes.items(), key=lambda item: -item[1].unsettled)
        if lane.unsettled
    ]
    report.table(_QUEUE_COLUMNS, longest[:_QUEUES_SHOWN_MAX])
    report.facts([(item.command, item.why) for item in commands], title="run next")
    report.content["run_next"] = list(map(asdict, commands))
    verdict = "nothing damaged by a quick look"
    if report.all_damage:
        verdict = f"DAMAGED ({counted(len(report.all_damage), 'finding')})"
    report.say(verdict)


def _show(
    directory: Directory,
    report: Report,
    start: _Start,
    end_lsn: int,
    times: dict[str, int | None],
    messages: dict[str, int],
    definitions: dict[str, int],
    states: Iterable[_State],
) -> None:
    """Everything but queues and commands."""
    identity = directory.known_identity
    parts = [{"part": part, **_usage(directory.paths.root / part)} for part in _PARTS]
    free_bytes = _free_bytes(directory.paths.root)
    report.content = {
        "running": directory.in_use,
        "uuid": None if identity is None else identity.uuid.hex(),
        "epoch": None if identity is None else identity.epoch,
        "format": None if identity is None else identity.version,
        "sizes": {part["part"]: {"files": part["files"], "bytes": part["bytes"]} for part in parts},
        "disk_free_bytes": free_bytes,
        "segments": {state._state: document_of(state) for state in states},
        "end_lsn": end_lsn,
        "messages": messages,
        "definitions": definitions,
        "times": {key: None if ms is None else time_text(ms) for key, ms in times.items()},
        "next_start": asdict(start),
    }
    now_ms = time.time_ns() // 1_000_000
    facts: list[tuple[str, Cell]] = [("broker", _how_it_is(directory))]
    if identity is not None:
        who = f"uuid {identity.uuid.hex()}, epoch {identity.epoch}, format {identity.version}"
        facts.append(("identity", who))
    counts = (counted(count, kind[:-1]) for kind, count in definitions.items())
    in_log, waiting = messages["in_log"], messages["unsettled"]
    how_many = f"{in_log:,} in the log, {waiting:,} of them wait in a queue; next LSN {end_lsn:,}"
    facts += [
        ("messages", how_many),
        ("defined", ", ".join(counts)),
        ("newest message", _ago(times["newest"], now_ms)),
        ("oldest message", _ago(times["oldest"], now_ms)),
        ("oldest that waits", _ago(times["oldest_unsettled"], now_ms)),
        ("the next start", start.text),
        ("free on the disk", "?" if free_bytes is None else Bytes(free_bytes)),
    ]
    report.facts(facts)
    report.table(_PART_COLUMNS, [part for part in parts if part["files"]])
    report.table(_STATE_COLUMNS, states)


def _how_it_is(directory: Directory) -> str:
    if directory.in_use:
        return "a broker is running on it"
    if directory.ledger.damaged:
        return "not running"
    if directory.ledger.file.closed:
        return "not running; it was stopped in good order"
    return "not running; it was killed, or the machine went down"


def _ago(time_ms: int | None, now_ms: int) -> str:
    if time_ms is None or (when := time_text(time_ms)) is None:
        return "-"
    seconds = (now_ms - time_ms) / 1000
    units = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
    unit, unit_s = next(item for item in units if abs(seconds) >= 2 * item[1] or item[1] == 1)
    return f"{when} ({seconds / unit_s:,.0f} {unit} ago)"


def _usage(path: Path) -> dict[str, int]:
    """How many files are in a directory, and their bytes."""
    files = total = 0
    for found in path.rglob("*") if path.is_dir() else ():
        try:
            if found.is_file():
                total += found.stat().st_size
                files += 1
        except FileNotFoundError:  # of a running broker
            continue
    return {"files": files, "bytes": total}


def _free_bytes(path: Path) -> int | None:
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def _edge_ms(directory: Directory, segments: list[Segment], at: int) -> int | None:
    """When the first (0) or the last (-1) message of the first segment with any was published."""
    for segment in segments:
        if segment.columns.positions:
            return _time_ms(directory, segment, segment.columns.positions[at])
    return None


def _first_waiting_ms(directory: Directory, segment: Segment) -> int | None:
    """When the first message of a segment was published that some queue waits for."""
    for run in segment.columns.runs():
        live = 0
        for lane_id, first in zip(run.lanes, run.firsts, strict=True):
            live |= directory.unsettled(lane_id, first, len(run.positions))
        if live:
            return _time_ms(directory, segment, run.positions[(live & -live).bit_length() - 1])
    return None


def _time_ms(directory: Directory, segment: Segment, position: int) -> int | None:
    try:
        path = directory.paths.segment(segment.segment_id)
        data = directory.read_file(path, RECORD_HEADER_BYTES, position)
    except FileNotFoundError:
        return None
    if len(data) < RECORD_HEADER_BYTES:
        return None
    return int(RECORD_HEADER.unpack(data)[6]) or None  # 0: it cannot be read


def _next_start(directory: Directory, segments: list[Segment], end_lsn: int) -> _Start:
    index = directory.index_facts
    rebuild = None if index is None else index.doubt or None
    if index is None:
        rebuild = "it is damaged" if directory.paths.index.is_dir() else "it is missing"
    refusals = directory.refusals()
    start = _Start(bool(refusals), rebuild, directory.catalog_facts.doubt or None)
    checkpoint = directory.evidence.checkpoint
    if checkpoint is not None:
        start.messages_replayed = max(end_lsn - checkpoint.lsn, 0)
        for segment in segments:
            if segment.counts and (segment.end_lsn or 0) > checkpoint.lsn:
                ours = segment.segment_id == checkpoint.segment_id
                begun = checkpoint.position if ours else 0
                start.bytes_replayed += max(segment.used_bytes - begun, 0)
    if refusals:
        start.text = f"is refused: {refusals[0].error()}"
    elif rebuild is not None and (segments or directory.ledger_ids()):
        start.text = f"rebuilds the index, since {rebuild}"
    elif rebuild is not None:
        start.text = "begins with nothing"
    elif start.messages_replayed:
        how_many = counted(start.messages_replayed, "message")
        much = Bytes(start.bytes_replayed).human()
        start.text = f"replays {how_many} ({much}) behind the checkpoint"
    else:
        start.text = "has nothing to replay"
    if start.rebuilds_catalog is not None and not refusals and directory.ledger_ids():
        start.text += f"; makes the catalog anew, since {start.rebuilds_catalog}"
    if directory.in_use:
        start.text = f"were the broker killed now: {start.text}"
    return start


def _commands(report: Report, waiting: int, end_lsn: int) -> Iterator[_Command]:
    """What to run next, and why."""
    files = {item.file for item in report.all_damage}
    if files - {"index.lmdb", "catalog.lmdb"}:
        yield _Command("qlog inspect verify", "finds all that is damaged")
        why = "says what a repair would save and lose; changes nothing by itself"
        yield _Command("qlog inspect repair", why)
    elif files:
        why = "says what is wrong with index or catalog, and whether nothing else is"
        yield _Command("qlog inspect verify", why)
        why = "makes both anew, as a start does; nothing is lost when nothing else is damaged"
        yield _Command("qlog inspect rebuild-index", why)
    if waiting:
        yield _Command("qlog inspect queues", "says what waits where")
    if end_lsn and not files:
        yield _Command("qlog inspect verify", "looks at every checksum")
    if not end_lsn and not files:
        yield _Command("qlog inspect catalog", "shows what is defined")
