"""Queues that are filled while nobody consumes, and drained when nobody publishes any more."""

from __future__ import annotations

import time
from functools import partial

from benchmarks import load
from benchmarks.brokers import Broker
from benchmarks.flow import (
    Figures,
    Flow,
    LoadFailed,
    LoadProcess,
    Share,
    Topology,
    cpu_figures,
    declared,
    expect_ready,
    fill,
    fresh_name,
    run_flow,
)
from benchmarks.measure import Span
from benchmarks.scenarios.scenario import Scenario, Settings
from benchmarks.scenarios.steady import ACK_EVERY, CPU, PREFETCH, RATES, WINDOW
from benchmarks.traffic import Traffic

MESSAGES = 300_000
# Some seconds for a broker that needs a wake-up of each side for each message.
PREFETCH_ONE_MESSAGES = 50_000
# Between fill and drain: what was confirmed may still have to leave the broker's buffers.
SETTLE_S = 1.0


def drain(
    broker: Broker,
    queue: str,
    messages: int,
    *,
    prefetch: int = PREFETCH,
    ack_every: int = ACK_EVERY,
    consumers: int = 1,
    offset: str = "",
) -> Figures:
    """Consume and acknowledge all that is in a queue, or in a stream from an offset on."""
    plans = (load.ConsumerPlan(queue, prefetch, ack_every, offset=offset),) * consumers
    process = LoadProcess(load.consume, broker.address, plans, None)
    try:
        expect_ready(process)
        before = broker.cpu_s()
        process.send(load.GO)
        expect_ready(process)
        process.send(messages)
        report: load.Report[load.Delivered] = process.receive()
        spent = broker.cpu_s()
    finally:
        process.end()
    delivered = sum(one.delivered.count for one in report.work)
    if delivered != messages:
        raise LoadFailed(f"{messages} published, {delivered} delivered")
    ends_ns = [one.delivered.times_ns[-1] for one in report.work if one.delivered.count]
    span = Span(min(one.begun_ns for one in report.work), max(ends_ns))
    figures = {
        "rate": messages / span.seconds,
        "load_cpu_share": report.cpu_s / report.wall_s,
    } | cpu_figures(before, spent, messages)
    return named("drain", figures)


def named(phase: str, figures: Figures) -> Figures:
    """The figures of one phase of a scenario, told apart from those of another."""
    return {f"{phase}_{name}": value for name, value in figures.items()}


def run_fill_drain(broker: Broker, settings: Settings) -> Figures:
    """Fill, then drain what was filled."""
    queue = fresh_name("backlog")
    messages = settings.scaled(MESSAGES)
    with declared(broker.address, Topology((queue,))):
        figures = fill(broker, Traffic("", (queue,), 1024), WINDOW, messages)
        time.sleep(SETTLE_S)
        return named("fill", figures) | drain(broker, queue, messages)


def run_prefetch_one(broker: Broker, settings: Settings, *, consumers: int) -> Figures:
    """Consumers that take one message at a time share a backlog."""
    queue = fresh_name("backlog")
    messages = settings.scaled(PREFETCH_ONE_MESSAGES)
    with declared(broker.address, Topology((queue,))):
        fill(broker, Traffic("", (queue,), 1024), WINDOW, messages)
        time.sleep(SETTLE_S)
        return drain(broker, queue, messages, prefetch=1, ack_every=1, consumers=consumers)


def run_in_turn(broker: Broker, settings: Settings, *, queues: int, consumed: bool) -> Figures:
    """One connection publishes to many queues in turn: a message for each before the next round."""
    names = tuple(fresh_name("turn") for _ in range(queues))
    traffic = Traffic("", names, 1024)
    if consumed:
        flow = Flow(
            publishers=(load.PublisherPlan(traffic, WINDOW),),
            consumers=tuple(load.ConsumerPlan(name, PREFETCH, ACK_EVERY) for name in names),
            topology=Topology(names),
            sources=tuple(Share(0, place, queues) for place in range(queues)),
        )
        return run_flow(broker, flow, settings.warm_up_s, settings.seconds)
    messages = settings.scaled(MESSAGES)
    with declared(broker.address, Topology(names)) as run:
        figures = fill(broker, traffic, WINDOW, messages)
        run.left = messages
    return figures


def _in_turn(queues: int) -> tuple[Scenario, Scenario]:
    flow = f"1 KiB, persistent, confirms (window {WINDOW})"
    return (
        Scenario(
            f"in-turn-{queues}",
            f"{MESSAGES:,} messages in turn to {queues} queues on one connection",
            f"{flow}, no consumers",
            partial(run_in_turn, queues=queues, consumed=False),
            ("rate", "confirm_p50_ms", "confirm_p99_ms", "load_cpu_share", *CPU),
        ),
        Scenario(
            f"in-turn-{queues}-consumed",
            f"messages in turn to {queues} queues on one connection, a consumer for each queue",
            f"{flow}, manual acks, multiple, every {ACK_EVERY}, prefetch {PREFETCH}",
            partial(run_in_turn, queues=queues, consumed=True),
            RATES,
        ),
    )


def _prefetch_one(name: str, consumers: int) -> Scenario:
    return Scenario(
        name,
        f"{PREFETCH_ONE_MESSAGES:,} messages drained with prefetch 1, consumers: {consumers}",
        "1 KiB, persistent, manual acks, single, prefetch 1",
        partial(run_prefetch_one, consumers=consumers),
        ("drain_rate", "drain_load_cpu_share", "drain_broker_cpu_us", "drain_loop_cpu_us"),
    )


SCENARIOS = (
    Scenario(
        "fill-drain",
        f"fill with {MESSAGES:,} messages, then drain",
        f"1 KiB, persistent; fill: confirms (window {WINDOW}), no consumer; drain: manual acks, "
        f"multiple, every {ACK_EVERY}, prefetch {PREFETCH}",
        run_fill_drain,
        ("fill_rate", "drain_rate", "fill_confirm_p99_ms", "fill_loop_cpu_us", "drain_loop_cpu_us"),
    ),
    _prefetch_one("prefetch-1", 1),
    _prefetch_one("prefetch-1-by-50", 50),
    *_in_turn(10),
    *_in_turn(100),
)
