"""A directory as it could be found after a crash at any step of a trace.

`Directory` follows the steps and keeps apart what must be on disk and what need not be. Must be:
bytes of a file that were written before an fsync or fdatasync of it began, once that has returned
(with O_DSYNC, each write by itself); names whose directory was synced in the same way. All else an
image has or has not: each sector of each write (a sector may hold what any of the writes to it
left), each change of a size, each new, changed or removed name.

It does not know what is in the files. It refuses calls that it cannot follow (copies in the kernel,
writable shared mappings), so that no write goes unseen.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.images.trace import Call, Step

# LMDB's table of readers and locks, which is made anew, and the socket for `qlog ctl`.
PASSED_OVER = ("lock.mdb", "ctl.sock")


@dataclass(slots=True, eq=False)
class Change:
    """What one call did to a file's bytes: data at an offset, or a new size."""

    call: Call
    offset: int
    data: bytes
    size: int | None = None  # exactly this, and what is behind it is gone
    size_min: int = 0  # at least this: writing beyond the end, reserving space
    ended: bool = False


@dataclass(slots=True, eq=False)
class File:
    """The bytes that must be there, and the changes that may be."""

    durable: bytearray = field(default_factory=bytearray)
    changes: list[Change] = field(default_factory=list)
    name: str = ""  # the last that it had

    def fold(self, changes: Iterable[Change]) -> None:
        """These are on disk now."""
        folded = set(changes)
        for change in self.changes:
            if change in folded:
                _apply_size(self.durable, change)
                end = change.offset + len(change.data)
                self.durable[change.offset : end] = change.data
        self.changes = [change for change in self.changes if change not in folded]

    def written(self) -> bytes:
        """What any reader sees while the machine runs."""
        copy = File(bytearray(self.durable), list(self.changes))
        copy.fold(copy.changes)
        return bytes(copy.durable)

    def torn(self, choice: random.Random, sector_bytes: int) -> bytes:
        """With a random part of the changes."""
        if not self.changes:
            return bytes(self.durable)
        count = len(self.changes)
        # Sizes are metadata, which file systems write in order.
        sizes = choice.choice((0, count, choice.randint(0, count)))
        lean = choice.choice((0.1, 0.5, 0.9))
        cuts: dict[int, int] = {}
        content = bytearray(self.durable)
        size = len(content)
        for index, change in enumerate(self.changes):
            if index < sizes:
                _apply_size(content, change)
                size = change.size if change.size is not None else max(size, change.size_min)
            end = change.offset + len(change.data)
            if len(content) < end:
                content.extend(bytes(end - len(content)))
            first = change.offset // sector_bytes
            for sector in range(first, -(-end // sector_bytes)):
                cut = cuts.get(sector)
                if cut is None:
                    kept = choice.random() < lean
                    cut = cuts[sector] = count if kept else choice.randint(0, index)
                if index < cut:
                    start = max(sector * sector_bytes, change.offset)
                    stop = min((sector + 1) * sector_bytes, end)
                    content[start:stop] = change.data[start - change.offset : stop - change.offset]
        del content[size:]
        content.extend(bytes(size - len(content)))
        return bytes(content)


def _apply_size(content: bytearray, change: Change) -> None:
    if change.size is not None:
        del content[change.size :]
    size = max(change.size or 0, change.size_min)
    if len(content) < size:
        content.extend(bytes(size - len(content)))


Node = File | None  # None: a directory
Names = dict[str, Node]
Image = dict[str, bytes | None]  # None: a directory


@dataclass(slots=True, eq=False)
class Naming:
    """What one call did to names: `removed` is gone, `added` stands for `node`."""

    call: Call
    node: Node
    added: str = ""
    removed: str = ""
    ended: bool = False

    @property
    def parents(self) -> set[str]:
        """The directories that must be synced."""
        return {os.path.dirname(name) for name in (self.added, self.removed) if name}

    def apply(self, names: Names) -> None:
        """Do it, as far as it can be done."""
        if self.removed and (not self.added or names.get(self.removed) is self.node):
            names.pop(self.removed, None)
        if self.added:
            names[self.added] = self.node


@dataclass(slots=True)
class _Descriptor:
    """What stands behind a descriptor: a file or a directory of ours."""

    opened: str
    file: File | None
    synced_writes: bool = False
    position: int = 0

    @property
    def name(self) -> str:
        """Of the file as it is now, or of the directory."""
        return self.opened if self.file is None else self.file.name


class Directory:
    """See the head of this file. `root` is where the traced programs had it, `before` what was there
    and on disk when the trace began.

    Syncs of files and directories whose names `lies` accepts count as if they had not been made:
    so it can be shown that their absence would be noticed.
    """

    def __init__(
        self,
        root: Path,
        lies: Callable[[str], bool] = lambda name: False,
        before: Image | None = None,
    ) -> None:
        self._root = os.fsencode(root)
        self._lies = lies
        self._durable: Names = {
            name: None if content is None else File(bytearray(content), name=name)
            for name, content in (before or {}).items()
        }
        self._current = dict(self._durable)
        self._namings: list[Naming] = []
        self._descriptors: dict[tuple[int, int], _Descriptor] = {}
        # What a sync will make durable when it returns: all that had ended when it began.
        self._syncs: dict[Call, tuple[File, list[Change]] | list[Naming]] = {}

    # -- following

    def follow(self, step: Step) -> str:
        """Take one step; the name of the file or directory it was about, empty if none of ours."""
        call = step.call
        method = getattr(self, f"_on_{call.name}", None)
        if method is None or call.failed:
            return ""
        name: str = method(call, step.ends)
        return name

    def about(self, call: Call) -> str:
        """The file or directory that a call is about, whether it failed or not."""
        if call.name.startswith(("open", "mkdir", "rename", "unlink", "rmdir")):
            return next((name for name in self._paths(call, at=True) if name), ".")
        descriptor = self._of(call)
        return "" if descriptor is None else descriptor.name or "."

    def _path(self, process: int, directory: int | None, raw: bytes) -> str | None:
        """The name below the root; None for all others."""
        if directory is not None and not raw.startswith(b"/"):
            descriptor = self._descriptors.get((process, directory))
            if descriptor is None:
                return None
            return os.path.normpath(os.path.join(descriptor.name, os.fsdecode(raw)))
        if raw != self._root and not raw.startswith(self._root + b"/"):
            return None
        return os.fsdecode(raw[len(self._root) + 1 :])

    def _paths(self, call: Call, *, at: bool) -> list[str | None]:
        """The names in the arguments; `at`: with descriptors of directories before them."""
        found: list[str | None] = []
        # Descriptors stand before the strings that they go with.
        before = call.arguments.split(b'"')[0::2]
        for head, raw in zip(before, call.strings(), strict=False):
            words = head.replace(b",", b" ").split()
            number = int(words[-1]) if at and words and words[-1].isdigit() else None
            found.append(self._path(call.process, number, raw))
        return found

    def _name(self, naming: Naming, ends: bool) -> None:
        if ends:
            for known in self._namings:
                if known.call is naming.call:
                    known.ended = True
        else:
            self._namings.append(naming)
            naming.apply(self._current)

    def _on_openat(self, call: Call, ends: bool) -> str:
        name = self._paths(call, at=True)[0]
        if name is None or name.endswith(PASSED_OVER):
            return ""
        creates = b"O_CREAT" in call.arguments
        if not ends:
            if creates and name not in self._current:
                self._name(Naming(call, File(name=name), added=name), False)
            return name
        self._name(Naming(call, None), True)
        assert call.result is not None and b"O_TRUNC" not in call.arguments
        node = self._current.get(name)
        self._descriptors[call.process, call.result] = _Descriptor(
            name, node, any(flag in call.arguments for flag in (b"O_DSYNC", b"O_SYNC"))
        )
        return name

    def _on_close(self, call: Call, ends: bool) -> str:
        if not ends:
            self._descriptors.pop((call.process, call.numbers()[0]), None)
        return ""

    def _on_mkdir(self, call: Call, ends: bool) -> str:
        name = self._paths(call, at=False)[0]
        if name:
            self._name(Naming(call, None, added=name), ends)
        return name or ""

    def _on_rename(self, call: Call, ends: bool) -> str:
        source, target = self._paths(call, at=True)
        assert (source is None) == (target is None), "a file came from elsewhere"
        if source is None or target is None:
            return ""
        if ends:
            self._name(Naming(call, None), True)
        else:
            node = self._current[source]
            assert node is not None, "a directory is renamed"
            node.name = target
            self._name(Naming(call, node, target, source), False)
        return target

    _on_renameat = _on_renameat2 = _on_rename

    def _on_unlink(self, call: Call, ends: bool) -> str:
        name = self._paths(call, at=True)[0]
        if name is None or name.endswith(PASSED_OVER):
            return ""
        node = None if ends else self._current[name]
        self._name(Naming(call, node, removed=name), ends)
        return name

    _on_unlinkat = _on_rmdir = _on_unlink

    def _of(self, call: Call) -> _Descriptor | None:
        return self._descriptors.get((call.process, call.numbers()[0]))

    def _change(self, change: Change, descriptor: _Descriptor, ends: bool) -> str:
        file = descriptor.file
        assert file is not None
        if not ends:
            file.changes.append(change)
            return descriptor.name
        for known in file.changes:
            if known.call is change.call:
                known.ended = True
                if descriptor.synced_writes and not self._lies(file.name):
                    file.fold([known])
                break
        return descriptor.name

    def _write(self, call: Call, ends: bool, offset: int | None) -> str:
        descriptor = self._of(call)
        if descriptor is None or descriptor.file is None:
            return ""
        data = b"" if ends else b"".join(call.strings())[: call.result]
        at = descriptor.position if offset is None else offset
        if ends and offset is None:
            assert call.result is not None
            descriptor.position += call.result
        return self._change(Change(call, at, data, size_min=at + len(data)), descriptor, ends)

    def _on_write(self, call: Call, ends: bool) -> str:
        return self._write(call, ends, None)

    _on_writev = _on_write

    def _on_pwrite64(self, call: Call, ends: bool) -> str:
        return self._write(call, ends, call.numbers()[2])

    _on_pwritev = _on_pwritev2 = _on_pwrite64

    def _on_lseek(self, call: Call, ends: bool) -> str:
        descriptor = self._of(call)
        if ends and descriptor is not None:
            assert call.result is not None
            descriptor.position = call.result
        return ""

    def _on_ftruncate(self, call: Call, ends: bool) -> str:
        descriptor = self._of(call)
        if descriptor is None or descriptor.name.endswith(PASSED_OVER):
            return ""
        size = call.numbers()[1]
        return self._change(Change(call, 0, b"", size=size), descriptor, ends)

    def _on_fallocate(self, call: Call, ends: bool) -> str:
        descriptor = self._of(call)
        if descriptor is None:
            return ""
        _, mode, offset, size = call.numbers()
        assert mode == 0
        return self._change(Change(call, 0, b"", size_min=offset + size), descriptor, ends)

    def _on_fdatasync(self, call: Call, ends: bool) -> str:
        descriptor = self._of(call)
        if descriptor is None or self._lies(descriptor.name):
            return ""
        file = descriptor.file
        if not ends:
            if file is not None:
                self._syncs[call] = (file, [c for c in file.changes if c.ended])
            else:
                self._syncs[call] = [
                    naming
                    for naming in self._namings
                    if naming.ended and descriptor.name in naming.parents
                ]
            return descriptor.name
        covered = self._syncs.pop(call)
        if isinstance(covered, tuple):
            covered[0].fold(covered[1])
            return descriptor.name
        for naming in covered:
            assert naming.parents == {descriptor.name}
            naming.apply(self._durable)
        self._namings = [naming for naming in self._namings if naming not in covered]
        return descriptor.name

    _on_fsync = _on_fdatasync

    def _on_mmap(self, call: Call, ends: bool) -> str:
        arguments = call.arguments
        if not ends and b"MAP_SHARED" in arguments and b"PROT_WRITE" in arguments:
            number = int(arguments.split(b",")[4])
            assert (call.process, number) not in self._descriptors, "a writable mapping"
        return ""

    def _refuse(self, call: Call, ends: bool) -> str:
        numbers = call.numbers()
        known = any((call.process, number) in self._descriptors for number in numbers[:2])
        ours = any(path is not None for path in self._paths(call, at=True))
        assert not known and not ours, f"cannot follow {call.name}"
        return ""

    _on_open = _on_creat = _on_dup = _on_dup2 = _on_dup3 = _refuse
    _on_sendfile = _on_copy_file_range = _on_sync_file_range = _on_msync = _refuse
    _on_link = _on_linkat = _on_symlink = _on_symlinkat = _refuse
    _on_mkdirat = _on_truncate = _refuse

    # -- after kill -9

    def settle(self, actual: Path) -> None:
        """The processes are dead: of the calls they died in, take what `actual` shows, a copy of the
        directory as it is now. Raises AssertionError when it differs in anything else."""
        self._descriptors.clear()
        self._syncs.clear()
        for naming in [naming for naming in self._namings if not naming.ended]:
            name = naming.added or naming.removed
            if (actual / name).exists() is bool(naming.added):
                naming.ended = True
            else:
                self._namings.remove(naming)
        self._current = dict(self._durable)
        for naming in self._namings:
            naming.apply(self._current)
        for name, node in self._current.items():
            path = actual / name
            if node is None:
                assert path.is_dir(), name
                continue
            content = path.read_bytes()
            for change in [change for change in node.changes if not change.ended]:
                change.ended = True
                end = change.offset + len(change.data)
                change.data = content[change.offset : end]
                change.size_min = min(change.size_min, len(content))
                if change.size is not None and change.size != len(content):
                    node.changes.remove(change)
            assert node.written() == content, f"{name}: the trace is not the whole story"
        known = {name for name in self._current}
        there = {str(path.relative_to(actual)) for path in actual.rglob("*")}
        there = {name for name in there if not name.endswith(PASSED_OVER)}
        assert known == there, f"names: {known ^ there}"

    # -- images

    def image(self, choice: random.Random, kept: str) -> Image:
        """One possible image. `kept` of what was not synced: "none", "all", or "some"."""
        names = dict(self._durable)
        namings = self._namings
        if kept == "some":
            how = choice.randrange(3)
            if how == 0:  # a journal: in order, up to somewhere
                namings = namings[: choice.randint(0, len(namings))]
            elif how == 1:
                namings = [naming for naming in namings if choice.random() < 0.5]
        if kept != "none":
            for naming in namings:
                naming.apply(names)
        sector_bytes = choice.choice((512, 4096))
        found: Image = {}
        for name in sorted(names):
            node = names[name]
            parent = os.path.dirname(name)
            if parent and parent not in found:  # its directory is not there: nor is what is in it
                continue
            if node is None:
                found[name] = None
            elif kept == "some" and choice.random() < 0.8:
                found[name] = node.torn(choice, sector_bytes)
            else:
                found[name] = bytes(node.durable) if kept == "none" else node.written()
        return found


def write(image: Image, target: Path) -> None:
    """Make it real, in a new directory."""
    target.mkdir(parents=True)
    for name, content in image.items():  # directories come before what is in them
        if content is None:
            (target / name).mkdir()
        else:
            (target / name).write_bytes(content)
