"""One message to very many lanes: what is written fits in a system call, and costs stay the same."""

import gc
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from qlog.storage.index.checkpoint import Snapshot, gather
from qlog.storage.settings import StoreSettings
from qlog.storage.store import Store
from tests.costs import bytecodes
from tests.storage.probe import probe
from tests.storage.support import (
    SMALL,
    Bench,
    Envelope,
    ManualWorker,
    contents,
    decode,
    envelope,
    ignore,
    new_lane,
    publish,
)

LANES = 2100  # 25 KB of targets a record
MESSAGES = 400  # three pieces each would be more than the 1024 buffers of one write


def test_a_run_to_thousands_of_lanes_is_written(tmp_path: Path) -> None:
    store: Store[Envelope] = Store.open(tmp_path, decode=decode, notify=ignore)
    lanes = [store.lane(store.new_lane_id()) for _ in range(LANES)]
    bodies = [b"%d" % number for number in range(MESSAGES)]
    store.append(lanes, [envelope()] * MESSAGES, bodies, persistent=True, now_ms=1)
    assert store.settle_down()
    assert store.failure is None
    assert store.durable_lsn == store.lsn == MESSAGES
    store.close()
    store = Store.open(tmp_path, decode=decode, notify=ignore)
    for lane_id in (lanes[0].id, lanes[-1].id):
        found = store.lane(lane_id).read(0, MESSAGES, 1 << 30)
        assert found is not None
        assert list(found.bodies) == bodies
    store.close()


def test_a_checkpoint_of_many_runs_is_little_to_the_collector(tmp_path: Path) -> None:
    """It would look at all of them, again and again, for up to 80 ms."""
    bench = Bench(tmp_path, replace(SMALL, cache_bytes_max=1 << 30))
    lanes = [new_lane(bench.store) for _ in range(50)]
    for number in range(40):
        publish(bench.store, lanes, [b"%d" % number])
        assert bench.store.settle_down()
    snapshot: Snapshot[Envelope] = Snapshot(bench.store.durable_lsn, 1, 0)
    gc.disable()
    try:
        gc.collect()
        before = gc.get_count()[0]
        for lane in lanes:
            for _ in gather(snapshot, lane):
                pass
        counted = gc.get_count()[0] - before
    finally:
        gc.enable()
    placed = sum(len(update.placed) for update in snapshot.updates)
    assert placed >= 50 * 20 and counted < placed / 2


def test_a_checkpoint_costs_the_same_however_many_messages_wait_in_memory(tmp_path: Path) -> None:
    """Messages to two lanes stay runs of their own; each checkpoint brings as many new ones."""
    bench = Bench(tmp_path, replace(SMALL, cache_bytes_max=1 << 30))
    lanes = [new_lane(bench.store), new_lane(bench.store)]
    costs = []
    published = 0
    for upto in (100, 200, 400, 800):
        while published < upto:
            for _ in range(10):
                publish(bench.store, lanes, [b"%d" % published])
                published += 1
                assert bench.store.settle_down()
            lsn = bench.store.durable_lsn
            cost = bytecodes(lambda: [lanes[0].durable_upto(lsn), lanes[0].unindexed(lsn)])  # noqa: B023
            assert bench.store.checkpoint()
            cost += bytecodes(lanes[0].forget_indexed)
            cost += bytecodes(lambda: publish(bench.store, lanes, [b""]))
            published += 1
        costs.append(cost)
    assert len(lanes[0].runs()) > 700
    assert max(costs) < 1.5 * min(costs), costs
    bench.store.close()


def test_what_leaves_memory_leaves_its_lanes(tmp_path: Path) -> None:
    """Also behind a message that nobody takes; the rest can be read as before."""
    bench = Bench(tmp_path, replace(SMALL, cache_bytes_max=1 << 30))
    lanes = [new_lane(bench.store), new_lane(bench.store)]
    for number in range(200):
        publish(bench.store, lanes, [b"%d" % number])
        assert bench.store.settle_down()
        for lane in lanes if number % 50 else ():
            lane.settle(number, 1)
        assert bench.store.checkpoint()
    kept = {number: b"%d" % number for number in range(0, 200, 50)}
    runs = lanes[0].runs()
    assert len(runs) == 200
    for _, run in runs[1:]:  # the first stays in memory
        probe(bench.store).cache.drop(run)
    for _ in range(200):
        publish(bench.store, lanes, [b"new"])
        assert bench.store.settle_down() and bench.store.checkpoint()
    firsts = [first for first, _ in lanes[0].runs()]
    assert firsts == [0, *range(200, 400)]
    for lane in lanes:
        assert contents(lane) == kept | dict.fromkeys(range(200, 400), b"new")
    bench.store.close()


@pytest.mark.parametrize("persistent", [True, False])
def test_a_checkpoint_of_very_many_runs_is_sliced(tmp_path: Path, persistent: bool) -> None:
    """One lane shares messages with two others in turn, so that each message is a run.

    The processor time of the loop's thread counts; what the other threads do does not.
    """
    workers: list[ManualWorker] = []

    def new_worker(name: str, notify: Callable[[], None]) -> ManualWorker:
        workers.append(ManualWorker())
        return workers[-1]

    store: Store[Envelope] = Store.open(
        tmp_path,
        decode=decode,
        notify=ignore,
        settings=StoreSettings(checkpoint_interval_s=100.0, compact_share_max=0.0),
        new_worker=new_worker,
    )
    first, *others = [store.lane(store.new_lane_id()) for _ in range(3)]
    longest_s = 0.0

    def turn(now_s: float) -> None:
        nonlocal longest_s
        for call in (lambda: store.tick(now_s), store.take, store.commit):
            began_s = time.thread_time()
            call()
            longest_s = max(longest_s, time.thread_time() - began_s)
        for worker in workers:
            worker.run_one()

    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for number in range(50_000):
            lanes = [first, others[number % 2]]
            store.append(lanes, [envelope()], [b"x"], persistent=persistent, now_ms=1)
            if number % 50 == 0:
                turn(1.0)
        for at in range(400):
            turn(100.0 + at)
    finally:
        gc.enable()
        gc.unfreeze()
    assert probe(store).index.lanes()[first.id].placed_upto == 50_000
    assert longest_s < 0.060  # in one go it takes twice that, on a quick machine
    store.close()
