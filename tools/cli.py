"""The `qlog` command. Each subcommand imports what it needs when it runs, so that all start fast."""

from __future__ import annotations

from typing import Annotated

import typer

from qlog import __version__
from qlog.tools.inspect import app as inspect
from qlog.tools.serve import serve

app = typer.Typer(
    name="qlog",
    help="A durable message broker that speaks AMQP 0-9-1.",
    no_args_is_help=True,
    rich_markup_mode=None,  # errors as plain lines, also for those who read logs
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.add_typer(inspect, name="inspect")


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
