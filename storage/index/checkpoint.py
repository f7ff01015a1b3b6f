"""A checkpoint: the index catches up with log and ledger, never getting ahead of them.

The order is always this: what the snapshot has is synced in the log, then in the ledger, then LMDB
commits. The loop thread gathers the snapshot, of messages that were durable when it began; the
commit thread syncs the ledger; the checkpoint thread does the rest (`write`).
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic

import lmdb

from qlog.storage.catalog import Definition
from qlog.storage.errors import Shortage, SyncFailed, is_shortage, shortage_of
from qlog.storage.index.index import Checkpoint, Index, LaneUpdate, Live, Move, Placed
from qlog.storage.index.rows import IndexDoubt
from qlog.storage.journal import OfLane
from qlog.storage.lanes.lane import Lane
from qlog.storage.lanes.run import IN_MEMORY, M, Run
from qlog.storage.lanes.settled import lane_entries
from qlog.storage.lmdb.catalog import CatalogCheckpoint, CatalogDoubt, CatalogFile
from qlog.storage.write.ledger import LedgerPosition, Record, SegmentReplaced, Segments
from qlog.storage.write.spill import SpillWriter

_RUNS_A_STEP = 500  # so many runs are gathered in a step: less than a millisecond


@dataclass(slots=True)
class Transient(Generic[M]):
    """A run that is only in memory, to be spilled. The lists are kept here, since the loop thread
    may take them from the run meanwhile."""

    run: Run[M]
    metas: Sequence[M]
    bodies: Sequence[bytes]
    owners: list[tuple[LaneUpdate, int]]  # the lanes that have it, with its first qseq in each


@dataclass(slots=True)
class Snapshot(Generic[M]):
    """What one checkpoint writes."""

    lsn: int
    segment_id: int
    position: int
    updates: list[LaneUpdate] = field(default_factory=list)
    runs: list[Run[M]] = field(default_factory=list)  # the runs that the updates place
    transients: dict[int, Transient[M]] = field(default_factory=dict)  # by the run's identity
    transient_serial: int = 0  # of the last transient run that belongs to it
    lanes: list[Lane[M]] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    unlinked: list[int] = field(default_factory=list)  # segments that are gone
    condemned: list[int] = field(default_factory=list)  # segments that the ledger has given up
    definitions: dict[Definition, bytes | None] = field(default_factory=dict)  # changed ones
    moves: list[Move] = field(default_factory=list)  # of compactions that the ledger knows
    spilled: "list[tuple[Run[M], int, array[int]]]" = field(default_factory=list)
    ledger: LedgerPosition | None = None  # all of the ledger before it is in the snapshot
    gathered: bool = False  # all lanes are in it
    at_once: bool = False  # all lanes were gathered in one slice
    sealed: bool = False  # what the lanes had settled is synced in the ledger


@dataclass(slots=True)
class CheckpointDone(Generic[M]):
    """The result of writing a snapshot."""

    snapshot: Snapshot[M]
    live: dict[int, Live] = field(default_factory=dict)
    spill_current: int = -1
    shortage: Shortage | None = None  # why nothing was committed; to be done again
    doubt: IndexDoubt | None = None
    failure: BaseException | None = None


def gather(snapshot: Snapshot[M], lane: Lane[M]) -> Iterator[int]:
    """Add what changed in a lane, which counts as clean from the first step on.

    Yields after each step how much that was: a lane may have very many runs. Only messages that
    were there when the snapshot began are taken: so a run that went to several lanes is taken from
    all of them, or from none.
    """
    if lane.dropped:
        yield 1
        return
    update = lane_update(lane, lane.durable_upto(snapshot.lsn))
    snapshot.updates.append(update)
    snapshot.lanes.append(lane)
    in_log: list[tuple[int, Run[M]]] = []
    in_memory: list[tuple[int, Run[M]]] = []
    for first, run in lane.unindexed(snapshot.lsn):
        if run.segment_id != IN_MEMORY:
            in_log.append((first, run))
        elif run.serial <= snapshot.transient_serial:
            in_memory.append((first, run))
        else:  # it came after the snapshot began: the index will be complete up to it only
            update.placed_upto = min(update.placed_upto, first)
            continue
        run.gathered = True  # it stays as it is until the index has it
    yield 1 + len(update.bitmaps)
    for start in range(0, len(in_log), _RUNS_A_STEP):
        part = in_log[start : start + _RUNS_A_STEP]
        update.placed += [
            Placed(first, run.segment_id, run.positions, run.lengths, run.sizes, run.dues_ms)
            for first, run in part
        ]
        snapshot.runs += [run for _, run in part]
        yield len(part)
    for start in range(0, len(in_memory), _RUNS_A_STEP):
        part = in_memory[start : start + _RUNS_A_STEP]
        for first, run in part:
            _gather_transient(snapshot, update, first, run)
        yield len(part)


def _gather_transient(snapshot: Snapshot[M], update: LaneUpdate, first: int, run: Run[M]) -> None:
    transient = snapshot.transients.get(id(run))
    if transient is None:
        if run.metas is None or run.bodies is None:
            return  # settled since the lane's first step: nobody will read it
        transient = Transient(run, run.metas, run.bodies, [])
        snapshot.transients[id(run)] = transient
    transient.owners.append((update, first))


def entries_of(lane: Lane[M]) -> list[OfLane]:
    """A lane in a new file of the ledger; remembered until the lane changes."""
    entries = lane.ledger_entries
    if entries is None:
        entries = list(lane_entries(lane.id, lane.next_qseq, lane.settled))
        lane.ledger_entries = entries
    return entries


def lane_update(lane: Lane[M], placed_upto: int) -> LaneUpdate:
    """What changed in a lane, but for new messages. The lane counts as clean afterwards."""
    settled = lane.settled
    bitmaps = {block: settled.bits_of(block) for block in settled.dirty}
    settled.dirty.clear()
    return LaneUpdate(
        lane.id,
        lane.next_qseq,
        placed_upto,
        settled.floor,
        settled.delivered,
        bitmaps,
        settled.full[:],
        settled.attempts.flat(),
    )


def snapshot_records(
    lanes: Iterable[Lane[M]],
    segments: Iterable[int],
    replaced: Mapping[int, int],
    following: int,
    following_lsn: int,
) -> list[Record]:
    """The records that a new ledger file has to begin with.

    `segments` must exist from now on. The next segment after them is `following`, whose records
    begin at `following_lsn`; it must exist if a later one does. `replaced`: segments that are
    still there although what is alive in them is also in another one.
    """
    return [
        Segments(following, following_lsn, [*segments]),
        *(SegmentReplaced(new, [old]) for old, new in replaced.items()),
        *chain.from_iterable(map(entries_of, lanes)),
    ]


def write(
    snapshot: Snapshot[M],
    index: Index,
    catalog: CatalogFile,
    spill: SpillWriter[M],
    uuid: bytes,
    epoch: int,
) -> CheckpointDone[M]:
    """Spill, then commit to the catalog, if definitions have changed, and to the index.

    Raises nothing: the result says what went wrong.

    After a failure for lack of space the same snapshot is written again later.
    """
    assert snapshot.ledger is not None
    done = CheckpointDone(snapshot)
    try:
        if snapshot.definitions:
            position = CatalogCheckpoint(uuid, epoch, snapshot.ledger)
            catalog.apply(snapshot.definitions, position)
        _spill(snapshot, spill)
        checkpoint = Checkpoint(
            uuid,
            epoch,
            snapshot.lsn,
            snapshot.segment_id,
            snapshot.position,
            snapshot.ledger,
            spill.next_id,
        )
        done.live = index.apply(
            snapshot.updates, snapshot.dropped, checkpoint, snapshot.unlinked, snapshot.moves
        )
        current = done.live.get(spill.current_id)
        if current is not None and not current.count:
            spill.let_go_dead()
    except IndexDoubt as doubt:
        done.doubt = doubt
    except OSError as error:
        done.shortage = shortage_of(error)
        if done.shortage is None:
            done.failure = error
    except (lmdb.Error, SyncFailed, CatalogDoubt) as error:
        done.failure = error
    done.spill_current = spill.current_id
    return done


def _spill(snapshot: Snapshot[M], spill: SpillWriter[M]) -> None:
    """Write the transients. Those for which there is no space stay in memory.

    The index gets no pointers to these, and is complete only up to the first of them. So a restart
    knows that what is missing there was transient.
    """
    for key, transient in list(snapshot.transients.items()):
        run = transient.run
        lane_ids, firsts = zip(*run.origin, strict=True)
        try:
            segment_id, positions = spill.append(
                lane_ids,
                firsts,
                transient.metas,
                transient.bodies,
                run.lengths,
                run.now_ms,
                run.times_ms,
                run.dues_ms,
            )
        except OSError as error:
            if not is_shortage(error):
                raise
            for left in snapshot.transients.values():
                for update, first in left.owners:
                    update.placed_upto = min(update.placed_upto, first)
            return
        snapshot.spilled.append((run, segment_id, positions))
        for update, first in transient.owners:
            update.placed.append(
                Placed(first, segment_id, positions, run.lengths, run.sizes, run.dues_ms)
            )
        del snapshot.transients[key]
