"""`qlog inspect segments`: the files of the log, what is alive in each, every checksum of them."""

from typing import Annotated, Any

import typer

from qlog.tools.inspect.command import command
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import Segment, survey, tally
from qlog.tools.inspect.rows import Bytes, Report, counted, number, picked, size, text

_COLUMNS = (
    number("segment", "id"),
    text("state"),
    text("LSNs", lambda row: _lsns(**row)),
    size("size", "size_bytes"),
    number("records"),
    number("live"),
    number("dead"),
    text("checks", lambda row: _checks(**row)),
)
_FIELDS = "id=segment_id file state base_lsn end_lsn size_bytes used_bytes records"
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
        **picked(segment, _FIELDS),
        "live": live,
        "dead": segment.records - live,
        "live_bytes": live_bytes,
        "verified": segment.verified,
        "damaged": bool(segment.damage),
    }


def _lsns(*, base_lsn: int | None, end_lsn: int | None, **_: object) -> str | None:
    if base_lsn is None or end_lsn is None or end_lsn <= base_lsn:
        return None
    return f"{base_lsn}-{end_lsn - 1}"


def _checks(*, state: str, damaged: bool, verified: bool, **_: object) -> str:
    if state == "reserved":
        return "-"
    return "damaged" if damaged else "good" if verified else "not read"
