"""The processes that make the load: publishers that slice and send, consumers that count.

Promises that the broker is what is measured: nothing is encoded while the clock runs, confirms
and deliveries are read many at a time, and of a run of deliveries only the last is looked at.
Each process writes down how far it was at which time; what that means is computed afterwards.

A process is driven over a pipe: it says `READY` when it is connected, waits for `GO`, and sends a
`Report` when all is done, or a `Failure`. Publishers go on until all is published that their plans
say, or until they are sent `STOP`.
Consumers say `READY` once more when they consume, and wait for the numbers of messages that have
to arrive: those of each, or of all together.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Generic, TypeVar

from benchmarks import wire
from benchmarks.deliveries import RECEIVE_BYTES, DeliveryCounter
from benchmarks.measure import Progress
from benchmarks.traffic import Traffic, encode

READY, GO, STOP = "ready", "go", "stop"

# What one send offers: enough for hundreds of messages, little enough that the time noted for
# them is the time they left.
SEND_BYTES_MAX = 256 * 1024
# After this long without a delivery, what was not acknowledged yet is acknowledged.
IDLE_MS = 20
# A broker that answers nothing for so long has lost something.
STALL_S = 60.0
# How often a publisher with a pace looks whether it may send more.
PACE_S = 0.002
# How long a consumer that has all its messages waits for one too many.
SURPLUS_MS = 50

CREDIT = struct.Struct(">Q")
# How often a consumer tells a publisher without confirms how far it is, in messages.
CREDIT_STEP = 250
ACK_ARGUMENTS = struct.Struct(">Q?")


@dataclass(frozen=True, slots=True)
class PublisherPlan:
    """One publishing connection.

    Attributes:
        traffic: what it publishes.
        window: how many messages may be unconfirmed (or, without confirms, undelivered) at once.
        confirms: whether the window moves with publisher confirms.
        messages_max: stop after so many, None to go on until told to stop.
        rate_max: send no more than so many a second, 0 for as many as the window allows.
    """

    traffic: Traffic
    window: int
    confirms: bool = True
    messages_max: int | None = None
    rate_max: int = 0


@dataclass(frozen=True, slots=True)
class ConsumerPlan:
    """One consuming connection.

    Attributes:
        queue: what it consumes.
        prefetch: messages that may be unacknowledged at once.
        ack_every: acknowledge each so-manieth delivery with all before it; 1 acknowledges each on
            its own, 0 consumes without acknowledgements.
        message_bytes_max: the largest message with its frames, where that is over a MiB.
        offset: where it begins in a stream; empty for other queues.
    """

    queue: str
    prefetch: int = 2000
    ack_every: int = 100
    message_bytes_max: int = 0
    offset: str = ""


@dataclass(slots=True)
class Published:
    """What one publisher did: when messages were sent and when they were confirmed."""

    begun: Progress = field(default_factory=Progress)
    confirmed: Progress = field(default_factory=Progress)
    confirmed_early_ns: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Delivered:
    """What one consumer got, and when."""

    delivered: Progress = field(default_factory=Progress)
    begun_ns: int = 0


Work = TypeVar("Work")


@dataclass(frozen=True, slots=True)
class Report(Generic[Work]):
    """What a load process did, and what it cost."""

    work: list[Work]
    cpu_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A load process gave up; `text` says why."""

    text: str


class Confirms:
    """Which messages are confirmed: all up to `prefix`, and some ahead of it."""

    def __init__(self, result: Published) -> None:
        self.prefix = 0
        self._result = result
        self._ahead: set[int] = set()

    @property
    def count(self) -> int:
        return self.prefix + len(self._ahead)

    def add(self, delivery_tag: int, multiple: bool, now_ns: int) -> None:
        """Take a confirm; one that is ahead of others is written down on its own."""
        if multiple:
            self.prefix = max(self.prefix, delivery_tag)
        elif delivery_tag == self.prefix + 1:
            self.prefix = delivery_tag
        elif delivery_tag > self.prefix:
            # Messages are numbered from 0, confirms from 1.
            self._result.confirmed_early_ns.setdefault(delivery_tag - 1, now_ns)
            self._ahead.add(delivery_tag)
        if self._ahead:
            while self.prefix + 1 in self._ahead:
                self.prefix += 1
            self._ahead = {tag for tag in self._ahead if tag > self.prefix}


class Publisher:
    """One publishing connection: sends while its window allows, reads confirms."""

    def __init__(self, address: wire.Address, plan: PublisherPlan) -> None:
        self.connection = wire.Connection(address)
        if plan.confirms:
            self.connection.select_confirms()
        self.plan = plan
        self.stream = encode(plan.traffic, self.connection.frame_bytes_max)
        self.messages_max = plan.messages_max
        self.result = Published()
        self.confirms = Confirms(self.result)
        self.position = 0
        self.begun = 0
        self.blocked = False
        self.first_s: float | None = None  # when it began to send

    @property
    def done(self) -> bool:
        """All that was to be published is sent and, with confirms, confirmed."""
        if self.messages_max is None or self.position < self.stream.position(self.messages_max):
            return False
        return not self.plan.confirms or self.confirms.count == self.messages_max

    def stop(self) -> None:
        """Publish nothing more, but the rest of a message that is half sent."""
        if self.messages_max is None or self.begun < self.messages_max:
            self.messages_max = self.begun

    def send(self) -> None:
        """Send what the window and the socket allow."""
        allowed = self.confirms.count + self.plan.window
        if self.messages_max is not None:
            allowed = min(allowed, self.messages_max)
        if self.plan.rate_max:
            now_s = time.monotonic()
            self.first_s = self.first_s or now_s
            allowed = min(allowed, int((now_s - self.first_s) * self.plan.rate_max))
        limit = self.stream.position(allowed)
        self.blocked = False
        while self.position < limit:
            chunk = self.stream.slice(self.position, min(SEND_BYTES_MAX, limit - self.position))
            now_ns = time.monotonic_ns()
            try:
                sent = self.connection.socket.send(chunk, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self.blocked = True
                return
            self.position += sent
            begun = self.stream.started(self.position)
            if begun > self.begun:
                self.begun = begun
                self.result.begun.note(now_ns, begun)

    def read(self) -> None:
        """Read confirms and move the window."""
        data = self.connection.socket.recv(RECEIVE_BYTES)
        now_ns = time.monotonic_ns()
        if not data:
            raise wire.Refused("the broker hung up on a publisher")
        self.connection.unread += data
        before = self.confirms.prefix
        for payload in wire.take_methods(self.connection.unread):
            method = wire.METHOD.unpack_from(payload)
            if method != wire.BASIC_ACK:
                raise wire.Refused(wire.refusal(payload))
            delivery_tag, multiple = ACK_ARGUMENTS.unpack_from(payload, wire.METHOD.size)
            if delivery_tag > self.begun:
                raise wire.Refused(f"confirm {delivery_tag} of {self.begun} messages")
            self.confirms.add(delivery_tag, multiple, now_ns)
        if self.confirms.prefix > before:
            self.result.confirmed.note(now_ns, self.confirms.prefix)

    def credit(self, delivered: int) -> None:
        """Move the window of a publisher without confirms: so many messages were delivered."""
        self.confirms.prefix = delivered


class Consumer:
    """One consuming connection: counts deliveries and acknowledges them."""

    def __init__(self, address: wire.Address, plan: ConsumerPlan) -> None:
        self.connection = wire.Connection(address)
        self.plan = plan
        if plan.ack_every:
            self.connection.limit_prefetch(plan.prefetch)
        # Random, so that no body can contain it.
        self.consumer_tag = f"consumer-{os.urandom(12).hex()}"
        self.counter = DeliveryCounter(self.consumer_tag, plan.message_bytes_max)
        self.result = Delivered()
        self.acked = 0

    def start(self) -> None:
        """Begin to consume."""
        self.result.begun_ns = time.monotonic_ns()
        plan = self.plan
        arguments = {"x-stream-offset": plan.offset} if plan.offset else wire.NOTHING
        self.connection.consume(plan.queue, self.consumer_tag, plan.ack_every == 0, arguments)
        unread = self.connection.unread
        while unread:
            space = self.counter.space()
            size = min(len(space), len(unread))
            space[:size] = unread[:size]
            del unread[:size]
            self._received(size)

    def read(self) -> None:
        """Receive deliveries, count and acknowledge them."""
        size = self.connection.socket.recv_into(self.counter.space())
        if not size:
            raise wire.Refused("the broker hung up on a consumer")
        self._received(size)

    def _received(self, size: int) -> None:
        now_ns = time.monotonic_ns()
        before = self.counter.count
        self.counter.received(size)
        count = self.counter.count
        if count == before:
            return
        self.result.delivered.note(now_ns, count)
        every = self.plan.ack_every
        if every and count - self.acked >= every:
            tags = range(self.acked + every, count + 1, every)
            acks = b"".join([wire.ack_frame(tag, every > 1) for tag in tags])
            self.connection.socket.sendall(acks)
            self.acked = tags[-1]

    def flush(self) -> None:
        """Acknowledge what was delivered since the last acknowledgement."""
        if self.plan.ack_every and self.acked < self.counter.count:
            self.acked = self.counter.count
            self.connection.socket.sendall(wire.ack_frame(self.acked, True))


def publish(
    control: Pipe, address: wire.Address, plans: Sequence[PublisherPlan], credit: Pipe | None
) -> None:
    """The main function of a publishing process; `credit` moves windows without confirms."""
    guarded(control, lambda: _publish(control, address, plans, credit))


def consume(
    control: Pipe, address: wire.Address, plans: Sequence[ConsumerPlan], credit: Pipe | None
) -> None:
    """The main function of a consuming process; `credit` tells a publisher what was delivered."""
    guarded(control, lambda: _consume(control, address, plans, credit))


def guarded(control: Pipe, work: Callable[[], None]) -> None:
    # A collection in the middle of a run would be a pause of the load, and there are no cycles.
    gc.disable()
    # Ctrl-C reaches all processes of a terminal; the harness ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work()
    except (wire.Refused, OSError) as error:
        control.send(Failure(f"{type(error).__name__}: {error}"))


def _publish(
    control: Pipe, address: wire.Address, plans: Sequence[PublisherPlan], credit: Pipe | None
) -> None:
    publishers = {}
    # Not poll: it looks at all sockets each time, and there may be hundreds.
    poll = select.epoll()
    poll.register(control, select.EPOLLIN)
    for plan in plans:
        publisher = Publisher(address, plan)
        publishers[publisher.connection.socket.fileno()] = publisher
        poll.register(publisher.connection.socket, select.EPOLLIN)
    if credit:
        assert len(plans) == 1, "one publisher gets the credit"
        poll.register(credit, select.EPOLLIN)
    control.send(READY)
    assert control.recv() == GO
    meter = Meter()
    for publisher in publishers.values():
        _send(publisher, poll)
    paced = [publisher for publisher in publishers.values() if publisher.plan.rate_max]
    while not all(publisher.done for publisher in publishers.values()):
        events = poll.poll(PACE_S if paced else STALL_S)
        if not events and not paced:
            raise wire.Refused(f"no confirm for {STALL_S:.0f} s")
        for publisher in paced:
            _send(publisher, poll)
        if any(descriptor == control.fileno() for descriptor, _ in events):
            assert control.recv() == STOP
            for publisher in publishers.values():
                publisher.stop()
        for descriptor, event in events:
            if descriptor in publishers:
                publisher = publishers[descriptor]
                if event & ~select.EPOLLOUT:
                    publisher.read()
                _send(publisher, poll)
            elif credit and descriptor == credit.fileno():
                notes = os.read(descriptor, 65536)
                publisher = next(iter(publishers.values()))
                publisher.credit(CREDIT.unpack_from(notes, len(notes) - CREDIT.size)[0])
                _send(publisher, poll)
    report = meter.report([publisher.result for publisher in publishers.values()])
    for publisher in publishers.values():
        publisher.connection.close()
    control.send(report)


def _send(publisher: Publisher, poll: select.epoll) -> None:
    """Send what may be sent, and wait for room in the socket only while it has none."""
    blocked = publisher.blocked
    publisher.send()
    if publisher.blocked != blocked:
        wanted = select.EPOLLIN | (select.EPOLLOUT if publisher.blocked else 0)
        poll.modify(publisher.connection.socket, wanted)


def _consume(
    control: Pipe, address: wire.Address, plans: Sequence[ConsumerPlan], credit: Pipe | None
) -> None:
    consumers = {}
    poll = select.epoll()
    poll.register(control, select.EPOLLIN)
    for plan in plans:
        consumer = Consumer(address, plan)
        consumers[consumer.connection.socket.fileno()] = consumer
        poll.register(consumer.connection.socket, select.EPOLLIN)
    control.send(READY)
    assert control.recv() == GO
    meter = Meter()
    for consumer in consumers.values():
        consumer.start()
    control.send(READY)
    expected: list[int] | int | None = None
    counts = [consumer.counter.count for consumer in consumers.values()]
    credited = 0
    progress_s = time.monotonic()
    while True:
        complete = counts == expected or sum(counts) == expected
        events = poll.poll((SURPLUS_MS if complete else IDLE_MS) / 1000)
        for descriptor, _ in events:
            if descriptor == control.fileno():
                expected = control.recv()
            else:
                consumers[descriptor].read()
        if not events:
            if complete:
                break
            for consumer in consumers.values():
                consumer.flush()
        before = counts
        counts = [consumer.counter.count for consumer in consumers.values()]
        if counts != before or expected is None:
            progress_s = time.monotonic()
        elif time.monotonic() - progress_s > STALL_S:
            raise wire.Refused(f"delivered {counts}, expected {expected}, and nothing more comes")
        if credit and counts[0] - credited >= CREDIT_STEP:
            credited = counts[0]
            os.write(credit.fileno(), CREDIT.pack(credited))
    report = meter.report([consumer.result for consumer in consumers.values()])
    for consumer in consumers.values():
        consumer.flush()
        consumer.connection.close()
    control.send(report)


class Meter:
    """The processor time of this process from now on."""

    def __init__(self) -> None:
        self._cpu_s = time.process_time()
        self._wall_s = time.monotonic()

    def report(self, work: list[Work]) -> Report[Work]:
        return Report(work, time.process_time() - self._cpu_s, time.monotonic() - self._wall_s)
