"""Messages that an operator publishes, or takes from a queue, without a connection.

The rules are those of clients: publishing goes through `Publisher`, with the rights of who asks.
Promises that what was taken to be looked at goes back to its place all at once, also if one of the
messages cannot be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import SoftError
from qlog.server.amqp.properties import Properties, encode_properties, examine
from qlog.server.amqp.recognise import PublishRun
from qlog.server.broker.access.users import User
from qlog.server.broker.channels.publisher import Exchanges, Post, Publisher
from qlog.server.broker.channels.sink import READ, Hold
from qlog.server.broker.jobs import Steps
from qlog.server.broker.listings.values import json_value
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.backlog import Backlog
from qlog.server.broker.queues.type import QueueType

# What becomes of a message that was taken: RabbitMQ's names.
AckMode = Literal[
    "ack_requeue_true", "ack_requeue_false", "reject_requeue_true", "reject_requeue_false"
]
# Messages are taken until they have so many octets, whatever number was asked for.
TAKEN_BYTES_MAX = 64 * 1024 * 1024
_FRAME_HEAD_BYTES = 7
_NACK = b"\x00\x3c\x00\x78"  # basic.nack, in the frame of a confirm


class Rejected(SoftError):
    """A queue has rejected the message."""

    def __init__(self) -> None:
        super().__init__(406, "PRECONDITION_FAILED", "the message was rejected by a queue")


class _Hand:
    """The channel of one message, and its sink: hears whether it was returned, and the confirm."""

    number = 1
    closed = False
    why_not_read = READ
    full = overfull = False
    frame_max = 131072

    def __init__(self, user: User, peer: str) -> None:
        self.user = user
        self.peer = peer
        self.routed = True
        self.outcome: Outcome[bool] = Outcome()

    @property
    def sink(self) -> _Hand:
        return self

    def hold(self, reason: Hold) -> None:
        """It publishes once."""

    def release(self, reason: Hold) -> None:
        """See `hold`."""

    def send(self, channel: int, method: spec.Method) -> None:
        raise AssertionError(method)

    def send_content(
        self, channel: int, method: spec.Method, envelope: Envelope, body: bytes
    ) -> None:
        """basic.return: no queue takes the message."""
        self.routed = False

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        """The confirm."""
        frame = bytes(buffers[0])
        if frame[_FRAME_HEAD_BYTES:].startswith(_NACK):
            self.outcome.fail(Rejected())
        else:
            self.outcome.set(self.routed)

    def disconnect(self, *, after_s: float = 0.0) -> None:
        raise AssertionError

    def finish(self) -> None:
        raise AssertionError


def publish(
    vhost: Exchanges,
    post: Post,
    user: User,
    peer: str,
    exchange: str,
    key: str,
    properties: Properties,
    body: bytes,
) -> Outcome[bool]:
    """Publish one message; whether a queue has taken it, when it is durable as far as it has to be.

    Raises the AMQPError that a client would get; fails with Rejected. Raises ValueError for
    properties that AMQP has no octets for.
    """
    traits, raw = examine(encode_properties(properties))
    run = PublishRun(traits)
    method = spec.BasicPublish(exchange, key, True, False)
    run.add(method, Envelope.pack(exchange, key, raw, len(body)), body)
    hand = _Hand(user, peer)
    publisher = Publisher(hand, hand, vhost, post)
    publisher.confirms.select()
    publisher.publish([run])
    return hand.outcome


class Found(NamedTuple):
    """A message that was taken; `left` is how many were ready behind it."""

    envelope: Envelope
    body: bytes
    redelivered: bool
    left: int

    @property
    def properties(self) -> dict[str, Any]:
        """Those that are there, as JSON."""
        decoded = self.envelope.decoded_properties()
        found = {name: getattr(decoded, name) for name in Properties.__slots__}
        return {name: json_value(value) for name, value in found.items() if value is not None}


def taking(queue: QueueType, count: int, mode: AckMode) -> Steps[list[Found]]:
    """Take up to so many messages, and do with them what `mode` says. Raises CorruptLog."""
    found: list[Found] = []
    back: dict[Backlog, tuple[Numbers, int]] = {}
    size = 0
    try:
        while len(found) < count and size < TAKEN_BYTES_MAX:
            taken = queue.get()
            if taken is None:
                queue.counts.get_empty += not found
                break
            backlog, qseq = taken.backlog, taken.first_qseq
            found.append(Found(taken.envelopes[0], taken.bodies[0], taken.redelivered, queue.ready))
            size += taken.sizes[0]
            queue.counts.get += 1
            queue.counts.of_type.get += 1
            if mode == "ack_requeue_false":
                backlog.settle(qseq, 1, taken.sizes[0])
                queue.counts.ack += 1
                queue.counts.of_type.ack += 1
            elif mode == "reject_requeue_false":
                queue.discard(backlog, qseq, 1, taken.sizes[0])
            else:
                numbers, octets = back.setdefault(backlog, (Numbers(), 0))
                numbers.add(qseq, 1)
                back[backlog] = numbers, octets + taken.sizes[0]
            yield
    finally:
        for backlog, (numbers, octets) in back.items():
            queue.requeue_all(backlog, numbers, octets, lost=False)
    return found
