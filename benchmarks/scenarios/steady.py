"""Steady loads: publishers and consumers run at the same time, and keep up with each other."""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial

from benchmarks.brokers import Broker
from benchmarks.flow import Figures, Flow, Share, Topology, fresh_name, run_flow
from benchmarks.load import ConsumerPlan, PublisherPlan
from benchmarks.measure import quantile_ms
from benchmarks.scenarios.scenario import Scenario, Settings
from benchmarks.traffic import CELERY, UNIFORM, VARIED, Traffic

WINDOW = 1000
PREFETCH = 2000
ACK_EVERY = 100
TRANSIENT_WINDOW = 5000
RAW_SYNCS = 200
MIB = 1024 * 1024
# Large messages that may be unconfirmed, and unacknowledged, at once.
LARGE_WINDOW = 20

# What a message costs the broker: all its processes, and the loop of a qlog.
CPU = ("broker_cpu_us", "loop_cpu_us")
RATES = (
    "rate",
    "confirm_p50_ms",
    "confirm_p99_ms",
    "delivery_p50_ms",
    "delivery_p99_ms",
    "load_cpu_share",
    "broker_cpu_share",
    *CPU,
)

# 500 keys of three words; each is matched by exactly one of the patterns.
TOPIC_KEYS = tuple(
    f"{kind}.{region}.{number}"
    for number in range(25)
    for region in ("eu", "us", "asia", "africa", "oceania")
    for kind in ("order", "payment", "shipment", "audit")
)
TOPIC_PATTERNS = ("order.#", "payment.*.*", "shipment.#", "audit.*.*")


def run_plain(
    broker: Broker,
    settings: Settings,
    *,
    body_bytes: int,
    shape: str = UNIFORM,
    window: int = WINDOW,
    ack_every: int = ACK_EVERY,
    pairs: int = 1,
    queue_type: str = "classic",
) -> Figures:
    """Pairs of a publisher and a consumer, each with a queue of its own, by the default exchange."""
    queues = tuple(fresh_name("flow") for _ in range(pairs))
    flow = Flow(
        publishers=tuple(
            PublisherPlan(Traffic("", (queue,), body_bytes, shape), window) for queue in queues
        ),
        consumers=tuple(ConsumerPlan(queue, PREFETCH, ack_every) for queue in queues),
        topology=Topology(queues, queue_type=queue_type),
        sources=tuple(map(Share, range(pairs))),
    )
    return run_flow(broker, flow, settings.warm_up_s, settings.seconds)


def run_tls(broker: Broker, settings: Settings, *, body_bytes: int) -> Figures:
    """The plain load without TLS and with it, one after the other on the same broker."""
    plain = run_plain(broker, settings, body_bytes=body_bytes)
    figures = run_plain(broker.over_tls(), settings, body_bytes=body_bytes)
    return figures | {
        "plain_rate": plain["rate"],
        "plain_broker_cpu_us": plain["broker_cpu_us"],
        "tls_to_plain": figures["rate"] / plain["rate"],
    }


def run_large(broker: Broker, settings: Settings, *, body_bytes: int) -> Figures:
    """A publisher and a consumer of messages that take many frames each."""
    queue = fresh_name("large")
    # More than any broker's frames add to a body.
    room = body_bytes + body_bytes // 64
    flow = Flow(
        publishers=(PublisherPlan(Traffic("", (queue,), body_bytes), LARGE_WINDOW),),
        consumers=(ConsumerPlan(queue, LARGE_WINDOW, 1, room),),
        topology=Topology((queue,)),
        sources=(Share(0),),
    )
    figures = run_flow(broker, flow, settings.warm_up_s, settings.seconds)
    return figures | {"mib_s": figures["rate"] * body_bytes / MIB}


def run_topic(broker: Broker, settings: Settings) -> Figures:
    """Varied messages with 500 keys to one queue that four patterns are bound to."""
    queue, exchange = fresh_name("flow"), fresh_name("topic")
    flow = Flow(
        publishers=(PublisherPlan(Traffic(exchange, TOPIC_KEYS, 1024, VARIED), WINDOW),),
        consumers=(ConsumerPlan(queue, PREFETCH, ACK_EVERY),),
        topology=Topology((queue,), exchange, "topic", TOPIC_PATTERNS),
        sources=(Share(0),),
    )
    return run_flow(broker, flow, settings.warm_up_s, settings.seconds)


def run_fresh_keys(broker: Broker, settings: Settings) -> Figures:
    """Varied messages, each with a routing key that never came before, to one queue."""
    queue, exchange = fresh_name("flow"), fresh_name("topic")
    traffic = Traffic(exchange, ("user.",), 1024, VARIED, fresh_keys=True)
    flow = Flow(
        publishers=(PublisherPlan(traffic, WINDOW),),
        consumers=(ConsumerPlan(queue, PREFETCH, ACK_EVERY),),
        topology=Topology((queue,), exchange, "topic", ("user.#",)),
        sources=(Share(0),),
    )
    return run_flow(broker, flow, settings.warm_up_s, settings.seconds)


def run_transient(broker: Broker, settings: Settings) -> Figures:
    """No confirms, no acks, delivery mode 1: the consumer moves the window of the publisher."""
    queue = fresh_name("flow")
    traffic = Traffic("", (queue,), 1024, persistent=False)
    flow = Flow(
        publishers=(PublisherPlan(traffic, TRANSIENT_WINDOW, confirms=False),),
        consumers=(ConsumerPlan(queue, ack_every=0),),
        topology=Topology((queue,)),
        sources=(Share(0),),
        credit=True,
    )
    return run_flow(broker, flow, settings.warm_up_s, settings.seconds)


def run_one_in_flight(broker: Broker, settings: Settings) -> Figures:
    """Each message waits for the confirm of the one before; then the disk is measured alone."""
    figures = run_plain(broker, settings, body_bytes=1024, window=1)
    raw_ms = raw_sync_p50_ms(settings, 1024)
    figures["raw_sync_p50_ms"] = raw_ms
    if "confirm_p50_ms" in figures:
        figures["confirm_to_bound"] = figures["confirm_p50_ms"] / (1.3 * raw_ms + 0.5)
    return figures


def raw_sync_p50_ms(settings: Settings, size_bytes: int) -> float:
    """What one write and fdatasync costs where data directories are made.

    The file is allocated beforehand: the least a log can wait for, as no size changes.
    """
    block = os.urandom(size_bytes)
    samples = []
    with tempfile.TemporaryFile(dir=settings.directory) as file:
        os.posix_fallocate(file.fileno(), 0, RAW_SYNCS * size_bytes)
        os.fsync(file.fileno())
        for number in range(RAW_SYNCS):
            begun_ns = time.monotonic_ns()
            os.pwrite(file.fileno(), block, number * size_bytes)
            os.fdatasync(file.fileno())
            samples.append((time.monotonic_ns() - begun_ns, 1))
    return quantile_ms(samples, 0.5)


def _state(body: str, acks: str = "manual acks, multiple, every 100", window: int = WINDOW) -> str:
    return f"{body}, persistent, confirms (window {window}), {acks}, prefetch {PREFETCH}"


VARIED_BODY = "1 KiB (0.5-1.5), own ids, time, 3 headers"

SCENARIOS = (
    Scenario(
        "flow-1k",
        "steady flow of 1 KiB",
        _state("1 KiB"),
        partial(run_plain, body_bytes=1024),
        RATES,
    ),
    Scenario(
        "flow-1k-tls",
        "steady flow of 1 KiB over TLS",
        _state("1 KiB"),
        partial(run_tls, body_bytes=1024),
        ("tls_to_plain", "plain_rate", "plain_broker_cpu_us", *RATES),
        applies=lambda broker: broker.secure is not None,
    ),
    Scenario(
        "flow-64b", "steady flow of 64 B", _state("64 B"), partial(run_plain, body_bytes=64), RATES
    ),
    Scenario(
        "flow-64k",
        "steady flow of 64 KiB",
        _state("64 KiB"),
        partial(run_plain, body_bytes=65536),
        RATES,
    ),
    *(
        Scenario(
            f"large-{name}",
            f"steady flow of {name.upper()}B",
            f"{body_bytes // 1024:,} KiB, persistent, confirms (window {LARGE_WINDOW}), manual "
            f"acks, single, prefetch {LARGE_WINDOW}",
            partial(run_large, body_bytes=body_bytes),
            ("mib_s", *RATES),
        )
        for name, body_bytes in (("256k", MIB // 4), ("1m", MIB), ("8m", 8 * MIB))
    ),
    Scenario(
        "flow-1k-single-acks",
        "steady flow of 1 KiB, each message acknowledged on its own",
        _state("1 KiB", "manual acks, single"),
        partial(run_plain, body_bytes=1024, ack_every=1),
        RATES,
    ),
    Scenario(
        "varied-default",
        "varied messages by the default exchange",
        _state(VARIED_BODY),
        partial(run_plain, body_bytes=1024, shape=VARIED),
        RATES,
    ),
    Scenario(
        "varied-topic",
        "varied messages by a topic exchange, 500 keys, 4 patterns",
        _state(VARIED_BODY),
        run_topic,
        RATES,
    ),
    Scenario(
        "new-key",
        "a new routing key for each message, topic exchange, bound by user.#",
        _state(VARIED_BODY),
        run_fresh_keys,
        RATES,
    ),
    Scenario(
        "celery",
        "messages as Celery 5 sends them",
        _state("256 B of JSON on average, headers with tables and arrays (600 B), own ids"),
        partial(run_plain, body_bytes=256, shape=CELERY),
        RATES,
    ),
    Scenario(
        "four-by-four",
        "4 publishers, 4 consumers, 4 queues",
        _state("1 KiB") + ", each",
        partial(run_plain, body_bytes=1024, pairs=4),
        RATES,
    ),
    Scenario(
        "quorum",
        "steady flow of 1 KiB through a quorum queue",
        _state("1 KiB"),
        partial(run_plain, body_bytes=1024, queue_type="quorum"),
        RATES,
    ),
    Scenario(
        "one-in-flight",
        "one message in flight",
        _state("1 KiB", window=1),
        run_one_in_flight,
        (*(name for name in RATES if name != "delivery_p99_ms"), "raw_sync_p50_ms"),
    ),
    Scenario(
        "one-acked",
        "one message in flight, its consumer acknowledging each",
        _state("1 KiB", "manual acks, single", window=1),
        partial(run_plain, body_bytes=1024, window=1, ack_every=1),
        RATES,
    ),
    Scenario(
        "transient",
        "transient messages without acks",
        f"1 KiB, delivery mode 1, no confirms, no_ack; undelivered at most {TRANSIENT_WINDOW}",
        run_transient,
        tuple(name for name in RATES if not name.startswith("confirm")),
    ),
)
