"""Who gets the next messages of a queue: by priority, and in turn among equals.

A hand is the number of messages that a consumer gets when it is its turn: all that it can take if
no other consumer of its priority waits, else one message of a short queue, or HAND_MAX of a long
one. Promises that consumers of equal priority take turns, and that a consumer with credit gets
ready messages unless one of higher priority can take them. Credit is asked once a hand. Knows no
messages. The takers of a queue with a single active consumer are in single_active.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import ValuesView

from qlog.server.broker.queues.type import Taker

# Hands are of HAND_MAX messages when more than HAND_FROM_READY are ready, else of one.
HAND_MAX = 32
HAND_FROM_READY = 512
# So many takers without credit are passed over in one piece: less than a millisecond.
PASSED_OVER_MAX = 1000

# The first one is next. A taker may leave from anywhere, however many there are.
Ring = OrderedDict[Taker, None]


class Dispatch:
    """The takers of one queue. The hungry ones are in rings: they may have credit.

    `exclusive` is the taker that allows no other, if there is one.
    """

    __slots__ = ("_rings", "_takers", "_top", "_top_priority", "exclusive")

    def __init__(self) -> None:
        self.exclusive: Taker | None = None
        self._takers: dict[int, Taker] = {}  # by id: takers are compared by identity
        self._rings: dict[int, Ring] = {}  # by priority
        self._top: Ring | None = None  # the ring of the highest priority in `_rings`
        self._top_priority = 0

    def __len__(self) -> int:
        return len(self._takers)

    @property
    def takers(self) -> ValuesView[Taker]:
        """All of them, in the order they came."""
        return self._takers.values()

    def add(self, taker: Taker) -> None:
        """A new one; `feed` lets it have its turn."""
        self._takers[id(taker)] = taker
        if taker.exclusive:
            self.exclusive = taker

    def admit(self, *, exclusive: bool) -> bool:
        """Whether one more may come, which allows no other if `exclusive`."""
        return self.exclusive is None and not (exclusive and self._takers)

    def remove(self, taker: Taker) -> None:
        """One that goes."""
        del self._takers[id(taker)]
        if self.exclusive is taker:
            self.exclusive = None
        if taker.hungry:
            taker.hungry = False
            del self._rings[taker.priority][taker]

    def feed(self, taker: Taker) -> None:
        """Put a taker that may have credit in its ring, where `next` asks it."""
        if taker.hungry:
            return
        taker.hungry = True
        priority = taker.priority
        ring = self._rings.get(priority)
        if ring is None:
            ring = self._rings[priority] = OrderedDict()
            if self._top is None or priority > self._top_priority:
                self._top = ring
                self._top_priority = priority
        ring[taker] = None

    def first(self, count: int) -> Taker | None:
        """Who would get so many messages, if they all go to one; nothing changes.

        None: nobody, or several would share them.
        """
        ring = self._top
        if not ring or (count > 1 and len(ring) > 1):
            return None
        return next(iter(ring))

    def served(self, taker: Taker) -> None:
        """The first one has had its turn."""
        ring = self._top
        assert ring is not None
        if len(ring) > 1:
            ring.move_to_end(taker)

    @property
    def hungry(self) -> bool:
        """There are takers that may have credit."""
        return bool(self._top) or len(self._rings) > 1

    def next(self, ready: int) -> tuple[Taker, int] | None:
        """The taker whose turn it is, and the size of its hand, when `ready` messages wait.

        None: no taker has credit, or very many have none, and the others are `hungry` still.
        """
        passed_over = 0
        while (ring := self._top) is not None:
            while ring:
                taker = next(iter(ring))
                credit = taker.credit()
                if credit <= 0:
                    del ring[taker]
                    taker.hungry = False
                    passed_over += 1
                    if passed_over == PASSED_OVER_MAX:
                        return None
                elif len(ring) == 1:
                    return taker, credit
                else:
                    ring.move_to_end(taker)
                    hand = HAND_MAX if ready > HAND_FROM_READY else 1
                    return taker, min(credit, hand)
            if len(self._rings) == 1:
                return None  # the ring stays: its takers will come again
            del self._rings[self._top_priority]
            self._top_priority = max(self._rings)
            self._top = self._rings[self._top_priority]
        return None
