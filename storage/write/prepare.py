"""Segments whose space is reserved before they are needed.

A file is created with its space reserved, and is synced, renamed, and its directory synced, before
anything is written to it. Two threads share this state, under a lock.
"""

import threading
from contextlib import suppress
from pathlib import Path

from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk


def create(disk: Disk, path: Path, size: int) -> int:
    """A new file of zeros with `size` bytes reserved, durable under its name; open for writing."""
    temporary = path.with_name(path.name + ".new")
    file = disk.open(temporary, write=True, create=True)
    try:
        disk.truncate(file, 0)  # what an earlier attempt left
        disk.allocate(file, size)
        disk.sync_data(file)
        disk.rename(temporary, path)
        disk.sync_directory(path.parent)
    except BaseException:
        disk.close(file)
        with suppress(OSError):  # give the space back; the error itself is raised
            disk.unlink(temporary)
        raise
    return file


class Nursery:
    """Segments made before they are needed, so that no confirm waits for a file's creation.

    Used by two threads: one prepares ahead, the other takes what it needs, prepared or not.
    """

    def __init__(self, disk: Disk, paths: Paths) -> None:
        self._disk = disk
        self._paths = paths
        self._lock = threading.Lock()
        self._ready: dict[int, int] = {}
        self._taken = 0  # the highest id taken

    def prepare(self, segment_id: int, size: int) -> None:
        """Have this segment ready. Raises OSError."""
        with self._lock:
            if segment_id > self._taken and segment_id not in self._ready:
                path = self._paths.segment(segment_id)
                self._ready[segment_id] = create(self._disk, path, size)

    def take(self, segment_id: int, size: int) -> int:
        """The open file of this segment. Raises OSError."""
        with self._lock:
            file = self._ready.pop(segment_id, None)
            if file is None:
                file = create(self._disk, self._paths.segment(segment_id), size)
            self._taken = segment_id
            return file

    def close(self) -> None:
        with self._lock:
            for file in self._ready.values():
                self._disk.close(file)
            self._ready.clear()
