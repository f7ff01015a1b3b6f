"""Those who suffer when a broker is busy with somebody else: a bystander, and one that asks.

The bystander publishes to a queue of its own with one message in flight. The one that asks sends
a question that needs no disk (basic.qos) every two milliseconds, whether or not the last one was
answered: how long the answer takes is how long the loop of a qlog was away. Both are processes of
their own, so that nothing but the broker and the processors delay them.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe

from benchmarks import load, wire
from benchmarks.brokers import Broker
from benchmarks.flow import (
    Figures,
    LoadProcess,
    Topology,
    declared,
    expect_ready,
    fresh_name,
)
from benchmarks.load import GO, READY, STOP, Meter, Published, guarded
from benchmarks.measure import Span, overlapping, quantile_ms, rate
from benchmarks.traffic import Traffic

QUESTION_EVERY_NS = 2_000_000
QUANTILES = (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1.0))
QUESTION = wire.method_frame(wire.BASIC_QOS, struct.pack(">IHB", 0, 1, 0))
ANSWER = wire.method_frame(wire.BASIC_QOS_OK)


@dataclass(slots=True)
class Beside:
    """What those beside saw; known once they are stopped."""

    bystander: LoadProcess
    asking: LoadProcess
    confirms: Published | None = None
    answers: Published | None = None

    def stop(self) -> None:
        """Let both end.

        Raises:
            LoadFailed: one of them failed, or was left without a confirm.
        """
        for process in (self.bystander, self.asking):
            process.send(STOP)
        (self.confirms,) = self.bystander.receive().work
        (self.answers,) = self.asking.receive().work

    def figures(self, span: Span) -> Figures:
        """How long confirms and answers took that were waited for within a span, if any were."""
        assert self.confirms is not None and self.answers is not None, "they are stopped"
        figures = {"bystander_rate": rate((self.confirms.confirmed,), span)}
        for name, seen in (("confirm", self.confirms), ("turn", self.answers)):
            samples = overlapping(seen.begun, seen.confirmed, span)
            for quantile, fraction in QUANTILES if samples else ():
                figures[f"{name}_{quantile}_ms"] = quantile_ms(samples, fraction)
        return figures


@contextmanager
def beside(broker: Broker) -> Iterator[Beside]:
    """A bystander and one that asks, from when the body begins until `stop`."""
    queue = fresh_name("bystander")
    plan = load.PublisherPlan(Traffic("", (queue,), 1024), 1)
    with ExitStack() as stack:
        own = stack.enter_context(declared(broker.address, Topology((queue,))))
        bystander = LoadProcess(load.publish, broker.address, (plan,), None)
        stack.callback(bystander.end)
        asking = LoadProcess(ask, broker.address)
        stack.callback(asking.end)
        for process in (bystander, asking):
            expect_ready(process)
            process.send(GO)
        seen = Beside(bystander, asking)
        yield seen
        assert seen.confirms is not None, "they are stopped"
        own.left = seen.confirms.begun.count


def ask(control: Pipe, address: wire.Address) -> None:
    """The main function of a process that asks; its Report has questions as messages."""
    guarded(control, lambda: _ask(control, address))


def _ask(control: Pipe, address: wire.Address) -> None:
    connection = wire.Connection(address)
    result = Published()
    asked = answered = 0
    unread = b""
    control.send(READY)
    assert control.recv() == GO
    meter = Meter()
    next_ns = time.monotonic_ns()
    stopped = False
    while not stopped or answered < asked:
        now_ns = time.monotonic_ns()
        if not stopped and now_ns >= next_ns:
            asked += 1
            result.begun.note(now_ns, asked)
            connection.socket.sendall(QUESTION)
            # What could not be asked in time is not asked later.
            next_ns = max(next_ns + QUESTION_EVERY_NS, now_ns)
        wait_s = load.STALL_S if stopped else max(0, next_ns - time.monotonic_ns()) / 1e9
        ready, _, _ = select.select([connection.socket.fileno(), control.fileno()], [], [], wait_s)
        if stopped and not ready:
            raise wire.Refused(f"no answer for {load.STALL_S:.0f} s")
        if control.fileno() in ready:
            assert control.recv() == STOP
            stopped = True
        if connection.socket.fileno() in ready:
            data = connection.socket.recv(65536)
            if not data:
                raise wire.Refused("the broker hung up on the one that asks")
            # A broker with Nagle's algorithm would hold the next answer back until this one is
            # acknowledged, which the kernel delays by 40 ms; it forgets the option again.
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            unread += data
            count, rest = divmod(len(unread), len(ANSWER))
            if not unread.startswith(ANSWER * count):
                raise wire.Refused("something else than an answer")
            answered += count
            if count:
                result.confirmed.note(time.monotonic_ns(), answered)
            unread = unread[len(unread) - rest :]
    report = meter.report([result])
    connection.close()
    control.send(report)
