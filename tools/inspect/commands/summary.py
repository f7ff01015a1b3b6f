"""`qlog inspect summary`: a data directory at a glance, and what to run next.

Reads only what is quick to read: definitions, ledger, index, the ends of segments, the oldest and
the newest message. So it finds what would keep a broker from starting, but not every flipped bit;
`verify` finds those.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from qlog.storage.bytes.record import RECORD_HEADER, RECORD_HEADER_BYTES
from qlog.tools.inspect.command import command
from qlog.tools.inspect.look.decode import lane_text, time_text
from qlog.tools.inspect.look.definitions import KINDS, counted_kind
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import Segment, survey, tallied
from qlog.tools.inspect.rows import Bytes, Cell, Report, counted, name, number, size, text

_QUEUES_SHOWN_MAX = 5
_PARTS = ("log", "ledger", "streams", "index.lmdb", "catalog.lmdb", "spill", "quarantine")
_COUNTS = ("segments", "size_bytes", "records", "unsettled")  # of the segments in one state
_UNITS_S = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
_PART_COLUMNS = (text("part"), number("files"), size("size", "bytes"))
_STATE_COLUMNS = (
    text("segments", "state"),
    number("count", "segments"),
    size("size", "size_bytes"),
    number("records"),
    number("unsettled"),
)
_QUEUE_COLUMNS = (
    name("longest queues", 0),
    number("unsettled", lambda row: row[1].unsettled),
    number("handed out", lambda row: row[1].handed_out),
    size("size", lambda row: Bytes(row[1].stored_bytes)),
)


@command
def summary(directory: Directory, report: Report) -> None:
    """Show a directory at a glance, and what to do.

    Is a broker running, how much is there, what waits, what would the next start do, is anything
    damaged that can be seen quickly.
    """
    found = survey(directory)
    segments = [segment for segment in found.segments if segment.counts]
    lanes, live = tallied(directory, found.segments)
    states: dict[str, dict[str, int]] = {}
    for segment in found.segments:
        state = states.setdefault(segment.state, dict.fromkeys(_COUNTS, 0))
        counts = (1, segment.size_bytes, segment.records, live[segment.segment_id])
        for key, count in zip(_COUNTS, counts, strict=True):
            state[key] += count
    waits = [segment for segment in found.segments if live[segment.segment_id]]
    report.take(found)
    end_lsn = max((segment.end_lsn or 0 for segment in segments), default=0)
    in_log = sum(segment.records for segment in segments)
    waiting = sum(live.values())
    columns = [segment.columns for segment in segments if segment.columns.latest_ms]
    times = {
        "oldest": min((one.earliest_ms for one in columns), default=None),
        "newest": max((one.latest_ms for one in columns), default=None),
        "oldest_unsettled": _first_waiting_ms(directory, waits[0]) if waits else None,
    }
    parts = [{"part": part, **_usage(directory.paths.root / part)} for part in _PARTS]
    identity = directory.known_identity
    report.content = {
        "running": directory.in_use,
        "uuid": None if identity is None else identity.uuid.hex(),
        "epoch": None if identity is None else identity.epoch,
        "format": None if identity is None else identity.version,
        "sizes": {part["part"]: {"files": part["files"], "bytes": part["bytes"]} for part in parts},
        "disk_free_bytes": _free_bytes(directory.paths.root),
        "segments": states,
        "end_lsn": end_lsn,
        "messages": {"in_log": in_log, "unsettled": waiting},
        "definitions": {kind: len(getattr(directory.defined, kind)) for kind in KINDS.values()},
        "times": {key: time_text(ms) for key, ms in times.items()},
        "next_start": _next_start(directory, found.segments, end_lsn),
    }
    report.facts(_facts(directory, report.content, times))
    report.table(_PART_COLUMNS, [part for part in parts if part["files"]])
    report.table(_STATE_COLUMNS, [{"state": key, **state} for key, state in states.items()])
    longest = sorted(
        ((lane_text(directory, lane_id), lane) for lane_id, lane in lanes.items()),
        key=lambda row: -row[1].unsettled,
    )
    longest = [row for row in longest if row[1].unsettled]
    report.table(_QUEUE_COLUMNS, longest[:_QUEUES_SHOWN_MAX])
    commands = list(_commands(report, waiting, end_lsn))
    report.facts(commands, title="run next")
    report.content["run_next"] = [{"command": item, "why": why} for item, why in commands]
    damaged = len(report.all_damage)
    report.say(
        f"DAMAGED ({counted(damaged, 'finding')})" if damaged else "nothing damaged by a quick look"
    )


def _facts(
    directory: Directory, content: dict[str, Any], times: dict[str, int | None]
) -> Iterator[tuple[str, Cell]]:
    """Of the JSON document, what is told in a line each."""
    yield "broker", _how_it_is(directory)
    if content["uuid"] is not None:
        identity = f"uuid {content['uuid']}, epoch {content['epoch']}, format {content['format']}"
        yield "identity", identity
    in_log, waiting = content["messages"].values()
    end_lsn, free_bytes = content["end_lsn"], content["disk_free_bytes"]
    how_many = f"{in_log:,} in the log, {waiting:,} of them wait in a queue; next LSN {end_lsn:,}"
    yield "messages", how_many
    definitions = content["definitions"]
    yield "defined", ", ".join(counted_kind(kind, count) for kind, count in definitions.items())
    yield "newest message", _ago(times["newest"])
    yield "oldest message", _ago(times["oldest"])
    yield "oldest that waits", _ago(times["oldest_unsettled"])
    yield "the next start", content["next_start"]["text"]
    yield "free on the disk", "?" if free_bytes is None else Bytes(free_bytes)


def _how_it_is(directory: Directory) -> str:
    if directory.in_use:
        return "a broker is running on it"
    if directory.ledger.damaged:
        return "not running"
    if directory.ledger.file.closed:
        return "not running; it was stopped in good order"
    return "not running; it was killed, or the machine went down"


def _ago(time_ms: int | None) -> str:
    when = time_text(time_ms)
    if time_ms is None or when is None:
        return "-"
    seconds = time.time() - time_ms / 1000
    unit, unit_s = next(item for item in _UNITS_S if abs(seconds) >= 2 * item[1] or item[1] == 1)
    return f"{when} ({seconds / unit_s:,.0f} {unit} ago)"


def _usage(path: Path) -> dict[str, Any]:
    """How many files are in a directory, and their bytes."""
    sizes = []
    for found in path.rglob("*"):
        with suppress(FileNotFoundError):  # of a running broker
            if found.is_file():
                sizes.append(found.stat().st_size)
    return {"files": len(sizes), "bytes": sum(sizes)}


def _free_bytes(path: Path) -> int | None:
    with suppress(OSError):
        return shutil.disk_usage(path).free
    return None


def _first_waiting_ms(directory: Directory, segment: Segment) -> int | None:
    """When the first message of a segment was published that some queue waits for."""
    for run in segment.columns.runs():
        live = 0
        for lane_id, first in zip(run.lanes, run.firsts, strict=True):
            live |= directory.unsettled(lane_id, first, len(run.positions))
        if live:
            place = run.positions[(live & -live).bit_length() - 1]
            path = directory.paths.segment(segment.segment_id)
            with suppress(FileNotFoundError):
                data = directory.read_file(path, RECORD_HEADER_BYTES, place)
                if len(data) == RECORD_HEADER_BYTES:
                    return int(RECORD_HEADER.unpack(data)[6]) or None  # 0: it cannot be read
            return None
    return None


def _next_start(directory: Directory, segments: list[Segment], end_lsn: int) -> dict[str, Any]:
    """What the next start would do; for a running broker, if it were killed now."""
    rebuild, catalog = directory.index_facts.doubt, directory.catalog_facts.doubt
    refusals = directory.refusals()
    checkpoint = directory.evidence.checkpoint
    messages = size = 0
    if checkpoint is not None:
        messages = max(end_lsn - checkpoint.lsn, 0)
        for segment in segments:
            if segment.counts and (segment.end_lsn or 0) > checkpoint.lsn:
                ours = segment.segment_id == checkpoint.segment_id
                size += max(segment.used_bytes - (checkpoint.position if ours else 0), 0)
    if refusals:
        text = f"is refused: {refusals[0].error()}"
    elif rebuild and (segments or directory.ledger_ids()):
        text = f"rebuilds the index, since {rebuild}"
    elif rebuild:
        text = "begins with nothing"
    elif messages:
        much = Bytes(size).human()
        text = f"replays {counted(messages, 'message')} ({much}) behind the checkpoint"
    else:
        text = "has nothing to replay"
    if catalog and not refusals and directory.ledger_ids():
        text += f"; makes the catalog anew, since {catalog}"
    return {
        "refused": bool(refusals),
        "rebuilds_index": rebuild or None,
        "rebuilds_catalog": catalog or None,
        "messages_replayed": messages,
        "bytes_replayed": size,
        "text": f"were the broker killed now: {text}" if directory.in_use else text,
    }


def _commands(report: Report, waiting: int, end_lsn: int) -> Iterator[tuple[str, str]]:
    """What to run next, and why."""
    verify, repair = "qlog inspect verify", "qlog inspect repair"
    files = {item.file for item in report.all_damage}
    if files - {"index.lmdb", "catalog.lmdb"}:
        yield verify, "finds all that is damaged"
        yield repair, "says what a repair would save and lose; changes nothing by itself"
    elif files:
        yield verify, "says what is wrong with index or catalog, and whether nothing else is"
        why = "makes both anew, as a start does; nothing is lost when nothing else is damaged"
        yield "qlog inspect rebuild-index", why
    if waiting:
        yield "qlog inspect queues", "says what waits where"
    if end_lsn and not files:
        yield verify, "looks at every checksum"
    if not end_lsn and not files:
        yield "qlog inspect catalog", "shows what is defined"
