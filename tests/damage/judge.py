"""One case: damage a copy of a directory, verify it, start it, and hold both against what is known.

What must be:

- `verify` changes nothing, and has a finding for every damage below the durable point.
- A start ends neither by a signal nor with a traceback. If it is refused, one line says so, and
  `verify` has findings too. It is refused if and only if inspect foretells it, and for its first
  finding; so it is with a catalog that is made anew. No damage of the catalog alone is refused.
- A repair ends with a directory on which a broker starts and `verify` has no finding. Whatever was not
  hit is there; what is not there, it has named. All definitions are there: ledger and catalog both
  have them.
- If it starts: everything that was confirmed and not settled is there, byte for byte, or reading it
  says that it is damaged, and then `verify` says so too. Nothing is there that was not published, and
  nothing whose settlement had been synced.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from qlog.storage.bytes.batch import FILE_HEADER_BYTES
from qlog.storage.bytes.disk import OSDisk
from qlog.storage.errors import StorageError
from qlog.tools.inspect.commands.verify import verified
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.repair.act import act
from qlog.tools.inspect.repair.plan import make_plan
from qlog.tools.inspect.rows import Report
from tests.damage.directories import MESSAGES, QUEUES, BatchFact, Facts, Place
from tests.damage.outcome import Outcome, start
from tests.damage.strike import Strike, strike

_QSEQ_MARGIN = 5
_DEFINED = {name: 1 + at for at, name in enumerate(QUEUES)}  # queue -> lane


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one case went: `mistake` is None when all was as it must be."""

    strike: Strike
    outcome: str  # in a word or two, for the table
    mistake: str | None


def try_one(facts: Facts, directory: Path, seed: int) -> Verdict | None:
    """One case in a new directory; None when the damage changed nothing."""
    shutil.copytree(facts.directory, directory)
    done = strike(facts, directory, random.Random(seed))
    if done is None:
        return None
    before = _image(directory)
    try:
        report: Report | None = verified(Directory(directory))
        findings = [str(item) for item in report.all_damage] if report is not None else []
        notes = report.all_notes if report is not None else []
        looked = Directory(directory)
        refusals = [str(item.error()) for item in looked.refusals()]
        doubt = looked.catalog_facts.doubt
    except StorageError as error:
        findings, notes, refusals, doubt = [str(error)], [], [str(error)], ""
    if _image(directory) != before:
        return Verdict(done, "?", "verify changed something")
    must = must_be_found(facts, done)
    if must and not findings and not (must == "footer" and notes):
        return Verdict(done, "unnoticed", f"verify has no finding: {must}")
    mended = directory.with_name(directory.name + "-mended")
    shutil.copytree(directory, mended)
    try:
        mistake = _mistake_of_repair(facts, done, mended)
    finally:
        shutil.rmtree(mended)
    if mistake is not None:
        return Verdict(done, "repaired", f"after a repair, {mistake}")
    outcome = start(directory, _qseq_end(facts))
    mistake = _mistake(facts, done, outcome, findings)
    mistake = mistake or mistake_of_foretelling(outcome, refusals, doubt)
    return Verdict(done, _word(facts, outcome), mistake)


def must_be_found(facts: Facts, done: Strike) -> str:
    """What verify must have found; empty when the damage is where nothing has been promised."""
    if done.file not in facts.headers:
        return ""
    batches = facts.ledger if done.what == "ledger" else facts.log
    ours = [batch for batch in batches if batch.file == done.file]
    durable = durable_upto(facts, done)
    promised = [batch for batch in ours if batch.base + _count(done, batch) <= durable]
    if promised and done.position < FILE_HEADER_BYTES:
        return "the header"
    for batch in promised:
        if batch.position < done.end and done.position < batch.end:
            return f"the batch at {batch.position}"
    # A segment without its whole footer is what a crash leaves that comes before the sealing.
    unsealed = done.how == "cut" and done.position == ours[-1].end
    if done.file in facts.sealed and done.end > ours[-1].end and not unsealed:
        return "footer"
    return ""


def durable_upto(facts: Facts, done: Strike) -> int:
    """What is left says that the log, or the ledger, had been synced up to here."""
    if done.what == "ledger":
        left = [batch.durable for batch in facts.ledger if not _hits(done, batch)]
        return max([facts.checkpoint_number, *left])
    left = [batch.durable for batch in facts.log if not _hits(done, batch)]
    left += [batch.log_durable for batch in facts.ledger]
    left += [batch.base for batch in facts.log if batch.position == FILE_HEADER_BYTES]
    return max([facts.checkpoint_lsn, *left])


def _count(done: Strike, batch: BatchFact) -> int:
    return 1 if done.what == "ledger" else batch.count


def _hits(done: Strike, batch: BatchFact) -> bool:
    return batch.file == done.file and batch.position < done.end and done.position < batch.end


def _mistake(facts: Facts, done: Strike, outcome: Outcome, findings: list[str]) -> str | None:
    if outcome.refused:
        if done.what == "catalog":
            return f"refused for the catalog: {outcome.refused}"
        if "\n" in outcome.refused:
            return f"more than a line: {outcome.refused}"
        return None if findings else f"refused, and verify has no finding: {outcome.refused}"
    if outcome.queues != _DEFINED:
        return f"definitions are missing: {outcome.queues}"
    durable = durable_upto(facts, done)
    for place in sorted(facts.waiting):
        lsn, body = facts.messages[place]
        found = outcome.messages.get(place)
        if found is not None and found != body:
            return f"{place} is not what was published"
        if found is None and place in outcome.unread:
            if not findings:
                return (
                    f"{place} cannot be read ({outcome.unread[place]}), and verify has no finding"
                )
        elif found is None and (done.what != "log" or lsn < durable):
            return f"{place}, LSN {lsn}, is silently gone"
    strange = outcome.messages.keys() - facts.messages.keys()
    if strange:
        return f"{sorted(strange)} were never published"
    back = outcome.messages.keys() & _settled(facts, done)
    return f"{sorted(back)} had been settled" if back else None


def mistake_of_foretelling(outcome: Outcome, refusals: list[str], doubt: str) -> str | None:
    """`refusals` of the start, and `doubt` of the catalog: as inspect has them."""
    if outcome.refused != (refusals[0] if refusals else ""):
        return f"refused for {outcome.refused or 'nothing'}; foretold: {refusals}"
    if not refusals and bool(outcome.catalog_rebuilt) != bool(doubt):
        return f"catalog made anew: {outcome.catalog_rebuilt or 'no'}; foretold: {doubt or 'no'}"
    return None


def _qseq_end(facts: Facts) -> int:
    return 1 + _QSEQ_MARGIN + max(qseq for _, qseq in facts.messages)


def _mistake_of_repair(facts: Facts, done: Strike, directory: Path) -> str | None:
    was = Directory(directory)
    plan = make_plan(was)
    if plan.needed:
        act(plan, was, OSDisk(), {})
    findings = [str(item) for item in verified(Directory(directory)).all_damage]
    if findings:
        return f"verify has findings: {findings}"
    outcome = start(directory, _qseq_end(facts))
    if outcome.refused:
        return f"the start is refused: {outcome.refused}"
    if outcome.unread.keys() & facts.waiting:
        return f"some cannot be read: {outcome.unread}"
    if outcome.queues != _DEFINED:
        return f"the queues are {outcome.queues}"
    named = {target for loss in plan.log.losses for target in loss.targets}
    unnamed = sum(loss.messages or MESSAGES for loss in plan.log.losses if not loss.targets)
    durable = durable_upto(facts, done)
    for place in sorted(facts.waiting):
        lsn, body = facts.messages[place]
        file, position, end = facts.records[lsn]
        found = outcome.messages.get(place)
        hit = file == done.file and position < done.end and done.position < end
        if found is not None and found != body:
            return f"{place} is not what was published"
        if found is None and (done.what != "log" or lsn < durable):
            if not hit:
                return f"{place}, LSN {lsn}, was not hit, and is gone"
            if place not in named and not unnamed:
                return f"{place}, LSN {lsn}, is gone, and was not named"
        if found is not None and place in named:
            return f"{place}, LSN {lsn}, is there, and was said to be lost"
    strange = outcome.messages.keys() - facts.messages.keys()
    if strange:
        return f"{sorted(strange)} were never published"
    back = outcome.messages.keys() & facts.settled
    if back and done.what != "ledger":
        return f"{sorted(back)} had been settled"
    if plan.needed and back - outcome.redelivered:
        return f"{sorted(back - outcome.redelivered)} came back as if new"
    for (lane_id, qseq), (lsn, _) in facts.messages.items():
        if lsn < durable and outcome.next_qseqs[lane_id] <= qseq:
            return f"qseq {qseq} of lane {lane_id} would be given again"
    return None


def _settled(facts: Facts, done: Strike) -> set[Place]:
    """What must not come back."""
    if done.what != "ledger":
        return facts.settled
    durable = durable_upto(facts, done)
    settled: frozenset[Place] = frozenset()
    for batch in facts.ledger:
        if batch.base < durable:
            settled = batch.settled
    return set(settled)


def _word(facts: Facts, outcome: Outcome) -> str:
    if outcome.refused:
        return "refused"
    if outcome.unread.keys() & facts.waiting:
        return "not readable"
    if outcome.index_rebuilt:
        return "index rebuilt"
    if outcome.catalog_rebuilt:
        return "catalog rebuilt"
    if outcome.log_bytes_cut:
        return "tail cut"
    return "no effect"


def _image(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
