"""The catalog's file: a checkpoint of the definitions in LMDB, derived from the ledger.

    entries     kind, 0, name -> hash, msgpack of [name, value]
    checkpoint  -> hash, up to where the ledger is in here

A checkpoint is one transaction, synced. Every value carries a hash that is seeded with its key: a
damaged or misplaced value is reported by its name, and never returned. A start makes the file anew
if it is damaged, missing, or another directory's. The environment must not be used across a fork.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lmdb
import msgpack
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from qlog.storage.bytes.batch import FORMAT_VERSION
from qlog.storage.catalog import Definition
from qlog.storage.lmdb.environment import (
    DAMAGE,
    forget_failed_commit,
    note_failed_commit,
    open_environment,
)
from qlog.storage.lmdb.headroom import Headroom
from qlog.storage.write.ledger import LedgerPosition

_HASH = struct.Struct("<Q")
_CHECKPOINT = b"checkpoint"
_NAME_BYTES_MAX = 400  # LMDB's keys end at 511 bytes; longer names are cut and hashed


class CatalogDoubt(Exception):
    """The file is not what it should be: it must be made anew."""


@dataclass(frozen=True, slots=True)
class Row:
    """An entry. A damaged one has no value, and its name is what its key says (cut, when long)."""

    kind: str
    name: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class CatalogCheckpoint:
    """Up to where the ledger is in the file: it had been synced up to there."""

    uuid: bytes
    epoch: int
    ledger: LedgerPosition


class CatalogFile:
    """An open catalog file. All methods raise CatalogDoubt on damage, lmdb.Error when the disk
    fails.

    `reserve_bytes` of the disk are kept for writing when it is full.
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
        """`lock=False`: read without a lock file, see `open_environment`."""
        self._directory = directory
        self._was_failed = True  # the last commit may have failed, in this process or another
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
        except lmdb.Error as error:
            raise CatalogDoubt(str(error)) from error
        try:
            self._headroom = Headroom(self._env, directory, reserve_bytes)
            self._entries = self._env.open_db(b"entries", create=not read_only)
            self._checkpoint = self._env.open_db(b"checkpoint", create=not read_only)
        except lmdb.Error as error:
            self._env.close()
            raise CatalogDoubt(str(error)) from error

    def checkpoint(self) -> CatalogCheckpoint | None:
        """Up to where the ledger is in here; None in a file that was never finished."""
        with self._transaction() as transaction:
            row = transaction.get(_CHECKPOINT, db=self._checkpoint)
        if row is None:
            return None
        version, uuid, epoch, ledger = msgpack.unpackb(_open(_CHECKPOINT, bytes(row)))
        if version != FORMAT_VERSION:
            raise CatalogDoubt(f"format {version}")
        return CatalogCheckpoint(uuid, epoch, LedgerPosition(*ledger))

    def entries(self) -> dict[Definition, bytes]:
        """All definitions, verified."""
        found = {}
        for key, row in self.raw_rows():
            kind, _, _ = key.partition(b"\0")
            name, value = msgpack.unpackb(_open(key, row))
            found[kind.decode(), name] = value
        return found

    def items(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """All names and values of a kind."""
        return (
            (name, value) for (of_kind, name), value in self.entries().items() if of_kind == kind
        )

    def rows(self) -> Iterator[Row]:
        """Every entry, damaged ones too."""
        for key, row in self.raw_rows():
            yield unpack_row(key, row)

    def raw_rows(self) -> list[tuple[bytes, bytes]]:
        """Every entry as it lies in the file; `unpack_row` decodes it."""
        with self._transaction() as transaction, transaction.cursor(db=self._entries) as cursor:
            return [(bytes(key), bytes(value)) for key, value in cursor]

    def apply(
        self, changes: Mapping[Definition, bytes | None], checkpoint: CatalogCheckpoint
    ) -> None:
        """One transaction, synced. Applied twice, the result is the same.

        Raises the OSError of a full disk when even the reserve does not suffice; nothing was
        changed then.
        """
        self._headroom.grow()
        try:
            self._write(changes.items(), checkpoint)
        except lmdb.Error as error:
            if not isinstance(error, lmdb.MapFullError):
                self._was_failed = True
                note_failed_commit(self._directory)
            full = self._headroom.full(error)
            if full is None:
                raise
            raise full from error
        if self._was_failed:
            forget_failed_commit(self._directory)
            self._was_failed = False

    def _write(
        self, changes: Iterable[tuple[Definition, bytes | None]], checkpoint: CatalogCheckpoint
    ) -> None:
        with self._transaction(write=True) as transaction:
            for (kind, name), value in changes:
                key = _key(kind, name)
                if value is None:
                    transaction.delete(key, db=self._entries)
                else:
                    row = _close(key, msgpack.packb([name, value]))
                    transaction.put(key, row, db=self._entries)
            ledger = checkpoint.ledger
            row = msgpack.packb(
                [
                    FORMAT_VERSION,
                    checkpoint.uuid,
                    checkpoint.epoch,
                    [ledger.file_id, ledger.position, ledger.number],
                ]
            )
            transaction.put(_CHECKPOINT, _close(_CHECKPOINT, row), db=self._checkpoint)

    def close(self) -> None:
        self._env.close()

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator["lmdb.Transaction[bytes]"]:
        """A transaction, in which errors that mean damage become CatalogDoubt."""
        try:
            with self._env.begin(write=write) as transaction:
                yield transaction
        except DAMAGE as error:
            raise CatalogDoubt(str(error)) from error


def unpack_row(key: bytes, row: bytes) -> Row:
    """An entry from the octets that the environment has."""
    kind, _, key_name = (part.decode(errors="replace") for part in key.partition(b"\0"))
    try:
        name, value = msgpack.unpackb(_open(key, row))
    except CatalogDoubt:
        return Row(kind, key_name, None)
    return Row(kind, name, value)


def _key(kind: str, name: str) -> bytes:
    assert "\0" not in kind
    encoded = name.encode()
    if len(encoded) > _NAME_BYTES_MAX:
        encoded = encoded[:_NAME_BYTES_MAX] + xxh3_128_digest(encoded)
    return kind.encode() + b"\0" + encoded


def _close(key: bytes, data: bytes) -> bytes:
    return _HASH.pack(xxh3_64_intdigest(data, xxh3_64_intdigest(key))) + data


def _open(key: bytes, row: bytes) -> bytes:
    data = row[_HASH.size :]
    digest = xxh3_64_intdigest(data, xxh3_64_intdigest(key))
    if len(row) < _HASH.size or _HASH.unpack_from(row)[0] != digest:
        kind, _, name = key.partition(b"\0")
        raise CatalogDoubt(
            f"the entry {name.decode(errors='replace')!r} of kind "
            f"{kind.decode(errors='replace')!r} is damaged"
        )
    return data
