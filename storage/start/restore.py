"""A backup becomes a data directory again (storage/space/backup.py has made it).

Promises: every byte is compared with the hash that was taken when it was copied; log and ledger are
judged as a start would judge them; the directory gets its name when all of it is synced. So it is
whole, or not there.
"""

from pathlib import Path

from xxhash import xxh3_128

from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.footer import PlacedRun
from qlog.storage.bytes.manifest import MANIFEST, BackupError, Manifest, StoredFile, read_manifest
from qlog.storage.journal import OfLane
from qlog.storage.start.judge import Evidence, Lanes, judge_ledger, judge_log, raise_first

_PIECE_BYTES = 1 << 20


def restore(disk: Disk, source: Path, target: Path) -> Manifest:
    """Make the data directory `target` of the backup in `source`. Returns what the backup has.

    `target` must be missing or empty. What an attempt that was broken off has left beside it is
    removed first. Raises BackupError, CorruptLog, OtherFormat, OSError, SyncFailed.
    """
    try:
        manifest = read_manifest(disk, source)
    except NotADirectoryError:
        manifest = None
    if manifest is None:
        raise BackupError(
            f"{source} has no whole backup: {MANIFEST}, which is written last, is not there"
        )
    if target.exists() and any(target.iterdir()):
        raise BackupError(f"{target} is not empty; name a directory that does not exist")
    half = target.with_name(f"{target.name}.restoring")
    paths = Paths(half)
    directories = [paths.log, paths.ledger]
    if any(file.name.startswith("streams/") for file in manifest.files):
        directories.append(paths.streams)
    for directory in directories:
        disk.make_directory(directory)
        for name in disk.names(directory):
            disk.unlink(directory / name)
    for file in manifest.files:
        _copy(disk, source / file.stored, half / file.name, file)
    for directory in (*directories, half):
        disk.sync_directory(directory)
    _judge(disk, paths, bytes.fromhex(manifest.uuid))
    if target.exists():
        target.rmdir()
    disk.rename(half, target)
    disk.sync_directory(target.parent)
    return manifest


def _copy(disk: Disk, source: Path, target: Path, stored: StoredFile) -> None:
    digest = xxh3_128()
    try:
        file = disk.open(source)
    except FileNotFoundError as error:
        raise BackupError(f"{source} is missing, though the backup has it") from error
    try:
        copy = disk.open(target, write=True, create=True)
        try:
            for at in range(0, stored.bytes, _PIECE_BYTES):
                piece = disk.read(file, min(_PIECE_BYTES, stored.bytes - at), at)
                disk.write(copy, [piece], at)
                digest.update(piece)
            disk.sync_data(copy)
        finally:
            disk.close(copy)
        if disk.size(file) != stored.bytes or digest.hexdigest() != stored.xxh3_128:
            raise BackupError(
                f"{source} is damaged: it is not what was stored; nothing was restored"
            )
    finally:
        disk.close(file)


def _judge(disk: Disk, paths: Paths, uuid: bytes) -> None:
    evidence = Evidence(uuid)
    ledger = judge_ledger(disk, paths, evidence, _pass_over)
    raise_first(ledger.findings)
    log = judge_log(disk, paths, evidence, ledger, Lanes((), lambda lane_id: 0, _pass_over_run))
    raise_first(log.findings)


def _pass_over(entry: OfLane) -> None:
    """Only what is wrong is of interest."""


def _pass_over_run(lane_id: int, segment_id: int, first: int, run: PlacedRun) -> None:
    """The same."""
