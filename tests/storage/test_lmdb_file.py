"""What LMDB may be let loose on: everything that it writes itself, and nothing that ends it."""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
from pathlib import Path

import lmdb
import pytest

from qlog.storage.index.index import Index
from qlog.storage.index.rows import IndexDoubt
from qlog.storage.lmdb.catalog import CatalogCheckpoint, CatalogDoubt, CatalogFile
from qlog.storage.lmdb.environment import note_failed_commit
from qlog.storage.lmdb.file_check import Implausible, check
from qlog.storage.write.ledger import LedgerPosition

Keys = dict[bytes, list[tuple[bytes, int]]]


def filled(directory: Path, seed: int, transactions: int) -> Path:
    """An environment with a history: trees that grew and shrank, large values, free pages."""
    choice = random.Random(seed)
    directory.mkdir()
    with lmdb.open(str(directory), map_size=64 << 20, max_dbs=4, sync=False) as environment:
        trees = [environment.open_db(name) for name in (b"first", b"second", b"third")]
        for _ in range(transactions):
            with environment.begin(write=True) as transaction:
                for _ in range(choice.choice((0, 1, 30, 600))):
                    key = b"key%d" % choice.randrange(800)
                    tree = choice.choice(trees)
                    if choice.random() < 0.4:
                        transaction.delete(key, db=tree)
                    else:
                        size = choice.choice((0, 40, 40, 40, 2000, 4080, 9000))
                        transaction.put(key, b"\1" * size, db=tree)
                if choice.random() < 0.1:
                    transaction.drop(trees[2], delete=False)
                if choice.random() < 0.1:
                    transaction.abort()
            check(directory / "data.mdb")
    return directory / "data.mdb"


def test_of_two_new_meta_pages_the_first_counts(tmp_path: Path) -> None:
    """A first transaction whose end could not be written leaves the second with trees of no pages."""
    lmdb.open(str(tmp_path), map_size=1 << 20).close()
    path = tmp_path / "data.mdb"
    data = bytearray(path.read_bytes())
    data[4096 + 128 : 4096 + 136] = (2).to_bytes(8, "little")  # the root of the list of trees
    path.write_bytes(data)
    check(path)
    assert keys(tmp_path) == {}


def keys(directory: Path) -> Keys | str:
    """What LMDB finds, in a process of its own; else how that ended."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            found: Keys = {}
            environment = lmdb.open(str(directory), map_size=64 << 20, max_dbs=4)
            with environment.begin() as transaction:
                for name, _ in transaction.cursor():
                    tree = environment.open_db(bytes(name), transaction, create=False)
                    rows = transaction.cursor(db=tree)
                    found[bytes(name)] = [(bytes(key), len(value)) for key, value in rows]
            with os.fdopen(into, "wb") as stream:
                pickle.dump(found, stream)
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(data) if data else f"ended by {status}"


@pytest.mark.parametrize("seed", range(3))
def test_whatever_lmdb_wrote_is_plausible(tmp_path: Path, seed: int) -> None:
    filled(tmp_path / "env", seed, 25)


def test_new_and_missing_files_are_plausible(tmp_path: Path) -> None:
    check(tmp_path / "data.mdb")
    (tmp_path / "data.mdb").touch()
    check(tmp_path / "data.mdb")
    lmdb.open(str(tmp_path)).close()
    check(tmp_path / "data.mdb")


def test_what_is_plausible_can_be_read_whole(tmp_path: Path) -> None:
    """Bits flipped, sectors zeroed, the end cut: it is noticed, or no key is out of reach."""
    whole = filled(tmp_path / "env", 5, 25).read_bytes()
    due = keys(tmp_path / "env")
    choice = random.Random(6)
    (tmp_path / "damaged").mkdir()
    path = tmp_path / "damaged" / "data.mdb"
    noticed = 0
    for _ in range(60):
        data = bytearray(whole)
        page = choice.choice((0, 1, *range(2, len(data) // 4096)))
        position = page * 4096 + choice.randrange(choice.choice((200, 4096)))
        match choice.choice(("flip", "flip", "flip", "zero", "cut")):
            case "flip":
                data[position] ^= 1 << choice.randrange(8)
            case "zero":
                data[position : position + 512] = bytes(len(data[position : position + 512]))
            case _:
                del data[position:]
        path.write_bytes(data)
        (path.parent / "lock.mdb").unlink(missing_ok=True)
        try:
            check(path)
        except Implausible as error:
            assert "\n" not in str(error)
            noticed += 1
        else:
            found = keys(path.parent)
            assert isinstance(found, dict) and isinstance(due, dict)
            names = {name: [key for key, _ in rows] for name, rows in found.items()}
            if names != {name: [key for key, _ in rows] for name, rows in due.items()}:
                # A key's own bytes may be others, which its row's hash tells.
                assert {name: len(rows) for name, rows in found.items()} == {
                    name: len(rows) for name, rows in due.items()
                }
    assert noticed > 5


def test_no_wrong_transaction_number_leads_back_in_time(tmp_path: Path) -> None:
    """LMDB would take the older meta page for the newer one, and nobody would know."""
    path = filled(tmp_path / "env", 5, 25)
    whole = path.read_bytes()
    due = keys(tmp_path / "env")
    passed = 0
    for bit in range(2 * 64):
        data = bytearray(whole)
        data[(bit // 64) * 4096 + 144 + bit % 64 // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            check(path)
        except Implausible:
            continue
        passed += 1
        assert keys(tmp_path / "env") == due
    assert passed < 4


def put(catalog: CatalogFile, name: str, value: bytes) -> None:
    position = CatalogCheckpoint(bytes(16), 1, LedgerPosition(1, 64, 0))
    catalog.apply({("queue", name): value}, position)


def test_what_a_failed_commit_leaves_is_no_damage(tmp_path: Path) -> None:
    """LMDB wrote a new meta page in vain, and put the old number and the old end over it."""
    place = tmp_path / "env"
    path = place / "data.mdb"
    catalog = CatalogFile(place, map_bytes=64 << 20)
    for number in range(9):
        before = path.read_bytes()
        put(catalog, "one", b"%d" % number)
    catalog.close()
    after = bytearray(path.read_bytes())
    (page,) = [at for at in (0, 1) if after[at * 4096 :][:168] != before[at * 4096 :][:168]]
    last_page_and_number = slice(page * 4096 + 136, page * 4096 + 152)
    after[last_page_and_number] = before[last_page_and_number]
    path.write_bytes(after)
    with pytest.raises(Implausible, match="transaction number"):
        check(path)
    note_failed_commit(place)
    shutil.move(place, tmp_path / "moved")  # LMDB opens a place once a process
    catalog = CatalogFile(tmp_path / "moved", map_bytes=64 << 20)
    assert [*catalog.items("queue")] == [("one", b"7")]
    put(catalog, "two", b"")
    catalog.close()
    check(tmp_path / "moved" / "data.mdb")
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["data.mdb", "lock.mdb"]


def test_a_file_that_was_cut_is_refused_and_not_mapped(tmp_path: Path) -> None:
    """LMDB would end the process with SIGBUS."""
    path = filled(tmp_path / "env", 7, 10)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CatalogDoubt, match="cut off"):
        CatalogFile(tmp_path / "env", map_bytes=64 << 20)
    with pytest.raises(IndexDoubt, match="cut off"):
        Index(tmp_path / "env", map_bytes=64 << 20)


def test_pages_that_were_never_written_are_no_damage(tmp_path: Path) -> None:
    """What one transaction puts and deletes can leave the file shorter than LMDB's own count."""
    choice = random.Random(0)
    path = tmp_path / "env" / "data.mdb"
    shorter = 0
    for step in range(10):
        catalog = CatalogFile(tmp_path / "env", map_bytes=64 << 20)
        names = [f"{step}-{number}" for number in range(choice.randrange(100))]
        with catalog._env.begin(write=True) as transaction:
            for name in names:
                value = bytes(choice.choice((10, 3500)))
                transaction.put(name.encode(), value, db=catalog._entries)
            for name in choice.sample(names, len(names) // 2):
                transaction.delete(name.encode(), db=catalog._entries)
        catalog.close()
        with lmdb.open(str(tmp_path / "env"), readonly=True, lock=False) as environment:
            pages = environment.info()["last_pgno"] + 1
        shorter += path.stat().st_size < pages * 4096
    assert shorter
    CatalogFile(tmp_path / "env", map_bytes=64 << 20).close()


def test_a_page_that_cannot_be_read_is_implausible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "data", 1, 3)

    def pread(file: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(Implausible, match="byte 0 cannot be read"):
        check(path)
