"""Each scenario at a tiny scale on a qlog: it gives the figures that tables show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.brokers import Broker, own_broker
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.scenario import Scenario, Settings

# What may be nothing in so short a time: processor time is counted in hundredths of a second.
MAY_BE_ZERO = ("_cpu_us", "_cpu_share", "_kib_each")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with own_broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_scenario_gives_its_figures(
    scenario: Scenario, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("backlog", "footprint"):
        monkeypatch.setattr(f"benchmarks.scenarios.{module}.SETTLE_S", 0.0)
    settings = Settings(tmp_path, seconds=0.2, warm_up_s=0.05, scale=0.002)
    figures = scenario.run(broker, settings)
    missing = [name for name in scenario.headline if name not in figures]
    assert missing == []
    for name in scenario.headline:
        assert math.isfinite(figures[name]), name
        assert figures[name] > 0 or name.endswith(MAY_BE_ZERO), name
