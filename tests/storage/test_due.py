"""Messages that are due: in order, once, found again after a start, and no weight in memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from qlog.storage.errors import CorruptLog
from qlog.storage.index import checkpoints
from qlog.storage.index import due as due_module
from qlog.storage.index.due_rows import DUE_KEY, Due
from qlog.storage.index.rows import close_row
from qlog.storage.lanes.settled import BLOCK
from tests.storage.probe import probe
from tests.storage.support import Bench, new_lane, publish

HOUR_MS = 3_600_000


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def qseqs(bench: Bench, until_ms: int, count_max: int = 1000) -> list[int]:
    return [one.qseq for due in bench.store.due(until_ms, count_max) for one in due.each()]


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
    assert bench.store.due(5, 10) == [Due(5, lanes[0].id, 0), Due(5, lanes[1].id, 1)]


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
    for dues_ms in (None, [HOUR_MS + at for at in range(200)]):
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


def due_rows(bench: Bench) -> list[Due]:
    return probe(bench.store).index.due_after(None, 10_000)


def test_messages_that_come_together_and_are_due_together_share_a_row(bench: Bench) -> None:
    """A row costs the checkpoint thread as much as some hundred messages in it."""
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"] * 600, dues_ms=[10] * 600)
    assert bench.store.settle_down()
    publish(bench.store, [lane], [b"x"] * 5, dues_ms=[10, 20, 20, 20, 10])
    assert bench.store.checkpoint()
    assert due_rows(bench) == [
        Due(10, lane.id, 0, BLOCK),
        Due(10, lane.id, BLOCK, BLOCK),
        Due(10, lane.id, 2 * BLOCK, 601 - 2 * BLOCK),
        Due(10, lane.id, 604),
        Due(20, lane.id, 601, 3),
    ]
    lane.settle(100, 50)
    lane.settle(BLOCK, BLOCK)
    assert bench.store.settle_down()
    assert bench.store.checkpoint()
    assert due_rows(bench) == [
        Due(10, lane.id, 0, 100),
        Due(10, lane.id, 150, BLOCK - 150),
        Due(10, lane.id, 2 * BLOCK, 601 - 2 * BLOCK),
        Due(10, lane.id, 604),
        Due(20, lane.id, 601, 3),
    ]
    lane.settle(0, 605)
    assert bench.store.settle_down()
    assert bench.store.checkpoint()
    assert due_rows(bench) == []


@pytest.mark.parametrize("when", ["in memory", "in both", "in the index", "after a start"])
@pytest.mark.parametrize("at_once", [1, 7, 100, 1000])
def test_those_of_a_row_may_be_given_out_bit_by_bit(bench: Bench, when: str, at_once: int) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"before"] * 3)
    publish(bench.store, [lane], [b"x"] * 700, dues_ms=[10] * 500 + [5] * 150 + [20] * 50)
    lane.settle(3, 40)
    lane.settle(300, 10)
    expected = [*range(503, 653), *range(43, 300), *range(310, 503), *range(653, 703)]
    if when == "after a start":
        assert bench.store.checkpoint()
        bench.restart()
    elif when == "in the index":
        assert bench.store.checkpoint()
    found = qseqs(bench, 20, 2 * at_once)
    if when == "in both":  # a checkpoint is taken over between two calls
        probe(bench.store).due._rows = None
        assert bench.store.checkpoint()
    for _ in range(1000):
        part = qseqs(bench, 20, at_once)
        assert len(part) <= at_once
        found += part
        if len(found) == len(expected) // 2:
            assert bench.store.checkpoint()
    assert found == expected
    assert bench.store.next_due_ms is None


def test_rows_of_earlier_versions_are_read_and_go_with_their_messages(bench: Bench) -> None:
    """They wrote a row for each message, without a count."""
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"x"] * 10, dues_ms=[10] * 10)
    assert bench.store.checkpoint()
    index = probe(bench.store).index
    with index._env.begin(write=True) as transaction:
        for qseq in range(10):
            key = DUE_KEY.pack(10, lane.id, qseq)
            transaction.put(key, close_row(key, b""), db=index._due)
    bench.restart()
    assert not bench.store.report.index_rebuilt
    lane = bench.store.lane(lane.id)
    assert due_rows(bench) == [Due(10, lane.id, qseq) for qseq in range(10)]
    assert qseqs(bench, 10, 4) == [0, 1, 2, 3]
    lane.settle(5, 2)
    assert bench.store.settle_down()
    assert bench.store.checkpoint()
    assert due_rows(bench) == [Due(10, lane.id, 0, 5), Due(10, lane.id, 7, 3)]
    assert qseqs(bench, 10) == [4, 7, 8, 9]
