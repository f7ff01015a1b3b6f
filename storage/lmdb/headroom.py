"""Space behind the end of an LMDB file, so that LMDB finds some when the disk is full.

LMDB writes changed pages to free places, and makes the file longer when there are too few. So the
file is kept longer than LMDB uses it, with its space allocated; LMDB ignores what lies behind its
last page. Without this reserve, acknowledgements would not reach the index when the disk is full,
and the space of acknowledged messages would not be given back.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

import lmdb

from qlog.storage.errors import is_shortage

# LMDB passes an error of the system on as text only. When the disk takes a write in part, LMDB says
# EIO.
_FULL_TEXTS = ("No space left", "too large", "quota")
_PERHAPS_FULL_TEXT = "Input/output error"


class Headroom:
    """The reserve of one environment.

    Used on the thread that writes to it, between transactions.
    """

    def __init__(self, environment: lmdb.Environment, directory: Path, reserve_bytes: int) -> None:
        self._environment = environment
        self._path = directory / "data.mdb"
        self._reserve_bytes = reserve_bytes
        self._looked = False

    def grow(self) -> bool:
        """Make the reserve as large as it should be. False: there is no space. Raises OSError."""
        if not self._reserve_bytes:
            return True
        page_bytes = self._environment.stat()["psize"]
        used = (self._environment.info()["last_pgno"] + 1) * page_bytes
        left = os.stat(self._path).st_size - used
        # A part of the reserve may be used up before the next call. The first call allocates the
        # whole reserve again: in a copied file it may be a hole.
        if self._looked and left >= self._reserve_bytes // 4 * 3:
            return True
        self._looked = self._allocate(used, self._reserve_bytes)
        return self._looked

    def full(self, error: lmdb.Error) -> OSError | None:
        """The OSError of a full disk, if that is what LMDB's error means; else None."""
        text = str(error)
        if any(known in text for known in _FULL_TEXTS):
            return self._no_space()
        if _PERHAPS_FULL_TEXT in text:
            with suppress(OSError):  # the write that was taken in part has used the last space
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
