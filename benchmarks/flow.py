"""One load on one broker: sets the queues up, runs the processes, checks the counts, computes.

Promises that a figure is only given for a run in which every published message was confirmed,
delivered and acknowledged, no more and no less, and that the broker is left as it was found.
"""

from __future__ import annotations

import multiprocessing
import secrets
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

from benchmarks import load, wire
from benchmarks.brokers import Broker
from benchmarks.measure import Progress, Span, latencies, quantile_ms, rate
from benchmarks.traffic import Traffic

Figures = dict[str, float]

# A load process that is connecting or finishing its work must answer within this time.
ANSWER_TIMEOUT_S = 300.0
# Further off than any fill takes; a fill ends by its count.
NEVER_S = 3600.0


class LoadFailed(Exception):
    """A run that gives no figures: messages lost or surplus, or a broker that refused something."""


@dataclass(frozen=True, slots=True)
class Topology:
    """What the load runs through.

    Attributes:
        queues: names of durable classic queues.
        exchange: a durable exchange, empty for none.
        exchange_type: its type.
        binding_keys: each queue is bound with each of them.
    """

    queues: tuple[str, ...]
    exchange: str = ""
    exchange_type: str = "topic"
    binding_keys: tuple[str, ...] = ()


def fresh_name(purpose: str) -> str:
    """A name that no run before has used."""
    return f"benchmark.{purpose}.{secrets.token_hex(6)}"


@dataclass(slots=True)
class Declared:
    """The queues of a run; `left` says how many messages have to be in them at its end."""

    left: int = 0


@contextmanager
def declared(address: wire.Address, topology: Topology) -> Iterator[Declared]:
    """The queues of a run, deleted at its end.

    Raises:
        LoadFailed: there are more or fewer messages in them than there have to be.
    """
    found = {}
    run = Declared()
    try:
        with wire.Connection(address) as connection:
            if topology.exchange:
                connection.declare_exchange(topology.exchange, topology.exchange_type)
            for queue in topology.queues:
                connection.declare_queue(queue)
                for key in topology.binding_keys:
                    connection.bind_queue(queue, topology.exchange, key)
        yield run
    finally:
        with wire.Connection(address) as connection:
            found = {queue: connection.delete_queue(queue) for queue in topology.queues}
            if topology.exchange:
                connection.delete_exchange(topology.exchange)
    if sum(found.values()) != run.left:
        some = {queue: count for queue, count in found.items() if count}
        raise LoadFailed(f"{run.left} messages should be left in the queues: {some}")


class LoadProcess:
    """A load process and the pipe that drives it."""

    def __init__(self, main: Callable[..., None], *arguments: object) -> None:
        # A fresh interpreter: nothing of the harness is inherited but what is handed over.
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=main, args=(far, *arguments), daemon=True)
        self._process.start()
        far.close()

    def send(self, message: object) -> None:
        self._pipe.send(message)

    def receive(self) -> Any:
        """The next answer.

        Raises:
            LoadFailed: the process failed, ended or is silent.
        """
        if not self._pipe.poll(ANSWER_TIMEOUT_S):
            raise LoadFailed("a load process does not answer")
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise LoadFailed("a load process ended") from None
        if isinstance(answer, load.Failure):
            raise LoadFailed(answer.text)
        return answer

    def end(self) -> None:
        self._process.terminate()
        self._process.join()
        self._pipe.close()


@dataclass(frozen=True, slots=True)
class Share:
    """Which messages a consumer gets: every `of`-th of a publisher, from number `first` on."""

    publisher: int
    first: int = 0
    of: int = 1

    def of_count(self, count: int) -> int:
        """How many of the publisher's first `count` messages they are."""
        return max(0, -(-(count - self.first) // self.of))

    def of_progress(self, whole: Progress) -> Progress:
        """When they were published, from when the publisher's messages were."""
        if self.of == 1:
            return whole
        return Progress(whole.times_ns, array("q", map(self.of_count, whole.counts)))


@dataclass(frozen=True, slots=True)
class Flow:
    """A load with publishers and consumers that run at the same time.

    Without consumers what is published stays, and the rate is that of confirms.

    Attributes:
        publishers: one process for all of them.
        consumers: one process for all of them.
        topology: the queues; consumer i takes from the queue its plan names.
        sources: for each consumer the messages that it gets.
        credit: the only consumer moves the window of the only publisher.
    """

    publishers: tuple[load.PublisherPlan, ...]
    consumers: tuple[load.ConsumerPlan, ...]
    topology: Topology
    sources: tuple[Share, ...] = ()
    credit: bool = False


@contextmanager
def _processes(broker: Broker, flow: Flow) -> Iterator[tuple[LoadProcess, LoadProcess]]:
    with ExitStack() as stack:
        read_end: Pipe | None = None
        write_end: Pipe | None = None
        if flow.credit:
            read_end, write_end = multiprocessing.Pipe(duplex=False)
            stack.callback(read_end.close)
            stack.callback(write_end.close)
        consuming = LoadProcess(load.consume, broker.address, flow.consumers, write_end)
        stack.callback(consuming.end)
        publishing = LoadProcess(load.publish, broker.address, flow.publishers, read_end)
        stack.callback(publishing.end)
        for process in (consuming, publishing):
            expect_ready(process)
        yield publishing, consuming


def expect_ready(process: LoadProcess) -> None:
    answer = process.receive()
    assert answer == load.READY, answer


def publish(
    broker: Broker, plan: load.PublisherPlan, seconds: float
) -> load.Report[load.Published]:
    """Publish alone, until the plan's count is reached or the time is over; all is confirmed then.

    Raises:
        LoadFailed: not all was confirmed.
    """
    process = LoadProcess(load.publish, broker.address, (plan,), None)
    try:
        expect_ready(process)
        process.send(load.Go(time.monotonic_ns() + int(seconds * 1e9)))
        report: load.Report[load.Published] = process.receive()
    finally:
        process.end()
    begun, confirmed = report.work[0].begun, report.work[0].confirmed
    if confirmed.count != begun.count:
        raise LoadFailed(f"{begun.count} published, {confirmed.count} confirmed")
    return report


def fill(broker: Broker, traffic: Traffic, window: int, messages: int) -> Figures:
    """Publish so many messages with confirms; all are confirmed when this returns.

    Raises:
        LoadFailed: not all was confirmed.
    """
    plan = load.PublisherPlan(traffic, window, messages_max=messages)
    before = broker.cpu_s()
    report = publish(broker, plan, NEVER_S)
    spent = broker.cpu_s()
    work = report.work[0]
    span = Span(work.begun.times_ns[0], work.confirmed.times_ns[-1])
    samples = latencies(work.begun, work.confirmed, span, work.confirmed_early_ns)
    return {
        "rate": messages / span.seconds,
        "confirm_p50_ms": quantile_ms(samples, 0.5),
        "confirm_p99_ms": quantile_ms(samples, 0.99),
        "load_cpu_share": report.cpu_s / report.wall_s,
    } | cpu_figures(before, spent, messages)


def cpu_figures(before: dict[str, float], after: dict[str, float], messages: float) -> Figures:
    """The broker's processor time for each message, from two answers of `Broker.cpu_s`."""
    if not messages:
        return {}
    return {
        f"{name}_cpu_us": (after[name] - begun_s) / messages * 1e6
        for name, begun_s in before.items()
    }


def run_flow(broker: Broker, flow: Flow, warm_up_s: float, seconds: float) -> Figures:
    """Run a flow and return its figures.

    Raises:
        LoadFailed: see there.
    """
    with (
        declared(broker.address, flow.topology) as queues,
        _processes(broker, flow) as (publishing, consuming),
    ):
        begin_ns = time.monotonic_ns()
        span = Span(begin_ns + int(warm_up_s * 1e9), begin_ns + int((warm_up_s + seconds) * 1e9))
        go = load.Go(span.stop_ns)
        consuming.send(go)
        expect_ready(consuming)
        publishing.send(go)
        time.sleep(warm_up_s)
        before = broker.cpu_s()
        time.sleep(seconds)
        after = broker.cpu_s()
        sent: load.Report[load.Published] = publishing.receive()
        consuming.send(
            [source.of_count(sent.work[source.publisher].begun.count) for source in flow.sources]
        )
        taken: load.Report[load.Delivered] = consuming.receive()
        check_counts(flow, sent.work, taken.work)
        if not flow.consumers:
            queues.left = sum(one.begun.count for one in sent.work)
    figures = flow_figures(flow, sent, taken, span)
    figures |= cpu_figures(before, after, figures["rate"] * seconds)
    if before:
        figures["broker_cpu_share"] = (after["broker"] - before["broker"]) / seconds
    return figures


def check_counts(
    flow: Flow, sent: Sequence[load.Published], taken: Sequence[load.Delivered]
) -> None:
    """All published messages are confirmed and delivered, or LoadFailed is raised."""
    for plan, published in zip(flow.publishers, sent, strict=True):
        if plan.confirms and published.confirmed.count != published.begun.count:
            raise LoadFailed(
                f"{published.begun.count} published, {published.confirmed.count} confirmed"
            )
    for source, delivered in zip(flow.sources, taken, strict=True):
        expected = source.of_count(sent[source.publisher].begun.count)
        if delivered.delivered.count != expected:
            raise LoadFailed(f"{expected} published, {delivered.delivered.count} delivered")


def flow_figures(
    flow: Flow,
    sent: load.Report[load.Published],
    taken: load.Report[load.Delivered],
    span: Span,
) -> Figures:
    """Rates, latencies and the cost of the load."""
    published = sum(one.begun.count for one in sent.work)
    delivered = sum(one.delivered.count for one in taken.work)
    done = [one.delivered for one in taken.work] or [one.confirmed for one in sent.work]
    figures = {
        "rate": rate(done, span),
        "publish_rate": rate((one.begun for one in sent.work), span),
        "published": published,
        "load_cpu_share": sent.cpu_s / sent.wall_s + taken.cpu_s / taken.wall_s,
        "publisher_cpu_us": sent.cpu_s / max(1, published) * 1e6,
        "consumer_cpu_us": taken.cpu_s / max(1, delivered) * 1e6,
    }
    samples = []
    for plan, one in zip(flow.publishers, sent.work, strict=True):
        if plan.confirms:
            samples += latencies(one.begun, one.confirmed, span, one.confirmed_early_ns)
    if samples:
        figures["confirm_p50_ms"] = quantile_ms(samples, 0.5)
        figures["confirm_p99_ms"] = quantile_ms(samples, 0.99)
    samples = []
    for source, two in zip(flow.sources, taken.work, strict=True):
        begun = source.of_progress(sent.work[source.publisher].begun)
        samples += latencies(begun, two.delivered, span)
    if samples:
        figures["delivery_p50_ms"] = quantile_ms(samples, 0.5)
        figures["delivery_p99_ms"] = quantile_ms(samples, 0.99)
    return figures
