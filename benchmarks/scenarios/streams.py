"""Streams: one that is published to and read at once, and one that many read from its start."""

from __future__ import annotations

import time
from functools import partial

from benchmarks.brokers import Broker
from benchmarks.flow import Figures, Topology, declared, fill, fresh_name
from benchmarks.scenarios.backlog import MESSAGES, SETTLE_S, drain, named
from benchmarks.scenarios.scenario import Scenario, Settings
from benchmarks.scenarios.steady import ACK_EVERY, PREFETCH, RATES, WINDOW, run_plain
from benchmarks.traffic import Traffic

READERS = 10


def run_readers(broker: Broker, settings: Settings, *, readers: int) -> Figures:
    """Fill a stream, then have each of the consumers read all of it; the rate is that of all."""
    stream = fresh_name("stream")
    messages = settings.scaled(MESSAGES)
    with declared(broker.address, Topology((stream,), queue_type="stream")):
        figures = fill(broker, Traffic("", (stream,), 1024), WINDOW, messages)
        time.sleep(SETTLE_S)
        read = drain(broker, stream, messages * readers, consumers=readers, offset="first")
        return named("fill", figures) | read


SCENARIOS = (
    Scenario(
        "stream",
        "a stream, one publisher, one consumer",
        f"1 KiB, confirms (window {WINDOW}), manual acks, multiple, every {ACK_EVERY}, "
        f"prefetch {PREFETCH}",
        partial(run_plain, body_bytes=1024, queue_type="stream"),
        RATES,
    ),
    Scenario(
        f"stream-read-by-{READERS}",
        f"a stream of {MESSAGES:,} messages, read from its start by {READERS} consumers at once",
        f"1 KiB; fill: confirms (window {WINDOW}), no consumer; then manual acks, multiple, every "
        f"{ACK_EVERY}, prefetch {PREFETCH} each; deliveries count",
        partial(run_readers, readers=READERS),
        ("fill_rate", "drain_rate", "fill_confirm_p99_ms", "fill_loop_cpu_us", "drain_loop_cpu_us"),
    ),
)
