"""A backup of a directory that is in use: what a crash at one moment would leave, elsewhere.

That moment is after a sync. The log up to its durable end, the ledger up to its own, and the
segments of streams are then a directory that a start accepts, with everything that was confirmed
before. Index and catalog are not copied: a start makes them anew. `Extent` says which files that
is, up to which byte. A stream's last segment may be copied with what came later: a start cuts
streams back to what the ledger says of them.

Files must not go while they are copied, though the broker gives segments up and compacts them
meanwhile. So they get a second name in `backup.staging/`, by a hard link; a name costs no space,
and the space of what is given up comes back when the backup is done. Segments that are sealed never
change, so a backup has only to copy those that the one before it in the same place has not.

`Backup` goes in four steps. `prepare` and `copy` are for another thread; `link_sealed` and
`link_rest` are for the owner's, the first in slices.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import link
from pathlib import Path
from time import monotonic, sleep, time_ns
from typing import NamedTuple

from xxhash import xxh3_128

from qlog.storage.bytes.batch import FILE_HEADER_BYTES
from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.manifest import (
    MANIFEST,
    BackupError,
    Manifest,
    StoredFile,
    is_stored,
    read_manifest,
)
from qlog.storage.journal import Position
from qlog.storage.write.segment import BatchFile

_PIECE_BYTES = 1 << 20
_UNSYNCED_BYTES_MAX = 8 << 20  # one large sync would hold up the syncs that confirms wait for
# Of a sealed segment, enough to tell it from any other: its trailer has the hash of its footer.
_TAIL_BYTES = 4096
_FOLDERS = ("log", "ledger", "streams")


class Part(NamedTuple):
    """A file of the data directory, by its name there, up to a byte. None: all of it, for good.

    `grows`: all of it, at whatever moment: what counts of it stands before the moment's end.
    """

    name: str
    bytes: int | None
    grows: bool = False


@dataclass(frozen=True, slots=True)
class Extent:
    """What is durable at one moment: the ledger, `parts`, and the segments of the log `known`.

    The `known` are sealed, and were so when they were linked before: what is left to do in the
    moment does not grow with the size of the log.
    """

    uuid: bytes
    position: Position
    ledger: Part
    ledger_id: int
    known: frozenset[int]
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Done:
    """A backup that was made: how many files it has, and what had to be copied for it."""

    directory: Path
    position: Position
    files: int
    bytes: int
    files_copied: int
    bytes_copied: int


class Backup:
    """One backup that is being made.

    Arguments: `paths` are those of the data directory, `target` is where the backup goes, an
    absolute path outside of it; `bytes_per_s` bounds how fast is copied, 0: not at all.
    """

    def __init__(self, disk: Disk, paths: Paths, target: Path, bytes_per_s: int) -> None:
        self.cancelled = False
        self._disk = disk
        self._paths = paths
        self._target = target
        self._bytes_per_s = bytes_per_s
        self._known: dict[str, StoredFile] = {}  # sealed segments of the backup before, by names
        self._known_uuid = ""
        self._linked: set[str] = set()  # names
        self._sealed: dict[int, Part] = {}

    # -- another thread: before

    def prepare(self) -> None:
        """See what is there already. Raises BackupError, OSError."""
        target, root = self._target.resolve(), self._paths.root.resolve()
        if target == root or root in target.parents or target in root.parents:
            raise BackupError(
                f"the backup cannot be in the data directory, nor around it: {target}"
            )
        clear_staging(self._disk, self._paths)
        manifest = read_manifest(self._disk, target) if target.exists() else None
        if manifest is not None:
            self._known = {file.name: file for file in manifest.files if file.sealed}
            self._known_uuid = manifest.uuid
        else:
            self._check_empty(target)
        for folder in _FOLDERS:
            self._disk.make_directory(target / folder)
            self._disk.make_directory(self._paths.staging / folder)

    def _check_empty(self, target: Path) -> None:
        """A directory that is somebody else's is not written to."""
        for path in target.iterdir() if target.exists() else ():
            if path.name in _FOLDERS and path.is_dir():
                if all(is_stored(f"{path.name}/{file.name}") for file in path.iterdir()):
                    continue
            elif path.name == f"{MANIFEST}.new":
                continue
            raise BackupError(f"{target} is neither empty nor a backup: it has {path.name}")

    # -- the owner's thread

    def link_sealed(self, uuid: bytes, parts: Iterator[tuple[int, Part]]) -> Iterator[None]:
        """Keep what never changes, a file at a time: ids and parts. Raises BackupError, OSError."""
        if self._known_uuid not in ("", uuid.hex()):
            raise BackupError(f"{self._target} has a backup of another data directory")
        for id_, part in parts:
            with suppress(FileNotFoundError):  # given up meanwhile, and not in the extent then
                self._link(part)
                self._sealed[id_] = part
            yield

    @property
    def linked(self) -> Mapping[int, Part]:
        """The segments of the log that `link_sealed` has kept, by their ids."""
        return self._sealed

    def link_rest(self, extent: Extent) -> None:
        """Keep what this extent has besides. It is the backup's, and everything of it is durable.

        All is on the disk now, and would not be later: call it in the moment of the extent.
        """
        for part in (extent.ledger, *extent.parts):
            try:
                self._link(part)
            except FileNotFoundError:
                # The first batch of a segment makes its file, if that is not there in advance.
                if part.bytes is None or part.bytes > FILE_HEADER_BYTES:
                    raise

    def _link(self, part: Part) -> None:
        if part.name in self._linked:
            return
        try:
            link(self._paths.root / part.name, self._paths.staging / part.name)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise BackupError(
                f"cannot keep {part.name} for the backup: {error.strerror}; the file system of the "
                "data directory has to know hard links"
            ) from error
        self._linked.add(part.name)

    # -- another thread: after

    def copy(self, extent: Extent) -> Done:
        """Copy what is not there, and finish. Raises BackupError, OSError, SyncFailed."""
        try:
            return self._copy_all(extent)
        finally:
            self._disk.release(self._target)  # the next one may go elsewhere

    def _copy_all(self, extent: Extent) -> Done:
        pace = _Pace(self._bytes_per_s)
        files: list[StoredFile] = []
        copied: list[StoredFile] = []
        sealed = [self._sealed[id_] for id_ in sorted(extent.known)]
        for part in (extent.ledger, *sealed, *extent.parts):
            if part.name not in self._linked:
                continue  # the segment that nothing was written to yet
            fixed = part.bytes is None and not part.grows
            known = self._known.get(part.name) if fixed else None
            if known is None or not self._is_same(part, known):
                known = self._copy(part, pace)
                copied.append(known)
            if part is extent.ledger:  # first: on a full disk its file may be used again
                self._check_ledger(extent, known)
            files.append(known)
        manifest = Manifest(
            uuid=extent.uuid.hex(),
            taken_ms=time_ns() // 1_000_000,
            lsn=extent.position.lsn,
            batch=extent.position.batch,
            files=tuple(files),
        )
        self._finish(manifest)
        clear_staging(self._disk, self._paths)
        return Done(
            self._target,
            extent.position,
            len(files),
            sum(file.bytes for file in files),
            len(copied),
            sum(file.bytes for file in copied),
        )

    def _is_same(self, part: Part, known: StoredFile) -> bool:
        """Whether the stored segment is this one, and not one of another life of the directory."""
        return _ends(self._disk, self._paths.staging / part.name) == _ends(
            self._disk, self._target / known.stored
        )

    def _copy(self, part: Part, pace: "_Pace") -> StoredFile:
        disk = self._disk
        fixed = part.bytes is None and not part.grows
        source = disk.open(self._paths.staging / part.name)
        try:
            size = disk.size(source) if part.bytes is None else part.bytes
            stored = part.name if fixed else f"{part.name}.{size}"
            path = self._target / stored
            temporary = path.with_name(f"{path.name}.new")
            target = disk.open(temporary, write=True, create=True)
            try:
                disk.truncate(target, 0)
                digest = self._copy_bytes(source, target, size, pace)
            finally:
                disk.close(target)
        finally:
            disk.close(source)
        disk.rename(temporary, path)
        return StoredFile(part.name, stored, size, digest, fixed)

    def _copy_bytes(self, source: int, target: int, size: int, pace: "_Pace") -> str:
        disk = self._disk
        digest = xxh3_128()
        unsynced = 0
        for at in range(0, size, _PIECE_BYTES):
            if self.cancelled:
                raise BackupError("the backup was broken off: the broker stops")
            piece = disk.read(source, min(_PIECE_BYTES, size - at), at)
            if len(piece) < min(_PIECE_BYTES, size - at):
                raise BackupError("a file of the data directory is shorter than it was")
            disk.write(target, [piece], at)
            digest.update(piece)
            unsynced += len(piece)
            if unsynced >= _UNSYNCED_BYTES_MAX or at + len(piece) == size:
                disk.sync_data(target)
                unsynced = 0
            pace.moved(len(piece))
        return digest.hexdigest()

    def _check_ledger(self, extent: Extent, stored: StoredFile) -> None:
        path = self._target / stored.stored
        file = BatchFile(self._disk, path, extent.uuid, extent.ledger_id)
        try:
            end = FILE_HEADER_BYTES
            for batch in file.batches():
                end = batch.end
        finally:
            file.close()
        if end != extent.ledger.bytes:
            raise BackupError("the ledger went on in another file meanwhile; make the backup again")

    def _finish(self, manifest: Manifest) -> None:
        """From here on this is the backup; then what it does not name goes."""
        disk, target = self._disk, self._target
        for folder in _FOLDERS:
            disk.sync_directory(target / folder)
        path = target / f"{MANIFEST}.new"
        data = manifest.pack()
        file = disk.open(path, write=True, create=True)
        try:
            disk.truncate(file, 0)
            disk.write(file, [data], 0)
            disk.sync_data(file)
        finally:
            disk.close(file)
        disk.rename(path, target / MANIFEST)
        disk.sync_directory(target)
        wanted = {file.stored for file in manifest.files}
        for folder in _FOLDERS:
            for name in disk.names(target / folder):
                if f"{folder}/{name}" not in wanted and is_stored(f"{folder}/{name}"):
                    disk.unlink(target / folder / name)


class _Pace:
    """Waits so that not more than so many bytes move in a second; 0: as many as can."""

    def __init__(self, bytes_per_s: int, clock_s: Callable[[], float] = monotonic) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock_s = clock_s
        self._due_s = clock_s()

    def moved(self, size: int) -> None:
        """So much was moved."""
        if self._bytes_per_s:
            now_s = self._clock_s()
            self._due_s = max(self._due_s, now_s - 1.0) + size / self._bytes_per_s
            if self._due_s > now_s:
                sleep(self._due_s - now_s)


def clear_staging(disk: Disk, paths: Paths) -> None:
    """Remove the second names of files that a backup has left. Raises OSError."""
    for folder in _FOLDERS:
        directory = paths.staging / folder
        if directory.exists():
            for name in disk.names(directory):
                disk.unlink(directory / name)


def _ends(disk: Disk, path: Path) -> tuple[int, bytes, bytes] | None:
    """Size, header and tail of a file; None: it is not there."""
    try:
        file = disk.open(path)
    except FileNotFoundError:
        return None
    try:
        size = disk.size(file)
        tail = disk.read(file, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        return size, disk.read(file, FILE_HEADER_BYTES, 0), tail
    finally:
        disk.close(file)
