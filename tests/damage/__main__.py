"""Damage directories at random, verify and start each: `python -m tests.damage --cases 2000`.

Prints a table of what became of which damage. The same seed gives the same cases. Exit status 1
when anything was lost silently, or crashed; such directories are kept.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.damage.directories import KINDS, make, new_place
from tests.damage.judge import try_one


def main() -> int:
    """Run the cases."""
    parser = argparse.ArgumentParser(prog="python -m tests.damage", description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", type=Path, default=None, help="where failed directories go")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    root = new_place()
    table: Counter[tuple[str, str, str]] = Counter()
    mistakes = 0
    began_s = shown_s = time.monotonic()
    try:
        sources = [make(kind, root / kind) for kind in KINDS]
        for case in range(options.cases):
            directory = root / "case"
            facts = sources[case % len(sources)]
            try:
                verdict = try_one(facts, directory, seed + case)
                mistake = None if verdict is None else verdict.mistake
            except Exception as error:  # noqa: BLE001 - of the tools, or of a start: told, and on
                verdict = None
                mistake = f"crashed: {''.join(traceback.format_exception(error))}"
            if verdict is not None:
                table[verdict.strike.what, verdict.strike.how, verdict.outcome] += 1
            if mistake is not None:
                mistakes += 1
                hit = "" if verdict is None else f" {verdict.strike}:"
                print(f"case {case} (seed {seed + case}, {facts.directory.name}):{hit} {mistake}")
                if options.keep is not None:
                    shutil.copytree(directory, options.keep / f"case{case}", dirs_exist_ok=True)
            shutil.rmtree(directory)
            if time.monotonic() - shown_s > 10:
                shown_s = time.monotonic()
                print(f"{case + 1} of {options.cases} cases, {mistakes} mistakes", flush=True)
    finally:
        shutil.rmtree(root)
    for (what, how, outcome), count in sorted(table.items()):
        print(f"{what:8} {how:7} {outcome:15} {count:6}")
    duration_s = time.monotonic() - began_s
    print(f"{sum(table.values())} damages in {duration_s:.0f} s, {mistakes} mistakes")
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
