"""`qlog inspect segments`: the files of the log, what is alive in each, every checksum of them."""

from typing import Annotated, Any

import typer

from qlog.tools.inspect.command import command
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import Segment, survey, tally
from qlog.tools.inspect.rows import Bytes, Report, counted, number, size, text

_COLUMNS = (
    number("segment", "id"),
    text("state"),
    text("LSNs", lambda row: _lsns(row["base_lsn"], row["end_lsn"])),
    size("size", "size_bytes"),
    number("records"),
    number("live"),
    number("dead"),
    text("checks", lambda row: _checks(**row)),
)
_TOTALS = ("size_bytes", "records", "live", "dead", "live_bytes")


@command
def segments(
    directory: Directory,
    report: Report,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read footers only; verify no message.")
    ] = False,
) -> None:
    """Show the log's files; verify checksums.

    Live: messages that some queue still has to settle; a segment without any is given back.
    """
    found = survey(directory, verify=not quick)
    rows = [_row(directory, item) for item in found.segments]
    report.table(_COLUMNS, rows, key="segments")
    totals = {name: sum(row[name] for row in rows) for name in _TOTALS}
    report.content["totals"] = totals
    report.say(
        f"{counted(len(rows), 'segment')}, {Bytes(totals['size_bytes']).human()}, "
        f"{counted(totals['records'], 'record')}, {totals['live']:,} live "
        f"({Bytes(totals['live_bytes']).human()})"
    )
    report.take(found)


def _row(directory: Directory, segment: Segment) -> dict[str, Any]:
    live, live_bytes = tally(directory, segment)
    return {
        "id": segment.segment_id,
        "file": segment.file,
        "state": segment.state,
        "base_lsn": segment.base_lsn,
        "end_lsn": segment.end_lsn,
        "size_bytes": segment.size_bytes,
        "used_bytes": segment.used_bytes,
        "records": segment.records,
        "live": live,
        "dead": segment.records - live,
        "live_bytes": live_bytes,
        "verified": segment.verified,
        "damaged": bool(segment.damage),
    }


def _lsns(base: int | None, end: int | None) -> str | None:
    return None if base is None or end is None or end <= base else f"{base}-{end - 1}"


def _checks(*, state: str, damaged: bool, verified: bool, **_: object) -> str:
    if state == "reserved":
        return "-"
    return "damaged" if damaged else "good" if verified else "not read"
