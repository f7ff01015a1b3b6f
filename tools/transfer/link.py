"""A connection to an AMQP 0-9-1 broker from a client's side: frames, replies, contents; no more.

Its calls wait; a broker that says nothing for a minute counts as gone, and so does one that owes a
reply and sends nothing but heartbeats for a minute, or takes nothing, unless it has said that it is
blocked. A thread sends heartbeats, so that a connection stays however long nobody calls. What the
broker sends of its own accord goes to `handle`. Knows nothing of what its channels are for.
"""

import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar
from urllib.parse import unquote, urlsplit

from qlog import __version__
from qlog.server.amqp import spec
from qlog.server.amqp.errors import HardError
from qlog.server.amqp.frames import (
    BODY,
    CONTENT_FIXED,
    CONTENT_FIXED_BYTES,
    FRAME_END,
    FRAME_HEAD,
    HEADER,
    HEARTBEAT,
    HEARTBEAT_FRAME,
    METHOD,
    PROTOCOL_HEADER,
    Buffer,
    method_frame,
)
from qlog.server.amqp.spec import Method, decode_method
from qlog.server.amqp.values import Table

SILENCE_S_MAX = 60.0
# A broker that is there says something within half of that.
HEARTBEAT_S_MAX = 30
_READ_BYTES = 1 << 18
_PORTS = {"amqp": 5672, "amqps": 5671}
M = TypeVar("M", bound=Method)


class LinkFailed(Exception):
    """The connection, or a channel, is over; `str()` is one line that says why.

    `code` is the broker's, 0 if it gave none.
    """

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


@dataclass(frozen=True, slots=True)
class Address:
    """Where and as whom to connect. `vhost` is None when the URL names none."""

    host: str
    port: int
    user: str
    password: str
    vhost: str | None
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> Self:
        """From `amqp://user:password@host:port/vhost`, or `amqps://`. Raises ValueError."""
        wrong = f"{url!r} is not an address such as amqp://guest:guest@localhost:5672"
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            raise ValueError(wrong) from None
        if parts.scheme not in _PORTS:
            raise ValueError(wrong)
        return cls(
            parts.hostname or "localhost",
            port or _PORTS[parts.scheme],
            unquote(parts.username or "guest"),
            unquote(parts.password or "guest"),
            unquote(parts.path[1:]) if len(parts.path) > 1 else None,
            parts.scheme == "amqps",
        )


class Content(NamedTuple):
    """What follows a method: raw properties and the body."""

    properties: bytes
    body: bytes


Handle = Callable[[int, Method, Content | None], bool]


class _Open:
    """A method whose content is not complete."""

    __slots__ = ("left", "method", "parts", "properties")

    def __init__(self, method: Method) -> None:
        self.method = method
        self.properties: bytes | None = None
        self.left = 0
        self.parts: list[bytes] = []


class Link:
    """See the head of this file. All methods raise LinkFailed.

    `product` is what the broker is told. `handle(channel, method, content)` is asked first for
    everything that the broker sends; what it does not take (False) is the reply to what was asked.
    `channels` are opened; True: what is published there is confirmed.
    """

    def __init__(
        self,
        address: Address,
        vhost: str,
        product: str,
        handle: Handle,
        channels: Mapping[int, bool],
    ) -> None:
        self.blocked = False
        self._handle = handle
        self._data = bytearray()
        self._replies: deque[tuple[Method, Content | None]] = deque()
        self._open: dict[int, _Open] = {}  # by channel
        self._closed: LinkFailed | None = None  # until that was raised
        self._told_s = 0.0  # when the last frame came that is no heartbeat
        self.frame_max = 0
        # The calls and the heartbeats share the socket: a send is made with this, frame by whole
        # frame, and so is each read, since TLS has one state for both directions.
        self._lock = threading.RLock()
        self._unsent = memoryview(b"")
        self._over = threading.Event()
        self._pulse: threading.Thread | None = None
        where = f"{address.host}:{address.port}"
        try:
            plain = socket.create_connection((address.host, address.port), timeout=SILENCE_S_MAX)
            self._socket: socket.socket = plain
        except OSError as error:
            raise LinkFailed(f"no broker answers at {where}: {error.strerror or error}") from error
        try:
            if address.tls:
                self._socket = _secured(plain, address)
            self._socket.setblocking(False)
            self._poll = select.poll()
            self._poll.register(self._socket)
            self._begin(address, vhost, product)
            for channel, confirms in channels.items():
                self.open_channel(channel, confirms=confirms)
        except BaseException:
            self._end()
            self._socket.close()
            raise

    def close(self, *, orderly: bool) -> None:
        """End the connection; `orderly`: the broker is told, and has to agree."""
        try:
            if orderly:
                self.ask(0, spec.ConnectionClose(200, "", 0, 0), spec.ConnectionCloseOk)
        finally:
            self._end()
            self._socket.close()

    def open_channel(self, channel: int, *, confirms: bool = False) -> None:
        """Open a channel; `confirms`: the broker confirms what is published there."""
        self.ask(channel, spec.ChannelOpen(), spec.ChannelOpenOk)
        if confirms:
            self.ask(channel, spec.ConfirmSelect(False), spec.ConfirmSelectOk)

    def ask(self, channel: int, method: Method, kind: type[M]) -> M:
        """Send a method, and wait for the reply of this kind."""
        return self.expect(kind, method_frame(channel, method))

    def expect(self, kind: type[M], *buffers: Buffer) -> M:
        """Send this, and wait for the reply of this kind."""
        self.send(*buffers)
        reply, _ = self.reply()
        if not isinstance(reply, kind):
            raise LinkFailed(f"the broker answered with {reply.NAME}, and not {kind.NAME}")
        return reply

    def reply(self) -> tuple[Method, Content | None]:
        """Wait for the next reply."""
        self._told_s = time.monotonic()
        while not self._replies:
            left_s = self._told_s + SILENCE_S_MAX - time.monotonic()
            if self.blocked:  # it says why it does not answer, and may be so for long
                self.receive()
            elif left_s <= 0 or not self.receive(left_s):
                raise LinkFailed(f"the broker has not answered for {SILENCE_S_MAX:.0f} s")
        return self._replies.popleft()

    def send(
        self,
        *buffers: Buffer,
        paused: Callable[[], None] | None = None,
        paused_s: float = SILENCE_S_MAX,
    ) -> None:
        """Send everything. What the broker sends meanwhile is read, so that neither side blocks.

        `paused` is called, once, when the broker takes nothing for `paused_s` seconds.
        """
        with self._lock:
            self._unsent = memoryview(b"".join((self._unsent, *buffers)))
            taken_s = time.monotonic()
            while self._unsent:
                left_s = SILENCE_S_MAX  # of a broker that has blocked us: it may be so for long
                if not self.blocked or paused is not None:
                    bound_s = SILENCE_S_MAX if paused is None else paused_s
                    left_s = max(0.0, taken_s + bound_s - time.monotonic())
                readable, writable = self._wait(select.POLLIN | select.POLLOUT, left_s)
                if readable:
                    self._read()
                if writable:
                    try:
                        self._write()
                    except OSError as error:
                        self._read()  # it may have said why
                        raise LinkFailed(f"the connection broke: {error.strerror}") from error
                    taken_s = time.monotonic()
                elif not readable or not left_s:
                    if paused is None:
                        raise LinkFailed(f"the broker has taken nothing for {SILENCE_S_MAX:.0f} s")
                    paused()
                    paused = None

    def receive(self, wait_s: float | None = None) -> bool:
        """Wait until the broker has sent something, and handle that; whether there was something.

        Without `wait_s` (seconds) a silence of a minute is a failure.
        """
        if not self._wait(select.POLLIN, SILENCE_S_MAX if wait_s is None else wait_s)[0]:
            if wait_s is None:
                raise LinkFailed(f"the broker has said nothing for {SILENCE_S_MAX:.0f} s")
            return False
        self._read()
        return True

    # -- inside

    def _begin(self, address: Address, vhost: str, product: str) -> None:
        self.expect(spec.ConnectionStart, PROTOCOL_HEADER)
        told: Table = {
            "product": product,
            "version": __version__,
            "capabilities": {
                "publisher_confirms": True,
                "connection.blocked": True,
                "authentication_failure_close": True,
                "consumer_cancel_notify": True,
            },
        }
        response = f"\0{address.user}\0{address.password}".encode()
        start = spec.ConnectionStartOk(told, "PLAIN", response, "en_US")
        tune = self.ask(0, start, spec.ConnectionTune)
        self.frame_max = tune.frame_max or 131072
        heartbeat_s = min(tune.heartbeat or HEARTBEAT_S_MAX, HEARTBEAT_S_MAX)
        tuned = spec.ConnectionTuneOk(tune.channel_max, self.frame_max, heartbeat_s)
        self.send(method_frame(0, tuned))
        pulse = threading.Thread(
            target=self._beat, args=(heartbeat_s,), name="qlog-heartbeats", daemon=True
        )
        try:
            pulse.start()
        except RuntimeError as error:
            raise LinkFailed(f"no heartbeats can be sent: {error}") from error
        self._pulse = pulse
        self.ask(0, spec.ConnectionOpen(vhost), spec.ConnectionOpenOk)

    def _wait(self, events: int, wait_s: float) -> tuple[bool, bool]:
        """Wait for one of these events, but not for ever: whether one can read, and can write.

        A socket's number may be above what `select.select` takes.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            with self._lock:
                if self._socket.pending():
                    return True, False
        self._poll.modify(self._socket, events)
        found = self._poll.poll(wait_s * 1000)
        said = found[0][1] if found else 0
        return bool(said & ~select.POLLOUT), bool(said & select.POLLOUT)

    def _write(self) -> None:
        """Send what the socket takes now of what is to be sent. Raises OSError."""
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._unsent = self._unsent[self._socket.send(self._unsent) :]

    def _beat(self, heartbeat_s: int) -> None:
        """Send heartbeats twice in so many seconds, on a thread of its own, until it is over."""
        while not self._over.wait(heartbeat_s / 2):
            # A call is sending or reading. What it sends is as good as a heartbeat; and if the
            # socket takes nothing, because the broker does not read, it would take none either.
            if not self._lock.acquire(blocking=False):
                continue
            try:
                if not self._unsent:
                    self._unsent = memoryview(HEARTBEAT_FRAME)
                self._write()
            except OSError:
                return  # the next call meets the same, and says it
            finally:
                self._lock.release()

    def _end(self) -> None:
        """No more heartbeats."""
        self._over.set()
        if self._pulse is not None:
            self._pulse.join()

    def _read(self) -> None:
        """Take what the broker has sent."""
        try:
            with self._lock:
                data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            raise LinkFailed(f"the connection broke: {error.strerror}") from error
        if not data:
            raise LinkFailed("the broker closed the connection")
        self._data += data
        self._take_frames()
        if self._closed is not None:
            closed, self._closed = self._closed, None
            raise closed

    def _take_frames(self) -> None:
        data, at = self._data, 0
        try:
            while len(data) - at >= FRAME_HEAD.size:
                kind, channel, size = FRAME_HEAD.unpack_from(data, at)
                end = at + FRAME_HEAD.size + size + 1
                if len(data) < end:
                    break
                if data[end - 1] != FRAME_END:
                    raise LinkFailed("this is no broker that speaks AMQP 0-9-1")
                payload = bytes(data[at + FRAME_HEAD.size : end - 1])
                at = end
                self._take_frame(kind, channel, payload)
        except HardError as error:
            raise LinkFailed(f"what the broker sent cannot be read: {error.reply_text}") from error
        finally:
            del data[:at]

    def _take_frame(self, kind: int, channel: int, payload: bytes) -> None:
        if kind != HEARTBEAT:
            self._told_s = time.monotonic()
        if kind == METHOD:
            method = decode_method(payload)
            if method.HAS_CONTENT:
                self._open[channel] = _Open(method)
            else:
                self._take(channel, method, None)
        elif kind in (HEADER, BODY):
            content = self._open.get(channel)
            if content is None:
                raise LinkFailed("the broker sent a content without its method")
            if kind == HEADER:
                content.left = CONTENT_FIXED.unpack_from(payload)[2]
                content.properties = payload[CONTENT_FIXED_BYTES:]
            else:
                content.parts.append(payload)
                content.left -= len(payload)
            if content.properties is not None and content.left <= 0:
                del self._open[channel]
                body = b"".join(content.parts)
                self._take(channel, content.method, Content(content.properties, body))

    def _take(self, channel: int, method: Method, content: Content | None) -> None:
        match method:
            case spec.ConnectionBlocked():
                self.blocked = True
            case spec.ConnectionUnblocked():
                self.blocked = False
            case spec.ConnectionClose() | spec.ChannelClose():
                self._handle(channel, method, None)
                why = f"the broker refused: {method.reply_text}"
                self._closed = self._closed or LinkFailed(why, method.reply_code)
            case _:
                if not self._handle(channel, method, content):
                    self._replies.append((method, content))


def _secured(plain: socket.socket, address: Address) -> ssl.SSLSocket:
    """TLS, with the certificate authorities of the system (or of SSL_CERT_FILE)."""
    try:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=address.host)
    except OSError as error:  # ssl.SSLError among them
        where = f"{address.host}:{address.port}"
        raise LinkFailed(f"no TLS with {where}: {error.strerror or error}") from error
