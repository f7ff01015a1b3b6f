"""Opening a directory: lock, verify, bring everything to one consistent state, make it durable.

judge.py says what is damage: a start is refused for its first finding. Bytes at the end of log or
ledger that are not whole, and are no damage, are cut.

The orphan rule. A settlement can be on disk although its message is not. The next qseq of a lane is
therefore above everything that log, index or ledger ever named, and messages below it that were not
found count as settled. So no qseq is given twice.

What was read from the files behind the checkpoint is written again in place and synced: after a
failed sync pages can look clean in memory and not be on the disk. After a crash in the middle, the
same steps give the same result: nothing is cut before it was judged, the log is sealed before
anything is appended, the new ledger file takes over whole, catalog and index come last.
"""

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from heapq import merge
from pathlib import Path
from typing import Generic

import lmdb
from msgspec import structs

from qlog.storage.bytes.batch import FILE_HEADER_BYTES
from qlog.storage.bytes.datadir import Paths, mark_doubt, numbered, prepare
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.footer import PlacedRun
from qlog.storage.catalog import Definition
from qlog.storage.errors import (
    DirectoryUnreadable,
    shortage_of,
)
from qlog.storage.identity import IDENTITY, Identity
from qlog.storage.index.checkpoint import lane_update, snapshot_records
from qlog.storage.index.index import SPILL, Checkpoint, Index, LaneRow, LaneUpdate, Live, Move
from qlog.storage.index.rows import IndexDoubt
from qlog.storage.journal import Defined
from qlog.storage.lanes.cache import Cache
from qlog.storage.lanes.lane import Changes, Lane
from qlog.storage.lanes.reader import DiskShelf, Reader
from qlog.storage.lanes.run import M
from qlog.storage.lanes.settled import Settled
from qlog.storage.lmdb.catalog import CatalogCheckpoint, CatalogDoubt, CatalogFile
from qlog.storage.settings import StoreSettings
from qlog.storage.start.adopted import Adopted
from qlog.storage.start.fold import COMPACTED, LaneFacts
from qlog.storage.start.judge import (
    Evidence,
    Lanes,
    LedgerFile,
    LogScan,
    catalog_doubt,
    identify,
    index_doubt,
    judge_age_of_ledger,
    judge_ledger,
    judge_log,
    raise_first,
)
from qlog.storage.streams.definition import stream_lanes
from qlog.storage.write.ledger import LedgerWriter
from qlog.storage.write.placement import Log, Segment
from qlog.storage.write.prepare import Nursery
from qlog.storage.write.segment import seal
from qlog.storage.write.spill import SpillWriter

INDEX_PARTS = "parts of the index written"  # of REBUILD_POINTERS each; what `Progress` is told
REBUILD_POINTERS = 200_000  # so many pointers go to the index in one transaction
_STRETCH_WEIGHT = 8  # a stretch of messages costs as much as so many pointers
_REWRITE_BYTES = 1 << 20


# Called often, with what is being done, and how many are done. An exception that it raises ends the
# recovery, which can be begun again at any time.
Progress = Callable[[str, int], None]


def ignore_progress(what: str, count: int) -> None:
    """A `Progress` that does nothing."""


@dataclass(slots=True)
class RecoveryReport:
    """What a start found; all zero after an orderly stop."""

    epoch: int = 0
    records_replayed: int = 0  # behind the checkpoint
    log_bytes_cut: int = 0  # bytes of a torn tail, which were never confirmed
    log_records_cut: int = 0  # as far as can be known
    ledger_bytes_cut: int = 0
    index_rebuilt: str = ""  # why the index was made anew; empty when it was good
    catalog_rebuilt: str = ""  # why the catalog was made anew; empty when it was good
    duration_s: float = 0.0


@dataclass(slots=True)
class Recovered(Generic[M]):
    """All that a store is made of."""

    paths: Paths
    disk: Disk
    decode: Callable[[bytes, int, int], M]
    settings: StoreSettings
    lock: int
    definitions: Mapping[Definition, bytes]
    catalog: CatalogFile
    identity: Identity
    report: RecoveryReport
    log: Log
    lanes: dict[int, Lane[M]]
    cache: Cache[M]
    changes: Changes[M]
    index: Index
    live: dict[int, Live]
    shelf: DiskShelf[M]
    reader: Reader[M]
    spill: SpillWriter[M]
    nursery: Nursery
    ledger: LedgerWriter
    replaced: dict[int, int]  # segment -> the compacted one that has its unsettled messages, too
    compacted_id_next: int

    def close(self) -> None:
        """Close all files, and give up the lock."""
        self.nursery.close()
        self.spill.close()
        self.reader.close()
        self.index.close()
        self.catalog.close()
        self.disk.close(self.lock)
        self.disk.release()


def recover(
    directory: Path,
    decode: Callable[[bytes, int, int], M],
    settings: StoreSettings,
    disk: Disk,
    progress: Progress = ignore_progress,
) -> Recovered[M]:
    """Open and recover a data directory. Raises StorageError, and what `progress` raises; the
    directory is then unlocked."""
    paths = Paths(directory.absolute())
    opened: list[Callable[[], None]] = [disk.release]
    try:
        lock = prepare(disk, paths)
        opened.append(lambda: disk.close(lock))
        held = len(opened)
        recovery = _Recovery(paths, lock, decode, settings, disk, opened, progress)
        before = recovery.report
        try:
            return recovery.run()
        except IndexDoubt as doubt:
            before.index_rebuilt = str(doubt)
        # The index was found wrong when it was used: begin once more without it, from nothing.
        while len(opened) > held:
            opened.pop()()
        mark_doubt(disk, paths)
        recovery = _Recovery(paths, lock, decode, settings, disk, opened, progress)
        recovered = recovery.run()
        report = recovered.report
        report.index_rebuilt = before.index_rebuilt
        for name in ("log_bytes_cut", "log_records_cut", "ledger_bytes_cut"):
            setattr(report, name, max(getattr(report, name), getattr(before, name)))
        return recovered
    except BaseException as error:
        for close in reversed(opened):
            close()
        if isinstance(error, OSError):
            shortage = shortage_of(error)
            advice = "check the disk and the rights" if shortage is None else shortage.advice
            raise DirectoryUnreadable(
                f"{error.filename or paths.root}: {error.strerror}; {advice}"
            ) from error
        if isinstance(error, (lmdb.Error, IndexDoubt)):
            raise DirectoryUnreadable(f"{paths.index}: {error}; check the disk") from error
        raise


class _Recovery(Generic[M]):
    def __init__(
        self,
        paths: Paths,
        lock: int,
        decode: Callable[[bytes, int, int], M],
        settings: StoreSettings,
        disk: Disk,
        opened: list[Callable[[], None]],
        progress: Progress,
    ) -> None:
        self.progress = progress
        self.found_count = 0
        self.paths = paths
        self.lock = lock
        self.decode = decode
        self.settings = settings
        self.disk = disk
        self.opened = opened
        self.report = RecoveryReport()
        self.cache: Cache[M] = Cache(settings.cache_bytes_max)
        self.changes: Changes[M] = Changes([], [], [], {}, lambda: None)
        self.lanes: dict[int, Lane[M]] = {}
        self.adopted: defaultdict[int, Adopted] = defaultdict(Adopted)
        self.placed_upto: dict[int, int] = {}  # lane -> where the index is complete
        self.named_upto: dict[int, int] = {}  # lane -> the qseq above all that anything names
        self.deleted: set[int] = set()
        self.segments: dict[int, Segment] = {}
        self.replaced: dict[int, int] = {}
        self.lsn = 0
        self.epoch_seen = 0  # the highest that any file names
        self.attested: Checkpoint | None = None  # of the index, even if that is in doubt
        self.index: Index | None = None
        self.reader: Reader[M] = Reader(disk, paths, decode)
        self.shelf: DiskShelf[M] = DiskShelf(self.reader)
        self.catalog: CatalogFile | None = None
        self.entries: dict[Definition, bytes] = {}  # of the catalog's file
        self.lane_rows: dict[int, LaneRow] = {}
        self.bitmaps: list[tuple[int, int, int]] = []
        self.live_before: dict[int, Live] = {}

    def run(self) -> Recovered[M]:
        started_s = time.monotonic()
        evidence = self._gather_evidence()
        ledger_file = self._read_ledger(evidence)
        found = self._read_log(evidence, ledger_file)
        self._complete_lanes(
            stream_lanes(ledger_file.definitions.entries), indexed=evidence.checkpoint is not None
        )

        # From here on the directory is changed: it was judged to be sound.
        uuid, checkpoint = evidence.uuid, evidence.checkpoint
        self._finish_log(found, checkpoint, uuid)
        self.replaced = {
            segment.segment_id: ledger_file.segments.replaced[segment.segment_id]
            for segment in found.replaced
        }
        epoch = self.report.epoch = self.epoch_seen + 1
        identity = replace(ledger_file.identity or Identity(uuid, 0, 1), epoch=epoch)
        definitions = ledger_file.definitions.entries | {IDENTITY: identity.pack()}
        segment_id = found.segment_id_next
        ledger = self._begin_ledger(uuid, ledger_file, definitions, segment_id)
        catalog = self._update_catalog(definitions, CatalogCheckpoint(uuid, epoch, ledger.position))
        self._remove_leftover(found)
        spill_next = SPILL if checkpoint is None else checkpoint.spill_next
        live = self._update_index(
            Checkpoint(
                uuid, epoch, self.lsn, segment_id, FILE_HEADER_BYTES, ledger.position, spill_next
            ),
            rebuild=checkpoint is None,
            moves=[
                Move(segment_id, frozenset(ledger_file.segments.sources(segment_id)), columns)
                for segment_id, columns in found.moved.items()
            ],
        )
        self.cache.advance(self.lsn)
        self.changes.dirty.clear()
        self.report.duration_s = time.monotonic() - started_s
        return Recovered(
            paths=self.paths,
            disk=self.disk,
            decode=self.decode,
            settings=self.settings,
            lock=self.lock,
            definitions=definitions,
            catalog=catalog,
            identity=identity,
            report=self.report,
            log=self._log(segment_id),
            lanes=self.lanes,
            cache=self.cache,
            changes=self.changes,
            index=self.shelf.index,
            live=live,
            shelf=self.shelf,
            reader=self.reader,
            spill=self._spill(identity, spill_next),
            nursery=Nursery(self.disk, self.paths),
            ledger=ledger,
            replaced=self.replaced,
            compacted_id_next=found.compacted_id_next,
        )

    def _gather_evidence(self) -> Evidence:
        """Open catalog and index, and say what they know. Raises OtherFormat, OSError."""
        disk, paths = self.disk, self.paths
        identify(disk, paths, None)  # one of another format is left alone: LMDB's files, too
        catalog = self._open_catalog()
        uuid = identify(disk, paths, catalog) or os.urandom(16)
        if self.catalog is not None and (doubt := catalog_doubt(catalog, uuid)):
            self.report.catalog_rebuilt = self.report.catalog_rebuilt or doubt
            catalog = None
        checkpoint = self._open_index(uuid)
        return Evidence(uuid, catalog, self.attested, checkpoint, self.live_before)

    def _log(self, segment_id: int) -> Log:
        """The log, which goes on in a new segment."""
        settings = self.settings
        return Log(
            lsn=self.lsn,
            segment_id=segment_id,
            segment_bytes_max=settings.segment_bytes_max,
            batch_bytes_max=settings.batch_bytes_max,
            batch_records_max=settings.batch_records_max,
            sealed=self.segments,
        )

    def _spill(self, identity: Identity, next_id: int) -> SpillWriter[M]:
        return SpillWriter(
            self.disk,
            self.paths,
            identity.uuid,
            identity.epoch,
            next_id=next_id,
            file_bytes_max=self.settings.segment_bytes_max,
        )

    def _complete_lanes(self, streams: Collection[int], *, indexed: bool) -> None:
        """Tell each lane where its messages are, of the index (if `indexed`) and behind it.

        In the lanes of streams a number that was not durable is given again, so that the offsets
        have no gaps: nobody has seen it, and no settlement names it.
        """
        for lane_id, lane in self.lanes.items():
            placed_upto = self.placed_upto.get(lane_id, 0)
            named_upto = self.named_upto.get(lane_id, 0)
            placed: list[tuple[int, int]] = []
            if indexed and self.index is not None and placed_upto < named_upto:
                placed = self.index.placed_from(lane_id, placed_upto)
            if lane_id in streams:
                named_upto = lane.settled.floor
            stretches = merge(self.adopted[lane_id].stretches(), placed)
            lane.recovered(placed_upto, named_upto, stretches)

    def _begin_ledger(
        self,
        uuid: bytes,
        ledger_file: LedgerFile,
        definitions: Mapping[Definition, bytes],
        segment_id_next: int,
    ) -> LedgerWriter:
        """Write a new file of the ledger with all that is known, and remove the older ones."""
        disk, paths = self.disk, self.paths
        ledger = LedgerWriter(
            disk,
            paths,
            uuid,
            self.report.epoch,
            file_bytes=self.settings.ledger_bytes_max,
            file_id=ledger_file.file_id,
            number=ledger_file.number,
        )
        self.opened.append(ledger.close)
        disk.sync_directory(paths.ledger)  # a kill may have come before a roll did that,
        ledger.remove_older()  # or between it and this
        ledger.roll(
            [
                *snapshot_records(
                    self.lanes.values(), self.segments, self.replaced, segment_id_next, self.lsn
                ),
                *(Defined(*key, value) for key, value in definitions.items()),
            ],
            self.lsn,
        )
        ledger.remove_older()
        return ledger

    # -- opening

    def _open_catalog(self) -> CatalogCheckpoint | None:
        """Up to where the catalog has the ledger; None when it has to be made."""
        paths = self.paths
        if not paths.catalog.exists():
            if numbered(self.disk, paths.ledger, ".qack"):
                self.report.catalog_rebuilt = "it was missing"
            return None
        try:
            self.catalog = self._catalog_file()
            self.entries = self.catalog.entries()
            return self.catalog.checkpoint()
        except (CatalogDoubt, lmdb.Error, ValueError, TypeError) as doubt:
            self.report.catalog_rebuilt = str(doubt) or "it is damaged"
            return None

    def _catalog_file(self) -> CatalogFile:
        catalog = CatalogFile(
            self.paths.catalog,
            map_bytes=self.settings.catalog_map_bytes,
            reserve_bytes=self.settings.catalog_reserve_bytes,
        )
        self.opened.append(catalog.close)
        return catalog

    def _update_catalog(
        self, definitions: Mapping[Definition, bytes], checkpoint: CatalogCheckpoint
    ) -> CatalogFile:
        """Write the ledger's definitions to the catalog. Raises DirectoryUnreadable, OSError."""
        changes: dict[Definition, bytes | None] = dict(definitions)
        try:
            if self.report.catalog_rebuilt or self.catalog is None:
                if self.catalog is not None:
                    self.catalog.close()
                if self.paths.catalog.exists():
                    shutil.rmtree(self.paths.catalog)
                self.catalog = self._catalog_file()
            else:
                entries = self.entries
                changes = {key: one for key, one in changes.items() if entries.get(key) != one}
                changes.update(dict.fromkeys(entries.keys() - definitions.keys()))
            self.catalog.apply(changes, checkpoint)
        except (CatalogDoubt, lmdb.Error) as error:
            raise DirectoryUnreadable(f"{self.paths.catalog}: {error}; check the disk") from error
        return self.catalog

    def _open_index(self, uuid: bytes) -> Checkpoint | None:
        """The checkpoint to start from; None when the index has to be made."""
        paths = self.paths
        if not paths.index.exists():
            if numbered(self.disk, paths.ledger, ".qack"):
                self.report.index_rebuilt = "it was missing"
            return None
        try:
            index = Index(
                paths.index,
                map_bytes=self.settings.index_map_bytes,
                reserve_bytes=self.settings.index_reserve_bytes,
            )
            self.opened.append(index.close)
            self.index = index
            checkpoint = index.checkpoint()
            if checkpoint is not None and checkpoint.uuid == uuid:
                self.epoch_seen = max(self.epoch_seen, checkpoint.epoch)
                self.attested = checkpoint
                self.lane_rows = index.lanes()
                self.bitmaps = list(index.bitmaps())
                self.live_before = index.live()
            marked = paths.index_doubt.name in self.disk.names(paths.root)
            if doubt_of_it := index_doubt(checkpoint, uuid, marked=marked):
                raise IndexDoubt(doubt_of_it)
        except (IndexDoubt, lmdb.Error, ValueError, TypeError) as doubt:
            self.report.index_rebuilt = str(doubt) or "it is damaged"
            self.live_before = {}
            return None
        return checkpoint

    def _load_lanes(self) -> None:
        assert self.index is not None
        for lane_id, row in self.lane_rows.items():
            lane = self._lane(lane_id)
            lane.settled.floor = row.floor
            lane.settled.delivered = row.delivered
            lane.settled.full = row.full
            lane.settled.attempts.load(row.attempts)
            self.placed_upto[lane_id] = row.placed_upto
            self.named_upto[lane_id] = row.next_qseq
        for lane_id, block, bits in self.bitmaps:
            self._lane(lane_id).settled.bits[block] = bits

    def _settle_spilled(self) -> None:
        """Transient messages do not survive, whatever the ledger says of them."""
        assert self.index is not None
        for lane_id, row in self.lane_rows.items():
            if row.spilled and lane_id in self.lanes:
                settled = self.lanes[lane_id].settled
                for qseq in self.index.spilled(lane_id):
                    settled.mark(qseq, qseq + 1)

    def _lane(self, lane_id: int) -> Lane[M]:
        lane = self.lanes.get(lane_id)
        if lane is None:
            lane = self.lanes[lane_id] = Lane(lane_id, self.shelf, self.cache, self.changes)
        return lane

    def _settled(self, lane_id: int) -> Settled:
        return self._lane(lane_id).settled

    # -- ledger and log

    def _read_ledger(self, evidence: Evidence) -> LedgerFile:
        """Judge the ledger, and fold it over what the index has of lanes. Raises CorruptLog."""
        checkpoint, catalog = evidence.checkpoint, evidence.catalog
        if checkpoint is not None:
            self._load_lanes()
        facts = LaneFacts(self._settled, self.deleted, self.named_upto)
        ledger = judge_ledger(self.disk, self.paths, evidence, facts.apply)
        raise_first(ledger.findings)
        for lane_id in self.deleted:
            self.lanes.pop(lane_id, None)
        if checkpoint is not None:
            self._settle_spilled()
        self.report.ledger_bytes_cut = ledger.bytes_cut
        self.epoch_seen = max(ledger.epoch, catalog.epoch if catalog else 0, self.epoch_seen)
        return ledger

    def _read_log(self, evidence: Evidence, ledger: LedgerFile) -> LogScan:
        """Judge the log, replay what is behind the checkpoint. Raises CorruptLog."""
        lanes = Lanes(self.deleted, lambda lane_id: self._settled(lane_id).floor, self._adopt)
        found = judge_log(self.disk, self.paths, evidence, ledger, lanes)
        raise_first(found.findings)
        for lane_id, end in found.named_upto.items():
            self.named_upto[lane_id] = max(self.named_upto.get(lane_id, 0), end)
        self.epoch_seen = max(self.epoch_seen, found.epoch)
        self.lsn = found.lsn
        self.report.records_replayed = found.records
        self.report.log_bytes_cut = found.bytes_cut
        self.report.log_records_cut = found.records_cut
        lane_ids = (*self.lanes, *self.deleted)
        raise_first(judge_age_of_ledger(self.paths, ledger, self.epoch_seen, lane_ids))
        return found

    def _adopt(self, lane_id: int, segment_id: int, first: int, run: PlacedRun) -> None:
        """Take messages of the log, in its order, that the index does not have yet."""
        self.found_count += len(run.positions)
        self.progress("messages found in the log", self.found_count)
        self.adopted[lane_id].add(
            first, segment_id, run.positions, run.lengths, run.sizes, run.dues_ms
        )

    # -- making it lasting

    def _finish_log(self, scan: LogScan, checkpoint: Checkpoint | None, uuid: bytes) -> None:
        """Seal every segment, cut the torn tail, and have all that was replayed on disk."""
        disk = self.disk
        synced_lsn = 0 if checkpoint is None else checkpoint.lsn
        sealed = [item.segment.segment_id for item in scan.found if item.sealed]
        last_sealed = max((id_ for id_ in sealed if id_ < COMPACTED), default=0)
        unlinked = False
        for item in scan.found:
            segment = item.segment
            path = self.paths.segment(segment.segment_id)
            if segment.end_lsn == segment.base_lsn:  # nothing whole in it
                disk.unlink(path)
                unlinked = True
                continue
            if segment.end_lsn > synced_lsn and not (item.sealed and checkpoint is None):
                start = FILE_HEADER_BYTES
                if checkpoint is not None and checkpoint.segment_id == segment.segment_id:
                    start = checkpoint.position
                self._rewrite(path, start, item.used_end if item.sealed else segment.log_end)
            elif segment.segment_id == last_sealed:
                # Segments are sealed one by one: only the last one's footer may not be on disk,
                # however long its records have been there.
                self._rewrite(path, segment.log_end, item.used_end)
            if segment.columns is not None:
                seal(
                    disk,
                    path,
                    uuid,
                    segment.columns,
                    segment.base_lsn,
                    segment.end_lsn,
                    segment.log_end,
                )
                segment.forget_columns()
            self.segments[segment.segment_id] = segment
        self.segments.update((segment.segment_id, segment) for segment in scan.replaced)
        if unlinked:
            disk.sync_directory(self.paths.log)

    def _remove_leftover(self, scan: LogScan) -> None:
        """Unlink segments that the ledger gave up (which is synced), unfinished ones, and spill/."""
        disk = self.disk
        log = self.paths.log
        names = [self.paths.segment(segment_id).name for segment_id in scan.leftover]
        names += [name for name in disk.names(log) if name.endswith(".new")]
        for name in names:
            disk.unlink(log / name)
        if names:
            disk.sync_directory(log)
        for name in disk.names(self.paths.spill):
            disk.unlink(self.paths.spill / name)

    def _rewrite(self, path: Path, start: int, end: int) -> None:
        """Write the same bytes again, and the file header, and sync."""
        disk = self.disk
        file = disk.open(path, write=True)
        try:
            disk.write(file, [disk.read(file, FILE_HEADER_BYTES, 0)], 0)
            while start < end:
                data = disk.read(file, min(_REWRITE_BYTES, end - start), start)
                disk.write(file, [data], start)
                start += len(data)
            disk.sync_data(file)
        finally:
            disk.close(file)

    def _update_index(
        self, checkpoint: Checkpoint, *, rebuild: bool, moves: list[Move]
    ) -> dict[int, Live]:
        """Write the first checkpoint. Returns the live counts after it."""
        paths = self.paths
        if rebuild:
            if self.index is not None:
                self.index.close()
            if paths.index.exists():
                shutil.rmtree(paths.index)
            self.index = Index(
                paths.index,
                map_bytes=self.settings.index_map_bytes,
                reserve_bytes=self.settings.index_reserve_bytes,
            )
            self.opened.append(self.index.close)
        assert self.index is not None
        index = self.shelf.index = self.index
        gone = [segment_id for segment_id in self.live_before if segment_id not in self.segments]
        for number, part in enumerate(self._updates(), 1):
            index.apply(part, (), None)
            self.progress(INDEX_PARTS, number)
        index.apply((), self.deleted, checkpoint, gone, moves)
        if paths.index_doubt.name in self.disk.names(paths.root):
            self.disk.sync_directory(paths.root)  # the old index must not come back unmarked
            self.disk.unlink(paths.index_doubt)
        for lane_id, row in index.lanes().items():
            self.lanes[lane_id].alive = row.alive
            self.lanes[lane_id].alive_bytes = row.alive_bytes
        return index.live()

    def _updates(self) -> Iterator[list[LaneUpdate]]:
        """All that the index lacks, in portions for one transaction each."""
        part: list[LaneUpdate] = []
        pointers = 0
        for lane_id, lane in self.lanes.items():
            update = lane_update(lane, lane.next_qseq)
            part.append(update)
            for placed in self.adopted[lane_id].placed(REBUILD_POINTERS):
                if pointers + len(placed.positions) > REBUILD_POINTERS:
                    yield part
                    pointers = 0
                    update = structs.replace(update, bitmaps={}, placed=[])
                    part = [update]
                update.placed.append(placed)
                pointers += len(placed.positions) + _STRETCH_WEIGHT
        yield part
