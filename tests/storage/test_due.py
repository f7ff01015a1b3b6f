"""Messages that are due: in order, once, found again after a start, and no weight in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from qlog.storage.errors import CorruptLog
from qlog.storage.index import checkpoints
from qlog.storage.index import due as due_module
from tests.storage.probe import probe
from tests.storage.support import Bench, new_lane, publish

HOUR_MS = 3_600_000


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def qseqs(bench: Bench, until_ms: int, count_max: int = 1000) -> list[int]:
    return [due.qseq for due in bench.store.due(until_ms, count_max)]


def test_they_come_in_the_order_of_their_times_and_once(bench: Bench) -> None:
    lane = new_lane(bench.store)
    assert bench.store.next_due_ms is None
    publish(bench.store, [lane], [b"%d" % at for at in range(6)], dues_ms=[50, 10, 30, 30, 60, 20])
    assert bench.store.next_due_ms == 10
    assert qseqs(bench, 9) == []
    assert qseqs(bench, 30, 2) == [1, 5]
    assert bench.store.checkpoint()
    assert qseqs(bench, 30) == [2, 3]  # from the index now
    assert qseqs(bench, 30) == []
    assert bench.store.next_due_ms == 50
    lane.settle(0, 1)
    assert qseqs(bench, 100) == [4]


def test_a_message_with_many_lanes_is_due_in_each(bench: Bench) -> None:
    lanes = [new_lane(bench.store), new_lane(bench.store)]
    publish(bench.store, lanes[1:], [b"before"])
    publish(bench.store, lanes, [b"both"], dues_ms=[5])
    assert bench.store.due(5, 10) == [(5, lanes[0].id, 0), (5, lanes[1].id, 1)]


@pytest.mark.parametrize("taken_first", [True, False])
def test_one_that_is_due_before_what_was_given_out_is_not_forgotten(
    bench: Bench, taken_first: bool
) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"first"], dues_ms=[100])
    assert qseqs(bench, 100) == [0]
    publish(bench.store, [lane], [b"late"], dues_ms=[40])
    if taken_first:
        assert qseqs(bench, 100) == [1]
    for _ in range(3):
        assert bench.store.checkpoint()
    assert qseqs(bench, 100) == ([] if taken_first else [1])
    assert qseqs(bench, 100) == []


def test_what_is_not_durable_when_a_checkpoint_begins_stays_in_memory(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"first"], dues_ms=[10])
    assert bench.store.settle_down()
    publish(bench.store, [lane], [b"second", b"third"], dues_ms=[20, 5])
    assert bench.store.checkpoint()
    assert qseqs(bench, 20) == [2, 0, 1]


def test_a_start_finds_them_again_and_those_that_were_given_out(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"%d" % at for at in range(4)], dues_ms=[1, 2, 3, HOUR_MS])
    publish(bench.store, [lane], [b"transient"], persistent=False, dues_ms=[2])
    assert bench.store.checkpoint()
    assert qseqs(bench, 2) == [0, 1, 4]
    lane.settle(0, 1)
    assert bench.store.settle_down()
    for _ in range(2):
        bench.restart()
        assert qseqs(bench, 100) == [1, 2]
        assert bench.store.next_due_ms == HOUR_MS


def test_many_that_wait_cost_no_memory(bench: Bench) -> None:
    lane = new_lane(bench.store)
    for start in range(0, 2000, 100):
        dues = [HOUR_MS + start + at for at in range(100)]
        publish(bench.store, [lane], [b"x"] * 100, dues_ms=dues)
        assert bench.store.settle_down()
    assert bench.store.checkpoint()
    due = probe(bench.store).due
    for young in (due._young, due._gathered):
        assert not young.heap and not young.added
    assert bench.store.next_due_ms == HOUR_MS
    assert len(due._rows or ()) <= due_module._PAGE_ROWS
    found: list[int] = []
    while part := qseqs(bench, 2 * HOUR_MS, 300):
        found += part
    assert found == list(range(2000))


def test_a_call_passes_over_so_many_settled_ones_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(due_module, "_LOOKS_MAX", 10)
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"] * 15, dues_ms=list(range(1, 16)))
    lane.settle(0, 14)
    assert qseqs(bench, 100, 1) == []
    assert bench.store.next_due_ms == 12
    assert qseqs(bench, 100, 1) == [14]


def test_a_lane_that_is_dropped_takes_its_rows_along(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"] * 300, dues_ms=[10] * 300)
    assert bench.store.checkpoint()
    bench.store.drop(lane)
    assert qseqs(bench, 100) == []
    assert bench.store.checkpoint()
    assert probe(bench.store).index.due_after(None, 10) == []
    assert bench.store.next_due_ms is None


def test_a_damaged_row_is_doubt(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"], dues_ms=[10])
    assert bench.store.checkpoint()
    index = probe(bench.store).index
    with index._env.begin(write=True) as transaction:
        transaction.put(bytes(20), bytes(8), db=index._due)
    with pytest.raises(CorruptLog, match="start again, and it is rebuilt"):
        qseqs(bench, 10)
    bench.restart()
    assert bench.store.report.index_rebuilt
    assert qseqs(bench, 10) == [0]


def test_what_a_checkpoint_has_written_is_forgotten_in_pieces(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The more messages with due times it had, the more slices."""
    monkeypatch.setattr(checkpoints, "_SLICE", 10)
    lane = new_lane(bench.store)
    under_way = probe(bench.store).checkpoints
    slices = []
    for dues_ms in (None, [HOUR_MS] * 200):
        publish(bench.store, [lane], [b"x"] * 200, dues_ms=dues_ms)
        under_way.begin()
        steps = 0
        while under_way.wanted or under_way.snapshot or under_way.stepping:
            steps += under_way.stepping
            bench.store.commit()
            for worker in bench.workers:
                worker.run_one()
            bench.store.take()
        slices.append(steps)
    assert slices[1] >= slices[0] + 20
