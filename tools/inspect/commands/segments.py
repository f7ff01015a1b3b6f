"""`qlog inspect segments`: the files of the log, what is alive in each, and every checksum looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qlog.tools.inspect.command import (
    DATA_DIR_DEFAULT,
    AsJson,
    DataDir,
    finish,
    look_at,
    stop_for_rights,
)

if TYPE_CHECKING:
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.rows import Report


def segments(
    data_dir: DataDir = DATA_DIR_DEFAULT,
    as_json: AsJson = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Read footers only; verify no message.")
    ] = False,
) -> None:
    """Show the log's files; verify checksums.

    Live: messages that some queue still has to settle; a segment without any is given back.
    """
    directory = look_at(data_dir)
    try:
        report = _report(directory, verify=not quick)
    except PermissionError as error:
        stop_for_rights(error)
    finish(report, as_json=as_json)


def _report(directory: Directory, *, verify: bool) -> Report:
    from qlog.tools.inspect.look.log import SegmentTally, survey, tally, views_of
    from qlog.tools.inspect.rows import Bytes, Column, Report, counted, progress

    views = views_of(directory)
    with progress("verifying", sum(view.size for view in views) if verify else 0) as bar:
        found = survey(directory, views, verify=verify, advance=bar.advance)
    report = Report("segments", str(directory.root), directory.in_use)
    report.columns = (
        Column("segment", right=True),
        Column("state"),
        Column("LSNs"),
        Column("size", right=True),
        Column("records", right=True),
        Column("live", right=True),
        Column("dead", right=True),
        Column("checks"),
    )
    items = []
    totals = {"size_bytes": 0, "records": 0, "live": 0, "dead": 0, "live_bytes": 0}
    for segment in found.segments:
        alive = tally(directory, segment.columns) if segment.counts else SegmentTally()
        checks = "damaged" if segment.damage else "good" if segment.verified else "not read"
        if segment.state == "reserved":
            checks = "-"
        item = {
            "id": segment.segment_id,
            "file": segment.file,
            "state": segment.state,
            "base_lsn": segment.base_lsn,
            "end_lsn": segment.end_lsn,
            "size_bytes": segment.size_bytes,
            "used_bytes": segment.used_bytes,
            "records": segment.records,
            "live": alive.live,
            "dead": segment.records - alive.live,
            "live_bytes": alive.live_bytes,
            "verified": segment.verified,
            "damaged": bool(segment.damage),
        }
        items.append(item)
        for name in totals:
            totals[name] += int(str(item[name]))
        report.rows.append(
            (
                str(segment.segment_id),
                segment.state,
                _range(segment.base_lsn, segment.end_lsn),
                Bytes(segment.size_bytes),
                segment.records,
                alive.live,
                segment.records - alive.live,
                checks,
            )
        )
    report.content = {"segments": items, "totals": totals}
    in_use = ", in use by a broker" if directory.in_use else ""
    report.summary = (
        f"{directory.root}{in_use}: {counted(len(items), 'segment')}, "
        f"{Bytes(totals['size_bytes']).human()}, {counted(totals['records'], 'record')}, "
        f"{totals['live']:,} live ({Bytes(totals['live_bytes']).human()})"
    )
    report.notes = directory.notes + found.notes
    report.damage = directory.damage + found.damage
    return report


def _range(base_lsn: int | None, end_lsn: int | None) -> str | None:
    if base_lsn is None or end_lsn is None or end_lsn <= base_lsn:
        return None
    return f"{base_lsn}-{end_lsn - 1}"
