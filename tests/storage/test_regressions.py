"""What the simulated disk and the kill loops found, each by its name.

The random search that finds such things again is `python -m tests.simulation`.
"""

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from qlog.storage.index import checkpoints
from qlog.storage.write.upkeep import Sealed
from tests.simulation.lives import scratch
from tests.simulation.mutations import follow, older_ledger_removed
from tests.simulation.world import Fate, World
from tests.storage.probe import probe
from tests.storage.support import SMALL, Bench, contents, new_lane, publish

INDEX = ("index.lmdb",)
CATALOG = ("catalog.lmdb",)


@pytest.fixture
def world() -> Iterator[World]:
    with scratch() as base:
        world = World(base / "world", SMALL)
        world.begin()
        yield world
        world.end()


def test_an_orderly_stop_makes_up_for_a_checkpoint_that_found_no_space(world: World) -> None:
    world.publish([0], 5, 30, True, False)
    world.fill_disk(0, INDEX)
    world.checkpoint()
    assert probe(world.running).checkpoints.held
    world.free_disk()
    world.reopen(Fate(power=False))
    assert world.running.report.records_replayed == 0


def test_an_orderly_stop_ends_although_the_catalog_has_no_space(world: World) -> None:
    world.publish([0], 5, 30, True, False)
    world.fill_disk(100_000, CATALOG)
    world.reopen(Fate())
    world.read_all(0, False)


def test_an_older_ledger_stays_until_the_newer_ones_name_is_durable() -> None:
    """A kill before a roll had synced the name; then the power goes, in the start after it."""
    for seed in range(120):  # each operation of that start, and various losses
        follow(older_ledger_removed, seed)


@pytest.mark.parametrize("rolled", [False, True], ids=["records", "snapshot"])
@pytest.mark.parametrize("without_index", [False, True], ids=["index", "rebuilt"])
def test_lsns_go_on_when_all_segments_at_the_top_were_given_up(
    tmp_path: Path, rolled: bool, without_index: bool
) -> None:
    """The ledger knows where they ended: by a record for each, or by its snapshot."""
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    for _ in range(40):
        publish(bench.store, [lane], [b"x" * 1000])
    assert bench.store.settle_down()
    lane.settle(0, 40)
    for _ in range(4):
        assert bench.store.checkpoint()
        bench.tick()
        bench.tick()
    assert bench.store.segment_count == 1  # the one that is written to next
    if rolled:
        probe(bench.store).settling.wants_roll = True
        assert bench.store.checkpoint()
    epochs = [bench.store.report.epoch]
    for _ in range(2):
        bench.kill()
        if without_index:
            shutil.rmtree(bench.directory / "index.lmdb")
        bench.open()
        assert bench.store.lsn == 40
        epochs.append(bench.store.report.epoch)
    assert epochs == sorted(set(epochs))
    bench.store.close()


@pytest.mark.parametrize("opened", [False, True], ids=["not read yet", "being read"])
def test_a_segment_that_dies_while_it_is_compacted_asks_for_its_copy_no_more(
    tmp_path: Path, opened: bool
) -> None:
    """It was named as replaced for ever, and its copy was missed when that had died too."""
    bench = Bench(tmp_path, replace(SMALL, compact_age_s=0.0, compact_bytes_per_s=1 << 40))
    lane = new_lane(bench.store)
    for at in range(61):
        publish(bench.store, [lane], [b"%d" % at + b"x" * 1000])
    assert bench.store.settle_down()
    for at in range(61):
        if at % 10:
            lane.settle(at, 1)
    assert bench.store.checkpoint()
    bench.tick(2.5)  # begins to compact
    compaction = probe(bench.store).compactor._compaction
    assert compaction is not None
    dying = [source.segment_id for source in compaction.sources][0 if opened else 1]
    bench.maintenance.run_one()
    bench.store.advance()
    assert probe(bench.store).compactor._compaction is not None
    lane.settle(0 if opened else 10, 11)
    assert bench.store.checkpoint() and bench.store.checkpoint()
    names = bench.disk.names(bench.directory / "log")
    assert f"{dying:010d}.qseg" not in names
    for _ in range(20):
        bench.tick(1.1)
        assert bench.store.checkpoint()
    assert probe(bench.store).compactor._compaction is None and not bench.store.take_findings()
    lane.settle(0, 61)
    for _ in range(4):
        assert bench.store.checkpoint()
        bench.tick()
        bench.tick()
    probe(bench.store).settling.wants_roll = True
    assert bench.store.checkpoint()
    bench.restart()
    assert bench.store.lsn == 61 and not contents(bench.store.lane(lane.id))
    bench.store.close()


def test_an_idle_store_gives_back_what_it_sealed_last(world: World) -> None:
    """No lane had changed since, so that no checkpoint came to look at the dead segment."""
    world.publish([0], 4, 700, True, False)
    world.drain()  # says whether anything stays


def test_an_idle_store_gives_back_what_was_settled_before_it_was_durable(world: World) -> None:
    """The last checkpoint did not reach the end of the log, and no lane had changed since."""
    world.publish([0], 60, 700, True, False)
    world.settle(0, 0.0, 100)
    world._tick(1.1)  # begins a checkpoint of what is durable: nothing
    world.drain()


def test_a_commit_that_found_the_disk_full_does_not_speak_for_now(world: World) -> None:
    world.fill_disk(0, ())
    world.publish([0], 60, 3000, True, False)
    world.tick(0.01)
    world.work(0, False)
    world.free_disk()
    assert probe(world.running).commits.busy
    assert world.running.settle_down()


def test_a_snapshot_that_is_taken_over_in_slices_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What met a shortage was tried again meanwhile, and with it the snapshot that was written."""
    monkeypatch.setattr(checkpoints, "_SLICE", 1)
    bench = Bench(tmp_path)
    store = bench.store
    for _ in range(5):
        publish(store, [new_lane(store)], [b"x"])
    under_way = probe(store).checkpoints
    under_way.begin()
    while not (under_way.stepping and under_way.snapshot and under_way.snapshot.sealed):
        store.commit()
        assert sum(worker.run_one() for worker in bench.workers) or under_way.stepping
        store.take()
    under_way.resume()
    assert not any(worker.jobs for worker in bench.workers)
    assert store.checkpoint()
    bench.store.close()


def test_runs_are_not_joined_over_the_end_of_a_snapshot_that_is_gathering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message of the snapshot became part of a run behind it: the index never got it, and after
    kill -9 the log was read from behind it, so that a confirmed message was lost.
    """
    monkeypatch.setattr(checkpoints, "_SLICE", 1)
    bench = Bench(tmp_path)
    store = bench.store
    first, second = new_lane(store), new_lane(store)
    publish(store, [first], [b"x"])
    publish(store, [second], [b"A"])
    assert store.settle_down()
    publish(store, [second], [b"B"])
    under_way = probe(store).checkpoints
    under_way.begin()
    store.commit()
    assert under_way.stepping  # the first lane was gathered, the second was not
    assert bench.commits.run_one()
    store.take()
    publish(store, [second], [b"C"])  # joins what is durable
    while under_way.snapshot is not None:
        store.commit()
        assert sum(worker.run_one() for worker in bench.workers) or under_way.stepping
        store.take()
    assert store.settle_down()
    bench.restart()
    assert contents(bench.store.lane(second.id)) == {0: b"A", 1: b"B", 2: b"C"}
    bench.store.close()


def test_a_start_makes_the_last_footer_durable_though_the_checkpoint_covers_its_records(
    tmp_path: Path,
) -> None:
    """A broker may be killed after it has written a footer and before it has synced it. A power loss
    later tore that footer, and the start was refused when the segment behind was given up.
    """
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x" * 100] * 10)
    assert bench.store.settle_down()
    probe(bench.store).log.roll()
    probe(bench.store).commits.seal_rolled()
    assert bench.store.checkpoint()
    bench.kill()
    written: list[str] = []
    synced: list[str] = []
    disk = bench.disk

    def note(into: list[str], real: Callable[..., None]) -> Callable[..., None]:
        def call(file: int, *arguments: object) -> None:
            into.append(disk.names_open[file])
            real(file, *arguments)

        return call

    disk.write = note(written, disk.write)  # type: ignore[method-assign]
    disk.sync_data = note(synced, disk.sync_data)  # type: ignore[method-assign]
    bench.open()
    assert bench.store.report.records_replayed == 0
    assert "log/0000000001.qseg" in written and "log/0000000001.qseg" in synced
    bench.store.close()


def test_segments_are_sealed_in_their_order_when_one_has_to_be_tried_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    lane = new_lane(bench.store)
    for _ in range(2):
        publish(bench.store, [lane], [b"x" * 100] * 10)
        assert bench.store.settle_down()
        probe(bench.store).log.roll()
    log = probe(bench.store).log
    probe(bench.store).commits.seal_rolled()
    no_space = OSError(errno.ENOSPC, "No space left on device")
    bench.disk.fail = lambda operation: no_space if operation == "truncate" else None
    while bench.maintenance.run_one():
        if any(isinstance(result, Sealed) for result in bench.maintenance.results):
            bench.disk.fail = lambda operation: None  # only the first is refused
    bench.store.take()
    assert [segment.segment_id for segment in log.rolled] == [1, 2]
    assert not any(log.segments[segment_id].sealed for segment_id in (1, 2))
    bench.tick(1.0)
    assert bench.store.checkpoint()
    assert all(
        log.segments[segment_id].sealed for segment_id in (1, 2) if segment_id in log.segments
    )
    bench.store.close()
