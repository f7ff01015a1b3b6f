"""Compaction: space comes back from mostly dead segments, and nothing else changes."""

import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from qlog.storage.bytes.footer import Columns
from qlog.storage.errors import CorruptLog
from qlog.storage.index.index import Live
from qlog.storage.lanes.lane import Lane
from qlog.storage.space.compact import choose
from qlog.storage.start.fold import COMPACTED
from qlog.storage.store import Store
from qlog.storage.write.placement import Segment
from tests.storage.probe import probe
from tests.storage.support import (
    SMALL,
    Bench,
    Envelope,
    FaultyDisk,
    Killed,
    ManualWorker,
    contents,
    decode,
    ignore,
    new_lane,
    publish,
)

EAGER = replace(SMALL, compact_age_s=0.0, compact_bytes_per_s=1 << 40)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, EAGER)


def settle_down(bench: Bench, seconds: float = 30.0) -> None:
    """Let time pass until nothing happens any more."""
    end_s = bench.now_s + seconds
    while bench.now_s < end_s:
        bench.tick(0.5)
        bench.store.commit()
        for worker in bench.workers:
            worker.wait()
        bench.store.advance()
    assert bench.store.failure is None


def segment_ids(bench: Bench) -> list[int]:
    return sorted(int(path.stem) for path in (bench.directory / "log").glob("*.qseg"))


def fill(bench: Bench, lane: Lane[Envelope], keep: int, count: int = 400) -> dict[int, bytes]:
    """Messages of some 200 bytes, of which one in `keep` stays."""
    first = lane.next_qseq
    bodies = [f"{first + at}:".encode() + b"x" * (at % 200) for at in range(count)]
    for start in range(0, count, 10):
        publish(bench.store, [lane], bodies[start : start + 10], packed=b"key%d" % (start % 3))
    assert bench.store.settle_down()
    for at in range(count):
        if at % keep:
            lane.settle(first + at, 1)
    return {first + at: body for at, body in enumerate(bodies) if not at % keep}


def test_one_message_does_not_keep_a_segment(bench: Bench) -> None:
    lane = new_lane(bench.store)
    left: dict[int, bytes] = {}
    for _ in range(5):
        left |= fill(bench, lane, keep=100)
        settle_down(bench)
    assert contents(lane) == left and len(left) == 20
    size = sum(path.stat().st_size for path in (bench.directory / "log").glob("*.qseg"))
    reserved = 2 * EAGER.segment_bytes_max  # the active one, and the next
    assert size < 2 * bench.store.live_bytes + reserved + 2000
    assert any(segment_id >= COMPACTED for segment_id in segment_ids(bench))
    bench.restart()
    assert contents(bench.store.lane(lane.id)) == left
    bench.reopen()
    assert contents(bench.store.lane(lane.id)) == left
    bench.store.close()


def test_mixed_lifetimes_take_less_than_twice_what_is_alive(bench: Bench) -> None:
    lane = new_lane(bench.store)
    choice = random.Random(7)
    alive: dict[int, bytes] = {}
    for _ in range(40):
        first = lane.next_qseq
        bodies = [b"%d:" % (first + at) + b"x" * choice.randrange(2000) for at in range(40)]
        publish(bench.store, [lane], bodies)
        alive.update((first + at, body) for at, body in enumerate(bodies))
        for qseq in [qseq for qseq in alive if choice.random() < 0.25]:
            lane.settle(qseq, 1)
            del alive[qseq]
        settle_down(bench, 20.0)
        size = sum(path.stat().st_size for path in (bench.directory / "log").glob("*.qseg"))
        assert size <= 2 * bench.store.live_bytes + 2 * EAGER.segment_bytes_max + 4096
    assert contents(lane) == alive
    bench.store.close()


def test_many_small_segments_become_one(bench: Bench) -> None:
    lane = new_lane(bench.store)
    for number in range(20):
        publish(bench.store, [lane], [b"%d" % number])
        bench.reopen()  # seals the segment
        lane = bench.store.lane(lane.id)
    settle_down(bench)
    assert len(segment_ids(bench)) < 12
    assert contents(lane) == {number: b"%d" % number for number in range(20)}
    bench.store.close()


def test_what_is_in_memory_follows(bench: Bench) -> None:
    """Runs that are still cached point into segments that are about to go."""
    bench.store.close()
    bench.settings = replace(EAGER, cache_bytes_max=1 << 20)
    bench.generation += 1
    bench.open()
    lane = new_lane(bench.store)
    left = fill(bench, lane, keep=10)
    settle_down(bench)
    assert contents(lane) == left
    for qseq in left:
        lane.settle(qseq, 1)
    settle_down(bench)
    assert bench.store.segment_count <= 2 and bench.store.live_bytes == 0
    bench.store.close()


def test_a_message_in_several_lanes_stays_for_each(bench: Bench) -> None:
    lanes = [new_lane(bench.store) for _ in range(3)]
    bodies = [b"%d" % at + b"x" * 100 for at in range(600)]
    for start in range(0, 600, 10):
        publish(bench.store, lanes, bodies[start : start + 10])
    lanes[0].settle(0, 600)
    lanes[1].settle(0, 590)
    for qseq in range(600):
        if qseq % 50:
            lanes[2].settle(qseq, 1)
    settle_down(bench)
    assert any(segment_id >= COMPACTED for segment_id in segment_ids(bench))
    for again in range(2):
        assert contents(bench.store.lane(lanes[0].id)) == {}
        assert sorted(contents(bench.store.lane(lanes[1].id))) == list(range(590, 600))
        assert sorted(contents(bench.store.lane(lanes[2].id))) == list(range(0, 600, 50))
        bench.kill()
        if again:
            shutil.rmtree(bench.directory / "index.lmdb")
        bench.open()
    bench.store.close()


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_crash_at_any_operation_changes_nothing(tmp_path: Path, rebuild: bool) -> None:
    """Die at the n-th disk operation of a compaction, for every n, restart, and go on with it."""
    after = 0
    finished = False
    while not finished:
        bench = Bench(tmp_path / str(after), EAGER)
        lane = new_lane(bench.store)
        left = fill(bench, lane, keep=40, count=200)
        settle_until_sealed(bench)
        finished = not die_while_compacting(bench, after)
        if rebuild:
            shutil.rmtree(bench.directory / "index.lmdb")
        bench.open()
        assert contents(bench.store.lane(lane.id)) == left, f"after {after} operations"
        settle_down(bench, 10.0)
        assert contents(bench.store.lane(lane.id)) == left
        assert bench.store.segment_count <= 3
        bench.store.close()
        shutil.rmtree(tmp_path / str(after))
        after += 1
    assert after > 10


def settle_until_sealed(bench: Bench) -> None:
    """Checkpoint and seal, without the time for a compaction."""
    for _ in range(3):
        assert bench.store.checkpoint()
    assert not any(segment_id >= COMPACTED for segment_id in segment_ids(bench))


def die_while_compacting(bench: Bench, after: int) -> bool:
    """Whether there were so many operations."""
    left = after

    def fail(operation: str) -> BaseException | None:
        nonlocal left
        left -= 1
        return Killed() if left < 0 else None

    bench.disk.fail = fail
    for _ in range(40):
        bench.tick(0.5)
        bench.store.commit()
        for worker in bench.workers:
            worker.wait()
        if left < 0:
            break
        bench.store.advance()
    died = left < 0
    bench.kill()
    return died


def test_a_damaged_segment_is_left_as_it_is(bench: Bench) -> None:
    lane = new_lane(bench.store)
    left = fill(bench, lane, keep=50)
    settle_until_sealed(bench)
    path = bench.directory / "log" / "0000000001.qseg"
    data = bytearray(path.read_bytes())
    at = data.index(b"50:xx")
    data[at + 4] ^= 1
    path.write_bytes(data)
    settle_down(bench)
    assert path.exists() and 1 in segment_ids(bench)
    findings = bench.store.take_findings()
    assert len(findings) == 1 and str(path) in findings[0] and not bench.store.take_findings()
    for qseq, body in left.items():
        if qseq == 50:
            with pytest.raises(CorruptLog, match="0000000001.qseg is damaged at byte"):
                lane.read(qseq, 1, 1000)
        else:
            found = lane.read(qseq, 1, 1000)
            assert found is not None and found.bodies == [body]
    bench.store.close()


def test_a_full_disk_is_no_failure(bench: Bench) -> None:
    lane = new_lane(bench.store)
    left = fill(bench, lane, keep=50)
    settle_until_sealed(bench)
    maintenance = bench.maintenance
    full = True

    def fail(operation: str) -> BaseException | None:
        return OSError(errno.ENOSPC, "full") if full and operation == "write" else None

    bench.disk.fail = fail
    for _ in range(10):
        bench.tick(2.0)
        maintenance.wait()
        bench.store.advance()
    full = False
    assert bench.store.failure is None
    assert not list((bench.directory / "log").glob("*.new"))
    settle_down(bench, 90.0)  # it waits a minute before it tries again
    assert any(segment_id >= COMPACTED for segment_id in segment_ids(bench))
    assert contents(lane) == left
    bench.store.close()


@pytest.mark.parametrize("operation", ["sync_data", "sync_directory"])
def test_a_failed_sync_is_final(bench: Bench, operation: str) -> None:
    lane = new_lane(bench.store)
    fill(bench, lane, keep=50)
    settle_until_sealed(bench)
    bench.disk.fail = lambda asked: OSError(errno.EIO, "bad") if asked == operation else None
    for _ in range(10):
        bench.tick(2.0)
        bench.maintenance.wait()
        bench.store.advance()
    assert bench.store.failure is not None
    bench.disk = FaultyDisk()
    bench.store.close()


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_damaged_footer_and_a_damaged_batch_are_no_short_segment(bench: Bench) -> None:
    """What lies behind the damage must not count as dead."""
    lane = new_lane(bench.store)
    left = fill(bench, lane, keep=50)
    settle_until_sealed(bench)
    path = bench.directory / "log" / "0000000001.qseg"
    damage(path, path.stat().st_size - 70)
    damage(path, path.read_bytes().index(b"30:xx") + 4)
    settle_down(bench)
    assert path.exists() and len(bench.store.take_findings()) == 1
    assert contents(lane) == left
    bench.store.close()


def test_a_segment_that_has_no_footer_yet_is_not_passed_over(bench: Bench) -> None:
    """A compacted segment stands for all LSNs between its first and its last."""
    lane = new_lane(bench.store)
    left = fill(bench, lane, keep=40)
    settle_until_sealed(bench)
    segments = sorted(probe(bench.store).log.segments.values(), key=lambda one: one.base_lsn)
    segments[1].columns = Columns()  # as when there was no space for its footer
    chosen = choose(
        segments,
        probe(bench.store).live,
        EAGER,
        checkpoint_lsn=bench.store.lsn,
        now_s=100.0,
        excluded=(),
        keeps=keep_none,
    )
    assert [one.segment_id for one in chosen] == [1]
    segments[1].columns = None
    settle_down(bench)
    bench.restart()
    assert contents(bench.store.lane(lane.id)) == left
    bench.store.close()


def test_a_footer_for_which_there_was_no_space_is_written_without_traffic(bench: Bench) -> None:
    lane = new_lane(bench.store)
    left = fill(bench, lane, keep=40)
    full = True
    bench.disk.fail = lambda operation: (
        OSError(errno.ENOSPC, "full") if full and operation == "truncate" else None
    )
    settle_down(bench, 3.0)
    assert probe(bench.store).log.rolled
    full = False
    settle_down(bench)
    assert not probe(bench.store).log.rolled
    assert bench.store.segment_count <= 3 and contents(lane) == left
    bench.store.close()


def test_a_damaged_batch_header_of_a_compacted_segment_is_no_failure(bench: Bench) -> None:
    lane = new_lane(bench.store)
    left = fill(bench, lane, keep=20) | fill(bench, lane, keep=2)
    settle_down(bench)
    path = bench.directory / "log" / f"{segment_ids(bench)[-1]}.qseg"
    assert int(path.stem) >= COMPACTED
    damage(path, 64 + 24 + 2)  # the LSN that the first batch begins at
    for qseq in [qseq for qseq in left if 0 < qseq and qseq % 100]:
        assert lane.settle(qseq, 1)
        del left[qseq]
    settle_down(bench)
    assert path.exists() and len(bench.store.take_findings()) == 1
    assert contents(lane) == left  # each record is whole, wherever its batch says it belongs
    bench.store.close()


def test_small_messages_are_not_compacted_again_and_again(bench: Bench) -> None:
    lane = new_lane(bench.store)
    for start in range(0, 2000, 20):
        publish(bench.store, [lane], [b"%d" % at for at in range(start, start + 20)])
    for qseq in range(2000):
        if qseq % 4:
            lane.settle(qseq, 1)
    settle_down(bench, 30.0)
    before = segment_ids(bench)
    settle_down(bench, 60.0)
    assert segment_ids(bench) == before
    bench.store.close()


def test_a_full_disk_is_not_tried_all_the_time(bench: Bench) -> None:
    lane = new_lane(bench.store)
    fill(bench, lane, keep=50)
    settle_until_sealed(bench)
    tried = 0

    def fail(operation: str) -> BaseException | None:
        nonlocal tried
        tried += operation == "allocate"
        return OSError(errno.ENOSPC, "full") if operation == "allocate" else None

    bench.disk.fail = fail
    for _ in range(500):
        bench.tick(0.01)
        bench.maintenance.wait()
        bench.store.advance()
    assert tried == 1
    bench.disk.fail = lambda operation: None
    bench.store.close()


def test_no_file_descriptor_is_no_damage(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = new_lane(bench.store)
    left = fill(bench, lane, keep=50)
    settle_until_sealed(bench)
    opened = bench.disk.open
    tries = 0

    def fail(path: Path, *, write: bool = False, create: bool = False) -> int:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError(errno.EMFILE, "too many open files")
        return opened(path, write=write, create=create)

    monkeypatch.setattr(bench.disk, "open", fail)
    settle_down(bench, 90.0)
    assert not bench.store.take_findings() and segment_ids(bench)[-1] >= COMPACTED
    assert contents(lane) == left
    bench.store.close()


def test_no_space_at_the_sync_of_a_nameless_file_is_no_failure(bench: Bench) -> None:
    lane = new_lane(bench.store)
    left = fill(bench, lane, keep=50)
    settle_until_sealed(bench)
    full = True
    bench.disk.fail = lambda operation: (
        OSError(errno.ENOSPC, "full") if full and operation == "sync_data" else None
    )
    for _ in range(5):
        bench.tick(2.0)
        bench.maintenance.wait()
        bench.store.advance()
    assert bench.store.failure is None
    full = False
    settle_down(bench, 90.0)
    assert segment_ids(bench)[-1] >= COMPACTED and contents(lane) == left
    bench.store.close()


def test_a_replaced_segment_may_be_damaged(bench: Bench) -> None:
    lane = new_lane(bench.store)
    left = fill(bench, lane, keep=40)
    settle_until_sealed(bench)
    while not probe(bench.store).compactor.replaced:
        bench.tick(0.5)
        bench.maintenance.wait()
        bench.store.advance()
    assert bench.store.checkpoint()
    replaced = sorted(probe(bench.store).compactor.replaced)
    assert replaced
    damage(bench.directory / "log" / f"{replaced[0]:010d}.qseg", 20)
    bench.restart()
    assert contents(bench.store.lane(lane.id)) == left
    settle_down(bench)
    assert contents(bench.store.lane(lane.id)) == left
    bench.store.close()


def keep_none(one: Segment) -> bool:
    return False


def segment(number: int, size: int, sealed: bool = True) -> Segment:
    base = 100 * number
    return Segment(number, base, size, base + 100, size, columns=None if sealed else Columns())


@pytest.mark.parametrize(
    ("sizes", "alive", "chosen"),
    [
        ([16_000, 16_000], [16_000, 16_000], []),
        ([16_000, 16_000], [4_000, 16_000], [0]),  # under the share
        ([16_000, 16_000], [7_000, 16_000], []),  # half dead, but there is space enough
        ([16_000, 16_000], [7_000, 7_000], [0, 1]),  # half dead, and more than twice in all
        ([16_000, 16_000, 16_000], [1, 16_000, 0], [0]),  # what is dead goes by itself
        ([16_000, 16_000, 16_000], [1, 1, 1], [0, 1, 2]),
        ([16_000, 16_000, 16_000], [4_000, 16_000, 1_000], [2]),  # the greater gain
        ([250], [1], []),  # not worth it
        ([500] * 8, [490] * 8, list(range(8))),  # small ones
        ([500] * 7, [490] * 7, []),
    ],
)
def test_what_is_chosen(sizes: list[int], alive: list[int], chosen: list[int]) -> None:
    segments = [segment(number, size) for number, size in enumerate(sizes)]
    live = {number: Live(min(size, 1), size) for number, size in enumerate(alive)}
    found = choose(
        [*segments, segment(len(sizes), 10, sealed=False)],
        live,
        EAGER,
        checkpoint_lsn=10_000,
        now_s=100.0,
        excluded=(),
        keeps=keep_none,
    )
    assert [one.segment_id for one in found] == chosen


def test_what_is_young_excluded_or_not_in_the_index_is_not_chosen() -> None:
    settings = replace(SMALL, compact_age_s=60.0)
    one = segment(0, 16_000)
    one.sealed_s = 50.0
    full = segment(1, 16_000)
    live = {0: Live(1, 10), 1: Live(100, 15_000)}

    def found(
        now_s: float,
        checkpoint_lsn: int = 1000,
        excluded: tuple[int, ...] = (),
        keeps: Callable[[Segment], bool] = keep_none,
        others: tuple[Segment, ...] = (full,),
    ) -> bool:
        return bool(
            choose(
                [one, *others],
                live,
                settings,
                checkpoint_lsn=checkpoint_lsn,
                now_s=now_s,
                excluded=excluded,
                keeps=keeps,
            )
        )

    assert not found(109.0) and found(110.0)
    assert not found(110.0, keeps=lambda segment: segment.segment_id == 0)
    assert not found(110.0, excluded=(0,)) and not found(110.0, checkpoint_lsn=99)
    # With more than twice the space taken that is needed there is less time.
    assert not found(55.9, others=()) and found(56.1, others=())


def test_the_index_stays_in_proportion(tmp_path: Path) -> None:
    """What comes and goes, in any order, leaves no more and more of it in the index's file."""
    bench = Bench(tmp_path, EAGER)
    lane = new_lane(bench.store)
    choice = random.Random(3)
    alive: list[int] = []
    sizes = []
    for _ in range(12):
        first = lane.next_qseq
        for _ in range(40):
            publish(bench.store, [lane], [b"x" * 20] * 50)
        alive += range(first, lane.next_qseq)
        assert bench.store.checkpoint()
        choice.shuffle(alive)
        for qseq in alive[500:]:
            lane.settle(qseq, 1)
        del alive[500:]
        settle_down(bench, 6.0)
        sizes.append((bench.directory / "index.lmdb" / "data.mdb").stat().st_size)
    assert max(sizes) <= 1.3 * sizes[2], sizes
    assert sorted(contents(lane)) == sorted(alive)
    bench.store.close()


def test_the_ledger_names_what_is_being_moved_to(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its sources may be dead before the last pointer has moved, and the ledger rolls."""
    monkeypatch.setattr("qlog.storage.space.compact._MOVE_RECORDS", 5)
    stuck, other = new_lane(bench.store), new_lane(bench.store)
    left = fill(bench, stuck, keep=10, count=200)
    fill(bench, other, keep=10, count=400)
    store = bench.store
    compactor = probe(store).compactor
    while not any(live.count for id_, live in probe(store).live.items() if id_ >= COMPACTED):
        assert bench.now_s < 100
        settle_down(bench, 0.5)
    other.settle(0, 400)
    for qseq in sorted(left)[2:]:
        stuck.settle(qseq, 1)
    while not probe(store).checkpoints.condemned:
        assert store.checkpoint()
    probe(store).settling.wants_roll = True
    stuck.settle(sorted(left)[1], 1)
    assert store.checkpoint() and compactor.made is not None
    kept = {qseq: left[qseq] for qseq in sorted(left)[:1]}
    for without_index in (False, True):
        bench.kill()
        if without_index:
            shutil.rmtree(bench.directory / "index.lmdb")
        bench.open()
        assert contents(bench.store.lane(stuck.id)) == kept
    bench.store.close()


class KeepForASecond:
    """Keeps a segment until a second after its last message."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def keeps(self, segment: Segment, now_ms: int) -> bool:
        self.asked.append((segment.earliest_ms, segment.latest_ms))
        return now_ms <= segment.latest_ms + 1000


def test_what_is_retained_stays_and_is_not_compacted_until_its_time_is_over(
    tmp_path: Path,
) -> None:
    now_ms = 7
    retention = KeepForASecond()
    workers: list[ManualWorker] = []

    def new_worker(name: str, notify: object) -> ManualWorker:
        workers.append(ManualWorker())
        return workers[-1]

    store: Store[Envelope] = Store.open(
        tmp_path / "data",
        decode=decode,
        notify=ignore,
        settings=EAGER,
        new_worker=new_worker,
        clock_ms=lambda: now_ms,
        retention=retention,
    )
    now_s = 0.0

    def drive() -> None:
        nonlocal now_s
        for _ in range(12):
            now_s += 2.5
            store.tick(now_s)
            while any(worker.run_one() for worker in workers):
                store.advance()
            store.advance()

    lane = new_lane(store)
    for _ in range(40):
        publish(store, [lane], [b"x" * 1000])
    drive()
    kept = store.segment_count
    assert kept > 2
    lane.settle(1, 39)
    drive()
    assert store.segment_count >= kept  # neither unlinked nor compacted
    assert set(retention.asked) == {(7, 7)}
    now_ms = 2000
    drive()
    assert store.segment_count < kept and contents(lane) == {0: b"x" * 1000}
    store.close()
