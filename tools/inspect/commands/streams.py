"""`qlog inspect streams`: which streams there are, and their segments.

What is newer than `moved` is in the log, in the stream's lane, until it is moved; `queues` and
`messages` show it.
"""

from typing import Any

from qlog.tools.inspect.command import command
from qlog.tools.inspect.look.decode import time_text
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.streams import StreamLook, look_at_streams
from qlog.tools.inspect.rows import Bytes, Report, counted, name, number, size, text

_COLUMNS = (
    name("vhost", lambda row: "?" if row["vhost"] is None else row["vhost"]),
    name("stream", lambda row: "? (its name is lost)" if row["queue"] is None else row["queue"]),
    number("lane"),
    number("first", "first_offset"),
    number("moved", "moved_below"),
    number("segments", lambda row: len(row["segments"])),
    size("size", "size_bytes"),
    text("newest moved", "newest"),
)


@command
def streams(directory: Directory, report: Report) -> None:
    """Show the streams, and what was moved to their segments.

    Offsets count the messages of a stream from 0. First is the oldest that is there; all below
    moved are in segments, and the others in the log. `verify` reads every message.
    """
    looks = look_at_streams(directory)
    rows = [_row(look) for look in looks]
    report.table(_COLUMNS, rows, key="streams")
    report.damage += [damage for look in looks for damage in look.damage]
    messages = sum(look.moved - look.first for look in looks)
    total = Bytes(sum(look.size_bytes for look in looks)).human()
    report.say(f"{counted(len(rows), 'stream')}, {messages:,} messages in segments, {total}")


def _row(look: StreamLook) -> dict[str, Any]:
    queue = look.queue
    return {
        "vhost": None if queue is None else queue.vhost,
        "queue": None if queue is None else queue.name,
        "lane": look.lane_id,
        "first_offset": look.first,
        "moved_below": look.moved,
        "size_bytes": look.size_bytes,
        "newest": time_text(look.segments[-1].latest_ms) if look.segments else None,
        "segments": [
            {
                "first_offset": segment.base,
                "end_offset": segment.end,
                "size_bytes": segment.size,
                "sealed": segment.sealed,
                "newest": time_text(segment.latest_ms),
            }
            for segment in look.segments
        ],
    }
