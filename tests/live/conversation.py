"""A tiny AMQP 0-9-1 client that hides nothing: the tests' own voice on the wire.

It promises: blocking sockets with a deadline on every read; frames cut here and decoded by pamqp, so
nothing is shared with the broker's codec; contents assembled from their frames; what arrives for one
channel is kept in order for that channel. A peer's close is a value (`Refusal`), not an exception.

It does not know heartbeats (it asks for none), recovery, or what a right answer is: tests say that.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pytest
from pamqp import base, body, commands, header
from pamqp import frame as codec
from pamqp.commands import Basic, Channel, Connection, Exchange, Queue

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE
SOFT_CODES = frozenset({311, 312, 313, 403, 404, 405, 406})
DEADLINE_S = 10.0

CAPABILITIES = {
    "publisher_confirms": True,
    "exchange_exchange_bindings": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}

_RUN = f"{os.getpid():x}{os.urandom(2).hex()}"
_counter = iter(range(1_000_000_000))


def unique(stem: str = "q") -> str:
    """A name that no other test, worker or earlier run on the same broker uses."""
    return f"live.{_RUN}.{next(_counter)}.{stem}"


def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Ask again and again until `condition` is true; return what it said.

    Raises AssertionError after `deadline_s`.
    """
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(0.01)


class Closed(Exception):
    """The peer closed the socket."""


class Silence(AssertionError):
    """The peer said nothing before the deadline."""


@dataclass(frozen=True)
class Frame:
    """One frame off the wire, not yet understood."""

    kind: int
    channel: int
    payload: bytes

    def encode(self) -> bytes:
        """The bytes that were on the wire."""
        return encode_frame(self.kind, self.channel, self.payload)


@dataclass(frozen=True)
class Refusal:
    """What a channel.close or connection.close said."""

    scope: str
    code: int
    text: str
    class_id: int
    method_id: int


@dataclass(frozen=True)
class Message:
    """A content with the method that brought it: deliver, get-ok or return."""

    method: Any
    properties: Any
    body: bytes
    header_payload: bytes
    body_frame_bytes: tuple[int, ...]

    @property
    def raw_properties(self) -> bytes:
        """Flags and values as they were on the wire."""
        return self.header_payload[12:]


def encode_frame(kind: int, channel: int, payload: bytes) -> bytes:
    """A frame around any payload, however wrong."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([FRAME_END])


def encode_method(method: Any, channel: int) -> bytes:
    """A method frame by pamqp."""
    return bytes(codec.marshal(method, channel))


def encode_content(
    channel: int, data: bytes, properties: Any = None, frame_max: int = 131072
) -> bytes:
    """Header frame and body frames of a content."""
    parts = [codec.marshal(header.ContentHeader(0, len(data), properties), channel)]
    step = frame_max - 8
    for start in range(0, len(data), step):
        parts.append(codec.marshal(body.ContentBody(data[start : start + step]), channel))
    return b"".join(parts)


def encode_raw_content(channel: int, data: bytes, raw_properties: bytes) -> bytes:
    """A content whose property flags and values are given as bytes."""
    payload = struct.pack(">HHQ", Basic.frame_id, 0, len(data)) + raw_properties
    frames = encode_frame(HEADER, channel, payload)
    return frames + (encode_frame(BODY, channel, data) if data else b"")


def unchecked(kind: type[Any], **fields: Any) -> Any:
    """A method whose names pamqp would refuse to send."""
    method = kind()
    for name, value in fields.items():
        setattr(method, name, value)
    method.validate = lambda: None
    return method


def ids_of(method: type[Any] | Any) -> tuple[int, int]:
    """Class and method number of a pamqp method."""
    return method.index >> 16, method.index & 0xFFFF


def refusal(code: int, text: str, by: type[Any] | Any | None = None) -> Refusal:
    """The close that error `code` brings: its scope follows from the code, its ids from `by`."""
    class_id, method_id = ids_of(by) if by is not None else (0, 0)
    scope = "channel" if code in SOFT_CODES else "connection"
    return Refusal(scope, code, text, class_id, method_id)


class Wire:
    """A socket that reads frames; no protocol above that."""

    def __init__(self, url: str, deadline_s: float = DEADLINE_S) -> None:
        parts = urlsplit(url)
        self.user = unquote(parts.username or "guest")
        self.password = unquote(parts.password or "guest")
        self.virtual_host = unquote(parts.path[1:]) or "/"
        self.deadline_s = deadline_s
        self.socket = socket.create_connection((parts.hostname, parts.port or 5672), deadline_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()

    def write(self, data: bytes) -> None:
        """Send all of `data`. Raises Closed when the peer is gone."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def _fill(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise Silence("the peer said nothing in time")
        self.socket.settimeout(remaining)
        try:
            data = self.socket.recv(1 << 18)
        except TimeoutError as error:
            raise Silence("the peer said nothing in time") from error
        except ConnectionResetError as error:
            raise Closed from error
        finally:
            self.socket.settimeout(self.deadline_s)
        if not data:
            raise Closed
        self._buffer += data

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises Closed, Silence."""
        deadline = time.monotonic() + self.deadline_s
        while len(self._buffer) < count:
            self._fill(deadline)
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def read_frame(self, deadline_s: float | None = None) -> Frame:
        """The next frame. Raises Closed, Silence."""
        deadline = time.monotonic() + (self.deadline_s if deadline_s is None else deadline_s)
        while len(self._buffer) < 7:
            self._fill(deadline)
        kind, channel, size = struct.unpack_from(">BHI", self._buffer)
        while len(self._buffer) < size + 8:
            self._fill(deadline)
        payload, end = bytes(self._buffer[7 : 7 + size]), self._buffer[7 + size]
        del self._buffer[: size + 8]
        assert end == FRAME_END, f"frame ends with {end:#x}"
        return Frame(kind, channel, payload)

    def read_to_end(self) -> bytes:
        """All that comes until the peer closes the socket. Raises Silence if it does not."""
        deadline = time.monotonic() + self.deadline_s
        with contextlib.suppress(Closed):
            while True:
                self._fill(deadline)
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def at_end(self) -> bool:
        """Whether nothing more came before the peer closed the socket."""
        return self.read_to_end() == b""

    def abort(self) -> None:
        """Close the socket without a word."""
        self.socket.close()


@dataclass
class _Partial:
    method: Any
    header: Any = None
    header_payload: bytes = b""
    pieces: list[bytes] = field(default_factory=list)


class Client(Wire):
    """A connection: handshake done, channels by number."""

    def __init__(
        self,
        url: str,
        *,
        handshake: bool = True,
        capabilities: dict[str, bool] | None = None,
        frame_max: int = 0,
        channel_max: int = 0,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        super().__init__(url, deadline_s)
        self.capabilities = CAPABILITIES if capabilities is None else capabilities
        self.inboxes: dict[int, deque[Any]] = {}
        self.frame_max = 131072
        self.queues: set[str] = set()
        self.exchanges: set[str] = set()
        self._partial: dict[int, _Partial] = {}
        # Only what is open can be closed as one should.
        self.closed = True
        if handshake:
            self.handshake(frame_max=frame_max, channel_max=channel_max)

    # the handshake, whole and in steps

    def start(self) -> Any:
        """Send the protocol header; return the server's start."""
        self.write(PROTOCOL_HEADER)
        return self.expect(0, Connection.Start)

    def start_ok(
        self, mechanism: str = "PLAIN", response: str | None = None, **properties: Any
    ) -> None:
        """Answer start."""
        if response is None:
            response = f"\0{self.user}\0{self.password}"
        properties = {"capabilities": self.capabilities, "product": "conversation", **properties}
        self.send(0, Connection.StartOk(properties, mechanism, response, "en_US"))

    def handshake(self, frame_max: int = 0, channel_max: int = 0) -> None:
        """Everything up to open-ok."""
        self.start()
        self.start_ok()
        tune = self.expect(0, Connection.Tune)
        self.frame_max = frame_max or tune.frame_max
        self.send(
            0, Connection.TuneOk(channel_max or tune.channel_max, self.frame_max, heartbeat=0)
        )
        self.send(0, Connection.Open(self.virtual_host))
        self.expect(0, Connection.OpenOk)
        self.closed = False

    # sending

    def send(self, channel: int, *values: Any) -> None:
        """Send methods (pamqp objects) and raw bytes, as one write."""
        data = bytearray()
        for value in values:
            if isinstance(value, bytes):
                data += value
                continue
            if isinstance(value, Queue.Declare) and not value.passive:
                self.queues.add(value.queue)
            if isinstance(value, Exchange.Declare) and not value.passive:
                self.exchanges.add(value.exchange)
            data += codec.marshal(value, channel)
        self.write(bytes(data))

    # receiving

    def _understand(self, frame: Frame) -> None:
        if frame.kind == HEARTBEAT:
            return
        number = frame.channel
        inbox = self.inboxes.setdefault(number, deque())
        value = codec.unmarshal(frame.encode())[2] if frame.payload else None
        if frame.kind == METHOD:
            assert number not in self._partial, "a method inside a content"
            if isinstance(value, (Basic.Deliver, Basic.GetOk, Basic.Return)):
                self._partial[number] = _Partial(value)
            else:
                inbox.append(value)
            return
        partial = self._partial[number]
        if isinstance(value, header.ContentHeader):
            assert partial.header is None, "two headers"
            partial.header, partial.header_payload = value, frame.payload
        else:
            assert frame.kind == BODY and partial.header is not None
            partial.pieces.append(frame.payload)
        size = sum(map(len, partial.pieces))
        assert size <= partial.header.body_size, "more body than the header said"
        if size == partial.header.body_size:
            del self._partial[number]
            inbox.append(
                Message(
                    partial.method,
                    partial.header.properties,
                    b"".join(partial.pieces),
                    partial.header_payload,
                    tuple(map(len, partial.pieces)),
                )
            )

    def next(self, channel: int, deadline_s: float | None = None) -> Any:
        """What comes next on `channel`; a connection.close comes next on every channel.

        Raises Closed, Silence.
        """
        limit_s = self.deadline_s if deadline_s is None else deadline_s
        end = time.monotonic() + limit_s
        while True:
            for number in (channel, 0):
                inbox = self.inboxes.get(number)
                if inbox and (number == channel or isinstance(inbox[0], Connection.Close)):
                    return inbox.popleft()
            self._understand(self.read_frame(max(0.0, end - time.monotonic())))

    def expect(self, channel: int, kind: type[Any], **fields: Any) -> Any:
        """What comes next must be a `kind` (or a content brought by one) with these fields."""
        value = self.next(channel)
        method = value.method if isinstance(value, Message) else value
        assert isinstance(method, kind), f"expected {kind.name}, got {show(value)}"
        for name, wanted in fields.items():
            got = getattr(method, name)
            assert got == wanted, f"{kind.name}.{name} is {got!r}, not {wanted!r}"
        return value

    def call(self, channel: int, method: Any) -> Any:
        """Send a synchronous method and return its answer, which must come next."""
        self.send(channel, method)
        value = self.next(channel)
        names = [reply.replace("OK", "Ok") for reply in method.valid_responses]
        got = value.method if isinstance(value, Message) else value
        assert got.name.replace("OK", "Ok") in names, f"{method.name} got {show(value)}"
        return value

    def refusal(self, channel: int) -> Refusal:
        """The close that must come on `channel` or the connection, answered as it should be."""
        while True:
            value = self.next(channel)
            if isinstance(value, (Channel.Close, Connection.Close)):
                break
            assert isinstance(value, (Message, Basic.Ack, Basic.Nack)), f"got {show(value)}"
        if isinstance(value, Connection.Close):
            with contextlib.suppress(Closed):
                self.send(0, Connection.CloseOk())
            self.closed = True
        else:
            self.send(channel, Channel.CloseOk())
        scope = value.name.split(".")[0].lower()
        code, text = int(value.reply_code or 0), str(value.reply_text)
        return Refusal(scope, code, text, int(value.class_id or 0), int(value.method_id or 0))

    # channels and the end

    def channel(self, number: int = 1) -> Talk:
        """Open channel `number`."""
        self.call(number, Channel.Open())
        return Talk(self, number)

    def close(self) -> None:
        """The close round trip, and the end of the socket."""
        if not self.closed:
            self.closed = True
            self.send(0, Connection.Close(200, "OK", 0, 0))
            while not isinstance(self.next(0), Connection.CloseOk):
                pass
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class Talk:
    """One open channel of a client."""

    def __init__(self, client: Client, number: int) -> None:
        self.client = client
        self.number = number

    def send(self, *values: Any) -> None:
        """Send methods and raw bytes."""
        self.client.send(self.number, *values)

    def call(self, method: Any) -> Any:
        """A synchronous method and its answer."""
        return self.client.call(self.number, method)

    def next(self, deadline_s: float | None = None) -> Any:
        """What comes next."""
        return self.client.next(self.number, deadline_s)

    def expect(self, kind: type[Any], **fields: Any) -> Any:
        """What comes next, checked."""
        return self.client.expect(self.number, kind, **fields)

    def refusal(self) -> Refusal:
        """The close that must come."""
        return self.client.refusal(self.number)

    def refused(self, *values: Any) -> Refusal:
        """Send and be refused."""
        self.send(*values)
        return self.refusal()

    def declare(self, queue: str = "", **options: Any) -> str:
        """Declare a queue; return its name."""
        name = self.call(Queue.Declare(queue=queue, **options)).queue
        self.client.queues.add(name)
        return str(name)

    def queue(self, stem: str = "q", **options: Any) -> str:
        """Declare a queue with a fresh name."""
        return self.declare(unique(stem), **options)

    def exchange(self, kind: str = "direct", **options: Any) -> str:
        """Declare an exchange with a fresh name."""
        name = unique(kind)
        self.call(Exchange.Declare(exchange=name, exchange_type=kind, **options))
        return name

    def bind(self, queue: str, exchange: str, key: str = "", arguments: Any = None) -> None:
        """Bind a queue to an exchange."""
        self.call(Queue.Bind(queue=queue, exchange=exchange, routing_key=key, arguments=arguments))

    def publish(
        self, exchange: str, key: str, data: bytes = b"", mandatory: bool = False, **properties: Any
    ) -> None:
        """Publish; properties by pamqp's names."""
        self.send(
            Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory),
            encode_content(
                self.number, data, Basic.Properties(**properties), self.client.frame_max
            ),
        )

    def get(self, queue: str, no_ack: bool = False) -> Message | None:
        """basic.get: the message, or None when the queue is empty."""
        value = self.call(Basic.Get(queue=queue, no_ack=no_ack))
        return value if isinstance(value, Message) else None

    def get_soon(self, queue: str, no_ack: bool = False) -> Message:
        """basic.get until there is a message: for what reaches its queue a little later."""
        message: Message = until(lambda: self.get(queue, no_ack), f"a message in {queue}")
        return message

    def drain(self, queue: str) -> list[bytes]:
        """All ready messages, taken without ack, once the queue is empty."""
        bodies = []
        while (message := self.get(queue, no_ack=True)) is not None:
            bodies.append(message.body)
        return bodies

    def ready(self, queue: str) -> int:
        """How many messages are ready, by a passive declare."""
        return int(self.call(Queue.Declare(queue=queue, passive=True)).message_count)

    def consumers(self, queue: str) -> int:
        """How many consumers the queue has, by a passive declare."""
        return int(self.call(Queue.Declare(queue=queue, passive=True)).consumer_count)

    def consume(self, queue: str, tag: str = "", **options: Any) -> str:
        """Start a consumer; return its tag."""
        reply = self.call(Basic.Consume(queue=queue, consumer_tag=tag, **options))
        return str(reply.consumer_tag)

    def deliveries(self, count: int) -> list[Message]:
        """The next `count` things on the channel, which must be deliveries."""
        return [self.expect(Basic.Deliver) for _ in range(count)]

    def confirm(self) -> None:
        """Turn the channel to confirms."""
        self.call(commands.Confirm.Select())

    def confirmed(self, upto: int) -> list[tuple[int, bool, str]]:
        """Read confirms until tag `upto` is covered; (tag, multiple, ack or nack), in order."""
        seen: list[tuple[int, bool, str]] = []
        covered: set[int] = set()
        while covered != set(range(1, upto + 1)):
            value = self.next()
            assert isinstance(value, (Basic.Ack, Basic.Nack)), f"got {show(value)}"
            seen.append((value.delivery_tag, value.multiple, value.name.split(".")[1].lower()))
            first = 1 if value.multiple else value.delivery_tag
            covered |= set(range(first, value.delivery_tag + 1))
        return seen

    def quiet(self, queue: str) -> None:
        """Nothing must be under way from `queue` to this channel.

        Two round trips: the first passes through the queue, so that what it had sent before stands
        in front of the second, which passes through the channel.
        """
        before = self.client.inboxes.get(self.number)
        assert not before, f"unread: {show(before[0])}"
        self.call(Queue.Declare(queue=queue, passive=True))
        self.call(Channel.Flow(active=True))

    def close(self) -> None:
        """Close the channel; what was under way is dropped."""
        self.send(Channel.Close(200, "OK", 0, 0))
        while not isinstance(self.next(), Channel.CloseOk):
            pass


def show(value: Any) -> str:
    """A received value for a failure's text."""
    if isinstance(value, Message):
        return f"{show(value.method)} with {value.body[:40]!r}"
    if isinstance(value, base.Frame):
        fields = ", ".join(f"{name}={item!r}" for name, item in value)
        return f"{value.name}({fields})"
    return repr(value)


@dataclass(frozen=True)
class Case:
    """A row of a table of refusals: what is sent, and the close that must come."""

    name: str
    before: Sequence[Any]
    offending: Any
    code: int
    text: str
    by: type[Any] | None = None
    newer: bool = False


def table(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Parametrise a test over the rows, each known by its name."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=case.name, marks=[pytest.mark.newer] if case.newer else [])
            for case in cases
        ],
    )


def check(talk: Talk, case: Case) -> None:
    """Play a row: the close must be as written, and reach no further than its scope."""
    for method in case.before:
        if isinstance(method, bytes) or not method.synchronous or getattr(method, "nowait", False):
            talk.send(method)
        else:
            talk.call(method)
    offending = case.offending if isinstance(case.offending, list) else [case.offending]
    by = case.by or next(value for value in offending if not isinstance(value, bytes))
    wanted = refusal(case.code, case.text, None if case.by is NoMethod else by)
    got = talk.refused(*offending)
    assert got == wanted
    if wanted.scope == "channel":
        talk.client.channel(talk.number + 1)
    else:
        assert talk.client.at_end()


class NoMethod:
    """Stands for class and method 0/0 in a row."""


def serves(url: str) -> None:
    """Assert that the broker serves a new client: declare, publish, get, delete."""
    with Client(url) as client:
        talk = client.channel()
        queue = talk.declare("", exclusive=True)
        talk.publish("", queue, b"alive")
        message = talk.get_soon(queue, no_ack=True)
        assert message.body == b"alive"


def sweep(url: str, clients: Sequence[Client]) -> None:
    """Delete what these clients declared."""
    queues = {name for client in clients for name in client.queues if name.startswith("live.")}
    exchanges = {n for client in clients for n in client.exchanges if n.startswith("live.")}
    if not queues and not exchanges:
        return
    with Client(url) as client:
        talk = client.channel()
        for queue in sorted(queues):
            talk.call(unchecked(Queue.Delete, queue=queue))
        for exchange in sorted(exchanges):
            talk.call(unchecked(Exchange.Delete, exchange=exchange))


@contextlib.contextmanager
def connections(url: str) -> Iterator[Callable[..., Client]]:
    """A maker of clients; at the end they are closed and what they declared is deleted."""
    clients: list[Client] = []

    def connect(**options: Any) -> Client:
        client = Client(url, **options)
        clients.append(client)
        return client

    try:
        yield connect
    finally:
        for client in clients:
            with contextlib.suppress(Closed, Silence, AssertionError, OSError, KeyError):
                client.close()
            client.abort()
        sweep(url, clients)
