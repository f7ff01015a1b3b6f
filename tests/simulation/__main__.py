"""The long mode: random lives of a store on a simulated disk.

    python -m tests.simulation --rounds 20000 [--seed N]
    python -m tests.simulation --life SEED          one life again, after a violation
    python -m tests.simulation --mutations          what it catches: each mutation must be

Prints its seed and progress; exits 1 on a violation, and says how to live that life again.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from tests.simulation.disk import CrashCounts
from tests.simulation.lives import ROUNDS_A_LIFE, Tally, Violation, live
from tests.simulation.mutations import MUTATIONS, REDUNDANT, find, leave_out
from tests.simulation.world import World


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, help="crashes and starts (20000, or those of a life)")
    parser.add_argument("--seed", type=int, help="the first life's; else a random one")
    parser.add_argument("--life", type=int, metavar="SEED", help="only this one")
    parser.add_argument("--mutations", action="store_true", help="see that it can fail")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    if options.mutations:
        return mutations(seed, options.rounds or 5000)
    if options.life is not None:
        return lives(options.life, options.rounds or ROUNDS_A_LIFE, options.rounds or ROUNDS_A_LIFE)
    return lives(seed, options.rounds or 20_000, ROUNDS_A_LIFE)


def lives(
    seed: int,
    rounds: int,
    rounds_a_life: int,
    prepare: Callable[[World], None] = lambda world: None,
) -> int:
    """Life after life until there were so many rounds; the exit status."""
    print(f"seed {seed}: {rounds} rounds", flush=True)
    started_s = reported_s = time.monotonic()
    total = Tally(Counter(), CrashCounts())
    while total.counts["rounds"] < rounds:
        try:
            total.add(live(seed, rounds_a_life, prepare))
        except Violation as violation:
            print(violation)
            return 1
        seed += 1
        now_s = time.monotonic()
        if now_s - reported_s > 10:
            reported_s = now_s
            print(f"{now_s - started_s:6.0f} s  {total.counts['rounds']} rounds", flush=True)
    print(f"{time.monotonic() - started_s:.0f} s, no violation")
    for name, count in sorted(total.counts.items()):
        print(f"{count:10,}  {name}")
    for name in CrashCounts.__slots__:
        print(f"{getattr(total.crashes, name):10,}  {name.replace('_', ' ')}")
    return 0


def mutations(seed: int, rounds: int) -> int:
    """Mutated lives until each mutation is caught, and lives without the redundant syncs."""
    print(f"seed {seed}: at most {rounds} rounds a mutation", flush=True)
    missed = 0
    for mutation in MUTATIONS:
        caught = find(mutation, seed, rounds)
        if caught is None:
            missed += 1
            print(f"MISSED  {mutation.name} ({mutation.breaks})", flush=True)
        else:
            print(f"{caught.rounds:6} rounds  {mutation.name}: {caught.reason}", flush=True)
    for site, reason in REDUNDANT.items():
        print(f"may be missing  {site}: {reason}")
    without = partial(leave_out, REDUNDANT)
    return lives(seed, rounds, ROUNDS_A_LIFE, without) or int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
