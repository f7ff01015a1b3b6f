"""Message priorities: one backlog for each level that was used.

A classic queue with `x-max-priority` (rabbit_priority_queue) has the levels 0 to its maximum, which
is 1 at least: a message goes to the level of its priority, 0 if it has none, the maximum if its
priority is higher. Without the argument there is level 0 only. A quorum queue has levels 0 and 1
(two_priorities.py). Promises that messages of a level keep their order, and that a level's lane is
made with its first message and named by the queue's definition before. Knows no takers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import TypeAlias

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Traits
from qlog.server.broker.queues.backlog import Backlog
from qlog.server.broker.queues.mail import Mail
from qlog.storage.lanes.lane import Lane

# The ids of a queue's lanes, by level. Level 0 is always there.
LaneIds: TypeAlias = Mapping[int, int]


class Levels:
    """See the head of this file. `backlogs` has those of the highest level first.

    Arguments: `lanes` are those that the queue has, by level; `level_of` is the level of a message,
    None without priorities; `new_lane` makes a lane for a level, and gets the ids of the others;
    `new_backlog` makes a lane's ready set; `in_turn`: messages are given to the lanes in the order
    in which they came, also across levels, which takes more appends.
    """

    __slots__ = ("_by_level", "_in_turn", "_level_of", "_new_backlog", "_new_lane", "backlogs")

    def __init__(
        self,
        lanes: Mapping[int, Lane[Envelope]],
        level_of: Callable[[Traits], int] | None,
        new_lane: Callable[[LaneIds, int], Lane[Envelope]],
        new_backlog: Callable[[Lane[Envelope]], Backlog] = Backlog,
        *,
        in_turn: bool = False,
    ) -> None:
        self._by_level = {level: new_backlog(lane) for level, lane in lanes.items()}
        self._level_of = level_of
        self._in_turn = in_turn
        self._new_backlog = new_backlog
        self._new_lane = new_lane
        self.backlogs: list[Backlog] = []
        self._sort()

    def close(self) -> None:
        """The queue is deleted: let go of it. There are no more levels from now on."""
        self._level_of = None
        del self._new_lane, self._new_backlog

    def _sort(self) -> None:
        by_level = self._by_level
        self.backlogs[:] = [by_level[level] for level in sorted(by_level, reverse=True)]

    def sorted(self, mail: Mail) -> Iterator[tuple[Lane[Envelope], Mail]]:
        """The lanes that messages go to, each with its messages, in their order.

        A lane comes once, or, if the order across levels counts, with each stretch of messages.
        """
        level_of = self._level_of
        if level_of is None:
            yield self._lane(0), mail
            return
        if self._in_turn:
            start = 0
            for level, stretch in groupby(map(level_of, mail.traits)):
                stop = start + sum(1 for _ in stretch)
                yield self._lane(level), mail.part(start, stop)
                start = stop
            return
        indices: dict[int, list[int]] = {}
        for index, traits in enumerate(mail.traits):
            indices.setdefault(level_of(traits), []).append(index)
        for level, chosen in indices.items():
            yield self._lane(level), mail.chosen(chosen)

    def _lane(self, level: int) -> Lane[Envelope]:
        backlog = self._by_level.get(level)
        if backlog is None:
            lane_ids = {other: one.lane.id for other, one in self._by_level.items()}
            backlog = self._by_level[level] = self._new_backlog(self._new_lane(lane_ids, level))
            self._sort()
        return backlog.lane


def capped(level_max: int) -> Callable[[Traits], int] | None:
    """The levels of a classic queue with this maximum; None: 0, without priorities."""
    if not level_max:
        return None
    return lambda traits: min(traits.priority or 0, level_max)
