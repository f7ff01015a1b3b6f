"""`qlog inspect export`: the messages of a directory as a file that any program can read.

Written to a file, or to stdout, one message after the other; what cannot be read is named on stderr
and in the exit status, never left out silently. Changes nothing in the directory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from qlog.tools.inspect.command import (
    DATA_DIR_DEFAULT,
    AsJson,
    DataDir,
    OfVhost,
    find_lanes,
    finish,
    look_at,
    stop,
    stop_for_pipe,
    stop_for_rights,
    stop_for_stdout,
)

if TYPE_CHECKING:
    from qlog.storage.bytes.record import Record
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.rows import Damage


class Format(StrEnum):
    """How messages are written."""

    JSONL = "jsonl"
    MSGPACK = "msgpack"


def export(
    data_dir: DataDir = DATA_DIR_DEFAULT,
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only the messages of this queue.")
    ] = None,
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
    """Write the messages that wait to a file, with everything that belongs to them.

    Oldest first. A message that went to several queues is written once. Transient messages are not
    in the log, and not exported. With --json what was done is a document on stdout,
    and the messages need -o.
    """
    from qlog.tools.inspect.rows import Report, counted, printable

    if as_json and output is None:
        stop("with --json the messages cannot go to stdout, too: give -o FILE")
    directory = look_at(data_dir)
    lane_ids = None if queue is None else find_lanes(directory, vhost, queue)
    try:
        with _destination(output) as stream:
            count, damage = _write(directory, lane_ids, settled, format, stream)
    except FileExistsError:
        stop(f"{output} exists; give another name, or remove it first")
    except PermissionError as error:
        stop_for_rights(error)
    except BrokenPipeError:
        stop_for_pipe()
    except OSError as error:
        if output is None:
            stop_for_stdout(error.strerror)
        stop(f"{output} cannot be written: {error.strerror}")
    if as_json:
        content = {"output": str(output), "format": format, "messages": count}
        report = Report("export", str(directory.root), directory.in_use, content)
        report.notes, report.damage = directory.notes, damage
        finish(report, as_json=True)
        return
    for note in directory.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    for item in damage:
        print(f"damaged: {printable(str(item))}", file=sys.stderr)
    print(f"qlog: {counted(count, 'message')} exported", file=sys.stderr)
    if damage:
        raise typer.Exit(1)


@contextmanager
def _destination(output: Path | None) -> Iterator[BinaryIO]:
    if output is None:
        if sys.stdout is None:
            stop_for_stdout("it is closed")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with output.open("xb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def _write(
    directory: Directory,
    lane_ids: frozenset[int] | None,
    settled: bool,
    format: Format,
    stream: BinaryIO,
) -> tuple[int, list[Damage]]:
    """How many messages were written, and what could not be."""
    from qlog.tools.inspect.look.log import survey, views_of
    from qlog.tools.inspect.look.reader import messages
    from qlog.tools.inspect.rows import Damage, progress
    from qlog.tools.transfer.exported import as_json, as_msgpack

    pack = as_json if format is Format.JSONL else as_msgpack
    views = views_of(directory)
    damage = list(directory.damage)
    count = 0
    size = sum(view.size for view in views)
    with progress("exporting", 0 if stream.isatty() else size) as bar:
        for view, entry in messages(directory, views, 0, lane_ids):
            bar.advance(entry.length)
            record = entry.record
            why = entry.damage
            if record is not None and why is None:
                targets = _targets(directory, record, lane_ids, settled)
                if not targets:
                    continue
                item = _item(entry.lsn, record, targets)
                if item is not None:
                    stream.write(pack(item))
                    count += 1
                    continue
                why = "its exchange, routing key and properties do not decode"
            damage.append(
                Damage(
                    directory.relative(view.path),
                    f"LSN {entry.lsn} is not exported: {why}",
                    entry.position,
                    entry.position + entry.length,
                    entry.lsn,
                    entry.lsn_end,
                    None if entry.lsn_end is None else entry.lsn_end - entry.lsn,
                )
            )
    named = {(item.file, item.position) for item in damage}
    found = survey(directory, views, verify=False, advance=lambda size: None)
    damage += [item for item in found.damage if (item.file, item.position) not in named]
    return count, damage


def _targets(
    directory: Directory, record: Record, lane_ids: frozenset[int] | None, settled: bool
) -> list[dict[str, Any]]:
    """The queues that a message is exported for."""
    from qlog.tools.inspect.look.decode import state_of

    targets = []
    for lane_id, qseq in zip(record.targets[0::2], record.targets[1::2], strict=True):
        if lane_ids is not None and lane_id not in lane_ids:
            continue
        state = state_of(directory, lane_id, qseq)
        if state != "unsettled" and not settled:
            continue
        owner = directory.queue_of(lane_id)
        lane = directory.ledger.lanes.get(lane_id)
        targets.append(
            {
                "vhost": None if owner is None else owner.vhost,
                "queue": None if owner is None else owner.name,
                "lane": lane_id,
                "offset": qseq,
                "state": state,
                "redelivered": lane is not None and qseq < lane.delivered,
            }
        )
    return targets


def _item(lsn: int, record: Record, targets: list[dict[str, Any]]) -> dict[str, Any] | None:
    """A message for the file; None when what surrounds its body does not decode."""
    from qlog.server.amqp.envelope import Envelope
    from qlog.tools.inspect.look.decode import time_text
    from qlog.tools.transfer.exported import SCHEMA, item_of

    try:
        envelope = Envelope.unpack(record.meta, len(record.body))
        item = item_of(envelope, record.body)
    except (ValueError, TypeError):
        return None
    return {
        "schema": SCHEMA,
        "lsn": lsn,
        "time": time_text(record.timestamp_ms),
        "timestamp_ms": record.timestamp_ms,
        "queues": targets,
        **item,
    }
