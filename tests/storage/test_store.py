"""The store in good health, and what it does when the disk is not."""

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from qlog.storage.bytes.disk import OSDisk
from qlog.storage.errors import (
    CorruptLog,
    OutOfDescriptors,
    Shortage,
    SyncFailed,
)
from qlog.storage.index.checkpoint import entries_of
from qlog.storage.index.rows import IndexDoubt
from qlog.storage.journal import Settled, Time
from qlog.storage.lanes.settled import lane_entries
from qlog.storage.settings import StoreSettings
from qlog.storage.start.examine import Examination
from qlog.storage.store import Store
from qlog.storage.write.commits import JOB_BYTES_MAX
from qlog.storage.write.ledger import unpack_body
from tests.storage.probe import probe
from tests.storage.support import (
    SMALL,
    Bench,
    Envelope,
    FullDisk,
    abandon,
    contents,
    decode,
    envelope,
    ignore,
    new_lane,
    publish,
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def run_all(bench: Bench) -> None:
    """All threads do all they have to do."""
    for _ in range(10):
        bench.store.commit()
        for worker in bench.workers:
            worker.wait()
        bench.store.advance()


def test_nothing_is_durable_before_the_sync(bench: Bench) -> None:
    lane = new_lane(bench.store)
    lsn = publish(bench.store, [lane], [b"a", b"b"])
    assert lsn == 2 and bench.store.durable_lsn == 0
    bench.store.commit()
    assert bench.store.durable_lsn == 0
    bench.commits.run_one()
    assert bench.store.durable_lsn == 0
    bench.store.advance()
    assert bench.store.durable_lsn == 2
    bench.store.close()


def test_one_write_and_one_sync_make_a_batch_durable(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"warm up"])
    run_all(bench)
    operations: list[str] = []
    bench.disk.fail = lambda operation: operations.append(operation)
    for _ in range(3):
        publish(bench.store, [lane], [b"x"] * 5)
    bench.store.commit()
    bench.commits.run_one()
    bench.store.advance()
    assert operations == ["write", "sync_data"] and bench.store.durable_lsn == 16
    bench.store.close()


def test_a_small_message_waits_for_one_large_one_at_most(bench: Bench) -> None:
    """Each large one is synced by itself, and so are the small ones that came before it."""
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"warm up"])
    run_all(bench)
    large = bytes(JOB_BYTES_MAX)
    ends = [publish(bench.store, [lane], [body]) for body in (large, b"a", b"b", large, large)]
    ends.append(publish(bench.store, [lane], [b"c"]))
    durable = []
    for _ in range(5):
        bench.store.commit()
        bench.commits.run_one()
        bench.store.advance()
        durable.append(bench.store.durable_lsn)
    assert durable == [ends[0], ends[2], ends[3], ends[4], ends[5]]
    bench.store.close()


def test_who_waits_for_all_of_it_has_it_with_one_job(bench: Bench) -> None:
    """A ticket is served when log and ledger have everything that came before it."""
    lane = new_lane(bench.store)
    run_all(bench)
    large = bytes(JOB_BYTES_MAX)
    publish(bench.store, [lane], [large])
    bench.store.commit()  # a job without the next one
    end = publish(bench.store, [lane], [large])
    end = publish(bench.store, [lane], [large])
    lane.settle(0, 1)
    ticket = bench.store.request_sync()
    seen = []
    while bench.store.synced < ticket:
        assert bench.commits.run_one()
        bench.store.advance()
        seen.append(bench.store.durable_lsn)
    assert seen == [1, end] and bench.store.durable_lsn == end
    bench.store.close()


def test_one_record_serves_many_lanes(bench: Bench) -> None:
    lanes = [new_lane(bench.store) for _ in range(20)]
    publish(bench.store, lanes, [b"x" * 100] * 10)
    assert bench.store.checkpoint()
    assert bench.store.segment_bytes < 20 * 10 * 100
    for lane in lanes:
        assert len(contents(lane)) == 10
    for lane in lanes[1:]:
        lane.settle(0, 10)
    assert bench.store.checkpoint()
    assert bench.store.live_bytes > 1000
    assert len(contents(lanes[0])) == 10
    bench.store.close()


def test_a_message_larger_than_a_segment_is_kept(bench: Bench) -> None:
    lane = new_lane(bench.store)
    bodies = [b"small", b"x" * 3 * SMALL.segment_bytes_max, b"small too"]
    publish(bench.store, [lane], bodies)
    assert bench.store.checkpoint()
    bench.restart()
    assert list(contents(bench.store.lane(lane.id)).values()) == bodies
    bench.store.close()


def test_segments_are_unlinked_when_all_in_them_is_settled(bench: Bench) -> None:
    lane = new_lane(bench.store)
    for _ in range(60):
        publish(bench.store, [lane], [b"x" * 1000])
    assert bench.store.checkpoint()
    assert bench.store.segment_count >= 4
    lane.settle(0, 55)
    for _ in range(4):
        assert bench.store.checkpoint()
    assert bench.store.segment_count <= 2
    assert len(list((bench.directory / "log").glob("*.qseg"))) <= 3
    assert len(contents(lane)) == 5
    bench.kill()
    shutil.rmtree(bench.directory / "index.lmdb")
    bench.open()
    assert len(contents(bench.store.lane(lane.id))) == 5
    bench.store.close()


def test_a_segment_is_not_prepared_before_the_one_below_it(bench: Bench) -> None:
    """A kill would leave a gap, which is what a missing segment looks like."""
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"first"])
    bench.store.commit()
    for _ in range(4):
        publish(bench.store, [lane], [b"x" * bench.settings.segment_bytes_max])
    assert bench.commits.run_one()
    bench.store.advance()
    while bench.maintenance.run_one():
        pass
    bench.restart()
    assert contents(bench.store.lane(lane.id)) == {0: b"first"}


def test_an_idle_active_segment_that_is_dead_is_given_back(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x" * 1000] * 10)
    assert bench.store.checkpoint()
    lane.settle(0, 10)
    for _ in range(5):
        assert bench.store.checkpoint()
    assert bench.store.segment_bytes < 1000
    bench.store.close()


def test_the_ledger_rolls_and_keeps_everything(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"] * 4000)
    left = set(range(4000))
    for qseq in range(0, 4000, 2):
        lane.settle(qseq, 1)
        left.remove(qseq)
        if qseq % 50 == 0:
            assert bench.store.settle_down()
        if qseq % 400 == 0:
            assert bench.store.checkpoint()
    lane.note_delivered(1234)
    assert bench.store.settle_down()
    files = sorted(path.name for path in (bench.directory / "ledger").glob("*.qack"))
    assert len(files) == 1 and files[0] >= "0000000002.qack"
    bench.kill()
    shutil.rmtree(bench.directory / "index.lmdb")
    bench.open()
    lane = bench.store.lane(lane.id)
    assert set(contents(lane)) == left and lane.delivered == 1234
    bench.store.close()


def test_transient_messages_leave_memory_and_do_not_survive(bench: Bench) -> None:
    lane, other = new_lane(bench.store), new_lane(bench.store)
    publish(bench.store, [lane], [b"kept"] * 3)
    publish(bench.store, [lane, other], [b"gone" * 100] * 50, persistent=False)
    assert bench.store.cache_bytes > 20_000
    assert bench.store.checkpoint()
    assert bench.store.cache_bytes < 2000
    assert len(contents(lane)) == 53 and len(contents(other)) == 50
    publish(bench.store, [lane], [b"kept"])
    assert bench.store.settle_down()
    bench.restart()
    lane = bench.store.lane(lane.id)
    assert list(contents(lane).values()) == [b"kept"] * 4
    assert lane.next_qseq == 54
    assert not contents(bench.store.lane(other.id))
    assert not list((bench.directory / "spill").iterdir())
    bench.store.close()


@pytest.mark.parametrize("attempts", [1, 2])
def test_transients_that_cannot_be_spilled_leave_their_queue_readable(
    bench: Bench, attempts: int
) -> None:
    lane, other = new_lane(bench.store), new_lane(bench.store)
    publish(bench.store, [lane], [b"kept"] * 5)
    publish(bench.store, [other, lane], [b"gone"], persistent=False)
    publish(bench.store, [lane], [b"gone too"], persistent=False)
    publish(bench.store, [lane], [b"kept"] * 4)
    written = bench.disk.write

    def write(file: int, buffers: Sequence[bytes], offset: int) -> None:
        if bench.disk.names_open[file].startswith("spill/"):
            raise OSError(errno.ENOSPC, "No space left on device")
        written(file, buffers, offset)

    bench.disk.write = write  # type: ignore[method-assign]
    for _ in range(attempts):
        assert bench.store.checkpoint()
    assert len(contents(lane)) == 11 and len(contents(other)) == 1
    bench.restart()
    lane = bench.store.lane(lane.id)
    assert sorted(contents(lane)) == [0, 1, 2, 3, 4, 7, 8, 9, 10] and lane.alive == 9
    assert set(contents(lane).values()) == {b"kept"}
    assert not contents(bench.store.lane(other.id))
    bench.store.close()


def test_transients_are_spilled_when_there_is_space_again(bench: Bench) -> None:
    lane, dropped = new_lane(bench.store), new_lane(bench.store)
    publish(bench.store, [lane, dropped], [b"x" * 100] * 50, persistent=False)
    full = OSError(errno.ENOSPC, "No space left on device")
    written = bench.disk.write

    def write(file: int, buffers: Sequence[bytes], offset: int) -> None:
        if bench.disk.names_open[file].startswith("spill/"):
            raise full
        written(file, buffers, offset)

    bench.disk.write = write  # type: ignore[method-assign]
    assert bench.store.checkpoint()
    assert bench.store.cache_bytes > 5000
    bench.store.drop(dropped)
    assert bench.store.checkpoint()
    bench.disk.write = written  # type: ignore[method-assign]
    bench.tick(5.0)  # nothing happened to the lane: it is still to be written
    run_all(bench)
    assert bench.store.cache_bytes < 1000
    assert list(contents(lane).values()) == [b"x" * 100] * 50
    bench.store.close()


def test_spilled_files_are_unlinked(bench: Bench) -> None:
    lane = new_lane(bench.store)
    for _ in range(6):
        publish(bench.store, [lane], [b"x" * 1000] * 10, persistent=False)
        assert bench.store.checkpoint()
    assert len(list((bench.directory / "spill").iterdir())) > 2
    lane.settle(0, 60)
    assert bench.store.checkpoint()
    assert not list((bench.directory / "spill").iterdir())  # nor the one that was written to
    publish(bench.store, [lane], [b"x"], persistent=False)
    assert bench.store.checkpoint()
    lane.settle(60, 1)
    assert bench.store.checkpoint()
    assert len(list((bench.directory / "spill").iterdir())) == 1  # it is small: it goes on
    bench.store.close()


def test_memory_is_bounded(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    for _ in range(100):
        publish(bench.store, [lane], [b"x" * 100] * 10)
        run_all(bench)
        bench.tick(0.3)
    assert bench.store.cache_bytes <= SMALL.cache_bytes_max
    run_all(bench)
    bench.tick(2.0)
    run_all(bench)
    assert len(lane.runs()) < 20
    assert len(contents(lane)) == 1000
    bench.store.close()


def test_pending_bytes_make_the_store_congested(bench: Bench) -> None:
    lane = new_lane(bench.store)
    assert not bench.store.congested
    publish(bench.store, [lane], [b"x" * 1000] * 80)
    assert bench.store.congested
    run_all(bench)
    assert not bench.store.congested
    bench.store.close()


def test_acks_are_written_soon_and_synced_later(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"] * 10)
    assert bench.store.settle_down()
    bench.tick(5.0)
    run_all(bench)
    lane.settle(0, 3)
    assert bench.tick(0.0) <= SMALL.ack_flush_s
    bench.tick(SMALL.ack_flush_s)
    bench.commits.run_one()
    bench.store.advance()
    bench.restart()
    assert len(contents(bench.store.lane(lane.id))) == 7
    bench.store.close()


def test_an_ack_waits_no_longer_than_it_may_whenever_the_tick_comes(bench: Bench) -> None:
    """It came between two ticks: its time counts from the one before."""
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"] * 10)
    assert bench.store.settle_down() and bench.store.checkpoint()
    bench.tick(5.0)
    run_all(bench)
    lane.settle(0, 3)
    bench.tick(SMALL.ack_flush_s)
    assert bench.commits.run_one()
    bench.store.advance()
    bench.restart()
    assert len(contents(bench.store.lane(lane.id))) == 7
    bench.store.close()


def test_the_first_ack_after_a_rest_asks_for_a_tick(tmp_path: Path) -> None:
    notices: list[int] = []
    store: Store[Envelope] = Store.open(
        tmp_path, decode=decode, notify=lambda: notices.append(1), settings=SMALL
    )
    lane = new_lane(store)
    publish(store, [lane], [b"x"] * 10)
    assert store.settle_down()
    store.tick(100.0)
    assert store.settle_down() and store.checkpoint()
    assert store.tick(200.0) > 1
    before = len(notices)
    lane.settle(0, 1)
    lane.settle(1, 1)
    assert len(notices) == before + 1
    store.close()


def test_a_ledger_that_is_full_before_the_next_checkpoint_rolls_on_a_full_disk(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    lane_id = new_lane(bench.store).id
    assert bench.store.settle_down()
    bench.kill()
    disk = bench.disk = FullDisk()
    bench.open()
    store = bench.store
    lane = store.lane(lane_id)
    publish(store, [lane], [b"x"] * 600)
    assert store.settle_down()
    disk.full = True
    for qseq in range(0, 600, 2):  # nothing runs on the checkpoint thread meanwhile
        lane.settle(qseq, 1)
        bench.tick(bench.settings.ack_flush_s)
        bench.tick(bench.settings.ack_flush_s)
        if qseq % 100 == 0:
            bench.tick(1.0)  # a checkpoint is due, and acks wait for its part of the ledger
        while bench.commits.run_one():
            store.advance()
    ledger = bench.directory / "ledger"
    assert max(ledger.glob("*.qack")).stem > f"{2:010d}"
    assert store.settle_down() and not store.shortage
    bench.restart()
    assert list(contents(bench.store.lane(lane_id))) == list(range(1, 600, 2))


@pytest.mark.parametrize("operation", ["write", "sync_data"])
def test_a_failing_disk_confirms_nothing_ever_again(bench: Bench, operation: str) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"a"])
    run_all(bench)
    durable = bench.store.durable_lsn
    publish(bench.store, [lane], [b"b"])
    once = [OSError(errno.EIO, "Input/output error")]
    bench.disk.fail = lambda asked: once.pop() if asked == operation and once else None
    run_all(bench)
    assert isinstance(bench.store.failure, OSError if operation == "write" else SyncFailed)
    publish(bench.store, [lane], [b"c"])
    run_all(bench)
    bench.tick(10.0)
    run_all(bench)
    assert bench.store.durable_lsn == durable
    assert not bench.store.settle_down()
    bench.restart()
    assert b"a" in contents(bench.store.lane(lane.id)).values()
    bench.store.close()


def test_a_sync_that_finds_the_disk_full_is_final(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"a"])
    full = OSError(errno.ENOSPC, "No space left on device")
    bench.disk.fail = lambda asked: full if asked == "sync_data" else None
    run_all(bench)
    assert isinstance(bench.store.failure, SyncFailed) and not bench.store.shortage
    bench.disk.fail = lambda asked: None
    bench.store.close()


def test_a_full_disk_holds_the_batch_until_there_is_space(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"a"] * 3)
    assert bench.store.settle_down()
    full = OSError(errno.ENOSPC, "No space left on device")
    segment = probe(bench.store).committer._file

    written = bench.disk.write

    def write(file: int, buffers, offset: int) -> None:  # type: ignore[no-untyped-def]
        if file == segment:
            raise full
        written(file, buffers, offset)

    bench.disk.write = write  # type: ignore[method-assign]
    lsn = publish(bench.store, [lane], [b"b"] * 3)
    run_all(bench)
    assert bench.store.shortage and bench.store.durable_lsn == 3 and bench.store.failure is None
    lane.settle(0, 1)  # acks go on
    bench.tick(0.0)
    bench.tick(0.01)
    run_all(bench)
    assert probe(bench.store).ledger._number > 1 and not probe(bench.store).settling._chunks
    bench.tick(1.0)  # tried again, in vain; and the checkpoint goes on
    run_all(bench)
    assert bench.store.shortage and bench.store.durable_lsn == 3
    copy = bench.directory.with_name("copy")
    shutil.copytree(bench.directory, copy)
    bench.disk.write = written  # type: ignore[method-assign]
    bench.tick(0.3)
    run_all(bench)
    assert not bench.store.shortage and bench.store.durable_lsn == lsn
    bench.restart()
    assert list(contents(bench.store.lane(lane.id)).values()) == [b"a"] * 2 + [b"b"] * 3
    bench.store.close()
    other: Store[Envelope] = Store.open(copy, decode=decode, notify=ignore, settings=SMALL)
    assert list(contents(other.lane(lane.id)).values()) == [b"a"] * 2
    other.close()


def test_acks_made_while_a_checkpoint_waits_for_space_stay(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"] * 10)
    assert bench.store.settle_down()
    lane.settle(0, 1)
    full = OSError(errno.ENOSPC, "No space left on device")
    bench.disk.fail = lambda asked: full if asked == "write" else None
    bench.tick(5.0)  # a checkpoint is gathered, and the ledger cannot take its part
    run_all(bench)
    assert bench.store.shortage and probe(bench.store).checkpoints.snapshot is not None
    lane.settle(1, 1)
    ticket = bench.store.request_sync()
    bench.disk.fail = lambda asked: None
    bench.tick(0.5)
    run_all(bench)
    assert bench.store.synced >= ticket and probe(bench.store).checkpoints.snapshot is None
    bench.restart()
    assert sorted(contents(bench.store.lane(lane.id))) == list(range(2, 10))
    bench.store.close()


def test_space_comes_back_on_a_full_disk_when_messages_are_settled(bench: Bench) -> None:
    """No new segment can be made: checkpoints and unlinks go on without one."""
    lane = new_lane(bench.store)
    for _ in range(40):
        publish(bench.store, [lane], [b"x" * 1000])
    assert bench.store.checkpoint()
    full = OSError(errno.ENOSPC, "No space left on device")
    bench.disk.fail = lambda asked: full if asked == "allocate" else None
    for _ in range(40):
        publish(bench.store, [lane], [b"y" * 1000])
    run_all(bench)
    assert bench.store.shortage
    before = bench.store.segment_count
    lane.settle(0, 40)
    for _ in range(4):
        bench.tick(1.1)
        run_all(bench)
    assert bench.store.shortage and bench.store.segment_count < before
    bench.disk.fail = lambda asked: None
    bench.tick(1.1)
    run_all(bench)
    assert not bench.store.shortage and bench.store.durable_lsn == bench.store.lsn
    assert len(contents(lane)) == 40
    bench.store.close()


def test_definitions_go_on_in_reserved_space_when_the_log_is_full(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"])
    assert bench.store.settle_down()
    full = OSError(errno.ENOSPC, "No space left on device")
    bench.disk.fail = lambda asked: full if asked == "allocate" else None
    for _ in range(40):
        publish(bench.store, [lane], [b"y" * 1000])
    run_all(bench)
    assert bench.store.shortage
    bench.store.catalog.put("kind", "name", b"value")
    ticket = bench.store.request_sync()  # of the log, too
    run_all(bench)
    assert bench.store.definitions_synced == bench.store.definitions
    assert bench.store.synced < ticket
    bench.restart()
    assert bench.store.catalog.get("kind", "name") == b"value"
    bench.store.close()


def test_files_that_could_not_be_unlinked_for_lack_of_space_go_later(bench: Bench) -> None:
    """Some file systems need a little space to unlink a file."""
    lane = new_lane(bench.store)
    for _ in range(60):
        publish(bench.store, [lane], [b"x" * 1000])
    assert bench.store.checkpoint()
    full = OSError(errno.ENOSPC, "No space left on device")
    bench.disk.fail = lambda asked: full if asked == "unlink" else None
    lane.settle(0, 55)
    for _ in range(4):
        assert bench.store.checkpoint()
    log = bench.directory / "log"
    assert bench.store.segment_count <= 2 and len(list(log.glob("*.qseg"))) >= 4
    bench.disk.fail = lambda asked: None
    lane.settle(55, 1)
    assert bench.store.checkpoint()
    assert len(list(log.glob("*.qseg"))) <= 3
    assert len(contents(lane)) == 4
    bench.store.close()


def test_old_ledger_files_that_cannot_be_removed_hold_nobody_up(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"] * 600)
    assert bench.store.checkpoint()
    full = OSError(errno.ENOSPC, "No space left on device")
    bench.disk.fail = lambda asked: full if asked == "unlink" else None
    ledger = bench.directory / "ledger"
    for qseq in range(0, 600, 2):
        lane.settle(qseq, 1)
        bench.tick()
        run_all(bench)
        if len(list(ledger.glob("*.qack"))) > 1:
            break
    assert len(list(ledger.glob("*.qack"))) == 2
    assert not bench.store.shortage
    bench.disk.fail = lambda asked: None
    bench.store.close()


class Openings:
    """`os.open` as it is when others take the last file descriptors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errno = 0
        self.free: int | None = None  # descriptors; None: enough
        self.refused = 0
        self._open: Callable[..., int] = os.open
        monkeypatch.setattr(os, "open", self)

    def __call__(self, path: Path, *rest: int, **options: int | None) -> int:
        if self.free == 0:
            self.refused += 1
            raise OSError(self.errno, os.strerror(self.errno), str(path))
        if self.free is not None:
            self.free -= 1
        return self._open(path, *rest, **options)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_file_descriptors_are_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Wherever in the upkeep of a store they run out, it goes on when there are some again."""
    lane, transient = new_lane(bench.store), new_lane(bench.store)
    openings = Openings(monkeypatch)
    openings.errno = number
    held = sent = 0
    for free in range(12):
        openings.free = free
        for part in range(8):
            publish(bench.store, [lane], [b"%d" % sent] * 20)
            publish(bench.store, [transient], [b"t" * 50] * 5, persistent=False)
            lane.settle(20 * sent + part, 3)
            sent += 1
            bench.tick(1.1)
            run_all(bench)
            held += bench.store.shortage is Shortage.DESCRIPTORS
        durable_lsn = bench.store.durable_lsn
        openings.free = None
        bench.tick(5.0)
        run_all(bench)
        assert bench.store.failure is None and not bench.store.shortage
        assert durable_lsn <= bench.store.durable_lsn == bench.store.lsn
        assert bench.store.checkpoint()
    assert held and openings.refused > 12
    expected = contents(lane)
    assert len(expected) == 17 * sent
    assert len(contents(transient)) == 5 * sent
    bench.restart()
    assert contents(bench.store.lane(lane.id)) == expected
    bench.store.close()


def test_a_read_that_lacks_a_descriptor_finds_no_damage(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = new_lane(bench.store)
    for part in range(40):
        publish(bench.store, [lane], [b"%d" % part] * 20)
        run_all(bench)
    bench.reopen()
    lane = bench.store.lane(lane.id)
    assert bench.store.segment_count > 2
    openings = Openings(monkeypatch)
    openings.errno, openings.free = errno.EMFILE, 0
    with pytest.raises(OutOfDescriptors, match="cannot be opened now: Too many open files"):
        lane.read(0, 10, 10_000)
    openings.free = 1

    def closed(file: int) -> None:
        openings.free = 1
        os.close(file)

    monkeypatch.setattr(bench.disk, "close", closed)
    assert len(contents(lane)) == 800  # the files it has read give way to those it reads
    assert openings.refused > 2
    openings.free = None
    bench.store.close()


def test_a_directory_that_was_replaced_is_synced_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    disk = OSDisk()
    path = tmp_path / "log"
    for _ in range(2):
        path.mkdir()
        disk.sync_directory(path)
        disk.sync_directory(path)
        assert synced == [path.stat().st_ino] * 2
        synced.clear()
        path.rename(tmp_path / "old")
    disk.release()


def test_a_directory_that_cannot_be_opened_is_not_synced(tmp_path: Path) -> None:
    with pytest.raises(SyncFailed, match="No such file"):
        OSDisk().sync_directory(tmp_path / "missing")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds its own files in /proc")
def test_a_catalog_that_cannot_be_written_is_a_failure_and_loses_nothing(bench: Bench) -> None:
    """Its writes are LMDB's own: the file is taken from under it."""
    store = bench.store
    store.catalog.put("kind", "before", b"1")
    assert store.checkpoint()
    path = bench.directory / "catalog.lmdb" / "data.mdb"
    with path.open("rb") as unwritable:
        for link in Path("/proc/self/fd").iterdir():
            if int(link.name) != unwritable.fileno() and os.path.realpath(link) == str(path):
                os.dup2(unwritable.fileno(), int(link.name))
    store.catalog.put("kind", "after", b"2")
    ticket = store.request_sync()
    assert not store.checkpoint()
    assert store.synced >= ticket and store.failure is not None
    bench.reopen()
    assert [name for name, _ in bench.store.catalog.items("kind")] == ["after", "before"]
    bench.store.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_at_any_operation_confirms_nothing_false(tmp_path: Path, number: int) -> None:
    """One operation after the other fails; what had been confirmed is there afterwards."""
    for failing in range(60):
        bench = Bench(tmp_path / str(failing))
        lane = new_lane(bench.store)
        assert bench.store.settle_down()
        count = bench.disk.operations + failing

        def fail(operation: str, bench: Bench = bench, count: int = count) -> OSError | None:
            if bench.disk.operations == count + 1:
                return OSError(number, "injected")
            return None

        bench.disk.fail = fail
        settled = 0
        for at in range(12):
            publish(bench.store, [lane], [b"%d" % at + b"x" * 900] * 4)
            if at % 3 == 0 and bench.store.durable_lsn:
                settled += lane.settle(settled, 2)
            run_all(bench)
            bench.tick(0.6)
            run_all(bench)
        durable = bench.store.durable_lsn
        if bench.store.failure is None:
            assert durable == bench.store.lsn
        reached = bench.disk.operations > count
        bench.restart()
        found = contents(bench.store.lane(lane.id))
        assert set(range(settled, durable)) <= set(found)
        assert all(body == b"%d" % (qseq // 4) + b"x" * 900 for qseq, body in found.items())
        bench.store.close()
        shutil.rmtree(bench.root)
        if not reached:
            return


def test_the_real_threads_confirm_and_stop(tmp_path: Path) -> None:
    store: Store[Envelope] = Store.open(
        tmp_path / "data", decode=decode, notify=ignore, settings=StoreSettings()
    )
    lane = new_lane(store)
    for at in range(50):
        publish(store, [lane], [b"%d" % at] * 100)
        store.commit()
        store.advance()
    assert store.settle_down() and store.durable_lsn == 5000
    ticket = store.request_sync()
    assert store.synced < ticket
    assert store.settle_down() and store.synced >= ticket
    lane.settle(0, 4990)
    store.close()
    (tmp_path / "data").rename(tmp_path / "moved")
    store = Store.open(tmp_path / "moved", decode=decode, notify=ignore)
    assert list(contents(store.lane(lane.id)).values()) == [b"49"] * 10
    assert store.report.records_replayed == 0
    store.close()


def test_metas_of_one_run_may_differ(bench: Bench) -> None:
    lane = new_lane(bench.store)
    metas = [envelope(b"m%d" % at) for at in range(10)]
    bodies = [b"b%d" % at for at in range(10)]
    bench.store.append([lane], metas, bodies, persistent=True, now_ms=1)
    assert bench.store.checkpoint()
    bench.restart()
    part = bench.store.lane(lane.id).read(0, 10, 10_000)
    assert part is not None and part.metas == metas and part.bodies == bodies
    abandon(bench.store)


def test_lane_ids_are_never_given_twice(bench: Bench) -> None:
    for _ in range(3):
        lane = new_lane(bench.store)
        publish(bench.store, [lane], [b"body"])
        assert bench.store.settle_down()
        bench.restart()
        assert bench.store.new_lane_id() > lane.id
    bench.store.close()


def test_a_doubt_that_cannot_be_marked_is_still_final(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"a"])
    assert bench.store.settle_down()

    def apply(*_: object) -> None:
        raise IndexDoubt("a row is damaged")

    monkeypatch.setattr(probe(bench.store).index, "apply", apply)
    bench.disk.fail = lambda asked: (
        OSError(errno.EIO, "Input/output error") if asked == "sync_directory" else None
    )
    bench.tick(5.0)
    run_all(bench)
    assert isinstance(bench.store.failure, CorruptLog)
    assert not bench.store.settle_down()
    bench.disk.fail = lambda asked: None
    bench.store.close()


def test_a_result_that_cannot_be_taken_is_final_and_the_others_are_taken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"a"])
    bench.store.commit()
    bench.commits.run_one()
    bench.maintenance.wait()
    error = RuntimeError("a bug")

    def advance(durable_lsn: int) -> None:
        raise error

    monkeypatch.setattr(probe(bench.store).cache, "advance", advance)
    bench.store.advance()
    assert bench.store.failure is error
    assert not probe(bench.store).commits.busy and not probe(bench.store).upkeep.jobs
    bench.store.close()


def test_definitions_wait_for_the_next_settlements_while_publishers_wait(bench: Bench) -> None:
    store = bench.store
    lane = new_lane(store)
    publish(store, [lane], [b"warm up"])
    run_all(bench)
    store.catalog.put("kind", "name", b"value")
    publish(store, [lane], [b"of a publisher that waits"])
    operations: list[str] = []
    bench.disk.fail = lambda operation: operations.append(operation)
    store.commit(1)
    bench.commits.run_one()
    store.take(0)
    assert operations == ["write", "sync_data"] and store.durable_lsn == 2
    assert store.definitions_synced < store.definitions
    store.commit(1)
    assert not bench.commits.jobs
    bench.tick(store.settings.ack_flush_s)
    bench.commits.run_one()
    store.take(0)
    assert len(operations) == 4 and store.definitions_synced == store.definitions
    store.close()


def test_definitions_do_not_wait_when_nobody_else_does(bench: Bench) -> None:
    store = bench.store
    store.catalog.put("kind", "name", b"value")
    store.commit(0)
    bench.commits.run_one()
    store.take(0)
    assert store.definitions_synced == store.definitions
    store.close()


def test_messages_in_a_new_lane_do_not_wait_long_for_its_definition(bench: Bench) -> None:
    """And never go before it: with those of other lanes they wait if the ledger cannot be written."""
    store = bench.store
    old = new_lane(store)
    publish(store, [old], [b"warm up"])
    run_all(bench)
    number = store.new_lane_id()
    store.catalog.put("queue", str(number), b"")
    publish(store, [store.lane(number), old], [b"in a new lane"])
    bench.disk.fail = lambda operation: (
        OSError(errno.ENOSPC, "No space left on device") if operation == "write" else None
    )
    store.commit(1)
    bench.commits.run_one()
    store.take(1)
    assert store.durable_lsn == 1 and store.definitions_synced < store.definitions
    bench.disk.fail = lambda operation: None
    bench.tick(1.0)
    bench.commits.run_one()
    store.take(1)
    assert store.durable_lsn == 2 and store.definitions_synced == store.definitions
    store.close()


def test_definitions_are_kept_and_undone_together(bench: Bench) -> None:
    catalog = bench.store.catalog
    long_name = "n" * 2000
    with catalog.transaction():
        catalog.put("queue", "a", b"1")
        catalog.put("queue", long_name, b"2")
    with pytest.raises(RuntimeError), catalog.transaction():
        catalog.put("queue", "b", b"3")
        assert catalog.get("queue", "b") == b"3"
        catalog.delete("queue", "a")
        raise RuntimeError
    assert bench.store.settle_down()
    bench.restart()
    catalog = bench.store.catalog
    assert dict(catalog.items("queue")) == {"a": b"1", long_name: b"2"}
    assert not bench.store.report.catalog_rebuilt
    assert catalog.get("queue", "b") is None and catalog.get("exchange", "a") is None
    assert catalog.delete("queue", "a") and not catalog.delete("queue", "a")
    bench.store.close()


def test_the_ledger_has_the_time_of_a_settlement_to_the_second(tmp_path: Path) -> None:
    now_ms = 5_000
    store: Store[Envelope] = Store.open(
        tmp_path, decode=decode, notify=ignore, clock_ms=lambda: now_ms
    )
    lane = store.lane(store.new_lane_id())
    publish(store, [lane], [b"body"] * 5)
    for qseq, now_ms in enumerate((5_000, 5_999, 6_000, 9_000, 2_000)):  # noqa: B007 - the clock
        lane.settle(qseq, 1)
        assert store.settle_down()
    store.close()
    examination = Examination(tmp_path)
    view = examination.ledger_file(examination.ledger_ids()[-1])
    batches = [stretch.batch for stretch in examination.stretches(view)]
    records = [unpack_body(batch.body)[1] for batch in batches if batch is not None]
    acks = [kinds for kinds in records if any(isinstance(one, Settled) for one in kinds)]
    assert [[one.ms for one in kinds if isinstance(one, Time)] for kinds in acks] == [
        [5_000],
        [],
        [6_000],
        [9_000],
        [2_000],
    ]


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("cold", [True, False])
def test_a_slice_has_times_sizes_and_due_times(bench: Bench, persistent: bool, cold: bool) -> None:
    """From memory, from the log and from spill/, alike or not, of one lane or of several."""
    store = bench.store
    lane, other = new_lane(store), new_lane(store)
    runs: list[tuple[list[bytes], int, list[int] | None]] = [
        ([b"%03d" % at for at in range(12)], 1000, None),
        ([b"%03d" % at for at in range(12)], 1001, [5000 + at for at in range(12)]),
        ([b"x" * at for at in range(5)], 1002, [5100] * 5),
        ([b"last"], 1003, None),
    ]
    for bodies, now_ms, dues in runs:
        metas = [envelope(b"key")] * len(bodies)
        lanes = [lane, other] if now_ms == 1002 else [lane]
        store.append(lanes, metas, bodies, persistent=persistent, now_ms=now_ms, dues_ms=dues)
    assert store.checkpoint()
    if cold:
        for _, run in lane.runs():
            probe(store).cache.drop(run)
    slice_ = lane.read(0, 100, 1 << 20)
    assert slice_ is not None
    expected = [
        (body, now_ms, len(body), 0 if dues is None else dues[at])
        for bodies, now_ms, dues in runs
        for at, body in enumerate(bodies)
    ]
    assert slice_.dues_ms is not None
    rows = zip(slice_.bodies, slice_.times_ms, slice_.sizes, slice_.dues_ms, strict=True)
    assert list(rows) == expected
    slice_ = lane.read(0, 12, 1 << 20)
    assert slice_ is not None and slice_.dues_ms is None


def test_bytes_that_wait_are_known_at_any_time(bench: Bench) -> None:
    """With the sizes known to who settles, or looked up in memory, log and spill/."""
    lane = new_lane(bench.store)
    sizes = dict(enumerate([5, 0, 300, 7, 7, 7, 40, 2]))
    publish(bench.store, [lane], [b"x" * size for size in sizes.values()])
    publish(bench.store, [lane], [b"transient"], persistent=False)
    sizes[8] = len(b"transient")
    assert lane.alive_bytes == sum(sizes.values())
    assert bench.store.checkpoint()
    assert lane.alive_bytes == sum(sizes.values())
    for _, run in lane.runs():
        probe(bench.store).cache.drop(run)
    lane.forget_indexed()
    assert not lane.runs()
    for first, count in ((2, 1), (1, 4), (8, 1)):
        lane.settle(first, count)
        for qseq in range(first, first + count):
            sizes.pop(qseq, None)
        assert lane.alive_bytes == sum(sizes.values())
    lane.settle(5, 2, sizes.pop(5) + sizes.pop(6))
    assert lane.alive_bytes == sum(sizes.values()) == 7
    assert bench.store.settle_down()
    bench.restart()
    lane = bench.store.lane(lane.id)
    assert lane.alive_bytes == 7


def test_attempts_survive_a_kill_when_the_ledger_has_them_and_go_with_their_message(
    bench: Bench,
) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"%d" % at for at in range(10)])
    assert bench.store.settle_down()
    lane.note_attempts(2, 5, 1)
    lane.note_attempts(4, 1, 2)
    assert lane.attempts_of(0, 8) == [0, 0, 1, 1, 2, 1, 1, 0]
    bench.tick()
    bench.tick()
    bench.commits.wait()
    bench.restart()
    lane = bench.store.lane(lane.id)
    assert lane.attempts_of(0, 8) == [0, 0, 1, 1, 2, 1, 1, 0]
    lane.settle(0, 4)
    lane.note_attempts(6, 1, 3)
    assert bench.store.checkpoint()
    bench.restart()
    lane = bench.store.lane(lane.id)
    assert lane.attempts_of(4, 4) == [2, 1, 3, 0]
    lane.settle(4, 3)
    assert not lane.settled.attempts
    with pytest.raises(AssertionError):
        lane.note_attempts(6, 1, 4)
    assert bench.store.settle_down()
    bench.restart()
    assert bench.store.lane(lane.id).attempts_of(7, 3) == [0, 0, 0]


def test_settled_messages_are_restored_where_they_still_can_be(bench: Bench) -> None:
    """Above the floor, and in a block of 254 of which anything is left."""
    store = bench.store
    lane = new_lane(store)
    for start in range(0, 600, 10):
        dues = [100 + start] * 10 if start == 20 else None
        publish(store, [lane], [b"%d" % (start + at) for at in range(10)], dues_ms=dues)
        assert store.settle_down()
    assert store.checkpoint()
    assert lane.restore(0, 600) == []  # nothing is settled
    lane.note_attempts(25, 1, 3)
    lane.settle(0, 5)  # below the floor
    lane.settle(20, 10)
    lane.settle(254, 254)  # a whole block
    lane.settle(599, 1)
    assert store.checkpoint()
    lane.settle(40, 2)
    before = lane.alive_bytes
    assert lane.restore(0, 600) == [20, 30, 40, 42, 599, 600]
    assert lane.alive_bytes == before + 10 * 2 + 2 * 2 + 3
    assert lane.restore(0, 600) == []
    lane.settle(41, 1)
    expected = {at: b"%d" % at for at in range(5, 600) if not 254 <= at < 508 and at != 41}
    assert contents(lane) == expected
    assert lane.attempts_of(25, 1) == [0]
    assert store.settle_down()
    for _ in range(2):
        bench.restart()
        lane = bench.store.lane(lane.id)
        assert contents(lane) == expected and lane.alive == len(expected)
        due = [one.qseq for some in bench.store.due(1000, 100) for one in some.each()]
        assert due == list(range(20, 30))
        assert bench.store.checkpoint()


def test_what_a_new_file_of_the_ledger_says_of_a_lane_is_never_old(bench: Bench) -> None:
    """It is remembered between files, and forgotten at every change."""
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"%d" % at for at in range(10)])
    assert bench.store.settle_down()
    said = [list(entries_of(lane))]
    changes: tuple[Callable[[], object], ...] = (
        partial(lane.settle, 3, 4),
        partial(lane.restore, 4, 2),
        partial(publish, bench.store, [lane], [b"new"]),
    )
    for change in changes:
        change()
        now = list(entries_of(lane))
        assert now == list(lane_entries(lane.id, lane.next_qseq, lane.settled)) != said[-1]
        said.append(now)


def test_a_message_is_settled_restored_and_settled_in_one_flush(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"%d" % at for at in range(10)])
    assert bench.store.settle_down()
    lane.settle(3, 3)
    assert lane.restore(3, 3) == [3, 6]
    lane.note_attempts(4, 1, 1)
    lane.settle(5, 1)
    assert bench.store.settle_down()
    bench.restart()
    lane = bench.store.lane(lane.id)
    assert contents(lane).keys() == set(range(10)) - {5}
    assert lane.attempts_of(3, 2) == [0, 1]
