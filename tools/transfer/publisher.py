"""A publisher over AMQP 0-9-1: one connection, publisher confirms, no more.

Promises that a message which it calls confirmed was confirmed by the broker, and is in its queue.
Its calls wait; a broker that says nothing for a minute counts as gone. Knows nothing of files.
"""

import secrets
import select
import socket
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Self, TypeVar
from urllib.parse import unquote, urlsplit

from qlog import __version__
from qlog.server.amqp import spec
from qlog.server.amqp.envelope import NO_RECORD, Envelope
from qlog.server.amqp.frames import (
    FRAME_END,
    FRAME_HEAD,
    METHOD,
    PROTOCOL_HEADER,
    Buffer,
    body_frames,
    header_frame,
    method_frame,
)
from qlog.server.amqp.properties import RECORD_HEADER, with_header
from qlog.server.amqp.spec import Method, decode_method
from qlog.server.amqp.values import Table

_PUBLISHING, _ASKING = 1, 2  # channels
_WAITING_MAX = 1000  # messages that are not confirmed yet
_WAITING_BYTES_MAX = 8 << 20
_SILENCE_S_MAX = 60.0
_READ_BYTES = 1 << 16
M = TypeVar("M", bound=Method)


class PublishFailed(Exception):
    """The broker did not take a message; `str()` is one line that says why."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message that the broker has not answered for. `name` is what the caller calls it."""

    queue: str
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Address:
    """Where and as whom to connect. `vhost` is None when the URL names none."""

    host: str
    port: int
    user: str
    password: str
    vhost: str | None

    @classmethod
    def parse(cls, url: str) -> Self:
        """From `amqp://user:password@host:port/vhost`. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme != "amqp":
            raise ValueError(f"{url!r} is not an address such as amqp://guest:guest@localhost:5672")
        return cls(
            parts.hostname or "localhost",
            parts.port or 5672,
            unquote(parts.username or "guest"),
            unquote(parts.password or "guest"),
            unquote(parts.path[1:]) if len(parts.path) > 1 else None,
        )


class Publisher:
    """A connection to one vhost. All methods raise PublishFailed; use it as a context."""

    def __init__(self, address: Address, vhost: str) -> None:
        self.published = 0
        self._vhost = vhost
        self._waiting: OrderedDict[int, _Sent] = OrderedDict()  # by delivery tag
        self._waiting_bytes = 0
        self._refused: dict[int, str] = {}  # delivery tag -> why
        self._blocked = False
        self._closed = ""  # why the broker has closed something, until that was raised
        self._over = False  # that was what publishes
        self._data = bytearray()
        self._replies: deque[Method] = deque()
        self._frame_max = 0
        self._queues: dict[str, str | None] = {}  # known queues, with an exchange of their own
        try:
            self._socket = socket.create_connection(
                (address.host, address.port), timeout=_SILENCE_S_MAX
            )
        except OSError as error:
            raise PublishFailed(
                f"no broker answers at {address.host}:{address.port}: {error.strerror or error}"
            ) from error
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket)
        try:
            self._open(address)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            if kind is None:
                for exchange in filter(None, self._queues.values()):
                    self._ask(
                        _ASKING, spec.ExchangeDelete(exchange, False, False), spec.ExchangeDeleteOk
                    )
                self._ask(0, spec.ConnectionClose(200, "", 0, 0), spec.ConnectionCloseOk)
        finally:
            self._socket.close()

    @property
    def confirmed(self) -> int:
        """So many of the first messages are confirmed."""
        open_ = (next(iter(self._waiting), self.published + 1), *self._refused)
        return min(open_) - 1

    def find(self, queue: str) -> None:
        """Have the broker say that there is such a queue."""
        if queue not in self._queues:
            passive = spec.QueueDeclare(queue, True, False, False, False, False, {})
            self._ask(_ASKING, passive, spec.QueueDeclareOk)
            self._queues[queue] = None

    def publish(self, queue: str, envelope: Envelope, body: bytes, name: str) -> None:
        """Send a message to a queue that was found; it need not be confirmed when this returns.

        Raises PublishFailed also when an earlier message was refused, by the name of that one.
        """
        exchange = ""
        if "CC" in (envelope.decoded_properties().headers or {}):
            exchange = self._exchange_of(queue)
        while (
            self._blocked
            or len(self._waiting) >= _WAITING_MAX
            or self._waiting_bytes > _WAITING_BYTES_MAX
        ):
            self._receive(wait=True)
        self._raise_refusal()
        record = envelope.record
        if record is not NO_RECORD:  # the broker takes the header away, and remembers
            told = with_header(envelope.properties, RECORD_HEADER, record.as_table())
            envelope = envelope._replace(properties=told)
        publish = spec.BasicPublish(exchange, queue, True, False)
        self._send(
            method_frame(_PUBLISHING, publish),
            header_frame(_PUBLISHING, envelope),
            *body_frames(_PUBLISHING, body, self._frame_max),
        )
        self.published += 1
        self._waiting[self.published] = _Sent(queue, name, len(body))
        self._waiting_bytes += len(body)

    def wait(self) -> None:
        """Wait until the broker has answered for everything that was published, or has gone."""
        while self._waiting and not self._over:
            self._receive(wait=True)
        self._raise_refusal()

    # -- inside

    def _raise_refusal(self) -> None:
        if self._refused:
            raise PublishFailed(self._refused[min(self._refused)])

    def _open(self, address: Address) -> None:
        self._expect(spec.ConnectionStart, PROTOCOL_HEADER)
        product: Table = {
            "product": "qlog inspect import",
            "version": __version__,
            "capabilities": {
                "publisher_confirms": True,
                "connection.blocked": True,
                "authentication_failure_close": True,
            },
        }
        response = f"\0{address.user}\0{address.password}".encode()
        start = spec.ConnectionStartOk(product, "PLAIN", response, "en_US")
        tune = self._ask(0, start, spec.ConnectionTune)
        self._frame_max = tune.frame_max or 131072
        self._send(method_frame(0, spec.ConnectionTuneOk(tune.channel_max, self._frame_max, 0)))
        self._ask(0, spec.ConnectionOpen(self._vhost), spec.ConnectionOpenOk)
        for channel in (_PUBLISHING, _ASKING):
            self._ask(channel, spec.ChannelOpen(), spec.ChannelOpenOk)
        self._ask(_PUBLISHING, spec.ConfirmSelect(False), spec.ConfirmSelectOk)

    def _exchange_of(self, queue: str) -> str:
        """An exchange that leads to this queue alone, whatever other keys a message has."""
        exchange = self._queues[queue]
        if exchange is None:
            exchange = f"qlog.import.{secrets.token_hex(8)}"
            declare = spec.ExchangeDeclare(
                exchange, "fanout", False, False, False, False, False, {}
            )
            self._ask(_ASKING, declare, spec.ExchangeDeclareOk)
            self._queues[queue] = exchange
            self._ask(_ASKING, spec.QueueBind(queue, exchange, "", False, {}), spec.QueueBindOk)
        return exchange

    def _ask(self, channel: int, method: Method, kind: type[M]) -> M:
        """Send a method, and wait for the reply of this kind."""
        return self._expect(kind, method_frame(channel, method))

    def _expect(self, kind: type[M], *buffers: Buffer) -> M:
        self._send(*buffers)
        while not self._replies:
            self._receive(wait=True)
        reply = self._replies.popleft()
        if not isinstance(reply, kind):
            raise PublishFailed(f"the broker answered with {reply.NAME}, and not {kind.NAME}")
        return reply

    def _send(self, *buffers: Buffer) -> None:
        """Send everything. What the broker sends meanwhile is read, so that neither side blocks."""
        rest = memoryview(b"".join(buffers))
        while rest:
            readable, writable = self._wait(select.POLLIN | select.POLLOUT)
            if readable:
                self._receive(wait=False)
            if writable:
                try:
                    rest = rest[self._socket.send(rest) :]
                except OSError as error:
                    self._receive(wait=False)  # it may have said why
                    raise PublishFailed(f"the connection broke: {error.strerror}") from error
            if not readable and not writable and not self._blocked:
                raise PublishFailed(f"the broker has taken nothing for {_SILENCE_S_MAX:.0f} s")

    def _wait(self, events: int) -> tuple[bool, bool]:
        """Wait for one of these events, but not for ever: whether one can read, and can write.

        A socket's number may be above what `select.select` takes.
        """
        self._poll.modify(self._socket, events)
        found = self._poll.poll(_SILENCE_S_MAX * 1000)
        said = found[0][1] if found else 0
        return bool(said & ~select.POLLOUT), bool(said & select.POLLOUT)

    def _receive(self, *, wait: bool) -> None:
        """Take what the broker has sent; with `wait`, until there is something."""
        if wait and not self._wait(select.POLLIN)[0]:
            if self._blocked:
                return
            raise PublishFailed(f"the broker has said nothing for {_SILENCE_S_MAX:.0f} s")
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise PublishFailed(f"the connection broke: {error.strerror}") from error
        if not data:
            raise PublishFailed("the broker closed the connection")
        self._data += data
        while len(self._data) >= FRAME_HEAD.size:
            kind, channel, size = FRAME_HEAD.unpack_from(self._data)
            end = FRAME_HEAD.size + size + 1
            if len(self._data) < end:
                break
            payload = bytes(self._data[FRAME_HEAD.size : end - 1])
            if self._data[end - 1] != FRAME_END:
                raise PublishFailed("this is no broker that speaks AMQP 0-9-1")
            del self._data[:end]
            if kind == METHOD:
                self._handle(channel, decode_method(payload))
        if self._closed:
            why, self._closed = self._closed, ""
            raise PublishFailed(f"the broker refused: {why}")

    def _handle(self, channel: int, method: Method) -> None:
        match method:
            case spec.BasicAck():
                self._settle(method.delivery_tag, method.multiple)
            case spec.BasicNack():
                refused = self._settle(method.delivery_tag, method.multiple)
                for tag, sent in refused.items():
                    self._refused[tag] = f"{sent.name}: the broker could not keep it (basic.nack)"
            case spec.BasicReturn():
                # It names the queue only, and a confirm of the same message follows it.
                self._return(method.routing_key, method.reply_text)
            case spec.ConnectionBlocked():
                self._blocked = True
            case spec.ConnectionUnblocked():
                self._blocked = False
            case spec.ConnectionClose() | spec.ChannelClose():
                self._closed = method.reply_text
                self._over |= channel != _ASKING
            case _:
                self._replies.append(method)

    def _settle(self, tag: int, multiple: bool) -> dict[int, _Sent]:
        """Take the messages that the broker has answered for now."""
        tags = [one for one in self._waiting if one <= tag] if multiple else [tag]
        settled = {one: self._waiting.pop(one) for one in tags if one in self._waiting}
        self._waiting_bytes -= sum(sent.size for sent in settled.values())
        return settled

    def _return(self, queue: str, why: str) -> None:
        """The oldest unconfirmed message to the queue was returned: the queue is gone."""
        for tag, sent in self._waiting.items():
            if sent.queue == queue and tag not in self._refused:
                self._refused[tag] = (
                    f"{sent.name}: no queue '{queue}' in vhost '{self._vhost}' took it: {why}"
                )
                return
