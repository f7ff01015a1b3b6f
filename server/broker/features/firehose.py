"""The firehose: while it is on, a copy of all that is published and delivered in a vhost.

The copies are published to the exchange `amq.rabbitmq.trace`: with the routing key `publish.X` for
a message that a client publishes to the exchange X, and `deliver.Q` for one that a client gets from
the queue Q (by basic.consume or basic.get). Their headers say what RabbitMQ's say (rabbit_trace).
Promises that copies are never traced themselves; that they are transient; that a message is traced
before it is delivered, also one that is returned, that has no queue, or that waits for tx.commit;
and that a vhost whose firehose is off spends nothing on it. It is off after each start.

Each message is three or more while it is on, and is looked at one by one: it is for debugging. A
consumer gets few at a time meanwhile, so that nobody else waits for the copies.
Knows no channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, Protocol

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import (
    NO_TRAITS,
    Properties,
    decode_properties,
    encode_properties,
)
from qlog.server.amqp.values import LongStr, Table, Value
from qlog.server.broker.features.carbon_copies import keys_of
from qlog.server.broker.post import PostOffice
from qlog.server.broker.queues.backlog import Taken
from qlog.server.broker.queues.mail import Mail
from qlog.server.broker.queues.targets import Targets

TRACE = "amq.rabbitmq.trace"
NODE = "qlog"
# A consumer gets so many messages at once while the firehose is on: the copies of each take some 50
# microseconds, and the clock is looked at between two hands.
TRACED_AT_ONCE = 32
_SHORTSTR_BYTES_MAX = 255


class Exchanges(Protocol):
    """What the firehose needs of its vhost."""

    name: str

    def route(self, exchange: str, keys: Sequence[str], envelope: Envelope) -> tuple[Targets, bool]:
        """The queues of a message, and whether exchange and keys alone decided it."""


class Origin(NamedTuple):
    """The channel on which something happened. `connection` is the client's address."""

    connection: str
    channel: int
    user: str


class Firehose:
    """The firehose of one vhost, which is on. `node`: what the copies name as the node."""

    def __init__(self, exchanges: Exchanges, post: PostOffice, node: str = NODE) -> None:
        self._exchanges = exchanges
        self._post = post
        self._node = node

    def published(
        self,
        origin: Origin,
        envelope: Envelope,
        body: bytes,
        keys: Sequence[str],
        queues: Sequence[str],
    ) -> None:
        """A client has published a message with these routing keys, which goes to `queues`."""
        headers = self._headers(origin, envelope, keys)
        headers["routed_queues"] = list(queues)
        self._publish(f"publish.{envelope.exchange}", [(envelope, headers, body)])

    def delivered(self, origin: Origin, queue: str, taken: Taken) -> None:
        """A client gets messages from the queue of that name."""
        copies: list[tuple[Envelope, Table, bytes]] = []
        for envelope, body in zip(taken.envelopes, taken.bodies, strict=True):
            if envelope.exchange != TRACE:
                headers = self._headers(origin, envelope, keys_of(envelope))
                headers["redelivered"] = int(taken.redelivered)
                copies.append((envelope, headers, body))
        self._publish(f"deliver.{queue}", copies)

    def _headers(self, origin: Origin, envelope: Envelope, keys: Sequence[str]) -> Table:
        return {
            "exchange_name": envelope.exchange,
            "routing_keys": list(keys),
            "properties": _as_table(decode_properties(envelope.properties)),
            "node": self._node,
            "vhost": self._exchanges.name,
            "connection": origin.connection,
            "channel": origin.channel,
            "user": origin.user,
        }

    def _publish(self, key: str, copies: Sequence[tuple[Envelope, Table, bytes]]) -> None:
        key = key.encode()[:_SHORTSTR_BYTES_MAX].decode(errors="ignore")
        addressed: list[tuple[Targets, Envelope, bytes]] = []
        for original, headers, body in copies:
            properties = encode_properties(Properties(headers=headers))
            envelope = Envelope.pack(TRACE, key, properties, original.body_size)
            targets, _ = self._exchanges.route(TRACE, [key], envelope)
            if targets.queues or targets.keepers:
                addressed.append((targets, envelope, body))
        for targets, group in groupby(addressed, key=itemgetter(0)):
            _, envelopes, bodies = zip(*group, strict=True)
            traits = [NO_TRAITS] * len(bodies)
            self._post.pass_on(targets, Mail(False, traits, envelopes, bodies, self._post.now_ms))


def _as_table(properties: Properties) -> Table:
    """The properties that are there, by name."""
    table: Table = {}
    for name in Properties.__slots__:
        value: Value = getattr(properties, name)
        if isinstance(value, str):
            table[name] = _text(value)
        elif isinstance(value, int):
            table[name] = int(value)  # the timestamp as well
        elif value is not None:
            table[name] = value
    return table


def _text(text: str) -> Value:
    """A property's text as a field value: what is not UTF-8 keeps its octets."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return LongStr(text.encode("utf-8", "surrogateescape"))
    return text
