"""The only file that creates, writes, syncs, renames and unlinks (LMDB does its own, and a backup
links files to a second name).

It only passes calls on. Tests replace the `Disk` by one that fails, loses what was not synced, or
tears what was written. File handles are plain integers that only the disk which gave them
understands. This file knows no formats and no file names.
"""

import fcntl
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from qlog.storage.errors import SyncFailed


class Disk(Protocol):
    """What storage asks of a file system. Paths are absolute; offsets and sizes are bytes.

    All methods raise OSError; the two syncs raise `SyncFailed`, since only they must never be
    tried again.
    """

    def make_directory(self, path: Path) -> None:
        """Create a directory and its parents; one that exists is no error."""

    def names(self, path: Path) -> list[str]:
        """The sorted names in a directory."""

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        """Open for reading, or for writing too; `create` makes the file when it is missing."""

    def close(self, file: int) -> None: ...

    def size(self, file: int) -> int: ...

    def read(self, file: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""

    def will_read(self, file: int, size: int, offset: int) -> None:
        """A hint that these bytes are wanted soon."""

    def write(self, file: int, buffers: Sequence[bytes], offset: int) -> None:
        """Write all the buffers, one behind the other. An error may leave some bytes written."""

    def allocate(self, file: int, size: int) -> None:
        """Reserve space, so that writes below `size` need none; the file reads as zeros there."""

    def truncate(self, file: int, size: int) -> None: ...

    def sync_data(self, file: int) -> None:
        """fdatasync: the bytes, and the size when it matters for reading them."""

    def sync_directory(self, path: Path) -> None:
        """fsync of a directory: creations, renames and unlinks in it are durable."""

    def rename(self, source: Path, target: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def lock(self, file: int) -> bool:
        """Take the exclusive lock of an open file; False when another one holds it."""

    def release(self, below: Path | None = None) -> None:
        """Close the files that the disk keeps open for itself, or those of a directory.

        The disk can still be used.
        """


class OSDisk:
    """The operating system's disk.

    Directories that were synced are kept open. A sync comes after names have changed, and must not
    fail because no file descriptor is left.
    """

    def __init__(self) -> None:
        self._directories: dict[Path, int] = {}
        self._opening = threading.Lock()

    def make_directory(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def names(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        flags = os.O_CLOEXEC | (os.O_RDWR if write else os.O_RDONLY) | (os.O_CREAT if create else 0)
        return os.open(path, flags, 0o640)

    def close(self, file: int) -> None:
        os.close(file)

    def size(self, file: int) -> int:
        return os.fstat(file).st_size

    def read(self, file: int, size: int, offset: int) -> bytes:
        data = os.pread(file, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        got = len(data)
        while got < size:  # one read gives at most 2 GiB, and may stop short for no good reason
            data = os.pread(file, size - got, offset + got)
            if not data:
                break
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def will_read(self, file: int, size: int, offset: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, offset, size, os.POSIX_FADV_WILLNEED)

    def write(self, file: int, buffers: Sequence[bytes], offset: int) -> None:
        total = sum(map(len, buffers))
        written = os.pwritev(file, buffers, offset)
        if written < total:  # rare (a signal, 2 GiB, a disk filling up): the copy does not matter
            rest = memoryview(b"".join(buffers))
            while written < total:
                written += os.pwrite(file, rest[written:], offset + written)

    def allocate(self, file: int, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        elif self.size(file) < size:
            os.ftruncate(file, size)

    def truncate(self, file: int, size: int) -> None:
        os.ftruncate(file, size)

    def sync_data(self, file: int) -> None:
        try:
            if sys.platform == "darwin":  # fsync there stops at the drive's cache
                fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            else:
                os.fdatasync(file)
        except OSError as error:
            raise SyncFailed(f"a sync failed: {error.strerror}; check the disk") from error

    def sync_directory(self, path: Path) -> None:
        # A directory that cannot be opened is not synced: what was renamed in it is in doubt.
        try:
            os.fsync(self._directory(path))
        except OSError as error:
            raise SyncFailed(f"syncing {path} failed: {error.strerror}; check the disk") from error

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def lock(self, file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self, below: Path | None = None) -> None:
        with self._opening:
            for path in list(self._directories):
                if below is None or path.is_relative_to(below):
                    os.close(self._directories.pop(path))

    def __del__(self) -> None:
        self.release()  # the disk of a command, which nobody closes

    def _directory(self, path: Path) -> int:
        with self._opening:
            file = self._directories.get(path)
            if file is not None:
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return file
                os.close(self._directories.pop(path))  # another directory has that name now
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
            file = self._directories[path] = os.open(path, flags)
            return file
