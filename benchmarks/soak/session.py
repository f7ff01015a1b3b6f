"""A soak: clients come and go beside each other, the broker is looked at, and all is written down."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.brokers import Broker, own_broker
from benchmarks.chart import Chart, Line, Point
from benchmarks.recovery.plots import BLUE, GREEN, GREY, ORANGE, SKY
from benchmarks.soak.judge import MIB, SETTLE_S, Sample, Verdict, judge
from benchmarks.soak.visits import BULK, NEW, Kind, Leaving, visit

# Counts of what a broker does are large enough to show a leak by the piece within minutes, and small
# enough that a round through all visits takes about a minute.
SCALE = 0.05
# Fewer uploads at once than two are none.
COUNT_MIN = 2
TELL_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how much.

    Attributes:
        seconds: how long clients come.
        scale: factor on the counts of all visits.
        busy: which share of the time each of the two rows of clients works; they rest in the other.
        sample_s: time between two looks at the broker.
    """

    seconds: float
    scale: float = SCALE
    busy: float = 0.5
    sample_s: float = 5.0

    @property
    def settle_s(self) -> float:
        """What comes before it is not judged; a short run is judged from its middle on."""
        return min(SETTLE_S, self.seconds / 2)


@dataclass(slots=True)
class Soak:
    """What was seen."""

    settings: Settings
    version: str
    samples: list[Sample] = field(default_factory=list)
    visits: Counter[str] = field(default_factory=Counter)
    leavings: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def verdicts(self) -> list[Verdict]:
        """Whether the figures grow. ValueError if it was too short to say."""
        return judge(self.samples, self.settings.settle_s)

    def as_json(self) -> dict[str, object]:
        return {
            "version": self.version,
            "settings": asdict(self.settings),
            "verdicts": [verdict.as_json() for verdict in self.verdicts()],
            "visits": dict(self.visits),
            "leavings": dict(self.leavings),
            "failures": self.failures,
            "samples": [asdict(sample) for sample in self.samples],
        }

    def svg(self) -> str:
        """All samples over time."""

        def line(label: str, color: str, figure: str, unit: int, dashed: bool = False) -> Line:
            points = []
            for sample in self.samples:
                value = getattr(sample, figure) / unit
                points.append(Point(sample.at_s / 60, value, value, value))
            return Line(label, color, points, dashed)

        return Chart(
            "A broker while clients come and go",
            "minutes",
            "MiB, or their number",
            [
                line("data directory", GREEN, "directory_bytes", MIB),
                line("resident", BLUE, "resident_bytes", MIB),
                line("anonymous", SKY, "anonymous_bytes", MIB),
                line("descriptors", ORANGE, "descriptors", 1, dashed=True),
                line("threads", GREY, "threads", 1, dashed=True),
            ],
            linear=True,
        ).svg()


class _Row(threading.Thread):
    """Clients that come one after the other, each of the next kind, and leave in turn in all ways."""

    def __init__(
        self, soak: Soak, broker: Broker, kinds: Sequence[Kind], enough: threading.Event
    ) -> None:
        super().__init__(name=kinds[0].name)
        self._soak = soak
        self._address = broker.address
        self._kinds = kinds
        self._enough = enough

    def run(self) -> None:
        settings = self._soak.settings
        for number in itertools.count():
            for place, kind in enumerate(self._kinds):
                if self._enough.is_set():
                    return
                # In the next round each kind leaves in another way.
                leaving = list(Leaving)[(number + place) % len(Leaving)]
                begun_s = time.monotonic()
                try:
                    count = max(COUNT_MIN, round(kind.count * settings.scale))
                    visit(self._address, kind, count, leaving)
                except Exception as error:  # noqa: BLE001 - the soak fails with it
                    self._soak.failures.append(f"{kind.name}: {error!r}")
                    self._enough.set()
                    return
                self._soak.visits[kind.name] += 1
                self._soak.leavings[leaving.value] += 1
                worked_s = time.monotonic() - begun_s
                self._enough.wait(worked_s * (1 - settings.busy) / settings.busy)


def run_soak(directory: Path, settings: Settings, tell: Callable[[str], None]) -> Soak:
    """Soak a fresh qlog; it ends early when a client is not served as it should be.

    Args:
        directory: the broker's data directory is made below it.
        settings: how long and how much.
        tell: is given a line about every minute.

    Raises:
        BrokerFailed: it did not start, or did not stop as it should.
    """
    with own_broker(directory) as broker:
        assert broker.directory is not None
        soak = Soak(settings, broker.version())
        enough = threading.Event()
        rows = [_Row(soak, broker, kinds, enough) for kinds in (BULK, NEW)]
        for row in rows:
            row.start()
        try:
            _look(soak, broker, enough, tell)
        finally:
            enough.set()
            for row in rows:
                row.join()
        log = (broker.directory.parent / "log").read_text(errors="replace")
        soak.failures += [line for line in log.splitlines() if " ERROR " in line]
    return soak


def _look(soak: Soak, broker: Broker, enough: threading.Event, tell: Callable[[str], None]) -> None:
    """Take samples until the time is over, or a client has failed."""
    begun_s = time.monotonic()
    told_s = 0.0
    for number in itertools.count():
        at_s = time.monotonic() - begun_s
        sample = Sample.of(broker, at_s)
        soak.samples.append(sample)
        if at_s >= told_s:
            told_s += TELL_EVERY_S
            tell(
                f"{at_s / 60:5.1f} min: {sample.resident_bytes / MIB:.0f} MiB resident, "
                f"{sample.anonymous_bytes / MIB:.0f} MiB anonymous, {sample.descriptors} "
                f"descriptors, {sample.threads} threads, {sample.directory_bytes / MIB:.0f} MiB on "
                f"disk; {soak.visits.total()} visits"
            )
        if at_s >= soak.settings.seconds:
            return
        if enough.wait(
            max(0.0, begun_s + (number + 1) * soak.settings.sample_s - time.monotonic())
        ):
            return
