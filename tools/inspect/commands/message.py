"""`qlog inspect message`: one message, with every field of its bytes named."""

from itertools import groupby
from operator import attrgetter
from typing import Annotated

import typer

from qlog.tools.inspect.command import OfVhost, command, find_lanes, stop
from qlog.tools.inspect.look.anatomy import Checksum, Field, batch_position, fields_of
from qlog.tools.inspect.look.decode import MESSAGE_COLUMNS, decoded, dump
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import survey, views_of
from qlog.tools.inspect.look.reader import Entry, messages
from qlog.tools.inspect.look.selection import Selection, chosen
from qlog.tools.inspect.rows import Damage, Report, body_in_json, name, number, picked, text

_HEX_OCTETS = 8  # a line
_FIELD_OCTETS_MAX = 64  # of a field in a table; JSON has all of it
_VERDICTS = {True: "right", False: "WRONG", None: "cannot be computed"}


def _hex(field: Field) -> list[str]:
    shown = field.data[:_FIELD_OCTETS_MAX]
    lines = [shown[at : at + _HEX_OCTETS].hex(" ") for at in range(0, len(shown), _HEX_OCTETS)]
    if len(field.data) > len(shown):
        lines.append(f"… {len(field.data) - len(shown)} more")
    return lines or [""]


def _covers(check: Checksum) -> str:
    return check.covers + (f"; {check.note}" if check.note else "")


_FIELD_COLUMNS = (
    number("byte", "position"),
    text("hex", _hex),
    name("field", "name"),
    name("value"),
)
_CHECK_COLUMNS = (
    text("of"),
    text("verdict", lambda check: _VERDICTS[check.right]),
    name("what it covers", _covers),
)


@command
def message(
    directory: Directory,
    report: Report,
    lsn: Annotated[
        int | None, typer.Argument(min=0, metavar="LSN", help="The message's number in the log.")
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Instead of an LSN: a queue, and --offset in it."),
    ] = None,
    vhost: OfVhost = "/",
    offset: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="The message's offset in --queue.")
    ] = None,
    body_limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="Show so many octets of the body.")
    ] = 256,
) -> None:
    """Take one message apart, byte by byte.

    Each field with its bytes, and the verdict of each checksum. Name it by its LSN, or by --queue
    and --offset; `qlog inspect messages` shows both.
    """
    if (lsn is None) == (queue is None) or (queue is None) != (offset is None):
        stop("name one message: give an LSN, or both --queue and --offset")
    if queue is not None and offset is not None:
        lane_ids = find_lanes(directory, vhost, queue)
        # A damaged message is found if its targets are known.
        selection = Selection(lane_ids=lane_ids, offsets=(offset, offset + 1))
        found = (one for one in chosen(directory, selection) if one.record is not None)
        entry = next(found, None)
        if entry is None:
            stop(_no_offset(directory, queue, lane_ids, offset))
    else:
        assert lsn is not None
        entry = _by_lsn(directory, lsn)
        if entry is None:
            stop(_no_lsn(directory, lsn))
    _show(directory, report, entry, body_limit)


def _by_lsn(directory: Directory, lsn: int) -> Entry | None:
    """The message, damaged or not; None when the log does not have it."""
    for entry in messages(directory, views_of(directory), lsn):
        if entry.lsn == lsn or (entry.lsn < lsn and (entry.lsn_end is None or entry.lsn_end > lsn)):
            return entry
        if entry.lsn > lsn:
            break
    return None


def _no_lsn(directory: Directory, lsn: int) -> str:
    end = max((item.end_lsn or 0 for item in survey(directory).segments), default=0)
    if lsn >= end:
        return f"no message {lsn}: the log ends before LSN {end}"
    return f"the log has no message {lsn} any more: it was settled, and its segment given back"


def _no_offset(directory: Directory, queue: str, lane_ids: frozenset[int], offset: int) -> str:
    next_offset = max(directory.ledger.next_qseq(lane_id) for lane_id in lane_ids)
    if any(not directory.unsettled(lane_id, offset, 1) for lane_id in lane_ids):
        return f"the log has no #{offset} of '{queue}' any more: it is settled"
    known = f" (the ledger knows offsets below {next_offset})" if next_offset else ""
    return f"the log has no #{offset} of '{queue}'{known}"


def _show(directory: Directory, report: Report, entry: Entry, body_limit: int) -> None:
    item = decoded(directory, entry)
    if entry.record is not None:
        item |= body_in_json(entry.record.body)
    batch_at = batch_position(directory, entry)
    fields, checks = fields_of(directory, entry, batch_at)
    documents = [picked(field, "part name position hex value") for field in fields]
    report.content = {"message": item, "batch_position": batch_at, "fields": documents}
    report.table(MESSAGE_COLUMNS, [(item, [])])
    for part, of_part in groupby(fields, attrgetter("part")):
        if part == "body":
            _show_body(report, next(of_part), body_limit)
        else:
            report.table(_FIELD_COLUMNS, of_part, title=part)
    report.table(_CHECK_COLUMNS, checks, title="checksums", key="checksums")
    report.summary = (
        f"{directory.root}: LSN {entry.lsn}, {entry.file} bytes {entry.position} to {entry.end - 1}"
    )
    if item["damage"] is not None:
        report.damage.append(entry.as_damage(f": {item['damage']}"))
    for check in checks:
        if check.right is False and (item["damage"] is None or check.of != "record"):
            report.damage.append(Damage(entry.file, f"the checksum of the {check.of} is wrong"))


def _show_body(report: Report, field: Field, limit: int) -> None:
    body = field.data
    lines = [(f"{field.position + 16 * at}", line) for at, line in enumerate(dump(body[:limit]))]
    if len(body) > limit:
        lines.append(("", f"… {len(body) - limit:,} more (--body-limit)"))
    title = f"body: {len(body):,} bytes at byte {field.position}"
    report.facts(lines or [("", "empty")], title=title)
