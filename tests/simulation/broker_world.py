"""A broker's core on a simulated disk beside a model of its queues: what leaves a queue, and crashes.

Clients publish, consume, acknowledge, reject and give back; messages expire, are dropped at a limit,
come back too often, and go to the queues of dead letters; the process or the power ends at any
operation of the disk, also while the broker starts. Checked after each start, and whenever all is
on the disk:

- what was confirmed, and was not acknowledged, is in its queue or in that of its dead letters: a
  message that is handed on is never in neither;
- what is there was published to that queue, or left it for a reason that it had; an acknowledgement
  that was synced holds;
- nobody gets a message whose time is over, however late the broker is, and it leaves;
- a message of a quorum queue came back at least as often as is on the disk, and at most as often as
  it did; none is delivered again that came back too often;
- a queue with a limit has no more ready messages than that;
- a message that is delayed waits until its time has come, and then comes: once, but for deliveries
  that are marked as repeated, and for those that a crash left both waiting and released.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Properties
from qlog.server.amqp.values import Table
from qlog.server.broker import due, removals
from qlog.server.broker.broker import Broker
from qlog.server.broker.channels import channel as channel_module
from qlog.server.broker.channels import unacked
from qlog.server.broker.features import dead_letter, delayed, expiry, overflow
from qlog.server.broker.features.dead_letter import PAUSE_S
from qlog.server.broker.features.expiry import OFFER_MS
from qlog.server.broker.queues import classic, dispatch, returns
from qlog.server.broker.queues.type import QueueType
from qlog.storage.errors import StorageError
from qlog.storage.store import Store
from tests.server.broker.support import Bench, Peer, make, message
from tests.simulation.disk import Crash, SimulatedDisk
from tests.simulation.world import Fate, Worker, hooked
from tests.storage.support import SMALL, abandon, ignore

LENGTH_MAX = 6
TTL_MS = 2000
DELIVERY_LIMIT = 2
NARROW_MAX = 3
PREFETCH = 4
HIGH_EVERY = 3  # every so-manieth message has a high priority
_TO_DEAD: Table = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
SOURCES: dict[str, Table] = {
    "limited": {**_TO_DEAD, "x-max-length": LENGTH_MAX},
    "timed": {**_TO_DEAD, "x-message-ttl": TTL_MS},
    "quorum": {**_TO_DEAD, "x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT},
    "insisting": {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "narrow",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    },
}
# What a broker does in steps of many it does in several steps in here.
_SMALL_STEPS: list[tuple[ModuleType, str, int]] = [
    (channel_module, "RUNS_AT_ONCE", 2),
    (delayed, "AT_ONCE", 2),
    (channel_module, "ACKS_AT_ONCE", 1),
    (classic, "SWEEP_STRETCHES", 2),
    (classic, "EXPIRED_MAX", 3),
    (dead_letter, "LETTERS_AT_ONCE", 2),
    (dead_letter, "BEHIND_COUNT", 12),
    (dispatch, "HAND_MAX", 2),
    (dispatch, "HAND_FROM_READY", 5),
    (due, "DUE_AT_ONCE", 2),
    (expiry, "PLACES_AT_ONCE", 2),
    (expiry, "_STALE", 2),
    (overflow, "HEADS_AT_ONCE", 2),
    (removals, "BINDINGS_AT_ONCE", 1),
    (returns, "WINDOW", 2),
    (unacked, "CHUNK_RUNS", 3),
]
# The exchange that delays, and the queue behind it.
LATER = "later"
LATE = "late"
TARGETS: dict[str, Table] = {
    LATE: {},
    "dead": {},
    "narrow": {"x-max-length": NARROW_MAX, "x-overflow": "reject-publish"},
}
QUEUES = {**SOURCES, **TARGETS}
NAMES = list(QUEUES)
PLACES = [*NAMES, LATER]


@dataclass(slots=True)
class Sent:
    """A message, as it should be."""

    number: int
    queue: str
    ends_ms: float  # when it expires
    confirmed: bool = False
    acked: bool = False  # a client has settled it, wherever it was
    acked_safe: bool = False  # and that is on the disk
    rejected: bool = False
    left: bool = False  # it was, and no crash has undone that
    twice: bool = False  # a crash left it in two places: an acknowledgement is of one of them
    # How often it came back: what is on the disk at least, what is so in this process.
    safe: int = 0
    low: int = 0
    high: int = 0
    due_ms: float = 0  # when it is released, if it is delayed
    came: bool = False  # it was delivered since this process began
    too_often: bool = False  # it may have come back more often than the limit allows
    deleted: bool = False  # its queue was: the message is gone, unless it had left before

    def came_back(self, *, surely: bool = True) -> None:
        """It is ready again. Not `surely`: its queue may have been gone."""
        self.too_often |= self.high + 1 > DELIVERY_LIMIT
        self.low = min(self.low + surely, DELIVERY_LIMIT)
        self.high = min(self.high + 1, DELIVERY_LIMIT)

    @property
    def target(self) -> str:
        if self.queue == LATER:
            return LATE
        return str(QUEUES[self.queue]["x-dead-letter-routing-key"])


@dataclass(frozen=True, slots=True)
class Held:
    """A delivery that is out."""

    channel: int
    tag: int
    queue: str
    number: int


@contextmanager
def small_broker_steps() -> Iterator[None]:
    """See `_SMALL_STEPS`."""
    with ExitStack() as stack:
        for module, name, value in _SMALL_STEPS:
            stack.enter_context(patch.object(module, name, value))
        yield


class BrokerWorld(Bench):
    """See the head of this file. `base`: a directory of its own, better in memory."""

    def __init__(self, base: Path, choice: random.Random) -> None:
        (base / "disk").mkdir(parents=True)
        self.medium = SimulatedDisk(base / "disk")
        self.medium.use(random.Random(choice.getrandbits(32)))
        self.counts: Counter[str] = Counter()
        self.fate = Fate()
        self.sent: dict[int, Sent] = {}
        self.held: list[Held] = []
        self._step_s = choice.choice((0.0, 1.0))  # a slice of a job is all of it, or one step
        self._slices_s = 0.0
        super().__init__(self.medium.root)
        self.now_ms = 1_700_000_000_000

    # -- starting

    def open(self) -> None:
        """The store and the broker, without a turn."""
        self.workers = []
        with hooked(self.medium):
            self.store: Store[Envelope] = Store.open(
                self.medium.root,
                decode=Envelope.unpack,
                notify=ignore,
                settings=SMALL,
                disk=self.medium,
                new_worker=self._new_worker,
            )
        self.broker = Broker(
            self.store, self.settings, now_s=lambda: self.now_s, now_ms=lambda: self.now_ms
        )
        self.broker.services.delivery.time.clock_s = lambda: 0.0
        self.broker.services.jobs.clock_s = self._slice_clock

    def _slice_clock(self) -> float:
        self._slices_s += self._step_s
        return self._slices_s

    def _new_worker(self, name: str, notify: Callable[[], None]) -> Worker:
        self.workers.append(Worker())
        return self.workers[-1]  # type: ignore[return-value]

    def begin(self) -> None:
        """Clients, and their queues."""
        self.disk()
        self._connect()

    def _connect(self) -> None:
        self.publisher = Peer(self)
        self.publisher.send(1, make(spec.ConfirmSelect))
        self.publisher.take()
        self.tags: dict[int, int] = {}  # of publishes that are not confirmed yet
        self.last_tag = 0
        self.chief = Peer(self)
        self.deleting: list[str] = []  # queues whose deletion was not answered yet
        for name, arguments in QUEUES.items():
            if name not in self.broker.vhosts["/"].queues:  # it was about to be declared again
                self.chief.declare(name, arguments=arguments)
        if LATER not in self.broker.vhosts["/"].routing:
            delaying: Table = {"x-delayed-type": "direct"}
            declare = make(
                spec.ExchangeDeclare,
                exchange=LATER,
                type="x-delayed-message",
                durable=True,
                arguments=delaying,
            )
            self.chief.ask(1, declare, spec.ExchangeDeclareOk)
        bind = make(spec.QueueBind, queue=LATE, exchange=LATER, routing_key=LATE)
        self.chief.ask(1, bind, spec.QueueBindOk)
        self._connect_taker()

    def _connect_taker(self) -> None:
        self.taker = Peer(self)
        self.held = []
        self.consuming: set[str] = set()
        for channel in range(1, len(NAMES) + 1):
            self.taker.send(channel, make(spec.BasicQos, prefetch_count=PREFETCH))
        self.taker.take()

    def queue(self, name: str) -> QueueType:
        return self.broker.vhosts["/"].queues[name]

    def perform(self, step: Callable[..., None], *arguments: Any) -> None:
        """One step; if the process dies in it, what follows up to a sound start."""
        self.counts[step.__name__] += 1
        try:
            step(*arguments)
            self._hear()
        except Crash:
            self.restart()

    def end(self) -> None:
        """Let go of everything."""
        abandon(self.store)  # type: ignore[arg-type]

    # -- what clients do

    def publish(self, name: str, count: int, own_ms: int | None) -> None:
        if name in self.deleting:
            return
        bodies = []
        ttl_ms = TTL_MS if name == "timed" else None
        times = [time_ms for time_ms in (ttl_ms, own_ms) if time_ms is not None]
        for _ in range(count):
            number = len(self.sent)
            ends_ms = self.now_ms + min(times) if times else float("inf")
            self.sent[number] = Sent(number, name, ends_ms)
            self.last_tag += 1
            self.tags[self.last_tag] = number
            bodies.append(b"%d" % number)
        self.counts["messages"] += count
        expiration = None if own_ms is None else str(own_ms)
        frames = []
        for body in bodies:
            priority = 9 if int(body) % HIGH_EVERY == 0 else None
            properties = Properties(delivery_mode=2, expiration=expiration, priority=priority)
            frames.append(message(1, name, body, properties=properties))
        self.publisher.send(1, *frames)

    def publish_later(self, count: int, delay_ms: int) -> None:
        """Messages that are to come when so much time has passed."""
        frames = []
        for _ in range(count):
            number = len(self.sent)
            self.sent[number] = Sent(number, LATER, math.inf, due_ms=self.now_ms + delay_ms)
            self.last_tag += 1
            self.tags[self.last_tag] = number
            properties = Properties(headers={"x-delay": delay_ms}, delivery_mode=2)
            body = b"%d" % number
            frames.append(message(1, LATE, body, exchange=LATER, properties=properties))
        self.counts["delayed messages"] += count
        self.publisher.send(1, *frames)

    def consume(self, name: str) -> None:
        """A consumer comes, or goes: messages are out until they are settled."""
        if name in self.deleting:
            return
        channel = NAMES.index(name) + 1
        if name in self.consuming:
            self.consuming.discard(name)
            self.taker.send(channel, make(spec.BasicCancel, consumer_tag=name))
        else:
            self.consuming.add(name)
            self.taker.send(channel, make(spec.BasicConsume, queue=name, consumer_tag=name))

    def settle_some(self, at: float, verdict: str, multiple: bool) -> None:
        """One delivery, or all of a channel up to it. `verdict`: ack, reject, or requeue."""
        settled = [held for held in self.held if held.queue not in self.deleting]
        if not settled:
            return
        last = settled[int(at * len(settled))]
        if last.queue in TARGETS:
            verdict = "ack"
        for held in list(self.held):
            if held == last or (multiple and held.channel == last.channel and held.tag <= last.tag):
                self.held.remove(held)
                one = self.sent[held.number]
                if verdict == "ack":
                    one.acked = True
                elif verdict == "reject":
                    one.rejected = one.left = True
                else:
                    one.came_back()
        kind = spec.BasicAck if verdict == "ack" else spec.BasicNack
        options = {} if verdict == "ack" else {"requeue": verdict == "requeue"}
        method = make(kind, delivery_tag=last.tag, multiple=multiple, **options)
        self.taker.send(last.channel, method)

    def lose_client(self) -> None:
        """Who has taken messages is gone: they come back. All that was said before was obeyed."""
        self.settle()
        self._hear_taker()
        channels = self.taker.client.channels.values()
        if any(channel.answers._held for channel in channels):
            return
        for held in self.held:
            if held.queue in SOURCES:  # not a copy
                self.sent[held.number].came_back(surely=held.queue not in self.deleting)
        self.taker.client.lost()
        self._connect_taker()

    def delete(self, name: str, rejecting: bool) -> None:
        """A queue is deleted, and declared again. What had left it is handed over before.

        `rejecting`: all that is out is rejected just before. That is obeyed in slices, and what one
        client says is in no order with what another one says: so this waits for the last slice.
        """
        if name in self.deleting:
            return
        out = [held for held in self.held if held.queue == name]
        if rejecting and out:
            for held in out:
                self.held.remove(held)
                self.sent[held.number].rejected = True
            last = out[-1]
            nack = make(spec.BasicNack, delivery_tag=last.tag, multiple=True, requeue=False)
            self.taker.send(last.channel, nack)
            jobs = self.broker.services.jobs
            while self.taker.client.answers_waiting and jobs:
                jobs.run()
            for held in out:
                self.sent[held.number].left |= not self.taker.client.answers_waiting
        self.deleting.append(name)
        for one in self.sent.values():
            one.deleted |= one.queue == name and not (
                one.left and "x-dead-letter-strategy" not in SOURCES[name]
            )
        declare = make(spec.QueueDeclare, queue=name, durable=True, arguments=SOURCES[name])
        self.chief.send(1, make(spec.QueueDelete, queue=name), declare)

    # -- what goes on meanwhile

    def turn(self) -> None:
        self.end_tick()

    def work(self, worker: int) -> None:
        self.workers[worker].run_one()
        self.store.advance()
        self.broker.progress()
        self.end_tick()

    def pass_time(self, milliseconds: int) -> None:
        self.now_s += milliseconds / 1000
        self.now_ms += milliseconds
        self.broker.timers.run(self.now_s)
        self.store.tick(self.now_s)
        self.end_tick()

    def be_late(self, milliseconds: int, name: str) -> None:
        """Time passes, and somebody wants a message before any timer was looked at."""
        self.now_s += milliseconds / 1000
        self.now_ms += milliseconds
        self.consume(name)

    def sync(self) -> None:
        """All is done, and on the disk: what a model can know, it knows."""
        began_ms = self.now_ms
        for _ in range(4):
            self.pass_time(math.ceil(PAUSE_S * 1000))  # what was put off goes on
            self.settle()
            if not self.store.settle_down():
                assert self.store.failure is None
                assert self.medium.space_bytes is not None
                return
            self.broker.progress()
            self.end_tick()
        self._hear()
        for one in self.sent.values():
            one.acked_safe |= one.acked
            one.safe = one.low
        assert not self.tags, "something is durable, and not confirmed"
        self._check("nothing happened")
        assert self.queue("limited").ready <= LENGTH_MAX, "the limit is not kept"
        for number, _ in self._messages(LATER):
            assert self.sent[number].due_ms > began_ms, f"{number} is not released"
        held = {one.number for one in self.held}
        for name in ("limited", "timed", "quorum"):
            for number, _ in self._messages(name):
                late_ms = self.now_ms - self.sent[number].ends_ms
                assert number in held or late_ms <= OFFER_MS, f"{number} of {name} does not expire"

    # -- faults

    def arm(self, after: int, fate: Fate) -> None:
        self.fate = fate
        self.medium.crash_in = after
        self.medium.use(random.Random(fate.seed))

    def crash(self, fate: Fate) -> None:
        self.fate = fate
        self.restart()

    def fill_disk(self, left_bytes: int) -> None:
        self.medium.space_bytes = self.medium.used_bytes + left_bytes

    def free_disk(self) -> None:
        self.medium.space_bytes = None

    def restart(self) -> None:
        """The process is gone: crash, start (and crash in that, perhaps), check."""
        self.counts["rounds"] += 1
        fate, medium = self.fate, self.medium
        choice = random.Random(fate.seed)
        abandon(self.store)  # type: ignore[arg-type]
        medium.crash(choice, power=fate.power)
        medium.space_bytes = None
        for after, power in fate.inside:
            medium.use(choice)
            medium.crash_in = after
            opened = False
            try:
                self.open()
                opened = True
                self.disk()
            except Crash:
                self.counts["crashes inside a start"] += 1
            except StorageError:
                assert medium.failed
            if opened:
                abandon(self.store)  # type: ignore[arg-type]
            medium.crash(choice, power=power)
        medium.use(choice)
        self.open()
        for one in self.sent.values():
            one.low = one.safe
            one.came = False
            if fate.inside and one.queue == LATER and one.due_ms <= self.now_ms:
                one.twice = True  # one of these starts may have released it
        self._check("a restart", forget=True)
        self.fate = Fate(seed=fate.seed + 1)
        self.disk()
        self._connect()

    # -- checks

    def _hear(self) -> None:
        """What clients were told."""
        for said in self.publisher.take():
            method = said.method
            assert isinstance(method, spec.BasicAck), method
            first = 0 if method.multiple else method.delivery_tag
            for tag in [tag for tag in self.tags if first <= tag <= method.delivery_tag]:
                self.sent[self.tags.pop(tag)].confirmed = True
        for method in self.chief.hear():
            assert isinstance(method, spec.QueueDeleteOk | spec.QueueDeclareOk), method
            if isinstance(method, spec.QueueDeclareOk):
                self.deleting.remove(method.queue)
                self.held = [one for one in self.held if one.queue != method.queue]
        self._hear_taker()

    def _hear_taker(self) -> None:
        for said in self.taker.take():
            method = said.method
            if isinstance(method, spec.BasicDeliver):
                assert said.body is not None and said.properties is not None
                self._delivered(said.channel, method, said.properties, int(said.body))
            elif isinstance(method, spec.BasicCancel):
                self.consuming.discard(method.consumer_tag)
            elif isinstance(method, spec.ChannelClose) and method.reply_code == 404:
                self.lose_client()  # it came to a queue that was about to be declared again
                return
            else:
                assert isinstance(method, spec.BasicConsumeOk | spec.BasicCancelOk), method

    def _delivered(
        self, channel: int, method: spec.BasicDeliver, properties: Properties, number: int
    ) -> None:
        one = self.sent[number]
        name = NAMES[channel - 1]
        self.held.append(Held(channel, method.delivery_tag, name, number))
        if name == LATE:
            assert self.now_ms >= one.due_ms, f"{number} comes too early"
            first = method.redelivered or not one.came or one.twice
            assert first, f"{number} comes again, and is not marked as redelivered"
            one.came = True
        if name in TARGETS:
            return
        assert name == one.queue
        late_ms = self.now_ms - one.ends_ms
        assert late_ms <= OFFER_MS, f"{number} of {name} is delivered {late_ms} ms too late"
        assert one.twice or not one.acked_safe, f"{number} of {name} was acknowledged"
        if "x-delivery-limit" in SOURCES[name]:
            count: Any = (properties.headers or {}).get("x-delivery-count", 0)
            assert one.low <= count <= one.high, (
                f"{number} of {name} came back {count} times: {one.low} to {one.high} are known"
            )
            one.low = one.high = int(count)

    def _check(self, when: str, *, forget: bool = False) -> None:
        """Everything is where it should be. `forget`: what may be gone counts as gone."""
        found: dict[int, list[str]] = {}
        for name in PLACES:
            for number, envelope in self._messages(name):
                places = found.setdefault(number, [])
                one = self.sent.get(number)
                assert one is not None, f"{number} in {name} came from nowhere"
                assert name in (one.queue, one.target), f"{number} of {one.queue} is in {name}"
                assert name not in places or name in TARGETS, f"{number} is in {name} twice"
                places.append(name)
                if name == one.target:
                    self._check_reason(one, envelope)
        for number in list(self.sent):
            one = self.sent[number]
            places = found.get(number, [])
            one.twice |= len(set(places)) > 1
            again = places.count(LATE) > 1 and not one.twice
            assert not again, f"{number} was released twice when {when}"
            lost = one.confirmed and not one.acked and not places and not one.deleted
            assert not lost, f"{number} of {one.queue} is lost when {when}"
            back = one.acked_safe and not one.twice and places
            assert not back, f"{number} of {one.queue} is back in {places} when {when}"
            if forget:
                if one.queue in places:
                    one.deleted = one.left = False
                one.acked = one.acked_safe or (one.acked and not places)
                if places:
                    one.confirmed = True
                elif not one.confirmed:
                    one.acked = one.acked_safe = True  # it never came

    def _check_reason(self, one: Sent, envelope: Envelope) -> None:
        if one.queue == LATER:
            assert self.now_ms >= one.due_ms, f"{one.number} is released too early"
            return
        deaths: Any = envelope.headers()["x-death"]
        reason = deaths[0]["reason"]
        assert deaths[0]["queue"] == one.queue
        possible = {
            "rejected": one.rejected,
            "expired": self.now_ms >= one.ends_ms,
            "maxlen": one.queue == "limited",
            "delivery_limit": one.too_often,
        }
        assert possible[reason], f"{one.number} of {one.queue} did not leave it: {reason}"

    def _messages(self, name: str) -> Iterator[tuple[int, Envelope]]:
        """All that is not settled in a queue, or waits at the exchange."""
        vhost = self.broker.vhosts["/"]
        queue = vhost.queues.get(name)
        lanes = [] if queue is None else queue.lanes
        if name == LATER:
            lanes = [lane for owner, lane in vhost.hidden_lanes if owner.name == LATER]
        for lane in lanes:
            qseq = 0
            while (part := lane.read(qseq, 50, 1 << 20)) is not None:
                for envelope, body in zip(part.metas, part.bodies, strict=True):
                    yield int(body), envelope
                qseq = part.first_qseq + len(part.bodies)
