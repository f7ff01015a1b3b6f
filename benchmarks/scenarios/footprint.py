"""What a broker needs to be there at all, and for each connection, queue and waiting message."""

from __future__ import annotations

import time

from benchmarks import wire
from benchmarks.brokers import Broker, Memory
from benchmarks.flow import Figures, LoadFailed, Topology, declared, fill, fresh_name
from benchmarks.scenarios.backlog import named
from benchmarks.scenarios.scenario import Scenario, Settings
from benchmarks.scenarios.steady import WINDOW
from benchmarks.traffic import Traffic

BACKLOG_MESSAGES = 1_000_000
CONNECTIONS = 2_000
# The first logins of a broker cost what all others share: modules, threads, a hash with its 64 MiB.
FIRST_CONNECTIONS = 20
QUEUES = 10_000
# Until what a broker does behind is done, and what it frees is free.
SETTLE_S = 3.0
MIB = 1024 * 1024


def run_start(broker: Broker, settings: Settings) -> Figures:
    """From the start of the process to its line that it accepts connections."""
    assert broker.start_s is not None
    return {"start_s": broker.start_s}


def run_idle(broker: Broker, settings: Settings) -> Figures:
    """Memory of a broker that nobody has used."""
    time.sleep(SETTLE_S)
    return memory_figures(broker)


def run_backlog_memory(broker: Broker, settings: Settings, *, expiration_ms: int = 0) -> Figures:
    """Memory when a million messages wait; each has a TTL of its own, if one is given."""
    queue = fresh_name("backlog")
    messages = settings.scaled(BACKLOG_MESSAGES)
    traffic = Traffic("", (queue,), 1024, expiration_ms=expiration_ms)
    with wire.Connection(broker.address) as connection:
        connection.declare_queue(queue)
        try:
            figures = named("fill", fill(broker, traffic, WINDOW, messages))
            time.sleep(SETTLE_S)
            figures |= memory_figures(broker)
        finally:
            left = connection.delete_queue(queue)
    if left != messages:
        raise LoadFailed(f"{messages} messages were confirmed, {left} are in the queue")
    return figures


def run_connections(broker: Broker, settings: Settings) -> Figures:
    """Idle connections with one open channel each."""
    count = settings.scaled(CONNECTIONS)
    first = [wire.Connection(broker.address) for _ in range(FIRST_CONNECTIONS)]
    if broker.pid:
        time.sleep(SETTLE_S)
    before = broker.memory() if broker.pid else None
    begun_s = time.monotonic()
    connections = [wire.Connection(broker.address) for _ in range(count)]
    figures = {"connect_s": time.monotonic() - begun_s}
    if before:
        time.sleep(SETTLE_S)
        figures |= _growth(before, broker.memory(), count)
    begun_s = time.monotonic()
    for connection in connections:
        connection.close()
    figures["close_s"] = time.monotonic() - begun_s
    for connection in first:
        connection.close()
    return figures


def run_queues(broker: Broker, settings: Settings) -> Figures:
    """Durable queues declared one after the other on one connection, then deleted."""
    queues = tuple(fresh_name("queue") for _ in range(settings.scaled(QUEUES)))
    before = broker.memory() if broker.pid else None
    begun_s = time.monotonic()
    with declared(broker.address, Topology(queues)):
        figures = {"declare_s": time.monotonic() - begun_s}
        if before:
            time.sleep(SETTLE_S)
            figures |= _growth(before, broker.memory(), len(queues))
        begun_s = time.monotonic()
    figures["delete_s"] = time.monotonic() - begun_s
    return figures


def memory_figures(broker: Broker) -> Figures:
    """What the broker's processes take now."""
    memory = broker.memory()
    return {
        "anonymous_mib": memory.anonymous_bytes / MIB,
        "resident_mib": memory.resident_bytes / MIB,
    }


def _growth(before: Memory, after: Memory, count: int) -> Figures:
    return {
        "anonymous_kib_each": (after.anonymous_bytes - before.anonymous_bytes) / 1024 / count,
        "resident_kib_each": (after.resident_bytes - before.resident_bytes) / 1024 / count,
    }


def _process_known(broker: Broker) -> bool:
    return broker.pid is not None


# Before any load: a running peer is as fresh as it will be.
BEFORE_LOAD = (
    Scenario(
        "start",
        "start on an empty directory",
        "until the line that says that connections are accepted",
        run_start,
        ("start_s",),
        applies=lambda broker: broker.start_s is not None,
        fresh=True,
    ),
    Scenario(
        "memory-idle",
        "memory of a fresh broker",
        f"process tree, {SETTLE_S:.0f} s after the start",
        run_idle,
        ("anonymous_mib", "resident_mib"),
        applies=_process_known,
        fresh=True,
        runs_max=1,
    ),
    Scenario(
        "connections",
        f"{CONNECTIONS:,} idle connections",
        "one open channel each, opened one after the other",
        run_connections,
        ("connect_s", "close_s", "anonymous_kib_each", "resident_kib_each"),
        fresh=True,
        runs_max=1,
    ),
    Scenario(
        "queues",
        f"{QUEUES:,} durable queues",
        "declared one after the other on one connection",
        run_queues,
        ("declare_s", "delete_s", "anonymous_kib_each", "resident_kib_each"),
        fresh=True,
        runs_max=1,
    ),
)

AFTER_LOAD = (
    Scenario(
        "memory-backlog",
        f"memory with {BACKLOG_MESSAGES:,} messages waiting",
        f"1 KiB, persistent, confirms (window {WINDOW}), no consumer; process tree, "
        f"{SETTLE_S:.0f} s after the last confirm",
        run_backlog_memory,
        ("anonymous_mib", "resident_mib", "fill_rate"),
        applies=_process_known,
        fresh=True,
        runs_max=1,
    ),
)
