"""What the oracle outside the broker knows: each message sent, confirmed, delivered, acknowledged.

It promises: a message's body follows from its identity, so that any copy can be checked byte for
byte; `verify` holds what a restarted broker delivers against what was promised before the kill, and
`delivered` what a running one does.

Promises checked after a restart, by queue:
* confirmed (or committed) and never acknowledged: delivered;
* acknowledged, with proof that the ack was written (the broker had read it `ACK_WINDOW_S` before
  a message was sent that it confirmed): not delivered again; acknowledged in a transaction that was
  committed: not delivered again, ever;
* delivered so long before: flagged as redelivered;
* never delivered: not flagged, but for as many as may have been on their way to a consumer;
* nothing twice, nothing that was not sent there or was settled before, no transient message, each
  publisher's in order.

And between two restarts: a message comes once, and once more for each requeue; it is flagged when
it comes again, and only then; what comes for the first time comes in each publisher's order.

Times are seconds of `time.monotonic` in this process. It does not know sockets or processes.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

# The broker promises 5 ms, behind the batch that is being synced: an ack is on its way to the ledger
# before a message that is sent so much later, and written by the time that one is confirmed. Far
# more than 5 ms, since on a busy machine a thread with a timestamp in its hand may wait for its turn.
ACK_WINDOW_S = 0.25

# Most messages are small, some fill several frames.
BODY_BYTES = (0, 1, 64, 200, 1000, 1024, 4000, 12_000, 140_000)


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """Publisher and its sequence number: all else follows."""

    publisher: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.publisher}.{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Identity:
        """The inverse of str. Raises ValueError."""
        publisher, sequence = text.split(".")
        return cls(int(publisher), int(sequence))

    @property
    def _digest(self) -> bytes:
        return hashlib.blake2b(str(self).encode(), digest_size=16).digest()

    @property
    def is_persistent(self) -> bool:
        """Nine of ten are."""
        return self._digest[0] % 10 != 0

    @property
    def body(self) -> bytes:
        """A body of a size and content that only this message has."""
        digest = self._digest
        # The largest is rare: a tenth of its share.
        sizes = BODY_BYTES if digest[1] % 10 == 0 else BODY_BYTES[:-1]
        size = sizes[digest[2] % len(sizes)]
        return (digest * (size // 16 + 1))[:size]


@dataclass(slots=True)
class Delivery:
    """A message as a consumer got it."""

    identity: Identity
    body: bytes
    redelivered: bool


@dataclass
class QueueJournal:
    """One queue: what went in and what came out.

    `on_its_way_max`: how many messages its consumers together may have been given unread.
    """

    name: str
    on_its_way_max: int = 0
    # What may be there: sent since, or there at the last restart.
    routed: set[Identity] = field(default_factory=set)
    # When its consumer had it in hand, the last time.
    delivered_at: dict[Identity, float] = field(default_factory=dict)
    # The ack was sent; whether it arrived is not known.
    ack_sent: set[Identity] = field(default_factory=set)
    # The broker answered a later question on the same channel at this time.
    ack_read_at: dict[Identity, float] = field(default_factory=dict)
    # The ack was part of a transaction, and the broker said that it is done.
    ack_committed: set[Identity] = field(default_factory=set)
    # Since the restart.
    deliveries: Counter[Identity] = field(default_factory=Counter)
    requeues: Counter[Identity] = field(default_factory=Counter)


@dataclass
class Figures:
    """What one verification saw."""

    delivered: int = 0
    redelivered: int = 0
    owed: int = 0
    acks_repeated: int = 0
    oldest_repeated_s: float = 0.0  # how long before the kill that ack had been read
    violations: list[str] = field(default_factory=list)


class Journal:
    """The books of all publishers and consumers; safe to use from many threads.

    Arguments: the queues, each with how many messages may be on their way to its consumers.
    """

    def __init__(self, queues: Mapping[str, int]) -> None:
        self.lock = threading.Lock()
        self.queues = {name: QueueJournal(name, many) for name, many in queues.items()}
        self.confirmed: set[Identity] = set()
        self.violations: list[str] = []  # of a running broker
        self.confirmed_count = 0
        self.acknowledged_count = 0
        self.transactions_count = 0
        self.confirmed_sent_at = -math.inf  # the newest message that the disk confirmed
        self._next: dict[int, int] = {}

    def identities(self, publisher: int, count: int) -> list[Identity]:
        """The next `count` messages of this publisher."""
        with self.lock:
            first = self._next.get(publisher, 0)
            self._next[publisher] = first + count
        return [Identity(publisher, first + n) for n in range(count)]

    def sending(self, queues: Iterable[str], identities: Iterable[Identity]) -> None:
        """These are about to be sent there, or a transaction that has them is about to end."""
        with self.lock:
            for queue in queues:
                self.queues[queue].routed.update(identities)

    @property
    def sent(self) -> int:
        """How many messages were sent so far."""
        return sum(self._next.values())

    def confirm(self, identities: Collection[Identity]) -> None:
        """The broker confirmed these."""
        with self.lock:
            self.confirmed.update(identities)
            self.confirmed_count += len(identities)

    def confirmed_by_disk(self, sent_at: float) -> None:
        """A persistent message that was sent then is confirmed."""
        with self.lock:
            self.confirmed_sent_at = max(self.confirmed_sent_at, sent_at)

    @property
    def horizon(self) -> float:
        """What the broker had read by then was written before it was killed."""
        return self.confirmed_sent_at - ACK_WINDOW_S

    def delivered(self, queue: str, delivery: Delivery, last: dict[int, int]) -> None:
        """A consumer has this in hand. `last`: its own, each publisher's newest first delivery."""
        now = time.monotonic()
        identity = delivery.identity
        wrong = self.violations
        with self.lock:
            book = self.queues[queue]
            book.delivered_at[identity] = now
            before = book.deliveries[identity]
            book.deliveries[identity] += 1
            if identity not in book.routed:
                wrong.append(f"{queue}: {identity} is not expected here")
            if delivery.body != identity.body:
                wrong.append(f"{queue}: {identity} has another body")
            if before > book.requeues[identity]:
                wrong.append(f"{queue}: {identity} is delivered {before + 1} times")
            if delivery.redelivered != bool(before):
                flag = "" if delivery.redelivered else "not "
                wrong.append(
                    f"{queue}: {identity} is {flag}flagged, delivered {before} times before"
                )
            if not delivery.redelivered:
                if identity.sequence < last.get(identity.publisher, -1):
                    wrong.append(f"{queue}: {identity} out of order")
                last[identity.publisher] = identity.sequence

    def requeueing(self, queue: str, identities: Iterable[Identity]) -> None:
        """These are about to be given back."""
        with self.lock:
            self.queues[queue].requeues.update(identities)

    def acking(self, queue: str, identities: Iterable[Identity]) -> None:
        """Acks for these are about to be sent, or the commit that makes them count."""
        with self.lock:
            self.queues[queue].ack_sent.update(identities)

    def acks_read(self, queue: str, identities: Collection[Identity]) -> None:
        """The broker answered something sent after these acks."""
        now = time.monotonic()
        with self.lock:
            self.queues[queue].ack_read_at.update(dict.fromkeys(identities, now))
            self.acknowledged_count += len(identities)

    def acks_committed(self, queue: str, identities: Collection[Identity]) -> None:
        """The transaction that these acks were part of is done."""
        with self.lock:
            self.queues[queue].ack_committed.update(identities)
            self.acknowledged_count += len(identities)
            self.transactions_count += 1

    def verify(self, queue: str, deliveries: list[Delivery], killed_at: float) -> Figures:
        """Hold what a restarted broker has in `queue` against what was promised.

        From then on this is what the queue has: what was acknowledged within the window and came
        back counts as not acknowledged, and what is not there must never come.
        """
        book = self.queues[queue]
        figures = Figures(delivered=len(deliveries))
        wrong = figures.violations
        horizon = self.horizon
        seen: set[Identity] = set()
        last: dict[int, int] = {}
        on_its_way = 0
        for delivery in deliveries:
            identity = delivery.identity
            figures.redelivered += delivery.redelivered
            if identity in seen:
                wrong.append(f"{queue}: {identity} twice")
            seen.add(identity)
            if identity not in book.routed:
                wrong.append(f"{queue}: {identity} is not expected here")
            if delivery.body != identity.body:
                wrong.append(f"{queue}: {identity} has another body")
            if not identity.is_persistent:
                wrong.append(f"{queue}: {identity} is transient and came back")
            if identity.sequence < last.get(identity.publisher, -1):
                wrong.append(f"{queue}: {identity} out of order")
            last[identity.publisher] = identity.sequence
            figures.acks_repeated += identity in book.ack_sent
            read_at = book.ack_read_at.get(identity)
            if read_at is not None:
                early_s = killed_at - read_at
                figures.oldest_repeated_s = max(figures.oldest_repeated_s, early_s)
            if read_at is not None and read_at < horizon:
                wrong.append(f"{queue}: {identity} came back, acked {early_s:.3f} s before")
            if identity in book.ack_committed:
                wrong.append(f"{queue}: {identity} came back, its ack was committed")
            had_at = book.delivered_at.get(identity)
            if had_at is None:
                on_its_way += delivery.redelivered
            elif had_at < horizon and not delivery.redelivered:
                early_s = killed_at - had_at
                wrong.append(
                    f"{queue}: {identity} not flagged, delivered {early_s:.3f} s before the kill"
                )
        if on_its_way > book.on_its_way_max:
            wrong.append(f"{queue}: {on_its_way} flagged that were never delivered")
        owed = {i for i in self.confirmed & book.routed if i.is_persistent} - book.ack_sent
        figures.owed = len(owed)
        wrong.extend(f"{queue}: {identity} is lost" for identity in sorted(owed - seen))
        self.queues[queue] = QueueJournal(
            queue,
            book.on_its_way_max,
            routed=seen,
            delivered_at=dict.fromkeys(seen, time.monotonic()),
            deliveries=Counter(seen),
        )
        return figures

    def restarted(self) -> None:
        """All queues were verified: what is in none of them is no promise any more."""
        self.confirmed &= set().union(*(book.routed for book in self.queues.values()))
        self.confirmed_sent_at = -math.inf
