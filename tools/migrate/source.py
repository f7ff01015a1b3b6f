"""RabbitMQ, as a migration reads it: one connection to one vhost, over AMQP.

Promises that properties come as RabbitMQ has them, octet by octet, but for the headers that
RabbitMQ itself adds to a delivery. Knows nothing of where messages go.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import NamedTuple, Self

import msgpack
from xxhash import xxh3_128_hexdigest

from qlog.server.amqp import spec
from qlog.server.amqp.errors import AMQPError
from qlog.server.amqp.frames import method_frame
from qlog.server.amqp.properties import examine, headers_of, stripped
from qlog.server.amqp.spec import Method
from qlog.server.amqp.values import Table
from qlog.tools.transfer.link import Address, Content, Link, LinkFailed

# With so many messages at once the time for asking is little beside that for the messages.
GET_AT_ONCE = 100
# RabbitMQ has said that there are messages; if none comes for so long, something else took them.
IDLE_S = 2.0
# What a stream has comes at once, unless the machine is very busy.
STREAM_IDLE_S = 5.0
_CHANNEL = 1
# Added to what is delivered from a quorum queue again, and from a stream.
_ADDED = (b"x-delivery-count", b"x-acquired-count", b"x-stream-offset")
_REFUSED, _LOCKED = 403, 405


class Arrived(NamedTuple):
    """A message of RabbitMQ. `offset`: in a stream. `digest`: of all that its consumers get."""

    tag: int
    redelivered: bool
    offset: int
    exchange: str
    routing_key: str
    properties: bytes
    body: bytes

    @property
    def head(self) -> bytes:
        """All but the body, as qlog's API takes it, and as its digest begins."""
        return msgpack.packb((self.exchange, self.routing_key, self.properties))

    @property
    def digest(self) -> str:
        """As `Envelope.digest`."""
        return xxh3_128_hexdigest(self.head + self.body)


class InUse(Exception):
    """Others consume from the queue; `str()` says so."""


class Source:
    """See the head of this file. All methods raise LinkFailed; use it as a context."""

    def __init__(self, address: Address, vhost: str) -> None:
        self._arrived: deque[Arrived] = deque()
        self._cancelled = False
        self._link = Link(address, vhost, "qlog ctl migrate", self._handle, {_CHANNEL: False})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if kind is not None:
            self._link.close(orderly=False)
            return
        with suppress(LinkFailed):  # all is done
            self._link.close(orderly=True)

    def look(self, queue: str) -> tuple[int, int]:
        """How many messages of a queue are ready, and how many consumers it has."""
        passive = spec.QueueDeclare(queue, True, False, False, False, False, {})
        answer = self._link.ask(_CHANNEL, passive, spec.QueueDeclareOk)
        return answer.message_count, answer.consumer_count

    def window(self, queue: str, count: int, prefetch: int, *, shared: bool) -> Iterator[Arrived]:
        """Deliveries from the head of a queue, about `count`, at most `prefetch`.

        Nothing is acknowledged, and nothing else is delivered. `shared`: not as the only consumer,
        which queues with a single active consumer do not allow. Raises InUse.
        """
        tag = self._consume(queue, prefetch, {}, exclusive=not shared)
        wanted = min(count, prefetch)
        got = 0
        while got < wanted and self._wait(IDLE_S):
            while self._arrived:
                got += 1
                yield self._arrived.popleft()
        self._link.ask(_CHANNEL, spec.BasicCancel(tag, False), spec.BasicCancelOk)
        yield from self._left()

    def get(self, queue: str, count: int) -> Iterator[Arrived]:
        """Up to so many messages from the head of a queue, without consuming from it.

        It is slower; but no consumer of a queue that is deleted with its last one leaves.
        """
        get = method_frame(_CHANNEL, spec.BasicGet(queue, False))
        while count > 0:
            at_once = min(count, GET_AT_ONCE)
            self._link.send(*[get] * at_once)
            # All replies first: the caller may ask for something else between two messages.
            replies = [self._link.reply() for _ in range(at_once)]
            empty = False
            for method, content in replies:
                if isinstance(method, spec.BasicGetOk) and content is not None:
                    yield _arrived(method, content)
                else:
                    empty = True
            if empty:
                return
            count -= at_once

    def acknowledge(self, tag: int, rejected: list[int]) -> None:
        """Acknowledge everything up to a delivery but what was rejected, which goes back.

        When this returns, RabbitMQ has taken all of it. It takes an acknowledgement as a whole.
        """
        frames = [method_frame(_CHANNEL, spec.BasicNack(one, False, True)) for one in rejected]
        frames.append(method_frame(_CHANNEL, spec.BasicAck(tag, True)))
        self._link.send(*frames)
        # The channel obeys in order, so that its answer to anything stands behind that.
        self._link.ask(_CHANNEL, spec.BasicQos(0, 0, False), spec.BasicQosOk)

    # -- streams

    def last_offset(self, queue: str) -> int | None:
        """The offset of the last message of a stream; None: it has none."""
        last: int | None = None
        for one in self.stream(queue, "last", GET_AT_ONCE, idle_s=IDLE_S):
            last = one.offset
        return last

    def stream(
        self, queue: str, offset: int | str, prefetch: int, idle_s: float = STREAM_IDLE_S
    ) -> Generator[Arrived, None, None]:
        """The messages of a stream from an offset on, until none comes for so many seconds.

        The caller may stop before.
        """
        tag = self._consume(queue, prefetch, {"x-stream-offset": offset}, exclusive=False)
        try:
            while self._wait(idle_s):
                while self._arrived:
                    one = self._arrived.popleft()
                    self._link.send(method_frame(_CHANNEL, spec.BasicAck(one.tag, False)))
                    yield one
        finally:
            self._link.ask(_CHANNEL, spec.BasicCancel(tag, False), spec.BasicCancelOk)
            self._arrived.clear()

    # -- inside

    def _consume(self, queue: str, prefetch: int, arguments: Table, *, exclusive: bool) -> str:
        self._cancelled = False
        self._link.ask(_CHANNEL, spec.BasicQos(0, prefetch, False), spec.BasicQosOk)
        consume = spec.BasicConsume(queue, "", False, False, exclusive, False, arguments)
        try:
            return self._link.ask(_CHANNEL, consume, spec.BasicConsumeOk).consumer_tag
        except LinkFailed as error:
            if error.code not in (_REFUSED, _LOCKED) or "in exclusive use" not in str(error):
                raise
            # The channel is closed.
            self._link.send(method_frame(_CHANNEL, spec.ChannelCloseOk()))
            self._link.open_channel(_CHANNEL)
            raise InUse("others consume from it") from None

    def _wait(self, idle_s: float) -> bool:
        """Wait until something has arrived; False: nothing did for so many seconds."""
        end_s = time.monotonic() + idle_s
        while not self._arrived:
            if self._cancelled:
                raise LinkFailed("RabbitMQ has cancelled the consumer: the queue is gone, or moved")
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return False
            self._link.receive(left_s)
        return True

    def _left(self) -> Iterator[Arrived]:
        while self._arrived:
            yield self._arrived.popleft()

    def _handle(self, channel: int, method: Method, content: Content | None) -> bool:
        if isinstance(method, spec.BasicDeliver) and content is not None:
            self._arrived.append(_arrived(method, content))
            return True
        if isinstance(method, spec.BasicCancel):
            self._cancelled = True
            return True
        return False


def _arrived(method: spec.BasicDeliver | spec.BasicGetOk, content: Content) -> Arrived:
    """A message as it was published. Raises LinkFailed when it is malformed."""
    try:
        _, properties = examine(content.properties)
    except AMQPError as error:
        raise LinkFailed(f"the properties of a message cannot be read: {error}") from error
    offset = -1
    found = headers_of(properties, ("x-stream-offset",)).get("x-stream-offset")
    if isinstance(found, int):
        offset = found
    # The count says that the message was delivered before; it comes from RabbitMQ then.
    if method.redelivered or found is not None:
        properties = stripped(properties, _ADDED)
    return Arrived(
        method.delivery_tag,
        method.redelivered,
        offset,
        method.exchange,
        method.routing_key,
        properties,
        content.body,
    )
