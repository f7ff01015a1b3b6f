"""A damaged index is rebuilt, whenever the damage is found; it never costs a message or a start."""

import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from qlog.storage.errors import CorruptLog
from qlog.storage.index.index import Index
from qlog.storage.index.rows import IndexDoubt
from qlog.storage.lmdb.file_check import Implausible, check
from qlog.storage.space.compact import CompactionStep
from qlog.storage.store import Store
from tests.storage.probe import probe
from tests.storage.support import (
    SMALL,
    Bench,
    Envelope,
    ManualWorker,
    abandon,
    contents,
    decode,
    ignore,
    new_lane,
    publish,
)

_PAGE = struct.Struct("=QHHHH")  # number, 0, flags, lower, upper (overflow: a count in their place)
_LEAF, _OVERFLOW, _DIRTY = 2, 4, 16
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
pytestmark = pytest.mark.skipif(_PAGE_BYTES > 4096, reason="blocks fit into larger pages")

Messages = dict[int, dict[int, bytes]]  # by lane and qseq


def filled(bench: Bench) -> Messages:
    """Two lanes with full blocks in the index, and acks behind its checkpoint."""
    lanes = [new_lane(bench.store), new_lane(bench.store)]
    for start in range(0, 1500, 50):
        publish(bench.store, lanes, [b"%d" % (start + at) for at in range(50)])
        assert bench.store.settle_down()
    assert bench.store.checkpoint()
    lanes[0].settle(0, 600)
    lanes[1].settle(700, 9)
    assert bench.store.settle_down()
    return {lane.id: contents(lane) for lane in lanes}


def pages_of(data: bytes, kind: int) -> list[int]:
    """Where the pages of a kind begin in LMDB's file; some may be free by now."""
    heads = ((at, _PAGE.unpack_from(data, at)) for at in range(0, len(data), _PAGE_BYTES))
    return [at for at, head in heads if head[0] * _PAGE_BYTES == at and head[2] == kind]


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def soil(path: Path, *kinds: int) -> None:
    """In a file that LMDB has open: pages claim to be dirty, upon which it calls them corrupt."""
    data = path.read_bytes()
    file = os.open(path, os.O_WRONLY)
    try:
        for kind in kinds:
            for at in pages_of(data, kind):
                number, pad, flags, lower, upper = _PAGE.unpack_from(data, at)
                os.pwrite(file, _PAGE.pack(number, pad, flags | _DIRTY, lower, upper), at)
    finally:
        os.close(file)


def index_file(bench: Bench) -> Path:
    return bench.directory / "index.lmdb" / "data.mdb"


def opened(directory: Path) -> Store[Envelope]:
    return Store.open(
        directory,
        decode=decode,
        notify=ignore,
        settings=SMALL,
        new_worker=lambda name, notify: ManualWorker(),
    )


def started(directory: Path) -> tuple[bool, Messages]:
    """Whether the index was rebuilt, and what is there; also after work that frees blocks."""
    store = opened(directory)
    try:
        lanes = [store.lane(1), store.lane(2)]
        found = {lane.id: contents(lane) for lane in lanes}
        more = [b"more"] * 20
        publish(store, lanes, more)
        lanes[0].settle(900, 300)
        assert store.checkpoint()
        assert [contents(lane)[1519] for lane in lanes] == more[:2]
        return bool(store.report.index_rebuilt), found
    except CorruptLog:  # damage that only a read of this message comes upon
        assert (directory / "index.doubt").exists()
    finally:
        abandon(store)
    again = directory.with_name(directory.name + "-again")  # LMDB opens one place once a process
    directory.rename(again)
    rebuilt, found = started(again)
    assert rebuilt
    again.rename(directory)
    return rebuilt, found


def test_any_flipped_bit_of_the_header_of_a_large_value_is_seen(tmp_path: Path) -> None:
    """LMDB gives free as many pages as it says there, of others too, or ends the process."""
    bench = Bench(tmp_path)
    filled(bench)
    bench.kill()
    path = index_file(bench)
    data = path.read_bytes()
    check(path)
    for at in pages_of(data, _OVERFLOW)[:2]:
        seen = 0
        for bit in range(8 * _PAGE.size):
            path.write_bytes(flipped(data, 8 * at + bit))
            try:
                check(path)
            except Implausible:
                seen += 1
            else:
                assert 64 <= bit < 80  # not used
        assert seen in (0, 112)  # one that is free is nobody's


def test_a_start_is_good_whatever_bit_of_the_index_is_flipped(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    due = filled(bench)
    bench.kill()
    data = index_file(bench).read_bytes()
    choice = random.Random(3)
    header_bits = [8 * 12 + bit for bit in (0, 4, 8, 16, 24, 31)]
    header_bits += [8 * 10 + 2, 8 * 10 + 4, 0, 3, 40]
    bits = [8 * choice.choice(pages_of(data, _OVERFLOW)) + bit for bit in header_bits]
    leaves = pages_of(data, _LEAF)
    bits += [8 * (choice.choice(leaves) + choice.randrange(200)) + bit for bit in range(8)]
    bits += [choice.randrange(8 * len(data)) for _ in range(20)]
    rebuilt = 0
    for bit in bits:
        directory = tmp_path / f"flipped{bit}"
        shutil.copytree(bench.directory, directory)
        (directory / "index.lmdb" / "data.mdb").write_bytes(flipped(data, bit))
        was_rebuilt, found = started(directory)
        assert found == due, f"bit {bit}"
        rebuilt += was_rebuilt
        shutil.rmtree(directory)
    assert rebuilt >= 9


def read_cold(bench: Bench) -> None:
    with pytest.raises(CorruptLog, match="start again, and it is rebuilt"):
        contents(bench.store.lane(2))
    bench.disk.fail = lambda operation: None


def read_cold_without_a_mark(bench: Bench) -> None:
    bench.disk.fail = lambda operation: (
        OSError(5, "Input/output error") if operation == "sync_directory" else None
    )
    read_cold(bench)


def make_a_checkpoint(bench: Bench) -> None:
    bench.store.lane(1).settle(600, 300, 900)
    assert not bench.store.checkpoint()


@pytest.mark.parametrize("find", [read_cold, read_cold_without_a_mark, make_a_checkpoint])
def test_damage_that_is_found_while_it_runs_ends_the_broker_and_the_next_start_rebuilds(
    tmp_path: Path, find: Callable[[Bench], None]
) -> None:
    bench = Bench(tmp_path)
    filled(bench)
    bench.restart()
    soil(index_file(bench), _LEAF, _OVERFLOW)
    find(bench)
    failure = bench.store.failure
    assert isinstance(failure, CorruptLog) and isinstance(failure.__cause__, IndexDoubt)
    assert str(bench.directory / "index.lmdb") in str(failure) and "\n" not in str(failure)
    assert (bench.directory / "index.doubt").exists()
    bench.restart()
    assert bench.store.report.index_rebuilt
    for lane in (bench.store.lane(1), bench.store.lane(2)):
        assert all(body == b"%d" % qseq for qseq, body in contents(lane).items())
    assert len(contents(bench.store.lane(2))) == 1491
    bench.restart()
    assert not bench.store.report.index_rebuilt
    bench.store.close()


def test_damage_that_a_compaction_finds_is_doubt_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replace(SMALL, compact_age_s=0.0))
    filled(bench)
    lane = bench.store.lane(1)
    lane.settle(600, 760)  # and so the last but one segment is mostly dead
    bench.store.lane(2).settle(0, 1360)
    for _ in range(40):
        bench.tick(0.5)
        bench.store.commit()
        bench.commits.wait()
        if probe(bench.store).compactor.working:
            break
        bench.maintenance.wait()
        bench.store.advance()
    soil(index_file(bench), _LEAF)
    bench.maintenance.wait()
    steps = [result for result in bench.maintenance.results if isinstance(result, CompactionStep)]
    assert steps and isinstance(steps[-1].failure, IndexDoubt)
    bench.store.advance()
    assert (bench.directory / "index.doubt").exists()
    assert isinstance(bench.store.failure, CorruptLog)
    bench.restart()
    assert bench.store.report.index_rebuilt
    assert contents(bench.store.lane(1)) == {at: b"%d" % at for at in range(1360, 1500)}
    bench.store.close()


def test_a_key_of_another_size_is_damage(tmp_path: Path) -> None:
    index = Index(tmp_path / "index", map_bytes=1 << 20)
    with index._env.begin(write=True) as transaction:
        for database in (index._lanes, index._segments, index._acked, index._blocks):
            transaction.put(bytes(13), b"row", db=database)
    for read in (
        index.lanes,
        index.live,
        lambda: list(index.bitmaps()),
        lambda: list(index.all_pointers()),
        lambda: index.spilled(0),
        lambda: index.placed_from(0, 0),
    ):
        with pytest.raises(IndexDoubt, match="damaged"):
            read()
    index.close()
