"""What one read brings, grouped by where it goes: one append for each set of queues.

AMQP orders messages by channel and queue only, so messages for disjoint sets of queues may be
stored in any order. Promises that each queue gets its messages in the order they were added: a
group is closed as soon as another group gets a message for one of its queues. Knows nothing of
routing.
"""

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Traits, examine
from qlog.server.broker.queues.targets import Targets
from qlog.server.broker.queues.type import QueueType


class Group:
    """Messages for the same queues and equally durable, in their order.

    `plain`: they only have to be appended. All others have their `traits`, and the `sequences` that
    they are confirmed by: a queue may reject some. The lists belong to the group: the store may
    keep them.
    """

    __slots__ = ("bodies", "envelopes", "persistent", "plain", "sequences", "targets", "traits")

    def __init__(self, targets: Targets, persistent: bool, plain: bool) -> None:
        self.targets = targets
        self.persistent = persistent
        self.plain = plain
        self.envelopes: list[Envelope] = []
        self.bodies: list[bytes] = []
        self.traits: list[Traits] = []
        self.sequences: list[int] = []

    def add(self, envelopes: list[Envelope], bodies: list[bytes]) -> None:
        """Add messages; the lists may become the group's own."""
        if self.bodies:
            self.envelopes += envelopes
            self.bodies += bodies
        else:
            self.envelopes = envelopes
            self.bodies = bodies

    def renew(self) -> None:
        """Time has passed: forget queues that were deleted, and heed what the others ask for now.

        For messages that need no confirm: their sequences are made up.
        """
        self.targets = self.targets.now()
        if self.plain and not self.targets.plain:
            self.plain = False
            self.traits = [examine(envelope.properties)[0] for envelope in self.envelopes]
            self.sequences = list(range(len(self.bodies)))


class Grouping:
    """The groups of one read: `groups`, in the order in which they are to be stored."""

    __slots__ = ("_latest", "groups", "open")

    def __init__(self) -> None:
        self.groups: list[Group] = []
        # The groups that may still grow.
        self.open: dict[Targets, Group] = {}
        # Of each queue the newest group; nothing is noted of the first group before there is a second.
        self._latest: dict[QueueType, Group] = {}

    def group(self, targets: Targets, persistent: bool, plain: bool) -> Group:
        """The group that the next message for these queues belongs to.

        `plain`: neither the queues nor the message ask for more than an append.
        """
        group = self.open.get(targets)
        if group is not None and group.persistent is persistent and group.plain is plain:
            return group
        group = Group(targets, persistent, plain)
        groups = self.groups
        if groups:
            if len(groups) == 1:
                self._note(groups[0])
            self._note(group)
        self.open[targets] = group
        groups.append(group)
        return group

    def _note(self, group: Group) -> None:
        """A group has a message for its queues: the groups before it that had one grow no more."""
        latest = self._latest
        for queue in group.targets.queues:
            before = latest.get(queue)
            if before is not None:
                self.open.pop(before.targets, None)
            latest[queue] = group
