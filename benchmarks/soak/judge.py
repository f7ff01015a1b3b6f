"""Growth, and what is none: samples of a broker's process, and the verdict about them.

While clients come and go, memory goes up and down: a large message, a backlog, a checkpoint. What
matters is the floor to which it comes back. The time after the settling is cut into WINDOWS equal
parts, and the least value of each is taken. The slope is the median of the slopes between any two of
these (Theil and Sen): a part or two that never came down do not move it. A figure grows if that
slope, over all the time judged, makes more than the figure is allowed. What grows by less than that
in fifteen minutes does not show here, and shows in a longer run.
"""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.brokers import Broker

WINDOWS = 15
# Until then caches fill, and each kind of visit was there for the first time.
SETTLE_S = 300.0
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """What a broker had at one time.

    Attributes:
        at_s: since the clients began to come.
        resident_bytes: with mapped files (VmRSS).
        anonymous_bytes: what was allocated (RssAnon).
        descriptors: open files and sockets.
        threads: of its process.
        directory_bytes: what its data directory takes on the disk.
        cpu_s: processor time so far.
    """

    at_s: float
    resident_bytes: int
    anonymous_bytes: int
    descriptors: int
    threads: int
    directory_bytes: int
    cpu_s: float

    @classmethod
    def of(cls, broker: Broker, at_s: float) -> Sample:
        """What it has now. OSError if its process is no more."""
        assert broker.pid is not None and broker.directory is not None, "it is one of our own"
        memory = broker.memory()
        return cls(
            at_s,
            memory.resident_bytes,
            memory.anonymous_bytes,
            len(os.listdir(f"/proc/{broker.pid}/fd")),
            len(os.listdir(f"/proc/{broker.pid}/task")),
            disk_bytes(broker.directory),
            broker.cpu_s()["broker"],
        )


def disk_bytes(directory: Path) -> int:
    """What the files below a directory take on the disk, while files come and go."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                pass  # it was unlinked since it was listed
    return total


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a figure grows.

    Attributes:
        figure: a name of Sample.
        floor: the median of the windows' least values.
        growth: the slope by the time judged.
        allowed: growth up to this is none.
    """

    figure: str
    floor: float
    growth: float
    allowed: float

    @property
    def grows(self) -> bool:
        return self.growth > self.allowed

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "grows": self.grows}


# Figure, growth that is none whatever the floor, and as a share of the floor.
JUDGED = (
    ("resident_bytes", 4 * MIB, 0.05),
    ("anonymous_bytes", 4 * MIB, 0.05),
    ("descriptors", 3, 0.0),
    ("threads", 1, 0.0),
)


def judge(samples: Sequence[Sample], settle_s: float = SETTLE_S) -> list[Verdict]:
    """A verdict for each figure of JUDGED.

    Args:
        samples: in the order of time.
        settle_s: samples up to then are not looked at.

    Raises:
        ValueError: the rest is less than a sample for each window.
    """
    rest = [sample for sample in samples if sample.at_s >= settle_s]
    if len(rest) < WINDOWS:
        raise ValueError(f"{len(rest)} samples after {settle_s:.0f} s, {WINDOWS} are needed")
    verdicts = []
    for figure, allowed, share in JUDGED:
        floors = _floors(rest, figure)
        floor = statistics.median(value for _, value in floors)
        growth = slope(floors) * (rest[-1].at_s - rest[0].at_s)
        verdicts.append(Verdict(figure, floor, growth, max(allowed, share * floor)))
    return verdicts


def _floors(samples: Sequence[Sample], figure: str) -> list[tuple[float, float]]:
    """The least value of each window, and when it was seen."""
    bounds = [len(samples) * number // WINDOWS for number in range(WINDOWS + 1)]
    windows = (samples[start:stop] for start, stop in itertools.pairwise(bounds))
    return [
        min(((sample.at_s, getattr(sample, figure)) for sample in window), key=lambda seen: seen[1])
        for window in windows
    ]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes between any two points, which are in the order of time."""
    return statistics.median(
        (later - sooner) / (end - start)
        for (start, sooner), (end, later) in itertools.combinations(points, 2)
    )
