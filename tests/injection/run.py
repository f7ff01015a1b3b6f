"""One run of the script, with an error from the system at one call; and what came of it.

It promises: only calls on files of the data directory fail, LMDB's included, and only the one that
was asked for (or it and all after it); the directory that is left is opened three times, without
errors: as it is, as a power loss could have left it, and with everything gone that was not synced.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from qlog.storage.index.index import SPILL
from qlog.storage.start.fold import COMPACTED
from tests.images import trace
from tests.images.check import open_image
from tests.images.directory import Directory, write
from tests.images.record import TracedBroker
from tests.images.serve import ONE_THREAD
from tests.injection.script import Notes, Script
from tests.live.server import STARTUP_LINE

# What a broker's directory is made and changed with. Reads are another matter.
CALLS = (
    *("openat", "mkdir", "write", "pwrite64", "writev", "pwritev2", "fdatasync", "fsync"),
    *("rename", "unlink", "unlinkat", "ftruncate", "fallocate"),
)
SYNCS = ("fdatasync", "fsync")
ERRORS = ("EIO", "ENOSPC")
EXIT_STOPPED, EXIT_NO_START, EXIT_DISK = 0, 1, 74

_SHOWN = 5  # of the violations of a directory
_FILES = 80  # of each kind; a run has fewer


def paths(root: Path) -> list[Path]:
    """Every file and directory that a run may use: strace knows no wildcards."""
    ids = range(1, _FILES)
    segments = [*ids, *(COMPACTED + number for number in range(_FILES))]
    return [
        *(root, root / "LOCK", root / "index.doubt", root / "catalog.lmdb/commit.failed"),
        *(root / name for name in ("log", "ledger", "spill", "catalog.lmdb", "index.lmdb")),
        *(
            root / f"{name}.lmdb/{kind}.mdb"
            for name in ("catalog", "index")
            for kind in ("data", "lock")
        ),
        *(root / f"log/{number:010d}.qseg{new}" for number in segments for new in ("", ".new")),
        *(root / f"ledger/{number:010d}.qack" for number in ids),
        root / "ledger/next.new",
        *(root / f"spill/{SPILL + number:010d}.qspl" for number in range(_FILES)),
    ]


@dataclass(frozen=True, slots=True)
class Fault:
    """The `nth` call of this name fails; with `onwards` all after it, too."""

    call: str
    error: str
    nth: int
    onwards: bool = False

    def __str__(self) -> str:
        return f"{self.error} at {self.call} {self.nth}{'+' * self.onwards}"

    @property
    def option(self) -> str:
        """For strace."""
        return f"inject={self.call}:error={self.error}:when={self.nth}{'+' * self.onwards}"


@dataclass
class Result:
    """What came of a run."""

    fault: Fault | None
    reaction: str = ""
    where: str = ""  # what the call that failed was about
    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # calls on the directory
    seconds: float = 0.0


def run(fault: Fault | None, workspace: Path, *, threads: bool = False) -> Result:
    """A broker, the script, the end, and three starts. `workspace` stays when something is wrong.

    With `threads` storage has its own, as it should; strace counts the calls of each by itself, so
    that a fault may strike several times.
    """
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir(parents=True)
    begin = time.monotonic()
    data_dir = workspace / "data"
    log = workspace / "trace"
    tracer = trace.command(log)
    for path in paths(data_dir):
        tracer += ("-P", str(path))
    if fault is not None:
        tracer += ("-e", fault.option)
    broker = TracedBroker(data_dir, tracer, {} if threads else {ONE_THREAD: "1"})
    outcome = _played(broker)
    result = Result(fault)
    directory = Directory(data_dir)
    reached = at_start = False
    for step in trace.read(log):
        call = step.call
        if call.injected and not reached:
            reached = True
            at_start = call.at_s < outcome.started_at_s
            result.where = directory.about(call)
        result.counts[call.name] += step.ends
        directory.follow(step)
    result.reaction = outcome.reaction if reached or fault is None else "not reached"
    result.violations = outcome.violations
    if fault is not None and reached and outcome.started:
        result.violations += undocumented(fault, result.where, at_start, outcome)
    stays_full = fault is not None and fault.onwards and fault.error == "ENOSPC"
    if outcome.notes.blocked and not stays_full:
        result.violations.append("publishers are blocked, and nothing fails any more")
    if outcome.notes.silence and not stays_full:
        result.violations.append(outcome.notes.silence)
    data_dir.mkdir(exist_ok=True)  # it may not even have come to that
    for kept in ("all", "some", "none"):
        target = workspace / kept
        if kept == "all":
            directory.settle(data_dir)
            shutil.copytree(data_dir, target, ignore=shutil.ignore_patterns("*.sock"))
        else:
            write(directory.image(random.Random(str(fault)), kept), target)
        try:
            wrong = outcome.notes.violations(open_image(target))
        except Exception as error:  # noqa: BLE001 - whatever it is, the directory did not open
            wrong = [f"it does not open: {type(error).__name__}: {error}"]
        result.violations += [f"of the unsynced {kept}: {text}" for text in wrong[:_SHOWN]]
    if result.violations:
        result.violations += [f"    | {line}" for line in outcome.said[-12:]]
    else:
        shutil.rmtree(workspace)
    result.seconds = time.monotonic() - begin
    return result


def _played(broker: TracedBroker) -> Outcome:
    """What became of a broker under the script; it has ended."""
    outcome = Outcome()
    try:
        try:
            broker.start()
            outcome.started = True
            outcome.started_at_s = time.time()
        except RuntimeError:  # it ended, or took too long and was killed
            assert broker.process is not None
            outcome.code = broker.process.returncode
            # It may have failed as soon as it had started, before anybody could connect.
            outcome.started = outcome.stopped_itself = any(STARTUP_LINE in x for x in broker.lines)
        else:
            outcome.notes = Script(broker.url, lambda: broker.broker is not None).run()
            outcome.stopped_itself = broker.broker is None
            with suppress(subprocess.TimeoutExpired):
                outcome.code, _ = broker.terminate()
    finally:
        broker.kill()
    outcome.said = broker.lines
    return outcome


def undocumented(fault: Fault, where: str, at_start: bool, outcome: Outcome) -> list[str]:
    """How the reaction of a broker that did start differs from what docs/proofs.md says."""
    stopped = outcome.code == EXIT_DISK
    in_lmdb = "lmdb" in where  # empty: LMDB's lock file
    if fault.call == "openat":
        # To read from, a file that cannot be opened is its consumers' matter; a directory that
        # cannot is one that cannot be synced.
        return []
    if at_start and (not where or "index.lmdb" in where):  # it is deleted and made again
        return []
    if fault.error == "EIO":
        return [] if stopped else ["an error of the disk was passed over"]
    segment_id = where.removeprefix("log/").removesuffix(".qseg.new")
    if segment_id.isdecimal() and int(segment_id) >= COMPACTED:
        return []  # a compaction, on which nothing depends yet: it is begun again
    if fault.call in SYNCS and not in_lmdb:
        return [] if stopped else ["a failed sync was passed over"]
    # LMDB's meta pages are the exception: it does not write again after one has failed.
    if stopped and not fault.onwards and not (in_lmdb and fault.call == "pwrite64"):
        return ["lack of space, which passes, ended it"]
    return []


@dataclass
class Outcome:
    """How broker and script ended."""

    started: bool = False
    started_at_s: float = 0.0
    code: int | None = None  # None: it hung
    stopped_itself: bool = False  # while the script was at work
    notes: Notes = field(default_factory=Notes)
    said: list[str] = field(default_factory=list)

    @property
    def reaction(self) -> str:
        """In a few words."""
        if not self.started:
            return f"did not start, {self.code}"
        words = [] if self.code == EXIT_STOPPED else [f"ended with {self.code}"]
        if self.notes.blocked:
            words.append("blocked publishers")
        if self.notes.refusals and not self.stopped_itself:
            words.append("refused with 541")
        return ", ".join(words) or "went on"

    @property
    def violations(self) -> list[str]:
        """What no error from the system excuses."""
        notes = self.notes
        wrong = list(notes.trouble)
        if any("Traceback" in line for line in self.said):
            wrong.append("a traceback")
        wrong += [f"refused: {error}" for error in notes.refusals if error.code != 541]
        if not self.started:
            if self.code not in (EXIT_NO_START, EXIT_DISK):
                wrong.append(f"no start, but exit status {self.code}")
            if len(self.said) != 1 or not self.said[0].startswith("qlog: "):
                wrong.append(f"{len(self.said)} lines instead of one")
            if any("restore it" in line for line in self.said):
                wrong.append("nothing is damaged that would have to be restored")
        elif self.code not in (EXIT_STOPPED, EXIT_DISK):
            wrong.append("it hangs" if self.code is None else f"exit status {self.code}")
        if self.stopped_itself and self.code == EXIT_STOPPED:
            wrong.append("it stopped by itself, with status 0")
        if self.stopped_itself and notes.connected and not notes.refusals:
            wrong.append("it stopped without telling its client")
        if notes.cut:
            wrong.append("a connection was cut without a word")
        return wrong
