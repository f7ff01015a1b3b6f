"""What a channel in transaction mode keeps back until tx.commit: publishes and settlements.

Promises that publishes keep their order, that settlements keep theirs, and that nothing has
happened of a transaction that is dropped. Knows nothing of how messages are stored or settled.
"""

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.spec import BasicPublish
from qlog.server.broker.channels.grouping import Group
from qlog.server.broker.channels.unacked import UnackedRun
from qlog.server.broker.queues.targets import Targets


class Unqueued(NamedTuple):
    """Messages that no queue takes: direct replies, and what nobody is bound to."""

    targets: Targets
    methods: Sequence[BasicPublish]
    envelopes: Sequence[Envelope]
    bodies: Sequence[bytes]


class Verdict(Enum):
    """What a client says of a delivery. FAILED: it is requeued by basic.reject."""

    ACKNOWLEDGED = 0
    REQUEUED = 1
    REJECTED = 2
    FAILED = 3


class Settlement(NamedTuple):
    """Deliveries that are settled, or requeued, by the commit."""

    runs: list[UnackedRun]
    verdict: Verdict


class Transaction:
    """What the client sent since the last tx.commit or tx.rollback."""

    __slots__ = ("groups", "settlements", "unqueued")

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.unqueued: list[Unqueued] = []
        self.settlements: list[Settlement] = []

    @property
    def message_count(self) -> int:
        """How many messages wait to be published."""
        waiting = sum(len(group.bodies) for group in self.groups)
        return waiting + sum(len(unqueued.bodies) for unqueued in self.unqueued)

    @property
    def settlement_count(self) -> int:
        """How many deliveries wait to be settled."""
        return sum(run.count for settlement in self.settlements for run in settlement.runs)

    def take_settlements(self) -> list[Settlement]:
        """Take all settlements off the transaction: their deliveries are unacknowledged again."""
        taken, self.settlements = self.settlements, []
        return taken

    def roll_back(self) -> None:
        """Nothing of what was published counts: whoever has noted it forgets it."""
        for group in self.groups:
            group.targets.forget(group.envelopes)
        for messages in self.unqueued:
            messages.targets.forget(messages.envelopes)

    def surviving(self) -> Iterator[Group]:
        """The groups, for those of their queues that were not deleted meanwhile.

        Policies may have changed meanwhile: each queue gets its messages by the settings that it
        has now.
        """
        for group in self.groups:
            group.renew()
            if group.targets.queues or group.targets.keepers:
                yield group
