"""The command line: `python -m benchmarks run`, `report`, `recovery`, `plot` and `soak`."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import wire
from benchmarks.against import install
from benchmarks.brokers import Broker, BrokerFailed
from benchmarks.harness import PEER, SUBJECT, Contender, Session, file_system, run_session
from benchmarks.recovery.cases import PATTERNS, sweep
from benchmarks.recovery.latency import IN_FLIGHT
from benchmarks.recovery.page import tables, write_page
from benchmarks.recovery.session import Peer, RecoverySession, run_recovery
from benchmarks.recovery.session import Settings as RecoverySettings
from benchmarks.report import markdown, print_session
from benchmarks.scenarios import SCENARIOS, select
from benchmarks.scenarios.scenario import Settings
from benchmarks.soak import session as soaking

app = typer.Typer(help="Measure a broker beside others.", no_args_is_help=True)
# Where fdatasync costs nothing, a figure with confirms means nothing.
MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")


@app.command()
def run(
    scenarios: Annotated[
        list[str] | None, typer.Argument(help="Names of scenarios; all when none is given.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare with this broker: [NAME=]amqp://..., several times for several."
        ),
    ] = None,
    peer_pid: Annotated[
        list[str] | None,
        typer.Option(help="Its process, to measure memory and processor time: [NAME=]PID."),
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Compare with the qlog of this commit.")
    ] = None,
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
    """Run scenarios on a broker, in turn with peers, and print medians, spreads and ratios."""
    if list_only:
        table = Table("scenario", "what is done", "state")
        for scenario in SCENARIOS:
            table.add_row(scenario.name, scenario.title, scenario.state)
        Console().print(table)
        return
    progress = Console(stderr=True)
    settings = Settings(
        directory=_on_disk(directory),
        seconds=seconds,
        warm_up_s=warm_up,
        scale=scale,
        runs=runs,
    )
    try:
        chosen = select(scenarios or [])
        own = wire.Address.parse(broker) if broker else None
        subject = Contender(SUBJECT, Broker(SUBJECT, own, broker_pid) if own else None)
        peers = _peers(peer or [], peer_pid or [])
        _check_names([SUBJECT, *(against or []), *(one.name for one in peers)])
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
        past = [Contender(commit, installation=install(commit)) for commit in against or []]
        session = run_session(chosen, settings, [subject, *past, *peers], tell=tell, keep=keep)
    except (BrokerFailed, wire.Refused, OSError) as error:
        progress.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from None
    print_session(session, Console())
    if any(result.errors for result in session.results):
        raise typer.Exit(1)


@app.command()
def recovery(
    messages: Annotated[
        str, typer.Option(help="Sizes of backlogs, in messages of 1 KiB.")
    ] = "10000,100000,1000000",
    queues: Annotated[
        str, typer.Option(help="Numbers of queues to compare; at --across messages.")
    ] = "1,100,10000",
    acks: Annotated[
        str, typer.Option(help=f"Patterns to compare, of {', '.join(PATTERNS)}; at --across.")
    ] = ",".join(PATTERNS),
    across: Annotated[
        str, typer.Option(help="Sizes of backlogs at which queues and patterns are compared.")
    ] = "100000",
    in_flight: Annotated[
        str, typer.Option(help="Numbers of unconfirmed messages for latencies.")
    ] = ",".join(map(str, IN_FLIGHT)),
    peer: Annotated[
        str | None, typer.Option(help="amqp:// address of the broker to compare with.")
    ] = None,
    peer_restart: Annotated[
        str | None,
        typer.Option(help="Command that starts it in the foreground; it gets kill -9."),
    ] = None,
    peer_messages_max: Annotated[
        int, typer.Option(help="Larger backlogs are not given to the peer.")
    ] = 1_000_000,
    runs: Annotated[int, typer.Option(min=1, help="Kills of each kind, for each case.")] = 3,
    seconds: Annotated[
        float, typer.Option(min=0, help="Length of a measure of latency; 0 for none.")
    ] = 3.0,
    cold: Annotated[
        bool, typer.Option(help="Also restart with dropped page caches, where root may do so.")
    ] = True,
    directory: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Where data is put.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write results here.")] = None,
) -> None:
    """Fill backlogs, kill -9, and measure what it takes to deliver again; confirms beside fdatasync."""
    console = Console(stderr=True)
    settings = RecoverySettings(
        directory=_on_disk(directory),
        runs=runs,
        seconds=seconds,
        cold=cold,
        peer_messages_max=peer_messages_max,
    )
    try:
        if (peer is None) != (peer_restart is None):
            raise ValueError("--peer and --peer-restart belong together")
        beside = Peer(wire.Address.parse(peer), peer_restart) if peer and peer_restart else None
        cases = sweep(_numbers(messages), _numbers(queues), _patterns(acks), _numbers(across))
        windows = _numbers(in_flight)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    begun_s = time.monotonic()

    def tell(line: str) -> None:
        passed_s = time.monotonic() - begun_s
        console.print(
            f"{passed_s:7.1f} {line}", style="dim", markup=False, highlight=False, soft_wrap=True
        )

    def keep(session: RecoverySession) -> None:
        if json_file:
            json_file.write_text(json.dumps(session.as_json(), indent=1) + "\n")

    # A stop from outside is Ctrl-C: brokers are killed and directories removed on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        session = run_recovery(cases, windows, settings, peer=beside, tell=tell, keep=keep)
    except (BrokerFailed, wire.Refused, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("stopped; all brokers are killed, all data is removed", style="red")
        raise typer.Exit(130) from None
    print(tables([session]), end="")
    if session.errors:
        raise typer.Exit(1)


@app.command()
def plot(
    files: Annotated[
        list[Path],
        typer.Argument(
            exists=True, dir_okay=False, help="Written by recovery --json; later ones count more."
        ),
    ],
    page: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="The page whose figures are replaced.")
    ] = Path("docs/recovery.md"),
) -> None:
    """Put the figures of recovery into its page, and the plots into a directory of the same name."""
    sessions = []
    for file in files:
        try:
            sessions.append(RecoverySession.from_json(json.loads(file.read_text())))
        except (ValueError, KeyError, TypeError) as error:
            raise typer.BadParameter(f"{file} does not hold results: {error}") from None
    try:
        written = write_page(page, sessions)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    for path in written:
        print(path)


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.01, help="How long clients come.")] = 20.0,
    scale: Annotated[
        float, typer.Option(min=0.0001, help="Factor on the counts of what clients do.")
    ] = soaking.SCALE,
    busy: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the time in which clients work.")
    ] = 0.5,
    sample_s: Annotated[
        float, typer.Option("--every", min=0.05, help="Seconds between two looks at the broker.")
    ] = 5.0,
    directory: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Where data is put.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was seen.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw it as SVG.")] = None,
) -> None:
    """Let clients come and go; status 1 if the broker grows, or did not serve one of them."""
    console = Console(stderr=True)

    def tell(line: str) -> None:
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)

    settings = soaking.Settings(minutes * 60, scale, busy, sample_s)
    # A stop from outside is Ctrl-C: the broker is stopped and its directory removed on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        seen = soaking.run_soak(_on_disk(directory), settings, tell)
        verdicts = seen.verdicts()
    except (BrokerFailed, wire.Refused, OSError, ValueError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from None
    if json_file:
        json_file.write_text(json.dumps(seen.as_json(), indent=1) + "\n")
    if plot_file:
        plot_file.write_text(seen.svg())
    table = Table("figure", "floor", "growth", "allowed", "")
    for verdict in verdicts:
        values = (verdict.floor, verdict.growth, verdict.allowed)
        told = "grows" if verdict.grows else "flat"
        table.add_row(verdict.figure, *(f"{value:,.0f}" for value in values), told)
    Console().print(table)
    for failure in seen.failures:
        console.print(f"error: {failure}", style="red", markup=False)
    if seen.failures or any(verdict.grows for verdict in verdicts):
        raise typer.Exit(1)


def _numbers(text: str) -> list[int]:
    numbers = [int(part.replace("_", "")) for part in text.split(",") if part]
    if any(number < 1 for number in numbers):
        raise ValueError(f"numbers from 1 on, not {text}")
    return numbers


def _patterns(text: str) -> list[str]:
    names = [part for part in text.split(",") if part]
    for name in names:
        if name not in PATTERNS:
            raise ValueError(f"no pattern {name}; there are {', '.join(PATTERNS)}")
    return names


def _on_disk(directory: Path | None) -> Path:
    directory = directory or Path(tempfile.gettempdir())
    if file_system(directory) in MEMORY_FILE_SYSTEMS:
        raise typer.BadParameter(f"{directory} is memory, not a disk: give --directory")
    return directory


def _peers(addresses: list[str], processes: list[str]) -> list[Contender]:
    """The running brokers of `[NAME=]amqp://...`, with the processes of `[NAME=]PID`.

    Raises:
        ValueError: one is not of that form, or a process is of no peer.
    """
    pids = {name: int(pid) for name, pid in map(_named, processes)}
    brokers = [(name, wire.Address.parse(url)) for name, url in map(_named, addresses)]
    for name in pids:
        if name not in dict(brokers):
            raise ValueError(f"a process of {name}, but no --peer of that name")
    return [Contender(name, Broker(name, address, pids.get(name))) for name, address in brokers]


def _named(text: str) -> tuple[str, str]:
    """The name and the rest of `[NAME=]REST`; an address may have a = of its own."""
    name, separator, rest = text.partition("=")
    if separator and "/" not in name:
        return name, rest
    return PEER, text


def _check_names(names: list[str]) -> None:
    for name in names:
        if not name or names.count(name) > 1:
            raise ValueError(f"each broker needs a name of its own, not {name!r} twice")


@app.command()
def report(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Written by --json.")],
) -> None:
    """Print the tables of goals and targets, and all figures, as Markdown."""
    try:
        session = Session.from_json(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise typer.BadParameter(f"{file} does not hold results: {error}") from None
    print(markdown(session), end="")


if __name__ == "__main__":
    app()
