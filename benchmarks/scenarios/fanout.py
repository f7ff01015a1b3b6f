"""One publisher whose messages all go to ten queues, each of them consumed."""

from __future__ import annotations

from functools import partial

from benchmarks.brokers import Broker
from benchmarks.flow import Figures, Flow, Share, Topology, fresh_name, run_flow
from benchmarks.load import ConsumerPlan, PublisherPlan
from benchmarks.scenarios.scenario import Scenario, Settings
from benchmarks.scenarios.steady import (
    ACK_EVERY,
    PREFETCH,
    RATES,
    TOPIC_KEYS,
    TOPIC_PATTERNS,
    WINDOW,
)
from benchmarks.traffic import Traffic

QUEUES = 10


def run_copies(
    broker: Broker,
    settings: Settings,
    *,
    exchange_type: str,
    keys: tuple[str, ...],
    patterns: tuple[str, ...],
) -> Figures:
    """Every message goes to every queue; the rate is that of deliveries."""
    exchange = fresh_name(exchange_type)
    queues = tuple(fresh_name("copy") for _ in range(QUEUES))
    flow = Flow(
        publishers=(PublisherPlan(Traffic(exchange, keys, 1024), WINDOW),),
        consumers=tuple(ConsumerPlan(queue, PREFETCH, ACK_EVERY) for queue in queues),
        topology=Topology(queues, exchange, exchange_type, patterns),
        sources=(Share(0),) * QUEUES,
    )
    return run_flow(broker, flow, settings.warm_up_s, settings.seconds)


STATE = (
    f"1 KiB, persistent, confirms (window {WINDOW}), manual acks, multiple, every {ACK_EVERY}, "
    f"prefetch {PREFETCH} each; deliveries count"
)

SCENARIOS = (
    Scenario(
        "fanout",
        f"fan-out to {QUEUES} queues",
        STATE,
        partial(run_copies, exchange_type="fanout", keys=("",), patterns=("",)),
        RATES,
    ),
    Scenario(
        "topic",
        f"topic exchange to {QUEUES} queues, {len(TOPIC_KEYS)} keys, 4 patterns a queue",
        STATE,
        partial(run_copies, exchange_type="topic", keys=TOPIC_KEYS, patterns=TOPIC_PATTERNS),
        RATES,
    ),
)
