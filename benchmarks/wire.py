"""A minimal AMQP 0-9-1 client: enough to set a benchmark up, and the frames the load is made of.

Promises exact bytes and blocking calls; a refusal of the broker becomes `Refused` with its text.
Knows no consumers' callbacks, no recovery and no channel but number 1.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Self, TypeAlias
from urllib.parse import unquote, urlsplit

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
CHANNEL = 1
FRAME_HEADER = struct.Struct(">BHI")
FRAME_END = 0xCE
METHOD_FRAME, HEADER_FRAME, BODY_FRAME = 1, 2, 3
FRAME_OVERHEAD_BYTES = FRAME_HEADER.size + 1

# A broker that is busy with a large backlog may take long to answer; a hang must still end.
TIMEOUT_S = 60.0

Method: TypeAlias = tuple[int, int]  # class and method
METHOD = struct.Struct(">HH")
CONNECTION_START, CONNECTION_START_OK = (10, 10), (10, 11)
CONNECTION_TUNE, CONNECTION_TUNE_OK = (10, 30), (10, 31)
CONNECTION_OPEN, CONNECTION_OPEN_OK = (10, 40), (10, 41)
CONNECTION_CLOSE, CONNECTION_CLOSE_OK = (10, 50), (10, 51)
CONNECTION_BLOCKED, CONNECTION_UNBLOCKED = (10, 60), (10, 61)
CHANNEL_OPEN, CHANNEL_OPEN_OK = (20, 10), (20, 11)
CHANNEL_CLOSE, CHANNEL_CLOSE_OK = (20, 40), (20, 41)
EXCHANGE_DECLARE, EXCHANGE_DECLARE_OK = (40, 10), (40, 11)
EXCHANGE_DELETE, EXCHANGE_DELETE_OK = (40, 20), (40, 21)
QUEUE_DECLARE, QUEUE_DECLARE_OK = (50, 10), (50, 11)
QUEUE_BIND, QUEUE_BIND_OK = (50, 20), (50, 21)
QUEUE_UNBIND, QUEUE_UNBIND_OK = (50, 50), (50, 51)
QUEUE_PURGE, QUEUE_PURGE_OK = (50, 30), (50, 31)
QUEUE_DELETE, QUEUE_DELETE_OK = (50, 40), (50, 41)
BASIC_QOS, BASIC_QOS_OK = (60, 10), (60, 11)
BASIC_CONSUME, BASIC_CONSUME_OK = (60, 20), (60, 21)
BASIC_CANCEL, BASIC_CANCEL_OK = (60, 30), (60, 31)
BASIC_PUBLISH = (60, 40)
BASIC_DELIVER = (60, 60)
BASIC_GET, BASIC_GET_OK = (60, 70), (60, 71)
BASIC_ACK, BASIC_NACK = (60, 80), (60, 120)
BASIC_REJECT = (60, 90)
TX_SELECT, TX_SELECT_OK = (90, 10), (90, 11)
TX_COMMIT, TX_COMMIT_OK = (90, 20), (90, 21)
TX_ROLLBACK, TX_ROLLBACK_OK = (90, 30), (90, 31)
CONFIRM_SELECT, CONFIRM_SELECT_OK = (85, 10), (85, 11)

# Bits of a queue.declare.
PASSIVE, DURABLE, EXCLUSIVE, AUTO_DELETE = 1, 2, 4, 8

# The whole frame of a basic.ack: header, class, method, delivery tag, multiple, frame end.
ACK_FRAME = struct.Struct(">BHIHHQBB")
ACK_PAYLOAD_BYTES = 13
RECORD_BYTES = 16384  # the most that a record of TLS carries

Buffer: TypeAlias = bytes | bytearray | memoryview


class Refused(Exception):
    """The broker closed the channel or the connection, or sent what nobody asked for."""


def shortstr(text: str) -> bytes:
    raw = text.encode()
    return bytes([len(raw)]) + raw


def longstr(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


# What a field table may hold here.
Value: TypeAlias = "str | int | bool | None | Sequence[Value] | Mapping[str, Value]"


NOTHING: Mapping[str, Value] = MappingProxyType({})


def table(entries: Mapping[str, Value]) -> bytes:
    """A field table; see `field_value`."""
    parts = [shortstr(name) + field_value(value) for name, value in entries.items()]
    return longstr(b"".join(parts))


def field_value(value: Value) -> bytes:
    """A value with its type: S, I, t, V, an array (A) or a nested table (F)."""
    if value is None:
        return b"V"
    if isinstance(value, str):
        return b"S" + longstr(value.encode())
    if isinstance(value, bool):
        return b"t" + bytes([value])
    if isinstance(value, int):
        return b"I" + struct.pack(">i", value)
    if isinstance(value, Mapping):
        return b"F" + table(value)
    return b"A" + longstr(b"".join(map(field_value, value)))


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return FRAME_HEADER.pack(kind, channel, len(payload)) + payload + bytes([FRAME_END])


def method_frame(method: Method, arguments: bytes = b"", channel: int = CHANNEL) -> bytes:
    return frame(METHOD_FRAME, channel, METHOD.pack(*method) + arguments)


def start_ok(user: str, password: str) -> bytes:
    """The frame with which a client logs in."""
    capabilities = table(
        {"publisher_confirms": True, "basic.nack": True, "authentication_failure_close": True}
    )
    properties = longstr(
        shortstr("product") + b"S" + longstr(b"benchmark")
        + shortstr("capabilities") + b"F" + capabilities
    )  # fmt: skip
    response = longstr(f"\0{user}\0{password}".encode())
    arguments = properties + shortstr("PLAIN") + response + shortstr("en_US")
    return method_frame(CONNECTION_START_OK, arguments, channel=0)


def ack_frame(delivery_tag: int, multiple: bool) -> bytes:
    return ACK_FRAME.pack(
        METHOD_FRAME, CHANNEL, ACK_PAYLOAD_BYTES, *BASIC_ACK, delivery_tag, multiple, FRAME_END
    )


def publish_frames(
    exchange: str, routing_key: str, properties: bytes, body: bytes, frame_bytes_max: int
) -> bytes:
    """One message as a client sends it.

    Args:
        exchange: name, empty for the default exchange.
        routing_key: the key.
        properties: property flags and values, as the header frame holds them.
        body: the body.
        frame_bytes_max: negotiated frame size, envelope of the frame included.
    """
    arguments = b"\x00\x00" + shortstr(exchange) + shortstr(routing_key) + b"\x00"
    parts = [
        method_frame(BASIC_PUBLISH, arguments),
        frame(HEADER_FRAME, CHANNEL, struct.pack(">HHQ", 60, 0, len(body)) + properties),
    ]
    step = frame_bytes_max - FRAME_OVERHEAD_BYTES
    parts += [
        frame(BODY_FRAME, CHANNEL, body[start : start + step])
        for start in range(0, len(body), step)
    ]
    return b"".join(parts)


def publish_key_offset(exchange: str) -> int:
    """Where the routing key begins in what `publish_frames` returns."""
    return FRAME_HEADER.size + METHOD.size + 2 + len(shortstr(exchange)) + 1


def refusal(payload: bytes) -> str:
    """Why the broker closed, from the payload of connection.close, channel.close or another method."""
    method = METHOD.unpack_from(payload)
    if method in (CONNECTION_CLOSE, CHANNEL_CLOSE):
        (code,) = struct.unpack_from(">H", payload, 4)
        text = payload[7 : 7 + payload[6]].decode(errors="replace")
        return f"closed by the broker: {code} {text}"
    return f"unexpected method {method[0]}.{method[1]} from the broker"


def take_methods(buffer: bytearray) -> list[bytes]:
    """The payloads of the whole method frames at the front of `buffer`, which are removed from it.

    Raises:
        Refused: a frame of another kind stood there.
    """
    payloads = []
    position = 0
    while len(buffer) - position >= FRAME_HEADER.size:
        kind, _, size = FRAME_HEADER.unpack_from(buffer, position)
        stop = position + FRAME_OVERHEAD_BYTES + size
        if len(buffer) < stop:
            break
        if kind != METHOD_FRAME or buffer[stop - 1] != FRAME_END:
            raise Refused(f"frame of kind {kind} where a method was expected")
        payloads.append(bytes(buffer[position + FRAME_HEADER.size : stop - 1]))
        position = stop
    del buffer[:position]
    return payloads


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker listens and who logs in."""

    host: str
    port: int
    user: str = "guest"
    password: str = "guest"
    vhost: str = "/"
    tls: bool = False  # the broker's certificate is not looked at

    @classmethod
    def parse(cls, url: str) -> Address:
        """`amqp://user:password@host:port/vhost`; ValueError when it is something else."""
        parts = urlsplit(url)
        if parts.scheme != "amqp" or not parts.hostname:
            raise ValueError(f"not an address of the form amqp://host:port/: {url}")
        return cls(
            host=parts.hostname,
            port=parts.port or 5672,
            user=unquote(parts.username or "guest"),
            password=unquote(parts.password or "guest"),
            vhost=unquote(parts.path[1:]) or "/",
        )


class SecureSocket:
    """As much of a socket as the loads use, over TLS.

    What a receive brings is all given out at once, so that whoever polls the descriptor misses
    nothing. Sending blocks.
    """

    def __init__(self, plain: socket.socket) -> None:
        self._socket = plain
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._tls = context.wrap_bio(self._in, self._out)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._in.write(self._socket.recv(65536))
        self._flush()

    def fileno(self) -> int:
        return self._socket.fileno()

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        self._socket.setsockopt(level, name, value)

    def send(self, data: Buffer, flags: int = 0) -> int:
        """All of it."""
        self.sendall(data)
        return len(data)

    def sendall(self, data: Buffer) -> None:
        self._tls.write(data)
        self._flush()

    def _flush(self) -> None:
        self._socket.sendall(self._out.read())

    def recv(self, size: int) -> bytes:
        """About so much; empty at the end."""
        while data := self._socket.recv(size):
            self._in.write(data)
            parts = []
            try:
                while part := self._tls.read(RECORD_BYTES):
                    parts.append(part)
            except ssl.SSLWantReadError:
                if parts:
                    return b"".join(parts)
            else:
                return b"".join(parts)
        return b""

    def recv_into(self, space: memoryview) -> int:
        """What was received, which may end a record that began before."""
        data = self.recv(len(space) - 2 * RECORD_BYTES)
        space[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._socket.close()


class Connection:
    """One connection with channel 1 open; calls block until the broker answers.

    Heartbeats are off: the load loops must not have to answer them.

    Raises:
        Refused: from any call, when the broker closes or answers something else.
        OSError: when the socket fails; TimeoutError when the broker is silent too long.
    """

    def __init__(self, address: Address) -> None:
        plain = socket.create_connection((address.host, address.port), timeout=TIMEOUT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = SecureSocket(plain) if address.tls else plain
        # What arrived and was not looked at yet; a consumer takes it over after basic.consume.
        self.unread = bytearray()
        self._methods: list[bytes] = []
        try:
            self._open(address)
        except BaseException:
            self.socket.close()
            raise

    def _open(self, address: Address) -> None:
        self.socket.sendall(PROTOCOL_HEADER)
        self.server_properties = self._reply(CONNECTION_START)[6:]
        self.socket.sendall(start_ok(address.user, address.password))
        tune = self._reply(CONNECTION_TUNE)
        channel_max, self.frame_bytes_max, _ = struct.unpack_from(">HIH", tune, 4)
        tune_ok = struct.pack(">HIH", channel_max, self.frame_bytes_max, 0)
        self.socket.sendall(
            method_frame(CONNECTION_TUNE_OK, tune_ok, channel=0)
            + method_frame(CONNECTION_OPEN, shortstr(address.vhost) + b"\x00\x00", channel=0)
        )
        self._reply(CONNECTION_OPEN_OK)
        self.call(CHANNEL_OPEN, b"\x00", CHANNEL_OPEN_OK)

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
            self.socket.close()

    def _reply(self, expected: Method) -> bytes:
        while not self._methods:
            # One frame at most may be taken: deliveries can stand right behind a consume-ok.
            whole = self._whole_frame()
            if whole is None:
                data = self.socket.recv(65536)
                if not data:
                    raise Refused("the broker hung up")
                self.unread += data
            else:
                first = self.unread[:whole]
                del self.unread[:whole]
                self._methods = take_methods(first)
        payload = self._methods.pop(0)
        if METHOD.unpack_from(payload) != expected:
            raise Refused(refusal(payload))
        return payload

    def _whole_frame(self) -> int | None:
        if len(self.unread) < FRAME_HEADER.size:
            return None
        _, _, size = FRAME_HEADER.unpack_from(self.unread)
        stop = int(size) + FRAME_OVERHEAD_BYTES
        return stop if len(self.unread) >= stop else None

    def call(self, method: Method, arguments: bytes, expected: Method) -> bytes:
        """Send a method on channel 1 and return the payload of its reply."""
        self.socket.sendall(method_frame(method, arguments))
        return self._reply(expected)

    def declare_queue(
        self, name: str, durable: bool = True, arguments: Mapping[str, Value] | None = None
    ) -> None:
        flags = bytes([DURABLE * durable])
        payload = b"\x00\x00" + shortstr(name) + flags + table(arguments or {})
        self.call(QUEUE_DECLARE, payload, QUEUE_DECLARE_OK)

    def declare_reply_queue(self) -> str:
        """Declare an exclusive queue that the broker names, and return its name."""
        arguments = b"\x00\x00" + shortstr("") + bytes([EXCLUSIVE | AUTO_DELETE]) + table({})
        reply = self.call(QUEUE_DECLARE, arguments, QUEUE_DECLARE_OK)
        return reply[METHOD.size + 1 : METHOD.size + 1 + reply[METHOD.size]].decode()

    def count_messages(self, name: str) -> int:
        """How many messages of a queue are ready."""
        arguments = b"\x00\x00" + shortstr(name) + bytes([PASSIVE]) + table({})
        reply = self.call(QUEUE_DECLARE, arguments, QUEUE_DECLARE_OK)
        return int(struct.unpack_from(">I", reply, METHOD.size + len(shortstr(name)))[0])

    def delete_queue(self, name: str) -> int:
        """Delete a queue and return how many messages were in it."""
        reply = self.call(QUEUE_DELETE, b"\x00\x00" + shortstr(name) + b"\x00", QUEUE_DELETE_OK)
        return int(struct.unpack_from(">I", reply, 4)[0])

    def declare_exchange(
        self, name: str, kind: str, arguments: Mapping[str, Value] | None = None
    ) -> None:
        names = shortstr(name) + shortstr(kind)
        payload = b"\x00\x00" + names + bytes([DURABLE]) + table(arguments or {})
        self.call(EXCHANGE_DECLARE, payload, EXCHANGE_DECLARE_OK)

    def delete_exchange(self, name: str) -> None:
        self.call(EXCHANGE_DELETE, b"\x00\x00" + shortstr(name) + b"\x00", EXCHANGE_DELETE_OK)

    def bind_queue(self, queue: str, exchange: str, routing_key: str) -> None:
        names = shortstr(queue) + shortstr(exchange) + shortstr(routing_key)
        self.call(QUEUE_BIND, b"\x00\x00" + names + b"\x00" + table({}), QUEUE_BIND_OK)

    def select_confirms(self) -> None:
        self.call(CONFIRM_SELECT, b"\x00", CONFIRM_SELECT_OK)

    def limit_prefetch(self, messages: int) -> None:
        self.call(BASIC_QOS, struct.pack(">IHB", 0, messages, 0), BASIC_QOS_OK)

    def consume(
        self, queue: str, consumer_tag: str, no_ack: bool, arguments: Mapping[str, Value] = NOTHING
    ) -> None:
        """Start a consumer; its deliveries follow in `unread` and on the socket."""
        names = shortstr(queue) + shortstr(consumer_tag)
        asked = b"\x00\x00" + names + bytes([no_ack << 1]) + table(arguments)
        self.call(BASIC_CONSUME, asked, BASIC_CONSUME_OK)

    def close(self) -> None:
        """Close politely: when this returns, the broker has seen all that was sent before."""
        arguments = struct.pack(">H", 200) + shortstr("OK") + struct.pack(">HH", 0, 0)
        self.socket.sendall(method_frame(CONNECTION_CLOSE, arguments, channel=0))
        self._reply(CONNECTION_CLOSE_OK)
        self.socket.close()

    def server_property(self, name: str) -> str:
        """A string of the server properties, empty when it is not there."""
        key = shortstr(name) + b"S"
        at = self.server_properties.find(key)
        if at < 0:
            return ""
        at += len(key)
        (size,) = struct.unpack_from(">I", self.server_properties, at)
        return self.server_properties[at + 4 : at + 4 + size].decode(errors="replace")
