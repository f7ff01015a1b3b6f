"""`qlog top`: rates, queues and connections of a running broker, as they are now, again and again.

Asks the management API as `qlog ctl` does. Rates are those of the broker's last samples. Ctrl-C
ends it; a broker that is started anew does not. With `--once` it shows one picture, for logs and
tests.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from qlog.tools.ctl.api import Api, ApiError, BadUrl, Unreachable
from qlog.tools.ctl.command import Option, Status
from qlog.tools.ctl.parse import Parsed, parse
from qlog.tools.ctl.values import padded, printable, shortened, width

USAGE = """\
usage: qlog top [--data-dir DIR | --url URL] [--interval SECONDS] [--rows N] [--once]

  --interval SECONDS   how often it looks (default: 2)
  --rows N             so many queues and connections (default: 15)
  --once               one picture, and the end"""
INTERVAL_S = 2.0
INTERVAL_S_MIN, INTERVAL_S_MAX = 0.1, 86_400.0
ROWS, ROWS_MAX = 15, 500  # the largest page of the API
OPTIONS = (
    Option("interval", float, ("-i",)),
    Option("rows", int, ("-r",)),
    Option("once", bool),
)
# What clients have named is shortened where a terminal is narrow, down to this; numbers never are.
_NAMES = frozenset(("vhost", "name", "user"))
_NAME_COLUMNS_MIN = 8
_GAP = 2  # between two columns
_RATES = ("publish", "confirm", "deliver_get", "ack", "redeliver")
_UNITS = ("B", "kB", "MB", "GB", "TB")

Item = Mapping[str, Any]


class Picture:
    """What is shown at one moment."""

    def __init__(self, api: Api, rows: int) -> None:
        page = {"page": "1", "page_size": str(rows)}
        self.status = api.ask("GET", ("qlog", "status"))
        self.overview = api.ask("GET", ("overview",))
        largest = {**page, "sort": "messages", "sort_reverse": "true"}
        self.queues: Item = api.ask("GET", ("queues",), query=largest)
        busiest = {**page, "sort": "recv_oct_details.rate", "sort_reverse": "true"}
        self.connections: Item = api.ask("GET", ("connections",), query=busiest)

    def head(self) -> Iterator[str]:
        """The lines above the tables."""
        status, overview = self.status, self.overview
        alarms = ", ".join(status["alarms"]) or "none"
        yield (
            f"{status['node']}  qlog {status['qlog_version']}  up {_age(status['uptime_s'])}  "
            f"{'running' if status['running'] else 'stopped'}  alarms: {alarms}"
        )
        yield (
            f"memory {_size(status['memory_used'])} of {_size(status['memory_limit'])}  "
            f"disk free {_size(status['disk_free'])}  "
            f"descriptors {status['descriptors_used']} of {status['descriptors_max']}"
        )
        totals, queued = overview["object_totals"], overview.get("queue_totals", {})
        yield (
            f"{totals['connections']} connections  {totals['channels']} channels  "
            f"{totals['consumers']} consumers  {totals['queues']} queues  "
            f"{queued.get('messages_ready', 0)} ready  "
            f"{queued.get('messages_unacknowledged', 0)} unacknowledged"
        )
        stats = overview.get("message_stats", {})
        yield "  ".join(f"{name} {_rate(stats, name)}/s" for name in _RATES)

    def tables(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Title, columns and cells of each table."""
        yield (
            f"queues ({self.queues['total_count']})",
            ["vhost", "name", "type", "state", "ready", "unacked", "in/s", "out/s", "consumers"],
            [_queue(item) for item in self.queues["items"]],
        )
        yield (
            f"connections ({self.connections['total_count']})",
            ["name", "user", "vhost", "state", "channels", "from client", "to client"],
            [_connection(item) for item in self.connections["items"]],
        )


def _queue(item: Item) -> list[str]:
    stats = item.get("message_stats", {})
    return [
        printable(item["vhost"]),
        printable(item["name"]),
        item.get("type", ""),
        str(item.get("state", "")),
        str(item.get("messages_ready", 0)),
        str(item.get("messages_unacknowledged", 0)),
        _rate(stats, "publish"),
        _rate(stats, "deliver_get"),
        str(item.get("consumers", 0)),
    ]


def _connection(item: Item) -> list[str]:
    return [
        printable(item["name"]),
        printable(item.get("user", "")),
        printable(item.get("vhost", "")),
        str(item.get("state", "")),
        str(item.get("channels", 0)),
        f"{_size(_details(item, 'recv_oct'))}/s",
        f"{_size(_details(item, 'send_oct'))}/s",
    ]


def _details(item: Item, name: str) -> float:
    rate: float = item.get(f"{name}_details", {}).get("rate", 0.0)
    return rate


def _rate(stats: Item, name: str) -> str:
    return f"{_details(stats, name):,.0f}"


def _size(octets: float) -> str:
    for unit in _UNITS:
        if octets < 1000 or unit == _UNITS[-1]:
            return f"{octets:.0f} {unit}" if unit == "B" else f"{octets:.1f} {unit}"
        octets /= 1000
    raise AssertionError


def _age(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours // 24} d {hours % 24} h" if hours >= 24 else f"{hours} h {rest // 60} min"


def text_of(picture: Picture) -> str:
    """The picture in plain text."""
    lines = list(picture.head())
    for title, columns, rows in picture.tables():
        lines += ["", title]
        cells = [columns, *rows]
        widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
        lines += ["  ".join(map(padded, row, widths)).rstrip() for row in cells]
    return "\n".join(lines)


def widths_for(terminal: int, columns: list[str], rows: list[list[str]]) -> list[int]:
    """How wide each column may be: the longest names give way, until all fit."""
    widths = [max(map(width, cells)) for cells in zip(columns, *rows, strict=True)]
    names = [at for at, column in enumerate(columns) if column in _NAMES]
    excess = sum(widths) + _GAP * len(widths) - terminal
    while excess > 0:
        longest = max(names, key=lambda at: widths[at])
        if widths[longest] <= _NAME_COLUMNS_MIN:
            break
        widths[longest] -= 1
        excess -= 1
    return widths


def _drawn(picture: Picture) -> Any:
    """The picture for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(line) for line in picture.head()]
    terminal = shutil.get_terminal_size().columns
    for title, columns, rows in picture.tables():
        table = Table(title=title, title_justify="left", expand=True, box=None, padding=(0, 1))
        widths = widths_for(terminal, columns, rows)
        for column in columns:
            table.add_column(column, no_wrap=True)
        for row in rows:
            table.add_row(*(Text(shortened(*each)) for each in zip(row, widths, strict=True)))
        parts += [Text(""), table]
    return Group(*parts)


def main(argv: list[str]) -> int:
    """Show the broker until Ctrl-C; the exit status."""
    parsed = parse(argv, OPTIONS)
    options = parsed.options
    if options.get("help"):
        print(USAGE)
        return Status.OK
    if wrong := _wrong(parsed):
        print(f"qlog top: {wrong}\n{USAGE}", file=sys.stderr)
        return Status.USAGE
    data_dir = options.get("data_dir") or os.environ.get("QLOG_DATA_DIR") or "qlog-data"
    try:
        api = Api(data_dir, options.get("url") or os.environ.get("QLOG_URL"))
    except BadUrl as error:
        print(f"qlog: {error}", file=sys.stderr)
        return Status.USAGE
    rows = options.get("rows", ROWS)
    try:
        if options.get("once"):
            print(text_of(Picture(api, rows)))
        else:
            _watch(api, rows, options.get("interval", INTERVAL_S))
    except KeyboardInterrupt:
        return Status.OK
    except ApiError as error:
        print(f"qlog: {api.refusal(error)}", file=sys.stderr)
        return Status.UNAVAILABLE
    except Unreachable as error:
        print(
            f"qlog: {_silent(api, error)}; is a broker running there (--data-dir, --url)?",
            file=sys.stderr,
        )
        return Status.UNAVAILABLE
    return Status.OK


def _wrong(parsed: Parsed) -> str:
    """What is wrong with a command line; nothing: it is right."""
    for flag, value in parsed.invalid:
        return f"no value that fits: {flag} {value}" if value else f"not known, or no value: {flag}"
    if parsed.args:
        return f"not known: {parsed.args[0]}"
    if not 1 <= parsed.options.get("rows", ROWS) <= ROWS_MAX:
        return f"--rows is 1 to {ROWS_MAX}"
    interval_s = parsed.options.get("interval", INTERVAL_S)
    if not interval_s >= INTERVAL_S_MIN:
        return f"--interval is at least {INTERVAL_S_MIN}"
    if interval_s > INTERVAL_S_MAX:
        return f"--interval is at most {INTERVAL_S_MAX:.0f}"
    return ""


def _silent(api: Api, error: Unreachable) -> str:
    return f"{api.address} does not answer: {error}"


def _watch(api: Api, rows: int, interval_s: float) -> None:
    from rich.live import Live

    with Live(_drawn(Picture(api, rows)), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(_next(api, rows), refresh=True)


def _next(api: Api, rows: int) -> Any:
    """The next picture, or what there is instead while the broker is started anew."""
    from rich.text import Text

    try:
        return _drawn(Picture(api, rows))
    except Unreachable as error:
        return Text(f"{_silent(api, error)}; asking again")
