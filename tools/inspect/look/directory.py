"""A data directory as a whole: whose lanes are whose, what is settled, what is damaged.

`Directory` reads catalog, index and ledger when it is made, in this order, and the log afterwards:
so the log has everything that they say of it. Settlements and definitions come from the ledger,
which begins with a snapshot of all of them; catalog and index only say how far log and ledger must
reach. If the ledger is damaged, what can be read of it is put on top of the definitions in the
catalog. storage/start/judge.py says what is damage, and is asked as a start asks it: with
`findings` a start is refused. Whatever can be shown without what is damaged is shown. Changes
nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from qlog.server.broker.definitions import QueueDefinition
from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk
from qlog.storage.catalog import Definition
from qlog.storage.errors import DirectoryUnreadable
from qlog.storage.identity import IDENTITY, Identity
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
    catalog_doubt,
    identify,
    index_doubt,
    judge_age_of_ledger,
    judge_ledger,
    judge_log,
)
from qlog.storage.streams.files import Source, stream_files
from qlog.storage.write.segment import BatchFile
from qlog.tools.inspect.look.definitions import Defined, decode, entry_text
from qlog.tools.inspect.look.environment import (
    CatalogFacts,
    IndexFacts,
    Unreadable,
    is_in_use,
    read,
    read_catalog,
    read_index,
)
from qlog.tools.inspect.look.unreadable import ForgivingDisk
from qlog.tools.inspect.rows import Damage

T = TypeVar("T")
F = TypeVar("F", CatalogFacts, IndexFacts)

LOOKS_MAX = 5  # at what a running broker changes meanwhile
MADE_ANEW = "the next start makes it anew"


def look_again(in_use: bool, look: Callable[[bool], T], seems_wrong: Callable[[T], object]) -> T:
    """The result of `look(again)`. While a broker is at work, what seems wrong is looked at again.

    A file may be unlinked, or a batch be written, between two reads that have to fit together.
    Raises DirectoryUnreadable when that goes on and on.
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


class LedgerFacts(LaneFacts[Settled]):
    """What the ledger's current file says; `lanes` are what is settled.

    Raises OtherFormat, OSError.
    """

    def __init__(self, disk: Disk, paths: Paths, evidence: Evidence) -> None:
        self.age: list[Finding] = []  # it is an older copy: other files know more
        self.lanes: dict[int, Settled] = {}
        super().__init__(lambda lane_id: self.lanes.setdefault(lane_id, Settled()))
        self.file = judge_ledger(disk, paths, evidence, self.apply, everything=True)

    @property
    def segments(self) -> SegmentFacts:
        return self.file.segments

    @property
    def damaged(self) -> bool:
        """Settlements and definitions are lost."""
        return bool(self.file.findings or self.age)

    @property
    def closed_lsn(self) -> int:
        """Where the log ended at an orderly stop; 0 when there was none."""
        return self.file.log_durable if self.file.closed else 0

    def next_qseq(self, lane_id: int) -> int:
        """The qseq above all messages of a lane that the ledger names."""
        return self.named_upto.get(lane_id, 0)


class Directory(Examination):
    """One look at a directory.

    Raises DirectoryUnreadable when it is none, OtherFormat, Forbidden, PermissionError.
    """

    _disk: ForgivingDisk
    in_use: bool
    identity: Identity  # as far as it is known
    catalog_facts: CatalogFacts
    index_facts: IndexFacts
    ledger: LedgerFacts
    evidence: Evidence
    definitions: dict[Definition, bytes]
    defined: Defined  # the same, decoded
    owners: dict[int, QueueDefinition]  # by lane
    findings: list[Finding]  # of the ledger
    damage: list[Damage]  # these, and what is no reason to refuse a start
    notes: list[str]
    _scan: LogScan | None

    def __init__(self, root: Path) -> None:
        self.paths = paths = Paths(root.absolute())
        self._disk = ForgivingDisk()
        self.root = root
        if not root.is_dir():
            what = "is not a directory" if root.exists() else "does not exist"
            advice = "name the broker's data directory with --data-dir"
            raise DirectoryUnreadable(f"{root} {what}; {advice}")
        if not any(path.is_dir() for path in (paths.catalog, paths.log, paths.ledger)):
            raise DirectoryUnreadable(
                f"{root} is not a data directory: it has no catalog.lmdb, no log and no ledger"
            )
        self.refresh()

    def refresh(self) -> None:
        """Read catalog, index and ledger anew: a running broker goes on with them."""
        self.in_use = is_in_use(self.paths.catalog)
        look_again(self.in_use, self._read, lambda _: self.findings)

    def _read(self, again: bool) -> None:
        self.damage, self.notes, self.findings, self._scan = [], [], [], None
        paths = self.paths
        catalog = self._environment(paths.catalog, read_catalog, CatalogFacts)
        for entry in catalog.damaged:
            catalog.doubt = f"it has a damaged definition: {entry_text(*entry)}"
            self.damage.append(Damage("catalog.lmdb", f"{catalog.doubt}; {MADE_ANEW}"))
        checkpoint = None if catalog.doubt else catalog.checkpoint
        uuid = identify(self._disk, paths, checkpoint) or bytes(16)
        doubt = catalog_doubt(catalog.checkpoint, uuid)
        self.catalog_facts = self._ours(paths.catalog, catalog, uuid, doubt)
        index = self._environment(paths.index, read_index, IndexFacts)
        doubt = index_doubt(index.checkpoint, uuid, marked=paths.index_doubt.exists())
        self.index_facts = self._ours(paths.index, index, uuid, doubt)
        self.evidence = self._weigh(uuid)
        self.ledger = LedgerFacts(self._disk, paths, self.evidence)
        file = self.ledger.file
        path = paths.ledger_file(file.file_id)
        file.findings += self._unread(path)
        self.findings += file.findings
        self.damage += map(self.damage_of, file.findings)
        if file.bytes_cut and not (file.findings or self.in_use):
            self.notes.append(
                f"{self.relative(path)} ends in {file.bytes_cut} bytes of a write that was under "
                "way; the next start cuts them"
            )
        self.definitions = self._all_definitions(file)
        self.defined = decode(self.definitions)
        self.owners = self.defined.owners
        self.identity = self.known_identity or Identity(uuid, 0, 1)
        self._check_age(LogScan())

    # -- what is defined

    @property
    def known_identity(self) -> Identity | None:
        """The identity of the directory; None: it is lost. Raises OtherFormat."""
        value = self.definitions.get(IDENTITY)
        return None if value is None else Identity.unpack(value)

    def catalog_differs(self) -> list[Definition]:
        """Definitions that differ in the catalog from what the ledger had at its checkpoint."""
        checkpoint, file = self.evidence.catalog, self.ledger.file
        if checkpoint is None or self.ledger.damaged or checkpoint.ledger.file_id != file.file_id:
            return []
        ours, theirs = file.definitions.entries, self.catalog_facts.entries
        then = file.definitions.over(theirs, checkpoint.ledger.number)
        return sorted(key for key in ours.keys() | then.keys() if ours.get(key) != then.get(key))

    def _all_definitions(self, file: LedgerFile) -> dict[Definition, bytes]:
        """The ledger's definitions; if it is damaged, what is left of them over the catalog's."""
        by_ledger = file.definitions
        if not file.findings:
            return by_ledger.entries
        facts = self.catalog_facts
        number = 0 if facts.checkpoint is None else facts.checkpoint.ledger.number
        found = by_ledger.over(facts.entries, number)
        # A definition that the catalog does not have was deleted, if the catalog has lost none.
        return by_ledger.entries | found if facts.doubt else found

    # -- what is settled

    def is_gone(self, lane_id: int) -> bool:
        """The lane's queue was deleted, or is one that ends with the broker."""
        ledger = self.ledger
        return lane_id in ledger.deleted or (lane_id not in self.owners and not ledger.damaged)

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
        """The state of a message: `unsettled`, `settled`, or `deleted` with its queue."""
        if self.is_gone(lane_id):
            return "deleted"
        return "unsettled" if self.unsettled(lane_id, qseq, 1) else "settled"

    def target(self, lane_id: int, qseq: int) -> dict[str, Any]:
        """A message in a lane, for JSON."""
        return self.named(lane_id) | {"offset": qseq, "state": self.state_of(lane_id, qseq)}

    def lanes(self) -> Iterator[int]:
        """Every lane that a definition, the ledger or the index names and that is not deleted."""
        known = self.owners.keys() | self.ledger.lanes.keys() | self.index_facts.lanes.keys()
        yield from sorted(known - self.ledger.deleted)

    # -- the log

    def refusals(self) -> list[Finding]:
        """Why a start is refused, empty if it is not. The start names the first."""
        found = self.judge_log().findings
        return [*self.findings, *found, *self.ledger.age]

    def judge_log(self) -> LogScan:
        """What a start finds in the log. It is judged once, until `refresh` is called."""
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
        """Note that the ledger is an older copy, as far as index and log know."""
        if self.in_use or self.ledger.age:
            return
        evidence = self.evidence
        epochs = [one.epoch for one in (scan, evidence.catalog, evidence.attested) if one]
        lane_ids = {*self.ledger.lanes, *self.ledger.deleted, *scan.named_upto}
        if evidence.checkpoint is not None:
            lane_ids |= self.index_facts.lanes.keys()
        self.ledger.age = judge_age_of_ledger(self.paths, self.ledger.file, max(epochs), lane_ids)
        self.damage += map(self.damage_of, self.ledger.age)

    def stream_files(self) -> dict[int, list[int]]:
        """Where the files of streams begin, by lane."""
        return stream_files(self._disk, self.paths)

    def stream_source(self, lane_id: int) -> Source:
        """The segments of a stream."""
        return Source(self._disk, self.paths, self.identity.uuid, lane_id)

    @property
    def attested_lsn(self) -> int:
        """Evidence outside of the log says that the log had been synced up to here."""
        attested = self.evidence.attested
        return max(self.ledger.file.log_durable, 0 if attested is None else attested.lsn)

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

    def is_foreign(self, view: FileView) -> bool:
        """The file's header is another directory's: only batches that verify can be ours."""
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

    def unreadable(self, path: Path) -> list[Damage]:
        """The parts of a file that the disk did not give back, as far as the file was read."""
        return list(map(self.damage_of, self._unread(path)))

    def relative(self, path: Path) -> str:
        """How a file is named in reports."""
        return str(path.relative_to(self.paths.root))

    def damage_of(self, finding: Finding) -> Damage:
        """A finding as a report lists it."""
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

    @property
    def ledger_file_name(self) -> str:
        """Where the definitions are."""
        return self.relative(self.paths.ledger_file(self.ledger.file.file_id))

    # -- inside

    def _unread(self, path: Path) -> list[Finding]:
        return [
            Finding(path, f"this part cannot be read: {why}", position, end)
            for position, end, why in self._disk.unreadable(path)
        ]

    def _environment(self, path: Path, look: Callable[[Path, bool], F], kind: type[F]) -> F:
        """What an environment says: nothing but a doubt, when it cannot be read."""
        if not path.is_dir():
            if self.ledger_ids():
                self.notes.append(f"{path.name} is missing; {MADE_ANEW}")
            return kind(doubt="it is missing")
        try:
            facts = read(path, look)
        except Unreadable as error:
            facts = kind(doubt=str(error))
        else:
            implausible = self._implausible(path)
            facts.doubt = implausible or facts.doubt
            if implausible and path == self.paths.index:
                facts.checkpoint = None  # a start does not come to read it
        if facts.doubt:
            self.damage.append(Damage(path.name, f"{facts.doubt}; {MADE_ANEW}"))
        return facts

    def _ours(self, path: Path, facts: F, uuid: bytes, doubt: str) -> F:
        """What an environment says, if it is this directory's; else nothing but a doubt."""
        facts.doubt = facts.doubt or doubt
        if facts.checkpoint is None or facts.checkpoint.uuid == uuid:
            return facts
        self.damage.append(Damage(path.name, f"it belongs to another directory; {MADE_ANEW}"))
        return type(facts)(doubt=facts.doubt)

    def _implausible(self, directory: Path) -> str:
        """What LMDB does not say of a file that it could read; empty when it may have it."""
        if self.in_use:
            return ""  # a broker goes on writing, and looked itself when it started
        try:
            check_environment(directory)
        except Implausible as error:
            return str(error)
        return ""

    def _weigh(self, uuid: bytes) -> Evidence:
        catalog, index = self.catalog_facts, self.index_facts
        used = (None, {}) if index.doubt else (index.checkpoint, index.live)
        return Evidence(
            uuid, None if catalog.doubt else catalog.checkpoint, index.checkpoint, *used
        )
