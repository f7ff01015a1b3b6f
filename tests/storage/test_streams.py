"""Streams on the disk: whatever was published is read again at its offset, by as many as like."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from qlog.storage.errors import CorruptLog
from qlog.storage.lanes.lane import Lane
from qlog.storage.lanes.run import Slice
from qlog.storage.streams.chunks import ChunkCache, ChunkShelf
from qlog.storage.streams.format import (
    Place,
    batch_bytes,
    file_seed,
    pack_footer,
    pack_messages,
    unpack_footer,
    unpack_messages,
    unpack_trailer,
)
from qlog.storage.streams.stream import Cursor, Stream
from tests.storage.support import SMALL, Bench, Envelope, decode, envelope

SETTINGS = replace(
    SMALL,
    stream_move_bytes=4 << 10,
    stream_move_count=40,
    stream_segment_bytes=8 << 10,
    stream_batch_bytes=2 << 10,
)


def body_of(offset: int) -> bytes:
    return b"%d:" % offset + bytes(offset % 300)


class StreamBench(Bench):
    """A store with one stream, and what was published to it."""

    def __init__(self, root: Path) -> None:
        self.lane_id: int | None = None
        self.time_ms = 1000
        super().__init__(root, SETTINGS)

    def open(self) -> None:
        super().open()
        if self.lane_id is None:
            self.lane_id = self.store.new_lane_id()
            self.store.define_stream(self.lane_id)
        self.lane: Lane[Envelope] = self.store.lane(self.lane_id)
        self.stream: Stream[Envelope] = self.store.stream(self.lane)
        self.store.retain([self.lane_id])

    def publish(self, count: int, *, each: bool = False) -> None:
        first = self.lane.next_qseq
        metas = [envelope(b"key%d" % (at % 3 if each else 0)) for at in range(count)]
        bodies = [body_of(first + at) for at in range(count)]
        self.store.append([self.lane], metas, bodies, persistent=True, now_ms=self.time_ms)
        self.store.stream_touched(self.stream)
        self.time_ms += 10

    def sync(self) -> None:
        assert self.store.settle_down()

    def move(self) -> None:
        """Move all that is durable."""
        self.sync()
        while self.lane.alive:
            self.tick(1.0)
            self.maintenance.wait()
            self.store.advance()

    def read(self, first: int = 0) -> dict[int, bytes]:
        cursor: Cursor[Envelope] = Cursor(self.stream, first)
        found = {}
        while (chunk := cursor.next(self.stream.end)) is not None:
            start = cursor.offset - chunk.first
            for at in range(start, len(chunk.messages.bodies)):
                found[chunk.first + at] = chunk.messages.bodies[at]
            cursor.advance(chunk, len(chunk.messages.bodies) - start)
        cursor.close()
        return found

    def forget_memory(self) -> None:
        self.stream.shelf.clear()

    @property
    def files(self) -> list[Path]:
        return sorted((self.directory / "streams").iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[StreamBench]:
    bench = StreamBench(tmp_path)
    yield bench
    bench.store.close()


def expected(first: int, end: int) -> dict[int, bytes]:
    return {offset: body_of(offset) for offset in range(first, end)}


def test_messages_are_read_wherever_they_are(bench: StreamBench) -> None:
    bench.publish(100, each=True)
    bench.publish(100)
    assert bench.read() == expected(0, 200)
    bench.move()
    assert bench.stream.moved == 200 and len(bench.files) > 1
    bench.publish(30)
    for first in (0, 1, 57, 99, 100, 199, 200, 201, 229, 230, 500):
        bench.forget_memory()
        assert bench.read(first) == expected(first, 230)


def test_what_was_moved_leaves_the_log(bench: StreamBench) -> None:
    for _ in range(30):
        bench.publish(40)
        bench.move()
    assert bench.store.checkpoint() and bench.store.checkpoint() and bench.store.checkpoint()
    assert bench.store.segment_bytes < 3 * SETTINGS.segment_bytes_max
    assert bench.store.live_bytes == 0
    assert bench.read() == expected(0, 1200)


def test_a_stop_and_a_start_change_nothing(bench: StreamBench) -> None:
    bench.publish(100)
    bench.move()
    bench.publish(7)
    bench.reopen()
    assert (bench.stream.moved, bench.stream.end) == (100, 107)
    assert bench.read() == expected(0, 107)
    bench.move()
    bench.publish(3)
    bench.restart()
    assert bench.read() == expected(0, 107), "what was not durable is gone, without a gap"
    bench.publish(5)
    bench.move()
    assert bench.read() == expected(0, 112)


def test_times_are_found(bench: StreamBench) -> None:
    for at in range(50):
        bench.time_ms = 1000 + 100 * (at if at != 20 else 5)  # the clock was set back once
        bench.publish(3)
        if at == 40:
            bench.move()
    for _ in range(2):
        for at in range(50):
            time_ms = 1000 + 100 * at
            want = 3 * at if at != 20 else 63
            assert bench.stream.since(time_ms) == want
            assert bench.stream.since(time_ms - 50) == want
        assert bench.stream.since(0) == 0
        assert bench.stream.since(1 << 40) == 150
        bench.forget_memory()


def test_times_are_found_in_much_that_was_not_moved(
    bench: StreamBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlog.storage.streams.stream.CHUNK_COUNT", 4)
    for _ in range(60):
        bench.publish(3)
    for at in range(60):
        assert bench.stream.since(1000 + 10 * at) == 3 * at
        assert bench.stream.since(995 + 10 * at) == 3 * at
    assert bench.stream.since(1 << 40) == 180


def test_retention_takes_whole_segments_from_the_front(bench: StreamBench) -> None:
    for _ in range(40):
        bench.publish(10)
        bench.move()
    before = bench.files
    bench.stream.max_bytes = 20 << 10
    cursor = Cursor(bench.stream, 3)
    assert cursor.next(400) is not None
    for _ in range(10):
        bench.tick(10.0)
        bench.store.settle_down()
        bench.maintenance.wait()
        bench.store.advance()
    first = bench.stream.first
    assert 0 < first < 400 and bench.stream.segment_bytes_all <= 20 << 10
    assert set(bench.files) < set(before)
    bench.forget_memory()
    chunk = cursor.next(400)
    assert chunk is not None and cursor.offset == first
    assert bench.read() == expected(first, 400)
    bench.restart()
    assert bench.stream.first == first
    assert bench.read() == expected(first, 400)


def test_retention_by_age_keeps_the_last_segment(bench: StreamBench) -> None:
    for _ in range(40):
        bench.publish(10)
        bench.move()
    bench.stream.max_age_ms = 50
    assert bench.stream.excess(0) == 0
    kept = bench.stream.excess(bench.time_ms)
    assert 0 < kept < 400
    assert bench.stream.excess(1 << 40) == bench.stream.segments[-1].base >= kept


def test_a_deleted_stream_leaves_no_file(bench: StreamBench) -> None:
    other = bench.lane
    for _ in range(5):
        bench.publish(100)
        bench.move()
    assert bench.files
    bench.store.drop(other)
    bench.store.settle_down()
    bench.tick()
    bench.maintenance.wait()
    bench.store.advance()
    assert not bench.files
    bench.lane_id = None
    bench.reopen()


def test_a_deletion_that_a_crash_cut_off_is_finished(bench: StreamBench) -> None:
    bench.publish(100)
    bench.move()
    bench.store.drop(bench.lane)
    bench.store.settle_down()
    bench.lane_id = None
    bench.restart()
    assert bench.files
    bench.sync()
    bench.tick()
    bench.maintenance.wait()
    bench.store.advance()
    assert not bench.files


@pytest.mark.parametrize("operation", ["write", "sync_directory"])
def test_a_full_disk_is_tried_again(bench: StreamBench, operation: str) -> None:
    bench.publish(60)
    bench.move()
    bench.publish(60)
    bench.sync()
    full = OSError(errno.ENOSPC, "No space left on device")
    for failing in range(1, 6):
        asked = 0

        def fail(asking: str, at: int = failing) -> BaseException | None:
            nonlocal asked
            asked += asking == operation
            return full if asked == at and asking == operation else None

        bench.publish(60)
        bench.sync()
        bench.disk.fail = fail
        bench.tick(2.0)
        bench.maintenance.wait()
        bench.disk.fail = lambda asking: None
        bench.store.advance()
        assert bench.store.failure is None
        bench.forget_memory()
        assert bench.read() == expected(0, bench.stream.end)
    bench.move()
    bench.forget_memory()
    assert bench.read() == expected(0, bench.stream.end)
    bench.restart()
    assert bench.read() == expected(0, bench.stream.end)


def test_a_failed_sync_ends_the_store(bench: StreamBench) -> None:
    bench.publish(60)
    bench.sync()
    broken = OSError(errno.EIO, "Input/output error")
    bench.disk.fail = lambda asking: broken if asking == "sync_data" else None
    bench.tick(2.0)
    bench.maintenance.wait()
    bench.store.advance()
    assert bench.store.failure is not None
    bench.restart()
    assert bench.read() == expected(0, 60)


def test_damage_is_noticed_and_named(bench: StreamBench) -> None:
    bench.publish(200)
    bench.move()
    segment = bench.stream.segments[1]
    path = bench.files[1]
    data = bytearray(path.read_bytes())
    for position in random.Random(1).sample(range(64, segment.data_end), 40):
        data[position] ^= 0x40
        path.write_bytes(data)
        bench.forget_memory()
        with pytest.raises(CorruptLog, match="damaged"):
            bench.read()
        data[position] ^= 0x40
    path.write_bytes(data)
    assert bench.read() == expected(0, 200)


def test_a_missing_segment_is_named(bench: StreamBench) -> None:
    bench.publish(300)
    bench.move()
    gone = bench.stream.segments[1]
    bench.store.close()
    bench.files[1].unlink()
    bench.open()
    (finding,) = bench.store.take_findings()
    assert f"the messages {gone.base} to {gone.end - 1} of" in finding
    with pytest.raises(CorruptLog, match=f"consumers can go on at {gone.end}"):
        bench.read()
    assert bench.read(gone.end) == expected(gone.end, 300)


@pytest.mark.parametrize("cut", [1, 200, 5000])
def test_a_segment_that_lost_its_end_is_named(bench: StreamBench, cut: int) -> None:
    bench.publish(100)
    bench.move()
    bench.store.close()
    path = bench.files[-1]
    path.write_bytes(path.read_bytes()[:-cut])
    bench.open()
    (finding, *_) = bench.store.take_findings()
    assert "to 99 of the stream" in finding
    with pytest.raises(CorruptLog, match="consumers can go on at 100"):
        bench.read()
    bench.publish(20)
    bench.move()
    assert bench.read(100) == expected(100, 120)


# -- crashes: the model is a list


@pytest.mark.parametrize("seed", range(3))
def test_a_life_with_kills(tmp_path: Path, seed: int) -> None:
    """Offsets have no gaps, and no message is lost or doubled, wherever the process is killed."""
    chance = random.Random(seed)
    bench = StreamBench(tmp_path)
    for _ in range(8):
        durable = bench.stream.end
        for _ in range(chance.randrange(1, 8)):
            bench.publish(chance.randrange(1, 60), each=chance.random() < 0.5)
            match chance.randrange(4):
                case 0:
                    bench.move()
                    durable = bench.stream.end
                case 1:
                    bench.sync()
                    durable = bench.stream.end
                    bench.tick(1.0)
                    if chance.random() < 0.5:
                        bench.maintenance.run_one()
                case 2:
                    bench.sync()
                    durable = bench.stream.end
        if chance.random() < 0.3:
            bench.store.checkpoint()
            durable = bench.stream.end
        operations = chance.randrange(1, 12)

        def fail(asking: str, left: list[int] = [operations]) -> BaseException | None:  # noqa: B006
            left[0] -= 1
            return OSError(errno.EIO, "the process was killed here") if left[0] <= 0 else None

        bench.disk.fail = fail
        try:
            bench.tick(1.0)
            bench.maintenance.wait()
            bench.store.advance()
        except OSError:
            pass
        bench.restart()
        assert not bench.store.take_findings()
        assert bench.stream.end >= durable
        assert bench.read() == expected(0, bench.stream.end)
    bench.store.close()


# -- the parts


def messages_of(bodies: list[bytes], packed: list[bytes], first: int = 5) -> Slice[Envelope]:
    made: Slice[Envelope] = Slice(first)
    made.add(
        list(map(envelope, packed)),
        bodies,
        range(10, 10 + len(bodies)),
        list(map(len, bodies)),
        None,
    )
    return made


@pytest.mark.parametrize("kinds", [1, 2, 7])
def test_a_batch_gives_its_messages(kinds: int) -> None:
    bodies = [body_of(at) for at in range(7)] + [b""]
    packed = [b"m%d" % (at % kinds) for at in range(8)]
    messages = messages_of(bodies, packed)
    buffers = pack_messages(file_seed(b"u" * 16, 1, 0), 64, 1, messages, 17)
    assert sum(map(len, buffers)) <= batch_bytes(messages)
    assert unpack_messages(buffers[1], 5, 8, decode) == messages


def test_a_footer_gives_its_places() -> None:
    seed = file_seed(b"u" * 16, 1, 0)
    places = [Place(0, 64, 7), Place(100, 99_000, 9)]
    data = pack_footer(seed, 5000, places, 200, 9)
    trailer = unpack_trailer(seed, data[-64:], 5000 + len(data) - 64)
    assert trailer is not None and (trailer.end, trailer.latest_ms) == (200, 9)
    assert unpack_footer(seed, trailer, data[:-64]) == places
    assert unpack_footer(seed, trailer, bytes(len(data) - 64)) is None
    assert unpack_trailer(seed, data[-64:], 5001 + len(data) - 64) is None
    assert unpack_trailer(seed ^ 1, data[-64:], 5000 + len(data) - 64) is None


@pytest.mark.parametrize("seed", range(8))
def test_chunks_stay_within_their_bound_and_never_overlap(seed: int) -> None:
    chance = random.Random(seed)
    cache: ChunkCache[Envelope] = ChunkCache(20_000)
    shelves = [ChunkShelf(cache) for _ in range(3)]
    for _ in range(300):
        shelf = chance.choice(shelves)
        first, count = chance.randrange(100), chance.randrange(1, 20)
        made = messages_of([body_of(first + at) for at in range(count)], [b"m"] * count, first)
        shelf.add(made, None)
        assert cache.bytes <= 20_000
        found = shelf.find(first)
        assert found is not None and found.messages is made
        for offset in range(120):
            chunk = shelf.find(offset)
            if chunk is not None:
                assert chunk.messages.bodies[offset - chunk.first] == body_of(offset)
    for shelf in shelves:
        shelf.clear()
    assert cache.bytes == 0
