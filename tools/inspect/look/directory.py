"""A data directory as a whole: whose lanes are whose, what is settled, what is damaged.

Reads catalog, index and ledger when it is made, in this order and before any of the log, so that
what they say of the log is in it by the time it is read. Settlements are the ledger's: it begins
with a snapshot of all of them, and the index is only asked how far the log must reach. What is
damage is for storage/start/judge.py to say, which is asked as a start asks it: with `findings` a
start is refused. As much as possible goes on without what is damaged. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from qlog.storage.bytes.batch import FILE_HEADER_BYTES, unpack_file_header
from qlog.storage.bytes.datadir import Identity, Paths, check_format, numbered
from qlog.storage.errors import DirectoryUnreadable
from qlog.storage.lanes.settled import Settled
from qlog.storage.lmdb.environment import check_environment
from qlog.storage.lmdb.file_check import Implausible
from qlog.storage.start.examine import Examination, FileView, Verdict
from qlog.storage.start.fold import COMPACTED, LaneFacts, SegmentFacts
from qlog.storage.start.judge import (
    Evidence,
    Finding,
    Lanes,
    LedgerFile,
    LogScan,
    index_doubt,
    judge_age_of_catalog,
    judge_ledger,
    judge_log,
    judge_missing_catalog,
)
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
from qlog.tools.inspect.look.unreadable import ForgivingDisk
from qlog.tools.inspect.rows import Damage

T = TypeVar("T")

LOOKS_MAX = 5  # at what a running broker changes meanwhile


def look_again(in_use: bool, look: Callable[[bool], T], seems_wrong: Callable[[T], object]) -> T:
    """What `look(again)` finds; while a broker is at work, what seems wrong is looked at again.

    A file may be unlinked, or a batch be written, between two looks of which one follows on the
    other. Raises DirectoryUnreadable when that goes on and on.
    """
    looks = LOOKS_MAX if in_use else 1
    for looks_left in reversed(range(looks)):
        try:
            found = look(looks_left + 1 < looks)
        except FileNotFoundError as error:
            if not looks_left:
                raise DirectoryUnreadable(f"{error.filename} is not there any more") from error
            continue
        if not looks_left or not seems_wrong(found):
            return found
    raise AssertionError("there is a last look")


class LedgerFacts:
    """What the ledger's current file says; `lanes` are what is settled."""

    def __init__(self, file: LedgerFile) -> None:
        self.file = file
        self.lanes: dict[int, Settled] = {}
        self._lane_facts: LaneFacts[Settled] = LaneFacts(
            lambda lane_id: self.lanes.setdefault(lane_id, Settled())
        )
        for record in (*file.records, *file.beyond):
            self._lane_facts.apply(record)
        file.records, file.beyond = [], []  # these may be many

    @property
    def segments(self) -> SegmentFacts:
        return self.file.segments

    @property
    def damaged(self) -> bool:
        """Settlements are lost."""
        return bool(self.file.findings)

    @property
    def deleted(self) -> set[int]:
        """Lanes whose queues were deleted."""
        return self._lane_facts.deleted

    def next_qseq(self, lane_id: int) -> int:
        """Above all messages of a lane that the ledger names."""
        return self._lane_facts.named_upto.get(lane_id, 0)


class Directory(Examination):
    """One look at a directory.

    Raises DirectoryUnreadable when it is none, OtherFormat, Forbidden, PermissionError.
    """

    _disk: ForgivingDisk
    in_use: bool
    identity: Identity
    catalog_facts: CatalogFacts
    index_facts: IndexFacts | None
    ledger: LedgerFacts
    evidence: Evidence
    findings: list[Finding]  # of catalog and ledger
    damage: list[Damage]  # these, and what is no reason to refuse a start
    notes: list[str]
    owners: dict[int, QueueFacts]  # by lane
    _scan: LogScan | None

    def __init__(self, root: Path) -> None:
        self.paths = paths = Paths(root.absolute())
        self._disk = ForgivingDisk()
        self.root = root
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
        self.refresh()

    def refresh(self) -> None:
        """Read catalog, index and ledger anew: a running broker goes on with them."""
        self.in_use = is_in_use(self.paths.catalog)
        look_again(self.in_use, self._read, lambda _: self.findings)

    @property
    def running(self) -> bool:
        """Whether a broker has the directory open, found out without touching its lock."""
        return self.in_use

    def _read(self, again: bool) -> None:
        self.damage, self.notes, self.findings, self._scan = [], [], [], None
        self.catalog_facts = self._read_catalog()
        self.identity = self.catalog_facts.identity or self._identity_of_files()
        self.index_facts = self._read_index()
        self.evidence = self._weigh()
        file = judge_ledger(self._disk, self.paths, self.evidence, everything=True)
        path = self.paths.ledger_file(file.file_id)
        file.findings += self._unread(path)
        self._find(*file.findings)
        if file.bytes_cut and not (file.findings or self.in_use):
            self.notes.append(
                f"{self.relative(path)} ends in {file.bytes_cut} bytes of a write that was under "
                "way; the next start cuts them"
            )
        self.ledger = LedgerFacts(file)
        self._check_age(LogScan())
        self.owners = {
            lane_id: queue for queue in self.catalog_facts.queues for lane_id in queue.lanes
        }

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

    def named(self, lane_id: int) -> dict[str, Any]:
        """A lane and its queue, for JSON."""
        owner = self.owners.get(lane_id)
        vhost, queue = (None, None) if owner is None else (owner.vhost, owner.name)
        return {"vhost": vhost, "queue": queue, "lane": lane_id}

    def state_of(self, lane_id: int, qseq: int) -> str:
        """Of a message: `unsettled`, `settled`, or `deleted` with its queue."""
        if self.is_gone(lane_id):
            return "deleted"
        return "unsettled" if self.unsettled(lane_id, qseq, 1) else "settled"

    def target(self, lane_id: int, qseq: int) -> dict[str, Any]:
        """A message in a lane, for JSON."""
        return self.named(lane_id) | {"offset": qseq, "state": self.state_of(lane_id, qseq)}

    def queue_of(self, lane_id: int) -> QueueFacts | None:
        """The queue that a lane belongs to; None when it is gone, or cannot be known."""
        return self.owners.get(lane_id)

    def lanes(self) -> Iterator[int]:
        """Every lane that the catalog, the ledger or the index names and that is not deleted."""
        indexed = self.index_facts.lanes if self.index_facts is not None else {}
        known = self.owners.keys() | self.ledger.lanes.keys() | indexed.keys()
        yield from sorted(known - self.ledger.deleted)

    @property
    def _names_known(self) -> bool:
        return self.catalog_facts.identity is not None and not any(
            item.file == "catalog.lmdb" for item in self.damage
        )

    # -- the log

    def refusals(self) -> list[Finding]:
        """Why a start on the directory is refused; none: it is not. A start names the first."""
        found = self.judge_log().findings
        return [*self.findings, *found]

    def judge_log(self) -> LogScan:
        """What a start finds in the log; judged once for what was read of the rest."""
        if self._scan is None:
            self._scan = look_again(self.in_use, self._judge_log, lambda scan: scan.findings)
        return self._scan

    def _judge_log(self, again: bool) -> LogScan:
        if again:
            self.refresh()
        evidence, ledger = self.evidence, self.ledger
        lanes = Lanes(
            ledger.deleted,
            lambda lane_id: ledger.lanes[lane_id].floor if lane_id in ledger.lanes else 0,
            lambda *_: None,
        )
        scan = judge_log(self._disk, self.paths, evidence, ledger.file, lanes)
        for segment_id in self.segment_ids():  # a start ends at what it cannot read
            scan.findings += self._unread(self.paths.segment(segment_id))
        self._check_age(scan)
        return scan

    def _check_age(self, scan: LogScan) -> None:
        """Note that the catalog is an older copy, as far as ledger, index and log know."""
        if self.catalog_facts.identity is None or self.in_use:
            return
        epochs = [self.ledger.file.epoch, scan.epoch]
        lane_ids = {*self.ledger.lanes, *self.ledger.deleted, *scan.named_upto}
        if self.evidence.attested is not None:
            epochs.append(self.evidence.attested.epoch)
        if self.evidence.checkpoint is not None and self.index_facts is not None:
            lane_ids |= self.index_facts.lanes.keys()
        found = judge_age_of_catalog(self.paths, self.identity, max(epochs), lane_ids)
        known = any(item.path == self.paths.catalog for item in self.findings)
        if not known:
            self._find(*found)

    @property
    def attested_lsn(self) -> int:
        """Something outside the log says that it had been synced up to here."""
        attested = self.evidence.attested
        by_index = 0 if attested is None else attested.lsn
        return max(self.identity.closed_lsn, self.ledger.file.log_durable, by_index)

    def standings(self, present: list[int]) -> dict[int, str]:
        """The segments that do not count: `given up`; `replaced` by one that compaction made; or
        `unfinished`, made by one that did not come to its end."""
        segments = self.ledger.segments
        found = dict.fromkeys(segments.replaced.keys() & set(present), "replaced")
        for segment_id in segments.given_up(present) - found.keys():
            given_up = segment_id in segments.dropped or segment_id < COMPACTED
            found[segment_id] = "given up" if given_up else "unfinished"
        return found

    # -- files

    def segment_ids(self) -> list[int]:
        """Of the segments that have a file."""
        return numbered(self._disk, self.paths.log, ".qseg")

    def ledger_ids(self) -> list[int]:
        return numbered(self._disk, self.paths.ledger, ".qack")

    def is_foreign(self, view: FileView) -> bool:
        """By its header the file is another directory's: only batches that verify can be ours."""
        if view.header is None or view.footer_verdict is Verdict.WHOLE:
            return False  # a footer that verifies knows better
        return view.header.uuid != self.identity.uuid

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

    def check_version(self, view: FileView) -> None:
        """Raises OtherFormat."""
        if view.header is not None:
            check_format(view.path, view.header.version)

    def unreadable(self, path: Path) -> list[Damage]:
        """What the disk did not give back of a file, as far as it was read."""
        return list(map(self.damage_of, self._unread(path)))

    def relative(self, path: Path) -> str:
        """How a file is named in reports."""
        return str(path.relative_to(self.paths.root))

    def damage_of(self, finding: Finding) -> Damage:
        """A finding as it is listed."""
        what = finding.what if finding.position is not None else f"it {finding.what}"
        first, end = finding.lsn_first, finding.lsn_end
        return Damage(
            self.relative(finding.path),
            what or "the file's header is damaged",
            finding.position,
            finding.end,
            first,
            end,
            None if first is None or end is None else end - first,
        )

    # -- inside

    def _unread(self, path: Path) -> list[Finding]:
        return [
            Finding(path, f"this part cannot be read: {why}", position, end)
            for position, end, why in self._disk.unreadable(path)
        ]

    def _find(self, *findings: Finding) -> None:
        self.findings += findings
        self.damage += map(self.damage_of, findings)

    def _read_catalog(self) -> CatalogFacts:
        path = self.paths.catalog
        kind = DirectoryUnreadable
        try:
            facts = read_catalog(path)
        except Unreadable as error:
            what = f"cannot be used: {error}; the names of queues cannot be known"
            self._find(Finding(path, what, kind=kind))
            return CatalogFacts()
        if why := self._implausible(path):
            self._find(Finding(path, f"cannot be used: {why}", kind=kind))
        for entry in facts.damaged:
            what = f"has a damaged definition: {entry_text(*entry)}"
            self._find(Finding(path, what, kind=kind))
        if facts.identity is None and not facts.damaged:
            self._find(*judge_missing_catalog(self._disk, self.paths))
        return facts

    def _implausible(self, directory: Path) -> str:
        """What LMDB does not say of a file that it could read; empty when it may have it."""
        if self.in_use:
            return ""  # a broker goes on writing, and looked itself when it started
        try:
            check_environment(directory)
        except Implausible as error:
            return str(error)
        return ""

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
        why = self._implausible(self.paths.index)
        if why:
            facts.doubt, facts.checkpoint = why, None  # a start does not come to read it
        if facts.doubt:
            self.damage.append(
                Damage("index.lmdb", f"{facts.doubt}; the next start builds it anew")
            )
        uuid = self.identity.uuid
        facts.doubt = facts.doubt or index_doubt(
            facts.checkpoint, uuid, marked=self.paths.index_doubt.exists()
        )
        if facts.checkpoint is not None and facts.checkpoint.uuid != uuid:
            self.damage.append(
                Damage("index.lmdb", "it belongs to another directory; the next start builds anew")
            )
            return None
        return facts

    def _weigh(self) -> Evidence:
        index = self.index_facts
        if index is None:
            return Evidence(self.identity)
        if index.doubt:
            return Evidence(self.identity, index.checkpoint)
        return Evidence(self.identity, index.checkpoint, index.checkpoint, index.live)

    def _identity_of_files(self) -> Identity:
        """Without the catalog: what the files say of the directory they belong to."""
        files = [(id_, self.paths.ledger_file(id_)) for id_ in self.ledger_ids()]
        files += [(id_, self.paths.segment(id_)) for id_ in self.segment_ids()]
        for file_id, path in files:
            header = unpack_file_header(self.read_file(path, FILE_HEADER_BYTES, 0))
            if header is not None and header.file_id == file_id:
                return Identity(header.uuid, 0, 1, 0)
        return Identity(bytes(16), 0, 1, 0)
