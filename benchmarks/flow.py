"""One load on one broker: sets the queues up, runs the processes, checks the counts, computes.

Promises that a figure is only given for a run in which every published message was confirmed,
delivered and acknowledged, no more and no less, and that the broker is left as it was found.
"""

from __future__ import annotations

import multiprocessing
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

from benchmarks import load, wire
from benchmarks.brokers import Broker
from benchmarks.measure import Span, latencies, quantile_ms, rate

Figures = dict[str, float]

# A load process that is connecting or finishing its work must answer within this time.
ANSWER_TIMEOUT_S = 300.0


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


@contextmanager
def declared(address: wire.Address, topology: Topology, drained: bool = True) -> Iterator[None]:
    """The queues of a run, deleted at its end.

    Raises:
        LoadFailed: with `drained`, when a queue is not empty at the end.
    """
    left = {}
    try:
        with wire.Connection(address) as connection:
            if topology.exchange:
                connection.declare_exchange(topology.exchange, topology.exchange_type)
            for queue in topology.queues:
                connection.declare_queue(queue)
                for key in topology.binding_keys:
                    connection.bind_queue(queue, topology.exchange, key)
        yield
    finally:
        with wire.Connection(address) as connection:
            left = {queue: connection.delete_queue(queue) for queue in topology.queues}
            if topology.exchange:
                connection.delete_exchange(topology.exchange)
    if drained and any(left.values()):
        raise LoadFailed(f"messages left in queues that should be empty: {left}")


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
class Flow:
    """A load with publishers and consumers that run at the same time.

    Attributes:
        publishers: one process for all of them.
        consumers: one process for all of them.
        topology: the queues; consumer i takes from the queue its plan names.
        sources: for each consumer the publishers whose messages it gets: all messages of one.
        credit: the only consumer moves the window of the only publisher.
    """

    publishers: tuple[load.PublisherPlan, ...]
    consumers: tuple[load.ConsumerPlan, ...]
    topology: Topology
    sources: tuple[int, ...]
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


def run_flow(broker: Broker, flow: Flow, warm_up_s: float, seconds: float) -> Figures:
    """Run a flow and return its figures.

    Raises:
        LoadFailed: see there.
    """
    with declared(broker.address, flow.topology), _processes(broker, flow) as processes:
        publishing, consuming = processes
        begin_ns = time.monotonic_ns()
        span = Span(begin_ns + int(warm_up_s * 1e9), begin_ns + int((warm_up_s + seconds) * 1e9))
        go = load.Go(span.stop_ns)
        consuming.send(go)
        expect_ready(consuming)
        publishing.send(go)
        time.sleep(warm_up_s)
        broker_cpu_s = broker.cpu_s()
        time.sleep(seconds)
        broker_cpu_after_s = broker.cpu_s()
        sent: load.Report[load.Published] = publishing.receive()
        consuming.send([sent.work[source].begun.count for source in flow.sources])
        taken: load.Report[load.Delivered] = consuming.receive()
    check_counts(flow, sent.work, taken.work)
    figures = flow_figures(flow, sent, taken, span)
    if broker_cpu_s is not None and broker_cpu_after_s is not None:
        figures["broker_cpu_share"] = (broker_cpu_after_s - broker_cpu_s) / seconds
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
        if delivered.delivered.count != sent[source].begun.count:
            raise LoadFailed(
                f"{sent[source].begun.count} published, {delivered.delivered.count} delivered"
            )


def flow_figures(
    flow: Flow,
    sent: load.Report[load.Published],
    taken: load.Report[load.Delivered],
    span: Span,
) -> Figures:
    """Rates, latencies and the cost of the load."""
    published = sum(one.begun.count for one in sent.work)
    delivered = sum(one.delivered.count for one in taken.work)
    figures = {
        "rate": rate((one.delivered for one in taken.work), span),
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
        samples += latencies(sent.work[source].begun, two.delivered, span)
    if samples:
        figures["delivery_p50_ms"] = quantile_ms(samples, 0.5)
        figures["delivery_p99_ms"] = quantile_ms(samples, 0.99)
    return figures
