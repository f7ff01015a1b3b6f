"""From a command line to an exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from qlog.tools.ctl import help as texts
from qlog.tools.ctl.api import DEFAULT_TIMEOUT_S, Api, BadUrl, Unreachable
from qlog.tools.ctl.command import BadUsage, Call, Command, Failure, Status
from qlog.tools.ctl.formats import FOR_PROGRAMS, FORMATTERS, show
from qlog.tools.ctl.parse import Parsed, parse
from qlog.tools.ctl.table import commands_of
from qlog.tools.ctl.values import to_json

DEFAULT_DATA_DIR = "qlog-data"


def main(tool: str, argv: list[str], program: str = "") -> int:
    """Run one command of a tool (`ctl`, `diagnostics` …); the exit status.

    `program` is how it was called, for help and examples, if not by the name that RabbitMQ's has.
    """
    try:
        return _run(tool, argv, program or texts.PROGRAMS[tool])
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BadUrl as error:
        print(f"Error (argument validation): {error}", file=sys.stderr)
        return Status.USAGE


def _run(tool: str, argv: list[str], program: str) -> int:
    commands = commands_of(tool)
    name, rest = _command_name(argv, commands)
    if name is None or name == "help":
        return _help(program, rest, commands)
    command = commands.get(name)
    if command is None:
        _say(texts.not_found(program, name, commands), sys.stderr)
        return Status.USAGE
    parsed = parse(rest, command.options)
    if parsed.options.get("help"):
        _say(texts.of_command(program, command))
        return Status.OK
    call = Call(parsed.args, parsed.options, _api(parsed), tool)
    try:
        _check(command, parsed)
        return _obey(command, call)
    except BadUsage as error:
        _say(
            (
                f"Error (argument validation): {error.text}",
                "Arguments given:",
                f"\t{' '.join(argv)}",
                "",
                "Usage",
                "",
                texts.usage_line(program, command),
            ),
            sys.stderr,
        )
        return error.status
    except Failure as failure:
        _say_failure(failure, parsed.options.get("formatter", ""))
        return failure.status
    except Unreachable as error:
        _say(_unreachable(call, error), sys.stderr)
        return Status.UNAVAILABLE


def _command_name(argv: list[str], commands: Mapping[str, Command]) -> tuple[str | None, list[str]]:
    """The first word that is no option, nor the value of one, and all other words."""
    first = parse(argv, (option for command in commands.values() for option in command.options))
    if not first.args:
        return None, argv
    at = argv.index(first.args[0])
    while at and argv[at - 1] in _WITH_VALUE:  # `-p list_queues list_queues`
        at = argv.index(first.args[0], at + 1)
    return argv[at], argv[:at] + argv[at + 1 :]


_WITH_VALUE = frozenset(("-n", "--node", "-p", "--vhost", "-t", "--timeout", "--formatter"))


def _help(program: str, argv: list[str], commands: Mapping[str, Command]) -> int:
    parsed = parse(argv, ())
    if "--list-commands" in argv:
        _say(sorted(commands))
        return Status.OK
    if not parsed.args:
        _say(texts.overview(program, commands.values()))
        return Status.OK
    command = commands.get(parsed.args[0])
    if command is not None:
        _say(texts.of_command(program, command))
        return Status.OK
    name = parsed.args[0]
    lines = ["Error:", "", f"Command '{name}' not found. "]
    near = texts.nearest(name, commands)
    _say([*lines, f"Did you mean '{near}'? "] if near else lines, sys.stderr)
    return Status.USAGE


def _api(parsed: Parsed) -> Api:
    options = parsed.options
    timeout_s = options.get("timeout") or DEFAULT_TIMEOUT_S
    data_dir = options.get("data_dir") or os.environ.get("QLOG_DATA_DIR") or DEFAULT_DATA_DIR
    return Api(data_dir, options.get("url") or os.environ.get("QLOG_URL"), float(timeout_s))


def _check(command: Command, parsed: Parsed) -> None:
    parsed.check()
    least, most = command.args
    formatter = parsed.options.get("formatter")
    if formatter is not None and formatter not in FORMATTERS:
        raise BadUsage(f"The formatter {formatter} is not one of {', '.join(FORMATTERS)}")
    if len(parsed.args) < least:
        raise BadUsage("not enough arguments.")
    if most is not None and len(parsed.args) > most:
        raise BadUsage("too many arguments.")
    if command.columns:
        names = [name for arg in parsed.args for name in arg.split(",") if name]
        unknown = [name for name in names if name not in command.columns]
        if unknown:
            raise BadUsage(f"Info key(s) {','.join(unknown)} are not supported")
    if command.check is not None:
        command.check(parsed.args, parsed.options)


def _obey(command: Command, call: Call) -> int:
    formatter = call.options.get("formatter") or command.formatter
    silent = call.options.get("quiet") or call.options.get("silent")
    if command.banner and not silent and formatter not in FOR_PROGRAMS:
        print(_banner(command, call), flush=True)
    show(command.run(call), call, formatter, print)
    return Status.OK


def _banner(command: Command, call: Call) -> str:
    if callable(command.banner):
        return command.banner(call)
    text = command.banner
    if "{node}" in text:
        text = text.replace("{node}", call.node)
    return text.format(*call.args, vhost=call.vhost, all=", ".join(call.args[1:]))


def _say(lines: Any, stream: Any = None) -> None:
    for line in lines:
        print(line, file=stream or sys.stdout)


def _say_failure(failure: Failure, formatter: str) -> None:
    sys.stdout.flush()
    if failure.document is not None and formatter == "json":
        print(to_json(failure.document), file=sys.stderr)
    elif failure.plain:
        print(failure.text, file=sys.stderr)
    else:
        print(f"Error:\n{failure.text}", file=sys.stderr)


def _unreachable(call: Call, error: Unreachable) -> list[str]:
    node = call.options.get("node") or "qlog"
    return [
        (
            f"Error: unable to perform an operation on node '{node}'. "
            "Please see diagnostics information and suggestions below."
        ),
        "",
        f"{call.api.address} does not answer: {error}",
        "",
        "Most common reasons for this are:",
        "",
        " * The broker is not running, or it is not ready yet ('qlog ctl await_startup' waits)",
        " * The data directory is another one (--data-dir, QLOG_DATA_DIR)",
        " * The data directory belongs to another user, who alone may open the socket",
    ]
