"""`qlog inspect export`: the messages of a directory as a file that any program can read.

Messages are written to a file or to stdout, one after the other. What cannot be read is named on
stderr, and makes the exit status 1: it is never left out silently. Changes nothing in the
directory.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from qlog.server.amqp.envelope import Envelope
from qlog.storage.bytes.record import Record
from qlog.storage.streams.definition import stream_lanes
from qlog.tools.inspect.command import (
    AsJson,
    OfQueue,
    OfVhost,
    command,
    find_lanes,
    stop,
    writing_stdout,
)
from qlog.tools.inspect.look.decode import time_text
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import survey, untold
from qlog.tools.inspect.look.salvage import pairs
from qlog.tools.inspect.look.selection import Selection, chosen
from qlog.tools.inspect.look.streams import look_at_streams, messages_of
from qlog.tools.inspect.rows import Damage, Report, counted, printable
from qlog.tools.transfer.exported import SCHEMA, as_msgpack, item_of
from qlog.tools.transfer.exported import as_json as packed_json


class Format(StrEnum):
    JSONL = "jsonl"
    MSGPACK = "msgpack"


@command
def export(
    directory: Directory,
    report: Report,
    queue: OfQueue = None,
    vhost: OfVhost = "/",
    settled: Annotated[
        bool,
        typer.Option("--settled", help="Also what nobody waits for any more, while it is there."),
    ] = False,
    format: Annotated[Format, typer.Option(help="JSON Lines, or msgpack maps.")] = Format.JSONL,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write to a new file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the messages that wait to a file.

    With everything that belongs to them, oldest first, those of streams before all others. A
    message that went to several queues is written once, but once for each stream. Transient
    messages are not in the log, and not exported. With --json what was done is a document on
    stdout, and the messages need -o.
    """
    if as_json and output is None:
        stop("with --json the messages cannot go to stdout, too: give -o FILE")
    lane_ids = None if queue is None else find_lanes(directory, vhost, queue)
    with _destination(output) as stream:
        count = _write(directory, report, lane_ids, settled, format, stream)
    report.content = {"output": str(output), "format": format, "messages": count}
    if as_json:
        return
    for note in report.all_notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    for item in report.all_damage:
        print(f"damaged: {printable(str(item))}", file=sys.stderr)
    print(f"qlog: {counted(count, 'message')} exported", file=sys.stderr)
    raise typer.Exit(1 if report.all_damage else 0)


@contextmanager
def _destination(output: Path | None) -> Iterator[BinaryIO]:
    """A new file, or stdout. What cannot be written ends the command."""
    if output is None:
        with writing_stdout():
            yield sys.stdout.buffer
        return
    try:
        with output.open("xb") as stream:
            try:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            except BaseException:
                output.unlink()  # a part of an export looks like a whole one
                raise
    except FileExistsError:
        stop(f"{output} exists; give another name, or remove it first")
    except PermissionError:
        raise
    except OSError as error:
        stop(f"{output} cannot be written: {error.strerror}")


def _write(
    directory: Directory,
    report: Report,
    lane_ids: frozenset[int] | None,
    settled: bool,
    format: Format,
    stream: BinaryIO,
) -> int:
    """How many messages were written; what could not be is in the report."""
    pack = packed_json if format is Format.JSONL else as_msgpack
    doing = "" if stream.isatty() else "exporting"
    count = 0
    for found in chain(
        _of_streams(directory, lane_ids), _of_log(directory, lane_ids, settled, doing)
    ):
        if isinstance(found, Damage):
            report.damage.append(found)
        else:
            stream.write(pack(found))
            count += 1
    report.damage += untold(survey(directory), report.all_damage)
    return count


def _of_streams(
    directory: Directory, lane_ids: frozenset[int] | None
) -> Iterator[dict[str, Any] | Damage]:
    """The messages that were moved to segments of streams; what cannot be read is damage."""
    for look in look_at_streams(directory):
        if lane_ids is not None and look.lane_id not in lane_ids:
            continue
        yield from look.damage
        for found in messages_of(directory, look):
            if isinstance(found, Damage):
                yield found
                continue
            target = directory.named(look.lane_id)
            target |= {"offset": found.offset, "state": "unsettled", "redelivered": False}
            yield _item(None, found.time_ms, [target], found.envelope, found.body)


def _targets(
    directory: Directory, record: Record, lane_ids: frozenset[int] | None, settled: bool
) -> list[dict[str, Any]]:
    """The queues that a message is exported for."""
    targets = []
    for lane_id, qseq in pairs(record.targets):
        target = directory.target(lane_id, qseq)
        ours = lane_ids is None or lane_id in lane_ids
        if ours and (target["state"] == "unsettled" or settled):
            lane = directory.ledger.lanes.get(lane_id)
            targets.append(target | {"redelivered": lane is not None and qseq < lane.delivered})
    return targets


def _of_log(
    directory: Directory, lane_ids: frozenset[int] | None, settled: bool, doing: str
) -> Iterator[dict[str, Any] | Damage]:
    """The messages of the log; what cannot be read is damage."""
    moved_away = stream_lanes(directory.definitions)
    for entry in chosen(directory, Selection(lane_ids=lane_ids), doing=doing):
        record, why = entry.record, entry.damage
        if record is not None and why is None:
            targets = [
                target
                for target in _targets(directory, record, lane_ids, settled)
                if target["state"] == "unsettled" or target["lane"] not in moved_away
            ]
            if not targets:
                continue
            try:
                envelope = Envelope.unpack(record.meta, len(record.body))
                item = _item(entry.lsn, record.timestamp_ms, targets, envelope, record.body)
            except (ValueError, TypeError):
                why = "its exchange, routing key and properties do not decode"
            else:
                yield item
                continue
        yield entry.as_damage(f" is not exported: {why}")


def _item(
    lsn: int | None,
    time_ms: int,
    targets: list[dict[str, Any]],
    envelope: Envelope,
    body: bytes,
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "lsn": lsn,
        "time": time_text(time_ms),
        "timestamp_ms": time_ms,
        "queues": targets,
        **item_of(envelope, body),
    }
