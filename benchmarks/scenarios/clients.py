"""Many small clients: each has one message in flight, so that the broker does each one's work alone."""

from __future__ import annotations

from functools import partial

from benchmarks.brokers import Broker
from benchmarks.flow import Figures, Flow, Topology, fresh_name, run_flow
from benchmarks.load import PublisherPlan
from benchmarks.scenarios.scenario import Scenario, Settings
from benchmarks.scenarios.steady import CPU
from benchmarks.traffic import Traffic


def run_publishers(broker: Broker, settings: Settings, *, publishers: int) -> Figures:
    """Connections that publish to one queue, each waiting for the confirm of its message."""
    queue = fresh_name("small")
    plan = PublisherPlan(Traffic("", (queue,), 1024), 1)
    flow = Flow((plan,) * publishers, (), Topology((queue,)))
    return run_flow(broker, flow, settings.warm_up_s, settings.seconds)


SCENARIOS = tuple(
    Scenario(
        f"publishers-{publishers}",
        f"{publishers} publishers, one message in flight each",
        "1 KiB, persistent, confirms (window 1 each), one queue, no consumer",
        partial(run_publishers, publishers=publishers),
        ("rate", "confirm_p50_ms", "confirm_p99_ms", "load_cpu_share", "broker_cpu_share", *CPU),
    )
    for publishers in (10, 100, 500)
)
