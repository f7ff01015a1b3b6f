"""Each scenario at a tiny scale on a qlog: it gives the figures that tables show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.brokers import Broker, own_broker
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.scenario import Scenario, Settings


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
    # On a machine that is busy nothing may be confirmed in so short a time: then there are no
    # latencies, and nothing to divide processor time by.
    may_be_missing = ("_ms", "_cpu_us", "flow_kept")
    for name in scenario.headline:
        assert name in figures or name.endswith(may_be_missing), name
        assert math.isfinite(figures.get(name, 0.0)), name
    # What is counted does not depend on time.
    for name in ("drain_rate", "fill_rate", "ack_rate", "bulk_s", "start_s", "declare_s"):
        assert figures.get(name, 1.0) > 0, name
