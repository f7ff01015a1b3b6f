"""Nobody stops anybody: what a small client sees while another one does much at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from benchmarks import operations
from benchmarks.beside import QUESTION_EVERY_NS, beside
from benchmarks.brokers import Broker
from benchmarks.bulk import BulkClient, bulk_client
from benchmarks.flow import Figures
from benchmarks.measure import Span
from benchmarks.operations import Operation
from benchmarks.scenarios.scenario import Scenario, Settings

# Before the operation, so that those beside are at it; and after, for what a broker does behind.
SETTLE_S = 0.3
RANDOM_ACKS = 100_000
ALONE_MS = 3_000
SEEN = ("confirm_p50_ms", "confirm_p99_ms", "confirm_max_ms", "turn_max_ms")


def run_operation(
    broker: Broker, settings: Settings, *, operation: Operation, count: int
) -> Figures:
    """A bystander's confirms from the beginning of an operation until shortly after its end."""
    with bulk_client(broker.address) as client:
        steps = operation(client, settings.scaled(count))
        next(steps)
        with beside(broker) as seen:
            time.sleep(SETTLE_S)
            start_ns = time.monotonic_ns()
            _finish(steps)
            done_ns = time.monotonic_ns()
            time.sleep(SETTLE_S)
            span = Span(start_ns, time.monotonic_ns())
            seen.stop()
    return {"bulk_s": (done_ns - start_ns) / 1e9} | seen.figures(span)


def run_random_acks(broker: Broker, settings: Settings) -> Figures:
    """Acknowledge messages one by one in no order, with nobody beside."""
    count = settings.scaled(RANDOM_ACKS)
    with bulk_client(broker.address) as client:
        steps = operations.acks(client, count, order=operations.shuffled)
        next(steps)
        before, begun_s = broker.cpu_s(), time.monotonic()
        _finish(steps)
        passed_s, after = time.monotonic() - begun_s, broker.cpu_s()
    figures = {"ack_rate": count / passed_s}
    return figures | {
        f"ack_{name}_cpu_us": (after[name] - before[name]) / count * 1e6 for name in before
    }


def nothing(client: BulkClient, count: int) -> Iterator[None]:
    """Let so many milliseconds pass."""
    yield
    time.sleep(count / 1000)


def _finish(steps: Iterator[None]) -> None:
    """Do the operation that is prepared."""
    for _ in steps:
        raise AssertionError("an operation has one preparation")


def _holding(name: str, title: str, operation: Operation) -> tuple[str, str, Operation, int]:
    return name, title, operation, 100_000


# Name, what is done, how, and the number of things it is done with.
OPERATIONS: tuple[tuple[str, str, Operation, int], ...] = (
    _holding("acks", "single acks, oldest first", partial(operations.acks, order=operations.ascending)),
    _holding("acks-backwards", "single acks, newest first", partial(operations.acks, order=operations.descending)),
    _holding("acks-random", "single acks in random order", partial(operations.acks, order=operations.shuffled)),
    _holding("acks-multiple", "one ack for all", operations.ack_all),
    _holding("requeue", "one nack that gives all back", operations.nack_all),
    _holding("requeue-random", "single rejects in random order, giving back", operations.reject_each),
    _holding("dead-letters", "one nack that dead-letters all", operations.dead_letter_all),
    _holding("dropped-heads", "publishes to a queue of one message, the others dead-lettered", operations.drop_heads),
    _holding("requeue-close", "a channel that holds all is closed", operations.close_holding),
    _holding("requeue-cut", "a connection that holds all is cut", operations.cut_holding),
    _holding("gets", "basic.get, pipelined", operations.gets),
    _holding("purge", "a purge", operations.purge),
    _holding("delete-full", "a queue with all of them is deleted", operations.delete_full),
    _holding("tx-publishes", "publishes in one transaction", operations.commit_publishes),
    _holding("tx-acks", "single acks in one transaction", operations.commit_acks),
    _holding("tx-rollback", "publishes that are rolled back", operations.roll_back),
    _holding("fanout", "copies by a fanout exchange to 1,000 queues", operations.fanout),
    ("headers", "matches of 1,000 headers bindings by 3,000 messages", operations.headers, 30_000),
    ("stream", "messages of a stream, read from its start by 50 consumers", operations.read_stream, 10_000),
    ("declares", "queue.declare, pipelined", operations.declares, 2_000),
    ("deletes", "queue.delete, pipelined", operations.deletes, 2_000),
    ("binds", "queue.bind, pipelined", operations.binds, 5_000),
    ("unbinds", "queue.unbind, pipelined", operations.unbinds, 5_000),
    ("delete-bound-queue", "a queue with so many bindings is deleted", operations.delete_bound_queue, 30_000),
    ("delete-bound-exchange", "an exchange with so many bindings is deleted", operations.delete_bound_exchange, 30_000),
    ("channels", "channels with a consumer each, opened and closed", operations.channels, 2_000),
    ("connections", "connections, opened and cut", operations.connections, 500),
    ("uploads", "messages of 15 MiB at once", partial(operations.uploads, share=1), operations.UPLOADS),
    ("upload-cuts", "messages of 15 MiB at once, cut in the middle", partial(operations.uploads, share=0.5), operations.UPLOADS),
)  # fmt: skip

STATE = (
    "the bystander: 1 KiB, persistent, confirms, one message in flight, from the beginning until "
    f"{SETTLE_S} s after the end; answers: to basic.qos, asked for every "
    f"{QUESTION_EVERY_NS // 1_000_000} ms"
)

SCENARIOS = (
    Scenario(
        "random-acks",
        f"{RANDOM_ACKS:,} single acks in random order of what is outstanding",
        "64 B, persistent, manual acks, single, no prefetch limit",
        run_random_acks,
        ("ack_rate", "ack_broker_cpu_us", "ack_loop_cpu_us"),
    ),
    Scenario(
        "bystander-alone",
        f"a bystander beside {ALONE_MS:,} ms of nothing: what disk and machine are like",
        STATE,
        partial(run_operation, operation=nothing, count=ALONE_MS),
        ("bulk_s", *SEEN),
    ),
    *(
        Scenario(
            f"bystander-{name}",
            f"a bystander beside {count:,} × {title}",
            STATE,
            partial(run_operation, operation=operation, count=count),
            ("bulk_s", *SEEN),
        )
        for name, title, operation, count in OPERATIONS
    ),
)
