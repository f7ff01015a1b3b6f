"""`qlog inspect streams`: which streams there are, and their segments.

What is newer than `moved` is in the log, in the stream's lane, until it is moved; `queues` and
`messages` show it.
"""

from typing import Any

from qlog.tools.inspect.command import command
from qlog.tools.inspect.look.decode import time_text
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.streams import StreamLook, look_at_streams
from qlog.tools.inspect.rows import Bytes, Report, Time, counted, name, number, picked, size, text

_COLUMNS = (
    name("vhost", lambda row: "?" if row["vhost"] is None else row["vhost"]),
    name("stream", lambda row: "? (its name is lost)" if row["queue"] is None else row["queue"]),
    number("lane"),
    number("first", "first_offset"),
    number("moved", "moved_below"),
    number("segments", lambda row: len(row["segments"])),
    size("size", "size_bytes"),
    text("newest moved\n(UTC)", lambda row: row["newest"] and Time(row["newest"])),
)


@command
def streams(directory: Directory, report: Report) -> None:
    """Show the streams, and what was moved to their segments.

    Offsets count the messages of a stream from 0. First is the oldest that is there; all below
    moved are in segments, and the others in the log. `verify` reads every message.
    """
    looks = look_at_streams(directory)
    rows = [_row(directory, look) for look in looks]
    report.table(_COLUMNS, rows, key="streams")
    report.damage += [damage for look in looks for damage in look.damage]
    messages = sum(look.moved - look.first for look in looks)
    total = Bytes(sum(look.size_bytes for look in looks)).human()
    report.say(f"{counted(len(rows), 'stream')}, {messages:,} messages in segments, {total}")


def _row(directory: Directory, look: StreamLook) -> dict[str, Any]:
    segments = [
        {
            **picked(segment, "first_offset=base end_offset=end size_bytes=size sealed"),
            "newest": time_text(segment.latest_ms),
        }
        for segment in look.segments
    ]
    return {
        **directory.named(look.lane_id),
        **picked(look, "first_offset=first moved_below=moved size_bytes"),
        "newest": segments[-1]["newest"] if segments else None,
        "segments": segments,
    }
