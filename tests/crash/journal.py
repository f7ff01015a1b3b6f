"""What the oracle outside the broker knows: each message sent, confirmed, delivered, acknowledged.

It promises: a message's body follows from its identity, so that any copy can be checked byte for
byte; `verify` holds what a restarted broker delivers against what was promised before the kill.

Promises checked, by queue:
* confirmed and never acknowledged: delivered;
* acknowledged, with proof that the broker had read the ack `ACK_WINDOW_S` before the kill: not
  delivered again;
* delivered `ACK_WINDOW_S` before the kill: flagged as redelivered;
* nothing twice, nothing that was not sent there, no transient message, each publisher's in order.

Times are seconds of `time.monotonic` in this process. It does not know sockets or processes.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

# The broker promises 5 ms; the rest is room for a busy machine, where a thread with a timestamp in
# its hand may wait for its turn.
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
    """One queue: what went in and what came out."""

    name: str
    routed: set[Identity] = field(default_factory=set)
    # When its consumer had it in hand, the last time.
    delivered_at: dict[Identity, float] = field(default_factory=dict)
    # The ack was sent; whether it arrived is not known.
    ack_sent: set[Identity] = field(default_factory=set)
    # The broker answered a later question on the same channel at this time.
    ack_read_at: dict[Identity, float] = field(default_factory=dict)


@dataclass
class Figures:
    """What one verification saw."""

    delivered: int = 0
    redelivered: int = 0
    owed: int = 0
    acks_repeated: int = 0
    violations: list[str] = field(default_factory=list)


class Journal:
    """The books of all publishers and consumers; safe to use from many threads."""

    def __init__(self, queues: Iterable[str]) -> None:
        self.lock = threading.Lock()
        self.queues = {name: QueueJournal(name) for name in queues}
        self.confirmed: set[Identity] = set()
        self._next: dict[int, int] = {}

    def sending(self, publisher: int, queues: Iterable[str], count: int) -> list[Identity]:
        """Identities for the next `count` messages, noted before they are sent."""
        with self.lock:
            first = self._next.get(publisher, 0)
            self._next[publisher] = first + count
            identities = [Identity(publisher, first + n) for n in range(count)]
            for queue in queues:
                self.queues[queue].routed.update(identities)
        return identities

    @property
    def sent(self) -> int:
        """How many messages were sent so far."""
        return sum(self._next.values())

    @property
    def acknowledged(self) -> int:
        """How many messages are settled, for all that is known."""
        return sum(len(queue.ack_read_at) for queue in self.queues.values())

    def confirm(self, identities: Iterable[Identity]) -> None:
        """The broker confirmed these."""
        with self.lock:
            self.confirmed.update(identities)

    def delivered(self, queue: str, identities: Iterable[Identity]) -> None:
        """A consumer has these in hand."""
        now = time.monotonic()
        with self.lock:
            self.queues[queue].delivered_at.update(dict.fromkeys(identities, now))

    def acking(self, queue: str, identities: Iterable[Identity]) -> None:
        """Acks for these are about to be sent."""
        with self.lock:
            self.queues[queue].ack_sent.update(identities)

    def acks_read(self, queue: str, identities: Iterable[Identity]) -> None:
        """The broker answered something sent after these acks."""
        now = time.monotonic()
        with self.lock:
            self.queues[queue].ack_read_at.update(dict.fromkeys(identities, now))

    def verify(self, queue: str, deliveries: list[Delivery], killed_at: float) -> Figures:
        """Hold what a restarted broker has in `queue` against what was promised.

        Messages that came back although they had been acknowledged, within the window, count as
        not acknowledged from then on.
        """
        book = self.queues[queue]
        figures = Figures(delivered=len(deliveries))
        wrong = figures.violations
        horizon = killed_at - ACK_WINDOW_S
        seen: set[Identity] = set()
        last: dict[int, int] = {}
        for delivery in deliveries:
            identity = delivery.identity
            figures.redelivered += delivery.redelivered
            if identity in seen:
                wrong.append(f"{queue}: {identity} twice")
            seen.add(identity)
            if identity not in book.routed:
                wrong.append(f"{queue}: {identity} was never sent here")
            if delivery.body != identity.body:
                wrong.append(f"{queue}: {identity} has another body")
            if not identity.is_persistent:
                wrong.append(f"{queue}: {identity} is transient and came back")
            if identity.sequence < last.get(identity.publisher, -1):
                wrong.append(f"{queue}: {identity} out of order")
            last[identity.publisher] = identity.sequence
            figures.acks_repeated += identity in book.ack_sent
            read_at = book.ack_read_at.get(identity)
            if read_at is not None and read_at < horizon:
                early_s = killed_at - read_at
                wrong.append(f"{queue}: {identity} came back, acked {early_s:.3f} s before")
            had_at = book.delivered_at.get(identity)
            if had_at is not None and had_at < horizon and not delivery.redelivered:
                early_s = killed_at - had_at
                wrong.append(
                    f"{queue}: {identity} not flagged, delivered {early_s:.3f} s before the kill"
                )
        # Owed is what was owed before the kill; from now on, so is what came back.
        owed = {i for i in self.confirmed & book.routed if i.is_persistent} - book.ack_sent
        figures.owed = len(owed)
        wrong.extend(f"{queue}: {identity} is lost" for identity in sorted(owed - seen))
        book.ack_sent -= seen
        for identity in seen:
            book.ack_read_at.pop(identity, None)
        return figures
