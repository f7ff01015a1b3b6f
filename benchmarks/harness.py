"""Runs scenarios on a broker and its peers in turn, and keeps what came out."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import wire
from benchmarks.brokers import ROOT, Broker, BrokerFailed, Installation, own_broker
from benchmarks.flow import Figures, LoadFailed
from benchmarks.scenarios.scenario import Scenario, Settings

# What a run may have left to do behind must not cost the next one.
PAUSE_S = 0.5

# Brokers by their part in the comparison: what is measured, and a peer without a name of its own.
SUBJECT, PEER = "broker", "peer"


@dataclass(frozen=True, slots=True)
class Contender:
    """One of the brokers that take turns: one that runs already, or a qlog that is started.

    Attributes:
        name: what results are kept under.
        running: the broker that runs already.
        installation: the qlog to start, afresh where a scenario needs that; None for today's.
    """

    name: str
    running: Broker | None = None
    installation: Installation | None = None

    @contextmanager
    def broker(self, directory: Path) -> Iterator[Broker]:
        """The running broker, or a new one whose data is below `directory`."""
        if self.running is not None:
            yield self.running
        else:
            with own_broker(directory, self.installation) as broker:
                yield broker


@dataclass(slots=True)
class Result:
    """All runs of one scenario.

    Attributes:
        scenario: its name.
        title: see Scenario.
        state: see Scenario.
        headline: see Scenario.
        runs: figures of each run, by the names of the brokers; their nth runs were neighbours in
            time. A run that failed has none.
        errors: why runs failed.
    """

    scenario: str
    title: str
    state: str
    headline: list[str]
    runs: dict[str, list[Figures]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Session:
    """One call of the benchmark: where it ran, and its results; what the JSON file holds.

    The first of `brokers` (names, and what they say of themselves) is compared with the others.
    """

    made: str
    environment: dict[str, str]
    settings: dict[str, str | float]
    brokers: dict[str, str]
    results: list[Result]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def subject(self) -> str:
        """The name of the broker that the others are compared with."""
        return next(iter(self.brokers))

    @property
    def peers(self) -> list[str]:
        """The names of the others."""
        return [*self.brokers][1:]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Session:
        """The inverse of `as_json`; KeyError or TypeError when it is something else."""
        return cls(**{**data, "results": [Result(**result) for result in data["results"]]})


def environment(directory: Path) -> dict[str, str]:
    """What the figures depend on besides the brokers."""
    git = ["git", "describe", "--always", "--dirty"]
    described = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        # Outside of a git repository nothing is known of the sources.
        "commit": described.stdout.strip() or "unknown",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "processors": str(os.cpu_count()),
        "file system": file_system(directory),
    }


def file_system(directory: Path) -> str:
    """The type of the file system that a directory is on."""
    path = directory.resolve()
    found = ("/", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if path.is_relative_to(mount) and len(mount) >= len(found[0]):
            found = (mount, kind)
    return found[1]


def allow_descriptors() -> None:
    """Thousands of files and connections are opened, here and in brokers, which inherit this."""
    _, descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors_max, descriptors_max))


def run_session(
    scenarios: Sequence[Scenario],
    settings: Settings,
    contenders: Sequence[Contender],
    *,
    tell: Callable[[str], None],
    keep: Callable[[Session], None],
) -> Session:
    """Run scenarios on all contenders in turn: A B C A B C ...

    Args:
        scenarios: what to run, in this order.
        settings: how long and how much.
        contenders: the brokers, by distinct names; the first is compared with the others.
        tell: gets one line for each run.
        keep: gets the session after each scenario.

    Raises:
        BrokerFailed: a broker of our own does not start or stop.
    """
    allow_descriptors()
    with ExitStack() as stack:
        steady = {
            one.name: stack.enter_context(one.broker(settings.directory)) for one in contenders
        }
        session = Session(
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=environment(settings.directory),
            settings={
                "runs": settings.runs,
                "seconds": settings.seconds,
                "warm_up_s": settings.warm_up_s,
                "scale": settings.scale,
            },
            brokers={name: broker.version() for name, broker in steady.items()},
            results=[],
        )
        for scenario in scenarios:
            result = Result(scenario.name, scenario.title, scenario.state, [*scenario.headline])
            session.results.append(result)
            for number in range(min(settings.runs, scenario.runs_max)):
                for contender in contenders:
                    where = f"{scenario.name} {number + 1} on {contender.name}"
                    try:
                        figures = _run(scenario, settings, contender, steady[contender.name])
                    except (LoadFailed, BrokerFailed, wire.Refused, OSError) as error:
                        result.errors.append(f"{where}: {error}")
                        tell(result.errors[-1])
                        figures = {}
                    if figures is not None:
                        result.runs.setdefault(contender.name, []).append(figures)
                    if figures:
                        tell(f"{where}: {_headline(scenario, figures)}")
                    time.sleep(PAUSE_S)
            keep(session)
    return session


def _run(
    scenario: Scenario, settings: Settings, contender: Contender, steady: Broker
) -> Figures | None:
    """The figures of one run; None where the scenario does not apply."""
    if not scenario.fresh:
        return scenario.run(steady, settings) if scenario.applies(steady) else None
    with contender.broker(settings.directory) as fresh:
        return scenario.run(fresh, settings) if scenario.applies(fresh) else None


def _headline(scenario: Scenario, figures: Figures) -> str:
    names = [name for name in scenario.headline if name in figures]
    return ", ".join(f"{name} {figures[name]:,.6g}" for name in names)
