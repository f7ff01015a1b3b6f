"""What the simulated disk and the kill loops found, each by its name.

The random search that finds such things again is `python -m tests.simulation`.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.lives import scratch
from tests.simulation.world import Fate, World
from tests.storage.support import SMALL, Bench, new_lane, publish

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
    assert world.running._checkpoint_full
    world.free_disk()
    world.reopen(Fate(power=False))
    assert world.running.report.records_replayed == 0


def test_an_orderly_stop_ends_although_the_catalog_has_no_space(world: World) -> None:
    world.publish([0], 5, 30, True, False)
    world.fill_disk(100_000, CATALOG)
    world.reopen(Fate())
    world.read_all(0, False)


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
        bench.store._ledger_wants_roll = True
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
