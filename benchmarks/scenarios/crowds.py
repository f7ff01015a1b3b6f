"""A steady load, and somebody beside it: floods, declares, checkpoints of much that is in memory."""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise

from benchmarks import wire
from benchmarks.beside import beside
from benchmarks.brokers import Broker
from benchmarks.flow import (
    Figures,
    Flow,
    Share,
    Topology,
    fresh_name,
    publish,
    running,
)
from benchmarks.load import ConsumerPlan, PublisherPlan
from benchmarks.measure import Span, quantile_ms
from benchmarks.scenarios.scenario import Scenario, Settings
from benchmarks.scenarios.steady import ACK_EVERY, PREFETCH, WINDOW
from benchmarks.traffic import Traffic

DECLARES = 1_000
FLOOD_64K_WINDOW = 100
STALL_MESSAGES = 60_000
STALL_QUEUES = 100
STALL_PUBLISHERS = 10
# Small, so that all of them stay in the memory of a broker that keeps the newest there.
STALL_BODY_BYTES = 256
SEEN = ("confirm_p50_ms", "confirm_p99_ms", "confirm_p999_ms", "confirm_max_ms")
TURNS = ("turn_p50_ms", "turn_p999_ms", "turn_max_ms")


def _flow(pairs: int, body_bytes: int, window: int) -> Flow:
    queues = tuple(fresh_name("flood") for _ in range(pairs))
    return Flow(
        publishers=tuple(
            PublisherPlan(Traffic("", (queue,), body_bytes), window) for queue in queues
        ),
        consumers=tuple(ConsumerPlan(queue, PREFETCH, ACK_EVERY) for queue in queues),
        topology=Topology(queues),
        sources=tuple(map(Share, range(pairs))),
    )


def run_flood(
    broker: Broker, settings: Settings, *, pairs: int, body_bytes: int, window: int
) -> Figures:
    """Publishers with deep windows and their consumers, and a bystander with one in flight."""
    with running(broker, _flow(pairs, body_bytes, window)) as run, beside(broker) as seen:
        run.start()
        time.sleep(settings.warm_up_s)
        start_ns = time.monotonic_ns()
        time.sleep(settings.seconds)
        span = Span(start_ns, time.monotonic_ns())
        seen.stop()
        run.stop()
    return seen.figures(span) | {"flood_rate": run.figures(span)["rate"]}


def run_declares(broker: Broker, settings: Settings) -> Figures:
    """Queues declared one after the other beside a steady flow, which is measured before too."""
    names = [fresh_name("declare") for _ in range(settings.scaled(DECLARES))]
    samples = []
    with running(broker, _flow(1, 1024, WINDOW)) as run, wire.Connection(broker.address) as client:
        run.start()
        time.sleep(settings.warm_up_s)
        marks_ns = [time.monotonic_ns()]
        time.sleep(settings.seconds / 2)
        marks_ns.append(time.monotonic_ns())
        try:
            for name in names:
                begun_ns = time.monotonic_ns()
                client.declare_queue(name)
                samples.append((time.monotonic_ns() - begun_ns, 1))
            marks_ns.append(time.monotonic_ns())
            time.sleep(settings.seconds / 2)
            marks_ns.append(time.monotonic_ns())
        finally:
            for name in names[: len(samples)]:
                client.delete_queue(name)
        run.stop()
    before, meanwhile, after = (Span(start_ns, stop_ns) for start_ns, stop_ns in pairwise(marks_ns))
    alone = (run.figures(before)["rate"] + run.figures(after)["rate"]) / 2
    rate = run.figures(meanwhile)["rate"]
    figures = {
        "bulk_s": meanwhile.seconds,
        "declare_p50_ms": quantile_ms(samples, 0.5),
        "declare_p99_ms": quantile_ms(samples, 0.99),
        "declare_max_ms": quantile_ms(samples, 1),
        "rate": rate,
        "flow_lost": max(0.0, alone - rate) * meanwhile.seconds,
    }
    return figures | ({"flow_kept": rate / alone} if alone else {})


def run_stalls(broker: Broker, settings: Settings) -> Figures:
    """Much that was published one by one is in memory, and more comes in the same way."""
    queues = tuple(fresh_name("stall") for _ in range(STALL_QUEUES))
    each = max(1, settings.scaled(STALL_MESSAGES) // STALL_PUBLISHERS)
    traffic = Traffic("", queues, STALL_BODY_BYTES)
    filling = (PublisherPlan(traffic, 1, messages_max=each),) * STALL_PUBLISHERS
    flow = Flow((PublisherPlan(traffic, 1),), (), Topology(queues))
    with running(broker, flow) as run, beside(broker) as seen:
        filled = publish(broker, filling)
        run.start()
        start_ns = time.monotonic_ns()
        time.sleep(settings.seconds)
        span = Span(start_ns, time.monotonic_ns())
        seen.stop()
        run.stop()
        run.others = sum(one.begun.count for one in filled.work)
    return seen.figures(span)


SCENARIOS = (
    Scenario(
        "flood",
        "a bystander with one message in flight beside a deep flow",
        f"flood: 1 KiB, persistent, confirms (window {WINDOW}), consumed; bystander: 1 KiB, window 1",
        partial(run_flood, pairs=1, body_bytes=1024, window=WINDOW),
        (*SEEN, "flood_rate"),
    ),
    Scenario(
        "flood-64k",
        "a bystander with one message in flight beside four flows of 64 KiB",
        f"flood: 64 KiB, persistent, confirms (window {FLOOD_64K_WINDOW} each), consumed; "
        "bystander: 1 KiB, window 1",
        partial(run_flood, pairs=4, body_bytes=65536, window=FLOOD_64K_WINDOW),
        (*SEEN, "flood_rate"),
    ),
    Scenario(
        "declares",
        f"{DECLARES:,} queues declared one after the other beside a steady flow",
        f"durable; flow: 1 KiB, persistent, confirms (window {WINDOW}), manual acks; its rate "
        "meanwhile by its rate before and after",
        run_declares,
        (
            "declare_p50_ms",
            "declare_p99_ms",
            "declare_max_ms",
            "bulk_s",
            "rate",
            "flow_kept",
            "flow_lost",
        ),
    ),
    Scenario(
        "stalls",
        f"a bystander while {STALL_MESSAGES:,} messages, published one by one, are in memory",
        f"{STALL_BODY_BYTES} B, persistent, in turn to {STALL_QUEUES} queues by {STALL_PUBLISHERS} "
        "publishers with one message in flight each; then one such publisher goes on; bystander: "
        "1 KiB, window 1",
        run_stalls,
        (*SEEN, *TURNS),
        fresh=True,
    ),
)
