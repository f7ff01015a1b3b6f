"""The paths of a data directory, and its lock.

One broker has one directory: the lock is an flock, so that it ends with the process.
"""

from dataclasses import dataclass
from pathlib import Path

from qlog.storage.bytes.batch import FORMAT_VERSION
from qlog.storage.bytes.disk import Disk
from qlog.storage.errors import DirectoryLocked, DirectoryUnreadable, OtherFormat, SyncFailed

# Which qlog wrote an older format.
_WRITERS = {1: "one from before the first release", 2: "qlog 0.1.0"}


@dataclass(frozen=True, slots=True)
class Paths:
    """Where everything is in one directory."""

    root: Path

    @property
    def lock(self) -> Path:
        return self.root / "LOCK"

    @property
    def catalog(self) -> Path:
        return self.root / "catalog.lmdb"

    @property
    def index(self) -> Path:
        return self.root / "index.lmdb"

    @property
    def index_doubt(self) -> Path:
        """Exists when a running broker found the index wrong: the next start rebuilds it."""
        return self.root / "index.doubt"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger"

    @property
    def spill(self) -> Path:
        return self.root / "spill"

    @property
    def streams(self) -> Path:
        """Has the segments of all streams; made with the first of them."""
        return self.root / "streams"

    def stream_segment(self, lane_id: int, base: int) -> Path:
        """`base`: the offset that the segment begins with."""
        return self.streams / f"{lane_id:010d}-{base:020d}.qstr"

    @property
    def staging(self) -> Path:
        """Second names of files while a backup copies them; void when no broker runs."""
        return self.root / "backup.staging"

    def segment(self, segment_id: int) -> Path:
        return self.log / f"{segment_id:010d}.qseg"

    def ledger_file(self, file_id: int) -> Path:
        return self.ledger / f"{file_id:010d}.qack"

    def spill_file(self, segment_id: int) -> Path:
        return self.spill / f"{segment_id:010d}.qspl"


def numbered(disk: Disk, directory: Path, suffix: str) -> list[int]:
    """The ids of the files named `<id><suffix>`, in order."""
    return sorted(
        int(name.removesuffix(suffix))
        for name in disk.names(directory)
        if name.endswith(suffix) and name.removesuffix(suffix).isdecimal()
    )


def prepare(disk: Disk, paths: Paths) -> int:
    """Make the directories and take the lock. Returns the locked file, to be kept open.

    Raises DirectoryLocked when another broker has the lock, DirectoryUnreadable without the rights.
    """
    try:
        for directory in (paths.root, paths.log, paths.ledger, paths.spill):
            disk.make_directory(directory)
        _sync_parent(disk, paths.root.parent)
        disk.sync_directory(paths.root)
        file = disk.open(paths.lock, write=True, create=True)
    except FileExistsError as error:
        raise DirectoryUnreadable(
            f"the data directory {paths.root} cannot be used: a file has its name, or that of a "
            "directory in it; give another path"
        ) from error
    except OSError as error:
        raise DirectoryUnreadable(
            f"the data directory {paths.root} cannot be used: {error.strerror}; "
            "check its path and its owner"
        ) from error
    if not disk.lock(file):
        disk.close(file)
        raise DirectoryLocked(
            f"another broker runs on {paths.root}; stop it, or give this one its own directory"
        )
    return file


def _sync_parent(disk: Disk, parent: Path) -> None:
    """Make the root's name durable. An earlier start may have made the root without syncing it.

    A parent that may not be listed belongs to somebody else, who made the root and has synced it.
    """
    try:
        disk.sync_directory(parent)
    except SyncFailed as error:
        if not isinstance(error.__cause__, PermissionError):
            raise


def check_format(what: object, version: int) -> None:
    """Raises OtherFormat."""
    if version > FORMAT_VERSION:
        raise OtherFormat(
            f"{what} has format {version}, this qlog reads format {FORMAT_VERSION}; use the newer "
            "qlog that wrote it"
        )
    if version < FORMAT_VERSION:
        writer = _WRITERS.get(version, "an unknown one")
        raise OtherFormat(
            f"{what} has format {version}, this qlog reads format {FORMAT_VERSION}; export its "
            f"messages with the qlog that wrote it ({writer}), `qlog inspect export`, and bring them "
            'into this one, `qlog inspect import`: see docs/inspect.md, "From an older format"'
        )


def mark_doubt(disk: Disk, paths: Paths) -> None:
    """Have the next start rebuild the index."""
    disk.close(disk.open(paths.index_doubt, write=True, create=True))
    disk.sync_directory(paths.root)
