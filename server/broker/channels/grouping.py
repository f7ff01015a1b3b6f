"""What one read brings, grouped by where it goes: one append for each set of queues.

AMQP orders messages by channel and queue only, so messages for disjoint sets of queues may be
stored in any order. Promises that each queue gets its messages in the order they were added: a
group is closed as soon as another group gets a message for one of its queues. Knows nothing of
routing.
"""

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.queues.targets import Targets
from qlog.server.broker.queues.type import QueueType


class Group:
    """Messages for the same queues and equally durable, in their order.

    The lists belong to the group: the store may keep them.
    """

    __slots__ = ("bodies", "envelopes", "persistent", "targets")

    def __init__(self, targets: Targets, persistent: bool) -> None:
        self.targets = targets
        self.persistent = persistent
        self.envelopes: list[Envelope] = []
        self.bodies: list[bytes] = []


class Grouping:
    """The groups of one read: `groups`, in the order in which they are to be stored."""

    __slots__ = ("_latest", "_open", "groups")

    def __init__(self) -> None:
        self.groups: list[Group] = []
        # By persistence (False, True): the groups that may still grow.
        self._open: tuple[dict[Targets, Group], dict[Targets, Group]] = ({}, {})
        self._latest: dict[QueueType, Group] = {}

    def open(self, persistent: bool) -> dict[Targets, Group]:
        """The groups of this kind that may grow, until `group` is called. Do not change it."""
        return self._open[persistent]

    def group(self, targets: Targets, persistent: bool) -> Group:
        """The group that the next message for these queues belongs to."""
        group = self._open[persistent].get(targets)
        if group is not None:
            return group
        group = Group(targets, persistent)
        latest = self._latest
        for queue in targets.queues:
            before = latest.get(queue)
            if before is not None:
                self._open[before.persistent].pop(before.targets, None)
            latest[queue] = group
        self._open[persistent][targets] = group
        self.groups.append(group)
        return group
