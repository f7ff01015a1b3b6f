"""Goes through cases and latencies on a qlog and its peer in turn, and keeps what came out."""

from __future__ import annotations

import os
import shutil
import tempfile
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
from benchmarks.harness import PAUSE_S, PEER, SUBJECT, allow_descriptors, environment
from benchmarks.recovery.cases import Case
from benchmarks.recovery.daemons import OwnDaemon, PeerDaemon, drop_page_cache
from benchmarks.recovery.latency import confirm_latency, raw_sync, system_calls
from benchmarks.recovery.runs import Samples, Tell, run_case

# The disk alone: into a file that grows, and into space allocated beforehand.
RAW, RAW_ALLOCATED = "raw", "raw-allocated"
TRACED_IN_FLIGHT = 100


@dataclass(frozen=True, slots=True)
class Peer:
    """The broker beside: its address, and a command that starts it in the foreground."""

    address: wire.Address
    command: str


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured.

    Attributes:
        directory: data directories are made below it, one at a time.
        runs: kills of each kind for each case, and measures of each latency.
        seconds: length of a measure of latency; 0 for none.
        cold: also restart with dropped page caches, where that is allowed.
        peer_messages_max: larger backlogs are not given to the peer.
    """

    directory: Path
    runs: int = 3
    seconds: float = 3.0
    cold: bool = True
    peer_messages_max: int = 1_000_000


@dataclass(slots=True)
class CaseResult:
    """What was measured of a case, by SUBJECT and PEER; and why something could not be."""

    messages: int
    queues: int
    acks: str
    samples: dict[str, Samples] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def case(self) -> Case:
        return Case(self.messages, self.queues, self.acks)


@dataclass(slots=True)
class LatencyResult:
    """Confirms with so many messages in flight, by SUBJECT, PEER, RAW and RAW_ALLOCATED."""

    in_flight: int
    samples: dict[str, Samples] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RecoverySession:
    """One call of the suite: where it ran, and its results; what the JSON file holds."""

    made: str
    environment: dict[str, str]
    settings: dict[str, str | float]
    brokers: dict[str, str]
    cases: list[CaseResult] = field(default_factory=list)
    latencies: list[LatencyResult] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """All that failed."""
        results: list[CaseResult | LatencyResult] = [*self.cases, *self.latencies]
        return [error for result in results for error in result.errors]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RecoverySession:
        """The inverse of `as_json`; KeyError or TypeError when it is something else."""
        cases = [CaseResult(**result) for result in data["cases"]]
        latencies = [LatencyResult(**result) for result in data["latencies"]]
        return cls(**{**data, "cases": cases, "latencies": latencies})


def merge(sessions: Sequence[RecoverySession]) -> tuple[list[CaseResult], list[LatencyResult]]:
    """The results of several sessions; of a case that was measured twice, the later one."""
    cases = {result.case: result for session in sessions for result in session.cases}
    latencies = {result.in_flight: result for session in sessions for result in session.latencies}
    return (
        [cases[case] for case in sorted(cases, key=lambda c: (c.messages, c.queues, c.acks))],
        [latencies[in_flight] for in_flight in sorted(latencies)],
    )


def run_recovery(
    cases: Sequence[Case],
    in_flight: Sequence[int],
    settings: Settings,
    *,
    peer: Peer | None,
    tell: Tell,
    keep: Callable[[RecoverySession], None],
) -> RecoverySession:
    """Measure all cases, then all latencies.

    Args:
        cases: backlogs, see `cases.sweep`.
        in_flight: numbers of unconfirmed messages.
        settings: how much.
        peer: what qlog is compared with, None for nothing; it must not run.
        tell: gets a line for each step.
        keep: gets the session after each case and each measure.

    Raises:
        BrokerFailed: a broker does not start at all.
    """
    allow_descriptors()
    cold = settings.cold and drop_page_cache()
    with _brokers(settings, peer) as brokers:
        versions = {part: broker.version() for part, broker in brokers.items()}
    session = RecoverySession(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(settings.directory)
        | {"load average before": f"{os.getloadavg()[0]:.1f}"},
        settings={
            "runs": settings.runs,
            "seconds": settings.seconds,
            "page cache": "as it was, and dropped" if cold else "as it was",
        },
        brokers=versions,
    )
    for case in cases:
        result = CaseResult(case.messages, case.queues, case.acks)
        session.cases.append(result)
        for part in versions:
            if part == PEER and case.messages > settings.peer_messages_max:
                continue

            def told(line: str, where: str = f"{case}, {part}") -> None:
                tell(f"{where}: {line}")

            try:
                samples = result.samples.setdefault(part, {})
                _run_case(case, settings, cold, peer, part, samples, told)
            except (LoadFailed, BrokerFailed, wire.Refused, OSError) as error:
                result.errors.append(f"{case}, {part}: {error}")
                tell(result.errors[-1])
            time.sleep(PAUSE_S)
        keep(session)
    if in_flight and settings.seconds:
        _run_latencies(session, in_flight, settings, peer, tell, keep)
    return session


def _run_case(
    case: Case,
    settings: Settings,
    cold: bool,
    peer: Peer | None,
    part: str,
    samples: Samples,
    tell: Tell,
) -> None:
    free_bytes = shutil.disk_usage(settings.directory).free
    if free_bytes < case.disk_bytes:
        raise LoadFailed(
            f"{case.disk_bytes >> 20:,} MiB of disk are needed, {free_bytes >> 20:,} are free"
        )
    if part == SUBJECT:
        with OwnDaemon(settings.directory) as own:
            run_case(own, case, settings.runs, cold, samples, tell)
        return
    with _peer_daemon(settings, peer) as daemon:
        run_case(daemon, case, settings.runs, cold, samples, tell)


@contextmanager
def _peer_daemon(settings: Settings, peer: Peer | None) -> Iterator[PeerDaemon]:
    assert peer is not None
    with (
        tempfile.NamedTemporaryFile(prefix="benchmark-peer-", dir=settings.directory) as log,
        PeerDaemon(peer.command, peer.address, Path(log.name)) as daemon,
    ):
        yield daemon


@contextmanager
def _brokers(settings: Settings, peer: Peer | None) -> Iterator[dict[str, Broker]]:
    """A fresh qlog and the peer, running side by side."""
    with own_broker(settings.directory) as own:
        if peer is None:
            yield {SUBJECT: own}
            return
        with _peer_daemon(settings, peer) as daemon:
            yield {SUBJECT: own, PEER: daemon.start()}


def _run_latencies(
    session: RecoverySession,
    in_flight: Sequence[int],
    settings: Settings,
    peer: Peer | None,
    tell: Tell,
    keep: Callable[[RecoverySession], None],
) -> None:
    with _brokers(settings, peer) as brokers:
        for count in in_flight:
            result = LatencyResult(count)
            session.latencies.append(result)

            def note(part: str, figures: Figures, result: LatencyResult = result) -> None:
                samples = result.samples.setdefault(part, {})
                for name, value in figures.items():
                    samples.setdefault(name, []).append(value)
                shown = ", ".join(f"{name} {value:,.4g}" for name, value in figures.items())
                tell(f"{result.in_flight} in flight, {part}: {shown}")

            for _ in range(settings.runs):
                for part, allocated in ((RAW, False), (RAW_ALLOCATED, True)):
                    raw_s = settings.seconds / 2
                    note(part, raw_sync(settings.directory, count, raw_s, allocated))
                for part, broker in brokers.items():
                    try:
                        note(part, confirm_latency(broker, count, settings.seconds))
                    except (LoadFailed, wire.Refused, OSError) as error:
                        result.errors.append(f"{count} in flight, {part}: {error}")
                        tell(result.errors[-1])
                    time.sleep(PAUSE_S)
            if count == TRACED_IN_FLIGHT:
                note(SUBJECT, system_calls(brokers[SUBJECT], count))
            keep(session)
