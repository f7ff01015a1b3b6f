"""The directory of a backup, and the file in it that says what it has.

    DIR/
      BACKUP.json                       what is in it; written last: without it there is no backup
      log/0000000007.qseg               a sealed segment, as it is
      log/0000000008.qseg.18213         the first 18213 bytes of the segment that was written to
      ledger/0000000003.qack.90112      the same of the ledger's file
      streams/…                         segments of streams, in the same way

Files are never changed under their names: a later backup adds its own, then replaces BACKUP.json,
then removes what it does not name. So a backup that is broken off leaves the one before it whole.

BACKUP.json: `format` (1), `uuid` of the data directory (hex), `taken_ms` (ms since 1970),
`lsn` and `batch` (the journal's position that it reaches), and `files`: `name` in the data
directory, `stored` in this one, `bytes`, `xxh3_128` (hex) of all of them, `sealed`.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from qlog.storage.bytes.disk import Disk
from qlog.storage.errors import StorageError

MANIFEST = "BACKUP.json"
FORMAT = 1
_FILE = r"(log/\d{10}\.qseg|ledger/\d{10}\.qack|streams/\d{10}-\d{20}\.qstr)"
_NAME = re.compile(_FILE)
_STORED = re.compile(rf"{_FILE}(\.\d+)?")


class BackupError(StorageError):
    """A backup that cannot be made or restored; str() is one line for the operator."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a backup; see the head of this file."""

    name: str
    stored: str
    bytes: int
    xxh3_128: str
    sealed: bool


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup has; see the head of this file."""

    uuid: str
    taken_ms: int
    lsn: int
    batch: int
    files: tuple[StoredFile, ...]

    def pack(self) -> bytes:
        """The content of BACKUP.json."""
        return (json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def unpack(cls, data: bytes, path: Path) -> "Manifest":
        """From the content of BACKUP.json at `path`. Raises BackupError."""
        try:
            fields = json.loads(data)
            version = fields.pop("format")
            if version != FORMAT:
                raise BackupError(f"{path} has format {version}, this qlog reads format {FORMAT}")
            files = tuple(StoredFile(**file) for file in fields.pop("files"))
            manifest = cls(files=files, **fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackupError(f"{path} is damaged: {error}; make a new backup") from error
        for file in files:  # what it says is not followed out of the directory
            if not _NAME.fullmatch(file.name) or not _STORED.fullmatch(file.stored):
                raise BackupError(f"{path} is damaged: it names {file.stored!r}")
        return manifest


def read_manifest(disk: Disk, directory: Path) -> Manifest | None:
    """The manifest of a backup; None: there is none. Raises BackupError, OSError."""
    path = directory / MANIFEST
    try:
        file = disk.open(path)
    except FileNotFoundError:
        return None
    try:
        data = disk.read(file, disk.size(file), 0)
    finally:
        disk.close(file)
    return Manifest.unpack(data, path)


def is_stored(name: str) -> bool:
    """Whether a backup may have a file of this name (with its folder), or half of one."""
    return _STORED.fullmatch(name.removesuffix(".new")) is not None
