"""Transient messages on disk: what is gone gives its space back, whatever was around it."""

import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from qlog.storage.index.index import SPILL, Live
from qlog.storage.lanes.lane import Lane
from qlog.storage.space.spilled import choose_spilled
from tests.storage.probe import probe
from tests.storage.support import SMALL, Bench, Envelope, contents, envelope, new_lane, publish
from tests.storage.test_compact import settle_down

EAGER = replace(SMALL, compact_bytes_per_s=1 << 40, cache_bytes_max=0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, EAGER)


def spill_files(bench: Bench) -> list[Path]:
    return sorted((bench.directory / "spill").iterdir())


def spilled_bytes(bench: Bench) -> int:
    return sum(path.stat().st_size for path in spill_files(bench))


def transients(bench: Bench, lanes: list[Lane[Envelope]], bodies: list[bytes]) -> None:
    """Messages that a checkpoint pages out."""
    publish(bench.store, lanes, bodies, persistent=False)
    assert bench.store.checkpoint()


def test_a_small_message_that_stays_keeps_no_file(bench: Bench) -> None:
    keep, bulk = new_lane(bench.store), new_lane(bench.store)
    for number in range(30):
        transients(bench, [keep], [b"%d" % number])
        transients(bench, [bulk], [b"x" * 1000] * 16)
        bulk.settle(16 * number, 16)
        settle_down(bench, 5.0)
        assert spilled_bytes(bench) < 2 * EAGER.segment_bytes_max
        assert len(spill_files(bench)) < 12
    assert contents(keep) == {number: b"%d" % number for number in range(30)}
    keep.settle(0, 30)
    settle_down(bench, 5.0)
    assert spilled_bytes(bench) < EAGER.segment_bytes_max and len(spill_files(bench)) <= 1
    bench.store.close()


def test_what_is_left_can_be_read_at_every_step(bench: Bench) -> None:
    """Several lanes, due times, large and small bodies; settled, read and dropped meanwhile."""
    choice = random.Random(3)
    lanes = [new_lane(bench.store) for _ in range(4)]
    alive: list[dict[int, bytes]] = [{} for _ in lanes]
    targets: set[int | None] = set()
    for number in range(60):
        some = choice.sample(range(len(lanes)), choice.randrange(1, len(lanes) + 1))
        count = choice.randrange(1, 8)
        bodies = [
            b"%d:%d" % (number, at) + b"x" * choice.choice((0, 9, 3000)) for at in range(count)
        ]
        for lane in some:
            first = lanes[lane].next_qseq
            alive[lane].update((first + at, body) for at, body in enumerate(bodies))
        bench.store.append(
            [lanes[lane] for lane in some],
            [envelope(b"key%d" % (number % 3))] * count,
            bodies,
            persistent=False,
            now_ms=1000 + number,
            dues_ms=[5000 + at for at in range(count)] if number % 4 == 0 else None,
        )
        for owner, messages in zip(lanes, alive, strict=True):
            for qseq in [qseq for qseq in messages if choice.random() < 0.2]:
                owner.settle(qseq, 1)
                del messages[qseq]
        for _ in range(choice.randrange(8)):
            bench.tick(0.5)
            bench.store.commit()
            for worker in bench.workers:
                worker.run_one()
            bench.store.advance()
            targets.add(probe(bench.store).compactor.target)
            assert [contents(lane) for lane in lanes] == alive
        if number == 40:
            bench.store.drop(lanes.pop())
            alive.pop()
    settle_down(bench)
    size = sum(live.size for id_, live in probe(bench.store).live.items() if id_ >= SPILL)
    assert spilled_bytes(bench) < 2 * size + 2 * EAGER.segment_bytes_max
    assert [contents(lane) for lane in lanes] == alive
    dues = {
        (due.lane_id, due.qseq) for some in bench.store.due(10_000, 10_000) for due in some.each()
    }
    assert dues <= {
        (lane.id, qseq) for lane, some in zip(lanes, alive, strict=True) for qseq in some
    }
    assert bench.store.take_findings() == [] and len(targets) > 3
    bench.restart()
    assert not spill_files(bench)
    bench.store.close()


def test_a_damaged_file_of_spill_is_left_as_it_is_and_reported(bench: Bench) -> None:
    keep, bulk = new_lane(bench.store), new_lane(bench.store)
    transients(bench, [keep], [b"stays"])
    transients(bench, [bulk], [b"x" * 1000] * 16)
    transients(bench, [bulk], [b"x" * 1000] * 4)  # in the next file
    path = spill_files(bench)[0]
    data = bytearray(path.read_bytes())
    data[data.index(b"stays")] ^= 1
    path.write_bytes(data)
    bulk.settle(0, 20)
    settle_down(bench, 5.0)
    assert path in spill_files(bench)
    assert bench.store.take_findings() == [
        f"{path} is damaged and is not compacted; check the disk"
    ]
    bench.store.close()


def test_without_space_a_file_of_spill_waits(bench: Bench) -> None:
    keep, bulk = new_lane(bench.store), new_lane(bench.store)
    transients(bench, [keep], [b"stays"])
    transients(bench, [bulk], [b"x" * 1000] * 16)
    transients(bench, [bulk], [b"x" * 1000] * 4)
    first = spill_files(bench)[0]
    bulk.settle(0, 20)
    written = bench.disk.write

    def write(file: int, buffers: list[bytes], offset: int) -> None:
        if bench.disk.names_open[file].startswith("spill/"):
            raise OSError(28, "No space left on device")
        written(file, buffers, offset)

    bench.disk.write = write  # type: ignore[method-assign, assignment]
    settle_down(bench, 5.0)
    assert first in spill_files(bench) and contents(keep) == {0: b"stays"}
    bench.disk.write = written  # type: ignore[method-assign]
    settle_down(bench, 70.0)
    assert first not in spill_files(bench) and contents(keep) == {0: b"stays"}
    bench.store.close()


@pytest.mark.parametrize(
    ("sizes", "alive", "chosen"),
    [
        ([1000, 1000], [500, 600], []),  # half of them is alive
        ([1000, 1000], [499, 0], [0]),  # what is dead goes by itself
        ([1000, 1000, 1000], [400, 400, 400], [0, 1]),  # no more than fit in one
        ([14, 14], [1, 1], [0, 1]),
        ([7, 7], [1, 1], []),  # too little to gain
        ([100] * 7, [100] * 7, []),
        ([100] * 8, [100] * 8, list(range(8))),  # many small ones become one
        ([200] * 20, [200] * 20, []),
    ],
)
def test_which_files_are_compacted(sizes: list[int], alive: list[int], chosen: list[int]) -> None:
    files = {SPILL + at: size for at, size in enumerate(sizes)}
    live = {SPILL + at: Live(min(size, 1), size) for at, size in enumerate(alive)}
    segments = choose_spilled(files, live, 1000)
    assert [one.segment_id - SPILL for one in segments] == chosen
    assert all(one.log_end == files[one.segment_id] for one in segments)
