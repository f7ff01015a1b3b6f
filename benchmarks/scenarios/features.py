"""What features cost: priorities, TTL, limits, dead letters, delayed messages."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from functools import partial

from benchmarks import wire
from benchmarks.brokers import Broker
from benchmarks.bulk import wait_for_messages
from benchmarks.deliveries import delivered
from benchmarks.flow import (
    Figures,
    Flow,
    Share,
    Topology,
    cpu_figures,
    declared,
    fill,
    fresh_name,
    run_flow,
    running,
)
from benchmarks.load import ConsumerPlan, PublisherPlan
from benchmarks.measure import Span
from benchmarks.scenarios.backlog import MESSAGES, SETTLE_S, named
from benchmarks.scenarios.footprint import BACKLOG_MESSAGES, memory_figures, run_backlog_memory
from benchmarks.scenarios.scenario import Scenario, Settings
from benchmarks.scenarios.steady import ACK_EVERY, PREFETCH, RATES, WINDOW
from benchmarks.traffic import Traffic

# A TTL that no message of a benchmark reaches.
LONG_MS = 3_600_000
PRIORITIES = 10
KEPT = 1000
DELAY_MS = 1000
# The pace at which messages have to come out on time, in messages/s.
PACE = 20_000
# A million messages are published at the pace before the first of them is due.
LONG_DELAY_MS = 60_000

Arguments = Mapping[str, wire.Value]


def run_queue(
    broker: Broker,
    settings: Settings,
    *,
    arguments: Arguments,
    priorities: int = 0,
    expiration_ms: int = 0,
) -> Figures:
    """A publisher and a consumer of a queue with arguments."""
    queue = fresh_name("feature")
    traffic = Traffic("", (queue,), 1024, priorities=priorities, expiration_ms=expiration_ms)
    flow = Flow(
        publishers=(PublisherPlan(traffic, WINDOW),),
        consumers=(ConsumerPlan(queue, PREFETCH, ACK_EVERY),),
        topology=Topology((queue,), arguments=arguments),
        sources=(Share(0),),
    )
    return run_flow(broker, flow, settings.warm_up_s, settings.seconds)


def run_dropped_heads(broker: Broker, settings: Settings) -> Figures:
    """Fill a queue that keeps the last messages only."""
    queue = fresh_name("limited")
    messages = max(settings.scaled(MESSAGES), KEPT)
    topology = Topology((queue,), arguments={"x-max-length": KEPT})
    with declared(broker.address, topology) as run:
        figures = fill(broker, Traffic("", (queue,), 1024), WINDOW, messages)
        run.left = KEPT
    return figures


def run_dead_letters(broker: Broker, settings: Settings) -> Figures:
    """Reject a backlog; the time until all of it is in another queue."""
    dead, queue = fresh_name("dead"), fresh_name("letters")
    messages = settings.scaled(MESSAGES)
    to_dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}
    with (
        declared(broker.address, Topology((dead,))) as run,
        declared(broker.address, Topology((queue,), arguments=to_dead)),
        wire.Connection(broker.address) as connection,
        wire.Connection(broker.address) as other,
    ):
        fill(broker, Traffic("", (queue,), 1024), WINDOW, messages)
        time.sleep(SETTLE_S)
        run.left = messages
        connection.limit_prefetch(PREFETCH)
        begun_s, before = time.monotonic(), broker.cpu_s()
        for tags in delivered(connection, queue, messages):
            for last in _lasts(tags, messages):
                connection.socket.sendall(_nack(last))
        wait_for_messages(other, dead, messages)
        taken_s = time.monotonic() - begun_s
        spent = broker.cpu_s()
    return {"rate": messages / taken_s} | cpu_figures(before, spent, messages)


def _lasts(tags: range, messages: int) -> Iterator[int]:
    """Each tag that ends so many messages, and the last one of all."""
    for tag in tags:
        if tag % ACK_EVERY == 0 or tag == messages:
            yield tag


def _nack(tag: int) -> bytes:
    """Reject all messages up to one, for good."""
    multiple = 1
    return wire.method_frame(wire.BASIC_NACK, struct.pack(">QB", tag, multiple))


def run_delayed(broker: Broker, settings: Settings, *, pace: int = 0) -> Figures:
    """A steady flow in which each message waits for a second; how late it is then.

    `pace`: of the publisher, in messages/s; 0: as fast as it can.
    """
    queue, exchange = fresh_name("due"), fresh_name("delayed")
    window = PACE if pace else WINDOW  # a pace is not to wait for confirms
    traffic = _delayed(exchange, queue, DELAY_MS)
    flow = Flow(
        publishers=(PublisherPlan(traffic, window, rate_max=pace),),
        consumers=(ConsumerPlan(queue, PREFETCH, ACK_EVERY),),
        topology=_delaying(queue, exchange),
        sources=(Share(0),),
    )
    figures = run_flow(broker, flow, settings.warm_up_s + DELAY_MS / 1000, settings.seconds)
    return _late(figures, DELAY_MS)


def _late(figures: Figures, delay_ms: int) -> Figures:
    """How much later than they were due messages came, instead of how long they were under way."""
    return {
        name.replace("delivery", "late"): value - delay_ms if name.startswith("delivery") else value
        for name, value in figures.items()
    }


def run_delayed_million(broker: Broker, settings: Settings) -> Figures:
    """A million messages are published at a pace, and wait for a minute; how late they come then.

    `rate` is that of the releases. With less than a million the delay is shorter.
    """
    queue, exchange = fresh_name("due"), fresh_name("delayed")
    delay_ms = max(settings.scaled(LONG_DELAY_MS), DELAY_MS)
    messages = settings.scaled(BACKLOG_MESSAGES)
    traffic = _delayed(exchange, queue, delay_ms)
    flow = Flow(
        publishers=(PublisherPlan(traffic, PACE, messages_max=messages, rate_max=PACE),),
        consumers=(ConsumerPlan(queue, PREFETCH, ACK_EVERY),),
        topology=_delaying(queue, exchange),
        sources=(Share(0),),
    )
    with running(broker, flow) as run:
        start_ns, before = time.monotonic_ns(), broker.cpu_s()
        run.start()
        run.finish()
        whole, after = Span(start_ns, time.monotonic_ns()), broker.cpu_s()
    published, released = run.spans
    figures = _late(run.figures(whole), delay_ms)
    figures |= {"fill_rate": messages / published.seconds, "rate": messages / released.seconds}
    return figures | cpu_figures(before, after, messages)


def run_delayed_memory(broker: Broker, settings: Settings) -> Figures:
    """A million messages are published that have to wait; memory, and the rate."""
    queue, exchange = fresh_name("due"), fresh_name("delayed")
    with declared(broker.address, _delaying(queue, exchange)):
        traffic = _delayed(exchange, queue, LONG_MS)
        figures = named("fill", fill(broker, traffic, WINDOW, settings.scaled(BACKLOG_MESSAGES)))
        time.sleep(SETTLE_S)
        return figures | memory_figures(broker)


def _delayed(exchange: str, key: str, delay_ms: int) -> Traffic:
    return Traffic(exchange, (key,), 1024, delay_ms=delay_ms)


def _delaying(queue: str, exchange: str) -> Topology:
    return Topology(
        (queue,),
        exchange,
        "x-delayed-message",
        (queue,),
        exchange_arguments={"x-delayed-type": "direct"},
    )


def _delays(broker: Broker) -> bool:
    """Neither RabbitMQ's own packages nor an older qlog have the exchange."""
    exchange = fresh_name("delayed")
    try:
        with wire.Connection(broker.address) as connection:
            arguments = {"x-delayed-type": "direct"}
            connection.declare_exchange(exchange, "x-delayed-message", arguments)
            connection.delete_exchange(exchange)
    except wire.Refused:
        return False
    return True


_FLOW = (
    f"1 KiB, persistent, confirms (window {WINDOW}), manual acks, multiple, every {ACK_EVERY}, "
    f"prefetch {PREFETCH}"
)


def _of_queue(
    name: str,
    title: str,
    arguments: Arguments,
    *,
    priorities: int = 0,
    expiration_ms: int = 0,
) -> Scenario:
    run = partial(
        run_queue, arguments=arguments, priorities=priorities, expiration_ms=expiration_ms
    )
    return Scenario(name, title, _FLOW, run, RATES)


_LATE = ("rate", "confirm_p99_ms", "late_p50_ms", "late_p99_ms", "broker_cpu_us", "loop_cpu_us")

SCENARIOS = (
    _of_queue(
        "priorities",
        f"a queue with {PRIORITIES} priorities, which messages have in turn",
        {"x-max-priority": PRIORITIES - 1},
        priorities=PRIORITIES,
    ),
    _of_queue("ttl-queue", "a queue whose messages expire", {"x-message-ttl": LONG_MS}),
    _of_queue("ttl-message", "messages with a TTL of their own", {}, expiration_ms=LONG_MS),
    _of_queue("limited", "a queue with a limit that is not reached", {"x-max-length": 1_000_000}),
    Scenario(
        "dropped-heads",
        f"{MESSAGES:,} messages to a queue that keeps {KEPT:,}",
        f"1 KiB, persistent, confirms (window {WINDOW}), no consumer",
        run_dropped_heads,
        ("rate", "confirm_p50_ms", "confirm_p99_ms", "broker_cpu_us", "loop_cpu_us"),
    ),
    Scenario(
        "dead-letters",
        f"{MESSAGES:,} messages are rejected, and go to another queue",
        f"1 KiB, persistent; nacks, multiple, every {ACK_EVERY}, prefetch {PREFETCH}",
        run_dead_letters,
        ("rate", "broker_cpu_us", "loop_cpu_us"),
    ),
    Scenario(
        "delayed",
        f"each message is delayed by {DELAY_MS} ms",
        _FLOW,
        run_delayed,
        _LATE,
        applies=_delays,
    ),
    Scenario(
        "delayed-paced",
        f"the same at {PACE:,} messages/s",
        _FLOW,
        partial(run_delayed, pace=PACE),
        _LATE,
        applies=_delays,
    ),
)

AFTER_LOAD = (
    Scenario(
        "memory-ttl",
        f"memory with {BACKLOG_MESSAGES:,} messages that have a TTL of their own",
        f"as memory-backlog, each with an expiration of {LONG_MS // 60_000} minutes",
        partial(run_backlog_memory, expiration_ms=LONG_MS),
        ("anonymous_mib", "resident_mib", "fill_rate"),
        applies=lambda broker: broker.pid is not None,
        fresh=True,
        runs_max=1,
    ),
    Scenario(
        "delayed-million",
        f"{BACKLOG_MESSAGES:,} messages are published at {PACE:,}/s, and come a minute later",
        f"1 KiB, persistent, confirms, delayed by {LONG_DELAY_MS // 1000} s; one consumer",
        run_delayed_million,
        (
            "fill_rate",
            "rate",
            "late_p50_ms",
            "late_p99_ms",
            "late_max_ms",
            "broker_cpu_us",
            "loop_cpu_us",
        ),
        applies=_delays,
        runs_max=1,
    ),
    Scenario(
        "memory-delayed",
        f"memory with {BACKLOG_MESSAGES:,} delayed messages",
        f"as memory-backlog, each with a delay of {LONG_MS // 60_000} minutes",
        run_delayed_memory,
        ("anonymous_mib", "resident_mib", "fill_rate"),
        applies=lambda broker: broker.pid is not None and _delays(broker),
        fresh=True,
        runs_max=1,
    ),
)
