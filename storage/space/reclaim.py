"""Which segments may be given up.

A segment goes in three steps, a checkpoint apart:

1. The index covers the whole segment, and counts no unsettled message in it.
2. The ledger says that the segment is given up (it is condemned), and that is synced.
3. The file is unlinked.

So a segment that is missing without such a record is damage, and is noticed; and the index can be
rebuilt at any time from the segments that are left. index/checkpoints.py takes the steps, and
write/upkeep.py unlinks. Segments that are mostly dead are rewritten by compact.py.
"""

from collections.abc import Callable, Collection, Mapping
from itertools import takewhile

from qlog.storage.bytes.batch import FILE_HEADER_BYTES
from qlog.storage.index.index import Live
from qlog.storage.write.placement import Segment

_ROLL_SHARE = 8  # a dead active segment is worth rolling when an eighth of it is used


def dead_segments(
    segments: Mapping[int, Segment],
    live: Mapping[int, Live],
    checkpoint_lsn: int,
    excluded: Collection[int],
    keeps: Callable[[Segment], bool],
) -> list[int]:
    """The segments that nothing needs, by a checkpoint that covers the log up to this LSN.

    `excluded`: segments that were given up before, or have to stay for now. `keeps`: says of a
    segment whether it stays although nothing waits in it (retention.py).

    Segments after an unsealed one are kept: recovery needs them to know where that one ends.
    """
    in_order = sorted(segments.values(), key=lambda segment: (segment.base_lsn, segment.segment_id))
    sealed = takewhile(lambda segment: segment.sealed, in_order)
    return [
        segment.segment_id
        for segment in sealed
        if segment.end_lsn <= checkpoint_lsn
        and segment.segment_id not in excluded
        and _count(live, segment.segment_id) == 0
        and not keeps(segment)
    ]


def is_worth_rolling(active: Segment, live: Mapping[int, Live], checkpoint_lsn: int) -> bool:
    """Whether the idle active segment is all dead, and large enough to be given back."""
    return (
        active.end_lsn == checkpoint_lsn
        and active.log_end - FILE_HEADER_BYTES >= active.capacity // _ROLL_SHARE
        and _count(live, active.segment_id) == 0
    )


def _count(live: Mapping[int, Live], segment_id: int) -> int:
    known = live.get(segment_id)
    return 0 if known is None else known.count
