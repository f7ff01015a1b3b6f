"""Delayed messages against a model, over starts and kills: none is lost, early, or out of order."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties
from qlog.server.broker.features.delayed import DelayedMessage
from tests.server.broker.support import Bench, Peer, make

DELAYS_MS = st.integers(1, 3000)


class DelayedMachine(RuleBasedStateMachine):
    """`waiting`: when each body is due; `unsure`: what a kill may take back, or bring again.

    A body is a number, in the order of the publishes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="qlog-delayed-"))
        self.waiting: dict[int, int] = {}
        self.order: dict[int, int] = {}  # by which messages of one time are released
        self.unsure: set[int] = set()
        self.published = 0

    @initialize()
    def declare(self) -> None:
        self.bench = Bench(self.root / "data")
        self.peer = Peer(self.bench)
        declare = make(
            spec.ExchangeDeclare,
            exchange="d",
            type="x-delayed-message",
            durable=True,
            arguments={"x-delayed-type": "fanout"},
        )
        self.peer.ask(1, declare, spec.ExchangeDeclareOk)
        self.peer.declare("q")
        self.peer.ask(1, make(spec.QueueBind, queue="q", exchange="d"), spec.QueueBindOk)

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.close()
        shutil.rmtree(self.root)

    def listed(self) -> dict[int, DelayedMessage]:
        operations, vhost = self.bench.broker.operations, self.bench.broker.vhosts["/"]
        return {int(each.body): each for each in operations.delayed_messages(vhost, "d")}

    def check(self) -> None:
        listed = self.listed()
        assert {body: each.due_ms for body, each in listed.items()} == self.waiting

    @rule(delays_ms=st.lists(DELAYS_MS, min_size=1, max_size=40))
    def publish(self, delays_ms: list[int]) -> None:
        for delay_ms in delays_ms:
            number = self.published
            self.published += 1
            headers: Any = {"x-delay": delay_ms}
            properties = Properties(headers=headers, delivery_mode=2)
            self.peer.publish(1, "", b"%d" % number, exchange="d", properties=properties)
            self.waiting[number] = self.bench.now_ms + delay_ms
            self.order[number] = number
            self.unsure.add(number)
        self.check()

    @rule()
    def disk(self) -> None:
        self.bench.disk()
        self.bench.disk()  # a message ends after its copy is durable: with the next tick
        self.unsure.clear()

    @rule(ms=st.integers(0, 2000))
    def wait(self, ms: int) -> None:
        self.bench.pass_ms(ms)
        now_ms = self.bench.now_ms
        due = [number for number, due_ms in self.waiting.items() if due_ms <= now_ms]
        due.sort(key=lambda number: (self.waiting[number], self.order[number]))
        assert self.drained() == due
        for number in due:
            del self.waiting[number]
            self.unsure.add(number)
        self.check()

    def drained(self) -> list[int]:
        """What is in the queue; it is taken."""
        found: list[int] = []
        while True:
            self.peer.send(2, make(spec.BasicGet, queue="q", no_ack=True))
            said = self.peer.take()[-1]
            if said.body is None:
                return found
            found.append(int(said.body))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.waiting)))
        operations, vhost = self.bench.broker.operations, self.bench.broker.vhosts["/"]
        operations.cancel_delayed(vhost, "d", self.listed()[number].number)
        del self.waiting[number]
        self.unsure.add(number)
        self.check()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), delay_ms=DELAYS_MS)
    def reschedule(self, data: st.DataObject, delay_ms: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.waiting)))
        operations, vhost = self.bench.broker.operations, self.bench.broker.vhosts["/"]
        due_ms = self.bench.now_ms + delay_ms
        operations.reschedule_delayed(vhost, "d", self.listed()[number].number, due_ms)
        self.waiting[number] = due_ms
        self.order[number] = self.published
        self.published += 1
        self.unsure.add(number)
        self.check()

    @rule()
    def restart(self) -> None:
        self.bench.restart()
        self.unsure.clear()
        self.peer = Peer(self.bench)
        self.wait(0)

    @rule()
    def kill(self) -> None:
        """What was sure is there; what was not may be there in any state, even twice."""
        before = dict(self.waiting)
        self.bench.kill()
        self.bench.open()
        self.peer = Peer(self.bench)
        listed = self.listed()
        sure = {number: due for number, due in before.items() if number not in self.unsure}
        late = {number for number, due in sure.items() if due <= self.bench.now_ms}
        assert not late
        assert sure.items() <= {body: each.due_ms for body, each in listed.items()}.items()
        assert listed.keys() - sure.keys() <= self.unsure
        self.bench.settle()
        assert set(self.drained()) <= self.unsure
        self.bench.disk()
        self.unsure.clear()
        self.waiting = {body: each.due_ms for body, each in self.listed().items()}
        self.order = {body: each.number for body, each in self.listed().items()}
        self.published = max(self.published, *self.order.values(), 0) + 1

    @rule()
    def purge(self) -> None:
        operations, vhost = self.bench.broker.operations, self.bench.broker.vhosts["/"]
        assert operations.purge_delayed(vhost, "d").result() == len(self.waiting)
        self.unsure |= self.waiting.keys()
        self.waiting.clear()
        self.check()


DelayedMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestDelayed = DelayedMachine.TestCase
