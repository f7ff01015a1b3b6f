"""What the catalog and the index say, read where LMDB may crash and where a broker may be at work.

Promises not to disturb anybody. If no process has an environment open, it is read without LMDB's
lock file, so nothing at all is written. If a broker has it open, the read takes a place in LMDB's
reader table, as LMDB wants it, for as long as it lasts. The system is asked whether a process has
it open (a test of the lock that every user of an environment holds); no lock is taken for that.

LMDB maps its file and trusts it: a damaged file ends the process that reads it. So a child process
reads, and its crash is a finding like others. Knows nothing of log and ledger.
"""

import faulthandler
import os
import pickle
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import lmdb

from qlog.storage.catalog import Definition
from qlog.storage.errors import OtherFormat, StorageError
from qlog.storage.index.index import Checkpoint, Index, LaneRow, Live
from qlog.storage.index.rows import IndexDoubt
from qlog.storage.lmdb.catalog import CatalogCheckpoint, CatalogDoubt, CatalogFile
from qlog.storage.lmdb.environment import check_environment
from qlog.storage.lmdb.file_check import CutOff, Implausible
from qlog.storage.settings import StoreSettings
from qlog.storage.start.examine import is_open

T = TypeVar("T")
C = TypeVar("C")

_DOUBTS = (CatalogDoubt, IndexDoubt, lmdb.Error, ValueError, TypeError)
_READ_S_MAX = 120  # a damaged tree could also lead in circles
_TRIES_MAX = 5


class Unreadable(Exception):
    """The environment is missing or damaged: a finding, `str()` says which."""


class Forbidden(Exception):
    """The environment may not be read by us; `str()` is one line that says what to do."""


@dataclass(slots=True)
class Facts(Generic[C]):
    """What an environment says. `doubt`: why a start makes it anew; empty when it is good."""

    checkpoint: C | None = None
    doubt: str = ""


@dataclass(slots=True)
class CatalogFacts(Facts[CatalogCheckpoint]):
    entries: dict[Definition, bytes] = field(default_factory=dict)  # the whole ones
    damaged: list[Definition] = field(default_factory=list)  # long names are cut


@dataclass(slots=True)
class IndexFacts(Facts[Checkpoint]):
    """The index but its pointers. With a doubt, there may be more in it that is not here."""

    lanes: dict[int, LaneRow] = field(default_factory=dict)
    live: dict[int, Live] = field(default_factory=dict)
    readable: bool = False  # this directory's, as far as it says, and not missing


def is_in_use(directory: Path) -> bool:
    """Whether any process has this environment open. Raises Forbidden."""
    try:
        return is_open(directory)
    except PermissionError as error:
        raise _forbidden(directory) from error


def _forbidden(directory: Path) -> Forbidden:
    return Forbidden(
        f"{directory} cannot be read with these rights; run as the user that the broker runs as"
    )


def read(directory: Path, work: Callable[[Path, bool], T]) -> T:
    """The result of `work(directory, lock)`, which runs in a child process and is pickled.

    Raises Unreadable, Forbidden, OtherFormat.
    """
    data = directory / "data.mdb"
    for _ in range(_TRIES_MAX):
        if not data.exists():
            raise Unreadable("it is missing")
        if not os.access(data, os.R_OK):
            raise _forbidden(directory)
        in_use = is_in_use(directory)
        if in_use and not os.access(directory / "lock.mdb", os.W_OK):
            raise Forbidden(
                f"{directory} is in use by a broker, and reading it takes a place in its lock.mdb, "
                "which cannot be written here; run as the broker's user, or inspect a copy"
            )
        try:
            if not in_use:
                check_environment(directory)
        except CutOff as error:
            raise Unreadable(str(error)) from error
        except Implausible:
            pass  # LMDB may find more in it, or die; Directory notes it
        try:
            found = _isolated(lambda: work(directory, in_use))  # noqa: B023 - called at once
        except Unreadable:
            if in_use == is_open(directory):
                if in_use:
                    _clear_readers(directory)
                raise
            continue
        if in_use or not is_open(directory):
            return found
        # A broker started meanwhile, and may have changed what was being read: once more.
    raise Unreadable("a broker starts and stops on it all the time")


def _isolated(work: Callable[[], T]) -> T:
    """Do the work in a child process. Raises Unreadable when it fails, or the child crashes."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(out)
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # LMDB's last words
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_READ_S_MAX)
            answer: object
            try:
                answer = work()
            except (OtherFormat, Unreadable) as error:
                answer = error
            except (StorageError, *_DOUBTS, OSError) as error:
                answer = Unreadable(str(error))
            with os.fdopen(into, "wb") as stream:
                pickle.dump(answer, stream, pickle.HIGHEST_PROTOCOL)
            status = 0
        finally:
            os._exit(status)
    os.close(into)
    with os.fdopen(out, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise Unreadable("it is damaged so that LMDB fails on it")
    result: T | Exception = pickle.loads(data)
    if isinstance(result, Exception):
        raise result
    return result


def _clear_readers(directory: Path) -> None:
    """A child that crashed left its place in the reader table, which would keep pages from use."""
    try:
        with lmdb.open(str(directory), readonly=True, create=False) as environment:
            environment.reader_check()
    except lmdb.Error as error:
        raise Unreadable(str(error)) from error


def open_index(directory: Path, lock: bool) -> Index:
    return Index(directory, map_bytes=StoreSettings().index_map_bytes, read_only=True, lock=lock)


def read_catalog(directory: Path, lock: bool) -> CatalogFacts:
    """What the catalog says; see `read`."""
    map_bytes = StoreSettings().catalog_map_bytes
    with closing(CatalogFile(directory, map_bytes=map_bytes, read_only=True, lock=lock)) as catalog:
        facts = CatalogFacts()
        for row in catalog.rows():
            if row.value is None:
                facts.damaged.append((row.kind, row.name))
            else:
                facts.entries[row.kind, row.name] = row.value
        try:
            facts.checkpoint = catalog.checkpoint()
        except _DOUBTS as doubt:
            facts.doubt = str(doubt) or "it is damaged"
        return facts


def read_index(directory: Path, lock: bool) -> IndexFacts:
    """What the index says; see `read`."""
    with closing(open_index(directory, lock)) as index:
        facts = IndexFacts(index.checkpoint(), readable=True)
        try:  # all that a start reads before it uses the index
            facts.lanes, facts.live = index.lanes(), index.live()
            for _ in index.bitmaps():
                pass
        except _DOUBTS as doubt:
            facts.doubt = str(doubt) or "it is damaged"
        return facts
