"""The command line: `python -m benchmarks run` and `python -m benchmarks report`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import wire
from benchmarks.brokers import Broker, BrokerFailed
from benchmarks.harness import Session, file_system, run_session
from benchmarks.report import markdown, print_session
from benchmarks.scenarios import SCENARIOS, select
from benchmarks.scenarios.scenario import Settings

app = typer.Typer(help="Measure a broker beside another one.", no_args_is_help=True)
# Where fdatasync costs nothing, a figure with confirms means nothing.
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


@app.command()
def run(
    scenarios: Annotated[
        list[str] | None, typer.Argument(help="Names of scenarios; all when none is given.")
    ] = None,
    peer: Annotated[
        str | None, typer.Option(help="amqp:// address of the broker to compare with.")
    ] = None,
    peer_pid: Annotated[int | None, typer.Option(help="Its process, to measure memory.")] = None,
    broker: Annotated[
        str | None, typer.Option(help="Measure this running broker instead of a qlog of our own.")
    ] = None,
    broker_pid: Annotated[int | None, typer.Option(help="Its process.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each scenario on each broker.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a steady load.")] = 6.0,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds before it, not measured.")] = 1.0,
    scale: Annotated[
        float, typer.Option(min=0.0001, help="Factor on numbers of messages, queues, connections.")
    ] = 1.0,
    directory: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Where data is put.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write results here.")] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Name the scenarios.")] = False,
) -> None:
    """Run scenarios on a broker, in turn with a peer, and print medians, spreads and ratios."""
    if list_only:
        table = Table("scenario", "what is done", "state")
        for scenario in SCENARIOS:
            table.add_row(scenario.name, scenario.title, scenario.state)
        Console().print(table)
        return
    progress = Console(stderr=True)
    settings = Settings(
        directory=directory or Path(tempfile.gettempdir()),
        seconds=seconds,
        warm_up_s=warm_up,
        scale=scale,
        runs=runs,
    )
    if file_system(settings.directory) in MEMORY_FILE_SYSTEMS:
        raise typer.BadParameter(f"{settings.directory} is memory, not a disk: give --directory")
    try:
        chosen = select(scenarios or [])
        subject_broker = _running("broker", broker, broker_pid)
        peer_broker = _running("peer", peer, peer_pid)
    except KeyError as error:
        raise typer.BadParameter(f"no scenario {error}; --list names them") from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None

    def tell(line: str) -> None:
        progress.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)

    def keep(session: Session) -> None:
        if json_file:
            json_file.write_text(json.dumps(session.as_json(), indent=1) + "\n")

    try:
        session = run_session(
            chosen, settings, subject=subject_broker, peer=peer_broker, tell=tell, keep=keep
        )
    except (BrokerFailed, wire.Refused, OSError) as error:
        progress.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from None
    print_session(session, Console())
    if any(result.errors for result in session.results):
        raise typer.Exit(1)


def _running(label: str, url: str | None, pid: int | None) -> Broker | None:
    return Broker(label, wire.Address.parse(url), pid) if url else None


@app.command()
def report(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Written by --json.")],
) -> None:
    """Print the table of targets as Markdown."""
    try:
        session = Session.from_json(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise typer.BadParameter(f"{file} does not hold results: {error}") from None
    print(markdown(session), end="")


if __name__ == "__main__":
    app()
