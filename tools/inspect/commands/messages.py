"""`qlog inspect messages`: the records of the log, decoded: all of them, or those asked for."""

from __future__ import annotations

import time
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
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.look.selection import Selection
    from qlog.tools.inspect.rows import Report

_LIMIT_DEFAULT = 20


def messages(
    data_dir: DataDir = DATA_DIR_DEFAULT,
    from_lsn: Annotated[
        int | None,
        typer.Option("--from", metavar="LSN", min=0, help="Begin with this record of the log."),
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only what went to this queue.")
    ] = None,
    vhost: OfVhost = "/",
    offset: Annotated[
        str | None,
        typer.Option(metavar="N[-N]", help="Of --queue: this offset, or a range: 7-9, 7-, -9."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Published then or later: 2026-11-23T06:11 (UTC), or 10m (ago)."
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Published before that time.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Routing key: as it is, or a topic's (order.#)."),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="With this header; may be given again."),
    ] = None,
    settled: Annotated[
        bool | None,
        typer.Option(
            "--settled/--unsettled",
            help="Only what nobody waits for any more, or only what waits. [default: both]",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Show so many at most. [default: 20; no limit with --follow]"),
    ] = None,
    body: Annotated[bool, typer.Option("--body", help="Show the bodies too.")] = False,
    body_limit: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="So many characters or octets of each body."),
    ] = 160,
    as_hex: Annotated[
        bool, typer.Option("--hex", help="Bodies in hexadecimal, text or not.")
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Show new messages as they become durable, until Ctrl-C."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Decode messages: all, or those asked for.

    Oldest first; settled ones too, as long as they are there. #N behind a queue is the message's offset in it. Damaged messages are shown as far as they
    decode. Transient messages are not in the log. With --follow it begins with what comes from
    now on, unless --from or --since say more; with --json each message is then a line.
    """
    directory = look_at(data_dir)
    from qlog.tools.inspect.look.selection import (
        KeyPattern,
        Selection,
        parse_header,
        parse_offsets,
        parse_time,
    )

    now_ms = time.time_ns() // 1_000_000
    selection = Selection(settled=settled)
    if queue is not None:
        selection.lane_ids = find_lanes(directory, vhost, queue)
    elif offset is not None:
        stop("--offset counts the messages of a queue: give --queue too")
    try:
        selection.offsets = None if offset is None else parse_offsets(offset)
        selection.since_ms = None if since is None else parse_time(since, now_ms)
        selection.until_ms = None if until is None else parse_time(until, now_ms)
        selection.headers = [parse_header(text) for text in header or ()]
    except ValueError as error:
        stop(str(error))
    selection.key = None if key is None else KeyPattern(key)
    body_max = body_limit if body or as_hex else None
    try:
        if follow:
            from qlog.tools.inspect.commands.follow import follow_log

            start = from_lsn if from_lsn is not None or since is None else 0
            follow_log(directory, start, selection, limit, body_max, as_hex=as_hex, as_json=as_json)
        else:
            report = _report(
                directory, from_lsn or 0, selection, limit or _LIMIT_DEFAULT, body_max, as_hex
            )
            finish(report, as_json=as_json)
    except PermissionError as error:
        stop_for_rights(error)


def _report(
    directory: Directory,
    from_lsn: int,
    selection: Selection,
    limit: int,
    body_max: int | None,
    as_hex: bool,
) -> Report:
    from qlog.tools.inspect.look.decode import add_body, body_lines, decoded, row_of
    from qlog.tools.inspect.look.log import survey, views_of
    from qlog.tools.inspect.look.reader import messages as read
    from qlog.tools.inspect.rows import Column, Damage, Report, counted, progress

    views = views_of(directory)
    report = Report("messages", str(directory.root), directory.in_use)
    report.columns = (
        Column("LSN", right=True),
        Column("time (UTC)"),
        Column("size", right=True),
        Column("message", name=True),
        Column("queue #offset", name=True),
    )
    report.notes = list(directory.notes)
    report.damage = list(directory.damage)
    items: list[dict[str, Any]] = []
    next_lsn: int | None = None
    with progress("searching", sum(view.size for view in views)) as bar:
        for view, entry in read(directory, views, from_lsn, selection.lane_ids, selection.offsets):
            bar.advance(entry.length)
            if entry.record is not None and not selection.takes(directory, entry.record):
                continue
            if len(items) == limit:
                next_lsn = entry.lsn
                break
            file = directory.relative(view.path)
            item = decoded(directory, file, entry)
            more: list[str] = []
            if body_max is not None and entry.record is not None:
                add_body(item, entry.record)
                more = body_lines(entry.record.body, body_max, as_hex=as_hex)
            items.append(item)
            report.rows.append(row_of(item, more))
            if item["damage"] is not None:
                report.damage.append(
                    Damage(
                        file,
                        f"LSN {entry.lsn}: {item['damage']}",
                        entry.position,
                        entry.position + entry.length,
                        entry.lsn,
                        entry.lsn_end,
                        None if entry.lsn_end is None else entry.lsn_end - entry.lsn,
                    )
                )
    if next_lsn is None:  # walked to the end: what is not there at all is told too
        found = survey(directory, views, verify=False, advance=lambda size: None)
        shown = {(item.file, item.position) for item in report.damage}
        report.damage += [
            item
            for item in found.damage
            if (item.file, item.position) not in shown
            and (item.lsn_end is None or item.lsn_end > from_lsn)
        ]
        report.notes += found.notes
    report.content = {"messages": items, "next_lsn": next_lsn}
    in_use = ", in use by a broker" if directory.in_use else ""
    report.summary = f"{directory.root}{in_use}: {counted(len(items), 'message')}"
    if not items:
        such = "messages" if selection == type(selection)() else "such messages"
        report.summary = f"{directory.root}{in_use}: no {such} from LSN {from_lsn} on"
    if next_lsn is not None:
        report.summary += f"; there are more: --from {next_lsn}"
    return report
