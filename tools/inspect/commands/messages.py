"""`qlog inspect messages`: the records of the log, decoded: all of them, or those asked for."""

import time
from typing import Annotated, Any

import typer

from qlog.tools.inspect.command import AsJson, OfQueue, OfVhost, command, find_lanes, stop
from qlog.tools.inspect.commands.follow import follow_log
from qlog.tools.inspect.look.decode import MESSAGE_COLUMNS, Bodies, decoded
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.log import survey, untold
from qlog.tools.inspect.look.selection import (
    KeyPattern,
    Selection,
    chosen,
    parse_header,
    parse_offsets,
    parse_time,
)
from qlog.tools.inspect.rows import Report, counted

_LIMIT_DEFAULT = 20
_Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Published then or later: 2026-11-23T06:11 (UTC), or 10m (ago)."
    ),
]
_WhichSettled = Annotated[
    bool | None,
    typer.Option(
        "--settled/--unsettled",
        help="Only what nobody waits for any more, or only what waits. [default: both]",
    ),
]
_Follow = Annotated[
    bool,
    typer.Option("--follow", "-f", help="Show new messages as they become durable, until Ctrl-C."),
]


@command
def messages(
    directory: Directory,
    report: Report,
    from_lsn: Annotated[
        int | None,
        typer.Option("--from", metavar="LSN", min=0, help="Begin with this record of the log."),
    ] = None,
    queue: OfQueue = None,
    vhost: OfVhost = "/",
    offset: Annotated[
        str | None,
        typer.Option(metavar="N[-N]", help="Of --queue: this offset, or a range: 7-9, 7-, -9."),
    ] = None,
    since: _Since = None,
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
    settled: _WhichSettled = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Show so many at most. [default: 20; no limit with --follow]"),
    ] = None,
    body: Annotated[bool, typer.Option("--body", help="Show the bodies too.")] = False,
    body_limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="So many characters or octets of each body.")
    ] = 160,
    as_hex: Annotated[
        bool, typer.Option("--hex", help="Bodies in hexadecimal, text or not.")
    ] = False,
    follow: _Follow = False,
    as_json: AsJson = False,
) -> None:
    """Decode messages: all, or those asked for.

    Oldest first; settled ones too, as long as they are there. #N behind a queue is the message's
    offset in it. Damaged messages are shown as far as they decode. Transient messages are not in
    the log. With --follow it begins with what comes from now on, unless --from or --since say more;
    with --json each message is then a line.
    """
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
        selection.headers = [parse_header(one) for one in header or ()]
    except ValueError as error:
        stop(str(error))
    selection.key = None if key is None else KeyPattern(key)
    bodies = Bodies(body_limit, as_hex) if body or as_hex else None
    if follow:
        start = from_lsn if from_lsn is not None or since is None else 0
        follow_log(directory, start, selection, limit, bodies, as_json=as_json)
        raise typer.Exit
    _show(directory, report, from_lsn or 0, selection, limit or _LIMIT_DEFAULT, bodies)


def _show(
    directory: Directory,
    report: Report,
    from_lsn: int,
    selection: Selection,
    limit: int,
    bodies: Bodies | None,
) -> None:
    rows: list[tuple[dict[str, Any], list[str]]] = []
    next_lsn: int | None = None
    for entry in chosen(directory, selection, from_lsn):
        if len(rows) == limit:
            next_lsn = entry.lsn
            break
        item = decoded(directory, entry)
        more = bodies.add(item, entry.record) if bodies and entry.record else []
        rows.append((item, more))
        if item["damage"] is not None:
            report.damage.append(entry.as_damage(f": {item['damage']}"))
    if next_lsn is None:  # walked to the end: what is not there at all is told too
        found = survey(directory)
        report.damage += untold(found, report.all_damage, from_lsn)
        report.notes += found.notes
    report.table(MESSAGE_COLUMNS, rows)
    report.content = {"messages": [item for item, _ in rows], "next_lsn": next_lsn}
    what = counted(len(rows), "message")
    if not rows:
        such = "messages" if selection == Selection() else "such messages"
        what = f"no {such} from LSN {from_lsn} on"
    report.say(what if next_lsn is None else f"{what}; there are more: --from {next_lsn}")
