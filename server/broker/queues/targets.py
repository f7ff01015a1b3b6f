"""Sets of queues that messages go to, and the ways by exchange and key that are known.

Promises that the same set of queues, reached from one exchange, is the same object as long as no
binding changes, so that messages with different keys but the same queues are stored and delivered
together. Promises that
what all vhosts of a process remember stays within one bound.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from qlog.server.amqp.budget import Budget
from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.queues.mail import Mail
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.stats import ExchangeCounts
from qlog.storage.lanes.lane import Lane

# The memory that the remembered ways of all vhosts may take.
BUDGET = Budget(16 * 1024 * 1024)
# A remembered way takes about so many octets, and those of its key. A set of queues takes as much,
# and _QUEUE_BYTES for each queue.
_WAY_BYTES = 300
_QUEUE_BYTES = 40


class ReplyChannel(Protocol):
    """A channel that takes direct replies."""

    @property
    def closed(self) -> bool:
        """It takes none any more."""

    def deliver_replies(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> None:
        """Send the replies to its client."""


class Keeper(Protocol):
    """Keeps messages, or something of them, that come by an exchange.

    `takes`: it has the message as a queue would (features/delayed.py). The others note that it has
    passed (features/recent_history.py, features/deduplication.py).
    """

    @property
    def takes(self) -> bool: ...

    def add(self, mail: Mail, rejected: Collection[int]) -> int:
        """Messages have come, and were given to their queues.

        `rejected`: the indices of those that a queue has turned away. Returns the LSN that makes
        durable what is kept, or 0.
        """

    def passed(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> None:
        """Messages have passed that nobody takes."""

    def forget(self, envelopes: Sequence[Envelope]) -> None:
        """Messages came to nothing: their transaction is rolled back."""


class Targets:
    """One set of queues; or `replies_to`, the channel of a direct reply, which needs no queue.

    `plain`: a message has to be appended to the lanes, and nothing else. A set without queues is
    not plain, nor is one with a queue whose settings ask for more (`Effective.plain`). `special`
    are these queues; `durable`, `transient` and `all` are the lanes of the others, which share an
    append. Of messages that are not persistent `lasting` are the lanes that keep them all the same,
    and `fleeting` the others. For every run only `plain` is looked at, and `ranks`: a quorum queue
    is among the queues, and messages of high priority go to a lane of their own there. `sole` is
    the queue of a plain set of one that keeps only what asks for it: who waits there may get the
    other messages at once. `keepers` are told of the messages, too. `unrouted`: nobody takes the
    messages. `counts` are those of the exchange that the messages were published to.
    """

    __slots__ = (
        "all",
        "counts",
        "durable",
        "fleeting",
        "keepers",
        "lasting",
        "plain",
        "queues",
        "ranks",
        "replies_to",
        "sole",
        "special",
        "transient",
        "unrouted",
    )

    def __init__(
        self,
        queues: tuple[QueueType, ...],
        replies_to: ReplyChannel | None = None,
        keepers: tuple[Keeper, ...] = (),
        counts: ExchangeCounts | None = None,
    ) -> None:
        self.queues = queues
        self.counts = counts
        self.replies_to = replies_to
        self.special = [queue for queue in queues if not queue.effective.plain]
        self.keepers = keepers
        self.plain = bool(queues) and not self.special and not keepers
        alone = self.plain and len(queues) == 1 and not queues[0].declared.keeps_all
        self.sole = queues[0] if alone else None
        self.ranks = any(queue.declared.arguments.type == "quorum" for queue in queues)
        self.unrouted = not queues and not self.takers
        plain = [queue for queue in queues if queue.effective.plain]
        self.durable: list[Lane[Envelope]] = [
            queue.lane for queue in plain if queue.declared.durable
        ]
        self.transient: list[Lane[Envelope]] = [
            queue.lane for queue in plain if not queue.declared.durable
        ]
        self.all = self.durable + self.transient
        self.lasting = [queue.lane for queue in plain if queue.declared.keeps_all]
        self.fleeting = [queue.lane for queue in plain if not queue.declared.keeps_all]

    @property
    def takers(self) -> list[Keeper]:
        """Those of the keepers who take the messages."""
        return [keeper for keeper in self.keepers if keeper.takes]

    def forget(self, envelopes: Sequence[Envelope]) -> None:
        """Messages that were to go here come to nothing."""
        for keeper in self.keepers:
            keeper.forget(envelopes)

    def now(self) -> Targets:
        """Those of the queues that are still there, by the settings that they have now."""
        queues, special = self.queues, self.special
        left = tuple(queue for queue in queues if not queue.deleted)
        asking = [queue for queue in left if not queue.effective.plain]
        if len(left) == len(queues) and asking == special:
            return self
        return Targets(left, keepers=self.keepers, counts=self.counts)


class Routes:
    """The remembered ways of one vhost: `known` has targets by exchange and routing key.

    A way is remembered only if exchange and key alone decided it, and until a binding changes.
    Those of a user who may not publish everything are kept apart, since what is remembered was
    allowed; `permitted` are the exchanges, and topics of exchanges, that were asked about.
    """

    __slots__ = ("_budget", "_sets", "_version", "known", "permitted")

    def __init__(self, budget: Budget = BUDGET) -> None:
        self.known: dict[tuple[str, str], Targets] = {}
        self.permitted: set[tuple[str, str | None]] = set()
        self._budget = budget
        self._sets: dict[
            tuple[tuple[str, ...], tuple[Keeper, ...], ExchangeCounts | None], Targets
        ] = {}
        self._version = -1

    def check(self, version: int) -> None:
        """Forget all if the version of the routing table has changed since the last call."""
        if version != self._version:
            self._version = version
            self.give_back()

    def remember(self, exchange: str, key: str, targets: Targets) -> None:
        """The way of all messages with this exchange and key."""
        self._budget.charge(self, _WAY_BYTES + len(exchange) + len(key))
        self.known[exchange, key] = targets

    def permit(self, exchange: str, topic: str | None) -> None:
        """The user may publish to this exchange (None), or with this topic."""
        self._budget.charge(self, _WAY_BYTES + len(exchange) + len(topic or ""))
        self.permitted.add((exchange, topic))

    def targets(
        self,
        names: tuple[str, ...],
        queues: Mapping[str, QueueType],
        keepers: tuple[Keeper, ...] = (),
        counts: ExchangeCounts | None = None,
    ) -> Targets:
        """The set of the queues with these names, and of keepers, as an exchange has it."""
        key = names, keepers, counts
        targets = self._sets.get(key)
        if targets is None:
            self._budget.charge(self, _WAY_BYTES + _QUEUE_BYTES * len(names))
            found = tuple(queues[name] for name in names)
            targets = self._sets[key] = Targets(found, keepers=keepers, counts=counts)
        return targets

    def give_back(self) -> None:
        """Nobody asks any more."""
        self._budget.release(self)
        self.forget()

    def forget(self) -> None:
        """Forget all (see `Budget`)."""
        self.known.clear()
        self.permitted.clear()
        self._sets.clear()
