"""The way in: from a channel's basic.publish to the store.

What one read brings is grouped by the queues that it goes to (grouping.py), so that a run of
messages is handled as a whole: identical methods go to the same queues, the vhost remembers the
ways of exchanges and keys, and an append is all that has to be done unless one attribute of the
targets (`plain`), or an expiration, says otherwise. Messages are handled one by one only if their traits ask for it (CC, direct
reply-to, user-id …), or if their way depends on their headers. Promises: the messages before one
that is refused are stored; each message is counted for exactly one confirm; nothing is confirmed
that could not be stored.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from itertools import repeat
from operator import is_
from typing import Protocol

from qlog.routing.exchange import TOPIC, Exchange
from qlog.server.amqp import spec
from qlog.server.amqp.envelope import NO_RECORD, Envelope, Record
from qlog.server.amqp.errors import AMQPError, access_refused, not_implemented, precondition_failed
from qlog.server.amqp.properties import (
    BAD_EXPIRATION,
    CC,
    DELAY,
    RECORD,
    RECORD_HEADER,
    REPLY_TO,
    USER_ID,
    Traits,
    expiration_complaint,
    headers_of,
    text_of,
    with_text,
    without_header,
)
from qlog.server.amqp.recognise import PublishRun
from qlog.server.amqp.values import Table, type_name
from qlog.server.broker.access.permissions import Rights
from qlog.server.broker.access.users import User
from qlog.server.broker.channels.confirms import Confirms, Publishing
from qlog.server.broker.channels.grouping import Group, Grouping
from qlog.server.broker.channels.reply_to import REPLY_PREFIX, Replies
from qlog.server.broker.channels.sink import Hold
from qlog.server.broker.channels.transactions import Transaction, Unqueued
from qlog.server.broker.features.firehose import Firehose, Origin
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.mail import Mail, Receipt
from qlog.server.broker.queues.targets import Routes, Targets
from qlog.server.broker.stats import Stats

NO_ROUTE = 312
# Messages with one of these needs are looked at one by one. The other needs (x-delay,
# deduplication) mean something only to queues and exchanges that ask for them.
_LOOK = CC | REPLY_TO | USER_ID | BAD_EXPIRATION | RECORD


class Author(Protocol):
    """Who publishes. `peer`: the address, for the firehose."""

    peer: str

    @property
    def user(self) -> User: ...


class Exchanges(Protocol):
    """What a publisher needs of its vhost."""

    routes: Routes
    firehose: Firehose | None

    @property
    def routes_version(self) -> int: ...

    def routes_of(self, user: User) -> tuple[Routes, Rights | None]:
        """The remembered ways for a user, and the rights that are to be asked before."""

    def exchange(self, name: str) -> Exchange:
        """Raises 404."""

    def rs_exchange(self, name: str) -> str: ...

    def route(self, exchange: str, keys: Sequence[str], envelope: Envelope) -> tuple[Targets, bool]:
        """The queues of a message, and whether exchange and keys alone decided it."""

    def waiting_at(self, exchange: str, envelopes: Iterable[Envelope]) -> Targets | None:
        """Where messages wait, if the exchange delays all of them."""


class Post(Protocol):
    """What a publisher needs of the broker."""

    @property
    def replies(self) -> Replies: ...

    @property
    def stats(self) -> Stats: ...

    @property
    def durable_lsn(self) -> int:
        """The log is durable up to here."""

    def enqueue(
        self,
        targets: Targets,
        persistent: bool,
        envelopes: Sequence[Envelope],
        bodies: Sequence[bytes],
    ) -> int:
        """Append messages to the queues; the LSN that makes them durable, 0 if none has to be."""

    def publish(self, targets: Targets, mail: Mail) -> Receipt:
        """The same for messages for which an append is not all that has to be done."""

    @property
    def now_ms(self) -> int:
        """The wall clock, in milliseconds."""

    def count_unrouted(self, targets: Targets, count: int) -> None:
        """So many messages had no queue to go to."""

    def await_durability(self, confirms: Confirms) -> None:
        """Call `confirm_through` when the log gets further."""


class Publisher:
    """The publishing half of one channel.

    It does not know the channel itself: the two would hold each other. `reply_address` is what
    `reply_to` becomes in a request, empty without a reply consumer.
    """

    def __init__(
        self, author: Author, channel: Publishing, exchanges: Exchanges, post: Post
    ) -> None:
        self._author = author
        self._channel = channel
        self.reply_address = ""
        self._exchanges = exchanges
        self._routes = exchanges.routes
        self._rights: Rights | None = None  # None: the user may publish everything
        self._version = -1  # of the routes and rights
        self._post = post
        self.confirms = Confirms(channel, post.stats)
        self.returned = 0  # messages without a queue that were mandatory
        self.dropped = 0  # those that were not
        self.transaction: Transaction | None = None

    @property
    def origin(self) -> Origin:
        """The channel as the firehose names it."""
        author = self._author
        return Origin(author.peer, self._channel.number, author.user.name)

    def publish(self, runs: list[PublishRun]) -> None:
        """Route and store what one read from the socket brought.

        Raises the AMQPError of the first message that is refused; those before it are stored.
        """
        if self._version != self._exchanges.routes_version:
            self._renew()
        grouping = Grouping()
        traced = self._exchanges.firehose is not None
        try:
            for run in runs:
                needs = run.traits.needs
                if (
                    traced
                    or needs & _LOOK
                    or not (
                        self._as_a_whole(run, grouping)
                        or (needs & DELAY and self._wait(run, grouping))
                    )
                ):
                    self._one_by_one(run, grouping)
        except AMQPError:
            self._store(grouping)
            raise
        self._store(grouping)

    def _renew(self) -> None:
        """Bindings, queues or rights have changed: forget what was remembered."""
        exchanges = self._exchanges
        self._version = version = exchanges.routes_version
        self._routes, self._rights = exchanges.routes_of(self._author.user)
        self._routes.check(version)

    # -- routing -----------------------------------------------------------------------------

    def _as_a_whole(self, run: PublishRun, grouping: Grouping) -> bool:
        """Add a run if the way of each message is known. False: one is not; nothing was done."""
        methods = run.methods
        persistent = run.traits.persistent
        known = self._routes.known.get
        first = methods[0]
        if len(methods) == 1 or all(map(is_, methods, repeat(first))):
            targets = known((first.exchange, first.routing_key))
            if targets is None or first.immediate:
                return False
            self.confirms.sequence += len(methods)
            if (
                targets.plain
                and run.traits.expiration is None
                and not (targets.ranks and run.traits.is_high)
            ):
                grouping.group(targets, persistent, True).add(run.envelopes, run.bodies)
            elif not targets.unrouted:
                self._special(grouping, targets, run.traits, run.envelopes, run.bodies)
            else:
                self._unqueued(Unqueued(targets, methods, run.envelopes, run.bodies))
            return True
        if run.traits.expiration is not None:
            return False
        ways: dict[int, Targets] = {}
        for identity, method in dict(zip(map(id, methods), methods, strict=True)).items():
            targets = known((method.exchange, method.routing_key))
            if targets is None or not targets.plain or method.immediate:
                return False
            if targets.ranks and run.traits.is_high:
                return False
            ways[identity] = targets
        self.confirms.sequence += len(methods)
        if len(set(ways.values())) == 1:  # many keys, one way
            grouping.group(ways[id(first)], persistent, True).add(run.envelopes, run.bodies)
            return True
        open_group = grouping.open.get
        messages = zip(map(id, methods), run.envelopes, run.bodies, strict=True)
        for identity, envelope, body in messages:
            targets = ways[identity]
            opened = open_group(targets)
            if opened is None or opened.persistent is not persistent or not opened.plain:
                opened = grouping.group(targets, persistent, True)
            opened.envelopes.append(envelope)
            opened.bodies.append(body)
        return True

    def _wait(self, run: PublishRun, grouping: Grouping) -> bool:
        """Add a run that waits at one exchange. False: not all of it does; nothing was done.

        Raises the AMQPError of a message that may not be published; no other one of them may.
        """
        first = run.methods[0]
        name = first.exchange
        if any(method.exchange != name or method.immediate for method in run.methods):
            return False
        self._check(first)
        envelopes = {id(envelope): envelope for envelope in run.envelopes}
        targets = self._exchanges.waiting_at(name, envelopes.values())
        if targets is None:
            return False
        self.confirms.sequence += len(run.methods)
        self._special(grouping, targets, run.traits, run.envelopes, run.bodies)
        return True

    def _one_by_one(self, run: PublishRun, grouping: Grouping) -> None:
        """Add a run, message by message. Raises the AMQPError of the first that is refused."""
        traits = run.traits
        look = traits.needs & _LOOK
        known = self._routes.known.get
        firehose = self._exchanges.firehose
        more_keys: list[str] = []
        # The checks are in RabbitMQ's order (rabbit_channel:handle_method(#'basic.publish')).
        for method, envelope, body in zip(run.methods, run.envelopes, run.bodies, strict=True):
            targets = known((method.exchange, method.routing_key))
            if targets is None or method.immediate:
                self._check(method)
            if look:
                envelope, more_keys = self._examine(envelope, traits)
            if targets is None or more_keys:
                if self._rights is not None:
                    self._check_topics(self._rights, method, more_keys)
                targets = self._route(method, more_keys, envelope)
            if firehose is not None:
                queues = [queue.name for queue in targets.queues]
                if targets.replies_to is not None:
                    queues.append(method.routing_key)
                keys = [method.routing_key, *more_keys]
                firehose.published(self.origin, envelope, body, keys, queues)
            self.confirms.sequence += 1
            if (
                targets.plain
                and traits.expiration is None
                and not (targets.ranks and traits.is_high)
            ):
                group = grouping.group(targets, traits.persistent, True)
                group.envelopes.append(envelope)
                group.bodies.append(body)
            elif not targets.unrouted:
                self._special(grouping, targets, traits, [envelope], [body])
            else:
                self._unqueued(Unqueued(targets, [method], [envelope], [body]))

    def _special(
        self,
        grouping: Grouping,
        targets: Targets,
        traits: Traits,
        envelopes: list[Envelope],
        bodies: list[bytes],
    ) -> None:
        """Add messages, the last that were counted, for which an append is not all."""
        group = grouping.group(targets, traits.persistent, False)
        group.envelopes += envelopes
        group.bodies += bodies
        group.traits += repeat(traits, len(bodies))
        counted = self.confirms.sequence
        group.sequences += range(counted - len(bodies) + 1, counted + 1)

    def _check(self, method: spec.BasicPublish) -> None:
        """Raises 540, 404 or 403 if nobody may publish so."""
        if method.immediate:
            raise not_implemented("immediate=true")
        name = method.exchange
        routes = self._routes
        if self._rights is not None and (name, None) not in routes.permitted:
            self._rights.check("write", "exchange", name)
            routes.permit(name, None)
        if self._exchanges.exchange(name).internal:
            raise access_refused(f"cannot publish to internal {self._exchanges.rs_exchange(name)}")

    def _check_topics(
        self, rights: Rights, method: spec.BasicPublish, more_keys: Sequence[str]
    ) -> None:
        """Raises 403 if the user may not publish with one of these topics."""
        name = method.exchange
        if self._exchanges.exchange(name).type != TOPIC:
            return
        for key in (method.routing_key, *more_keys):
            if (name, key) not in self._routes.permitted:
                rights.check_topic("write", name, key)
                self._routes.permit(name, key)

    def _route(
        self, method: spec.BasicPublish, more_keys: Sequence[str], envelope: Envelope
    ) -> Targets:
        """Find the queues of a message, and remember them for its exchange and routing key."""
        name, key = method.exchange, method.routing_key
        if not name and key.startswith(REPLY_PREFIX):
            return self._post.replies.find(key)
        targets, cacheable = self._exchanges.route(name, [key, *more_keys], envelope)
        if cacheable and not more_keys:
            self._routes.remember(name, key, targets)
        return targets

    def _examine(self, envelope: Envelope, traits: Traits) -> tuple[Envelope, list[str]]:
        """Obey the properties that mean something to the broker.

        Returns the envelope to store, and the further routing keys that the message names.
        """
        properties, needs = envelope.properties, traits.needs
        if needs & REPLY_TO:
            if not self.reply_address:
                raise precondition_failed("fast reply consumer does not exist")
            properties = with_text(properties, "reply_to", self.reply_address)
        if needs & BAD_EXPIRATION:
            text = str(traits.expiration)
            raise precondition_failed(f"invalid expiration '{text}': {expiration_complaint(text)}")
        keys: list[str] = []
        record = NO_RECORD
        if needs & CC:
            headers = headers_of(properties, ("CC", "BCC"))
            hidden = _carbon_copies(headers, "BCC")
            keys = _carbon_copies(headers, "CC") + hidden
            if "BCC" in headers:
                properties = without_header(properties, "BCC")
                record = Record(False, keys, hidden)
        if needs & USER_ID:
            user, claimed = self._author.user, text_of(properties, "user_id")
            if claimed != user.name and "impersonator" not in user.tags:
                raise precondition_failed(
                    f"user_id property set to '{claimed}' but authenticated user was '{user.name}'"
                )
        if needs & RECORD:
            record = self._recorded(properties)
            properties = without_header(properties, RECORD_HEADER)
        if properties is not envelope.properties:
            envelope = Envelope.pack(
                envelope.exchange, envelope.routing_key, properties, envelope.body_size, record
            )
        return envelope, keys

    def _recorded(self, properties: bytes) -> Record:
        """What an import says that the broker knew of a message. Raises 403 and 406.

        It is believed of whom the whole broker is entrusted to: it says what `x-death` is worth.
        """
        if not {"administrator", "impersonator"}.intersection(self._author.user.tags):
            raise access_refused(
                f"header '{RECORD_HEADER}' needs the tag 'administrator' or 'impersonator'"
            )
        try:
            return Record.of_table(headers_of(properties, (RECORD_HEADER,))[RECORD_HEADER])
        except ValueError as error:
            raise precondition_failed(f"invalid header '{RECORD_HEADER}'") from error

    # -- storing -----------------------------------------------------------------------------

    def _store(self, grouping: Grouping) -> None:
        """Store the groups, and have all messages that were counted confirmed.

        An error of the store is passed on at once: no group may be stored twice, and none may be
        confirmed if one before it failed.
        """
        if self.transaction is not None:
            self.transaction.groups += grouping.groups
            return
        ticket, rejected = self._enqueue(grouping.groups)
        confirms = self.confirms
        if confirms.selected:
            post = self._post
            if confirms.note(ticket, rejected) > post.durable_lsn:
                post.await_durability(confirms)
            else:
                confirms.confirm_through(post.durable_lsn)

    def _enqueue(self, groups: list[Group]) -> tuple[int, Sequence[int]]:
        """Hand the groups to their queues.

        Returns the LSN that makes all durable, 0 if none has to be durable, and the sequence
        numbers of the messages that a queue rejected, ascending.
        """
        enqueue = self._post.enqueue
        ticket = 0
        rejected: list[int] = []
        for group in groups:
            if group.plain:
                lsn = enqueue(group.targets, group.persistent, group.envelopes, group.bodies)
            else:
                mail = Mail(
                    group.persistent, group.traits, group.envelopes, group.bodies, self._post.now_ms
                )
                lsn, refused, eased = self._post.publish(group.targets, mail)
                rejected += map(group.sequences.__getitem__, refused)
                if eased is not None:
                    self._wait_for(eased)
            ticket = max(ticket, lsn)
        rejected.sort()
        return ticket, rejected

    def _wait_for(self, eased: Outcome[None]) -> None:
        """Have nothing read from the client until a queue has caught up.

        If two are behind, the first one releases the client, and the next publish holds it again.
        """
        sink = self._channel.sink
        sink.hold(Hold.QUEUE)
        eased.then(lambda _: sink.release(Hold.QUEUE))

    def _unqueued(self, messages: Unqueued) -> None:
        """No queue takes these messages: pass them on now, or keep them for tx.commit."""
        if self.transaction is not None:
            self.transaction.unqueued.append(messages)
        else:
            self._pass_queues(messages)

    def _pass_queues(self, messages: Unqueued) -> None:
        """Send direct replies, and return what was mandatory."""
        targets, methods, envelopes, bodies = messages
        if targets.replies_to is not None:
            targets.replies_to.deliver_replies(envelopes, bodies)
            return
        for keeper in targets.keepers:
            keeper.passed(envelopes, bodies)
        self._post.count_unrouted(targets, len(bodies))
        sink, number = self._channel.sink, self._channel.number
        returned = 0
        for method, envelope, body in zip(methods, envelopes, bodies, strict=True):
            if method.mandatory:
                returned += 1
                reply = spec.BasicReturn(NO_ROUTE, "NO_ROUTE", method.exchange, method.routing_key)
                sink.send_content(number, reply, envelope, body)
        self.returned += returned
        self.dropped += len(bodies) - returned
        self._post.stats.returned += returned

    # -- transactions ------------------------------------------------------------------------

    def begin(self) -> None:
        """Keep back what is published from here on; forget what was kept back."""
        self.transaction = Transaction()

    def committing(self, transaction: Transaction) -> Generator[None, None, tuple[int, bool]]:
        """Publish what was kept back, in steps.

        Returns the LSN that makes it durable, or 0, and whether the queues took all messages.
        """
        for messages in transaction.unqueued:
            self._pass_queues(messages)
            yield
        ticket = 0
        complete = True
        for group in transaction.surviving():
            lsn, rejected = self._enqueue([group])
            ticket = max(ticket, lsn)
            complete = complete and not rejected
            yield
        return ticket, complete


def _carbon_copies(headers: Table, name: str) -> list[str]:
    """The extra routing keys of a CC or BCC header: an array of long strings."""
    if name not in headers:
        return []
    copies = headers[name]
    if not isinstance(copies, list):
        raise precondition_failed(
            f'invalid message: {{unacceptable_type_in_header,"{name}",{type_name(copies)}}}'
        )
    return [copy for copy in copies if isinstance(copy, str)]  # all other values are ignored
