"""The log at a start: which segments count, in which order, and where it ends.

The tail rule. At the first bad byte of the log, at LSN p: if anything that is whole (a later batch,
a later segment, a batch of the ledger, the checkpoint, the catalog) says that the log had been
synced beyond p, then confirmed data is damaged, and the start is refused. Otherwise the bytes are
what a crash left of a write that nobody was told of, and are cut. Here it is judged; nothing is
changed.

Segments are in the order of their first LSNs. What a compaction put together stands for the
segments that went into it from the moment the ledger says so, and for nothing before.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from qlog.storage.bytes.batch import FILE_HEADER_BYTES
from qlog.storage.bytes.datadir import Paths, check_format, numbered
from qlog.storage.bytes.disk import Disk
from qlog.storage.bytes.footer import Columns
from qlog.storage.errors import CorruptLog
from qlog.storage.start.fold import COMPACTED, SegmentFacts
from qlog.storage.write.placement import Segment
from qlog.storage.write.segment import BatchFile, columns_of

ADVICE = "restore it from a copy, or see what is left with `qlog inspect repair --accept-loss`"


@dataclass(slots=True)
class FoundSegment:
    """A segment, as its file shows it."""

    segment: Segment
    used_end: int  # behind it there are only zeros
    sealed: bool
    torn_records: int = 0  # by the header of the first batch that is not whole


@dataclass(slots=True)
class LogScan:
    """What is in the log; see `scan`."""

    found: list[FoundSegment] = field(default_factory=list)  # without a header: last
    replaced: list[Segment] = field(default_factory=list)  # what is alive in them is elsewhere, too
    leftover: list[int] = field(default_factory=list)  # given up, or not made to the end
    lsn: int = 0  # of the next record
    epoch: int = 0  # the highest seen
    segment_id_next: int = 1
    compacted_id_next: int = COMPACTED
    bytes_cut: int = 0
    records_cut: int = 0  # as far as can be known


def check_version(file: BatchFile) -> None:
    """Raises OtherFormat."""
    if file.header is not None:
        check_format(file.path, file.header.version)


def scan(
    disk: Disk,
    paths: Paths,
    uuid: bytes,
    facts: SegmentFacts,
    *,
    attested: int,
    replayed_from: int,
    by_footers: bool,
    needed: Iterable[int],
    adopt: Callable[[Columns, Segment], None],
) -> LogScan:
    """Read and judge the log, and hand over what is in it behind the LSN `replayed_from`.

    `attested`: something outside the log says that it had been synced up to here. `needed`:
    segments that must be there. `by_footers`: what is behind `replayed_from` may be taken from the
    footers of sealed segments (to rebuild the index), else it is read and verified. Raises
    CorruptLog, OtherFormat, OSError.
    """
    return _Scan(disk, paths, uuid, facts, attested, replayed_from, by_footers, adopt).run(needed)


class _Scan:
    def __init__(
        self,
        disk: Disk,
        paths: Paths,
        uuid: bytes,
        facts: SegmentFacts,
        attested: int,
        replayed_from: int,
        by_footers: bool,
        adopt: Callable[[Columns, Segment], None],
    ) -> None:
        self.disk = disk
        self.paths = paths
        self.uuid = uuid
        self.facts = facts
        self.attested = attested
        self.replayed_from = replayed_from
        self.by_footers = by_footers
        self.adopt = adopt
        self.result = LogScan()

    def run(self, needed: Iterable[int]) -> LogScan:
        result = self.result
        bases = self._bases(needed)
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
        for item in result.found[-1:] + headless:
            if not item.sealed:
                result.bytes_cut += item.used_end - item.segment.log_end
                result.records_cut += item.torn_records
        result.found += headless
        return result

    def _open(self, segment_id: int) -> BatchFile:
        return BatchFile(self.disk, self.paths.segment(segment_id), self.uuid, segment_id)

    def _bases(self, needed: Iterable[int]) -> dict[int, int]:
        """The segments that count, with their first LSNs; those without a header are last."""
        present = numbered(self.disk, self.paths.log, ".qseg")
        facts = self.facts
        result = self.result
        result.segment_id_next = max(
            [facts.next_id, *(segment_id + 1 for segment_id in present if segment_id < COMPACTED)]
        )
        result.compacted_id_next = max([facts.next_compacted_id, *(id_ + 1 for id_ in present)])
        needed = set(needed)
        given_up = facts.given_up(present)
        for segment_id in facts.missing(present, needed):
            raise CorruptLog(f"{self.paths.segment(segment_id)} is missing: {ADVICE}")
        for segment_id in sorted(given_up & needed):
            path = self.paths.segment(segment_id)
            raise CorruptLog(f"{path} has messages, and the ledger gave it up: {ADVICE}")
        result.leftover = sorted(given_up)
        bases: dict[int, int] = {}
        blank: list[int] = []
        for segment_id in present:
            if segment_id in given_up:
                continue
            file = self._open(segment_id)
            try:
                check_version(file)
                if file.header is None or not file.header_belongs_here:
                    if segment_id in facts.replaced and segment_id not in needed:
                        result.leftover.append(segment_id)  # all that counts is in another
                    elif file.header is not None:
                        raise CorruptLog(
                            f"{file.path} belongs to another directory, or has another's name: "
                            f"{ADVICE}"
                        )
                    else:
                        blank.append(segment_id)
                    continue
                bases[segment_id] = file.header.base
            finally:
                file.close()
            if blank and segment_id < COMPACTED:  # only the newest can be without
                raise CorruptLog(f"{self.paths.segment(blank[0])} is damaged at byte 0: {ADVICE}")
        if blank and blank[-1] >= COMPACTED:  # it had been synced before it got its name
            raise CorruptLog(f"{self.paths.segment(blank[-1])} is damaged at byte 0: {ADVICE}")
        end = max(bases.values(), default=0) + 1
        return bases | dict.fromkeys(blank, end)

    def _headless(self, file: BatchFile) -> FoundSegment:
        self._attest(file, 0)
        return FoundSegment(Segment(file.file_id, 0, 0, 0, log_end=0), file.used_end(0), False)

    def _attest(self, file: BatchFile, position: int) -> None:
        """Look for later batches that say how far the log had been synced."""
        for batch in file.whole_batches_after(position):
            self.attested = max(self.attested, batch.header.durable)

    def _read(self, file: BatchFile, base_lsn: int, sparse: bool) -> FoundSegment:
        """One segment: its limits, and its messages if they are to be replayed."""
        segment = _limits(file, base_lsn)
        trailer = file.trailer()
        columns: Columns | None = None
        if trailer is not None and trailer.base_lsn == base_lsn:
            if trailer.end_lsn <= self.replayed_from:
                return FoundSegment(segment, file.size, True)
            columns = file.columns(trailer)
            if columns is not None and self.by_footers:
                self.adopt(columns, segment)
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
                self.adopt(of_batch, segment)
            scanned.extend(of_batch)
        if trailer is not None and segment.log_end == trailer.log_end:
            segment.end_lsn = trailer.end_lsn
            if columns is None:  # all is there but the footer, which is made again
                segment.columns = scanned
            return FoundSegment(segment, file.size, True)
        if columns is not None:
            raise CorruptLog(
                f"{file.path} is damaged at byte {segment.log_end}: messages from "
                f"{segment.end_lsn} on had been confirmed; {ADVICE}"
            )
        segment.columns = scanned
        torn = file.header_at(segment.log_end)
        return FoundSegment(
            segment, file.used_end(segment.log_end), False, 0 if torn is None else torn.count
        )

    def _check_chain(self, before: FoundSegment, segment_id: int, base: int) -> None:
        segment = before.segment
        # Numbers that follow on each other leave no place for one that was given up.
        gap = segment_id != segment.segment_id + 1 or segment_id >= COMPACTED
        if segment.end_lsn > base or (segment.end_lsn < base and not (gap and before.sealed)):
            raise CorruptLog(
                f"{self.paths.segment(segment.segment_id)} is damaged at byte {segment.log_end}: "
                f"messages {segment.end_lsn} to {base - 1} had been confirmed; {ADVICE}"
            )

    def _check_end(self, last: FoundSegment | None, headless: list[FoundSegment]) -> None:
        lsn = self.result.lsn
        if self.attested <= lsn:
            return
        last = last or next(iter(headless), None)
        where = f"the log {self.paths.log} is missing"
        if last is not None:
            path = self.paths.segment(last.segment.segment_id)
            where = f"{path} is damaged at byte {last.segment.log_end}"
        raise CorruptLog(
            f"{where}: messages {lsn} to {self.attested - 1} had been confirmed and are not "
            f"there; {ADVICE}"
        )


def _limits(file: BatchFile, base_lsn: int) -> Segment:
    """By the file's trailer, if it has one; else it looks empty."""
    trailer = file.trailer()
    if trailer is None or trailer.base_lsn != base_lsn:
        return Segment(file.file_id, base_lsn, file.size, base_lsn)
    return Segment(file.file_id, base_lsn, file.size, trailer.end_lsn, trailer.log_end)
