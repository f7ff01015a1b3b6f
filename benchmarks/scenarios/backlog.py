"""A queue that is filled while nobody consumes, and drained when nobody publishes any more."""

from __future__ import annotations

import time

from benchmarks import load
from benchmarks.brokers import Broker
from benchmarks.flow import (
    Figures,
    LoadFailed,
    LoadProcess,
    Topology,
    declared,
    expect_ready,
    fresh_name,
    publish,
)
from benchmarks.measure import Span, latencies, quantile_ms
from benchmarks.scenarios.scenario import Scenario, Settings
from benchmarks.scenarios.steady import ACK_EVERY, PREFETCH, WINDOW
from benchmarks.traffic import Traffic

MESSAGES = 300_000
# Between fill and drain: what was confirmed may still have to leave the broker's buffers.
SETTLE_S = 1.0
# Further off than any fill takes; a fill ends by its count.
NEVER_S = 3600.0


def fill(broker: Broker, queue: str, messages: int, body_bytes: int = 1024) -> Figures:
    """Publish so many messages with confirms; all are confirmed when this returns."""
    plan = load.PublisherPlan(Traffic("", (queue,), body_bytes), WINDOW, messages_max=messages)
    report = publish(broker, plan, NEVER_S)
    begun, confirmed = report.work[0].begun, report.work[0].confirmed
    span = Span(begun.times_ns[0], confirmed.times_ns[-1])
    samples = latencies(begun, confirmed, span, report.work[0].confirmed_early_ns)
    return {
        "fill_rate": messages / span.seconds,
        "fill_confirm_p99_ms": quantile_ms(samples, 0.99),
        "fill_load_cpu_share": report.cpu_s / report.wall_s,
    }


def drain(broker: Broker, queue: str, messages: int) -> Figures:
    """Consume and acknowledge all that is in a queue."""
    plan = load.ConsumerPlan(queue, PREFETCH, ACK_EVERY)
    process = LoadProcess(load.consume, broker.address, (plan,), None)
    try:
        expect_ready(process)
        process.send(load.Go(0))
        expect_ready(process)
        process.send([messages])
        report: load.Report[load.Delivered] = process.receive()
    finally:
        process.end()
    work = report.work[0]
    if work.delivered.count != messages:
        raise LoadFailed(f"{messages} published, {work.delivered.count} delivered")
    return {
        "drain_rate": messages / Span(work.begun_ns, work.delivered.times_ns[-1]).seconds,
        "drain_load_cpu_share": report.cpu_s / report.wall_s,
    }


def run_fill_drain(broker: Broker, settings: Settings) -> Figures:
    """Fill, then drain what was filled."""
    queue = fresh_name("backlog")
    messages = settings.scaled(MESSAGES)
    with declared(broker.address, Topology((queue,))):
        figures = fill(broker, queue, messages)
        time.sleep(SETTLE_S)
        return figures | drain(broker, queue, messages)


SCENARIOS = (
    Scenario(
        "fill-drain",
        f"fill with {MESSAGES:,} messages, then drain",
        f"1 KiB, persistent; fill: confirms (window {WINDOW}), no consumer; drain: manual acks, "
        f"multiple, every {ACK_EVERY}, prefetch {PREFETCH}",
        run_fill_drain,
        ("fill_rate", "drain_rate", "fill_confirm_p99_ms"),
    ),
)
