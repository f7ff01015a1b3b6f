"""A store on a simulated disk beside a model of it: steps, crashes, and what must hold after each.

The steps are methods that take plain values, so that Hypothesis (tests/storage/test_store_machine.py)
and a seeded driver (lives.py) can share them. A crash in any of them, at any operation of the disk,
ends in `restart`. Anything but a crash that comes out of a step is a violation. Checked, by the
numbers of the invariants in the project's design:

1. what was confirmed and never settled is there after any crash;  2. what is there was published,
byte for byte;  3. a settlement that was synced holds after a power loss, and one that was written
after a kill;  4. qseqs, LSNs and epochs only grow;  5. what a recovery found is what each later one
finds, with crashes inside recovery too;  6. a copy of the image without its index gives the same;
7. live counts are those of the unsettled pointers, and each points to a file that is there;
10. after an error nothing is confirmed any more, a full disk takes acks, and goes on when there is
space;  11. nothing changes what a lane holds but publishing and settling.

Beside these: an orderly stop leaves nothing to replay and no file open, promised times are kept, a
high-water mark of deliveries that was synced holds, and a start is never refused.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from qlog.storage import store as store_module
from qlog.storage.bytes.datadir import Paths, mark_doubt
from qlog.storage.errors import PositionGone, StorageError
from qlog.storage.index import checkpoint, checkpoints, due
from qlog.storage.index import index as index_module
from qlog.storage.index.due_rows import Due
from qlog.storage.index.index import SPILL, Live
from qlog.storage.lanes import cache, reader, run
from qlog.storage.lanes import lane as lane_module
from qlog.storage.lanes.lane import Lane
from qlog.storage.lanes.settled import BLOCK, contains
from qlog.storage.settings import StoreSettings
from qlog.storage.space import compact, sparse, spilled
from qlog.storage.start import recovery
from qlog.storage.start.at_rest import replay_at_rest
from qlog.storage.store import Store
from qlog.storage.write import commit, commits, ledger, segment
from tests.simulation.disk import LMDB_NAMES, Crash, SimulatedDisk
from tests.simulation.follower import Follower
from tests.storage.probe import probe
from tests.storage.support import Envelope, ManualWorker, abandon, contents, decode, ignore, publish

LANES = 3
# The threads have come to rest by then, or never will. A checkpoint goes on by one run at a time
# here, and there may be some ten thousand of them.
ROUNDS_MAX = 100_000


class Worker(ManualWorker):
    """Runs jobs when told to; a crash inside of one is not its result."""

    def run_one(self) -> bool:
        if not self.jobs:
            return False
        result: object
        try:
            result = self.jobs.popleft()()
        except Crash:
            raise
        except BaseException as error:  # noqa: BLE001 - as the real one does
            result = error
        self.results.append(result)
        return True


@dataclass(frozen=True, slots=True)
class Fate:
    """How a crash goes on."""

    power: bool = True
    inside: Sequence[tuple[int, bool]] = ()  # crashes in recovery: (after operations, power)
    errors: Sequence[int] = ()  # starts that fail with EIO: after operations
    full: bool = False  # a start without space comes first
    remove_index: bool = False
    compare: bool = False  # with what comes of the image without its index
    seed: int = 0


@dataclass(frozen=True, slots=True)
class HandedOn:
    """A message whose copy went to another lane; it is settled when the log is durable to `lsn`."""

    body: bytes
    lane_id: int  # of the copy
    qseq: int
    lsn: int


@dataclass(slots=True)
class Model:
    """One lane as it should be."""

    lane_id: int
    defined_step: int = 0
    alive: dict[int, bytes] = field(default_factory=dict)  # unsettled
    lsns: dict[int, int] = field(default_factory=dict)  # of the persistent: durable from here on
    settled: dict[int, tuple[bytes, int]] = field(default_factory=dict)  # and in which step
    handed_on: "dict[int, HandedOn]" = field(default_factory=dict)
    next_qseq: int = 0
    delivered: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])  # (step, upto)
    attempts: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # (step, number)
    bodies: dict[int, bytes] = field(default_factory=dict)  # all that were ever published
    restored: dict[int, int] = field(default_factory=dict)  # and in which step
    dues: dict[int, int] = field(default_factory=dict)  # when messages are due, settled ones too


@dataclass(frozen=True, slots=True)
class View:
    """A lane as a recovery gives it."""

    messages: dict[int, bytes]
    next_qseq: int
    delivered: int
    attempts: dict[int, int] = field(default_factory=dict)  # of the messages, where not 0


@dataclass(frozen=True, slots=True)
class Image:
    """What a recovery makes of a directory."""

    views: dict[int, View]
    places: dict[tuple[int, int], tuple[int, int, int]]  # of the unsettled: segment, from, length
    lsn: int


class World:
    """See the head of this file. `base`: a directory of its own, better in memory."""

    def __init__(
        self, base: Path, settings: StoreSettings, seed: int = 0, lanes: int = LANES
    ) -> None:
        self.base = base
        self.lanes = lanes
        self.seed = seed
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self.fate = Fate()
        self.now_s = 0.0
        self.serial = 0
        self.step = 0  # settlements and deliveries are dated by it
        self.written_step = 0  # up to here they survive a kill
        self.synced_step = 0  # and a power loss
        self.tickets: list[tuple[int, int]] = []  # (of request_sync, step)
        self.defined: list[tuple[int, int]] = []  # (of Store.definitions, step)
        self.lsn_durable = 0  # the highest that was ever confirmed
        self.epoch = 0
        self.was_full = False  # in this process
        self.in_doubt = False  # the same
        self.store: Store[Envelope] | None = None
        self.workers: list[Worker] = []
        self.models: list[Model] = []
        self.follower = Follower()  # it goes on from life to life, as far as it can
        self.following: Generator[None, None, None] | None = None  # it is in the middle of a part
        self.kept = False  # what it has not taken is kept, in this process
        self.given_out: set[tuple[int, int, int]] = set()  # as due, by this process
        self.dropped: set[int] = set()  # ids of lanes: they may come back, and nobody asks for them
        # Called between two slices of what the store does in slices: clients do not wait meanwhile.
        self.meanwhile: Callable[[], None] = ignore
        # Whether a slice is put off: a turn's messages may be many, and its slice small.
        self.puts_off: Callable[[], bool] = lambda: False
        (base / "disk").mkdir(parents=True)
        self.disk = SimulatedDisk(base / "disk")
        self.disk.use(random.Random(seed))

    # -- starting

    def begin(self, *, crash_after: int | None = None) -> None:
        """A new directory; the first start may crash."""
        self.disk.crash_in = crash_after
        try:
            self._open()
        except Crash:
            self.restart()
        self.disk.crash_in = None
        self.models = [self._new_model() for _ in range(self.lanes)]

    def end(self) -> None:
        """Let go of everything."""
        self._let_go()
        if self.store is not None:
            abandon(self.store)
        shutil.rmtree(self.base)

    def _open(self) -> None:
        self.workers = []
        self.was_full = self.in_doubt = self.kept = False
        self.given_out = set()
        with hooked(self.disk):
            self.store = Store.open(
                self.disk.root,
                decode=decode,
                notify=ignore,
                settings=self.settings,
                disk=self.disk,
                new_worker=self._new_worker,
                clock_s=lambda: self.now_s,
            )
        checkpoints = probe(self.store).checkpoints
        step = checkpoints.step
        checkpoints.step = lambda: None if self.puts_off() else step()  # type: ignore[method-assign]

    def _new_worker(self, name: str, notify: Callable[[], None]) -> Worker:
        worker = Worker()
        self.workers.append(worker)
        return worker

    def _new_model(self) -> Model:
        """A lane with a definition, as a queue has one."""
        store = self.running
        model = Model(store.new_lane_id())
        self.step += 1
        model.defined_step = self.step
        self.dropped.discard(model.lane_id)  # given once more, if nothing had come of it
        store.catalog.put("queue", str(model.lane_id), b"%d" % model.lane_id)
        self.defined.append((store.definitions, self.step))
        return model

    @property
    def running(self) -> Store[Envelope]:
        assert self.store is not None
        return self.store

    def perform(self, step: Callable[..., None], *arguments: Any) -> None:
        """One step; if the process dies in it, what follows up to a sound start."""
        self.counts[step.__name__] += 1
        try:
            step(*arguments)
            self._check_failure()
        except Crash:
            self.counts["crashes inside an operation"] += 1
            self.restart()

    # -- steps: traffic

    def publish(
        self, lanes: Sequence[int], count: int, size: int, persistent: bool, varied: bool
    ) -> None:
        self._publish(lanes, count, size, persistent, varied, None)

    def trickle(self, lane: int, count: int, size: int) -> None:
        """Messages come one by one, each when the one before was confirmed."""
        for _ in range(count):
            self._publish([lane], 1, size, True, False, None)
            self.running.commit()
            self.workers[0].run_one()
            self._advance()

    def delay(
        self, lanes: Sequence[int], count: int, persistent: bool, ahead_ms: int, spread_ms: int
    ) -> None:
        """Publish messages with due times."""
        dues = [self.now_ms + ahead_ms + at * 7919 % (spread_ms + 1) for at in range(count)]
        self._publish(lanes, count, 20, persistent, False, dues)

    def _publish(
        self,
        lanes: Sequence[int],
        count: int,
        size: int,
        persistent: bool,
        varied: bool,
        dues: list[int] | None,
    ) -> None:
        count = min(count, 1 + 20_000 // (size + 1))
        bodies = [b"%d:" % (self.serial + at) + b"x" * size for at in range(count)]
        self.serial += count
        self.counts["messages"] += count
        packed = b"key%d" % (self.serial if varied else 0)
        self._append([self.models[at] for at in lanes], bodies, persistent, packed, dues)

    def _append(
        self,
        models: Sequence[Model],
        bodies: list[bytes],
        persistent: bool,
        packed: bytes,
        dues: list[int] | None = None,
    ) -> None:
        store = self.running
        before = store.lsn
        lanes = [store.lane(model.lane_id) for model in models]
        publish(store, lanes, bodies, persistent=persistent, packed=packed, dues_ms=dues)
        for model in models:
            for at, body in enumerate(bodies):
                model.alive[model.next_qseq + at] = body
                model.bodies[model.next_qseq + at] = body
                if persistent:
                    model.lsns[model.next_qseq + at] = before + at + 1
                if dues is not None:
                    model.dues[model.next_qseq + at] = dues[at]
            model.next_qseq += len(bodies)

    def settle(self, lane: int, start: float, count: int) -> None:
        """A range, settled in part perhaps; all of it is a purge."""
        model = self.models[lane]
        first = int(start * model.next_qseq)
        going = [qseq for qseq in model.alive if first <= qseq < first + count]
        handle = self.running.lane(model.lane_id)
        if any(first <= qseq < first + count for qseq in model.handed_on):
            fresh = sum(handle.settle(qseq, 1) for qseq in going)  # the others are somebody else's
        else:
            fresh = handle.settle(first, count)
        assert fresh == len(going)
        self._settled(model, going)

    def settle_some(self, lane: int, every: int, count: int) -> None:
        """The oldest, or scattered ones."""
        model = self.models[lane]
        going = sorted(model.alive)[::every][:count]
        for qseq in going:
            size = len(model.alive[qseq])
            assert self.running.lane(model.lane_id).settle(qseq, 1, size) == 1
        self._settled(model, going)

    def hand_on(self, source: int, target: int, count: int) -> None:
        """As dead letters are: copies go to another lane, then the originals are settled."""
        store = self.running
        model = self.models[source]
        going = sorted(model.alive)[:count]
        if source == target or not going:
            return
        copies = self.models[target]
        first = copies.next_qseq
        bodies = [model.alive[qseq] for qseq in going]
        self._append([copies], bodies, True, b"handed on")
        handle = store.lane(model.lane_id)
        for at, (qseq, body) in enumerate(zip(going, bodies, strict=True)):
            handle.settle_after(store.lsn, qseq, 1, len(body))
            del model.alive[qseq]
            copy = HandedOn(body, copies.lane_id, first + at, store.lsn)
            model.handed_on[qseq] = copy
        self.counts["messages handed on"] += len(going)

    def _settled(self, model: Model, going: Sequence[int]) -> None:
        self.step += 1
        for qseq in going:
            model.settled[qseq] = (model.alive.pop(qseq), self.step)

    def _unsettled(self, model: Model) -> dict[int, bytes]:
        """What a lane holds: what is alive, and what waits for its copy to be durable."""
        durable_lsn = self.running.durable_lsn
        waiting = {
            qseq: copy.body for qseq, copy in model.handed_on.items() if copy.lsn > durable_lsn
        }
        return model.alive | waiting

    def read(self, lane: int, start: float, count: int, size: int) -> None:
        model = self.models[lane]
        qseq = int(start * model.next_qseq)
        found = self.running.lane(model.lane_id).read(qseq, count, size)
        unsettled = self._unsettled(model)
        first = min((known for known in unsettled if known >= qseq), default=None)
        if first is None:
            assert found is None
            return
        assert found is not None and found.first_qseq == first
        assert 1 <= len(found.bodies) <= count
        for at, body in enumerate(found.bodies):
            assert unsettled[first + at] == body

    def read_all(self, lane: int, deliver: bool) -> None:
        model = self.models[lane]
        handle = self.running.lane(model.lane_id)
        unsettled = self._unsettled(model)
        assert contents(handle) == unsettled
        assert _attempts(handle) == {
            qseq: number
            for qseq in unsettled.keys() & model.attempts.keys()
            if (number := model.attempts[qseq][-1][1])
        }
        if deliver:
            self.step += 1
            handle.note_delivered(model.next_qseq)
            model.delivered.append((self.step, model.next_qseq))

    @property
    def now_ms(self) -> int:
        return 1000 + int(self.now_s * 1000)

    def restore(self, lane: int, start: float, count: int) -> None:
        """Settled messages come back, where they still can."""
        model = self.models[lane]
        first = int(start * model.next_qseq)
        if any(first <= qseq < first + count for qseq in model.dues):
            return  # whether they were passed over as settled when they were due is not known here
        flat = self.running.lane(model.lane_id).restore(first, count)
        self.step += 1
        for low, high in zip(flat[0::2], flat[1::2], strict=True):
            assert first <= low < high <= first + count
            for qseq in range(low, high):
                assert qseq not in model.alive, "it was not settled"
                self.counts["messages restored"] += 1
                model.settled.pop(qseq, None)
                model.handed_on.pop(qseq, None)
                model.alive[qseq] = model.bodies[qseq]
                model.lsns.setdefault(qseq, 0)
                model.restored[qseq] = self.step
                model.attempts.setdefault(qseq, [(0, 0)]).append((self.step, 0))

    def take_due(self, ahead_ms: int, count: int) -> None:
        """What is due, or will be soon, is given out in order, and once."""
        store = self.running
        until_ms = self.now_ms + ahead_ms
        waiting = sorted(self._dues() - self.given_out)
        expected = [due for due in waiting if due[0] <= until_ms][:count]
        found = one_by_one(store.due(until_ms, count))
        while len(found) < count and (store.next_due_ms or until_ms + 1) <= until_ms:
            # Many were settled before their time.
            found += one_by_one(store.due(until_ms, count - len(found)))
        assert found == expected
        self.given_out.update(expected)
        self.counts["given out as due"] += len(expected)
        left = waiting[len(expected) :]
        next_ms = store.next_due_ms
        assert not left or (next_ms is not None and next_ms <= left[0][0])

    def _dues(self) -> set[tuple[int, int, int]]:
        """(due time, lane, qseq) of all that is not settled."""
        return {
            (due_ms, model.lane_id, qseq)
            for model in self.models
            for unsettled in (self._unsettled(model),)
            for qseq, due_ms in model.dues.items()
            if qseq in unsettled
        }

    def attempt(self, lane: int, start: float, count: int) -> None:
        """Messages that follow on each other come back."""
        model = self.models[lane]
        first = int(start * model.next_qseq)
        end = first
        while end < first + count and end in model.alive:
            end += 1
        if end == first:
            return
        self.step += 1
        handle = self.running.lane(model.lane_id)
        number = max(handle.attempts_of(first, end - first)) + 1
        handle.note_attempts(first, end - first, number)
        for qseq in range(first, end):
            model.attempts.setdefault(qseq, [(0, 0)]).append((self.step, number))

    def delete_lane(self, lane: int) -> None:
        store = self.running
        lane_id = self.models[lane].lane_id
        self.dropped.add(lane_id)
        store.catalog.delete("queue", str(lane_id))
        store.drop(store.lane(lane_id))
        # Should the process die here, the lane is one of those that nothing names any more.
        self.models[lane] = Model(-1)
        self.models[lane] = self._new_model()

    # -- steps: the store's rhythm

    def tick(self, seconds: float) -> None:
        self.running.commit()
        self._tick(seconds)

    def commit_in_time(self, waiting: int) -> None:
        """The end of a busy broker's turn: held back, lazy, or at once on this thread."""
        self.running.commit(waiting, lambda: None)
        self._seen()

    def work(self, worker: int, advance: bool) -> None:
        self.workers[worker].run_one()
        if advance:
            self._advance()

    def request_sync(self) -> None:
        self.tickets.append((self.running.request_sync(), self.step))

    def drive(self, seconds: float) -> None:
        """Let time pass in a broker that is not busy: what was promised for then has happened."""
        store = self.running
        step = self.step
        lsn = store.lsn
        self._tick(0.001)
        self._tick(0.01)
        self._run_all()
        self._tick(seconds)
        self._run_all()
        self._tick(0.01)
        self._run_all()
        if store.failure is not None:
            return
        if probe(
            store
        ).settling.held:  # a tiny reserve may be less than one batch of scattered acks
            assert self.settings.ledger_bytes_max <= 4096, "there is no space for acks"
        else:
            self.written_step = step
            if seconds > self.settings.ledger_sync_s:
                self.synced_step = step
        if self.disk.space_bytes is None and not probe(store).commits.held:
            assert store.durable_lsn >= lsn, "not durable, and nobody is at work on it"
            assert not store.shortage

    def drain(self) -> None:
        """All is settled: the space comes back."""
        for lane in range(self.lanes):
            self.settle(lane, 0.0, 1 << 40)
        store = self.running
        store.journal.release(None)
        self.kept = False
        disk = self.disk
        meanwhile, self.meanwhile = self.meanwhile, ignore
        for times in range(100):
            self.drive(2.5)
            if store.failure is not None or disk.space_bytes is not None or disk.lmdb_full:
                break
            busy = probe(store).compactor.working or probe(store).compactor.target is not None
            # A file may be about to be unlinked when nothing else knows of it any more.
            if times >= 5 and store.segment_count == 1 and not (busy or probe(store).upkeep.jobs):
                break
        else:
            raise AssertionError("dead segments stay")
        self.meanwhile = meanwhile
        if store.failure is None and disk.space_bytes is None and not disk.lmdb_full:
            names = set(disk.names(probe(store).paths.log))
            active = probe(store).log.active.segment_id
            ahead = {probe(store).paths.segment(active + at).name for at in range(2)}
            assert names <= ahead, f"files that nobody needs: {names - ahead}"

    def follow(self, settled: bool, keep: bool) -> None:
        """The follower takes what is new; what comes later is kept for it, or is not.

        `settled`: everything is durable before, so that the follower must know everything.
        """
        store = self.running
        if settled:
            step = self.step
            # What waits for the log is settled when the first is done, and durable after the next.
            if not (store.settle_down() and store.settle_down()):
                self._expect_trouble()
                return
            self._synced(step)
            self._seen()
        if self._follow() and settled:
            self._check_follower(self.follower, transient_too=True)
        store.journal.release(self.follower.position if keep else None)
        self.kept = keep and self.follower.position is not None

    def follow_slowly(self, count: int) -> None:
        """The follower takes some entries; it has the others when the store has gone on."""
        if self.following is None:
            self.following = self.follower.steps(self.running.journal.replay)
        try:
            for _ in range(count):
                next(self.following)
        except StopIteration:
            self.following = None
            self.counts["parts taken slowly"] += 1
        except PositionGone:
            self._stopped_following()

    def _stopped_following(self) -> None:
        self.counts["positions that were gone"] += 1
        assert not self.kept or self.was_full, "what is kept for a follower is gone"
        self.follower = Follower()
        self.following = None

    def _follow(self) -> bool:
        """Whether the follower knows all that it is given."""
        store = self.running
        self.follow_slowly(1 << 60 if self.following else 0)
        try:
            self.follower.follow(store.journal.replay)
        except PositionGone:
            self._stopped_following()
            try:
                self.follower.follow(store.journal.replay)
            except PositionGone:  # the ledger has a new file, and the store was not told yet,
                # or is ahead of the log, since the disk was full.
                assert probe(store).commits.busy or self.was_full
                self.follower = Follower()
                return False
        self.counts["times followed"] += 1
        return True

    def settle_down(self) -> None:
        step = self.step
        if self.running.settle_down():
            self._synced(step)
            self._seen()
        else:
            self._expect_trouble()

    def checkpoint(self) -> None:
        store = self.running
        lsn = store.durable_lsn
        step = self.step
        if store.checkpoint():
            self._synced(step)
            self._seen()
            self.counts["checkpoints done"] += 1
            assert lsn <= probe(store).checkpoints.lsn
            self._check_live(strict=False)
        else:
            self._expect_trouble()

    def reopen(self, fate: Fate) -> None:
        """An orderly stop and start."""
        store = self.running
        step = self.step
        self._let_go()
        store.close()
        self.store = None
        disk = self.disk
        sound = store.failure is None and disk.space_bytes is None and not disk.lmdb_full
        if sound:
            assert store.durable_lsn == store.lsn
            self._synced(step)
        self.lsn_durable = max(self.lsn_durable, store.durable_lsn)
        assert not disk.open_files
        self.counts["orderly stops"] += 1
        self.fate = fate
        in_doubt = self.in_doubt
        self.restart()
        if sound and not (in_doubt or fate.power or fate.inside or fate.remove_index):
            report = self.running.report
            assert not report.index_rebuilt, report
            assert report.records_replayed == report.log_bytes_cut == 0, report

    # -- steps: faults

    def arm(self, after: int, fate: Fate) -> None:
        """The process is to die within the next operations of the disk."""
        self.fate = fate
        self.disk.crash_in = after
        self.disk.use(random.Random(fate.seed))

    def crash(self, fate: Fate) -> None:
        """It dies now."""
        self.fate = fate
        self.restart()

    def fill_disk(self, left_bytes: int, lmdb_too: Sequence[str]) -> None:
        self.was_full = True
        self.disk.space_bytes = self.disk.used_bytes + left_bytes
        self.disk.lmdb_full = lmdb_too

    def free_disk(self) -> None:
        self.disk.space_bytes = None
        self.disk.lmdb_full = ()

    def fail(self, after: int) -> None:
        """An operation is to fail with EIO."""
        self.disk.fail_in = after

    def doubt(self) -> None:
        """The next start is to rebuild the index, as after damage in it was seen."""
        if self.disk.space_bytes is None and self.disk.fail_in is None:
            mark_doubt(self.disk, probe(self.running).paths)
            self.in_doubt = True

    # -- what the steps share

    def _tick(self, seconds: float) -> None:
        self.now_s += seconds
        self.running.tick(self.now_s)

    def _advance(self) -> None:
        store = self.running
        before = store.durable_lsn
        store.advance()
        assert store.durable_lsn >= before
        self._seen()

    def _run_all(self) -> None:
        for _ in range(ROUNDS_MAX):
            ran = False
            for worker in self.workers:
                ran |= worker.run_one()
            self._advance()
            stepping = probe(self.running).checkpoints.stepping
            if not (ran or stepping or any(worker.jobs for worker in self.workers)):
                return
            if stepping or probe(self.running).compactor.working:
                self.meanwhile()
        raise AssertionError("the store's threads do not come to rest")

    def _seen(self) -> None:
        """What the owner was told."""
        store = self.running
        self.lsn_durable = max(self.lsn_durable, store.durable_lsn)
        while self.tickets and self.tickets[0][0] <= store.synced:
            self._synced(self.tickets.pop(0)[1])
        while self.defined and self.defined[0][0] <= store.definitions_synced:
            self._synced(self.defined.pop(0)[1])

    def _synced(self, step: int) -> None:
        self.synced_step = max(self.synced_step, step)
        self.written_step = max(self.written_step, step)

    def _expect_trouble(self) -> None:
        """Something could not be done: there must be a reason."""
        disk = self.disk
        assert self.running.failure is not None or disk.space_bytes is not None or disk.lmdb_full

    def _check_failure(self) -> None:
        """An error of the disk is never forgotten (10)."""
        store = self.store
        if store is None:
            return
        assert not store.take_findings(), "something is damaged"
        if store.failure is not None:
            assert self.disk.failed, f"failed for no reason: {store.failure!r}"
        elif self.disk.failed and not (self.was_full or "temporary" in self.disk.failed):
            assert any(worker.results for worker in self.workers), (
                f"an error in {self.disk.failed} was forgotten"
            )
        for model in self.models:
            lane = probe(store).lanes.get(model.lane_id)
            assert (0 if lane is None else lane.alive) == len(model.alive)
            assert (0 if lane is None else lane.alive_bytes) == _size(model.alive)

    # -- restarts

    def restart(self) -> None:
        """The process is gone: crash, start (and crash in that, perhaps), check."""
        self._let_go()
        fate = self.fate
        disk = self.disk
        self.counts["rounds"] += 1
        choice = random.Random(fate.seed)
        if self.store is not None:
            self.lsn_durable = max(self.lsn_durable, self.store.durable_lsn)
            abandon(self.store)
            self.store = None
        power = fate.power
        disk.crash(choice, power=fate.power)
        for after_operations in fate.errors:
            disk.fail_in = after_operations
            self._start_in_vain()
            disk.crash(choice, power=False)
        if fate.full:
            disk.space_bytes = disk.used_bytes + choice.choice((0, 5000))
            disk.lmdb_full = choice.choice(((), LMDB_NAMES))
            self._start_in_vain()
            disk.crash(choice, power=False)
        for after_operations, power_too in fate.inside:
            power |= power_too
            disk.use(choice)
            disk.crash_in = after_operations
            self._start_in_vain()
            disk.crash(choice, power=power_too)
        if fate.remove_index:
            self.counts["indexes removed"] += 1
            disk.remove_index()
        without = self._image_without_index() if fate.compare else None
        disk.use(choice)
        at_rest = Follower()
        if fate.compare and self.epoch:
            at_rest.follow(partial(replay_at_rest, disk, Paths(disk.root)))
        self._open()
        if at_rest.position is not None:
            self._check_follower(at_rest)
        self.tickets, self.defined = [], []
        self._check_recovered(self.synced_step if power else self.written_step, without)
        self.fate = Fate(seed=fate.seed + 1)

    def _let_go(self) -> None:
        """The follower takes no more of this process, and has no file open."""
        following, self.following = self.following, None
        if following is not None:
            following.close()

    def _start_in_vain(self) -> None:
        try:
            self._open()
        except Crash:
            self.counts["crashes inside recovery"] += 1
        except StorageError as error:
            if not self.disk.failed and self.disk.space_bytes is None:
                raise
            assert "\n" not in str(error)
            self.counts["starts with an error"] += 1
        if self.store is not None:
            abandon(self.store)
            self.store = None

    def _image_without_index(self) -> Image:
        """What a start on a copy without the index gives."""
        self.counts["indexes compared"] += 1
        base = self.base / "copy"
        base.mkdir()
        disk = self.disk
        self.disk = disk.clone(base)
        try:
            self.disk.remove_index()
            self._open()
            return self._image(self._views(self.running))
        finally:
            if self.store is not None:
                abandon(self.store)
            self.store = None
            self.disk = disk
            shutil.rmtree(base)

    @staticmethod
    def _views(store: Store[Envelope]) -> dict[int, View]:
        """All lanes that are defined.

        A lane that was deleted may be back in parts, as the index had it, without what the ledger
        said of it: nobody reads it.
        """
        defined = {int(name) for name, _ in store.catalog.items("queue")}
        return {
            lane.id: View(contents(lane), lane.next_qseq, lane.delivered, _attempts(lane))
            for lane in probe(store).lanes.values()
            if lane.id in defined
        }

    # -- checks

    def _check_recovered(self, step: int, without: Image | None) -> None:
        """`step`: what was settled up to it must be."""
        store = self.running
        views = self._views(store)
        if without is not None:
            self._check_same(self._image(views), without)
        assert store.report.epoch > self.epoch, "an epoch came twice"
        self.epoch = store.report.epoch
        assert store.lsn >= self.lsn_durable, f"LSN {store.lsn} after {self.lsn_durable}"
        assert store.durable_lsn == store.lsn
        assert not store.take_findings(), "something is damaged"
        if store.report.index_rebuilt:
            self.counts["indexes rebuilt"] += 1
        self.counts["records replayed"] += store.report.records_replayed
        self.counts["torn tails"] += store.report.log_bytes_cut > 0
        self._check_live(strict=True)
        self._check_followed()
        self._check_definitions(step)
        self._check_handed_on(views, step)
        for model in self.models:
            self._check_lane(model, probe(store).lanes.get(model.lane_id), views, step)
        named = {model.lane_id for model in self.models}
        rows = one_by_one(probe(store).index.due_after(None, 1 << 30))
        assert {row for row in rows if row[1] in named} == self._dues(), "due times differ"
        assert probe(store).lanes.keys() <= named | self.dropped, "a lane came from nowhere"
        store.retain(named)
        self.lsn_durable = store.lsn
        self.models = [model if model.lane_id >= 0 else self._new_model() for model in self.models]
        named = {model.lane_id for model in self.models}
        assert probe(store).identity.lane_ids_reserved > max(named, default=0), (
            "ids that are not reserved"
        )

    def _check_followed(self) -> None:
        """The stream says what a start has found, from its beginning and from where it was left."""
        fresh = Follower()
        fresh.follow(self.running.journal.replay)
        self._check_follower(fresh)
        before, now = self.follower.position, fresh.position
        assert now is not None
        if before is not None:
            assert before.lsn <= now.lsn and before.batch <= now.batch, "it was not durable"
        if self.follower.torn:
            self.follower = Follower()
        try:
            self.follower.follow(self.running.journal.replay)
            self.counts["times followed over a restart"] += before is not None
        except PositionGone:
            self.follower = fresh
        self._check_follower(self.follower)

    def _check_follower(self, follower: Follower, *, transient_too: bool = False) -> None:
        """The follower knows what the store knows. `transient_too`: the store has more messages."""
        store = self.running
        lanes = probe(store).lanes
        persistent = {model.lane_id: model.lsns for model in self.models}
        for lane_id, lane in lanes.items():
            if lane_id not in persistent:  # it was deleted, and a start may have it once more
                continue
            found = contents(lane)
            if transient_too:
                found = {qseq: found[qseq] for qseq in found.keys() & persistent[lane_id].keys()}
            name = f"the follower's lane {lane_id}"
            copy = follower.lane(lane_id)
            more, less = copy.alive - found.keys(), found.keys() - copy.alive
            assert copy.messages == found, f"{name} has {sorted(more)} more, {sorted(less)} less"
            attempts = {q: n for q, n in _attempts(lane).items() if q in found}
            assert copy.attempts == attempts, f"{name} has other attempts"
            assert copy.delivered == lane.delivered, f"{name} was delivered otherwise"
        for lane_id in follower.lanes.keys() - lanes.keys():
            defined = ("queue", str(lane_id)) in follower.definitions
            assert not defined or not follower.lanes[lane_id].alive, (
                f"lane {lane_id} is the follower's alone"
            )
        assert follower.definitions == {
            (kind, name): value
            for kind, name, value in store.catalog.records()
            if kind != "storage"
        }, "the follower has other definitions"

    def _check_definitions(self, step: int) -> None:
        """A definition is there when it was safe, or when any message of its lane is durable.

        Who is not there any more may be made again.
        """
        store = self.running
        defined = {int(name) for name, _ in store.catalog.items("queue")}
        for at, model in enumerate(self.models):
            if model.lane_id < 0 or model.lane_id in defined:
                continue
            assert model.defined_step > step, f"the definition of lane {model.lane_id} is lost"
            confirmed = [lsn for lsn in model.lsns.values() if lsn <= self.lsn_durable]
            assert not confirmed, f"messages of lane {model.lane_id} were confirmed, and it is gone"
            self.dropped.add(model.lane_id)
            self.models[at] = Model(-1)
        named = {model.lane_id for model in self.models}
        assert defined <= named | self.dropped, "a definition came from nowhere"
        for lane_id in defined - named:
            store.catalog.delete("queue", str(lane_id))

    def _check_handed_on(self, views: dict[int, View], step: int) -> None:
        """No message is settled whose copy is not there: it would be lost."""
        models = {model.lane_id: model for model in self.models}
        for model in self.models:
            found = views.get(model.lane_id, View({}, 0, 0, {})).messages
            for qseq, copy in model.handed_on.items():
                was_durable = model.lsns.get(qseq, self.lsn_durable + 1) <= self.lsn_durable
                if qseq in found or not was_durable or copy.lane_id not in models:
                    continue
                if model.restored.get(qseq, 0) > step:  # settled before, and that may stand
                    continue
                target = models[copy.lane_id]
                assert (
                    copy.qseq in views.get(copy.lane_id, View({}, 0, 0, {})).messages
                    or copy.qseq in target.settled
                    or copy.qseq in target.handed_on
                    or copy.qseq in target.restored
                ), f"lane {model.lane_id}: {qseq} was handed on and settled, and its copy is lost"

    def _check_lane(
        self, model: Model, lane: Lane[Envelope] | None, views: dict[int, View], step: int
    ) -> None:
        view = views.get(model.lane_id, View({}, 0, 0, {}))
        name = f"lane {model.lane_id}"
        found = view.messages
        for qseq, body in found.items():  # 2, 3
            assert qseq in model.lsns, f"{name}: {qseq} was never persistent"
            if qseq in model.alive:
                assert body == model.alive[qseq], f"{name}: {qseq} is not what was published"
                continue
            if qseq in model.handed_on:
                assert body == model.handed_on[qseq].body, f"{name}: {qseq} is something else"
                continue
            assert qseq in model.settled, f"{name}: {qseq} is back after a restart without it"
            settled_body, settled_step = model.settled[qseq]
            assert body == settled_body, f"{name}: {qseq} is not what was published"
            assert settled_step > step, f"{name}: {qseq} is back, its settlement was safe"
        for qseq in model.alive:  # 1
            if model.restored.get(qseq, 0) > step:
                continue
            if model.lsns.get(qseq, self.lsn_durable + 1) <= self.lsn_durable:
                assert qseq in found, f"{name}: {qseq} is lost"
        named = max(
            [upto for dated, upto in model.delivered if dated <= step]
            + [qseq + 1 for qseq, (_, dated) in model.settled.items() if dated <= step]
            + [
                qseq + 1
                for qseq, history in model.attempts.items()
                if any(0 < dated <= step for dated, _ in history)
            ]
            + [qseq + 1 for qseq, lsn in model.lsns.items() if lsn <= self.lsn_durable]
        )
        assert named <= view.next_qseq <= model.next_qseq, (  # 4
            f"{name}: the next qseq is {view.next_qseq}, "
            f"{named} were named and {model.next_qseq} given"
        )
        delivered = max(upto for dated, upto in model.delivered if dated <= step)
        assert delivered <= view.delivered <= max(upto for _, upto in model.delivered), (
            f"{name}: delivered up to {view.delivered}, {delivered} was safe"
        )
        for qseq in found:
            history = model.attempts.get(qseq, [(0, 0)])
            number = view.attempts.get(qseq, 0)
            (*_, safe) = (known for dated, known in history if dated <= step)
            possible = {safe, *(known for dated, known in history if dated > step)}
            assert number in possible, (
                f"{name}: {qseq} came back {number} times, {safe} times are safe"
            )
        assert (0 if lane is None else lane.alive) == len(found)
        assert (0 if lane is None else lane.alive_bytes) == _size(found)
        model.alive = found
        model.settled = {}
        model.restored = {}
        model.handed_on = {}
        model.lsns = dict.fromkeys(found, 0)
        if view.next_qseq:
            model.lsns[view.next_qseq - 1] = 0  # so many were named
        model.next_qseq = view.next_qseq
        model.dues = {qseq: due for qseq, due in model.dues.items() if qseq < view.next_qseq}
        model.delivered = [(0, view.delivered)]
        model.defined_step = 0
        model.attempts = {qseq: [(0, number)] for qseq, number in view.attempts.items()}

    def _image(self, views: dict[int, View]) -> Image:
        """All that must not depend on the index, of the lanes that the catalog names."""
        store = self.running
        named = {
            model.lane_id: views.get(model.lane_id, View({}, 0, 0, {})) for model in self.models
        }
        places = {
            (lane_id, qseq): (segment_id, position, length)
            for lane_id, qseq, segment_id, position, length in probe(store).index.all_pointers()
            if lane_id in named and qseq in named[lane_id].messages
        }
        return Image(named, places, store.lsn)

    def _check_same(self, image: Image, without: Image) -> None:
        """Checkpoint and replay give what a rebuild gives (6)."""
        assert image.places == without.places
        assert image.lsn == without.lsn
        for lane_id, view in image.views.items():
            other = without.views[lane_id]
            assert view.messages == other.messages, f"lane {lane_id} differs without the index"
            assert view.attempts == other.attempts, f"lane {lane_id}: attempts without index"
            assert view.delivered == other.delivered, f"lane {lane_id}: deliveries without index"
            # Transient messages that the index had seen are forgotten with it.
            assert view.next_qseq >= other.next_qseq

    def _check_live(self, *, strict: bool) -> None:
        """Live counts are those of the pointers; each points to a file that is there (7).

        Strict: the index has all there is.
        """
        store = self.running
        index = probe(store).index
        bitmaps = {(lane_id, block): bits for lane_id, block, bits in index.bitmaps()}
        rows = index.lanes()
        counted: dict[int, Live] = {}
        placed: Counter[int] = Counter()
        waiting: set[tuple[int, int]] = set()
        for lane_id, qseq, segment_id, _, length in index.all_pointers():
            block, slot = divmod(qseq, BLOCK)
            row = rows[lane_id]
            if (
                qseq < row.floor
                or contains(row.full, block)
                or bitmaps.get((lane_id, block), 0) >> slot & 1
            ):
                continue
            waiting.add((lane_id, qseq))
            live = counted.setdefault(segment_id, Live())
            live.count += 1
            live.size += length
            placed[lane_id] += segment_id < SPILL
        assert {key: live for key, live in index.live().items() if live.count} == counted
        dues = {
            (due_ms, model.lane_id, qseq)
            for model in self.models
            for qseq, due_ms in model.dues.items()
            if (model.lane_id, qseq) in waiting
        }
        named = {model.lane_id for model in self.models}
        rows_due = one_by_one(index.due_after(None, 1 << 30))
        assert len(rows_due) == len(set(rows_due)), "a message is in two rows of due times"
        assert {row for row in rows_due if row[1] in named} == dues, "rows of due times differ"
        assert {row[1:] for row in rows_due} <= waiting
        if strict:
            assert counted == _counted(store)
            for lane_id, lane in probe(store).lanes.items():
                assert placed[lane_id] == lane.alive, f"pointers of lane {lane_id}"
        names = set(self.disk.names(probe(store).paths.log))
        if strict:
            active = probe(store).log.active
            known = [one for one in probe(store).log.segments.values() if one is not active]
            assert names == {probe(store).paths.segment(one.segment_id).name for one in known}
            assert not self.disk.names(probe(store).paths.spill)
            assert len(set(self.disk.names(probe(store).paths.ledger)) - {"next.new"}) == 1
        for segment_id in counted:
            if segment_id < SPILL:
                assert probe(store).paths.segment(segment_id).name in names, (
                    f"a pointer to segment {segment_id}, which is gone"
                )


def one_by_one(dues: Sequence[Due]) -> list[tuple[int, int, int]]:
    """(due time, lane, qseq) of each message."""
    return [(each.due_ms, each.lane_id, each.qseq) for some in dues for each in some.each()]


def _attempts(lane: Lane[Envelope]) -> dict[int, int]:
    """How often the messages of a lane came back, of those that did."""
    return {qseq: number for qseq in contents(lane) if (number := lane.attempts_of(qseq, 1)[0])}


def _size(messages: dict[int, bytes]) -> int:
    return sum(map(len, messages.values()))


def _counted(store: Store[Envelope]) -> dict[int, Live]:
    return {segment_id: live for segment_id, live in probe(store).live.items() if live.count}


_SMALL_STEPS: list[tuple[ModuleType, str, int]] = [
    (cache, "_FREED_AT_ONCE", 2),
    (checkpoint, "_RUNS_A_STEP", 1),
    (checkpoints, "_SLICE", 1),
    (checkpoints, "_RUNS_SLICE", 2),
    (checkpoints, "_RUNS_LIKE_A_LANE", 2),
    (commit, "_PIECE_BYTES_MIN", 100),
    (commit, "_PIECES_MAX", 4),
    (commits, "JOB_BYTES_MAX", 2000),
    (due, "_PAGE_ROWS", 4),
    (due, "_LOOKS_MAX", 3),
    (index_module, "_BLOCKS_CACHED_MAX", 1),
    (lane_module, "_JOINED_AT_ONCE", 2),
    (lane_module, "_FEW_RUNS", 2),
    (lane_module, "PAGE_COUNT", 4),
    (lane_module, "PAGE_BYTES_MAX", 500),
    (reader, "_FILES_MAX", 1),
    (reader, "_METAS_MAX", 4),
    (reader, "_SPAN_BYTES_MAX", 1500),
    (reader, "_GAP_BYTES_MAX", 100),
    (reader, "_ALIKE_MIN", 2),
    (run, "_COUNT_MAX", 12),
    (run, "_BYTES_MAX", 6000),
    (compact, "_STEP_BYTES", 2000),
    (compact, "_STEP_RECORDS", 10),
    (compact, "_READ_BYTES_MAX", 1500),
    (compact, "_GAP_BYTES_MAX", 500),
    (compact, "_MOVE_RECORDS", 7),
    (compact, "_SMALL_COUNT_MIN", 3),
    (spilled, "_SMALL_COUNT_MIN", 3),
    (spilled, "_PIECE_RECORDS", 3),
    (spilled, "_WINDOW_BYTES", 200),
    (ledger, "_SNAPSHOT_RECORDS_A_BATCH", 2),
    (recovery, "REBUILD_POINTERS", 50),
    (recovery, "_REWRITE_BYTES", 1000),
    (segment, "_WINDOW_BYTES", 700),
    (sparse, "_BATCH_BYTES_MAX", 1500),
    (sparse, "_UNSYNCED_BYTES_MAX", 2000),
    (sparse, "_WRITE_BYTES", 700),
    (store_module, "_LANE_IDS_RESERVED", 4),
]


@contextmanager
def small_steps() -> Iterator[None]:
    """What storage does in steps of many bytes or records takes several of them in here."""
    with ExitStack() as stack:
        for module, name, value in _SMALL_STEPS:
            stack.enter_context(patch.object(module, name, value))
        yield


@contextmanager
def hooked(disk: SimulatedDisk) -> Iterator[None]:
    """Environments that are opened in here belong to this disk."""
    with patch("lmdb.open", disk.lmdb_open):
        yield
