"""All scenarios, in the order in which they are run and reported."""

from __future__ import annotations

from benchmarks.scenarios import backlog, fanout, footprint, steady
from benchmarks.scenarios.scenario import Scenario

SCENARIOS: tuple[Scenario, ...] = (
    *footprint.BEFORE_LOAD,
    *steady.SCENARIOS,
    *fanout.SCENARIOS,
    *backlog.SCENARIOS,
    *footprint.AFTER_LOAD,
)


def select(names: list[str]) -> list[Scenario]:
    """The scenarios of these names, or all when there are none.

    Raises:
        KeyError: with the name that no scenario has.
    """
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    return [by_name[name] for name in names] if names else list(SCENARIOS)
