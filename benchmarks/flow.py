"""One load on one broker: sets the queues up, runs the processes, checks the counts, computes.

Promises that a figure is only given for a run in which every published message was confirmed,
delivered and acknowledged, no more and no less, and that the broker is left as it was found.
"""

from __future__ import annotations

import multiprocessing
import secrets
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Any

from benchmarks import load, wire
from benchmarks.brokers import Broker
from benchmarks.measure import Progress, Span, latencies, quantile_ms, rate
from benchmarks.traffic import Traffic

Figures = dict[str, float]

# A load process that is connecting or finishing its work must answer within this time.
ANSWER_TIMEOUT_S = 300.0


class LoadFailed(Exception):
    """A run that gives no figures: messages lost or surplus, or a broker that refused something."""


@dataclass(frozen=True, slots=True)
class Topology:
    """What the load runs through.

    Attributes:
        queues: names of durable queues.
        exchange: a durable exchange, empty for none.
        exchange_type: its type.
        binding_keys: each queue is bound with each of them.
        queue_type: the type of the queues.
        arguments: further arguments of the queues.
        exchange_arguments: arguments of the exchange.
    """

    queues: tuple[str, ...]
    exchange: str = ""
    exchange_type: str = "topic"
    binding_keys: tuple[str, ...] = ()
    queue_type: str = "classic"
    arguments: Mapping[str, wire.Value] = field(default_factory=dict)
    exchange_arguments: Mapping[str, wire.Value] = field(default_factory=dict)


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
        LoadFailed: there are more or fewer messages in them than there have to be. Streams keep
            theirs, and are not looked at.
    """
    found = {}
    run = Declared()
    try:
        with wire.Connection(address) as connection:
            if topology.exchange:
                connection.declare_exchange(
                    topology.exchange, topology.exchange_type, topology.exchange_arguments
                )
            for queue in topology.queues:
                arguments = {"x-queue-type": topology.queue_type, **topology.arguments}
                connection.declare_queue(queue, arguments=arguments)
                for key in topology.binding_keys:
                    connection.bind_queue(queue, topology.exchange, key)
        yield run
    finally:
        with wire.Connection(address) as connection:
            found = {queue: connection.delete_queue(queue) for queue in topology.queues}
            if topology.exchange:
                connection.delete_exchange(topology.exchange)
    if topology.queue_type != "stream" and sum(found.values()) != run.left:
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


def expect_ready(process: LoadProcess) -> None:
    answer = process.receive()
    assert answer == load.READY, answer


def publish(
    broker: Broker, plans: Sequence[load.PublisherPlan], seconds: float | None = None
) -> load.Report[load.Published]:
    """Publish alone, for a time or until the plans' counts are reached; all is confirmed then.

    Raises:
        LoadFailed: not all was confirmed.
    """
    process = LoadProcess(load.publish, broker.address, plans, None)
    try:
        expect_ready(process)
        process.send(load.GO)
        if seconds is not None:
            time.sleep(seconds)
            process.send(load.STOP)
        report: load.Report[load.Published] = process.receive()
    finally:
        process.end()
    check_confirmed(report.work)
    return report


def fill(broker: Broker, traffic: Traffic, window: int, messages: int) -> Figures:
    """Publish so many messages with confirms; all are confirmed when this returns.

    Raises:
        LoadFailed: not all was confirmed.
    """
    plan = load.PublisherPlan(traffic, window, messages_max=messages)
    before = broker.cpu_s()
    report = publish(broker, (plan,))
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


class Running:
    """A flow that goes on until it is stopped.

    Attributes:
        others: messages that others published to its queues, where nobody consumes them.
    """

    def __init__(self, flow: Flow, publishing: LoadProcess, consuming: LoadProcess) -> None:
        self.others = 0
        self._flow = flow
        self._publishing = publishing
        self._consuming = consuming
        self._sent: load.Report[load.Published] | None = None
        self._taken: load.Report[load.Delivered] | None = None

    def start(self) -> None:
        """Consume, then publish."""
        self._consuming.send(load.GO)
        expect_ready(self._consuming)
        self._publishing.send(load.GO)

    def stop(self) -> None:
        """Publish no more, and wait until all that was published is confirmed and delivered.

        Raises:
            LoadFailed: not all was, or more was delivered.
        """
        self._publishing.send(load.STOP)
        self.finish()

    def finish(self) -> None:
        """Wait until all is published that the plans say, and confirmed and delivered.

        Raises:
            LoadFailed: not all was, or more was delivered.
        """
        sources = self._flow.sources
        sent: load.Report[load.Published] = self._publishing.receive()
        expected = [source.of_count(sent.work[source.publisher].begun.count) for source in sources]
        self._consuming.send(expected)
        taken: load.Report[load.Delivered] = self._consuming.receive()
        for plan, published in zip(self._flow.publishers, sent.work, strict=True):
            if plan.confirms:
                check_confirmed([published])
        delivered = [one.delivered.count for one in taken.work]
        if delivered != expected:
            raise LoadFailed(f"{expected} published, {delivered} delivered")
        self._sent, self._taken = sent, taken

    @property
    def published(self) -> int:
        """How many messages were published in all, once it is stopped."""
        assert self._sent is not None, "it is stopped"
        return sum(one.begun.count for one in self._sent.work)

    @property
    def spans(self) -> tuple[Span, Span]:
        """From the first publish to the last, and from the first delivery to the last."""
        assert self._sent is not None and self._taken is not None, "it is stopped"
        begun = [one.begun.times_ns for one in self._sent.work]
        done = [one.delivered.times_ns for one in self._taken.work]
        published, delivered = (
            Span(min(times[0] for times in columns), max(times[-1] for times in columns))
            for columns in (begun, done)
        )
        return published, delivered

    def figures(self, span: Span) -> Figures:
        """Rates, latencies and the cost of the load within a span, once it is stopped."""
        assert self._sent is not None and self._taken is not None, "it is stopped"
        return flow_figures(self._flow, self._sent, self._taken, span)


@contextmanager
def running(broker: Broker, flow: Flow) -> Iterator[Running]:
    """The processes of a flow, connected, and its queues, which are deleted at the end.

    Raises:
        LoadFailed: more or fewer messages are left in the queues than have to be.
    """
    with (
        declared(broker.address, flow.topology) as queues,
        _processes(broker, flow) as (publishing, consuming),
    ):
        run = Running(flow, publishing, consuming)
        yield run
        if not flow.consumers:
            queues.left = run.published + run.others


def run_flow(broker: Broker, flow: Flow, warm_up_s: float, seconds: float) -> Figures:
    """Run a flow for a time and return its figures.

    Raises:
        LoadFailed: see there.
    """
    with running(broker, flow) as run:
        run.start()
        time.sleep(warm_up_s)
        start_ns, before = time.monotonic_ns(), broker.cpu_s()
        time.sleep(seconds)
        span, after = Span(start_ns, time.monotonic_ns()), broker.cpu_s()
        run.stop()
    figures = run.figures(span)
    figures |= cpu_figures(before, after, figures["rate"] * span.seconds)
    if before:
        figures["broker_cpu_share"] = (after["broker"] - before["broker"]) / span.seconds
    return figures


def check_confirmed(work: Sequence[load.Published]) -> None:
    """All published messages are confirmed, or LoadFailed is raised."""
    for one in work:
        if one.confirmed.count != one.begun.count:
            raise LoadFailed(f"{one.begun.count} published, {one.confirmed.count} confirmed")


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
        figures["delivery_max_ms"] = quantile_ms(samples, 1.0)
    return figures
