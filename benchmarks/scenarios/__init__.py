"""All scenarios, in the order in which they are run and reported."""

from __future__ import annotations

from fnmatch import fnmatchcase

from benchmarks.scenarios import (
    backlog,
    bystanders,
    clients,
    crowds,
    fanout,
    features,
    footprint,
    logins,
    steady,
    streams,
    watched,
)
from benchmarks.scenarios.scenario import Scenario

SCENARIOS: tuple[Scenario, ...] = (
    *footprint.BEFORE_LOAD,
    *steady.SCENARIOS,
    *watched.SCENARIOS,
    *clients.SCENARIOS,
    *fanout.SCENARIOS,
    *backlog.SCENARIOS,
    *streams.SCENARIOS,
    *features.SCENARIOS,
    *crowds.SCENARIOS,
    *bystanders.SCENARIOS,
    *logins.SCENARIOS,
    *footprint.AFTER_LOAD,
    *features.AFTER_LOAD,
)


def select(names: list[str]) -> list[Scenario]:
    """The scenarios of these names, or all when there are none.

    Args:
        names: names, or patterns of a shell: `in-turn-*`.

    Raises:
        KeyError: with the name that no scenario has.
    """
    if not names:
        return list(SCENARIOS)
    chosen = []
    for name in names:
        found = [scenario for scenario in SCENARIOS if fnmatchcase(scenario.name, name)]
        if not found:
            raise KeyError(name)
        chosen += [scenario for scenario in found if scenario not in chosen]
    return chosen
