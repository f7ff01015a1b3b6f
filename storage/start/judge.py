"""What is damage in a directory, and what a kill left: the only place where that is decided.

A start asks before it changes anything, and is refused for the first finding. `qlog inspect` asks
the same functions with the same evidence, and lists all findings. Nothing is changed here.

The tail rule. Let the first bad byte of the log be at LSN p. If anything that is whole (a later
batch, a later segment, a batch of the ledger, the index's checkpoint) says that the log had been
synced beyond p, then confirmed data is damaged: a finding. Otherwise the bad bytes are the rest of
a write that nobody was told of, and a start cuts them. The rule for the ledger is the same; there
the catalog's checkpoint counts, too.

Evidence is gathered in one order: catalog, index, ledger, log. Catalog and index are never a
finding, since all in them follows from ledger and log; `catalog_doubt` and `index_doubt` say why a
start makes them anew. A start may find the index wrong only when it uses the index. That is not
foreseen here; the start then begins once more, without the index.

Segments are in the order of their first LSNs. A compacted segment replaces its sources once the
ledger says so; until then it is ignored.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qlog.storage.bytes.batch import FILE_HEADER_BYTES, FileHeader, unpack_file_header
from qlog.storage.bytes.datadir import Paths, check_format, numbered
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.footer import Columns, PlacedRun
from qlog.storage.errors import CorruptLog, StorageError
from qlog.storage.identity import IDENTITY, Identity
from qlog.storage.index.index import SPILL, Checkpoint, Live
from qlog.storage.journal import OF_LANE, Defined, OfLane, Time
from qlog.storage.lmdb.catalog import CatalogCheckpoint
from qlog.storage.start.fold import COMPACTED, DefinitionFacts, SegmentFacts
from qlog.storage.write.ledger import Record, unpack_body
from qlog.storage.write.placement import Segment
from qlog.storage.write.segment import Batch, BatchFile, columns_of

ADVICE = "restore it from a copy, or see what is left with `qlog inspect repair --accept-loss`"


@dataclass(frozen=True, slots=True)
class Finding:
    """Damage for which a start is refused.

    `what` is the end of a sentence that begins with the file's name and the `position`, if there
    is one. `end` is the end of the damaged bytes. `lsn_first` and `lsn_end` (exclusive) are the
    messages that are missing. None: does not apply, or is not known. `disagrees`: the file may be
    whole, but contradicts another file.
    """

    path: Path
    what: str
    position: int | None = None
    end: int | None = None
    lsn_first: int | None = None
    lsn_end: int | None = None
    kind: type[StorageError] = CorruptLog
    disagrees: bool = False

    def error(self) -> StorageError:
        """What a start raises: one line."""
        what = self.what
        if self.position is not None:
            what = f"is damaged at byte {self.position}" + (f": {what}" if what else "")
        mark = ";" if ":" in what else ":"
        return self.kind(f"{self.path} {what}{mark} {ADVICE}")


def raise_first(findings: Sequence[Finding]) -> None:
    """Refuse the start. Raises CorruptLog, DirectoryUnreadable."""
    if findings:
        raise findings[0].error()


# -- what catalog and index say


@dataclass(frozen=True, slots=True)
class Evidence:
    """What catalog and index say of ledger and log. It is read before these are.

    - `uuid` is the directory's (`identify`).
    - `catalog` is the checkpoint of the catalog, if that is not in doubt: the ledger had been
      synced up to there.
    - `attested` is the checkpoint of the index, if that belongs to this directory, even if it is in
      doubt: log and ledger had been synced up to there.
    - `checkpoint` is the checkpoint of the index, if that is not in doubt; None: the index is made
      anew from all of ledger and log.
    - `live` has, by segment, what an index that is not in doubt points to.
    """

    uuid: bytes
    catalog: CatalogCheckpoint | None = None
    attested: Checkpoint | None = None
    checkpoint: Checkpoint | None = None
    live: Mapping[int, Live] = field(default_factory=dict)

    @property
    def needed(self) -> set[int]:
        """Segments that must be there, since the index points to them."""
        return {id_ for id_, live in self.live.items() if live.count and id_ < SPILL}


def index_doubt(checkpoint: Checkpoint | None, uuid: bytes, *, marked: bool) -> str:
    """Why an index that can be read is made anew; empty when it is good.

    `marked`: a running broker has left a mark that it found the index wrong.
    """
    if checkpoint is None:
        return "it was not finished"
    if checkpoint.uuid != uuid:
        return "it belongs to another directory"
    return "the broker had found it wrong" if marked else ""


def catalog_doubt(checkpoint: CatalogCheckpoint | None, uuid: bytes) -> str:
    """Why a catalog that can be read is made anew; empty when it is good."""
    if checkpoint is None:
        return "it was not finished"
    return "" if checkpoint.uuid == uuid else "it belongs to another directory"


def identify(disk: Disk, paths: Paths, catalog: CatalogCheckpoint | None) -> bytes | None:
    """The directory's uuid, by its files and its catalog.

    The ledger says it. Where files of the ledger and the catalog do not agree, or no file of the
    ledger says anything, most segments do: one of the files may be another directory's. None: the
    directory is new, or nothing in it says who it is. Raises OtherFormat, OSError.
    """
    ledgers = [paths.ledger_file(id_) for id_ in reversed(numbered(disk, paths.ledger, ".qack"))]
    named = list(_uuids(disk, ledgers))
    others = [] if catalog is None else [catalog.uuid]
    if named and len({*named, *others}) == 1:
        return named[0]
    segments = [paths.segment(id_) for id_ in numbered(disk, paths.log, ".qseg")]
    votes = Counter(_uuids(disk, segments))
    for uuid, _ in votes.most_common(1):
        return uuid
    return next(iter(named + others), None)


def _uuids(disk: Disk, files: Iterable[Path]) -> Iterator[bytes]:
    """The uuids in the headers of files, as far as these are whole. Raises OtherFormat, OSError."""
    for path in files:
        header = _header(disk, path)
        if header is not None:
            check_format(path, header.version)
            yield header.uuid


def _header(disk: Disk, path: Path) -> FileHeader | None:
    """The header of a file, if it is whole and stands under its own name."""
    file = disk.open(path)
    try:
        header = unpack_file_header(disk.read(file, FILE_HEADER_BYTES, 0))
    finally:
        disk.close(file)
    return header if header is not None and header.file_id == int(path.stem) else None


# -- the ledger


@dataclass(slots=True)
class LedgerFile:
    """The ledger's current file."""

    file_id: int = 0
    number: int = 0  # of the next batch
    epoch: int = 0  # of the start that made the file
    log_durable: int = 0  # the log had been synced up to this LSN
    segments: SegmentFacts = field(default_factory=SegmentFacts)
    definitions: DefinitionFacts = field(default_factory=DefinitionFacts)
    position: int = FILE_HEADER_BYTES  # the end of the unbroken sequence of whole batches
    bytes_cut: int = 0  # the bytes behind that, if they are no damage
    batches: int = 0  # whole batches
    closed: bool = False  # an orderly stop wrote the last batch
    findings: list[Finding] = field(default_factory=list)

    @property
    def identity(self) -> Identity | None:
        """What the directory says of itself; None: the file has no whole snapshot."""
        value = self.definitions.entries.get(IDENTITY)
        return None if value is None else Identity.unpack(value)


def judge_ledger(
    disk: Disk,
    paths: Paths,
    evidence: Evidence,
    apply: Callable[[OfLane], object],
    *,
    everything: bool = False,
) -> LedgerFile:
    """Read and judge the newest ledger file.

    `apply` takes what happened to lanes after the checkpoint, entry by entry: it is not kept, since
    it may be much. `everything`: also what happened before, and what is whole behind damage. Raises
    OtherFormat, OSError.
    """
    ids = numbered(disk, paths.ledger, ".qack")
    if not ids:
        ledger = LedgerFile()
        # The first file of the ledger is there before anything is written to the log.
        attested = evidence.attested
        if (
            numbered(disk, paths.log, ".qseg")
            or (attested is not None and attested.lsn)
            or evidence.catalog is not None
        ):
            ledger.findings.append(Finding(paths.ledger, "is missing"))
        return ledger
    path = paths.ledger_file(ids[-1])
    file = BatchFile(disk, path, evidence.uuid, ids[-1])
    try:
        check_version(file)
        return _read_ledger(file, evidence, apply, everything)
    finally:
        file.close()


def judge_age_of_ledger(
    paths: Paths, ledger: LedgerFile, epoch: int, lane_ids: Iterable[int]
) -> list[Finding]:
    """Whether the ledger is an older copy. The queues that it lacks would lose their messages.

    `epoch` is the highest in any other file, `lane_ids` are the lanes that any other file names. A
    copy that was made after the last start, and shortly before the end, is not noticed.
    """
    lane_id = max(lane_ids, default=0)
    identity = ledger.identity
    if identity is None or (epoch <= ledger.epoch and lane_id < identity.lane_ids_reserved):
        return []
    what = (
        f"is an older copy, of start {ledger.epoch}: other files are of start {epoch}, and know "
        f"queues up to {lane_id}"
    )
    return [Finding(paths.ledger_file(ledger.file_id), what)]


def _read_ledger(
    file: BatchFile, evidence: Evidence, apply: Callable[[OfLane], object], everything: bool
) -> LedgerFile:
    ledger = LedgerFile(file.file_id)
    known = file.header_belongs_here and file.header is not None
    if file.header is not None and known:
        ledger.number = file.header.base
        ledger.epoch = file.header.epoch
    else:
        ledger.findings.append(Finding(file.path, "", 0, FILE_HEADER_BYTES))
    replayed_from = FILE_HEADER_BYTES
    start = evidence.checkpoint
    if start is not None and start.ledger.file_id == file.file_id and not everything:
        replayed_from = start.ledger.position
    for batch in file.batches():
        if not ledger.batches and not known:
            ledger.number = batch.header.base
        if batch.header.base != ledger.number:
            break
        ledger.position = batch.end
        ledger.number += 1
        before = ledger.definitions.entries.get(IDENTITY)
        last = _take(ledger, batch, apply if batch.position >= replayed_from else _ignore)
        # An orderly stop says once more who the directory is, as its last word.
        ledger.closed = last == Defined(*IDENTITY, before)
    attested = 0
    bad_end = None
    for batch in file.whole_batches_after(ledger.position):
        attested = max(attested, batch.header.durable)
        bad_end = batch.position if bad_end is None else bad_end
        if everything:
            _take(ledger, batch, apply)
    complete = ledger.segments.complete and IDENTITY in ledger.definitions.entries
    for checkpoint in (evidence.attested, evidence.catalog):
        if checkpoint is not None and checkpoint.ledger.file_id >= file.file_id:
            attested = max(attested, checkpoint.ledger.number)
    used_end = file.used_end(ledger.position)
    if not complete or attested > ledger.number:
        what = "acks or definitions that were on disk are lost"
        end = used_end if bad_end is None else bad_end
        ledger.findings.append(Finding(file.path, what, ledger.position, end))
    ledger.bytes_cut = used_end - ledger.position
    return ledger


def _ignore(entry: OfLane) -> None:
    """The index has it already."""


def _take(ledger: LedgerFile, batch: Batch, apply: Callable[[OfLane], object]) -> Record | None:
    """Fold a batch; `apply` gets what is about lanes. Returns its last record."""
    log_durable, records = unpack_body(batch.body)
    ledger.batches += 1
    ledger.log_durable = max(ledger.log_durable, log_durable)
    for record in records:
        if isinstance(record, OF_LANE):
            apply(record)
        elif isinstance(record, Defined):
            ledger.definitions.apply(record, batch.header.base)
        elif not isinstance(record, Time):
            ledger.segments.apply(record)
    return records[-1] if records else None


# -- the log


@dataclass(slots=True)
class FoundSegment:
    """A segment, as far as its own file tells."""

    segment: Segment
    used_end: int  # behind it there are only zeros
    sealed: bool
    torn_records: int = 0  # by the header of the first batch that is not whole


@dataclass(slots=True)
class LogScan:
    """What is in the log; see `judge_log`."""

    found: list[FoundSegment] = field(default_factory=list)  # one without a header is the last
    replaced: list[Segment] = field(default_factory=list)  # a compacted segment has their live part
    moved: dict[int, Columns] = field(default_factory=dict)  # what compacted segments have, by id
    leftover: list[int] = field(default_factory=list)  # segments given up, or never finished
    lsn: int = 0  # of the next record
    attested: int = 0  # the log had been synced up to here, by all the evidence
    epoch: int = 0  # the highest seen
    records: int = 0  # replayed records
    named_upto: dict[int, int] = field(default_factory=dict)  # lane -> the qseq above all of them
    segment_id_next: int = 1
    compacted_id_next: int = COMPACTED
    bytes_cut: int = 0
    records_cut: int = 0  # as far as can be known
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Lanes:
    """What `judge_log` knows of lanes, and where it puts their messages.

    Messages below the `floor` of a lane are settled. `adopt` is called for each run that reaches
    above the floor of a lane that is not deleted: lane, segment, first qseq in the lane, the run.
    """

    deleted: Collection[int]
    floor: Callable[[int], int]
    adopt: Callable[[int, int, int, PlacedRun], None]


def check_version(file: BatchFile) -> None:
    """Raises OtherFormat."""
    if file.header is not None:
        check_format(file.path, file.header.version)


def judge_log(
    disk: Disk, paths: Paths, evidence: Evidence, ledger: LedgerFile, lanes: Lanes
) -> LogScan:
    """Read and judge the log, and hand over the messages behind the checkpoint.

    These are read and verified. Without a checkpoint all messages are handed over, by the footers
    of sealed segments. With findings the result is what can be made out. Raises OtherFormat,
    OSError.
    """
    return _Scan(disk, paths, evidence, ledger, lanes).run()


class _Scan:
    def __init__(
        self, disk: Disk, paths: Paths, evidence: Evidence, ledger: LedgerFile, lanes: Lanes
    ) -> None:
        checkpoint, attested = evidence.checkpoint, evidence.attested
        self.disk = disk
        self.paths = paths
        self.uuid = evidence.uuid
        self.needed = evidence.needed
        self.facts = ledger.segments
        self.lanes = lanes
        self.replayed_from = 0 if checkpoint is None else checkpoint.lsn
        self.by_footers = checkpoint is None
        self.ends: dict[int, int] = {}  # lane -> the qseq above all that were adopted
        self.skipped = False  # a segment is missing or unusable, so messages are missing
        self.result = LogScan()
        by_index = 0 if attested is None else attested.lsn
        self.attested = max(by_index, ledger.log_durable)

    def run(self) -> LogScan:
        result = self.result
        bases = self._bases()
        headless: list[FoundSegment] = []
        before: FoundSegment | None = None
        for segment_id in sorted(bases, key=lambda id_: (bases[id_], id_)):
            file = self._open(segment_id)
            try:
                if file.header is None or not file.header_belongs_here:
                    headless.append(self._headless(file))
                    continue
                result.epoch = max(result.epoch, file.header.epoch)
                if segment_id in self.facts.replaced:
                    result.replaced.append(_limits(file, file.header.base))
                    continue
                if before is not None:
                    self._check_chain(before, segment_id, file.header.base)
                before = self._read(file, file.header.base, file.header.sparse)
                result.found.append(before)
                self.attested = max(self.attested, file.header.base)
                if not before.sealed:
                    self._attest(file, before.segment.log_end)
            finally:
                file.close()
        result.lsn = self.replayed_from if before is None else before.segment.end_lsn
        if before is None or before.sealed:
            result.lsn = max(result.lsn, self.facts.end_lsn)
        self._check_end(before, headless)
        if not self.by_footers:
            self._read_moved()
        for item in result.found[-1:] + headless:
            if not item.sealed:
                result.bytes_cut += item.used_end - item.segment.log_end
                result.records_cut += item.torn_records
        result.found += headless
        result.attested = self.attested
        return result

    def _open(self, segment_id: int) -> BatchFile:
        return BatchFile(self.disk, self.paths.segment(segment_id), self.uuid, segment_id)

    def _find(
        self,
        path: Path,
        what: str,
        position: int | None = None,
        lsns: tuple[int, int] | tuple[None, None] = (None, None),
    ) -> None:
        self.result.findings.append(Finding(path, what, position, None, *lsns))

    def _bases(self) -> dict[int, int]:
        """The segments that count, with their first LSNs. Segments without a header are last."""
        present = numbered(self.disk, self.paths.log, ".qseg")
        facts = self.facts
        result = self.result
        result.segment_id_next = max(
            [facts.next_id, *(segment_id + 1 for segment_id in present if segment_id < COMPACTED)]
        )
        result.compacted_id_next = max([facts.next_compacted_id, *(id_ + 1 for id_ in present)])
        given_up = facts.given_up(present)
        for segment_id in facts.missing(present, self.needed):
            self._skip(segment_id, "is missing")
        for segment_id in sorted(given_up & self.needed):
            self._disagree(segment_id, "has messages, and the ledger gave it up")
        result.leftover = sorted(given_up)
        bases: dict[int, int] = {}
        blank: list[int] = []
        for segment_id in present:
            if segment_id in given_up:
                continue
            base = self._base(segment_id, blank)
            if base is None:
                continue
            bases[segment_id] = base
            if segment_id < COMPACTED:  # only the newest can be without a header
                self._skip_blank(blank)
        # A compacted segment had been synced before it got its name.
        compacted = [segment_id for segment_id in blank if segment_id >= COMPACTED]
        blank = [segment_id for segment_id in blank if segment_id < COMPACTED]
        self._skip_blank(compacted)
        end = max(bases.values(), default=0) + 1
        return bases | dict.fromkeys(blank, end)

    def _base(self, segment_id: int, blank: list[int]) -> int | None:
        """The first LSN by the header of a segment; one without a header goes to `blank`."""
        file = self._open(segment_id)
        try:
            check_version(file)
            if file.header is not None and file.header_belongs_here:
                return file.header.base
            if segment_id in self.facts.replaced and segment_id not in self.needed:
                self.result.leftover.append(segment_id)  # a compacted segment has all that counts
            elif file.header is not None:
                self._skip(segment_id, "belongs to another directory, or has another's name")
            else:
                blank.append(segment_id)
            return None
        finally:
            file.close()

    def _disagree(self, segment_id: int, what: str) -> None:
        path = self.paths.segment(segment_id)
        self.result.findings.append(Finding(path, what, disagrees=True))

    def _skip(self, segment_id: int, what: str, position: int | None = None) -> None:
        self.skipped = True
        self._find(self.paths.segment(segment_id), what, position)

    def _skip_blank(self, segment_ids: list[int]) -> None:
        for segment_id in segment_ids:
            self._skip(segment_id, "", 0)
        segment_ids.clear()

    def _headless(self, file: BatchFile) -> FoundSegment:
        self._attest(file, 0)
        return FoundSegment(Segment(file.file_id, 0, 0, 0, log_end=0), file.used_end(0), False)

    def _attest(self, file: BatchFile, position: int) -> None:
        """Look for later batches that say how far the log had been synced."""
        for batch in file.whole_batches_after(position):
            self.attested = max(self.attested, batch.header.durable)

    def _read(self, file: BatchFile, base_lsn: int, sparse: bool) -> FoundSegment:
        """Read one segment: its limits, and its messages if they are to be replayed."""
        segment = _limits(file, base_lsn)
        trailer = file.trailer()
        columns: Columns | None = None
        if trailer is not None and trailer.base_lsn == base_lsn:
            if trailer.end_lsn <= self.replayed_from:
                return FoundSegment(segment, file.size, True)
            columns = file.columns(trailer)
            if columns is not None and self.by_footers:
                self._adopt(columns, segment)
                return FoundSegment(segment, file.size, True)
        else:
            trailer = None
        scanned = Columns()
        segment.log_end = FILE_HEADER_BYTES
        segment.end_lsn = base_lsn
        for batch in file.batches():
            base = batch.header.base
            if base < segment.end_lsn or (base > segment.end_lsn and not sparse):
                break
            if columns is not None and trailer is not None and batch.end > trailer.log_end:
                break
            of_batch = columns_of(batch)
            segment.log_end = batch.end
            segment.end_lsn = base + batch.header.count
            if segment.end_lsn > self.replayed_from:
                self._adopt(of_batch, segment)
            scanned.extend(of_batch)
        if trailer is not None and segment.log_end == trailer.log_end:
            segment.end_lsn = trailer.end_lsn
            if columns is None:  # everything but the footer is whole; the footer is made again
                segment.columns = scanned
            return FoundSegment(segment, file.size, True)
        if columns is not None and trailer is not None:
            first, end = segment.end_lsn, trailer.end_lsn
            what = f"messages from {first} on had been confirmed"
            self._find(file.path, what, segment.log_end, (first, end))
            segment.end_lsn = end
            return FoundSegment(segment, file.size, True)
        segment.columns = scanned
        torn = file.header_at(segment.log_end)
        return FoundSegment(
            segment, file.used_end(segment.log_end), False, 0 if torn is None else torn.count
        )

    def _adopt(self, columns: Columns, segment: Segment) -> None:
        """Hand a segment's messages over to the lanes that they went to."""
        lanes, named_upto = self.lanes, self.result.named_upto
        for run in columns.runs():
            self.result.records += len(run.positions)
            for lane_id, first in zip(run.lanes, run.firsts, strict=True):
                if lane_id in lanes.deleted:
                    continue
                end = first + len(run.positions)
                named_upto[lane_id] = max(named_upto.get(lane_id, 0), end)
                if end <= lanes.floor(lane_id):
                    continue
                if first < self.ends.get(lane_id, 0):
                    what = f"has message {first} of lane {lane_id}, and so has one before it"
                    self._disagree(segment.segment_id, what)
                    continue
                self.ends[lane_id] = end
                lanes.adopt(lane_id, segment.segment_id, first, run)

    def _read_moved(self) -> None:
        """Read compacted segments: pointers may not have been moved there before a kill."""
        result = self.result
        counting = {item.segment.segment_id for item in result.found}
        made = {self.facts.replaced[segment.segment_id] for segment in result.replaced}
        for segment_id in sorted(made & counting):
            file = self._open(segment_id)
            try:
                columns = file.records()
            finally:
                file.close()
            if columns is None:
                self._find(file.path, "is damaged")
            else:
                result.moved[segment_id] = columns

    def _check_chain(self, before: FoundSegment, segment_id: int, base: int) -> None:
        segment = before.segment
        path = self.paths.segment(segment.segment_id)
        end = segment.end_lsn
        if end > base:
            what = f"has messages {base} to {end - 1}, and so has the one before it"
            self._disagree(segment_id, what)
        # If the ids follow on each other, no segment between them was given up.
        gap = segment_id != segment.segment_id + 1 or segment_id >= COMPACTED
        if end < base and not (gap and before.sealed):
            what = f"messages {end} to {base - 1} had been confirmed"
            self._find(path, what, segment.log_end, (end, base))

    def _check_end(self, last: FoundSegment | None, headless: list[FoundSegment]) -> None:
        lsn = self.result.lsn
        if self.attested <= lsn or self.skipped:
            return
        last = last or next(iter(headless), None)
        what = f"messages {lsn} to {self.attested - 1} had been confirmed and are not there"
        if last is None:
            what = f"is missing: {what}"
            self._find(self.paths.log, what, None, (lsn, self.attested))
        else:
            path = self.paths.segment(last.segment.segment_id)
            self._find(path, what, last.segment.log_end, (lsn, self.attested))


def _limits(file: BatchFile, base_lsn: int) -> Segment:
    """The segment by the file's trailer; without a trailer it looks empty."""
    trailer = file.trailer()
    if trailer is None or trailer.base_lsn != base_lsn:
        return Segment(file.file_id, base_lsn, file.size, base_lsn)
    return Segment(
        file.file_id,
        base_lsn,
        file.size,
        trailer.end_lsn,
        trailer.log_end,
        earliest_ms=trailer.earliest_ms,
        latest_ms=trailer.latest_ms,
    )
