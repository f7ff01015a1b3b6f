"""`qlog inspect message`: one message, with every field of its bytes named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

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
    stop_for_rights,
)

if TYPE_CHECKING:
    from qlog.tools.inspect.look.anatomy import Field
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.look.find import Found
    from qlog.tools.inspect.rows import Report

_HEX_OCTETS = 8  # a line
_FIELD_OCTETS_MAX = 64  # of a field in a table; JSON has all of it


def message(
    lsn: Annotated[
        int | None,
        typer.Argument(min=0, metavar="LSN", help="The message's number in the log."),
    ] = None,
    data_dir: DataDir = DATA_DIR_DEFAULT,
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
    as_json: AsJson = False,
) -> None:
    """Take one message apart, byte by byte.

    Each field with its bytes, and the verdict of each checksum. Name it by its LSN, or by --queue and --offset; `qlog inspect messages` shows both.
    """
    if (lsn is None) == (queue is None) or (queue is None) != (offset is None):
        stop("name one message: give an LSN, or both --queue and --offset")
    directory = look_at(data_dir)
    from qlog.tools.inspect.look.find import by_lsn, by_offset

    try:
        if queue is not None and offset is not None:
            lane_ids = find_lanes(directory, vhost, queue)
            found = by_offset(directory, lane_ids, offset)
            if found is None:
                stop(_no_offset(directory, queue, lane_ids, offset))
        else:
            assert lsn is not None
            found = by_lsn(directory, lsn)
            if found is None:
                stop(_no_lsn(directory, lsn))
        finish(_report(directory, found, body_limit), as_json=as_json)
    except PermissionError as error:
        stop_for_rights(error)


def _no_lsn(directory: Directory, lsn: int) -> str:
    from qlog.tools.inspect.look.log import survey, views_of

    found = survey(directory, views_of(directory), verify=False, advance=lambda size: None)
    written = [item for item in found.segments if item.end_lsn is not None]
    end = max((item.end_lsn or 0 for item in written), default=0)
    if lsn >= end:
        return f"no message {lsn}: the log ends before LSN {end}"
    return f"the log has no message {lsn} any more: it was settled, and its segment given back"


def _no_offset(directory: Directory, queue: str, lane_ids: frozenset[int], offset: int) -> str:
    next_offset = max(directory.ledger.next_qseq(lane_id) for lane_id in lane_ids)
    if any(not directory.unsettled(lane_id, offset, 1) for lane_id in lane_ids):
        return f"the log has no #{offset} of '{queue}' any more: it is settled"
    known = f" (the ledger knows offsets below {next_offset})" if next_offset else ""
    return f"the log has no #{offset} of '{queue}'{known}"


def _report(directory: Directory, found: Found, body_limit: int) -> Report:
    from qlog.tools.inspect.look.anatomy import fields_of
    from qlog.tools.inspect.look.decode import (
        add_body,
        decoded,
        dump,
        row_of,
    )
    from qlog.tools.inspect.look.find import batch_position
    from qlog.tools.inspect.rows import Column, Damage, Facts, Report, Table

    entry = found.entry
    file = directory.relative(found.view.path)
    item = decoded(directory, file, entry)
    if entry.record is not None:
        add_body(item, entry.record)
    batch_at, _ = batch_position(directory, found)
    fields, checks = fields_of(directory, found, batch_at)
    report = Report("message", str(directory.root), directory.in_use)
    report.columns = (
        Column("LSN", right=True),
        Column("time (UTC)"),
        Column("size", right=True),
        Column("message", name=True),
        Column("queue #offset", name=True),
    )
    report.rows = [row_of(item, [])]
    parts: dict[str, list[Field]] = {}
    for field in fields:
        parts.setdefault(field.part, []).append(field)
    body = b""
    for part, items in parts.items():
        if part == "body":
            body = items[0].data
            title = f"body: {len(body):,} bytes at byte {items[0].position}"
            lines = dump(body[:body_limit])
            if len(body) > body_limit:
                lines.append(f"… {len(body) - body_limit:,} more (--body-limit)")
            rows: list[tuple[str, Any]] = [
                (f"{items[0].position + 16 * at}" if not line.startswith("…") else "", line)
                for at, line in enumerate(lines)
            ]
            report.sections.append(Facts(title, rows or [("", "empty")]))
            continue
        columns = (
            Column("byte", right=True),
            Column("hex"),
            Column("field", name=True),
            Column("value", name=True),
        )
        report.sections.append(
            Table(
                part,
                columns,
                [
                    (str(field.position), _hex(field.data), field.name, field.value)
                    for field in items
                ],
            )
        )
    verdicts = {True: "right", False: "WRONG", None: "cannot be computed"}
    report.sections.append(
        Table(
            "checksums",
            (Column("of"), Column("verdict"), Column("what it covers", name=True)),
            [
                (
                    check.what,
                    verdicts[check.right],
                    check.covers + (f"; {check.note}" if check.note else ""),
                )
                for check in checks
            ],
        )
    )
    report.content = {
        "message": item,
        "batch_position": batch_at,
        "fields": [
            {
                "part": field.part,
                "name": field.name,
                "position": field.position,
                "hex": field.data.hex(),
                "value": field.value,
            }
            for field in fields
        ],
        "checksums": [
            {"of": check.what, "right": check.right, "covers": check.covers, "note": check.note}
            for check in checks
        ],
    }
    end = entry.position + entry.length
    report.summary = (
        f"{directory.root}: LSN {entry.lsn}, {file} bytes {entry.position} to {end - 1}"
    )
    report.notes = list(directory.notes)
    report.damage = list(directory.damage)
    if item["damage"] is not None:
        report.damage.append(
            Damage(
                file,
                f"LSN {entry.lsn}: {item['damage']}",
                entry.position,
                end,
                entry.lsn,
                entry.lsn_end,
                None if entry.lsn_end is None else entry.lsn_end - entry.lsn,
            )
        )
    wrong = [check for check in checks if check.right is False]
    for check in wrong:
        if item["damage"] is None or check.what != "record":
            report.damage.append(Damage(file, f"the checksum of the {check.what} is wrong"))
    return report


def _hex(data: bytes) -> list[str]:
    """A field's bytes, some in each line."""
    shown = data[:_FIELD_OCTETS_MAX]
    lines = [shown[at : at + _HEX_OCTETS].hex(" ") for at in range(0, len(shown), _HEX_OCTETS)]
    if len(data) > len(shown):
        lines.append(f"… {len(data) - len(shown)} more")
    return lines or [""]
