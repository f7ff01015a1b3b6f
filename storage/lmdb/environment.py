"""How LMDB's files are opened: its own settings in one place, and one check that it does not make.

LMDB maps its file and trusts it: a damaged one would end the process with SIGBUS or SIGSEGV. So what
is to be written, by the only process that has it open, is looked at before (lmdb_file.py).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import lmdb

from qlog.storage.lmdb.file_check import Implausible, check

_COMMIT_FAILED = "commit.failed"  # a file beside LMDB's

# What LMDB says of a file that is not as it wrote it. All else is the system's word.
DAMAGE = (
    lmdb.BadDbiError,
    lmdb.BadTxnError,  # it came upon damage on its way to what it was asked for
    lmdb.CorruptedError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.ProblemError,
    lmdb.VersionMismatchError,
)


def open_environment(
    directory: Path,
    *,
    map_bytes: int,
    dbs_max: int,
    read_only: bool,
    lock: bool,
) -> lmdb.Environment:
    """Open, or make, the environment in a directory.

    `lock=False` uses no lock file: for one that is read where nobody can have it open for writing.
    Who opens one that is damaged `read_only` should do so in a child process. Raises lmdb.Error,
    OSError.
    """
    assert lock or read_only
    if not read_only:
        try:
            check_environment(directory)
        except Implausible as error:
            raise lmdb.CorruptedError(str(error)) from error
    return lmdb.open(
        str(directory),
        map_size=map_bytes,
        max_dbs=dbs_max,
        readonly=read_only,
        create=not read_only,
        sync=True,
        metasync=True,
        writemap=False,
        readahead=False,
        lock=lock,
        mode=0o640,
    )


def check_environment(directory: Path) -> None:
    """Raise Implausible when LMDB must not have the environment's file. Raises OSError."""
    check(directory / "data.mdb", commit_failed=(directory / _COMMIT_FAILED).exists())


def note_failed_commit(directory: Path) -> None:
    """Let the next `check_environment` know what LMDB may have left.

    On a disk that does not take even that, the next start may be refused, and lose nothing.
    """
    with suppress(OSError):
        (directory / _COMMIT_FAILED).touch()
        file = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def forget_failed_commit(directory: Path) -> None:
    """A commit went well: it has put a sound meta page in the place of what was left. Raises OSError."""
    (directory / _COMMIT_FAILED).unlink(missing_ok=True)
