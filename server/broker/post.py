"""The way into queues, for publishers and whoever else publishes: append, and wake the queues."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.channels.reply_to import Replies
from qlog.server.broker.delivery import Delivery
from qlog.server.broker.durability import Confirming, Durability
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.mail import Mail, Receipt
from qlog.server.broker.queues.targets import Targets
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.stats import Stats
from qlog.storage.store import Store


class PostOffice:
    """See the head of this file. `now_ms` is the wall clock, in milliseconds."""

    def __init__(
        self,
        store: Store[Envelope],
        delivery: Delivery,
        durability: Durability,
        replies: Replies,
        stats: Stats,
        now_ms: Callable[[], int],
    ) -> None:
        self.replies = replies
        self._store = store
        self._delivery = delivery
        self._durability = durability
        self.stats = stats
        self._clock_ms = now_ms

    @property
    def now_ms(self) -> int:
        """The wall clock, in milliseconds."""
        return self._clock_ms()

    @property
    def durable_lsn(self) -> int:
        """All records of the log below this LSN are on disk."""
        return self._store.durable_lsn

    def count_unrouted(self, targets: Targets, count: int) -> None:
        """So many messages had no queue to go to."""
        self.stats.published += count
        self.stats.unrouted += count
        if targets.counts is not None:
            targets.counts.published_in += count

    def await_durability(self, confirms: Confirming) -> None:
        """Tell these confirms when the log gets further."""
        self._durability.await_confirms(confirms)

    def enqueue(
        self,
        targets: Targets,
        persistent: bool,
        envelopes: Sequence[Envelope],
        bodies: Sequence[bytes],
    ) -> int:
        """Append messages to plain queues; returns the LSN that makes them durable, or 0."""
        self._count(targets, len(bodies))
        queue = targets.sole
        if (
            queue is not None
            and not (persistent and targets.durable)
            and queue.pass_on(envelopes, bodies)
        ):
            return 0
        lsn = self._append(targets, persistent, envelopes, bodies, self._clock_ms())
        self._delivery.came(targets.queues)
        return lsn

    def publish(self, targets: Targets, mail: Mail) -> Receipt:
        """The same for messages for which an append is not all that has to be done."""
        self._count(targets, len(mail.bodies))
        return self.pass_on(targets, mail)

    def _count(self, targets: Targets, count: int) -> None:
        self.stats.published += count
        counts = targets.counts
        if counts is not None:
            counts.published_in += count
            counts.published_out += count * len(targets.queues)

    def pass_on(self, targets: Targets, mail: Mail) -> Receipt:
        """Give messages to their queues; they do not count as published.

        A message is rejected if any of its queues rejects it; the others have taken it all the
        same, as in RabbitMQ.
        """
        lsn = 0
        queues: Sequence[QueueType] = targets.queues
        if all(traits.expiration is None for traits in mail.traits) and not (
            targets.ranks and any(traits.is_high for traits in mail.traits)
        ):
            queues = targets.special
            if targets.all:
                lsn = self._append(
                    targets, mail.persistent, mail.envelopes, mail.bodies, mail.now_ms
                )
        rejected: set[int] = set()
        eased: Outcome[None] | None = None
        for queue in queues:
            receipt = queue.publish(mail)
            eased = eased or receipt.eased
            lsn = max(lsn, receipt.lsn)
            rejected.update(receipt.rejected)
        for keeper in targets.keepers:
            lsn = max(lsn, keeper.add(mail, rejected))
        self._delivery.came(targets.queues)
        return Receipt(lsn, sorted(rejected), eased)

    def _append(
        self,
        targets: Targets,
        persistent: bool,
        envelopes: Sequence[Envelope],
        bodies: Sequence[bytes],
        now_ms: int,
    ) -> int:
        """Append messages to the lanes that share an append."""
        store = self._store
        lsn = 0
        if persistent and targets.durable:
            lsn = store.append(targets.durable, envelopes, bodies, persistent=True, now_ms=now_ms)
            if targets.transient:
                store.append(targets.transient, envelopes, bodies, persistent=False, now_ms=now_ms)
        elif targets.lasting:
            lsn = store.append(targets.lasting, envelopes, bodies, persistent=True, now_ms=now_ms)
            if targets.fleeting:
                store.append(targets.fleeting, envelopes, bodies, persistent=False, now_ms=now_ms)
        else:
            store.append(targets.all, envelopes, bodies, persistent=False, now_ms=now_ms)
        return lsn
