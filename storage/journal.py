"""The vocabulary of the journal: what happened to messages and definitions, entry by entry.

An entry says what happened, and nothing of where it stands: no file, no segment, no position. So
whoever has messages, lanes and definitions of the same origin can take the same entries. Local
facts of one directory (which segments exist) are records of the ledger, too, but no entries: they
stand in write/ledger.py.

Ranges are flat: first, end, first, end, …; `end` is not included.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Settled(NamedTuple):
    """Messages of a lane that nobody gets any more."""

    lane_id: int
    ranges: Sequence[int]


class Restored(NamedTuple):
    """Settled messages of a lane that wait again, without attempts."""

    lane_id: int
    ranges: Sequence[int]


class Delivered(NamedTuple):
    """All messages of a lane below this qseq were handed out once."""

    lane_id: int
    upto: int


class Attempts(NamedTuple):
    """How often messages of a lane came back: first, end, number, first, end, number, …"""

    lane_id: int
    ranges: Sequence[int]


class LaneState(NamedTuple):
    """A lane, as a snapshot says it. What came back to it follows, and is all that counts.

    Settled are the messages below `floor`, and those whose bit is set: `bits` has a bitmap for each
    block of messages (lanes/settled.py).
    """

    lane_id: int
    next_qseq: int
    floor: int
    delivered: int
    bits: Mapping[int, int]


class LaneDeleted(NamedTuple):
    """The lane is gone with all its messages; its id is never used again."""

    lane_id: int


class Defined(NamedTuple):
    """A definition. None: it is deleted."""

    kind: str
    name: str
    value: bytes | None


class Time(NamedTuple):
    """The wall clock (ms since 1970) when what follows was handed over, to about a second."""

    ms: int


OF_LANE = (Settled, Restored, Delivered, Attempts, LaneState, LaneDeleted)  # for isinstance
OfLane = Settled | Restored | Delivered | Attempts | LaneState | LaneDeleted
Entry = OfLane | Defined | Time
