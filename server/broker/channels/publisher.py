"""The way in: from a channel's basic.publish to the store, and the confirms that come back.

The fast path is a dict lookup a run: identical method bytes give the identical `BasicPublish`, for
which the queues are remembered until a binding changes. Runs that go to the same queues are appended
as one. What needs a look (CC, expiration, reply-to, user-id …) is marked `special` by the protocol
core and takes the slow path. Promises: every publish in confirm mode gets exactly one confirm, in
order, and none before `Store.durable_lsn` has passed it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import AMQPError, access_refused, not_implemented, precondition_failed
from qlog.server.amqp.properties import (
    BAD_MODE,
    CC,
    REPLY_TO,
    USER_ID,
    Traits,
    decode_properties,
    expiration_complaint,
    headers_of,
    text_of,
    with_text,
    without_header,
)
from qlog.server.amqp.recognise import PublishRun
from qlog.server.amqp.values import Table, type_name
from qlog.server.broker.channels.reply_to import REPLY_PREFIX
from qlog.server.broker.queues.targets import Targets

if TYPE_CHECKING:
    from qlog.server.broker.channels.channel import Channel

NO_ROUTE = 312
ROUTES_MAX = 4096  # cached routes a channel; keys that never repeat must not fill memory

Batch = tuple[Targets, bool, list[Envelope], list[bytes]]  # targets, persistent, envelopes, bodies
# targets, methods, envelopes, bodies
Routed = tuple[Targets, list[spec.BasicPublish], list[Envelope], list[bytes]]


class Publisher:
    """The publishing half of one channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._vhost = channel.vhost
        self._broker = channel.client.broker
        self._routes: dict[int, tuple[spec.BasicPublish, Targets]] = {}
        self._routes_version = -1
        self.confirming = False
        self.transaction: list[Batch] | None = None  # what tx.commit will publish
        self._transaction_past_queues: list[Routed] = []
        self._sequence = 0  # publishes seen in confirm mode
        self._noted = 0  # of these: confirmed, or waiting in _unconfirmed
        self._confirmed = 0
        self._lsn = 0  # the log must be durable up to here for all of them
        self._unconfirmed: deque[tuple[int, int]] = deque()  # (lsn, sequence)

    def publish(self, runs: list[PublishRun]) -> None:
        """Route and store what one read from the socket brought.

        Raises the AMQPError of the first message that is refused; those before it are stored.
        """
        if self._routes_version != self._vhost.routes_version:
            self._routes.clear()
            self._routes_version = self._vhost.routes_version
        batch: Batch | None = None
        try:
            for run in runs:
                persistent = run.traits.persistent
                for targets, methods, envelopes, bodies in self._routed(run):
                    if batch is None or batch[0] is not targets or batch[1] is not persistent:
                        if batch is not None:
                            self._store(batch)
                        batch = (targets, persistent, envelopes, bodies)
                    else:
                        batch[2].extend(envelopes)
                        batch[3].extend(bodies)
                    self._sequence += len(bodies)
                    if not targets.queues:
                        self._past_queues(targets, methods, envelopes, bodies)
        except AMQPError:
            self._finish(batch)
            raise
        self._finish(batch)

    # -- storing -----------------------------------------------------------------------------

    def _finish(self, batch: Batch | None) -> None:
        """Store what is left and let it be confirmed. Not reached when storing failed: a batch must
        not be stored twice, nor confirmed on the word of a second try."""
        if batch is not None:
            self._store(batch)
        if self.confirming:
            self._await_durability()

    def _store(self, batch: Batch) -> None:
        if not batch[0].queues:
            return
        if self.transaction is not None:
            self.transaction.append(batch)
        else:
            self._lsn = max(self._lsn, self._broker.enqueue(*batch))

    def commit(self) -> None:
        """tx.commit: publish what was kept back."""
        assert self.transaction is not None
        batches, past_queues = self.transaction, self._transaction_past_queues
        self.transaction = None
        for message in past_queues:
            self._past_queues(*message)
        for targets, persistent, envelopes, bodies in batches:
            if any(queue.deleted for queue in targets.queues):
                targets = Targets(tuple(queue for queue in targets.queues if not queue.deleted))
            if targets.queues:
                self._broker.enqueue(targets, persistent, envelopes, bodies)
        self.begin()

    def begin(self) -> None:
        """Keep back what is published from here on; forget what was kept back."""
        self.transaction = []
        self._transaction_past_queues = []

    # -- confirms ----------------------------------------------------------------------------

    def select_confirms(self) -> None:
        """confirm.select: publishes from here on are counted, from 1."""
        if not self.confirming:
            self.confirming = True
            self._sequence = 0

    def _await_durability(self) -> None:
        if self._sequence == self._noted:
            return
        self._noted = self._sequence
        if not self._unconfirmed and self._lsn <= self._broker.store.durable_lsn:
            self._confirm(self._sequence)
        else:
            self._unconfirmed.append((self._lsn, self._sequence))
            self._broker.await_durability(self)

    def confirm_through(self, durable_lsn: int) -> bool:
        """The log is durable up to `durable_lsn`: send one cumulative confirm. True: all are sent."""
        sequence = 0
        unconfirmed = self._unconfirmed
        while unconfirmed and unconfirmed[0][0] <= durable_lsn:
            sequence = unconfirmed.popleft()[1]
        if sequence and not self._channel.closed:
            self._confirm(sequence)
        return not unconfirmed

    def _confirm(self, sequence: int) -> None:
        several = sequence - self._confirmed > 1
        self._confirmed = sequence
        self._channel.send(spec.BasicAck(delivery_tag=sequence, multiple=several))

    # -- routing -----------------------------------------------------------------------------

    def _routed(self, run: PublishRun) -> Iterable[Routed]:
        """The run by where its messages go, in their order: mostly all to the same queues."""
        if not _wants_a_look(run.traits):
            routes = self._routes
            known = [routes.get(key) for key in dict.fromkeys(map(id, run.methods))]
            first = known[0]
            if first is not None and all(
                route is not None and route[1] is first[1] for route in known
            ):
                return ((first[1], run.methods, run.envelopes, run.bodies),)
        return self._one_by_one(run)

    def _one_by_one(self, run: PublishRun) -> Iterator[Routed]:
        messages = zip(run.methods, run.envelopes, run.bodies, strict=True)
        look = _wants_a_look(run.traits)
        for method, published, body in messages:
            route = self._routes.get(id(method))
            if route is not None and not look:
                targets, envelope = route[1], published
            else:
                targets, envelope = self._route(method, published, run.traits if look else None)
            yield targets, [method], [envelope], [body]

    def _route(
        self, method: spec.BasicPublish, envelope: Envelope, traits: Traits | None
    ) -> tuple[Targets, Envelope]:
        """Where the message goes, and as what it is stored (its headers may change).

        Checks in RabbitMQ's order (rabbit_channel:handle_method(#'basic.publish')).
        """
        if method.immediate:
            raise not_implemented("immediate=true")
        exchange = self._vhost.exchange(method.exchange)
        if exchange.internal:
            raise access_refused(
                f"cannot publish to internal {self._vhost.rs_exchange(exchange.name)}"
            )
        keys = [method.routing_key]
        if traits is not None:
            envelope, more_keys = self._examine(envelope, traits)
            keys += more_keys
        if not method.exchange and method.routing_key.startswith(REPLY_PREFIX):
            return Targets((), self._broker.replies.find(method.routing_key)), envelope
        targets, cacheable = self._vhost.route(method.exchange, keys, envelope)
        if cacheable and traits is None:
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            self._routes[id(method)] = (method, targets)
        return targets, envelope

    def _examine(self, envelope: Envelope, traits: Traits) -> tuple[Envelope, list[str]]:
        """A message with properties that mean something to the broker: as what it is stored, and
        the further routing keys that it names.
        """
        properties, needs = envelope.properties, traits.needs
        if needs & REPLY_TO:
            properties = with_text(properties, "reply_to", self._channel.reply_address())
        if needs & BAD_MODE:
            mode = decode_properties(properties).delivery_mode
            raise precondition_failed(f"invalid message: {{delivery_mode_unknown,{mode}}}")
        if isinstance(traits.expiration, str):
            check_expiration(traits.expiration)
        keys: list[str] = []
        if needs & CC:
            headers = headers_of(properties, ("CC", "BCC"))
            keys = _carbon_copies(headers, "CC") + _carbon_copies(headers, "BCC")
            if "BCC" in headers:
                properties = without_header(properties, "BCC")
        if needs & USER_ID:
            user, claimed = self._channel.client.user, text_of(properties, "user_id")
            if claimed != user.name and "impersonator" not in user.tags:
                raise precondition_failed(
                    f"user_id property set to '{claimed}' but authenticated user was '{user.name}'"
                )
        if properties is not envelope.properties:
            envelope = Envelope.pack(
                envelope.exchange, envelope.routing_key, properties, envelope.body_size
            )
        return envelope, keys

    def _past_queues(
        self,
        targets: Targets,
        methods: list[spec.BasicPublish],
        envelopes: list[Envelope],
        bodies: list[bytes],
    ) -> None:
        """Messages that no queue takes: direct replies, and what nobody is bound to."""
        if self.transaction is not None:
            # Copies: a batch that goes on with the next run would make these lists longer.
            self._transaction_past_queues.append((targets, methods, envelopes[:], bodies[:]))
        elif targets.replies_to is not None:
            targets.replies_to.deliver_replies(envelopes, bodies)
        else:
            channel = self._channel
            for method, envelope, body in zip(methods, envelopes, bodies, strict=True):
                if method.mandatory:
                    returned = spec.BasicReturn(
                        NO_ROUTE, "NO_ROUTE", method.exchange, method.routing_key
                    )
                    channel.sink.send_content(channel.number, returned, envelope, body)


def _wants_a_look(traits: Traits) -> bool:
    """Whether messages with these traits have to be looked at one by one."""
    return bool(traits.needs & (CC | REPLY_TO | USER_ID | BAD_MODE)) or isinstance(
        traits.expiration, str
    )


def _carbon_copies(headers: Table, name: str) -> list[str]:
    """The extra routing keys of a CC or BCC header: an array of long strings."""
    if name not in headers:
        return []
    copies = headers[name]
    if not isinstance(copies, list):
        raise precondition_failed(
            f'invalid message: {{unacceptable_type_in_header,"{name}",{type_name(copies)}}}'
        )
    return [copy for copy in copies if isinstance(copy, str)]  # others are passed over


def check_expiration(text: str) -> None:
    """Raises 406 unless `expiration` is a number of milliseconds that RabbitMQ would take."""
    complaint = expiration_complaint(text)
    if complaint is not None:
        raise precondition_failed(f"invalid expiration '{text}': {complaint}")
