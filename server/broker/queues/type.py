"""The contract between queues and all who use them: channels, topology, publishers, operations.

A queue hands messages to takers (consumers) and knows nothing of channels; a channel keeps what was
handed to it and knows nothing of how a queue keeps its messages.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import HardError
from qlog.server.amqp.values import Table
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.arguments import QueueArguments
from qlog.server.broker.queues.backlog import Backlog, Taken
from qlog.server.broker.queues.effective import Effective
from qlog.server.broker.queues.mail import Mail, Receipt
from qlog.server.broker.stats import Counts, QueueCounts
from qlog.storage.lanes.lane import Lane


class Owner(Protocol):
    """The connection of an exclusive queue."""

    exclusive_queues: dict[str, QueueType]


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a queue was declared with; a redeclaration has to be the same."""

    vhost: str
    name: str
    durable: bool
    auto_delete: bool
    exclusive: bool
    arguments: QueueArguments

    @property
    def keeps_all(self) -> bool:
        """Messages that do not ask for it are durable, too."""
        return self.arguments.type != "classic"

    def __str__(self) -> str:
        return f"queue '{self.name}' in vhost '{self.vhost}'"


class Taker(Protocol):
    """Who takes messages from a queue: a consumer.

    `priority`: takers of higher priority get everything as long as they can take it. `unacked`:
    the number of messages that the taker holds. `hungry` belongs to the queue's dispatch; it is
    False at first.
    """

    tag: str
    priority: int
    exclusive: bool
    no_ack: bool
    prefetch: int
    arguments: Table
    unacked: int
    hungry: bool

    @property
    def timeout_s(self) -> float:
        """How long it may hold a delivery unacknowledged, in seconds; 0: for ever."""

    def credit(self) -> int:
        """How many messages the taker can take now; 0 or less: none."""

    def deliver(self, taken: Taken) -> None:
        """Deliver messages, at most as many as `credit` said.

        They are out until they are settled.
        """

    def receive(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> bool:
        """Deliver messages that were never in the queue, all or none.

        False: none, since the taker may have to give them back, or cannot take so many.
        """

    def queue_deleted(self) -> None:
        """The queue was deleted; the taker has to call `remove_taker`."""

    def fail(self, error: HardError) -> None:
        """The queue cannot read its next message: the connection of the taker ends."""

    def facts(self) -> dict[str, Any]:
        """What operators see of it (channels/facts.py)."""


class QueueType(Protocol):
    """One queue of a vhost.

    `idle`: messages that come need no `pump`, since nobody takes them, and nothing else is to be
    seen to when they come.
    """

    declared: Declaration
    effective: Effective
    owner: Owner | None  # of an exclusive queue
    deleted: bool
    idle: bool
    counts: QueueCounts

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def lane(self) -> Lane[Envelope]:
        """Where messages for it are appended if it is plain."""

    @property
    def lanes(self) -> Collection[Lane[Envelope]]:
        """All lanes that hold its messages."""

    @property
    def after_lsn(self) -> int:
        """What was handed on from it is on the disk elsewhere when the log is durable up to here.

        Before that the queue must not be deleted: a crash would leave these messages nowhere.
        """

    @property
    def timeout_s(self) -> float:
        """How long what basic.get took may stay unacknowledged, in seconds; 0: for ever."""

    @property
    def ready(self) -> int:
        """Messages that wait for a consumer."""

    @property
    def unacked(self) -> int:
        """Messages that are out."""

    @property
    def ready_bytes(self) -> int:
        """The octets of what waits for a consumer."""

    @property
    def unacked_bytes(self) -> int:
        """The octets of what is out."""

    @property
    def published(self) -> int:
        """How many messages came to it since it is counted."""

    def count_for(self, of_type: Counts) -> None:
        """Begin to count (`counts`), for all queues of its type as well."""

    def reconfigure(self, effective: Effective) -> None:
        """Policies have changed: go by these settings from now on."""

    # -- takers

    @property
    def takers(self) -> Collection[Taker]:
        """Its consumers, in the order they came."""

    @property
    def active_taker(self) -> Taker | None:
        """The single active consumer; None if there is none, or all are active."""

    @property
    def taker_count(self) -> int:
        """How many consumers queue.declare-ok tells of."""

    def admit(self, *, exclusive: bool, shares_prefetch: bool, no_ack: bool, prefetch: int) -> None:
        """One more wants to consume, exclusively if so asked. Raises 403 if it may not.

        `shares_prefetch`: its channel has one prefetch for all consumers; `prefetch`: its own, 0
        for none. Raises 540 from queues of types that know no such prefetch, and from streams 406
        without a prefetch, and 540 without acknowledgements.
        """

    def add_taker(self, taker: Taker) -> None:
        """Register a consumer that `admit` lets in."""

    def remove_taker(self, taker: Taker) -> None:
        """Forget a consumer; an auto-delete queue goes with its last one."""

    def feed(self, taker: Taker) -> None:
        """The consumer may be able to take more again: let it have its turn."""

    def pump(self) -> bool:
        """Deliver until nothing is ready or nobody can take more.

        False: it stopped before, to be called again in another tick: the time for delivering is
        up, very many takers were asked and could take nothing, or what is next has to be read from
        disk, and this tick has read enough of all queues.
        Raises CorruptLog and OutOfDescriptors; what was taken until then is delivered.
        """

    # -- messages

    def publish(self, mail: Mail) -> Receipt:
        """Take messages for which an append to `lane` is not all that has to be done.

        So it is if the queue's settings ask for more (`Effective.plain`), or if a message has an
        expiration. The caller wakes the queue.
        """

    def pass_on(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> bool:
        """Give messages that need not be kept straight to a taker, past the queue, if it is empty.

        Only a plain queue is asked. False: nothing has happened; they are to be appended.
        """

    def get(self) -> Taken | None:
        """Take one message for basic.get; consumers come first. None: nothing is ready.

        Raises 405 where messages are for the active consumer only.
        """

    def arriving(self) -> Outcome[None] | None:
        """Done when `get` may give something: nothing of what is ready can be taken yet.

        None: `get` has not to be put off.
        """

    def requeue(
        self, backlog: Backlog, qseq: int, count: int, size: int, *, failed: bool = False
    ) -> None:
        """Messages that are out, `size` octets in all, come back to their place.

        `failed`: whoever had them has rejected them.
        """

    def requeue_all(self, backlog: Backlog, numbers: Numbers, size: int, *, lost: bool) -> None:
        """The same for messages anywhere, all at once.

        `lost`: whoever had them is gone, or had them too long; he did not give them back himself.
        """

    def discard(
        self, backlog: Backlog, qseq: int, count: int, size: int, after_lsn: int = 0
    ) -> None:
        """Messages that are out were rejected, and not to be requeued.

        They are not settled before the log is durable up to `after_lsn`.
        """

    def purge(self) -> int:
        """All that is ready is gone; what is out stays out. Returns how many there were.

        `sweep` is to be called until it has nothing left to do. Raises CorruptLog.
        """

    def sweep(self) -> bool:
        """Some of the work that a purge left, for less than a millisecond; True: all is done."""

    def close(self) -> None:
        """The queue is deleted, with its messages. The caller has to call `cancel_takers`."""

    def cancel_takers(self) -> bool:
        """Tell some of those who consume from it that it is gone; True: nobody is left."""
