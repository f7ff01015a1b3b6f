"""A disk in memory that remembers what was not synced, and what a crash can make of that.

It stands in for `storage.bytes.disk.OSDisk` under log, ledger and spill. Each file is held twice: as
processes see it, and as the platter has it, with the changes in between in order. `crash` gives the
same disk as the next process finds it. After a kill that is what processes saw. After a power loss:

- of each unsynced write any sectors are there (512 bytes or 4 KiB, by the crash); of a sector that
  was written several times any version; a sector may be torn, half one version and half another;
- unsynced changes of a file's size are there up to any one of them, so that a file can have the
  size of an allocation with nothing in it, or be cut with nothing written before the cut;
- of the unsynced changes to a directory there is a prefix, as on ext4 and xfs, or (meaner than
  those, and allowed by POSIX) any of them as long as those to one name or one file stay in order;
  directories do not wait for one another;
- a file whose name is lost is lost whole, even if its bytes were synced (ext4 and xfs would keep it).

What it takes for granted: a returned sync of a file keeps its bytes and its size; that of a
directory the names in it, and not what the files hold; bytes that were synced and not written
again do not change. After a failed sync what was to be synced looks clean: some of it is on the
platter, the rest is seen by processes, also after a kill, and no later sync brings it there.

The two LMDB environments are real directories under a real root. They count as atomic and synced
when a commit returns, which `lmdb_open` makes a place to crash at. Their names are this disk's
business: it looks at the root at each operation on it, and a power loss can lose a directory that
came since the root was synced, bring back the one that it replaced, or lose the data file in it.

There is no unsynced data that grows old and gets written: any of it may be, at any crash. Space is
counted by what is reserved or written; a write into reserved space needs none.
"""

import errno
import itertools
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb

from qlog.storage.errors import SyncFailed

LMDB_NAMES = ("catalog.lmdb", "index.lmdb")
_DATA_FILE = "data.mdb"


class Crash(BaseException):
    """The process ended here, or the power went."""


@dataclass(slots=True)
class _Write:
    offset: int
    data: bytes


@dataclass(slots=True)
class _Resize:
    size: int


@dataclass(eq=False, slots=True)
class _File:
    data: bytearray = field(default_factory=bytearray)  # as processes see it
    durable: bytearray = field(default_factory=bytearray)  # as the platter has it
    pending: list[_Write | _Resize] = field(default_factory=list)  # between the two
    reserved: int = 0  # bytes that count as taken
    handles: int = 0
    linked: bool = True


@dataclass(eq=False, slots=True)
class _Environment:
    """A directory of LMDB: which one it is, and a second name for its data file."""

    inode: int
    saved: Path | None = None
    file_durable: bool = False  # the name of the data file in it


@dataclass(eq=False, slots=True)
class _Directory:
    entries: "dict[str, _Node]" = field(default_factory=dict)
    durable: "dict[str, _Node]" = field(default_factory=dict)
    pending: "list[_Change]" = field(default_factory=list)


_Node = _File | _Environment | _Directory


@dataclass(slots=True)
class _Change:
    """Of a directory: `node` is now at `name`, and no more at `before`; None is nowhere."""

    name: str | None
    before: str | None
    node: _Node

    def apply(self, entries: dict[str, _Node]) -> None:
        if self.before is not None:
            entries.pop(self.before, None)
        if self.name is not None:
            entries[self.name] = self.node


@dataclass(slots=True)
class CrashCounts:
    """What crashes did so far."""

    kills: int = 0
    power_losses: int = 0
    sectors_lost: int = 0  # not the newest version
    sectors_torn: int = 0
    sizes_lost: int = 0
    names_lost: int = 0  # changes of directories
    environments_lost: int = 0


class SimulatedDisk:
    """See the head of this file. Not for several threads.

    `base` is a real directory of its own, better in memory; the data directory is `root`, and is
    another one after each crash, since LMDB opens a place only once in a process.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.counts = CrashCounts()
        self.operations = 0
        self.syncs: Counter[str] = Counter()  # by the function that called for it
        self.left_out: Collection[str] = ()  # syncs that are not done
        self.crash_at = ""  # the sync before which the process dies
        self.crash_in: int | None = None  # operations
        self.fail_in: int | None = None  # operations; then one fails with EIO
        self.failed = ""  # the operation that did
        self.space_bytes: int | None = None  # that there is; None: no end of it
        self.lmdb_full: Collection[str] = ()  # the environments that take nothing more
        self.used_bytes = 0
        self._choice = random.Random(0)
        self._dead = False
        self._dies_after = False
        self._serial = itertools.count()
        self._generation = 0
        self._top = _Directory()
        self._handles: dict[int, _File] = {}
        self._first_handle = self._next_handle = 3
        self._mount()

    @property
    def root(self) -> Path:
        """The data directory."""
        return self._mountpoint / "data"

    @property
    def open_files(self) -> int:
        return len(self._handles)

    # -- what storage calls

    def make_directory(self, path: Path) -> None:
        self._begin("make_directory")
        parent = self._top
        for name in self._parts(path):
            node = parent.entries.get(name)
            if node is None:
                node = _Directory()
                self._change(parent, _Change(name, None, node))
            if not isinstance(node, _Directory):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            parent = node
        if path == self.root:
            path.mkdir(parents=True, exist_ok=True)  # for LMDB
        self._end()

    def names(self, path: Path) -> list[str]:
        self._begin("names", reads=True)
        directory = self._directory(path)
        self._look_for_environments(directory)
        return sorted(directory.entries)

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        self._begin("open", reads=not (create or write))
        directory = self._directory(path.parent)
        node = directory.entries.get(path.name)
        if node is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            if self.space_bytes is not None and self.used_bytes >= self.space_bytes:
                raise _full(path)
            node = _File()
            self._look_for_environments(directory)
            self._change(directory, _Change(path.name, None, node))
        assert isinstance(node, _File)
        self._end()
        handle = self._next_handle
        self._next_handle += 1
        self._handles[handle] = node
        node.handles += 1
        return handle

    def close(self, file: int) -> None:
        if self._dead or file < self._first_handle:  # of a process that ended: it is closed
            return
        node = self._handles.pop(file)
        node.handles -= 1
        self._release(node)

    def size(self, file: int) -> int:
        return len(self._file(file).data)

    def read(self, file: int, size: int, offset: int) -> bytes:
        return bytes(self._file(file).data[offset : offset + size])

    def will_read(self, file: int, size: int, offset: int) -> None:
        self._file(file)

    def write(self, file: int, buffers: Sequence[bytes], offset: int) -> None:
        node = self._file(file)
        data = b"".join(buffers)
        try:
            self._begin("write")
            needed = offset + len(data) - node.reserved
            if self.space_bytes is not None and needed > max(self.space_bytes - self.used_bytes, 0):
                raise _full(None)
        except (OSError, Crash):  # some of it was written
            written = self._choice.randrange(len(data) + 1)
            if self.space_bytes is not None:
                written = min(written, max(node.reserved - offset, 0))
            self._write(node, data[:written], offset)
            raise
        self._write(node, data, offset)
        self._end()

    def allocate(self, file: int, size: int) -> None:
        node = self._file(file)
        self._begin("allocate")
        free = None if self.space_bytes is None else max(self.space_bytes - self.used_bytes, 0)
        if free is not None and size - node.reserved > free:
            raise _full(None)
        self._reserve(node, size)
        if size > len(node.data):
            self._resize(node, size)
        self._end()

    def truncate(self, file: int, size: int) -> None:
        node = self._file(file)
        self._begin("truncate")
        if size != len(node.data):
            self._resize(node, size)
        if size < node.reserved:
            self.used_bytes -= node.reserved - size
            node.reserved = size
        self._end()

    def sync_data(self, file: int) -> None:
        node = self._file(file)
        try:
            self._begin("sync_data")
        except OSError as error:
            self._forget_dirty(node)
            raise SyncFailed(f"a sync failed: {error.strerror}") from error
        if not self._left_out("file"):
            for change in node.pending:
                _apply(node.durable, change)
            node.pending.clear()
        self._end()

    def sync_directory(self, path: Path) -> None:
        try:
            self._begin("sync_directory")
        except OSError as error:
            raise SyncFailed(f"syncing {path} failed: {error.strerror}") from error
        if not self._left_out("parent" if path == self.root.parent else path.name):
            node = self._top
            for name in self._parts(path)[:-1]:
                child = node.entries[name]
                assert isinstance(child, _Directory)
                node = child
            if path.name in LMDB_NAMES:
                self._look_for_environments(node)
                child = node.entries[path.name]
                assert isinstance(child, _Environment)
                child.file_durable = True
            else:
                directory = self._directory(path)
                self._look_for_environments(directory)
                directory.durable = dict(directory.entries)
                directory.pending.clear()
        self._end()

    def rename(self, source: Path, target: Path) -> None:
        assert source.parent == target.parent
        directory = self._directory(source.parent)
        node = directory.entries.get(source.name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
        self._begin("rename")
        old = directory.entries.get(target.name)
        self._change(directory, _Change(target.name, source.name, node))
        if isinstance(old, _File):
            old.linked = False
            self._release(old)
        self._end()

    def unlink(self, path: Path) -> None:
        directory = self._directory(path.parent)
        node = directory.entries.get(path.name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._begin("removal of a temporary file" if path.suffix == ".new" else "unlink")
        assert isinstance(node, _File)
        self._look_for_environments(directory)
        self._change(directory, _Change(None, path.name, node))
        node.linked = False
        self._release(node)
        self._end()

    def lock(self, file: int) -> bool:
        return True

    def release(self, below: Path | None = None) -> None:
        """It keeps nothing open."""

    # -- what LMDB is opened with

    def lmdb_open(self, path: str, **options: Any) -> "_Hooked":
        """In place of `lmdb.open`: a commit is an operation of this disk too."""
        return _Hooked(lmdb.Environment(path, **options), self, Path(path).name)

    def begin_commit(self, environment: str) -> None:
        """A transaction that writes begins: a crash here is before its commit. Raises lmdb.Error."""
        self._begin("commit", reads=True)
        if environment in self.lmdb_full:
            raise lmdb.Error("mdb_txn_commit: No space left on device")

    # -- what the test calls

    def crash(self, choice: random.Random, *, power: bool) -> None:
        """The process is gone (its environments are closed by now); the power too, perhaps.

        The data directory is then at the new `root`.
        """
        assert self._top.entries or not self._top.durable
        if "data" in self._top.entries:
            self._look_for_environments(self._root())
        if power:
            self.counts.power_losses += 1
            self._lose_power(choice)
        else:
            self.counts.kills += 1
        self._handles.clear()
        self._first_handle = self._next_handle
        self.used_bytes = 0
        for _, node in self._files(self._top):
            node.handles = 0
            self.used_bytes += node.reserved
        self._mount()

    def use(self, choice: random.Random) -> None:
        """What is left to chance while the process runs."""
        self._choice = choice

    def clone(self, base: Path) -> "SimulatedDisk":
        """Another disk with the same in it. Nothing may be open."""
        assert not self._handles
        other = SimulatedDisk(base)
        made: dict[int, _Node] = {}

        def copy(node: _Node) -> _Node:
            if id(node) not in made:
                if isinstance(node, _File):
                    made[id(node)] = _File(
                        bytearray(node.data),
                        bytearray(node.durable),
                        list(node.pending),
                        node.reserved,
                    )
                elif isinstance(node, _Directory):
                    made[id(node)] = _Directory(
                        {name: copy(child) for name, child in node.entries.items()},
                        {name: copy(child) for name, child in node.durable.items()},
                        [
                            _Change(change.name, change.before, copy(change.node))
                            for change in node.pending
                        ],
                    )
                else:
                    made[id(node)] = _Environment(node.inode, node.saved, node.file_durable)
            return made[id(node)]

        top = copy(self._top)
        assert isinstance(top, _Directory)
        other._top = top
        other.used_bytes = self.used_bytes
        if self.root.exists():
            shutil.copytree(self.root, other.root)
            for name in LMDB_NAMES:
                child = other._root().entries.get(name)
                if child is not None and (other.root / name).exists():
                    assert isinstance(child, _Environment)
                    child.inode = (other.root / name).stat().st_ino
        return other

    def remove_index(self) -> None:
        """What someone does to a broker that is down."""
        shutil.rmtree(self.root / "index.lmdb", ignore_errors=True)

    def image(self) -> dict[str, bytes]:
        """Every file in here by its path, as processes see it."""
        return {path: bytes(node.data) for path, node in self._files(self._top)}

    # -- inside: faults

    def _begin(self, operation: str, *, reads: bool = False) -> None:
        """Raises Crash and OSError. What only reads cannot fail with EIO here."""
        if self._dead:
            raise Crash
        self.operations += 1
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                if self._choice.random() < 0.5 or reads:
                    self._dead = True
                    raise Crash
                self._dies_after = True
        if self.fail_in is not None and not reads:
            self.fail_in -= 1
            if self.fail_in < 0:
                self.fail_in = None
                self.failed = operation
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _end(self) -> None:
        if self._dies_after:
            self._dead = True
            raise Crash

    def _left_out(self, what: str) -> bool:
        """Whether the sync of this is not to be done, by who called for it."""
        site = f"{sys._getframe(2).f_code.co_qualname}: {what}"
        self.syncs[site] += 1
        if site == self.crash_at:
            self._dead = True
            raise Crash
        return site in self.left_out

    # -- inside: files

    def _parts(self, path: Path) -> list[str]:
        text = str(path)
        assert text.startswith(self._prefix), path
        return [part for part in text[len(self._prefix) :].split("/") if part]

    def _directory(self, path: Path) -> _Directory:
        node: _Node = self._top
        for name in self._parts(path):
            assert isinstance(node, _Directory)
            found = node.entries.get(name)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            node = found
        assert isinstance(node, _Directory)
        return node

    def _root(self) -> _Directory:
        root = self._top.entries["data"]
        assert isinstance(root, _Directory)
        return root

    def _file(self, handle: int) -> _File:
        if self._dead:
            raise Crash
        return self._handles[handle]

    def _files(self, directory: _Directory, path: str = "") -> list[tuple[str, _File]]:
        found: list[tuple[str, _File]] = []
        for name, node in sorted(directory.entries.items()):
            if isinstance(node, _Directory):
                found += self._files(node, f"{path}{name}/")
            elif isinstance(node, _File):
                found.append((path + name, node))
        return found

    def _change(self, directory: _Directory, change: _Change) -> None:
        change.apply(directory.entries)
        directory.pending.append(change)

    def _write(self, node: _File, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > len(node.data):
            self._resize(node, end)
        self._reserve(node, end)
        node.data[offset:end] = data
        node.pending.append(_Write(offset, data))

    def _resize(self, node: _File, size: int) -> None:
        change = _Resize(size)
        _apply(node.data, change)
        node.pending.append(change)

    def _reserve(self, node: _File, size: int) -> None:
        if size > node.reserved:
            self.used_bytes += size - node.reserved
            node.reserved = size

    def _release(self, node: _File) -> None:
        if not node.linked and not node.handles:
            self.used_bytes -= node.reserved
            node.reserved = 0

    def _forget_dirty(self, node: _File) -> None:
        """A sync failed: any of the sectors got there, and the others are taken for written."""
        sizes = [change for change in node.pending if isinstance(change, _Resize)]
        written, _ = self._settled(node, self._choice, 512)
        node.durable[:] = written[: len(node.durable)]
        node.pending = list(sizes)

    # -- inside: environments

    def _look_for_environments(self, directory: _Directory) -> None:
        """LMDB's directories come and go without this disk: see which are there now."""
        if self._top.entries.get("data") is not directory:
            return
        for name in LMDB_NAMES:
            path = self.root / name
            try:
                inode = path.stat().st_ino
            except FileNotFoundError:
                inode = -1
            known = directory.entries.get(name)
            assert known is None or isinstance(known, _Environment)
            if known is not None and known.inode == inode:
                self._save(path, known)
                continue
            if known is not None:
                self._change(directory, _Change(None, name, known))
            if inode >= 0:
                node = _Environment(inode)
                self._save(path, node)
                self._change(directory, _Change(name, None, node))

    def _save(self, path: Path, node: _Environment) -> None:
        """Keep a second name of the data file, in case the directory's removal gets undone."""
        if node.saved is None and (path / _DATA_FILE).exists():
            node.saved = self.base / f"saved-{next(self._serial)}"
            os.link(path / _DATA_FILE, node.saved)

    def _mount(self) -> None:
        """At a new place, in working order."""
        old = getattr(self, "_mountpoint", None)
        self._generation += 1
        self._mountpoint = self.base / str(self._generation)
        self._prefix = str(self._mountpoint)
        if old is None:
            self._mountpoint.mkdir(parents=True)
        else:
            old.rename(self._mountpoint)
        self._dead = self._dies_after = False
        self.crash_in = self.fail_in = self.space_bytes = None
        self.failed = self.crash_at = ""
        self.lmdb_full = ()
        self._choice = random.Random(0)

    # -- inside: power loss

    def _lose_power(self, choice: random.Random) -> None:
        sector_bytes = choice.choice((512, 512, 4096))
        self._settle_directory(self._top, choice)
        if "data" not in self._top.entries:
            shutil.rmtree(self.root, ignore_errors=True)
            return
        self._settle_environments(self._root(), choice)
        for _, node in self._files(self._top):
            content, _ = self._settled(node, choice, sector_bytes)
            node.data = content
            node.durable = bytearray(content)
            node.pending.clear()
            node.reserved = len(content)

    def _settle_directory(self, directory: _Directory, choice: random.Random) -> None:
        """Decide what of the directory is there, and in it."""
        pending = directory.pending
        entries = directory.durable
        if pending:
            if choice.random() < 0.5:
                kept = pending[: choice.randrange(len(pending) + 1)]
            else:
                kept = []
                lost: set[object] = set()
                for change in pending:
                    touched = {change.name, change.before, id(change.node)} - {None}
                    if touched & lost or choice.random() < 0.5:
                        lost |= touched
                    else:
                        kept.append(change)
            self.counts.names_lost += len(pending) - len(kept)
            for change in kept:
                change.apply(entries)
            directory.pending = []
        directory.entries = entries
        directory.durable = dict(entries)
        for node in entries.values():
            if isinstance(node, _Directory):
                self._settle_directory(node, choice)
            elif isinstance(node, _File):
                node.linked = True

    def _settle_environments(self, root: _Directory, choice: random.Random) -> None:
        for name in LMDB_NAMES:
            path = self.root / name
            node = root.entries.get(name)
            assert node is None or isinstance(node, _Environment)
            if node is None or not path.exists() or path.stat().st_ino != node.inode:
                if path.exists():
                    shutil.rmtree(path)
                    self.counts.environments_lost += 1
                if node is None:
                    continue
                path.mkdir()
                if node.saved is not None:
                    os.link(node.saved, path / _DATA_FILE)
                node.inode = path.stat().st_ino
            if not node.file_durable and choice.random() < 0.3:
                self.counts.environments_lost += 1
                for file in path.iterdir():
                    file.unlink()
                node.saved = None
            node.file_durable = True

    def _settled(
        self, node: _File, choice: random.Random, sector_bytes: int
    ) -> tuple[bytearray, int]:
        """What the platter may have of a file, and how many of the changes of its size."""
        pending = node.pending
        platter = bytearray(node.durable)
        resizes = sum(isinstance(change, _Resize) for change in pending)
        sizes_kept = choice.randrange(resizes + 1) if resizes else 0
        self.counts.sizes_lost += resizes - sizes_kept
        newest = bytearray(platter)
        limit = sys.maxsize  # a cut that was lost: what was written behind it went elsewhere
        versions: dict[int, list[bytes]] = {}
        sizes_seen = 0
        for change in pending:
            if isinstance(change, _Resize):
                sizes_seen += 1
                if sizes_seen > sizes_kept:
                    limit = min(limit, change.size)
                    continue
                _apply(platter, change)
                _apply(newest, change)
                for sector in [at for at in versions if (at + 1) * sector_bytes > change.size]:
                    start = sector * sector_bytes
                    if start >= change.size:
                        del versions[sector]
                    else:
                        size = len(newest[start : start + sector_bytes])
                        versions[sector] = [
                            version[: change.size - start].ljust(size, b"\0")
                            for version in versions[sector]
                        ]
                continue
            end = min(change.offset + len(change.data), len(newest), limit)
            if end <= change.offset:
                continue
            newest[change.offset : end] = change.data[: end - change.offset]
            for sector in range(change.offset // sector_bytes, -(-end // sector_bytes)):
                start = sector * sector_bytes
                versions.setdefault(sector, []).append(bytes(newest[start : start + sector_bytes]))
        kept_share = choice.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        torn_share = choice.choice((0.0, 0.0, 0.2))
        for sector, written in versions.items():
            start = sector * sector_bytes
            end = min(start + sector_bytes, len(platter))
            if choice.random() < kept_share:
                kept = written[-1]
            else:
                older = [bytes(platter[start:end]), *written[:-1]]
                kept = choice.choice(older)
                self.counts.sectors_lost += 1
            if torn_share and choice.random() < torn_share:
                other = choice.choice([bytes(platter[start:end]), *written])
                cut = choice.choice((len(kept) // 2, choice.randrange(len(kept) + 1)))
                kept = kept[:cut] + other[cut:]
                self.counts.sectors_torn += 1
            platter[start:end] = kept[: end - start]
        return platter, sizes_kept


class _Hooked:
    """An LMDB environment whose transactions are operations of a simulated disk."""

    def __init__(self, environment: Any, disk: SimulatedDisk, name: str) -> None:
        self._environment = environment
        self._disk = disk
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def begin(self, *arguments: Any, write: bool = False, **options: Any) -> Any:
        if write:
            self._disk.begin_commit(self._name)
        return self._environment.begin(*arguments, write=write, **options)


def _apply(data: bytearray, change: _Write | _Resize) -> None:
    if isinstance(change, _Write):
        # The size came with a change of its own, and may have been cut since.
        end = min(change.offset + len(change.data), len(data))
        if end > change.offset:
            data[change.offset : end] = change.data[: end - change.offset]
    elif change.size < len(data):
        del data[change.size :]
    else:
        data.extend(bytes(change.size - len(data)))


def _full(path: Path | None) -> OSError:
    if path is None:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
