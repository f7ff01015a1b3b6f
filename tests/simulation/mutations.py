"""What the simulation must notice: storage with one thing done wrong, and that it does.

Two tables. `MUTATIONS` breaks a promise each, among them every sync that is left out; `find` lives
mutated lives until one is caught. `REDUNDANT` has the syncs whose absence breaks none, each with the
reason; lives without all of them at once must go well. Together they name every sync in storage.
"""

import ast
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary, WeakSet

from msgspec.structs import replace

import qlog.storage
from qlog.storage import journal
from qlog.storage.errors import SyncFailed
from qlog.storage.index import checkpoint
from qlog.storage.index.checkpoints import Checkpoints
from qlog.storage.index.due import DueTimes
from qlog.storage.index.due_rows import DueRows
from qlog.storage.index.index import LaneUpdate, Placed
from qlog.storage.journal import Entry
from qlog.storage.lanes.cache import Cache
from qlog.storage.lanes.lane import Lane
from qlog.storage.lanes.settled import lane_entries
from qlog.storage.space.compact import CompactionStep
from qlog.storage.space.compactor import Compactor
from qlog.storage.start.adopted import Adopted
from qlog.storage.start.recovery import _Recovery
from qlog.storage.write.commit import CommitJob, CommitResult, Committer
from qlog.storage.write.commits import Commits
from qlog.storage.write.ledger import LedgerWriter, Record
from qlog.storage.write.local import LocalJournal
from qlog.storage.write.replay import Merge
from qlog.storage.write.settling import Settling
from tests.simulation.disk import SimulatedDisk
from tests.simulation.lives import Violation, judged, live, scratch
from tests.simulation.world import Fate, World
from tests.storage.probe import probe
from tests.storage.support import SMALL

Patches = Callable[[], list[AbstractContextManager[Any]]]


@dataclass(frozen=True, slots=True)
class Mutation:
    """One thing done wrong."""

    name: str
    breaks: str  # how it comes out
    without: str = ""  # this sync: who calls for it, and of what
    patches: Patches = list
    taste: dict[str, float] = field(default_factory=dict)  # steps that are taken more often
    script: Callable[[World], None] | None = None  # in place of random lives


# -- syncs that may be missing

REDUNDANT = {
    "create: file": "the first commit to a segment syncs its size too, and a segment without a "
    "commit may be any size; what it is for is speed: space that is there costs no journal later",
    "LedgerWriter.remove_older: ledger": "an older file that is back is not looked at",
    "_Recovery._finish_log: log": "an empty segment that is back is empty again, and the next "
    "segment's creation syncs the directory before it is written to",
    "_Recovery._remove_leftover: log": "a file that the ledger gave up is given up again",
    "SparseWriter._write: file": "it spreads the work; all is synced before the segment's name",
    "Upkeep._unlink: log": "the ledger gave the segment up, and no later ledger file lists it",
    "mark_doubt: data": "damage in the index is found again; the mark only spares the way there",
}

# Those of streams, all of them needed. Lives of streams (streams.py) must miss each, but for those
# with a reason why they hardly do.
STREAM_SYNCS = {
    "_Writer.run: file": "",
    "_Writer.run: streams": "",
    "_Writer._seal: file": "",
    "move: data": "",
    "unlink: streams": "a file that comes back is unlinked again, unless the file before it has "
    "grown past its beginning in the meantime, without a new file",
}

# What these sync is not the directory that a life is about: tests/storage/test_backup.py loses the
# power on them, and shows that each kind of them is missed.
OF_BACKUPS = frozenset({"Backup._copy_bytes", "Backup._finish", "restore", "_copy"})


# -- other mistakes


def _confirm_early() -> list[AbstractContextManager[Any]]:
    original = LocalJournal._submit_job

    def submit(self: LocalJournal[Any]) -> None:
        original(self)
        commits = self.commits
        if commits.busy:
            commits.durable_lsn = commits.log.lsn

    return [patch.object(LocalJournal, "_submit_job", submit)]


def _confirm_despite_failure() -> list[AbstractContextManager[Any]]:
    original = Committer._write_log

    def write(self: Committer, job: CommitJob, result: CommitResult) -> None:
        try:
            original(self, job, result)
        except SyncFailed:
            result.written = len(job.batches)
            raise

    return [patch.object(Committer, "_write_log", write)]


def _sync_again() -> list[AbstractContextManager[Any]]:
    original = SimulatedDisk.sync_data

    def sync(self: SimulatedDisk, file: int) -> None:
        try:
            original(self, file)
        except SyncFailed:
            original(self, file)
            self.failed = ""  # so it looks

    return [patch.object(SimulatedDisk, "sync_data", sync)]


def _index_first() -> list[AbstractContextManager[Any]]:
    """The ledger's sync comes with the next job, when the index may have been written."""
    original = Committer._write_ledger
    owing: WeakSet[LedgerWriter] = WeakSet()
    tickets: WeakKeyDictionary[LedgerWriter, int] = WeakKeyDictionary()

    def write(self: Committer, job: CommitJob, result: CommitResult) -> None:
        ledger = self._ledger
        if ledger in owing:
            ledger.sync()
            owing.discard(ledger)
        if job.ticket > tickets.get(ledger, 0):  # somebody waits for it
            tickets[ledger] = job.ticket
            original(self, job, result)
        else:
            with patch.object(ledger, "sync", lambda: owing.add(ledger)):
                original(self, job, result)

    return [patch.object(Committer, "_write_ledger", write)]


def _unlink_first() -> list[AbstractContextManager[Any]]:
    original = Checkpoints._reclaim

    def reclaim(self: Checkpoints[Any], condemned: list[int], spill_current: int) -> None:
        original(self, condemned, spill_current)
        original(self, list(self.condemned), spill_current)

    return [patch.object(Checkpoints, "_reclaim", reclaim)]


def _ledger_not_told() -> list[AbstractContextManager[Any]]:
    original = Compactor.stepped

    def stepped(self: Compactor, step: CompactionStep, now_s: float) -> None:
        original(self, step, now_s)

    return [patch.object(Compactor, "stepped", stepped)]


def _checkpoint_ahead() -> list[AbstractContextManager[Any]]:
    original = Checkpoints._begin

    def begin(self: Checkpoints[Any], job: CommitJob) -> None:
        commits = self._commits
        durable_lsn = commits.durable_lsn
        commits.durable_lsn = commits.log.lsn
        try:
            original(self, job)
        finally:
            commits.durable_lsn = durable_lsn

    return [patch.object(Checkpoints, "_begin", begin)]


class _Ignored:
    """An attribute that stays what it is, whatever is assigned to it."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __get__(self, owner: object, kind: type) -> int:
        return self.value

    def __set__(self, owner: object, value: int) -> None:
        pass


def _joined_while_gathering() -> list[AbstractContextManager[Any]]:
    return [patch.object(Cache, "gathering_lsn", _Ignored(-1), create=True)]


def _tail_as_it_is() -> list[AbstractContextManager[Any]]:
    return [patch.object(_Recovery, "_rewrite", lambda *arguments: None)]


def _orphans_hit() -> list[AbstractContextManager[Any]]:
    original = Lane.recovered

    def recovered(self: Lane[Any], placed_upto: int, next_qseq: int, placed: Any) -> None:
        original(self, placed_upto, placed_upto, placed)

    return [patch.object(Lane, "recovered", recovered)]


def _forget_full() -> list[AbstractContextManager[Any]]:
    original = LocalJournal._committed

    def committed(self: LocalJournal[Any], result: object) -> None:
        if isinstance(result, CommitResult) and result.full:
            result.written = len(result.job.batches)
        original(self, result)

    return [patch.object(LocalJournal, "_committed", committed)]


def _attempts_not_in_snapshot() -> list[AbstractContextManager[Any]]:
    def entries(*arguments: Any) -> list[journal.OfLane]:
        found = lane_entries(*arguments)
        return [entry for entry in found if not isinstance(entry, journal.Attempts)]

    return [patch.object(checkpoint, "lane_entries", entries)]


def _attempts_not_in_index() -> list[AbstractContextManager[Any]]:
    original = checkpoint.lane_update

    def update(*arguments: Any) -> LaneUpdate:
        return replace(original(*arguments), attempts=[])

    return [patch.object(checkpoint, "lane_update", update)]


def _inline_without_sync() -> list[AbstractContextManager[Any]]:
    original = Commits.run_inline

    def run(self: Commits[Any]) -> CommitResult:
        with patch.object(SimulatedDisk, "sync_data", lambda *arguments: None):
            return original(self)

    return [patch.object(Commits, "run_inline", run)]


def _log_before_definitions() -> list[AbstractContextManager[Any]]:
    original = Committer.run

    def run(self: Committer, job: CommitJob) -> CommitResult:
        job.ledger_first = False
        return original(self, job)

    return [patch.object(Committer, "run", run)]


def _new_lanes_forgotten() -> list[AbstractContextManager[Any]]:
    return [patch.object(Settling, "appended", lambda *arguments: None)]


def _defined_when_written() -> list[AbstractContextManager[Any]]:
    original = Settling.committed

    def committed(self: Settling[Any], result: CommitResult) -> None:
        original(self, result)
        if not self.unwritten:
            self.defined_synced = self._defined_written

    return [patch.object(Settling, "committed", committed), _without_sync_for_definitions()]


def _without_sync_for_definitions() -> AbstractContextManager[Any]:
    original = Settling.join

    def join(self: Settling[Any], job: CommitJob, *, sync: bool, flush: bool) -> None:
        original(self, job, sync=sync, flush=flush)
        job.ledger_sync = sync or self.wants_sync

    return patch.object(Settling, "join", join)


def _settle_at_once() -> list[AbstractContextManager[Any]]:
    def settle_after(self: Lane[Any], lsn: int, first: int, count: int, size: int) -> None:
        self.settle(first, count, size)

    return [patch.object(Lane, "settle_after", settle_after)]


def _due_not_rebuilt() -> list[AbstractContextManager[Any]]:
    original = Adopted.placed

    def placed(self: Adopted, count_max: int) -> Iterator[Placed]:
        for one in original(self, count_max):
            one.dues_ms = None
            yield one

    return [patch.object(Adopted, "placed", placed)]


def _due_only_in_index() -> list[AbstractContextManager[Any]]:
    original = DueTimes.written

    def written(self: DueTimes, placed_upto: Mapping[int, int]) -> None:
        original(self, dict.fromkeys(placed_upto, 1 << 60))

    return [patch.object(DueTimes, "written", written)]


def _due_after_settling() -> list[AbstractContextManager[Any]]:
    original = DueRows.change

    def change(self: DueRows, lane: int, base: int, before: int, now: int, *rest: Any) -> int:
        return original(self, lane, base, before, before, *rest)

    return [patch.object(DueRows, "change", change)]


def _restored_first() -> list[AbstractContextManager[Any]]:
    def restored(self: Settling[Any], lane: Lane[Any], flat: list[int]) -> None:
        self.note(journal.Restored(lane.id, flat))

    return [patch.object(Settling, "restored", restored)]


def _restored_not_kept() -> list[AbstractContextManager[Any]]:
    condemned = property(lambda self: self.condemned)
    return [patch.object(Checkpoints, "_excluded", condemned)]


def _restored_while_compacted() -> list[AbstractContextManager[Any]]:
    return [patch.object(Compactor, "has_part", lambda self, segment_id: False)]


def _settlements_first() -> list[AbstractContextManager[Any]]:
    """All of the ledger comes before the log, and nothing is said again."""

    def batch(self: Merge, durable_lsn: int, records: Sequence[Record]) -> Iterator[Entry]:
        for record in records:
            yield from self.entry(record)

    return [
        patch.object(Merge, "batch", batch),
        patch.object(Merge, "_again", lambda *arguments: iter(())),
    ]


def _never_again() -> list[AbstractContextManager[Any]]:
    return [patch.object(Merge, "_again", lambda *arguments: iter(()))]


def _replay_without_attempts() -> list[AbstractContextManager[Any]]:
    original = Merge.entry

    def entry(self: Merge, record: Record) -> Iterator[Entry]:
        if not isinstance(record, journal.Attempts):
            yield from original(self, record)

    return [patch.object(Merge, "entry", entry)]


def _submitted_out_of_order() -> list[AbstractContextManager[Any]]:
    original = Settling.flush

    def flush(self: Settling[Any]) -> None:
        before = len(self._chunks)
        original(self)
        self._chunks[before:] = [list(reversed(records)) for records in self._chunks[before:]]

    return [patch.object(Settling, "flush", flush)]


def _released_anyway() -> list[AbstractContextManager[Any]]:
    return [patch.object(LocalJournal, "release", lambda *arguments: None)]


def _stream_ahead() -> list[AbstractContextManager[Any]]:
    def move(self: LocalJournal[Any], result: CommitResult) -> None:
        if result.ledger_synced:
            assert result.ledger_position is not None
            self._ledger_synced = (0, result.ledger_position)
        self._end = self._places()

    return [patch.object(LocalJournal, "_move_position", move)]


def _stream_not_synced() -> list[AbstractContextManager[Any]]:
    def move(self: LocalJournal[Any], result: CommitResult) -> None:
        assert result.ledger_position is not None
        self._ledger_synced = (0, result.ledger_position)
        self._end = self._places()

    return [patch.object(LocalJournal, "_move_position", move)]


# -- lives that do not come about at random


def _footer_cut_off(world: World) -> None:
    """A process dies while it seals a segment; all behind that goes; then the power."""
    world.begin()
    world.publish([0], 5, 700, True, False)
    world.publish([1], 40, 700, True, False)
    world.disk.crash_at = "seal: file"
    world.fate = Fate(power=False)
    world.perform(world.drive, 0.01)
    assert world.counts["rounds"] == 1
    world.settle(1, 0.0, 100)
    for _ in range(4):
        world.drive(1.1)
    assert len(probe(world.running).log.segments) == 2
    world.publish([2], 1, 30, True, False)
    world.settle_down()
    world.crash(Fate(seed=world.seed))


def _old_index_back(world: World) -> None:
    """An index in doubt is made anew; then what the old one points to goes; then the power."""
    world.begin()
    world.publish([0], 5, 700, True, False)
    world.checkpoint()
    world.doubt()
    world.crash(Fate(power=False))
    world.publish([1], 1, 30, True, False)
    world.settle(0, 0.0, 100)
    for _ in range(4):
        world.drive(1.1)
    probe(world.running).settling.wants_roll = True
    world.checkpoint()
    world.crash(Fate(seed=world.seed))


def older_ledger_removed(world: World) -> None:
    """A process dies before a new ledger's name is synced; the next takes it, and dies, too."""
    world.begin()
    world.publish([0], 5, 700, True, False)
    world.settle_down()
    probe(world.running).settling.wants_roll = True
    world.disk.crash_at = "LedgerWriter.roll: ledger"
    world.fate = Fate(power=False, inside=((world.seed % 40, True),), seed=world.seed)
    world.perform(world.checkpoint)
    assert world.counts["rounds"] == 1


def _restored_meanwhile(world: World) -> None:
    """Messages are restored while a checkpoint is written that has them as settled."""
    world.begin()
    world.publish([0], 30, 700, True, False)
    world.settle_down()
    world.checkpoint()
    world.settle(0, 1 / 3, 10)
    probe(world.running).checkpoints.begin()
    world.tick(0.001)
    world.work(0, True)
    world.restore(0, 1 / 3, 10)
    for _ in range(4):
        world.drive(2.5)
    world.crash(Fate(seed=world.seed))


def _restored_in_a_compaction(world: World) -> None:
    """Settled messages are restored while what is alive beside them is copied."""
    world.begin()
    world.publish([0], 40, 300, True, False)
    world.settle_down()
    world.checkpoint()
    for block in range(10):  # three of four
        world.settle(0, (4 * block + 1.5) / 40, 3)
    world.checkpoint()
    compactor = probe(world.running).compactor
    for _ in range(50):
        world.tick(61.0)
        if compactor.working:
            break
        for worker in (0, 1, 1):
            world.work(worker, True)
    assert compactor.working
    for _ in range(world.seed % 6):
        world.work(1, True)
        world.tick(0.5)
    world.restore(0, 0.0, 40)
    for _ in range(4):
        world.drive(61.0)
    world.crash(Fate(seed=world.seed))


def _followed_too_far(world: World) -> None:
    """A follower takes what there is after a settlement was written; then the power goes."""
    world.begin()
    world.publish([0], 5, 30, True, False)
    world.settle_down()
    world.settle(0, 0.0, 2)
    world.drive(0.01)
    world.follow(False, False)
    world.crash(Fate(seed=world.seed))


MUTATIONS = [
    Mutation("no sync of the parent", "the directory is gone", "_sync_parent: parent"),
    Mutation("no sync of the root", "log and ledger are gone", "prepare: data"),
    Mutation("no sync of a segment's name", "the segment is gone", "create: log"),
    Mutation("no sync of a commit", "confirmed messages are gone", "Committer._write_log: file"),
    Mutation("no sync of a footer", "torn, with a gap behind it", "seal: file"),
    Mutation("no sync of the ledger", "acks come back", "LedgerWriter.sync: file"),
    Mutation("no sync of a new ledger", "its snapshot is torn", "LedgerWriter.roll: file"),
    Mutation("no sync of a ledger's name", "the first is gone", "LedgerWriter.roll: ledger"),
    Mutation(
        "no sync of the name of a ledger that was found",
        "the older one is removed, and the power goes",
        "_Recovery._begin_ledger: ledger",
        script=older_ledger_removed,
    ),
    Mutation(
        "no sync of an index made anew",
        "the old one is back, without the mark of doubt",
        "_Recovery._update_index: data",
        script=_old_index_back,
    ),
    Mutation(
        "no sync of a tail written again",
        "the footer of a seal that did not end is torn, with a gap behind it; all else is synced "
        "with the footer that recovery writes",
        "_Recovery._rewrite: file",
        script=_footer_cut_off,
    ),
    Mutation("no sync of a compacted segment", "it is torn", "SparseWriter.finish: file"),
    Mutation("no sync of its name", "the segment is gone", "SparseWriter.finish: log"),
    Mutation("confirm before the sync", "confirmed messages are gone", patches=_confirm_early),
    Mutation(
        "confirm after a sync that failed",
        "confirmed messages are gone",
        patches=_confirm_despite_failure,
        taste={"fail": 8},
    ),
    Mutation(
        "a failed sync is tried again",
        "it succeeds, and wrote nothing",
        patches=_sync_again,
        taste={"fail": 8},
    ),
    Mutation("index before ledger", "the ledger is behind", patches=_index_first),
    Mutation(
        "index before log",
        "the log is behind",
        patches=_checkpoint_ahead,
        taste={"checkpoint": 5},
    ),
    Mutation(
        "runs are joined over the end of a snapshot that is gathering",
        "the index never gets the first, and the log is read from behind it",
        patches=_joined_while_gathering,
        taste={"trickle": 5, "publish": 0.3, "checkpoint": 0.3, "settle_down": 0.3},
    ),
    Mutation("unlink before the ledger knows", "a segment is missing", patches=_unlink_first),
    Mutation(
        "the ledger is not told of a compaction",
        "the copy is taken for an orphan, and pointers to it are in the index",
        patches=_ledger_not_told,
    ),
    Mutation(
        "the tail is not written again",
        "after a failed sync it is in memory only",
        patches=_tail_as_it_is,
        taste={"fail": 8},
    ),
    Mutation("no orphan rule", "a qseq is given twice", patches=_orphans_hit),
    Mutation(
        "what is handed on is settled before its copy is on disk",
        "on a full disk acks go on, and the copy is lost",
        patches=_settle_at_once,
        taste={"hand_on": 4, "fill_disk": 3},
    ),
    Mutation(
        "the log does not wait for definitions",
        "confirmed messages are in a lane that nothing defines",
        patches=_log_before_definitions,
        taste={"delete_lane": 20},
    ),
    Mutation(
        "messages in new lanes are forgotten",
        "the log does not wait for the definitions of their lanes",
        patches=_new_lanes_forgotten,
        taste={"delete_lane": 20},
    ),
    Mutation(
        "a definition counts as durable when it is written",
        "it is gone after a power loss",
        patches=_defined_when_written,
        taste={"delete_lane": 20},
    ),
    Mutation(
        "a commit on the owner's thread is not synced",
        "confirmed messages are gone",
        patches=_inline_without_sync,
        taste={"commit_in_time": 4},
    ),
    Mutation("a full disk drops a batch", "it is not there", patches=_forget_full),
    Mutation(
        "attempts are not in the ledger's snapshot",
        "they are forgotten when the ledger rolls",
        patches=_attempts_not_in_snapshot,
        taste={"attempt": 4},
    ),
    Mutation(
        "attempts are not in the index",
        "they are forgotten when a checkpoint has them",
        patches=_attempts_not_in_index,
        taste={"attempt": 4},
    ),
    Mutation(
        "a message is restored before it is settled",
        "the ledger has both in the wrong order",
        patches=_restored_first,
        taste={"restore": 8},
    ),
    Mutation(
        "a segment goes although a message of it was restored",
        "the index did not count it yet",
        patches=_restored_not_kept,
        script=_restored_meanwhile,
    ),
    Mutation(
        "messages are restored from a segment that is being compacted",
        "they are not in the new one",
        patches=_restored_while_compacted,
        script=_restored_in_a_compaction,
    ),
    Mutation(
        "the due index is not rebuilt",
        "messages are never due after a start",
        patches=_due_not_rebuilt,
        taste={"delay": 4},
    ),
    Mutation(
        "a checkpoint forgets due times that it does not have",
        "messages that were not durable when it began are never due",
        patches=_due_only_in_index,
        taste={"delay": 8, "take_due": 8, "checkpoint": 3},
    ),
    Mutation(
        "entries are submitted out of order",
        "a message is restored, and then settled",
        patches=_submitted_out_of_order,
        taste={"restore": 6, "follow": 2},
    ),
    Mutation(
        "a replay gives a settlement before its message",
        "who applies the stream has the message for ever",
        patches=_settlements_first,
    ),
    Mutation(
        "a replay does not say again what came before a message",
        "on a full disk, or beside new queues, the ledger is ahead of the log",
        patches=_never_again,
        taste={"follow": 6, "fill_disk": 4, "delete_lane": 6},
    ),
    Mutation(
        "a replay leaves attempts out",
        "who applies the stream counts fewer",
        patches=_replay_without_attempts,
    ),
    Mutation(
        "what a follower has not taken is given up",
        "its position is gone",
        patches=_released_anyway,
        taste={"follow": 8, "drive": 6, "settle": 6, "fill_disk": 0, "crash": 0.3},
    ),
    Mutation(
        "the stream ends before messages that are settled in it",
        "a follower that goes on there has the message for ever",
        patches=_stream_ahead,
        taste={"follow": 10, "fill_disk": 6, "free_disk": 3},
    ),
    Mutation(
        "the stream has what is not synced",
        "a follower knows what was lost",
        patches=_stream_not_synced,
        script=_followed_too_far,
    ),
    Mutation(
        "rows of due times stay when their messages are settled",
        "the index has rows that nothing will ever remove",
        patches=_due_after_settling,
        taste={"delay": 4},
    ),
]


@dataclass(frozen=True, slots=True)
class Caught:
    """By which life, after how many, and what it said."""

    seed: int
    rounds: int
    reason: str


def find(mutation: Mutation, seed: int, rounds_max: int) -> Caught | None:
    """Live mutated lives until one is caught; None when none is in so many rounds."""
    rounds = 0
    prepare = partial(leave_out, (mutation.without,))
    with ExitStack() as stack:
        for context in mutation.patches():
            stack.enter_context(context)
        for life in count(seed):
            if rounds >= rounds_max:
                return None
            try:
                if mutation.script is None:
                    rounds += live(life, prepare=prepare, taste=mutation.taste).counts["rounds"]
                else:
                    rounds += follow(mutation.script, life, prepare)
            except Violation as violation:
                violation.assert_found(mutation.name)
                return Caught(life, rounds, violation.reason)
    raise AssertionError


def follow(
    script: Callable[[World], None],
    seed: int,
    prepare: Callable[[World], None] = lambda world: None,
) -> int:
    """One life by a script; its rounds. Raises Violation."""
    with scratch() as base, judged([], f"script {script.__name__}, seed {seed}"):
        world = World(base / "world", replace(SMALL, segment_bytes_max=4 << 10), seed)
        prepare(world)
        try:
            script(world)
        finally:
            world.end()
        return world.counts["rounds"]


def leave_out(syncs: Collection[str], world: World) -> None:
    """For `prepare`: these are not done."""
    world.disk.left_out = syncs


def syncs() -> set[str]:
    """The functions of storage that call for a sync."""
    found = set()
    for path in Path(qlog.storage.__path__[0]).rglob("*.py"):
        if path.name == "disk.py":
            continue
        for function, node in _functions(ast.parse(path.read_text())):
            for call in ast.walk(node):
                if isinstance(call, ast.Attribute) and call.attr.startswith("sync_d"):
                    found.add(function)
    return found


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
