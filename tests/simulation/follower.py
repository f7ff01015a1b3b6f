"""Somebody who takes the journal's stream, and what they know by it: dicts, and no rules.

A message that nobody told of is not settled in advance, and a settlement of it is forgotten: so a
stream with a settlement in front of its message gives a message that is never settled.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from qlog.storage import journal
from qlog.storage.journal import Entry, Position, Replay
from qlog.storage.lanes.settled import BLOCK


@dataclass(slots=True)
class Copy:
    """A lane as the stream tells it."""

    bodies: dict[int, bytes] = field(default_factory=dict)  # of all messages, settled ones too
    alive: set[int] = field(default_factory=set)
    attempts: dict[int, int] = field(default_factory=dict)  # of those alive, where not 0
    delivered: int = 0

    @property
    def messages(self) -> dict[int, bytes]:
        """What is alive."""
        return {qseq: self.bodies[qseq] for qseq in self.alive}

    def settle(self, first: int, end: int) -> None:
        for qseq in [qseq for qseq in self.alive if first <= qseq < end]:
            self.alive.remove(qseq)
            self.attempts.pop(qseq, None)

    def restore(self, first: int, end: int) -> None:
        for qseq in [qseq for qseq in self.bodies if first <= qseq < end]:
            self.alive.add(qseq)
            self.attempts.pop(qseq, None)

    def came_back(self, first: int, end: int, number: int) -> None:
        for qseq in [qseq for qseq in self.alive if first <= qseq < end]:
            self.attempts[qseq] = number


class Follower:
    """See the head of this file."""

    def __init__(self) -> None:
        self.position: Position | None = None
        self.torn = False  # it was stopped in the middle of a part
        self.lanes: dict[int, Copy] = {}
        self.deleted: set[int] = set()
        self.definitions: dict[tuple[str, str], bytes] = {}
        self._defined: set[str] = set()  # the queues that were ever defined
        self._orphans: set[int] = set()  # lanes without a queue when the snapshot was made

    def follow(self, replay: Callable[[Position | None], Replay]) -> None:
        """Take what is new. Raises PositionGone: this follower is of no use any more."""
        for _ in self.steps(replay):
            pass

    def steps(self, replay: Callable[[Position | None], Replay]) -> Generator[None, None, None]:
        """The same, entry by entry: the store may go on between two of them."""
        part = replay(self.position)
        self.torn = True
        for entry in part.entries:
            self._take(entry, whole=self.position is None)
            yield
        self.torn = False
        self.position = part.end

    def _take(self, entry: Entry, *, whole: bool) -> None:
        match entry:
            case journal.Messages(lane_ids, firsts, metas, bodies, times_ms, dues_ms):
                assert len(metas) == len(bodies) == len(times_ms)
                assert dues_ms is None or len(dues_ms) == len(bodies)
                for lane_id, first in zip(lane_ids, firsts, strict=True):
                    if whole and str(lane_id) not in self._defined:
                        self._orphans.add(lane_id)
                    assert str(lane_id) in self._defined or lane_id in self._orphans, (
                        f"messages of lane {lane_id} come before its definition"
                    )
                    self._messages(lane_id, first, bodies)
            case journal.Settled(lane_id, flat):
                for first, end in zip(flat[0::2], flat[1::2], strict=True):
                    self.lane(lane_id).settle(first, end)
            case journal.Restored(lane_id, flat):
                for first, end in zip(flat[0::2], flat[1::2], strict=True):
                    self.lane(lane_id).restore(first, end)
            case journal.Attempts(lane_id, flat):
                for first, end, number in zip(flat[0::3], flat[1::3], flat[2::3], strict=True):
                    self.lane(lane_id).came_back(first, end, number)
            case journal.Delivered(lane_id, upto):
                lane = self.lane(lane_id)
                lane.delivered = max(lane.delivered, upto)
            case journal.LaneState(lane_id, _, floor, delivered, bits):
                lane = self.lane(lane_id)
                lane.delivered = max(lane.delivered, delivered)
                lane.attempts.clear()
                lane.settle(0, floor)
                for block, bitmap in bits.items():
                    for slot in range(BLOCK):
                        if bitmap >> slot & 1:
                            lane.settle(block * BLOCK + slot, block * BLOCK + slot + 1)
            case journal.LaneDeleted(lane_id):
                self.lanes.pop(lane_id, None)
                self.deleted.add(lane_id)
            case journal.Defined(kind, name, value):
                assert kind != "storage", "a fact of the directory"
                if value is None:
                    self.definitions.pop((kind, name), None)
                else:
                    self.definitions[kind, name] = value
                    self._defined.add(name)
            case journal.Time():
                pass
            case _:
                raise AssertionError(f"{entry} is no entry")

    def _messages(self, lane_id: int, first: int, bodies: Sequence[bytes]) -> None:
        lane = self.lane(lane_id)
        for qseq, body in enumerate(bodies, first):
            assert qseq not in lane.bodies, f"lane {lane_id}: {qseq} comes twice"
            lane.bodies[qseq] = body
            lane.alive.add(qseq)

    def lane(self, lane_id: int) -> Copy:
        """A lane that was not deleted."""
        assert lane_id not in self.deleted, f"lane {lane_id} goes on after it was deleted"
        return self.lanes.setdefault(lane_id, Copy())
