"""A backup has all that was durable at its moment, whatever the store does meanwhile, or is none."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from qlog.storage.bytes.disk import OSDisk
from qlog.storage.bytes.manifest import MANIFEST, BackupError
from qlog.storage.errors import StorageError
from qlog.storage.lanes.lane import Lane
from qlog.storage.space.backup import Backup, Done, Extent
from qlog.storage.start.restore import restore
from qlog.storage.store import Store
from tests.storage.probe import probe
from tests.storage.support import (
    SMALL,
    Bench,
    Envelope,
    FaultyDisk,
    Killed,
    contents,
    decode,
    ignore,
    new_lane,
    publish,
)
from tests.storage.test_streams import StreamBench

EAGER = replace(SMALL, compact_age_s=0.0, compact_bytes_per_s=1 << 40)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A store whose disk keeps few secrets: small segments, compacted at once."""
    return Bench(tmp_path, EAGER)


def settle_down(bench: Bench, seconds: float = 30.0) -> None:
    """Let time pass until nothing happens any more."""
    end_s = bench.now_s + seconds
    while bench.now_s < end_s:
        bench.tick(0.5)
        bench.store.commit()
        for worker in bench.workers:
            worker.wait()
        bench.store.advance()
    assert bench.store.failure is None


def sync(bench: Bench) -> None:
    """Everything done so far is durable; nothing else is done for it."""
    ticket = bench.store.request_sync()
    while bench.store.synced < ticket:
        bench.store.commit()
        bench.commits.wait()
        bench.store.take()


def fill(store: Store[Envelope], lane: Lane[Envelope], count: int, name: str) -> None:
    """Messages of some 300 bytes."""
    for number in range(count):
        publish(store, [lane], [f"{name} {number} ".encode() * 20])


def pin(bench: Bench, target: Path, disk: FaultyDisk | None = None) -> tuple[Backup, Extent]:
    """A backup up to its moment: what is copied is on the disk, whatever becomes of it."""
    backup = bench.store.new_backup(target, 0)
    if disk is not None:
        backup._disk = disk
    backup.prepare()
    for _ in backup.link_sealed(bench.store.uuid, bench.store.sealed_parts()):
        pass
    sync(bench)
    extent = bench.store.extent(backup.linked)
    backup.link_rest(extent)
    return backup, extent


def back_up(bench: Bench, target: Path, disk: FaultyDisk | None = None) -> Done:
    """A whole backup."""
    backup, extent = pin(bench, target, disk)
    return backup.copy(extent)


def opened(directory: Path) -> Store[Envelope]:
    """The store of a directory that nobody has open."""
    return Store.open(directory, decode=decode, notify=ignore, settings=EAGER)


def restored(source: Path, target: Path, lane_ids: list[int]) -> list[dict[int, bytes]]:
    """What lanes have after a restore."""
    restore(OSDisk(), source, target)
    store = opened(target)
    try:
        return [contents(store.lane(lane_id)) for lane_id in lane_ids]
    finally:
        store.close()
        shutil.rmtree(target)


def test_a_backup_has_what_was_durable_at_its_moment(bench: Bench, tmp_path: Path) -> None:
    """What comes after it is not in it; what went before it does not come back."""
    first, second = new_lane(bench.store), new_lane(bench.store)
    fill(bench.store, first, 300, "a")
    fill(bench.store, second, 50, "b")
    bench.store.catalog.put("queue", "q", b"value")
    settle_down(bench)
    first.settle(0, 200)
    second.settle(7, 1)
    backup, extent = pin(bench, tmp_path / "backup")
    expected = [contents(first), contents(second)]
    assert expected[0].keys() == set(range(200, 300)) and 7 not in expected[1]
    # Meanwhile all goes on: most is settled, segments are given up and compacted.
    first.settle(200, 99)
    fill(bench.store, second, 300, "later")
    second.settle(0, 7)
    second.settle(8, 332)
    settle_down(bench, 120.0)
    done = backup.copy(extent)
    assert done.files_copied == done.files > 4
    assert restored(tmp_path / "backup", tmp_path / "new", [first.id, second.id]) == expected
    staging = probe(bench.store).paths.staging
    assert not list((staging / "log").iterdir()) and not list((staging / "ledger").iterdir())


def test_definitions_are_in_it(bench: Bench, tmp_path: Path) -> None:
    bench.store.catalog.put("queue", "before", b"value")
    backup, extent = pin(bench, tmp_path / "backup")
    bench.store.catalog.put("queue", "after", b"value")
    settle_down(bench)
    backup.copy(extent)
    restore(OSDisk(), tmp_path / "backup", tmp_path / "new")
    store = opened(tmp_path / "new")
    names = [name for name, _ in store.catalog.items("queue")]
    store.close()
    assert names == ["before"]


def test_full_segments_that_are_not_sealed_yet_are_in_it(bench: Bench, tmp_path: Path) -> None:
    lane = new_lane(bench.store)
    fill(bench.store, lane, 200, "a")
    sync(bench)
    assert len(probe(bench.store).log.segments) > 2
    assert not any(segment.sealed for segment in probe(bench.store).log.segments.values())
    backup, extent = pin(bench, tmp_path / "backup")
    settle_down(bench)
    backup.copy(extent)
    expected = contents(lane)
    assert restored(tmp_path / "backup", tmp_path / "new", [lane.id]) == [expected]


def test_an_empty_broker_has_a_backup(bench: Bench, tmp_path: Path) -> None:
    back_up(bench, tmp_path / "backup")
    assert restored(tmp_path / "backup", tmp_path / "new", []) == []


def test_the_next_backup_copies_what_is_new(bench: Bench, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    lane = new_lane(bench.store)
    fill(bench.store, lane, 400, "a")
    settle_down(bench)
    first = back_up(bench, target)
    fill(bench.store, lane, 100, "b")
    settle_down(bench)
    second = back_up(bench, target)
    assert second.files > first.files and second.bytes_copied < first.bytes_copied / 2
    lane.settle(0, 450)
    settle_down(bench, 120.0)
    third = back_up(bench, target)
    assert third.files < second.files
    named = {file["stored"] for file in json.loads((target / MANIFEST).read_text())["files"]}
    there = {f"{path.parent.name}/{path.name}" for path in target.glob("*/*")}
    assert there == named  # what is not needed any more is gone
    expected = contents(lane)
    assert restored(target, tmp_path / "new", [lane.id]) == [expected]


def test_a_segment_of_another_life_is_not_taken_for_this_one(bench: Bench, tmp_path: Path) -> None:
    """A broker that was set back makes other segments under the same names."""
    target = tmp_path / "backup"
    lane = new_lane(bench.store)
    fill(bench.store, lane, 100, "a")
    settle_down(bench)
    set_back = tmp_path / "set back"
    back_up(bench, target)
    restore(OSDisk(), target, set_back)
    fill(bench.store, lane, 200, "b")
    settle_down(bench)
    back_up(bench, target)
    bench.store.close()
    bench.generation += 1
    set_back.rename(bench.directory)
    bench.open()
    lane = bench.store.lane(lane.id)
    fill(bench.store, lane, 200, "c")
    settle_down(bench)
    back_up(bench, target)
    expected = contents(lane)
    assert len(expected) == 300
    assert restored(target, tmp_path / "new", [lane.id]) == [expected]


def _failing(
    disk: FaultyDisk, step: int, error: BaseException
) -> Callable[[str], BaseException | None]:
    return lambda operation: error if disk.operations == step else None


@pytest.mark.parametrize("error", [Killed(), OSError(errno.EIO, "Input/output error")])
def test_a_backup_that_is_broken_off_leaves_the_one_before_it(
    bench: Bench, tmp_path: Path, error: BaseException
) -> None:
    """At whatever step: the one before is whole, or the new one is; never something between."""
    target = tmp_path / "backup"
    lane = new_lane(bench.store)
    fill(bench.store, lane, 100, "a")
    settle_down(bench)
    old = contents(lane)
    for base in (None, old):
        if base is not None:
            back_up(bench, tmp_path / "base")
            lane.settle(0, 60)
            fill(bench.store, lane, 60, "b")
            settle_down(bench, 60.0)
        new = contents(lane)
        results = []
        for step in range(1, 1000):
            shutil.rmtree(target, ignore_errors=True)
            if base is not None:
                shutil.copytree(tmp_path / "base", target)
            disk = FaultyDisk()
            disk.fail = _failing(disk, step, error)
            try:
                back_up(bench, target, disk)
            except type(error):
                pass
            except StorageError:  # a sync
                assert isinstance(error, OSError)
            else:
                break
            try:
                (found,) = restored(target, tmp_path / "new", [lane.id])
            except BackupError as refused:
                assert str(refused).startswith(f"{target} has no whole backup")
                found = {}
            results.append(found)
        assert len(results) > 10
        finished = results.index(new) if new in results else len(results)
        before = old if base is not None else {}
        assert all(found == before for found in results[:finished])
        assert all(found == new for found in results[finished:])
        # What was left behind does not stand in the way of the next one.
        back_up(bench, target)
        assert restored(target, tmp_path / "new", [lane.id]) == [contents(lane)]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds its own files in /proc")
@pytest.mark.parametrize("fails", [False, True])
def test_a_backup_leaves_nothing_open(bench: Bench, tmp_path: Path, fails: bool) -> None:
    """A disk that backups go to can be taken away, and a hundred directories cost nothing."""
    fill(bench.store, new_lane(bench.store), 300, "a")
    settle_down(bench)
    target = tmp_path / "backup"
    backup, extent = pin(bench, target)
    if fails:
        (target / f"{MANIFEST}.new").mkdir()
        with pytest.raises(IsADirectoryError):
            backup.copy(extent)
    else:
        backup.copy(extent)
    opened_files = [file.readlink() for file in Path("/proc/self/fd").iterdir() if file.exists()]
    assert not [path for path in opened_files if path.is_relative_to(target)]


@pytest.mark.parametrize("moved_later", [0, 30, 200])
def test_streams_are_in_it_as_they_were(tmp_path: Path, moved_later: int) -> None:
    """Also when their last segments grow, or are sealed, before they are copied."""
    bench = StreamBench(tmp_path)
    target = tmp_path / "backup"
    for _ in range(3):  # the last time, some segments are there
        bench.publish(100, each=True)
        bench.move()
        bench.publish(40)
        expected = bench.read()
        backup, extent = pin(bench, target)
        if moved_later:
            bench.publish(moved_later)
            bench.move()
        done = backup.copy(extent)
    assert done.files_copied < done.files
    restore(OSDisk(), target, tmp_path / "new")
    bench.store.close()
    bench.generation += 1
    (tmp_path / "new").rename(bench.directory)
    bench.open()
    assert bench.read() == expected
    bench.publish(100)
    bench.move()
    assert len(bench.read()) == len(expected) + 100
    bench.store.close()


class LosingDisk(FaultyDisk):
    """Forgets at a power loss what was not synced: files are empty, renames did not happen.

    `leave_out`: syncs of this kind do nothing.
    """

    def __init__(self, leave_out: str = "") -> None:
        super().__init__()
        self._leave_out = leave_out
        self._paths: dict[int, Path] = {}
        self._dirty: set[Path] = set()
        self._renamed: list[tuple[Path, Path, bytes | None]] = []

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        file = super().open(path, write=write, create=create)
        self._paths[file] = path
        return file

    def write(self, file: int, buffers: Sequence[bytes], offset: int) -> None:
        self._dirty.add(self._paths[file])
        super().write(file, buffers, offset)

    def sync_data(self, file: int) -> None:
        super().sync_data(file)
        if self._leave_out != "data":
            self._dirty.discard(self._paths[file])

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        if self._leave_out != "directory":
            self._renamed = [one for one in self._renamed if one[0].parent != path]

    def rename(self, source: Path, target: Path) -> None:
        old = target.read_bytes() if target.is_file() else None
        super().rename(source, target)
        self._renamed.append((source, target, old))
        self._dirty = {
            target / path.relative_to(source) if path.is_relative_to(source) else path
            for path in self._dirty
        }

    def lose_power(self) -> None:
        for path in self._dirty:
            if path.exists():
                path.write_bytes(b"")
        for source, target, old in reversed(self._renamed):
            if target.exists():
                target.rename(source)
                if old is not None:
                    target.write_bytes(old)


def _steps_that_end_badly(bench: Bench, tmp_path: Path, leave_out: str) -> list[int]:
    """A second backup into the same place, with a power loss after each step, the last included.

    The steps after which there is no backup, or one that cannot be restored.
    """
    target, base = tmp_path / "backup", tmp_path / "base"
    back_up(bench, base)
    lane = new_lane(bench.store)
    fill(bench.store, lane, 300, "b")
    settle_down(bench)
    bad = []
    for step in range(1, 1000):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(base, target)
        disk = LosingDisk(leave_out)
        disk.fail = _failing(disk, step, Killed())
        ended = False
        try:
            back_up(bench, target, disk)
            ended = True
        except Killed:
            pass
        disk.lose_power()
        try:
            restore(OSDisk(), target, tmp_path / "new")
        except StorageError:
            bad.append(step)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        if ended:
            return bad
    raise AssertionError("no end")


def test_after_a_power_loss_there_is_a_whole_backup(bench: Bench, tmp_path: Path) -> None:
    assert _steps_that_end_badly(bench, tmp_path, "") == []


@pytest.mark.parametrize("leave_out", ["data", "directory"])
def test_without_its_syncs_there_is_none(bench: Bench, tmp_path: Path, leave_out: str) -> None:
    assert _steps_that_end_badly(bench, tmp_path, leave_out)


@pytest.mark.parametrize("leave_out", ["", "data", "directory"])
def test_after_a_power_loss_a_restored_directory_is_whole_or_not_there(
    bench: Bench, tmp_path: Path, leave_out: str
) -> None:
    lane = new_lane(bench.store)
    fill(bench.store, lane, 300, "a")
    settle_down(bench)
    back_up(bench, tmp_path / "backup")
    expected = contents(lane)
    bad = 0
    target = tmp_path / "new"
    for step in range(1, 1000):
        disk = LosingDisk(leave_out)
        disk.fail = _failing(disk, step, Killed())
        ended = False
        try:
            restore(disk, tmp_path / "backup", target)
            ended = True
        except Killed:
            pass
        disk.lose_power()
        if target.exists():
            try:
                store = opened(target)
                found = contents(store.lane(lane.id))
                store.close()
            except StorageError:
                found = {}
            bad += found != expected
            shutil.rmtree(target)
        else:
            bad += ended
        if ended:
            break
    assert bool(bad) is bool(leave_out)


def test_what_is_damaged_is_not_restored(bench: Bench, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    lane = new_lane(bench.store)
    fill(bench.store, lane, 100, "a")
    settle_down(bench)
    back_up(bench, target)
    chance = random.Random(1)
    for file in json.loads((target / MANIFEST).read_text())["files"]:
        path = target / file["stored"]
        data = path.read_bytes()
        at = chance.randrange(len(data))
        for wrong, said in (
            (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "is damaged"),
            (data[:-1], "is damaged"),
            (data + b"x", "is damaged"),
            (None, "is missing"),
        ):
            if wrong is None:
                path.unlink()
            else:
                path.write_bytes(wrong)
            with pytest.raises(BackupError, match=f"{path.name} {said}"):
                restore(OSDisk(), target, tmp_path / "new")
            assert not (tmp_path / "new").exists()
        path.write_bytes(data)
    assert len(restored(target, tmp_path / "new", [lane.id])[0]) == 100


def test_a_manifest_leads_nowhere_else(bench: Bench, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    back_up(bench, target)
    manifest = json.loads((target / MANIFEST).read_text())
    for key, value in (("name", "../../etc/passwd"), ("stored", "/etc/passwd"), ("name", "LOCK")):
        wrong = json.loads(json.dumps(manifest))
        wrong["files"][0][key] = value
        (target / MANIFEST).write_text(json.dumps(wrong))
        with pytest.raises(BackupError, match="is damaged: it names"):
            restore(OSDisk(), target, tmp_path / "new")
    for text in ("", "[]", "{}", '{"format": 1}', '{"format": 1, "files": [1]}'):
        (target / MANIFEST).write_text(text)
        with pytest.raises(BackupError, match="is damaged"):
            restore(OSDisk(), target, tmp_path / "new")
    (target / MANIFEST).write_text('{"format": 2}')
    with pytest.raises(BackupError, match="has format 2"):
        restore(OSDisk(), target, tmp_path / "new")


def test_nothing_is_written_over(bench: Bench, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    for target, said in (
        (other, "is neither empty nor a backup: it has mine.txt"),
        (bench.directory / "backup", "cannot be in the data directory"),
        (bench.directory, "cannot be in the data directory"),
        (tmp_path, "cannot be in the data directory, nor around it"),
    ):
        with pytest.raises(BackupError, match=said):
            back_up(bench, target)
    back_up(bench, tmp_path / "backup")
    with pytest.raises(BackupError, match="is not empty"):
        restore(OSDisk(), tmp_path / "backup", other)
    with pytest.raises(BackupError, match="has no whole backup"):
        restore(OSDisk(), other, tmp_path / "new")
    stranger = Bench(tmp_path / "stranger", EAGER)
    with pytest.raises(BackupError, match="has a backup of another data directory"):
        fill(stranger.store, new_lane(stranger.store), 100, "x")
        settle_down(stranger)
        back_up(stranger, tmp_path / "backup")
    assert [path.name for path in other.iterdir()] == ["mine.txt"]


def test_it_can_be_broken_off(bench: Bench, tmp_path: Path) -> None:
    backup, extent = pin(bench, tmp_path / "backup")
    backup.cancelled = True
    with pytest.raises(BackupError, match="the broker stops"):
        backup.copy(extent)
