"""Runs scenarios on a broker and its peer in turn, and keeps what came out."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import wire
from benchmarks.brokers import Broker, BrokerFailed, own_broker
from benchmarks.flow import Figures, LoadFailed
from benchmarks.scenarios.scenario import Scenario, Settings

# What a run may have left to do behind must not cost the next one.
PAUSE_S = 0.5

# Brokers by their part in the comparison.
SUBJECT, PEER = "broker", "peer"


@dataclass(slots=True)
class Result:
    """All runs of one scenario.

    Attributes:
        scenario: its name.
        title: see Scenario.
        state: see Scenario.
        headline: see Scenario.
        runs: figures of each run, by SUBJECT and PEER; run n of both were neighbours. A run that
            failed has none.
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
    """One call of the benchmark: where it ran, and its results; what the JSON file holds."""

    made: str
    environment: dict[str, str]
    settings: dict[str, str | float]
    brokers: dict[str, str]
    results: list[Result]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Session:
        """The inverse of `as_json`; KeyError or TypeError when it is something else."""
        return cls(**{**data, "results": [Result(**result) for result in data["results"]]})


def environment(directory: Path) -> dict[str, str]:
    """What the figures depend on besides the brokers."""
    return {
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


@contextmanager
def _fresh(subject: Broker | None, directory: Path) -> Iterator[Broker]:
    """The running broker that was given, or a new one of our own."""
    if subject is not None:
        yield subject
    else:
        with own_broker(directory) as broker:
            yield broker


def run_session(
    scenarios: Sequence[Scenario],
    settings: Settings,
    *,
    subject: Broker | None,
    peer: Broker | None,
    tell: Callable[[str], None],
    keep: Callable[[Session], None],
) -> Session:
    """Run scenarios on the subject and the peer in turn: A B A B ...

    Args:
        scenarios: what to run, in this order.
        settings: how long and how much.
        subject: a running broker; None to start a qlog, and a fresh one where that is needed.
        peer: what it is compared with, None for nothing.
        tell: gets one line for each run.
        keep: gets the session after each scenario.

    Raises:
        BrokerFailed: the broker of our own does not start or stop.
    """
    allow_descriptors()
    with _fresh(subject, settings.directory) as steady:
        brokers = {SUBJECT: steady} | ({PEER: peer} if peer else {})
        session = Session(
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=environment(settings.directory),
            settings={
                "runs": settings.runs,
                "seconds": settings.seconds,
                "warm_up_s": settings.warm_up_s,
                "scale": settings.scale,
            },
            brokers={part: broker.version() for part, broker in brokers.items()},
            results=[],
        )
        for scenario in scenarios:
            result = Result(scenario.name, scenario.title, scenario.state, [*scenario.headline])
            session.results.append(result)
            for number in range(min(settings.runs, scenario.runs_max)):
                for part, broker in brokers.items():
                    where = f"{scenario.name} {number + 1} on {broker.label}"
                    try:
                        figures = _run(scenario, settings, broker, part, subject)
                    except (LoadFailed, BrokerFailed, wire.Refused, OSError) as error:
                        result.errors.append(f"{where}: {error}")
                        tell(result.errors[-1])
                        figures = {}
                    if figures is not None:
                        result.runs.setdefault(part, []).append(figures)
                    if figures:
                        tell(f"{where}: {_headline(scenario, figures)}")
                    time.sleep(PAUSE_S)
            keep(session)
    return session


def _run(
    scenario: Scenario, settings: Settings, broker: Broker, part: str, subject: Broker | None
) -> Figures | None:
    """The figures of one run; None where the scenario does not apply."""
    if part == SUBJECT and scenario.fresh:
        with _fresh(subject, settings.directory) as fresh:
            return scenario.run(fresh, settings) if scenario.applies(fresh) else None
    return scenario.run(broker, settings) if scenario.applies(broker) else None


def _headline(scenario: Scenario, figures: Figures) -> str:
    names = [name for name in scenario.headline if name in figures]
    return ", ".join(f"{name} {figures[name]:,.6g}" for name in names)
