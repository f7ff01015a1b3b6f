"""How LMDB's files are opened: LMDB's settings, and a check that LMDB does not make.

LMDB maps its file and trusts it: a damaged file would end the process with SIGBUS or SIGSEGV. So a
file that is opened for writing is checked before (file_check.py).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import lmdb

from qlog.storage.lmdb.file_check import Implausible, check

_COMMIT_FAILED = "commit.failed"  # a file beside LMDB's

# Errors by which LMDB says that a file is damaged. All other errors come from the system.
DAMAGE = (
    lmdb.BadDbiError,
    lmdb.BadTxnError,  # LMDB met damage on its way to what it was asked for
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

    `lock=False` uses no lock file: only to read an environment that nobody has open for writing. An
    environment that may be damaged should be opened `read_only` in a child process. Raises
    lmdb.Error, OSError.
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
    """Raise Implausible when LMDB must not open the environment's file. Raises OSError."""
    check(directory / "data.mdb", commit_failed=(directory / _COMMIT_FAILED).exists())


def note_failed_commit(directory: Path) -> None:
    """Note beside the file that a commit failed, so that the next `check_environment` knows.

    If even the note cannot be written, the next start may be refused; nothing is lost by that.
    """
    with suppress(OSError):
        (directory / _COMMIT_FAILED).touch()
        file = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def forget_failed_commit(directory: Path) -> None:
    """A commit went well, and has replaced the doubtful meta page. Raises OSError."""
    (directory / _COMMIT_FAILED).unlink(missing_ok=True)
