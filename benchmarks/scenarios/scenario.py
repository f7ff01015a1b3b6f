"""What a scenario is: a load with a name, the state of the measure, and the figures that count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.brokers import Broker
from benchmarks.flow import Figures


@dataclass(frozen=True, slots=True)
class Settings:
    """How long and how much.

    Attributes:
        directory: data directories and files are made below it.
        seconds: length of what is measured of a steady load.
        warm_up_s: length of what is not measured before it.
        scale: factor on the counts of scenarios that handle a number of messages, queues or
            connections rather than run for a time.
        runs: how often each scenario is run on each broker.
    """

    directory: Path
    seconds: float = 6.0
    warm_up_s: float = 1.0
    scale: float = 1.0
    runs: int = 3

    def scaled(self, count: int) -> int:
        return max(1, round(count * self.scale))


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the report.

    Attributes:
        name: what the command line calls it.
        title: what is done, in a few words.
        state: body size, confirms, prefetch, acks, persistence: what the figures depend on.
        run: does it once on one broker.
        headline: names of the figures that tables show.
        applies: whether it can be run on a broker.
        fresh: it needs a broker that has done nothing before.
        runs_max: runs beyond so many are not worth their time.
    """

    name: str
    title: str
    state: str
    run: Callable[[Broker, Settings], Figures]
    headline: tuple[str, ...]
    applies: Callable[[Broker], bool] = lambda broker: True
    fresh: bool = False
    runs_max: int = 1000
