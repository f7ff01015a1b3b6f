"""Reading from a disk that does not give everything back: zeros stand for what it does not give.

So a bad sector is damage like any other, and what is around it is read. Knows no formats.
"""

from collections import defaultdict
from pathlib import Path

from qlog.storage.bytes.disk import OSDisk

_PIECE_BYTES = 4096  # what a system reads at least


class ForgivingDisk(OSDisk):
    """The operating system's disk. No read fails: what cannot be read is zeros, and is noted."""

    def __init__(self) -> None:
        super().__init__()
        self._paths: dict[int, Path] = {}  # of open files
        # by file the pieces that were not read: where they begin -> end, why
        self._bad: defaultdict[Path, dict[int, tuple[int, str]]] = defaultdict(dict)

    def unreadable(self, path: Path) -> list[tuple[int, int, str]]:
        """Position, end and reason of what could not be read of a file so far."""
        found: list[tuple[int, int, str]] = []
        for position, (end, why) in sorted(self._bad[path].items()):
            if found and found[-1][1:] == (position, why):
                position = found.pop()[0]
            found.append((position, end, why))
        return found

    def names(self, directory: Path) -> list[str]:
        """None in a directory that is not there."""
        return super().names(directory) if directory.is_dir() else []

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        file = super().open(path, write=write, create=create)
        self._paths[file] = path
        return file

    def read(self, file: int, size: int, offset: int) -> bytes:
        bad = self._bad[self._paths[file]]
        if not bad:  # else piece by piece at once: a disk is slow to say that it cannot
            try:
                return super().read(file, size, offset)
            except OSError:
                pass
        end = min(offset + size, self.size(file))
        parts = []
        for start in range(offset // _PIECE_BYTES * _PIECE_BYTES, end, _PIECE_BYTES):
            at, stop = max(start, offset), min(start + _PIECE_BYTES, end)
            if start not in bad:
                try:
                    parts.append(super().read(file, stop - at, at))
                    continue
                except OSError as error:
                    bad[start] = min(start + _PIECE_BYTES, self.size(file)), str(error.strerror)
            parts.append(bytes(stop - at))
        return b"".join(parts)
