"""Messages with times of their own and of their queue, in any order, against a model that is a list.

At each quiet point the broker has ready exactly what has not expired, in its order; what is out is
not touched; and a get that comes before the broker has looked at its timers gets nothing expired.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties
from qlog.server.broker.queues.type import QueueType
from tests.server.broker.support import Bench, Peer, make

steps_ms = st.sampled_from([1, 499, 500, 1000, 1500, 4000])


@dataclass
class Message:
    number: int
    came_ms: int
    own_ms: int | None
    out: bool = False

    def expires(self, ttl_ms: int | None) -> float:
        times = [time_ms for time_ms in (self.own_ms, ttl_ms) if time_ms is not None]
        return self.came_ms + min(times) if times else float("inf")


class ExpiryMachine(RuleBasedStateMachine):
    """One queue, one client that gets messages and gives them back."""

    dead_letters = False

    @initialize(dead_letters=st.booleans())
    def start(self, dead_letters: bool) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.bench = Bench(Path(self.directory.name) / "data")
        self.dead_letters = dead_letters
        self.messages: list[Message] = []  # in the order of the queue
        self.tags: dict[int, Message] = {}
        self.expired: set[int] = set()
        self.ttl_ms: int | None = None
        self.next_number = 0
        self.peer = Peer(self.bench)
        dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
        self.peer.declare("q", arguments=dead if dead_letters else {})
        self.peer.declare("dead")

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.close()
            self.directory.cleanup()

    @property
    def queue(self) -> QueueType:
        return self.bench.broker.vhosts["/"].queues["q"]

    def bury(self) -> None:
        """The model loses what has expired and is not out."""
        now_ms = self.bench.now_ms
        gone = [
            message
            for message in self.messages
            if not message.out and message.expires(self.ttl_ms) <= now_ms
        ]
        self.expired.update(message.number for message in gone)
        self.messages = [message for message in self.messages if message not in gone]

    def quiet(self) -> None:
        """Timers, jobs and the disk have done what they have to do by now."""
        self.bench.now_s += 1e-6  # times are binary fractions
        self.bench.pass_ms(0)
        for _ in range(3):
            self.bench.disk()
            self.bench.pass_ms(0)
        self.bury()

    @rule(
        own_ms=st.sampled_from([None, 0, 500, 2000, 5000]),
        count=st.integers(min_value=1, max_value=5),
    )
    def publish(self, own_ms: int | None, count: int) -> None:
        expiration = None if own_ms is None else str(own_ms)
        properties = Properties(delivery_mode=2, expiration=expiration)
        numbers = range(self.next_number, self.next_number + count)
        self.next_number += count
        self.peer.publish(1, "q", *[b"%d" % number for number in numbers], properties=properties)
        self.messages += (Message(number, self.bench.now_ms, own_ms) for number in numbers)
        self.quiet()

    @rule(late_ms=st.sampled_from([0, 0, 500, 3000]))
    def get(self, late_ms: int) -> None:
        self.bench.now_ms += late_ms  # no timer has been asked since
        self.bury()
        self.peer.send(1, make(spec.BasicGet, queue="q"))
        (said,) = self.peer.take()
        ready = [message for message in self.messages if not message.out]
        if isinstance(said.method, spec.BasicGetOk):
            assert said.body == b"%d" % ready[0].number
            ready[0].out = True
            self.tags[said.method.delivery_tag] = ready[0]
        else:
            assert not ready
        self.bench.now_s += late_ms / 1000
        self.quiet()

    @precondition(lambda self: self.tags)
    @rule(data=st.data(), requeue=st.sampled_from([True, True, False]))
    def settle(self, data: st.DataObject, requeue: bool) -> None:
        tag = data.draw(st.sampled_from(sorted(self.tags)))
        message = self.tags.pop(tag)
        message.out = False
        if requeue:
            self.peer.send(1, make(spec.BasicReject, delivery_tag=tag, requeue=True))
        else:
            self.messages.remove(message)
            self.peer.send(1, make(spec.BasicAck, delivery_tag=tag))
        self.quiet()

    @rule(milliseconds=steps_ms)
    def time_passes(self, milliseconds: int) -> None:
        self.bench.pass_ms(milliseconds)
        self.quiet()

    @rule(ttl_ms=st.sampled_from([None, 1000, 3000]))
    def set_ttl(self, ttl_ms: int | None) -> None:
        if ttl_ms == self.ttl_ms:
            return
        operations = self.bench.broker.operations
        vhost = operations.vhost("/")
        if ttl_ms is None:
            operations.delete_policy(vhost, "policy", "ttl")
        else:
            definition = {"message-ttl": ttl_ms}
            operations.set_policy(vhost, "policy", "ttl", pattern="^q$", definition=definition)
        self.ttl_ms = ttl_ms
        self.quiet()

    @precondition(lambda self: self.messages)
    @rule(down_ms=steps_ms)
    def restart(self, down_ms: int) -> None:
        """Time goes on while the broker is down; what was out comes back."""
        self.bench.disk()
        self.bench.close()
        self.bench.now_ms += down_ms
        self.bench.open()
        self.peer = Peer(self.bench)
        self.tags.clear()
        for message in self.messages:
            message.out = False
        self.quiet()

    def bodies(self, name: str) -> list[bytes]:
        """What is ready in a queue, looked at."""
        queue = self.bench.broker.vhosts["/"].queues[name]
        found: list[bytes] = []
        for backlog in queue.backlogs:  # type: ignore[attr-defined]
            at = 0
            while (taken := backlog.peek(at, 100)) is not None:
                found += taken.bodies
                at = taken.first_qseq + len(taken.bodies)
        return found

    @invariant()
    def ready_is_what_has_not_expired(self) -> None:
        if not hasattr(self, "bench"):
            return
        ready = [b"%d" % message.number for message in self.messages if not message.out]
        assert self.bodies("q") == ready
        assert self.queue.ready == len(ready)
        assert self.queue.unacked == len(self.messages) - len(ready)
        expired = [b"%d" % number for number in self.expired] if self.dead_letters else []
        assert sorted(self.bodies("dead")) == sorted(expired)


TestExpiryMachine = ExpiryMachine.TestCase
TestExpiryMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
