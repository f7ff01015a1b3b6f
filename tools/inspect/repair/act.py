"""Doing what a repair plan says: all originals are in quarantine/ before anything is written.

A crash in the middle leaves a directory that is repaired, or that can be repaired again. The steps:

1. Every original is put into the quarantine. The index is marked as in doubt, so that a start
   trusts only its evidence of how far log and ledger had been synced. Catalog and ledger are
   copied: a broker that starts after a crash writes to them in place, and the originals must not
   change with them. Segments may be large, and are linked: a start refuses a damaged segment, or
   writes only its footer, which follows from its messages. So is the index, in which everything
   follows from the others.
2. Each file is replaced in one rename.
3. The new ledger, which says what counts, comes when all other files are there.
4. What the new ledger gives up is unlinked.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qlog.storage.bytes.datadir import mark_doubt, numbered
from qlog.storage.bytes.disk import Disk
from qlog.storage.identity import IDENTITY, Identity
from qlog.storage.journal import Defined
from qlog.storage.lanes.settled import lane_entries
from qlog.storage.settings import StoreSettings
from qlog.storage.space.sparse import SparseWriter
from qlog.storage.write.ledger import LedgerWriter, Record, Segments
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.repair.pieces import Kept, Rewrite
from qlog.tools.inspect.repair.plan import Plan
from qlog.tools.inspect.rows import packed

_COPY_BYTES = 1 << 20


def act(plan: Plan, directory: Directory, disk: Disk, account: dict[str, Any]) -> Path:
    """Repair the directory, whose lock is held. Returns the place of the originals.

    `account` is kept with them: it says what is done and lost. Raises OSError, StorageError.
    """
    paths = directory.paths
    name = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    quarantine = _Quarantine(disk, directory, paths.root / "quarantine" / name)
    account = account | {"quarantine": str(quarantine.place)}
    quarantine.write("repair.json", [packed(account).encode()])
    discarded = [view.path for view in plan.log.discarded]
    ledger = []
    if plan.mends_log:
        ledger = [paths.ledger_file(file_id) for file_id in directory.ledger_ids()]
    rewritten = [rewrite.view.path for rewrite in plan.log.rewrites]
    moved = [environment / "data.mdb" for environment in plan.moved]
    for path in rewritten + discarded + ledger + moved:
        quarantine.keep(path, can_link=path.parent in (paths.log, paths.index))
    quarantine.sync()
    if paths.index in plan.moved:
        mark_doubt(disk, paths)
    for rewrite in plan.log.rewrites:
        _rewrite(plan, rewrite, disk)
    if plan.mends_log:
        _write_ledger(plan, directory, disk)
    for path in discarded + ledger:
        disk.unlink(path)
    for environment in plan.moved:
        shutil.rmtree(environment)
    for changed in (paths.log, paths.ledger, paths.root):
        disk.sync_directory(changed)
    account = account | {"done": True}
    quarantine.write("repair.json", [packed(account).encode()])
    return quarantine.place


class _Quarantine:
    """A directory of its own, with the files under their own names; durable when `keep` is done."""

    def __init__(self, disk: Disk, directory: Directory, place: Path) -> None:
        self.place = place
        self._disk = disk
        self._directory = directory
        place.mkdir(parents=True)
        disk.sync_directory(place.parent)
        disk.sync_directory(place.parent.parent)

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """A file, whole or not at all."""
        path = self.place / name
        temporary = path.with_name(path.name + ".new")
        file = self._disk.open(temporary, write=True, create=True)
        position = 0
        try:
            for part in parts:
                self._disk.write(file, [part], position)
                position += len(part)
            self._disk.sync_data(file)
        finally:
            self._disk.close(file)
        self._disk.rename(temporary, path)

    def keep(self, path: Path, *, can_link: bool) -> None:
        """Put a file into the quarantine, if it exists, before anything happens to it.

        `can_link`: it may stay the same file. Otherwise no later write changes what is here.
        """
        if path.exists():
            name = self._directory.relative(path)
            target = self.place / name
            self._disk.make_directory(target.parent)
            if not (can_link and _link(path, target)):
                self.write(name, self._bytes_of(path))

    def sync(self) -> None:
        """Make the names of all files durable."""
        for directory in {self.place, *(path.parent for path in self.place.rglob("*"))}:
            self._disk.sync_directory(directory)

    def _bytes_of(self, path: Path) -> Iterator[bytes]:
        position = 0
        while part := self._directory.read_file(path, _COPY_BYTES, position):
            yield part
            position += len(part)


def _link(path: Path, target: Path) -> bool:
    try:
        os.link(path, target)
    except OSError:  # a file system without links, or another one
        return False
    return True


def _rewrite(plan: Plan, rewrite: Rewrite, disk: Disk) -> None:
    """Write a segment again, with what is whole of it, under its own id.

    Its trailer says that it stands for the log up to the beginning of the next segment, so that
    the chain of LSNs holds. The flag SPARSE in its header says that LSNs are missing. Its batches
    attest nothing new: `durable` is the segment's own beginning.
    """
    writer = SparseWriter(
        disk,
        rewrite.view.path,
        plan.uuid,
        plan.epoch,
        base_lsn=rewrite.base_lsn,
        durable_lsn=rewrite.base_lsn,
    )
    try:
        for part in rewrite.pieces():
            if isinstance(part, Kept):
                writer.add(part.lsn, part.lanes, part.firsts, part.lengths, part.data)
        writer.finish(rewrite.end_lsn)
    except BaseException:
        writer.abandon()
        raise


def _write_ledger(plan: Plan, directory: Directory, disk: Disk) -> None:
    """Write the ledger whose snapshot says what counts from now on.

    Evidence that the log had been durable up to some LSN is satisfied like this:

    - the checkpoints of index and catalog: both are moved out, and are made anew;
    - batches of the old ledger, batches that followed on those that are lost: `following_lsn` in
      SEGMENTS is not below any of them, and says that the log goes on there. It counts because the
      id below `next id` is not among the segments listed (one id is left out for that), and
      because the last segment is sealed: a start takes the LSNs between its end and
      `following_lsn` for given up.
    - the ledger's own batches: the new file's first number is above all of them.

    Segments that are not listed here are given up: neither missing files nor gaps are damage.
    """
    records: list[Record] = [
        Segments(plan.log.next_segment_id, plan.end_lsn, [*plan.log.segment_ids])
    ]
    for lane_id, (next_qseq, settled) in plan.lanes.items():
        records += lane_entries(lane_id, next_qseq, settled)
    identity = Identity(plan.uuid, plan.epoch, plan.lane_ids_reserved)
    definitions = plan.definitions.entries | {IDENTITY: identity.pack()}
    records += (Defined(*key, value) for key, value in definitions.items())
    paths = directory.paths
    ids = numbered(disk, paths.ledger, ".qack")
    for facts in (directory.index_facts, directory.catalog_facts):
        if facts.checkpoint is not None:
            ids.append(facts.checkpoint.ledger.file_id)
    ledger = LedgerWriter(
        disk,
        paths,
        plan.uuid,
        plan.epoch,
        file_bytes=StoreSettings().ledger_bytes_max,
        file_id=max(ids, default=0),
        number=plan.ledger_number,
    )
    try:
        ledger.roll(records, plan.end_lsn)
    finally:
        ledger.close()
