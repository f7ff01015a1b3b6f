"""`qlog inspect segments`: the files of the log, what is alive in each, every checksum of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from qlog.tools.inspect.command import command
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import Segment, SegmentTally, survey, tally, views_of
from qlog.tools.inspect.rows import Bytes, Report, counted, number, progress, size, text


@dataclass(frozen=True, slots=True)
class _Row:
    id: int
    file: str
    state: str
    base_lsn: int | None
    end_lsn: int | None
    size_bytes: int
    used_bytes: int
    records: int
    live: int
    dead: int
    live_bytes: int
    verified: bool
    damaged: bool

    @classmethod
    def of(cls, directory: Directory, item: Segment) -> _Row:
        """What is shown of a segment."""
        alive = tally(directory, item.columns) if item.counts else SegmentTally()
        return cls(
            item.segment_id,
            item.file,
            item.state,
            item.base_lsn,
            item.end_lsn,
            item.size_bytes,
            item.used_bytes,
            item.records,
            alive.live,
            item.records - alive.live,
            alive.live_bytes,
            item.verified,
            bool(item.damage),
        )

    @property
    def lsns(self) -> str | None:
        """Of its messages, if there are any."""
        if self.base_lsn is None or self.end_lsn is None or self.end_lsn <= self.base_lsn:
            return None
        return f"{self.base_lsn}-{self.end_lsn - 1}"

    @property
    def checks(self) -> str:
        """The verdict of the segment's checksums."""
        if self.state == "reserved":
            return "-"
        return "damaged" if self.damaged else "good" if self.verified else "not read"


_COLUMNS = (
    number("segment", "id"),
    text("state"),
    text("LSNs", "lsns"),
    size("size", "size_bytes"),
    number("records"),
    number("live"),
    number("dead"),
    text("checks"),
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
    views = views_of(directory)
    with progress("verifying", 0 if quick else sum(view.size for view in views)) as bar:
        found = survey(directory, views, verify=not quick, advance=bar.advance)
    rows = [_Row.of(directory, item) for item in found.segments]
    report.table(_COLUMNS, rows, key="segments")
    totals = {name: sum(getattr(row, name) for row in rows) for name in _TOTALS}
    report.content["totals"] = totals
    report.say(
        f"{counted(len(rows), 'segment')}, {Bytes(totals['size_bytes']).human()}, "
        f"{counted(totals['records'], 'record')}, {totals['live']:,} live "
        f"({Bytes(totals['live_bytes']).human()})"
    )
    report.notes += found.notes
    report.damage += found.damage
