"""A data directory as a whole: whose lanes are whose, what is settled, what must be there.

Reads catalog, index and ledger when it is made, in this order and before any of the log, so that
what they say of the log is in it by the time it is read. Settlements are the ledger's: it begins
with a snapshot of all of them, and the index is only asked how far the log must reach. What is
damaged is noted in `damage`, and as much as possible goes on without it. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from qlog.storage.bytes.batch import FILE_HEADER_BYTES, FileHeader, unpack_file_header
from qlog.storage.bytes.datadir import Identity, Paths, check_format, numbered
from qlog.storage.errors import DirectoryUnreadable
from qlog.storage.index.index import SPILL
from qlog.storage.lmdb.environment import check_environment
from qlog.storage.lmdb.file_check import Implausible
from qlog.storage.start.examine import Examination, FileView, Verdict
from qlog.storage.start.fold import COMPACTED, LaneFacts, SegmentFacts
from qlog.storage.write.ledger import Record, unpack_body
from qlog.storage.write.segment import BatchFile
from qlog.tools.inspect.look.environment import (
    CatalogFacts,
    IndexFacts,
    QueueFacts,
    Unreadable,
    entry_text,
    is_in_use,
    read_catalog,
    read_index,
)
from qlog.tools.inspect.look.settled import Settled
from qlog.tools.inspect.look.unreadable import ForgivingDisk
from qlog.tools.inspect.rows import Damage

_TRIES_MAX = 5  # a running broker may unlink what was just listed, but not so often


class LedgerFacts:
    """What the ledger's current file says; `lanes` are what is settled."""

    def __init__(self) -> None:
        self.lanes: dict[int, Settled] = {}
        self.segments = SegmentFacts()
        self.log_durable = 0  # the log had been synced up to this LSN
        self.damage: list[Damage] = []
        self._lane_facts: LaneFacts[Settled] = LaneFacts(self._lane)

    @property
    def deleted(self) -> set[int]:
        """Lanes whose queues were deleted."""
        return self._lane_facts.deleted

    def next_qseq(self, lane_id: int) -> int:
        """Above all messages of a lane that the ledger names."""
        return self._lane_facts.named_upto.get(lane_id, 0)

    def apply(self, record: Record) -> None:
        """Take in one record, in their order."""
        self.segments.apply(record)
        self._lane_facts.apply(record)

    def _lane(self, lane_id: int) -> Settled:
        return self.lanes.setdefault(lane_id, Settled())


class Directory(Examination):
    """One look at a directory.

    Raises DirectoryUnreadable when it is none, OtherFormat, Forbidden, PermissionError.
    """

    _disk: ForgivingDisk

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root.absolute())
        self._disk = ForgivingDisk()
        self.root = root
        self.damage: list[Damage] = []
        self.notes: list[str] = []
        paths = self.paths
        if not root.is_dir():
            raise DirectoryUnreadable(
                f"{root} is not a directory; name the broker's with --data-dir"
                if root.exists()
                else f"{root} does not exist; name the broker's data directory with --data-dir"
            )
        if not any(path.is_dir() for path in (paths.catalog, paths.log, paths.ledger)):
            raise DirectoryUnreadable(
                f"{root} is not a data directory: it has no catalog.lmdb, no log and no ledger"
            )
        self.in_use = is_in_use(paths.catalog)
        self.catalog_facts = self._read_catalog()
        self.identity = self.catalog_facts.identity or self._identity_of_files()
        self.index_facts = self._read_index()
        self.ledger = self._read_ledger()
        self.damage += self.ledger.damage
        self._check_epoch()
        self.owners: dict[int, QueueFacts] = {
            lane_id: queue for queue in self.catalog_facts.queues for lane_id in queue.lanes
        }

    @property
    def running(self) -> bool:
        """Whether a broker has the directory open, found out without touching its lock."""
        return self.in_use

    # -- what is settled

    def is_gone(self, lane_id: int) -> bool:
        """The lane's queue was deleted, or is one that ends with the broker."""
        return lane_id in self.ledger.deleted or (self._names_known and lane_id not in self.owners)

    def unsettled(self, lane_id: int, first: int, count: int) -> int:
        """Bits: which of the messages from qseq `first` on are not settled."""
        if self.is_gone(lane_id):
            return 0
        lane = self.ledger.lanes.get(lane_id)
        return (1 << count) - 1 if lane is None else lane.unsettled(first, count)

    # -- what must be there

    @property
    def attested_lsn(self) -> int:
        """Something outside the log says that it had been synced up to here."""
        index = self.index_facts
        return max(
            self.identity.closed_lsn,
            self.ledger.log_durable,
            0 if index is None or index.checkpoint is None else index.checkpoint.lsn,
        )

    def missing_segments(self, present: list[int]) -> list[int]:
        """The ids of segments that were never given up and have no file."""
        missing = self._missing(present)
        if missing and self.in_use:  # given up since ledger and index were read?
            self.refresh()
            self.index_facts = self._read_index()
            missing = self._missing(present)
        return missing

    def refresh(self) -> None:
        """Read the ledger again, which a running broker goes on with."""
        self.ledger = self._read_ledger()

    def _missing(self, present: list[int]) -> list[int]:
        live = {} if self.index_facts is None else self.index_facts.live
        needed = (id_ for id_, item in live.items() if item.count and id_ < SPILL)
        return self.ledger.segments.missing(present, needed)

    def standings(self, present: list[int]) -> dict[int, str]:
        """The segments that do not count: `given up`; `replaced` by one that compaction made; or
        `unfinished`, made by one that did not come to its end."""
        segments = self.ledger.segments
        found = dict.fromkeys(segments.replaced.keys() & set(present), "replaced")
        for segment_id in segments.given_up(present) - found.keys():
            if segment_id in segments.dropped or segment_id < COMPACTED:
                found[segment_id] = "given up"
            elif segments.complete:  # else nobody knows
                found[segment_id] = "unfinished"
        return found

    def segment_ids(self) -> list[int]:
        """Of the segments that have a file."""
        return self._numbered(self.paths.log, ".qseg")

    def is_foreign(self, view: FileView) -> bool:
        """By its header the file is another directory's: only batches that verify can be ours."""
        if view.header is None or view.footer_verdict is Verdict.WHOLE:
            return False  # a footer that verifies knows better
        return view.header.uuid != self.identity.uuid

    def ledger_ids(self) -> list[int]:
        return self._numbered(self.paths.ledger, ".qack")

    def opened(self, view: FileView) -> AbstractContextManager[BatchFile]:
        """The file behind a view, to read from."""
        return self._open(view.path, view.file_id)

    def read_file(self, path: Path, size: int, offset: int) -> bytes:
        """A part of any file. Raises OSError when it cannot be opened."""
        file = self._disk.open(path)
        try:
            return self._disk.read(file, size, offset)
        finally:
            self._disk.close(file)

    def unreadable(self, path: Path) -> list[Damage]:
        """What the disk did not give back of a file, as far as it was read."""
        return [
            Damage(self.relative(path), f"this part cannot be read: {why}", position, end)
            for position, end, why in self._disk.unreadable(path)
        ]

    def relative(self, path: Path) -> str:
        """How a file is named in reports."""
        return str(path.relative_to(self.paths.root))

    # -- inside

    @property
    def _names_known(self) -> bool:
        return self.catalog_facts.identity is not None and not any(
            item.file == "catalog.lmdb" for item in self.damage
        )

    def _numbered(self, directory: Path, suffix: str) -> list[int]:
        try:
            return numbered(self._disk, directory, suffix)
        except FileNotFoundError:
            return []

    def _check_file(self, directory: Path) -> None:
        """Note what LMDB does not say of a file that it could read."""
        if self.in_use:
            return  # a broker goes on writing, and looked itself when it started
        try:
            check_environment(directory)
        except Implausible as error:
            self.damage.append(Damage(directory.name, str(error)))

    def _read_catalog(self) -> CatalogFacts:
        try:
            facts = read_catalog(self.paths.catalog)
        except Unreadable as error:
            self.damage.append(
                Damage("catalog.lmdb", f"{error}; the names of queues cannot be known")
            )
            return CatalogFacts()
        self._check_file(self.paths.catalog)
        for kind, name in facts.damaged:
            self.damage.append(
                Damage("catalog.lmdb", f"the definition of {entry_text(kind, name)} is damaged")
            )
        return facts

    def _check_epoch(self) -> None:
        """Every start writes its number to the catalog before it writes it to any other file."""
        known = self.catalog_facts.identity
        uuid = self.identity.uuid
        epochs = (header.epoch for header in self._headers() if header.uuid == uuid)
        newest = 0 if known is None or self.in_use else max(epochs, default=0)
        if known is not None and newest > known.epoch:
            what = f"it is an older copy: of epoch {known.epoch}, and other files are of {newest}"
            self.damage.append(Damage("catalog.lmdb", f"{what}; it may not know all queues"))

    def _headers(self) -> Iterator[FileHeader]:
        """Of ledger and log, those that are whole and under their own names."""
        files = [(id_, self.paths.ledger_file(id_)) for id_ in self.ledger_ids()]
        files += [(id_, self.paths.segment(id_)) for id_ in self.segment_ids()]
        for file_id, path in files:
            try:
                header = unpack_file_header(self.read_file(path, FILE_HEADER_BYTES, 0))
            except FileNotFoundError:
                continue
            if header is not None and header.file_id == file_id:
                yield header

    def _read_index(self) -> IndexFacts | None:
        if not self.paths.index.is_dir():
            if self.ledger_ids():
                self.notes.append("index.lmdb is missing; the next start builds it anew")
            return None
        try:
            facts = read_index(self.paths.index)
        except Unreadable as error:
            self.damage.append(Damage("index.lmdb", f"{error}; the next start builds it anew"))
            return None
        self._check_file(self.paths.index)
        checkpoint = facts.checkpoint
        if checkpoint is not None and checkpoint.uuid != self.identity.uuid:
            self.damage.append(
                Damage("index.lmdb", "it belongs to another directory; the next start builds anew")
            )
            return None
        return facts

    def _identity_of_files(self) -> Identity:
        """Without the catalog: what the files say of the directory they belong to."""
        uuid = next((header.uuid for header in self._headers()), bytes(16))
        return Identity(uuid, 0, 1, 0)

    def _read_ledger(self) -> LedgerFacts:
        """The newest ledger file, read again when it seems damaged while a broker writes it."""
        for tries_left in reversed(range(_TRIES_MAX)):
            ids = self.ledger_ids()
            if not ids:
                facts = LedgerFacts()
                if self.identity.closed_lsn or self.segment_ids():
                    facts.damage.append(
                        Damage("ledger", "it is missing: what was settled cannot be known")
                    )
                return facts
            try:
                facts = self._replay(self.ledger_file(ids[-1]))
            except FileNotFoundError:  # the next file took over
                continue
            if not facts.damage or not self.in_use or not tries_left:
                return facts
        raise DirectoryUnreadable(f"{self.paths.ledger} changes all the time; try again")

    def check_version(self, view: FileView) -> None:
        """Raises OtherFormat."""
        if view.header is not None:
            check_format(view.path, view.header.version)

    def _replay(self, view: FileView) -> LedgerFacts:
        self.check_version(view)
        facts = LedgerFacts()
        name = self.relative(view.path)
        number: int | None = None
        if view.header_verdict is Verdict.WHOLE and view.header is not None:
            number = view.header.base
        else:
            facts.damage.append(Damage(name, "the file's header is not this file's", 0))
        bad: tuple[int, int] | None = None  # where the unbroken sequence ended
        damaged = False
        for stretch in self.stretches(view):
            if stretch.verdict is Verdict.DAMAGED and bad is None:
                bad = stretch.position, stretch.end
            batch = stretch.batch
            if batch is None:
                continue
            if number is not None and batch.header.base != number and bad is None:
                bad = stretch.position, stretch.position
            if number is not None and batch.header.durable > number:
                damaged = True
            if bad is None or number is None:
                number = batch.header.base + 1
            log_durable, records = unpack_body(batch.body)
            facts.log_durable = max(facts.log_durable, log_durable)
            for record in records:
                facts.apply(record)
        complete = facts.segments.complete
        index = self.index_facts
        if index is not None and index.checkpoint is not None and number is not None:
            position = index.checkpoint.ledger
            damaged = damaged or (position.file_id >= view.file_id and position.number > number)
        if bad is not None and (damaged or not complete):
            position_bad, end = bad
            facts.damage.append(
                Damage(name, "settlements are lost: their messages show as unsettled", *bad)
                if end > position_bad
                else Damage(name, "batches are missing here", position_bad)
            )
        elif damaged or not complete:
            facts.damage.append(Damage(name, "it ends too early: settlements are lost"))
        elif bad is not None and not self.in_use:
            self.notes.append(
                f"{name} ends in {bad[1] - bad[0]} bytes of a write that was under way; "
                "the next start cuts them"
            )
        facts.damage += self.unreadable(view.path)
        return facts

    def queue_of(self, lane_id: int) -> QueueFacts | None:
        """The queue that a lane belongs to; None when it is gone, or cannot be known."""
        return self.owners.get(lane_id)

    def lanes(self) -> Iterator[int]:
        """Every lane that the catalog, the ledger or the index names and that is not deleted."""
        indexed = self.index_facts.lanes if self.index_facts is not None else {}
        known = self.owners.keys() | self.ledger.lanes.keys() | indexed.keys()
        yield from sorted(known - self.ledger.deleted)
