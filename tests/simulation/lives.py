"""Random lives of a data directory: steps, crashes and restarts from one seed each.

The same seed gives the same life. Each life has settings of its own and its own taste (which steps
it takes often), so that rare mixtures come up; what is checked stands in world.py.
"""

import random
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from tests.simulation.disk import LMDB_NAMES, CrashCounts
from tests.simulation.world import LANES, Fate, World, small_steps
from tests.storage.support import SMALL

ROUNDS_A_LIFE = 25

_STEPS = {  # and how often, before taste
    "publish": 30,
    "trickle": 6,
    "settle": 6,
    "settle_some": 14,
    "hand_on": 4,
    "purge": 1,
    "read": 3,
    "read_all": 3,
    "attempt": 5,
    "delay": 6,
    "take_due": 4,
    "restore": 4,
    "delete_lane": 1,
    "tick": 18,
    "commit_in_time": 12,
    "work": 30,
    "request_sync": 4,
    "drive": 8,
    "drain": 0.5,
    "follow": 4,
    "follow_slowly": 6,
    "settle_down": 3,
    "checkpoint": 6,
    "reopen": 2,
    "arm": 8,
    "crash": 4,
    "fill_disk": 1.5,
    "free_disk": 2,
    "fail": 1,
    "doubt": 0.5,
}

# What may happen between two slices of the store's own work, and how often.
_MEANWHILE = {
    "publish": 4,
    "trickle": 6,
    "settle": 1,
    "settle_some": 3,
    "hand_on": 1,
    "purge": 0.2,
    "read": 1,
    "attempt": 1,
    "delay": 1,
    "take_due": 1,
    "restore": 2,
    "delete_lane": 0.3,
    "follow": 0.3,
    "follow_slowly": 1,
    "commit_in_time": 4,
}
_MEANWHILE_MAX = 20  # in one step: a life must come to its end


class Violation(Exception):
    """A life in which something did not hold; the text says how to live it again."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason

    def assert_found(self, mutation: str) -> None:
        """It says that a mutation breaks a promise, and not that the mutation cannot be run."""
        blunder = isinstance(self.__cause__, TypeError | AttributeError | NameError)
        assert not blunder, f"the mutation {mutation!r} is wrong itself: {self.reason}"


@dataclass(slots=True)
class Tally:
    """What lives were made of."""

    counts: Counter[str]
    crashes: CrashCounts

    def add(self, other: "Tally") -> None:
        self.counts.update(other.counts)
        for name in CrashCounts.__slots__:
            total = getattr(self.crashes, name) + getattr(other.crashes, name)
            setattr(self.crashes, name, total)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for LMDB, in memory where there is such a place, and small steps."""
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() else None
    base = Path(tempfile.mkdtemp(prefix="qlog-simulation-", dir=parent))
    try:
        with small_steps():
            yield base
    finally:
        shutil.rmtree(base)


class Life:
    """One directory from its first start on."""

    def __init__(
        self,
        base: Path,
        seed: int,
        rounds: int = ROUNDS_A_LIFE,
        prepare: Callable[[World], None] = lambda world: None,
        taste: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """`prepare` may change the world before its first start, `taste` how often steps come."""
        self.choice = random.Random(seed)
        self.rounds = rounds
        choice = self.choice
        self.lanes = choice.choice((LANES, LANES, 8))
        self.hot = 0  # the lane that messages trickle into
        segment_bytes = choice.choice((4 << 10, 8 << 10, 16 << 10))
        self.world = World(
            base / "world",
            replace(
                SMALL,
                segment_bytes_max=segment_bytes,
                ledger_bytes_max=choice.choice((1 << 10, 4 << 10, 16 << 10)),
                batch_bytes_max=segment_bytes // 4,
                batch_records_max=choice.choice((4, 16, 64)),
                cache_bytes_max=choice.choice((0, 8 << 10)),
                ack_flush_count=choice.choice((4, 1024)),
                compact_share_max=choice.choice((0.3, 0.9)),
                compact_age_s=choice.choice((0.0, 0.0, 0.0, 60.0)),
                compact_bytes_per_s=choice.choice((4 << 10, 1 << 20)),
                index_map_bytes=16 << 20,
                catalog_map_bytes=1 << 20,
            ),
            seed,
            self.lanes,
        )
        prepare(self.world)
        self.weights = [
            weight * taste.get(name, 1) * choice.choice((0.2, 1, 1, 1, 3))
            for name, weight in _STEPS.items()
        ]
        self.meanwhile_weights = [
            weight * taste.get(name, 1) for name, weight in _MEANWHILE.items()
        ]
        self.story: list[str] = []
        self.busy = choice.choice((0, 0.1, 0.3, 0.6))  # how often something happens meanwhile
        self.left = 0
        slow = choice.choice((0, 0, 0.5, 0.8))
        self.world.puts_off = lambda: choice.random() < slow
        self.world.meanwhile = self.meanwhile

    def live(self) -> None:
        """Raises whatever did not hold."""
        world = self.world
        choice = self.choice
        world.begin(crash_after=choice.randrange(60) if choice.random() < 0.5 else None)
        names = list(_STEPS)
        while world.counts["rounds"] < self.rounds:
            name = choice.choices(names, self.weights)[0]
            step, arguments = self._step(name)
            self.story.append(f"{name}{arguments}")
            self.left = _MEANWHILE_MAX
            world.perform(step, *arguments)

    def meanwhile(self) -> None:
        """Perhaps steps of clients, between two slices of the store's own work."""
        choice = self.choice
        while self.left and choice.random() < self.busy:
            self.left -= 1
            name = choice.choices(list(_MEANWHILE), self.meanwhile_weights)[0]
            step, arguments = self._step(name)
            self.story.append(f"  meanwhile {name}{arguments}")
            self.world.counts["steps between two slices"] += 1
            step(*arguments)

    def _step(self, name: str) -> tuple[Callable[..., None], tuple[Any, ...]]:
        given = getattr(self, f"_{name}", None)
        step = getattr(self.world, "settle" if name == "purge" else name)
        return step, () if given is None else given()

    # -- what the steps are given

    def _publish(self) -> tuple[Any, ...]:
        choice = self.choice
        lanes = choice.sample(range(self.lanes), choice.choice((1, 1, 1, 2, self.lanes)))
        return (
            sorted(lanes),
            choice.choice((1, 1, 2, 5, 20, 60)),
            choice.choice((0, 1, 30, 30, 200, 700, 3000)),
            choice.random() < 0.75,
            choice.random() < 0.3,
        )

    def _trickle(self) -> tuple[Any, ...]:
        choice = self.choice
        if choice.random() < 0.2:
            self.hot = choice.randrange(self.lanes)
        return self.hot, choice.choice((1, 2, 2, 3, 10)), choice.choice((0, 30, 30, 200))

    def _settle(self) -> tuple[Any, ...]:
        choice = self.choice
        return choice.randrange(self.lanes), choice.random(), choice.choice((1, 3, 10, 100))

    def _settle_some(self) -> tuple[Any, ...]:
        choice = self.choice
        return choice.randrange(self.lanes), choice.choice((1, 1, 2, 3, 7)), choice.randint(1, 40)

    def _hand_on(self) -> tuple[Any, ...]:
        source = self.choice.randrange(self.lanes)
        return source, (source + 1) % self.lanes, self.choice.randint(1, 20)

    def _purge(self) -> tuple[Any, ...]:
        return self.choice.randrange(self.lanes), 0.0, 1 << 30

    def _read(self) -> tuple[Any, ...]:
        choice = self.choice
        return (
            choice.randrange(self.lanes),
            choice.random(),
            choice.randint(1, 100),
            choice.choice((1, 100, 5000)),
        )

    def _read_all(self) -> tuple[Any, ...]:
        return self.choice.randrange(self.lanes), self.choice.random() < 0.5

    def _delay(self) -> tuple[Any, ...]:
        choice = self.choice
        return (
            sorted(choice.sample(range(self.lanes), choice.choice((1, 1, 2)))),
            choice.choice((1, 1, 3, 20)),
            choice.random() < 0.75,
            choice.choice((-50, 0, 10, 1000, 60_000)),
            choice.choice((0, 0, 100, 5000)),
        )

    def _restore(self) -> tuple[Any, ...]:
        choice = self.choice
        return choice.randrange(self.lanes), choice.random(), choice.choice((1, 3, 30, 300))

    def _take_due(self) -> tuple[Any, ...]:
        return self.choice.choice((0, 0, 500, 100_000)), self.choice.choice((1, 5, 1000))

    def _attempt(self) -> tuple[Any, ...]:
        choice = self.choice
        return choice.randrange(self.lanes), choice.random(), choice.choice((1, 1, 5, 100))

    def _delete_lane(self) -> tuple[Any, ...]:
        return (self.choice.randrange(self.lanes),)

    def _tick(self) -> tuple[Any, ...]:
        return (self.choice.choice((0.001, 0.01, 0.01, 1.1, 2.5)),)

    def _commit_in_time(self) -> tuple[Any, ...]:
        return (self.choice.choice((0, 1, 1, 3)),)

    def _work(self) -> tuple[Any, ...]:
        return self.choice.randrange(2), self.choice.random() < 0.7

    def _drive(self) -> tuple[Any, ...]:
        return (self.choice.choice((0.01, 0.01, 1.1, 2.5, 2.5, 61.0)),)

    def _follow(self) -> tuple[Any, ...]:
        return self.choice.random() < 0.5, self.choice.random() < 0.3

    def _follow_slowly(self) -> tuple[Any, ...]:
        return (self.choice.choice((1, 1, 2, 5, 30)),)

    def _reopen(self) -> tuple[Any, ...]:
        return (self.fate(),)

    def _arm(self) -> tuple[Any, ...]:
        return self.choice.choice((0, 1, 2, 3, 5, 8, 13, 21)), self.fate()

    def _crash(self) -> tuple[Any, ...]:
        return (self.fate(),)

    def _fill_disk(self) -> tuple[Any, ...]:
        return (
            self.choice.choice((0, 100, 5000, 20_000)),
            self.choice.choice(((), ("catalog.lmdb",), ("index.lmdb",), LMDB_NAMES)),
        )

    def _fail(self) -> tuple[Any, ...]:
        return (self.choice.randrange(12),)

    def fate(self) -> Fate:
        choice = self.choice
        inside: list[tuple[int, bool]] = []
        while choice.random() < 0.4 and len(inside) < 4:
            inside.append((choice.randrange(45), choice.random() < 0.7))
        return Fate(
            power=choice.random() < 0.7,
            inside=tuple(inside),
            errors=(choice.randrange(25),) if choice.random() < 0.05 else (),
            full=choice.random() < 0.03,
            remove_index=choice.random() < 0.1,
            compare=choice.random() < 0.1,
            seed=choice.getrandbits(32),
        )


def live(
    seed: int,
    rounds: int = ROUNDS_A_LIFE,
    prepare: Callable[[World], None] = lambda world: None,
    taste: Mapping[str, float] = MappingProxyType({}),
) -> Tally:
    """One life. Raises Violation."""
    with scratch() as base:
        life = Life(base, seed, rounds, prepare, taste)
        again = f"again with: python -m tests.simulation --life {seed} --rounds {rounds}"
        try:
            with judged(life.story, again):
                life.live()
        finally:
            life.world.end()
        counts = life.world.counts
        counts["compactions"] = life.world.disk.syncs["SparseWriter.finish: log"]
        return Tally(counts, life.world.disk.counts)


@contextmanager
def judged(story: Sequence[str], again: str) -> Iterator[None]:
    """Whatever comes out of this is a violation."""
    try:
        yield
    except Exception as error:
        told = "\n  ".join(story[-40:])
        reason = f"{type(error).__name__}: {error}"
        raise Violation(
            f"{traceback.format_exc()}\nthe last steps:\n  {told}\n{reason}\n{again}", reason
        ) from error
