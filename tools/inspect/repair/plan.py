"""What a repair would do, and what would be lost: found out by reading alone.

A repair keeps all sound segments, and of damaged ones what `pieces` finds. It gives the directory a
new ledger, which says what counts; index and catalog are made anew from that by the next start.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from qlog.storage.lanes.settled import BLOCK, Settled
from qlog.storage.start.examine import Verdict
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.environment import Unreadable
from qlog.tools.inspect.look.log import Survey, survey
from qlog.tools.inspect.look.pointers import IndexContents, compare, read_contents
from qlog.tools.inspect.repair.definitions import Mend, collect
from qlog.tools.inspect.repair.lanes import KnownLanes
from qlog.tools.inspect.repair.log import LogMend, LogMending
from qlog.tools.inspect.rows import Damage

_LANE_IDS_MARGIN = 1024


@dataclass(slots=True)
class Plan:
    """All that a repair does. `actions` are for people, in the order in which it is done."""

    damage: list[Damage]  # why
    definitions: Mend
    actions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    log: LogMend = field(default_factory=LogMend)
    lanes: dict[int, tuple[int, Settled]] = field(default_factory=dict)  # next qseq, settled
    mends_log: bool = False  # segments or ledger: then there is a new ledger, and no index
    moved: list[Path] = field(default_factory=list)  # index and catalog
    end_lsn: int = 0
    ledger_number: int = 0
    uuid: bytes = b""
    epoch: int = 0
    lane_ids_reserved: int = 1

    @property
    def needed(self) -> bool:
        return self.mends_log or bool(self.moved)

    @property
    def written_bytes(self) -> int:
        """At least so much is written to the log before anything is given back."""
        return sum(rewrite.kept_bytes for rewrite in self.log.rewrites)


def make_plan(directory: Directory) -> Plan:
    """Look at everything once. Raises OtherFormat, Forbidden, PermissionError."""
    found = survey(directory, verify=True)
    contents: IndexContents | None = None
    if directory.index_facts.readable:
        with suppress(Unreadable):
            contents = read_contents(directory.paths.index)
    mend = collect(directory)
    plan = Plan([*directory.damage, *found.damage], mend)
    plan.mends_log = bool(found.damage or directory.ledger.damaged or mend.actions)
    if plan.mends_log:
        _mend_log_and_ledger(plan, directory, found, contents)
    _move_environments(plan, directory, found, contents)
    if mend.actions and not plan.damage:
        what = "definitions name what is not there"
        plan.damage.append(Damage(directory.ledger_file_name, what))
    return plan


def _mend_log_and_ledger(
    plan: Plan, directory: Directory, found: Survey, contents: IndexContents | None
) -> None:
    mending = LogMending(directory, found)
    lanes = KnownLanes(directory, contents)
    mending.note_runs(lanes)
    _note_highest(plan, directory, found, contents)
    plan.log = mending.run(lanes, plan.end_lsn)
    plan.actions += plan.log.actions
    plan.notes += plan.log.notes
    _plan_ledger(plan, directory, contents)
    _fold_lanes(plan, directory, lanes)
    _plan_definitions(plan, directory, lanes)


def _note_highest(
    plan: Plan, directory: Directory, found: Survey, contents: IndexContents | None
) -> None:
    """No LSN, epoch or number of a batch is used twice: the highest of each that any file names."""
    facts = directory.ledger.segments
    plan.uuid = directory.identity.uuid
    ends = [directory.attested_lsn, facts.listed_end_lsn, *facts.dropped.values()]
    ends += (segment.end_lsn or 0 for segment in found.segments)
    epochs = [directory.identity.epoch]
    numbers = [0]
    ledgers = [directory.ledger_file(id_) for id_ in directory.ledger_ids()]
    for stretch in chain.from_iterable(map(directory.stretches, ledgers)):
        if stretch.batch is not None:
            epochs.append(stretch.batch.header.epoch)
            numbers.append(stretch.batch.header.base + 1)
    for view in (*found.views, *ledgers):
        if view.header is not None and view.header_verdict is Verdict.WHOLE:
            epochs.append(view.header.epoch)
    if directory.catalog_facts.checkpoint is not None:
        numbers.append(directory.catalog_facts.checkpoint.ledger.number)
    if contents is not None and contents.checkpoint is not None:
        ends.append(contents.checkpoint.lsn)
        numbers.append(contents.checkpoint.ledger.number)
    plan.epoch, plan.end_lsn, plan.ledger_number = max(epochs), max(ends), max(numbers)


def _plan_ledger(plan: Plan, directory: Directory, contents: IndexContents | None) -> None:
    if not directory.ledger.damaged:
        plan.actions.append(
            "write a new ledger with all that was settled, which says which segments count"
        )
        return
    source = "what is left of it"
    if contents is not None and contents.checkpoint is not None:
        source += " and from the index, which has what was settled until its last checkpoint"
    plan.actions.append(f"write a new ledger from {source}; the damaged one is moved out")
    plan.notes.append(
        "settlements are lost: messages that had been acknowledged come back, marked as "
        "redelivered, and so are all others that wait"
    )


def _fold_lanes(plan: Plan, directory: Directory, lanes: KnownLanes) -> None:
    """What the new ledger says of each lane."""
    ledger, contents = directory.ledger, lanes.contents
    lane_ids = lanes.next_qseqs.keys() | plan.definitions.lanes.keys()
    for lane_id in sorted(lane_ids - ledger.deleted):
        settled = ledger.lanes.get(lane_id) or Settled()
        # No qseq is given twice: all that any file names counts, and each message that is lost
        # without a trace may have had one more.
        next_qseq = lanes.next_qseqs.get(lane_id, 0) + plan.log.untraced
        if ledger.damaged:
            if contents is not None and lane_id in contents.lanes:
                _add_indexed(settled, lane_id, contents)
            settled.delivered = next_qseq
        plan.lanes[lane_id] = (next_qseq, settled)


def _add_indexed(settled: Settled, lane_id: int, contents: IndexContents) -> None:
    """Settle what the index says of a lane, whose attempts are older than the ledger's."""
    newer = list(settled.attempts.ranges())
    settled.attempts.load(contents.lanes[lane_id].attempts)
    for range_ in newer:
        settled.attempts.note(*range_)
    indexed = contents.settled[lane_id]
    for block, bits in indexed.bits.items():
        settled.add_settled(block, bits)
    for start, end in zip(indexed.full[0::2], indexed.full[1::2], strict=True):
        settled.mark(start * BLOCK, end * BLOCK)
    settled.mark(0, indexed.floor)


def _plan_definitions(plan: Plan, directory: Directory, lanes: KnownLanes) -> None:
    ledger, mend = directory.ledger, plan.definitions
    named = [*lanes.next_qseqs, *mend.lanes, *ledger.deleted, 0]
    plan.lane_ids_reserved = max(directory.identity.lane_ids_reserved, max(named) + 1)
    if ledger.damaged:
        plan.lane_ids_reserved += _LANE_IDS_MARGIN  # some may have been given, and never used
        mend.adopt_streams(directory.stream_files(), ledger.deleted)
        mend.adopt(_orphans(mend, directory, lanes))
        mend.actions.append(
            f"make the directory's identity again: {plan.uuid.hex()}, epoch {plan.epoch}, new "
            f"lanes from {plan.lane_ids_reserved} on"
        )
    plan.actions += mend.actions
    plan.notes += mend.notes


def _orphans(mend: Mend, directory: Directory, lanes: KnownLanes) -> set[int]:
    """Lanes with messages that wait, and whose queue is not known."""
    orphans = lanes.waiting.keys() - mend.lanes.keys() - directory.ledger.deleted
    if lanes.contents is None:
        return orphans
    indexed = lanes.contents.lanes  # it would have those whose queue was not deleted
    return {
        lane_id
        for lane_id in orphans
        if lane_id in indexed or not lanes.index_knows(lanes.waiting[lane_id])
    }


def _move_environments(
    plan: Plan, directory: Directory, found: Survey, contents: IndexContents | None
) -> None:
    """Have index and catalog made anew if they are wrong, or the log is mended."""
    damaged = {item.file for item in directory.damage}
    index_is_wrong = (
        contents is None
        or bool(contents.damaged)
        or "index.lmdb" in damaged
        or (not plan.mends_log and compare(directory, contents, found.segments).differs)
    )
    catalog_is_wrong = "catalog.lmdb" in damaged or bool(directory.catalog_differs())
    paths = directory.paths
    for path, wrong in ((paths.index, index_is_wrong), (paths.catalog, catalog_is_wrong)):
        if path.exists() and (wrong or plan.mends_log):
            why = "it is damaged, and the next start" if wrong else "the next start"
            plan.actions.append(f"move the {path.stem} out: {why} makes it anew")
            plan.moved.append(path)
            if not plan.damage:
                plan.damage.append(Damage(path.name, "it does not agree with log and ledger"))
