"""Named definitions, kept in LMDB: what a kind or a value means is known to others.

One transaction is one sync commit: when `transaction()` ends, all in it is durable, or nothing is.
Every value carries a hash that is seeded with its key, so that a damaged or misplaced one is named
and never returned. The environment must not be used across a fork.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lmdb
import msgpack
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from qlog.storage.errors import DirectoryUnreadable, is_shortage
from qlog.storage.lmdb.environment import (
    DAMAGE,
    forget_failed_commit,
    note_failed_commit,
    open_environment,
)
from qlog.storage.lmdb.headroom import Headroom

_HASH = struct.Struct("<Q")
_NAME_BYTES_MAX = 400  # LMDB's keys end at 511 bytes; longer names are cut and hashed


@dataclass(frozen=True, slots=True)
class Row:
    """An entry. A damaged one has no value, and its name is what its key says (cut, when long)."""

    kind: str
    name: str
    value: bytes | None


class Catalog:
    """The definitions of one data directory.

    All methods raise DirectoryUnreadable on damage; those that write, when they cannot, too: if it is
    not for lack of space, `on_failure` is told before, since the disk is not to be trusted then (and
    LMDB may have come to rely on its not having failed).
    """

    def __init__(
        self,
        directory: Path,
        *,
        map_bytes: int,
        reserve_bytes: int = 0,
        read_only: bool = False,
        lock: bool = True,
    ) -> None:
        """`reserve_bytes` of the disk are kept for writing when it is full.

        `lock=False`: read without a lock file, see `open_environment`.
        """
        self.on_failure: Callable[[BaseException], None] = _ignore
        self._transaction: lmdb.Transaction | None = None
        self._directory = directory
        self._was_failed = True  # the commit before, be it another process's, as far as is known
        if not read_only:
            directory.mkdir(mode=0o750, exist_ok=True)
        try:
            self._env = open_environment(
                directory,
                map_bytes=map_bytes,
                dbs_max=4,
                read_only=read_only,
                lock=lock,
            )
            self._headroom = Headroom(self._env, directory, reserve_bytes)
            self._entries = self._env.open_db(b"entries", create=not read_only)
        except lmdb.Error as error:
            advice = "check the disk and the rights"
            if isinstance(error, DAMAGE):
                advice = "restore it from a copy, or see what is left with `qlog inspect repair`"
            raise DirectoryUnreadable(
                f"the catalog {directory} cannot be opened: {error}; {advice}"
            ) from error

    def get(self, kind: str, name: str) -> bytes | None:
        """The value under this name, or None."""
        key = _key(kind, name)
        with self._reading() as transaction:
            row = transaction.get(key, db=self._entries)
        return None if row is None else _check(key, bytes(row))[1]

    def put(self, kind: str, name: str, value: bytes) -> None:
        """Set a value; durable on return, or with the surrounding transaction."""
        key = _key(kind, name)
        data = msgpack.packb([name, value])
        row = _HASH.pack(_digest(key, data)) + data
        with self._writing() as transaction:
            transaction.put(key, row, db=self._entries)

    def delete(self, kind: str, name: str) -> bool:
        """Remove a value; whether there was one."""
        with self._writing() as transaction:
            return bool(transaction.delete(_key(kind, name), db=self._entries))

    def items(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """All names and values of a kind, as they are now."""
        prefix = kind.encode() + b"\0"
        rows = []
        with self._reading() as transaction, transaction.cursor(db=self._entries) as cursor:
            found = cursor.set_range(prefix)
            while found and bytes(cursor.key()).startswith(prefix):
                rows.append((bytes(cursor.key()), bytes(cursor.value())))
                found = cursor.next()
        for key, row in rows:
            yield _check(key, row)

    def rows(self) -> Iterator[Row]:
        """Every entry, damaged ones too."""
        for key, row in self.raw_rows():
            yield unpack_row(key, row)

    def raw_rows(self) -> list[tuple[bytes, bytes]]:
        """Every entry as it lies there; `unpack_row` says what it is."""
        with self._reading() as transaction, transaction.cursor(db=self._entries) as cursor:
            return [(bytes(key), bytes(value)) for key, value in cursor]

    def verify(self) -> None:
        """Look at every row: one whose key is damaged is found by nobody who asks for it."""
        for key, row in self.raw_rows():
            _check(key, row)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything in the block is one commit; an exception undoes all of it."""
        with self._writing():
            yield

    def close(self) -> None:
        self._env.close()

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        if self._transaction is not None:
            yield self._transaction
            return
        try:
            with self._env.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise DirectoryUnreadable(f"the catalog cannot be read: {error}") from error

    @contextmanager
    def _writing(self) -> Iterator[lmdb.Transaction]:
        if self._transaction is not None:
            yield self._transaction
            return
        self._grow()
        try:
            with self._env.begin(write=True) as transaction:
                self._transaction = transaction
                try:
                    yield transaction
                finally:
                    self._transaction = None
            if self._was_failed:
                forget_failed_commit(self._directory)
                self._was_failed = False
        except lmdb.Error as error:
            if not isinstance(error, lmdb.MapFullError):
                self._was_failed = True
                note_failed_commit(self._directory)
            full = self._headroom.full(error)
            failure = DirectoryUnreadable(f"the catalog cannot be written: {full or error}")
            if full is None and not isinstance(error, lmdb.MapFullError):
                self.on_failure(failure)
            raise failure from error

    def _grow(self) -> None:
        try:
            self._headroom.grow()
        except OSError as error:
            failure = DirectoryUnreadable(f"the catalog cannot be written: {error}")
            if not is_shortage(error):
                self.on_failure(failure)
            raise failure from error


def _ignore(failure: BaseException) -> None:
    """Nobody cares."""


def unpack_row(key: bytes, row: bytes) -> Row:
    """An entry from the octets that the environment has."""
    kind, _, key_name = (part.decode(errors="replace") for part in key.partition(b"\0"))
    try:
        name, value = _check(key, row)
    except DirectoryUnreadable:
        return Row(kind, key_name, None)
    return Row(kind, name, value)


def _key(kind: str, name: str) -> bytes:
    assert "\0" not in kind
    encoded = name.encode()
    if len(encoded) > _NAME_BYTES_MAX:
        encoded = encoded[:_NAME_BYTES_MAX] + xxh3_128_digest(encoded)
    return kind.encode() + b"\0" + encoded


def _digest(key: bytes, data: bytes) -> int:
    return xxh3_64_intdigest(data, xxh3_64_intdigest(key))


def _check(key: bytes, row: bytes) -> tuple[str, bytes]:
    data = row[_HASH.size :]
    if len(row) < _HASH.size or _HASH.unpack_from(row)[0] != _digest(key, data):
        kind, _, name = key.partition(b"\0")
        raise DirectoryUnreadable(
            f"the catalog's entry {name.decode(errors='replace')!r} of kind "
            f"{kind.decode(errors='replace')!r} is damaged; restore catalog.lmdb from a copy, "
            "or see what is left with `qlog inspect repair`"
        )
    name_and_value = msgpack.unpackb(data)
    return name_and_value[0], name_and_value[1]
