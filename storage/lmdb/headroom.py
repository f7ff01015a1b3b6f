"""Space behind the end of an LMDB file, so that LMDB finds some when the disk is full.

LMDB writes changed pages to free places, and makes the file longer when there are too few. The file
is therefore kept longer than it is used, its space allocated; LMDB takes no notice of what lies
behind its last page. Without this, acks of a full disk's consumers would never reach the index, and
what they make free would not be given back.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

import lmdb

from qlog.storage.errors import is_shortage

# LMDB passes a system's error on as text only. A write that the disk takes in part it calls EIO.
_FULL_TEXTS = ("No space left", "too large", "quota")
_PERHAPS_FULL_TEXT = "Input/output error"


class Headroom:
    """Of one environment. Used on the thread that writes to it, between transactions."""

    def __init__(self, environment: lmdb.Environment, directory: Path, reserve_bytes: int) -> None:
        self._environment = environment
        self._path = directory / "data.mdb"
        self._reserve_bytes = reserve_bytes
        self._looked = False

    def grow(self) -> bool:
        """Have the reserve there; whether there was space for it. Raises OSError."""
        if not self._reserve_bytes:
            return True
        page_bytes = self._environment.stat()["psize"]
        used = (self._environment.info()["last_pgno"] + 1) * page_bytes
        left = os.stat(self._path).st_size - used
        # A part of it may be used up before there is another call. The first time it is made sure
        # that what is there is not a hole, as in a copy.
        if self._looked and left >= self._reserve_bytes // 4 * 3:
            return True
        self._looked = self._allocate(used, self._reserve_bytes)
        return self._looked

    def full(self, error: lmdb.Error) -> OSError | None:
        """The error as that of a full disk, if it is one."""
        text = str(error)
        if any(known in text for known in _FULL_TEXTS):
            return self._no_space()
        if _PERHAPS_FULL_TEXT in text:
            with suppress(OSError):  # what was written in part took the last there was
                if not self._allocate(os.stat(self._path).st_size, 1):
                    return self._no_space()
        return None

    def _allocate(self, start: int, size: int) -> bool:
        """Whether there was space."""
        if hasattr(os, "posix_fallocate"):
            file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.posix_fallocate(file, start, size)
            except OSError as error:
                if not is_shortage(error):
                    raise
                return False
            finally:
                os.close(file)
        return True

    def _no_space(self) -> OSError:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
