"""The `qlog` command. Each subcommand is imported when it is asked for, so that all start fast.

A wrong option ends with status 2 and two lines: what is wrong, and how to ask for help.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from qlog import __version__
from qlog.tools.restore import restore
from qlog.tools.serve import ServeCommand, serve

INSPECT_HELP = "Look into a data directory, check it, and get messages out of it."

# What typer raises for wrong options; where the class is defined depends on its version.
_UsageError: Any = typer.BadParameter.__mro__[1]


class _Commands(typer.core.TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name, with its own commands and options."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, _inspect() if name == "inspect" else command, rest

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run, and end the process."""
        try:
            status = super().main(*args, **{**extra, "standalone_mode": False})
        except _UsageError as error:
            message = error.format_message()
            if not message or "\n" in message:  # no command was given: the message is the help
                error.show()
            else:
                command = error.ctx.command_path if error.ctx else "qlog"
                said = f"{message[0].lower()}{message[1:]}"
                print(f"qlog: {said}{_meant(self, message)}", file=sys.stderr)
                print(f"see `{command} --help`", file=sys.stderr)
            sys.exit(error.exit_code)
        sys.exit(status)


def _meant(group: Any, message: str) -> str:
    """What was perhaps meant by a command that is not there."""
    found = re.fullmatch("No such command '(.*)'.", message)
    if found is None:
        return ""
    from qlog.tools.ctl.help import nearest
    from qlog.tools.ctl.table import commands_of
    from qlog.tools.ctl.words import BEHIND

    name = found[1]
    for tool, names in (("inspect", BEHIND["inspect",]), ("ctl", commands_of("ctl"))):
        if name in names:
            return f" Did you mean `qlog {tool} {name}`?"
    near = nearest(name, (*group.commands, *BEHIND["inspect",]))
    return f" Did you mean '{near}'?" if near else ""


app = typer.Typer(
    name="qlog",
    cls=_Commands,
    help="A durable message broker that speaks AMQP 0-9-1.",
    no_args_is_help=True,
    add_completion=False,  # `qlog ctl completion` makes a script for all commands
    rich_markup_mode=None,  # errors as plain lines, also for those who read logs
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=ServeCommand)(serve)
app.command()(restore)


@app.command("inspect", help=INSPECT_HELP)
def _inspect_in_the_list() -> None:
    """A place in the list of commands. It never runs: `resolve_command` gives the real command."""


@app.command("ctl", help="Ask a running broker: rabbitmqctl's commands, and more.")
def _ctl_in_the_list() -> None:
    """A place in the list of commands. It never runs: `entry.main` gives `ctl` its own way."""


@app.command("top", help="Watch rates, queues and connections of a running broker.")
def _top_in_the_list() -> None:
    """A place in the list of commands, as `ctl`."""


def _inspect() -> Any:
    from qlog.tools.inspect.app import app as inspect

    assert inspect.info.help == INSPECT_HELP
    parent = typer.Typer(
        rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
    )
    parent.add_typer(inspect, name="inspect")
    group: Any = typer.main.get_command(parent)
    return group.commands["inspect"]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qlog {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """A durable message broker that speaks AMQP 0-9-1."""
