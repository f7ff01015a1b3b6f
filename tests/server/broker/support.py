"""A broker without sockets: clients are lists, and the disk answers when the test says so.

It promises: a `Peer` speaks octets through the protocol core, as a session does, and each of its
methods is one tick; what the broker wrote is taken apart into `Said`. Nothing is durable before
`Bench.disk`; time passes only when `now_s` is set, or by `Bench.pass_ms`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOSPC
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from qlog.server.amqp import spec
from qlog.server.amqp.connection import Connection, Event
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.frames import FRAME_HEAD, HEADER, METHOD, PROTOCOL_HEADER, method_frame
from qlog.server.amqp.properties import Properties, decode_properties, encode_properties
from qlog.server.amqp.spec import Method, decode_method
from qlog.server.amqp.values import Table
from qlog.server.broker.access.hashing import Doubt, Hashing
from qlog.server.broker.broker import Broker
from qlog.server.broker.channels.client import Client
from qlog.server.broker.channels.sink import READ, Hold
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.services import wall_clock_ms
from qlog.server.broker.settings import BrokerSettings
from qlog.storage.store import Store
from tests.storage.support import SMALL, FaultyDisk, ManualWorker, abandon, ignore

# More turns than any job of a test needs.
TURNS_MAX = 10_000
T = TypeVar("T")
M = TypeVar("M", bound=Method)
_BLANK: dict[str, object] = {"bit": False, "shortstr": "", "longstr": b"", "table": {}}

CAPABILITIES: Table = {
    "capabilities": {
        "consumer_cancel_notify": True,
        "connection.blocked": True,
        "authentication_failure_close": True,
    }
}


def make(kind: type[M], **given: object) -> M:
    """A method whose other fields are empty, false or 0."""
    blank = {name: _BLANK.get(wire, 0) for name, wire in kind.LAYOUT if name}
    return kind(**{**blank, **given})


@dataclass(frozen=True)
class Said:
    """One method from the broker, with its message if it has one."""

    channel: int
    method: Method
    body: bytes | None = None
    properties: Properties | None = None


class ListSink:
    """A client's way out that is a list."""

    def __init__(self, core: Connection) -> None:
        self.full = False
        self.overfull = False
        # Not one array of octets: it would be copied whole, and in somebody's slice, to grow.
        self.written: list[bytes | memoryview] = []
        self.closed_after_s: float | None = None
        self.why_not_read = READ
        self._core = core

    @property
    def frame_max(self) -> int:
        return self._core.frame_max

    def send(self, channel: int, method: Method) -> None:
        self.written.append(self._core.send(channel, method))

    def send_content(self, channel: int, method: Method, envelope: Envelope, body: bytes) -> None:
        self.written.append(self._core.send_content(channel, method, envelope, body))

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        self.written += buffers

    def hold(self, reason: Hold) -> None:
        self.why_not_read |= reason

    def release(self, reason: Hold) -> None:
        self.why_not_read &= ~reason

    def disconnect(self, *, after_s: float = 0.0) -> None:
        self.closed_after_s = after_s

    def finish(self) -> None:
        self.closed_after_s = 30.0

    def take(self) -> list[Said]:
        """What was sent since the last call."""
        data = b"".join(self.written)
        self.written.clear()
        said: list[Said] = []
        at = 0
        while at < len(data):
            kind, channel, size = FRAME_HEAD.unpack_from(data, at)
            payload = data[at + FRAME_HEAD.size : at + FRAME_HEAD.size + size]
            at += FRAME_HEAD.size + size + 1
            if kind == METHOD:
                said.append(Said(channel, decode_method(payload)))
            elif kind == HEADER:
                said[-1] = Said(channel, said[-1].method, b"", decode_properties(payload[12:]))
            else:
                last = said[-1]
                assert last.body is not None and last.channel == channel
                said[-1] = Said(channel, last.method, last.body + payload, last.properties)
        return said


class Peer:
    """One connected client, logged in; channels are opened when first used."""

    def __init__(
        self,
        bench: Bench,
        *,
        properties: Table | None = None,
        loopback: bool = True,
        vhost: str = "/",
        login: bytes = b"\0guest\0guest",
        channel_max: int = 2047,
    ) -> None:
        self.bench = bench
        self.core = Connection()
        self.sink = ListSink(self.core)
        self._events: Iterator[Event] = iter(())
        self.client = Client(bench.broker, self.sink, self.core, peer="test", loopback=loopback)
        self.receive(PROTOCOL_HEADER)
        self.send(
            0,
            spec.ConnectionStartOk(
                CAPABILITIES if properties is None else properties,
                "PLAIN",
                login,
                "en_US",
            ),
            spec.ConnectionTuneOk(channel_max, 131072, 0),
            make(spec.ConnectionOpen, virtual_host=vhost),
        )
        self.greeting = self.sink.take()
        self.opened: set[int] = set()

    def receive(self, data: bytes) -> None:
        """Octets from the client: one tick."""
        self._events = chain(self._events, self.core.receive(data))
        self.obey()
        self.bench.end_tick()

    def obey(self) -> None:
        """What came, up to what an alarm or a login stops; call it again when that is over."""
        while not self.sink.why_not_read & (Hold.ALARM | Hold.LOGIN) or self.core.ended:
            event = next(self._events, None)
            if event is None:
                return
            self.client.handle(event)

    def send(self, channel: int, *methods: Method | bytes) -> None:
        """Methods, or frames already made, in one read."""
        if channel and channel not in self.opened:
            self.opened.add(channel)
            self.receive(method_frame(channel, make(spec.ChannelOpen)))
            assert isinstance(self.take()[-1].method, spec.ChannelOpenOk)
        self.receive(
            b"".join(
                method if isinstance(method, bytes) else method_frame(channel, method)
                for method in methods
            )
        )

    def take(self) -> list[Said]:
        """What the broker said since the last call."""
        return self.sink.take()

    def hear(self) -> list[Method]:
        """The same without messages."""
        return [said.method for said in self.take()]

    def ask(self, channel: int, method: Method, reply: type[T]) -> T:
        """Send, and return the answer, which must be all that comes; that to a declare waits."""
        self.send(channel, method)
        heard = self.hear()
        if not heard and isinstance(method, DEFINING):
            self.bench.disk()
            heard = self.hear()
        (answer,) = heard
        assert isinstance(answer, reply), answer
        return answer

    def publish(self, channel: int, key: str, *bodies: bytes, **options: object) -> None:
        """Messages in one read; see `message`."""
        self.send(channel, *(message(channel, key, body, **options) for body in bodies))  # type: ignore[arg-type]

    def declare(self, name: str, **options: object) -> QueueType:
        """A durable queue, on channel 1."""
        declare = make(spec.QueueDeclare, queue=name, **{"durable": True, **options})
        answer = self.ask(1, declare, spec.QueueDeclareOk)
        return self.bench.broker.vhosts["/"].queues[answer.queue]

    def deliveries(self) -> list[tuple[str, int, bool, bytes]]:
        """(consumer tag, delivery tag, redelivered, body); nothing else may have been said."""
        result = []
        for said in self.take():
            method = said.method
            assert isinstance(method, spec.BasicDeliver), method
            assert said.body is not None
            result.append((method.consumer_tag, method.delivery_tag, method.redelivered, said.body))
        return result

    def refused(self) -> tuple[str, int, str]:
        """(scope, code, text) of the close that is the last that was said."""
        last = self.take()[-1].method
        assert isinstance(last, spec.ChannelClose | spec.ConnectionClose), last
        scope = "channel" if isinstance(last, spec.ChannelClose) else "connection"
        return scope, last.reply_code, last.reply_text


def message(
    channel: int,
    key: str,
    body: bytes,
    *,
    exchange: str = "",
    mandatory: bool = False,
    properties: Properties | None = None,
    persistent: bool = True,
) -> bytes:
    """The frames of a publish, the body in one."""
    properties = properties or Properties(delivery_mode=2 if persistent else 1)
    head = struct.pack(">HHQ", 60, 0, len(body)) + encode_properties(properties)
    frames = [
        method_frame(
            channel,
            make(spec.BasicPublish, exchange=exchange, routing_key=key, mandatory=mandatory),
        ),
        FRAME_HEAD.pack(HEADER, channel, len(head)) + head + b"\xce",
    ]
    if body:
        frames.append(FRAME_HEAD.pack(3, channel, len(body)) + body + b"\xce")
    return b"".join(frames)


# Their replies wait until the definition is durable.
DEFINING = (
    spec.ExchangeBind,
    spec.ExchangeDeclare,
    spec.ExchangeDelete,
    spec.ExchangeUnbind,
    spec.QueueBind,
    spec.QueueDeclare,
    spec.QueueDelete,
    spec.QueueUnbind,
)


class Bench:
    """A broker on a store whose threads run when told to."""

    def __init__(
        self,
        directory: Path,
        settings: BrokerSettings | None = None,
        document: dict[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self.settings = settings or BrokerSettings()
        self.now_s = 1000.0
        self.document = document  # definitions that a start loads
        self.now_ms = wall_clock_ms()
        self.open()

    def open(self) -> None:
        """Start; after `close`, again."""
        self.faulty = FaultyDisk()
        self.workers: list[ManualWorker] = []
        self.store: Store[Envelope] = Store.open(
            self.directory,
            decode=Envelope.unpack,
            notify=ignore,
            settings=SMALL,
            disk=self.faulty,
            new_worker=self._new_worker,
        )
        self.broker = Broker(
            self.store,
            self.settings,
            now_s=lambda: self.now_s,
            now_ms=lambda: self.now_ms,
            document=self.document,
        )
        self.broker.services.delivery.time.clock_s = lambda: 0.0  # however slow the machine is
        self.store.new_lane_id()  # ids are reserved by the thousand, which is a definition, too
        self.disk()

    def _new_worker(self, name: str, notify: Callable[[], None]) -> ManualWorker:
        self.workers.append(ManualWorker())
        return self.workers[-1]

    def end_tick(self) -> None:
        """As the network ends one."""
        self.broker.work()
        self.broker.pump()
        self.store.commit()

    def pass_ms(self, milliseconds: int, *, wall_ms: int | None = None) -> None:
        """Time passes, by both clocks or differently by the wall clock; then comes a turn."""
        self.now_s += milliseconds / 1000
        self.now_ms += milliseconds if wall_ms is None else wall_ms
        self.broker.timers.run(self.now_s)
        self.settle()
        for _ in range(TURNS_MAX):  # a turn makes some of the calls that are due
            if self.broker.timers.due_s > self.now_s:
                return
            self.broker.timers.run(self.now_s)
            self.settle()
        raise AssertionError("timers do not end")

    def settle(self) -> None:
        """Turns until no job is left."""
        self.end_tick()
        for _ in range(TURNS_MAX):
            if not self.broker.services.jobs:
                return
            self.end_tick()
        raise AssertionError("jobs do not end")

    def finish_jobs(self) -> None:
        """All jobs are done, however slow the machine is."""
        while self.broker.services.jobs:
            self.broker.work()

    def disk(self) -> None:
        """The disk does all it was given; the broker hears of it."""
        self.now_s += 0.01
        self.store.tick(self.now_s)
        self.store.commit()
        while self.disk_once():
            pass

    @contextmanager
    def full_log(self) -> Iterator[None]:
        """The disk is full for the log, though not for the ledger, which has reserved space."""
        disk, write = self.faulty, self.faulty.write

        def full(file: int, buffers: Sequence[bytes], offset: int) -> None:
            if disk.names_open[file].startswith("log/"):
                raise OSError(ENOSPC, "full")
            write(file, buffers, offset)

        with mock.patch.object(disk, "write", full):
            yield

    def disk_thrice(self) -> None:
        """The disk does all it can, also what it does again some seconds after an error."""
        for _ in range(3):
            self.disk()
            self.now_s += 2.0

    def disk_once(self) -> bool:
        """The disk does one thing; whether there was one, or is one now."""
        done = [worker.run_one() for worker in self.workers]
        self.store.advance()
        self.broker.progress()
        self.end_tick()
        return any(done) or any(worker.jobs for worker in self.workers)

    def close(self) -> None:
        """Stop as the daemon does."""
        self.store.close()

    def kill(self) -> None:
        """Stop as kill -9 does: what no thread has written is lost."""
        abandon(self.store)  # type: ignore[arg-type]

    def restart(self) -> None:
        """Stop properly, and start."""
        self.close()
        self.open()


class LateHashing(Hashing):
    """Hashes that are made when the test says so; `made` counts them."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Any], Outcome[Any]]] = []
        self.made = 0
        self.doubts: list[Doubt] = []
        self.peers: list[str] = []  # of those that wait

    def submit(self, job: Callable[[], Any], peer: str, doubt: Doubt = Doubt.NONE) -> Outcome[Any]:
        outcome: Outcome[Any] = Outcome()
        self.waiting.append((job, outcome))
        self.doubts.append(doubt)
        self.peers.append(peer)
        return outcome

    def waits(self, peer: str, doubt: Doubt) -> bool:
        return peer in self.peers

    def withdraw(self, outcome: Outcome[Any], peer: str) -> bool:
        before = len(self.waiting)
        self.waiting = [(job, each) for job, each in self.waiting if each is not outcome]
        return len(self.waiting) < before

    def progress(self) -> None:
        """Nothing by itself."""

    def close(self) -> None:
        """Nothing to end."""

    def make(self) -> None:
        """All that wait."""
        waiting, self.waiting = self.waiting, []
        self.peers.clear()
        for job, outcome in waiting:
            self.made += 1
            outcome.set(job())
