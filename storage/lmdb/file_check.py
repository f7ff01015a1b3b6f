"""Checks whether LMDB may open a file: LMDB maps the file, trusts it, and dies of a damaged one.

Reads a data.mdb without LMDB, tree by tree and page by page. A file that was cut, or whose pages
are not what they should be, is then an error with a place in it, and not a signal. Keys must be in
order, and the trees' own counts right: so nothing that was written is out of LMDB's reach. Values
are not looked at; those who write them put hashes into them. Nobody may write meanwhile.

The format is that of LMDB 0.9 on a 64-bit machine, in its own byte order.
"""

import os
import struct
import sys
from array import array
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

_PAGE = struct.Struct(
    "=QHHHH"
)  # number, 0, flags, lower, upper (overflow: a count u32 in their place)
_META = struct.Struct("=IIQQ")  # magic, version, address, map size; two trees come behind it
_META_END = struct.Struct("=QQ")  # last page, transaction
_TREE = struct.Struct("=IHHQQQQQ")  # pad, flags, depth, branches, leaves, overflows, entries, root
_NODE = struct.Struct("=HHHH")  # size low, size high, flags, key size
_NUMBER = struct.Struct("=Q")
_TREES_AT = _PAGE.size + _META.size
_META_BYTES = _TREES_AT + 2 * _TREE.size + _META_END.size
_MAGIC = 0xBEEFC0DE
_VERSION = 1
_PAGE_BYTES_MIN = 512
_PAGE_BYTES_MAX = 32768
_BRANCH, _LEAF, _OVERFLOW, _IS_META = 1, 2, 4, 8
_PLAIN, _BIG, _IS_TREE = 0, 1, 2  # a node's value: in the page, in overflow pages, or a tree
_UNWRITTEN_MAX = 1 << 16  # pages at the end that were taken, and freed before they were written
_INTEGER_KEYS = 8  # flag of a tree
_NO_ROOT = (1 << 64) - 1

_FREE = "list of free pages"

_Key = Any  # bytes, or an int in the list of free pages


class Implausible(Exception):
    """LMDB must not open this file; `str()` says what is wrong, and where."""


class CutOff(Implausible):
    """The file ends before its data does: LMDB would die of reading it."""


@dataclass(slots=True)
class _Tree:
    """A tree as the file describes it. The fields behind `numbered` are what was found."""

    name: str
    kind: int  # of the nodes in its leaves
    depth: int
    said: tuple[int, int, int, int]  # branches, leaves, overflows, entries
    root: int
    numbered: bool = False  # the keys are integers
    branches: int = 0
    leaves: int = 0
    overflows: int = 0
    entries: list[tuple[bytes, bytes]] = field(default_factory=list)
    count: int = 0
    large: list[tuple[int, int]] = field(default_factory=list)  # (number, count) of overflow pages

    @property
    def is_plain(self) -> bool:
        return self.kind == _PLAIN and not self.numbered


@dataclass(frozen=True, slots=True)
class _Meta:
    page: int
    page_bytes: int
    free: _Tree
    trees: _Tree
    last_page: int
    transaction: int


def check(path: Path, *, commit_failed: bool = False) -> None:
    """Raise Implausible unless LMDB can read all of the file, and write to it.

    A missing or empty file is new. Raises OSError when the file cannot be opened. `commit_failed`:
    the last process that wrote to it could not write a meta page. LMDB then writes the old
    transaction number over the new one, which looks like damage.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if os.fstat(file).st_size:
            _Walk(file).run(check_age=not commit_failed)
    finally:
        os.close(file)


class _Walk:
    """One file."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._file_bytes = os.fstat(file).st_size
        self._page_bytes = 0
        self._page_end = 0  # behind the last page in use
        self._seen: set[int] = set()

    def run(self, *, check_age: bool) -> None:
        meta, older = self._metas()
        self._page_bytes = meta.page_bytes
        self._page_end = meta.last_page + 1
        if self._page_end > self._file_bytes // self._page_bytes + _UNWRITTEN_MAX:
            raise Implausible(f"the meta page at byte {meta.page * self._page_bytes} is damaged")
        self._walk(meta.free)
        self._walk(meta.trees)
        for name, value in meta.trees.entries:
            text = name.decode(errors="replace")
            if len(value) != _TREE.size:
                raise Implausible(f"the tree '{text}' is damaged")
            self._walk(_tree(f"tree '{text}'", value, 0, _PLAIN))
        free = array("Q")
        for _, numbers in _freed(meta.free):
            free += numbers
        if not self._seen.isdisjoint(free) or len(set(free)) < len(free):
            raise Implausible("the list of free pages is damaged: it has pages that are in use")
        if free and not 2 <= min(free) <= max(free) < self._page_end:
            raise Implausible("the list of free pages is damaged: it has pages that are not there")
        if check_age:
            self._check_age(meta, older)

    def _check_age(self, newer: _Meta, older: _Meta) -> None:
        """Check the transaction numbers: a wrong one would have LMDB go back to an older state.

        The pages that a transaction freed are listed under its number, and the next transaction
        does not use them.
        """
        taken, self._seen = self._seen, set()
        self._page_end = older.last_page + 1
        try:
            self._walk(older.free)
            freed = _freed(older.free)
        except Implausible:
            return  # nobody reads it any more
        newest = max((number for number, _ in _freed(newer.free)), default=0)
        oldest = max((number for number, _ in freed), default=0)
        last = (pages for number, pages in freed if number == older.transaction)
        if (
            newest > newer.transaction
            or oldest > older.transaction
            or not all(map(taken.isdisjoint, last))
        ):
            raise Implausible("the transaction number of a meta page is damaged")

    def _metas(self) -> tuple[_Meta, _Meta]:
        """The meta page that LMDB goes by, and the one before it."""
        first = self._meta(0, 0)
        second = self._meta(1, first.page_bytes)
        older, newer = first, second
        if first.transaction >= second.transaction:  # of two equal ones LMDB takes the first
            older, newer = second, first
        if newer.page_bytes != older.page_bytes or (
            # Commits take turns: transaction n goes to meta page n & 1.
            newer.transaction
            and (newer.transaction != older.transaction + 1 or newer.transaction & 1 != newer.page)
        ):
            raise Implausible(
                "the meta pages do not belong together: they are of the transactions "
                f"{first.transaction} and {second.transaction}"
            )
        return newer, older

    def _meta(self, number: int, offset: int) -> _Meta:
        data = self._read(_META_BYTES, offset)
        if len(data) < _META_BYTES:
            raise CutOff(f"the file is cut off: it has {self._file_bytes} bytes")
        found, _, flags, _, _ = _PAGE.unpack_from(data)
        magic, version, _, _ = _META.unpack_from(data, _PAGE.size)
        page_bytes, free_flags, *_ = _TREE.unpack_from(data, _TREES_AT)
        if (
            free_flags != _INTEGER_KEYS
            or (found, flags, magic, version) != (number, _IS_META, _MAGIC, _VERSION)
            or page_bytes & (page_bytes - 1)
            or not _PAGE_BYTES_MIN <= page_bytes <= _PAGE_BYTES_MAX
        ):
            raise Implausible(f"the meta page at byte {offset} is damaged")
        free = _tree(_FREE, data, _TREES_AT, _PLAIN)
        free.numbered = True
        trees = _tree("list of trees", data, _TREES_AT + _TREE.size, _IS_TREE)
        last_page, transaction = _META_END.unpack_from(data, _META_BYTES - _META_END.size)
        return _Meta(number, page_bytes, free, trees, last_page, transaction)

    def _walk(self, tree: _Tree) -> None:
        if tree.root != _NO_ROOT:
            self._below(tree, tree.root, 1, None, None)
        for number, pages in sorted(tree.large):  # so that the system can read ahead
            self._check_large(tree, number, pages)
        _, leaves, _, count = tree.said
        if (tree.branches, tree.leaves, tree.overflows, tree.count) != tree.said:
            raise Implausible(
                f"the {tree.name} has {tree.count} entries in {tree.leaves} leaves, and should "
                f"have {count} in {leaves}"
            )

    def _below(
        self, tree: _Tree, number: int, depth: int, first: _Key | None, end: _Key | None
    ) -> None:
        """A page and all that is below it; its keys lie in [first, end)."""
        data = self._page(tree, number)
        is_branch = depth < tree.depth
        _, _, flags, lower, upper = _PAGE.unpack_from(data)
        damaged = Implausible(f"{self._name(tree, number)} is damaged")
        if (
            flags != (_BRANCH if is_branch else _LEAF)
            or not _PAGE.size < lower <= upper <= self._page_bytes
            or lower % 2
        ):
            raise damaged
        keys: list[_Key] = []
        children: list[int] = []
        try:
            for at in struct.unpack_from(f"={(lower - _PAGE.size) // 2}H", data, _PAGE.size):
                low, high, kind, key_bytes = _NODE.unpack_from(data, at)
                value_at = at + _NODE.size + key_bytes
                size = low | high << 16
                if at < upper or value_at > self._page_bytes or not (is_branch or key_bytes):
                    raise damaged
                key = data[at + _NODE.size : value_at]
                keys.append(int.from_bytes(key, sys.byteorder) if tree.numbered else key)
                if is_branch:
                    children.append(size | kind << 32)
                elif kind == _BIG and tree.kind == _PLAIN:
                    big = _NUMBER.unpack_from(data, value_at)[0]
                    pages = -(-(_PAGE.size + size) // self._page_bytes)
                    self._take(tree, big, pages)
                    tree.large.append((big, pages))
                    if tree.numbered:
                        place = big * self._page_bytes + _PAGE.size
                        tree.entries.append((key, self._read(size, place)))
                elif kind != tree.kind or value_at + size > self._page_bytes:
                    raise damaged
                elif not tree.is_plain:
                    tree.entries.append((key, data[value_at : value_at + size]))
        except struct.error:
            raise damaged from None
        if is_branch:
            keys[0] = first  # whatever is there: it stands for all that is smaller
        ordered = [key for key in (*keys, end) if key is not None]
        if any(after <= before for before, after in pairwise(ordered)) or (
            first is not None and keys[0] < first
        ):
            raise Implausible(f"{self._name(tree, number)} has keys that are not in order")
        if is_branch:
            tree.branches += 1
            for child, low_key, end_key in zip(children, keys, [*keys[1:], end], strict=True):
                self._below(tree, child, depth + 1, low_key, end_key)
        else:
            tree.leaves += 1
            tree.count += len(keys)

    def _read(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._file, size, offset)
        except OSError as error:  # LMDB, which maps the file, would die of it
            raise Implausible(f"byte {offset} cannot be read: {error.strerror}") from error

    def _page(self, tree: _Tree, number: int) -> bytes:
        self._take(tree, number, 1)
        data = self._read(self._page_bytes, number * self._page_bytes)
        if _NUMBER.unpack_from(data)[0] != number:
            raise Implausible(f"{self._name(tree, number)} is damaged")
        return data

    def _check_large(self, tree: _Tree, number: int, pages: int) -> None:
        """Check the first page of a large value, which has the number of the value's pages.

        The value may have more pages than it needs. LMDB trusts this number when it frees the
        pages: a wrong one frees pages in use, or pages that do not exist, which ends the process.
        """
        data = self._read(_PAGE.size, number * self._page_bytes)
        found, _, flags, low, high = _PAGE.unpack(data)
        spare = (low | high << 16) - pages
        if (found, flags) != (number, _OVERFLOW) or spare < 0:
            raise Implausible(f"{self._name(tree, number)} is damaged")
        self._take(tree, number + pages, spare)
        tree.overflows += pages + spare

    def _take(self, tree: _Tree, number: int, count: int) -> None:
        """Note that these pages belong to this tree. Raises Implausible if they are another's."""
        if count and not 2 <= number <= self._page_end - count:
            raise Implausible(f"{self._name(tree, number)} is not in use")
        if (number + count) * self._page_bytes > self._file_bytes:
            raise CutOff(
                f"the file is cut off: it has {self._file_bytes} bytes, and "
                f"{self._name(tree, number)} is not there"
            )
        numbers = range(number, number + count)
        if not self._seen.isdisjoint(numbers):
            raise Implausible(f"{self._name(tree, number)} is in two places")
        self._seen.update(numbers)

    def _name(self, tree: _Tree, number: int) -> str:
        return f"page {number} (byte {number * self._page_bytes}) of the {tree.name}"


def _freed(free: _Tree) -> "list[tuple[int, array[int]]]":
    """(transaction, pages that it freed) from the list of free pages."""
    found = []
    for key, value in free.entries:
        count = _NUMBER.unpack_from(value)[0] if len(value) >= 8 else -1
        if not 0 <= count <= len(value) // 8 - 1:
            raise Implausible("the list of free pages is damaged")
        pages = array("Q")
        pages.frombytes(value[8 : 8 + 8 * count])
        found.append((int.from_bytes(key, sys.byteorder), pages))
    return found


def _tree(name: str, data: bytes, offset: int, kind: int) -> _Tree:
    pad, flags, depth, *said, root = _TREE.unpack_from(data, offset)
    branches, leaves, overflows, entries = said
    if name != _FREE and (pad or flags):
        raise Implausible(f"the {name} is damaged")
    return _Tree(name, kind, depth, (branches, leaves, overflows, entries), root)
