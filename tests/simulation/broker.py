"""The long mode: random lives of a broker's core on a simulated disk.

    python -m tests.simulation.broker --rounds 2000 [--seed N]
    python -m tests.simulation.broker --life SEED       one life again, after a violation
    python -m tests.simulation.broker --mutations       what they catch: each mutation must be

Exits 1 on a violation, and says how to live that life again.
"""

import argparse
import random
import sys
from collections import Counter

from tests.simulation.broker_lives import ROUNDS_A_LIFE, live
from tests.simulation.broker_mutations import MUTATIONS, find
from tests.simulation.lives import Violation


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.broker",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, help="crashes and starts (2000, or those of a life)")
    parser.add_argument("--seed", type=int, help="the first life's; else a random one")
    parser.add_argument("--life", type=int, metavar="SEED", help="only this one")
    parser.add_argument("--mutations", action="store_true", help="see that it can fail")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    if options.mutations:
        return mutations(seed, options.rounds or 1000)
    if options.life is not None:
        rounds = options.rounds or ROUNDS_A_LIFE
        return lives(options.life, rounds, rounds)
    return lives(seed, options.rounds or 2000, ROUNDS_A_LIFE)


def lives(seed: int, rounds: int, rounds_a_life: int) -> int:
    """Life after life until there were so many rounds; the exit status."""
    print(f"seed {seed}: {rounds} rounds", flush=True)
    total: Counter[str] = Counter()
    while total["rounds"] < rounds:
        try:
            total += live(seed, rounds_a_life)
        except Violation as violation:
            print(violation)
            return 1
        seed += 1
    print("no violation")
    for name, count in sorted(total.items()):
        print(f"{count:10,}  {name}")
    return 0


def mutations(seed: int, rounds: int) -> int:
    """Mutated lives until each mutation is caught; the exit status."""
    print(f"seed {seed}: at most {rounds} rounds a mutation", flush=True)
    missed = 0
    for mutation in MUTATIONS:
        caught = find(mutation, seed, rounds)
        missed += caught is None
        if caught is None:
            print(f"MISSED  {mutation.name} ({mutation.breaks})", flush=True)
        else:
            print(f"{caught[0]:6} rounds  {mutation.name}: {caught[1]}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
