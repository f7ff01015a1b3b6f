"""Who gets the messages of a queue with `x-single-active-consumer`: one consumer, then the next.

The first taker that comes is active; the others wait. When the active taker goes, the one that has
waited longest among those of the highest priority becomes active, at once: what the one before it
holds unacknowledged may be acknowledged or given back later. In a quorum queue a taker of higher
priority takes over from an active one (RabbitMQ 4.0, rabbit_fifo): the active taker gets nothing
more, and gives its place up when it holds nothing unacknowledged. It is then the first to become
active again among those of its priority. Promises that no two takers get messages at a time. Knows
no messages. All other queues have dispatch.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import ValuesView

from qlog.server.broker.queues.type import Taker


class SingleActive:
    """See the head of this file. `preemptive`: a taker of higher priority takes over."""

    __slots__ = ("_active", "_heir", "_preemptive", "_takers", "_waiting")
    hungry = False  # `next` has asked the only one that counts

    def __init__(self, *, preemptive: bool) -> None:
        self._preemptive = preemptive
        self._takers: dict[int, Taker] = {}  # by id: takers are compared by identity
        self._active: Taker | None = None
        self._heir: Taker | None = None  # who becomes active when the active one goes
        self._waiting: dict[int, OrderedDict[Taker, None]] = {}  # by priority

    def __len__(self) -> int:
        return len(self._takers)

    @property
    def takers(self) -> ValuesView[Taker]:
        """All of them, in the order they came."""
        return self._takers.values()

    @property
    def active(self) -> Taker | None:
        """The active one."""
        return self._active

    def admit(self, *, exclusive: bool) -> bool:
        """Whether one more may come: anybody but one that wants no other."""
        return not exclusive

    def add(self, taker: Taker) -> None:
        """A new one."""
        self._takers[id(taker)] = taker
        if self._active is None:
            self._active = taker
            return
        self._waiting.setdefault(taker.priority, OrderedDict())[taker] = None
        if self._heir is None or taker.priority > self._heir.priority:
            self._heir = taker

    def remove(self, taker: Taker) -> None:
        """One that goes; if it was active, another one is active from now on."""
        del self._takers[id(taker)]
        if taker is self._active:
            self._active = self._heir
            if self._heir is None:
                return
            taker = self._heir
        self._forget_waiting(taker)

    def _forget_waiting(self, taker: Taker) -> None:
        """A taker waits no more."""
        equals = self._waiting[taker.priority]
        del equals[taker]
        if not equals:
            del self._waiting[taker.priority]
        if taker is self._heir:
            self._heir = next(iter(self._waiting[max(self._waiting)])) if self._waiting else None

    def feed(self, taker: Taker) -> None:
        """A taker may have credit: nothing is to be done, since `next` asks the active one."""

    def first(self, count: int) -> Taker | None:
        """Who would get these messages; None: that is not sure."""
        return None if self._preemptive else self._active

    def served(self, taker: Taker) -> None:
        """The first one has had its turn: it has the next one, too."""

    def next(self, ready: int) -> tuple[Taker, int] | None:
        """The active taker, and how many messages it can take. None: it can take none."""
        active, heir = self._active, self._heir
        if active is None:
            return None
        if self._preemptive and heir is not None and heir.priority > active.priority:
            if active.unacked:
                return None
            self._take_over(active, heir)
            active = heir
        credit = active.credit()
        return (active, credit) if credit > 0 else None

    def _take_over(self, active: Taker, heir: Taker) -> None:
        """The heir becomes active, and the one that was active is first among its equals."""
        self._active = heir
        self._forget_waiting(heir)
        equals = self._waiting.setdefault(active.priority, OrderedDict())
        equals[active] = None
        equals.move_to_end(active, last=False)
        if self._heir is None or active.priority >= self._heir.priority:
            self._heir = active
