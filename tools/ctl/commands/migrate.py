"""A running RabbitMQ moves into the running broker (tools/migrate)."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit

from qlog.tools.ctl.command import (
    BadUsage,
    Call,
    Command,
    Failure,
    Option,
    Options,
    Result,
    Rows,
    Status,
    bad_argument,
)

PREFETCH, PREFETCH_MAX = 1000, 5000
_FROM, _AMQP = "QLOG_MIGRATE_FROM", "QLOG_MIGRATE_AMQP"


def migrate(call: Call) -> Result:
    """Definitions, then messages; a row for each queue."""
    # They are slow to import, and no other command needs them.
    from qlog.tools.migrate.plan import Management, plan_of
    from qlog.tools.migrate.run import COLUMNS, Migration, Progress, counted, planned

    options = call.options
    url, amqp = _addresses(options)
    progress = Progress(bool(options.get("quiet") or options.get("silent")))
    management = Management(url, call.api.timeout_s)
    plan = plan_of(management, options.get("vhost"), options.get("queue"))
    migration = Migration(call.api, amqp, options.get("prefetch", PREFETCH), progress)
    if not options.get("messages_only"):
        migration.check(plan)
    for note in plan.notes:
        progress.say(f"left out: {note}")
    if options.get("dry_run"):
        progress.say(f"definitions: {counted(plan.definitions)}")
        return planned(plan)
    if not options.get("messages_only"):
        migration.define(plan)
    if options.get("definitions_only"):
        return None
    rows = migration.move(plan)
    result = Rows(COLUMNS, rows)
    _end(call, migration, result, rows, progress)
    return result


def _end(call: Call, migration: Any, result: Rows, rows: list[Any], progress: Any) -> None:
    """Say how it ended. Raises Failure, behind the table, if something did not move."""
    from qlog.tools.ctl.formats import show

    moved, seen, twice = (sum(row[name] for row in rows) for name in ("moved", "seen", "twice"))
    progress.say(f"{moved} messages moved; {seen} dropped as seen; {twice} possibly twice")
    if not migration.failures:
        return
    show(result, call, call.options.get("formatter", ""), print)
    again = "the same command goes on where this one ended"
    if migration.interrupted:
        raise Failure(f"interrupted; {again}", Status.UNAVAILABLE)
    raise Failure("\n".join([*migration.failures, again]), Status.UNAVAILABLE)


def _addresses(options: Options) -> tuple[str, Any]:
    """RabbitMQ's API and its AMQP. Raises BadUsage."""
    from qlog.tools.transfer.link import Address

    url = options.get("from") or os.environ.get(_FROM)
    if not url:
        raise BadUsage("not enough arguments: --from http://USER:PASSWORD@HOST:15672 is missing")
    try:
        parts = urlsplit(url)
        port = parts.port or 15672
    except ValueError:
        raise bad_argument(f"{url} is not an address") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise bad_argument("--from is an address such as http://guest:guest@localhost:15672")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    login = parts.netloc.rpartition("@")[0] or "guest:guest"
    amqp = options.get("amqp") or os.environ.get(_AMQP) or f"amqp://{login}@{host}"
    try:
        return f"{parts.scheme}://{login}@{host}:{port}", Address.parse(amqp)
    except ValueError:
        raise bad_argument(
            "--amqp is an address such as amqp://guest:guest@localhost:5672"
        ) from None


def _check(args: list[str], options: Options) -> None:
    _addresses(options)
    if not 0 < options.get("prefetch", PREFETCH) <= PREFETCH_MAX:
        raise bad_argument(f"--prefetch is 1 to {PREFETCH_MAX}")
    if options.get("definitions_only") and options.get("messages_only"):
        raise bad_argument("--definitions-only and --messages-only leave nothing")
    try:
        re.compile(options.get("queue", ""))
    except re.error as error:
        raise bad_argument(f"--queue is no pattern: {error}") from None


COMMANDS = (
    Command(
        "migrate",
        "Definitions",
        "Moves the definitions and messages of a running RabbitMQ into this broker",
        migrate,
        usage="--from <http://user:password@host:15672> [--amqp <amqp://user:password@host:5672>] "
        "[--vhost <vhost>] [--queue <pattern>] [--prefetch <n>] [--dry-run] "
        "[--definitions-only] [--messages-only]",
        options=(
            Option("from", about=f"RabbitMQ's management API (or {_FROM}); an administrator"),
            Option(
                "amqp",
                about=f"RabbitMQ itself (or {_AMQP}); default: the same host and user, port 5672; "
                "amqps:// is TLS",
            ),
            Option("vhost", aliases=("-p",), about="only this virtual host (default: all)"),
            Option("queue", about="messages of those queues only whose names match (a regex)"),
            Option(
                "prefetch",
                int,
                about=f"so many messages at once; as many may come twice after an interruption "
                f"(default: {PREFETCH})",
            ),
            Option("dry_run", bool, about="only say what would move, and what cannot"),
            Option("definitions_only", bool, about="no messages"),
            Option("messages_only", bool, about="the definitions are there already"),
        ),
        banner="Moving what RabbitMQ has into this broker ...",
        check=_check,
        examples=(
            "migrate --from http://admin:secret@rabbit:15672 --dry-run",
            "migrate --from http://admin:secret@rabbit:15672 --amqp amqp://admin:secret@rabbit:5672",
            "migrate --from https://admin:secret@rabbit:15671 --amqp amqps://rabbit -p shop",
            "migrate --from http://admin:secret@rabbit:15672 --messages-only --queue '^orders'",
        ),
    ),
)
