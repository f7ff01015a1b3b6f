"""Messages gather in runs, however few come at once, and a lane has few runs however they came."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qlog.storage.lanes.lane import Lane
from qlog.storage.lanes.run import RUN_OVERHEAD_BYTES
from tests.storage.probe import probe
from tests.storage.support import SMALL, Bench, Envelope, contents, new_lane, publish

ROOMY = replace(
    SMALL, batch_records_max=4096, batch_bytes_max=1 << 20, cache_bytes_max=1 << 20
)  # for runs of hundreds of messages


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def runs_in(lane: Lane[Envelope]) -> int:
    return len(lane.runs())


def test_what_comes_one_by_one_in_a_batch_is_one_run_for_each_lane(bench: Bench) -> None:
    lanes = [new_lane(bench.store) for _ in range(4)]
    for at in range(16):
        publish(bench.store, [lanes[at % 4]], [b"%d" % at])
    assert [runs_in(lane) for lane in lanes] == [1] * 4
    assert bench.store.settle_down()
    for first, lane in enumerate(lanes):
        assert list(contents(lane).values()) == [b"%d" % at for at in range(first, 16, 4)]


def test_runs_of_many_batches_are_joined_when_they_are_durable(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replace(SMALL, cache_bytes_max=1 << 20))
    lanes = [new_lane(bench.store) for _ in range(3)]
    expected: list[list[bytes]] = [[], [], []]
    for at in range(60):
        for lane, bodies in zip(lanes, expected, strict=True):
            bodies.append(b"%d" % at)
            publish(bench.store, [lane], bodies[-1:])
        assert bench.store.settle_down()
    for lane, bodies in zip(lanes, expected, strict=True):
        assert runs_in(lane) <= bench.store.segment_count + 2  # a run lies in one segment
        assert list(contents(lane).values()) == bodies
    assert bench.store.checkpoint()
    bench.reopen()
    for lane, bodies in zip(lanes, expected, strict=True):
        assert list(contents(bench.store.lane(lane.id)).values()) == bodies
    bench.store.close()


def test_a_run_is_not_joined_while_a_checkpoint_has_it(bench: Bench) -> None:
    """What is joined to it then would count as being in the index."""
    lane = new_lane(bench.store)
    for at in range(4):
        publish(bench.store, [lane], [b"%d" % at])
        assert bench.store.settle_down()
    probe(bench.store).checkpoints.begin()
    bench.store.commit()
    bench.commits.run_one()
    bench.store.advance()  # the snapshot is on its way to the index
    for at in range(4, 8):
        publish(bench.store, [lane], [b"%d" % at])
        bench.store.commit()
        bench.commits.run_one()
        bench.store.advance()
    bench.maintenance.run_one()
    bench.store.advance()
    assert bench.store.checkpoint()
    assert list(contents(lane).values()) == [b"%d" % at for at in range(8)]
    bench.reopen()
    assert list(contents(bench.store.lane(lane.id)).values()) == [b"%d" % at for at in range(8)]


def test_transient_messages_that_come_one_by_one_are_one_run(bench: Bench) -> None:
    lanes = [new_lane(bench.store) for _ in range(2)]
    for at in range(8):
        for lane in lanes:
            publish(bench.store, [lane], [b"%d" % at], persistent=False)
        assert bench.store.settle_down()
    assert [runs_in(lane) for lane in lanes] == [1, 1]
    for at in range(8, 12):
        publish(bench.store, lanes, [b"%d" % at], persistent=False)
    assert [runs_in(lane) for lane in lanes] == [2, 2]
    publish(bench.store, lanes[:1], [b"12"], persistent=False)
    publish(bench.store, lanes, [b"13"], persistent=False)
    for lane in lanes:
        expected = [b"%d" % at for at in range(14) if at != 12 or lane is lanes[0]]
        assert list(contents(lane).values()) == expected


@pytest.mark.parametrize("lane_count", [1, 3])
def test_a_transient_run_most_of_which_is_settled_does_not_grow(
    tmp_path: Path, lane_count: int
) -> None:
    """It would never leave memory while its last message waits, and be spilled with the others."""
    bench = Bench(tmp_path, ROOMY)
    lanes = [new_lane(bench.store) for _ in range(lane_count)]
    body = b"x" * 100
    last = 399
    for at in range(last + 1):
        publish(bench.store, lanes if at % 2 else lanes[::-1], [body], persistent=False)
        for lane in lanes if at else []:
            lane.settle(at - 1, 1, len(body))
    assert probe(bench.store).cache.transient_bytes < 8 * RUN_OVERHEAD_BYTES
    assert bench.store.checkpoint()
    spilled = b"".join(path.read_bytes() for path in (bench.directory / "spill").iterdir())
    assert 1 <= spilled.count(body) < 20
    assert [contents(lane) for lane in lanes] == [{last: body}] * lane_count
    bench.store.close()


def test_a_transient_run_grows_while_one_of_its_lanes_needs_all_of_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ROOMY)
    lanes = [new_lane(bench.store) for _ in range(2)]
    for at in range(100):
        publish(bench.store, lanes, [b"x" * 100], persistent=False)
        if at:
            lanes[1].settle(at - 1, 1, 100)
    assert [runs_in(lane) for lane in lanes] == [1, 1]
    bench.store.close()


def test_a_transient_run_does_not_grow_while_a_checkpoint_has_it(bench: Bench) -> None:
    """What came later would count as being on disk, and be forgotten."""
    lane = new_lane(bench.store)
    for at in range(4):
        publish(bench.store, [lane], [b"%d" % at], persistent=False)
    probe(bench.store).checkpoints.begin()
    bench.store.commit()
    bench.commits.run_one()
    bench.store.advance()  # the snapshot is on its way to the index
    for at in range(4, 8):
        publish(bench.store, [lane], [b"%d" % at], persistent=False)
    assert runs_in(lane) == 2
    bench.maintenance.run_one()
    bench.store.advance()
    publish(bench.store, [lane], [b"8"], persistent=False)
    assert bench.store.checkpoint()
    publish(bench.store, [lane], [b"9"], persistent=False)
    assert list(contents(lane).values()) == [b"%d" % at for at in range(10)]


def test_what_goes_to_other_lanes_beside_it_keeps_its_place(bench: Bench) -> None:
    one, two = new_lane(bench.store), new_lane(bench.store)
    publish(bench.store, [one], [b"a"])
    publish(bench.store, [one, two], [b"b"])
    publish(bench.store, [one], [b"c"])
    publish(bench.store, [two], [b"d"])
    publish(bench.store, [one, two], [b"e"])
    assert bench.store.settle_down() and bench.store.checkpoint()
    bench.reopen()
    lane_one, lane_two = bench.store.lane(one.id), bench.store.lane(two.id)
    assert list(contents(lane_one).values()) == [b"a", b"b", b"c", b"e"]
    assert list(contents(lane_two).values()) == [b"b", b"d", b"e"]


def test_a_run_that_was_read_to_its_end_and_grew_is_read_on(bench: Bench) -> None:
    lane = new_lane(bench.store)
    publish(bench.store, [lane], [b"a"])
    assert list(contents(lane).values()) == [b"a"]
    publish(bench.store, [lane], [b"b"])
    assert runs_in(lane) == 1
    assert bench.store.settle_down()
    found = lane.read(1, 10, 1 << 20)
    assert found is not None and found.bodies == [b"b"]
    assert bench.store.cache_bytes == 0  # read to its end, and durable


def test_a_run_all_of_which_is_settled_is_written_all_the_same(bench: Bench) -> None:
    lane, other = new_lane(bench.store), new_lane(bench.store)
    publish(bench.store, [lane], [b"gone"])
    publish(bench.store, [other], [b"kept"])
    lane.settle(0, 1, 4)
    publish(bench.store, [lane], [b"next"])
    assert bench.store.settle_down()
    bench.reopen()
    assert list(contents(bench.store.lane(lane.id)).values()) == [b"next"]
    assert list(contents(bench.store.lane(other.id)).values()) == [b"kept"]


@given(st.lists(st.tuples(st.sampled_from("pstTcf"), st.integers(0, 6)), max_size=60))
def test_lanes_hold_what_was_appended_however_it_gathers(steps: list[tuple[str, int]]) -> None:
    """p: publish to one lane, f: to two, t, T: transient, s: settle the oldest, c: commit."""
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory) / "data")
        lanes = [new_lane(bench.store) for _ in range(3)]
        models: list[dict[int, bytes]] = [{}, {}, {}]
        for serial, (step, number) in enumerate(steps):
            at = number % 3
            body = b"%d" % serial + b"x" * number
            if step in "pftT":
                chosen = [at, (at + 1) % 3] if step in "fT" else [at]
                for lane_at in chosen:
                    models[lane_at][lanes[lane_at].next_qseq] = body
                publish(bench.store, [lanes[at] for at in chosen], [body], persistent=step in "pf")
            elif step == "s" and models[at]:
                qseq = min(models[at])
                assert lanes[at].settle(qseq, 1, len(models[at].pop(qseq))) == 1
            elif step == "c":
                assert bench.store.settle_down() if number else bench.store.checkpoint()
            for lane, model in zip(lanes, models, strict=True):
                assert lane.alive == len(model)
                assert lane.alive_bytes == sum(map(len, model.values()))
        for lane, model in zip(lanes, models, strict=True):
            assert contents(lane, 3) == model
        bench.store.close()
