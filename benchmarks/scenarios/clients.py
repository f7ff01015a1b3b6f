"""Many small clients: each has one message in flight, so that the broker does each one's work alone."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial

from benchmarks import load, rpc
from benchmarks.brokers import Broker
from benchmarks.flow import (
    Figures,
    Flow,
    LoadFailed,
    LoadProcess,
    Topology,
    cpu_figures,
    declared,
    expect_ready,
    fresh_name,
    run_flow,
)
from benchmarks.load import PublisherPlan
from benchmarks.measure import Span, latencies, quantile_ms, rate
from benchmarks.rpc import RequestPlan
from benchmarks.scenarios.scenario import Scenario, Settings
from benchmarks.scenarios.steady import CPU
from benchmarks.traffic import Traffic

RPC_CLIENTS = 50
RPC_BODY_BYTES = 256


def run_publishers(broker: Broker, settings: Settings, *, publishers: int) -> Figures:
    """Connections that publish to one queue, each waiting for the confirm of its message."""
    queue = fresh_name("small")
    plan = PublisherPlan(Traffic("", (queue,), 1024), 1)
    flow = Flow((plan,) * publishers, (), Topology((queue,)))
    return run_flow(broker, flow, settings.warm_up_s, settings.seconds)


def run_rpc(broker: Broker, settings: Settings, *, direct: bool) -> Figures:
    """Clients that ask one responder, each waiting for its reply.

    Raises:
        LoadFailed: not all requests were answered.
    """
    queue = fresh_name("rpc")
    plans = (RequestPlan(queue, direct),) * RPC_CLIENTS
    with ExitStack() as stack:
        stack.enter_context(declared(broker.address, Topology((queue,))))
        responding = LoadProcess(rpc.respond, broker.address, queue, RPC_BODY_BYTES)
        stack.callback(responding.end)
        asking = LoadProcess(rpc.request, broker.address, plans)
        stack.callback(asking.end)
        for process in (responding, asking):
            expect_ready(process)
        responding.send(load.GO)
        expect_ready(responding)
        asking.send(load.GO)
        time.sleep(settings.warm_up_s)
        start_ns, before = time.monotonic_ns(), broker.cpu_s()
        time.sleep(settings.seconds)
        span, after = Span(start_ns, time.monotonic_ns()), broker.cpu_s()
        asking.send(load.STOP)
        asked: load.Report[load.Published] = asking.receive()
        responding.send(load.STOP)
        answered: load.Report[int] = responding.receive()
    replies = sum(one.confirmed.count for one in asked.work)
    if answered.work != [replies]:
        raise LoadFailed(f"{answered.work} requests answered, {replies} replies received")
    samples = [sample for one in asked.work for sample in latencies(one.begun, one.confirmed, span)]
    figures = {
        "rate": rate((one.confirmed for one in asked.work), span),
        "load_cpu_share": asked.cpu_s / asked.wall_s + answered.cpu_s / answered.wall_s,
    }
    if samples:
        figures["reply_p50_ms"] = quantile_ms(samples, 0.5)
        figures["reply_p99_ms"] = quantile_ms(samples, 0.99)
    return figures | cpu_figures(before, after, figures["rate"] * span.seconds)


def _rpc(name: str, replies: str, direct: bool) -> Scenario:
    return Scenario(
        name,
        f"{RPC_CLIENTS} clients with one request in flight each, and one responder",
        f"{RPC_BODY_BYTES} B, not persistent, no confirms; replies come {replies}; the responder "
        f"acknowledges each request, prefetch {rpc.RESPONDER_PREFETCH}",
        partial(run_rpc, direct=direct),
        ("rate", "reply_p50_ms", "reply_p99_ms", "load_cpu_share", *CPU),
    )


PUBLISHERS = tuple(
    Scenario(
        f"publishers-{publishers}",
        f"{publishers} publishers, one message in flight each",
        "1 KiB, persistent, confirms (window 1 each), one queue, no consumer",
        partial(run_publishers, publishers=publishers),
        ("rate", "confirm_p50_ms", "confirm_p99_ms", "load_cpu_share", "broker_cpu_share", *CPU),
    )
    for publishers in (10, 100, 500)
)

SCENARIOS = (
    *PUBLISHERS,
    _rpc("rpc-50", "through an exclusive queue of each client, without acks", direct=False),
    _rpc("rpc-50-direct", "by direct reply-to", direct=True),
)
