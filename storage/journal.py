"""The journal: what happened to messages and definitions, entry by entry, and who promises what.

`Journal` is what a store asks of it, and what a follower gets from it. Today write/local.py is the
only one, with log and ledger of one directory. An entry says what happened, and nothing of where it
stands: no file, no segment, no position. So whoever has messages, lanes and definitions of the same
origin can take the same entries. Local facts of one directory (which segments exist) are records of
the ledger, too, but no entries: they stand in write/ledger.py.

Ranges are flat: first, end, first, end, …; `end` is not included.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar


class Messages(NamedTuple):
    """A run of persistent messages: message i has qseq `firsts[…] + i` in each of the lanes.

    `metas` are the packed envelopes. `dues_ms` are the due times (ms since 1970), or None.
    """

    lane_ids: Sequence[int]
    firsts: Sequence[int]
    metas: Sequence[bytes]
    bodies: Sequence[bytes]
    times_ms: Sequence[int]
    dues_ms: Sequence[int] | None


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
Noted = OfLane | Defined | Time
Entry = Messages | Noted

Ticket = int  # stands for everything up to now; served when that is durable


class Position(NamedTuple):
    """How far somebody is in the stream: so many messages, and so many batches of all else.

    Both are counted from the beginning of the directory, whatever files they are in.
    """

    lsn: int
    batch: int


@dataclass(frozen=True, slots=True)
class Replay:
    """A part of the stream. When all `entries` were taken, the next part is what is after `end`."""

    end: Position
    entries: Iterator[Entry]


L_contra = TypeVar("L_contra", contravariant=True)  # a lane
M_contra = TypeVar("M_contra", contravariant=True)  # an envelope


class Journal(Protocol[L_contra, M_contra]):
    """Makes entries durable in their order, and gives them out again.

    Messages have tickets of their own: they become durable without waiting for what else is
    submitted, but for definitions of their lanes, which are durable before them.
    """

    def append(
        self,
        lanes: Sequence[L_contra],
        metas: Sequence[M_contra],
        bodies: Sequence[bytes],
        now_ms: int,
        dues_ms: Sequence[int] | None,
    ) -> int:
        """Submit messages: a run, without an object for it. `lsn` is their ticket afterwards.

        `now_ms` is the time of all of them. Returns their size in bytes.
        """

    @property
    def lsn(self) -> Ticket:
        """The ticket of all messages so far."""

    @property
    def durable_lsn(self) -> Ticket:
        """The tickets of messages up to this one are served. Only the disk moves it."""

    def submit(self, entries: Sequence[Noted]) -> Ticket:
        """Have entries written after all that was submitted before."""

    def request_sync(self) -> Ticket:
        """A ticket for everything done so far, messages included, that is to be served soon."""

    @property
    def synced(self) -> Ticket:
        """The tickets of `submit` and `request_sync` up to this one are served."""

    def replay(self, after: Position | None) -> Replay:
        """All that is durable after a position; None: a snapshot of all that counts, and the rest.

        Entries come in an order in which they can be applied: a definition before the messages of
        its queue; a settlement, or that a message came back, after the message. A message of whom
        that was known earlier may have it said twice. A settlement may also be of a message that
        never comes: it was not persistent, or is gone. A lane that nothing defines when all was
        taken is to be dropped, as a start does it. Raises PositionGone when the journal does
        not go back so far, also while entries are taken; then begin with None. So it does for None
        while a full disk keeps messages from the log, but not settlements from the ledger: try
        again when there is space. Raises CorruptLog.
        """

    def release(self, below: Position | None) -> None:
        """A follower needs nothing below a position; what is not below it is kept from now on.

        None: there is no follower (any more), and nothing is kept for it. With several followers
        the lowest position is to be given.
        """
