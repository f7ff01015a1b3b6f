"""Let every call of a run fail, one after the other, and see how the broker takes it.

    python -m tests.injection --errors EIO,ENOSPC --calls fdatasync,fsync

A first run without errors counts the calls on the data directory. Then one run for each of them
and each error; and for writes and syncs some in which everything fails from that call on. Each
directory that is left is opened without errors and held against what clients had been told.

Storage works on one thread meanwhile, since strace counts the calls of each thread by itself. Exit
status 1 when a promise was broken or the reaction is none that is documented.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.images import trace
from tests.images.sweep import in_memory
from tests.injection.run import CALLS, ERRORS, SYNCS, Fault, Result, run

WRITES = ("pwrite64", "writev", "pwritev2")
ONWARDS_EVERY = 6  # of the writes and syncs, so many are tried with all that come after them
MARGIN = 3  # calls that only some runs have
PROGRESS_S = 20.0


def attempt(fault: Fault, workspace: Path, threads: bool) -> Result:
    """A run; what goes wrong with it in an unforeseen way is a violation."""
    try:
        return run(fault, workspace / str(fault).replace(" ", "."), threads=threads)
    except Exception as error:  # noqa: BLE001 - the sweep goes on
        return Result(fault, "?", violations=[f"{type(error).__name__}: {error}"])


def faults(counts: Counter[str], calls: Sequence[str], errors: Sequence[str]) -> list[Fault]:
    """Every call of the counted run, with every error."""
    found = []
    for call in calls:
        if not counts[call]:
            continue
        for nth in range(1, counts[call] + MARGIN + 1):
            for error in errors:
                found.append(Fault(call, error, nth))
                if call in (*SYNCS, *WRITES) and nth % ONWARDS_EVERY == 1:
                    found.append(Fault(call, error, nth, onwards=True))
    return found


def table(results: Sequence[Result]) -> str:
    """Call and error, and how often which reaction."""
    rows: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for result in results:
        fault = result.fault
        assert fault is not None
        if result.reaction != "not reached":
            rows[fault.call, fault.error + " from then on" * fault.onwards][result.reaction] += 1
    lines = []
    for (call, error), reactions in sorted(rows.items()):
        text = "; ".join(f"{count} × {reaction}" for reaction, count in sorted(reactions.items()))
        lines.append(f"{call:<10} {error:<20} {text}")
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--errors", default=",".join(ERRORS))
    parser.add_argument("--calls", default=",".join(CALLS))
    parser.add_argument("--every", type=int, default=1, help="only each such fault")
    parser.add_argument(
        "--threads", action="store_true", help="with storage's threads: faults are less exact"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="where the directories of bad runs stay")
    parser.add_argument("--log", type=Path, help="a line for each run")
    arguments = parser.parse_args()
    if reason := trace.missing():
        print(reason)
        return 2
    with tempfile.TemporaryDirectory(dir=in_memory()) as temporary:
        workspace = arguments.keep or Path(temporary)
        counted = run(None, workspace / "counted", threads=arguments.threads)
        print(f"calls: {dict(counted.counts)}; {counted.reaction} {counted.violations}", flush=True)
        chosen = faults(counted.counts, arguments.calls.split(","), arguments.errors.split(","))
        chosen = chosen[:: arguments.every]
        begin = shown = time.monotonic()
        results: list[Result] = []
        bad = 0
        with ThreadPoolExecutor(arguments.workers) as pool:
            jobs = [pool.submit(attempt, fault, workspace, arguments.threads) for fault in chosen]
            for job in jobs:
                result = job.result()
                results.append(result)
                line = f"{result.fault} ({result.where}): {result.reaction}"
                if arguments.log:
                    with arguments.log.open("a") as log:
                        print(line, result.violations or "", file=log)
                if result.violations:
                    bad += 1
                    print("BAD", line)
                    for text in result.violations:
                        print(f"    {text}", flush=True)
                if time.monotonic() - shown > PROGRESS_S:
                    shown = time.monotonic()
                    print(f"{len(results)} of {len(chosen)} runs, {bad} bad", flush=True)
    reached = sum(result.reaction != "not reached" for result in results)
    print(table(results))
    print(
        f"{len(results)} runs in {time.monotonic() - begin:.0f} s, {reached} with an error, {bad} bad"
    )
    return 1 if bad or counted.violations else 0


if __name__ == "__main__":
    sys.exit(main())
