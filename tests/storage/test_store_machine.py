"""The store against a simple model, driven by Hypothesis, on a disk that crashes at any operation.

What the steps do and what is checked after them stands in tests/simulation/world.py; what a crash
may do to files, in tests/simulation/disk.py. The same steps are taken at random, and far more
often, by `python -m tests.simulation`.
"""

from collections.abc import Sequence
from contextlib import ExitStack

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from msgspec.structs import replace

from tests.simulation.disk import LMDB_NAMES
from tests.simulation.lives import scratch
from tests.simulation.world import LANES, Fate, World
from tests.storage.support import SMALL

lanes = st.integers(0, LANES - 1)
fates = st.builds(
    Fate,
    power=st.booleans(),
    inside=st.lists(st.tuples(st.integers(0, 45), st.booleans()), max_size=3),
    errors=st.lists(st.integers(0, 25), max_size=1),
    full=st.booleans(),
    remove_index=st.booleans(),
    compare=st.booleans(),
    seed=st.integers(0, 1 << 32),
)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()

    @initialize(
        segment_bytes=st.sampled_from([4 << 10, 16 << 10]),
        crash_after=st.none() | st.integers(0, 60),
        seed=st.integers(0, 1 << 32),
    )
    def begin(self, segment_bytes: int, crash_after: int | None, seed: int) -> None:
        base = self.stack.enter_context(scratch())
        small = replace(
            SMALL,
            segment_bytes_max=segment_bytes,
            batch_bytes_max=segment_bytes // 4,
            compact_age_s=0.0,
        )
        self.world = World(base / "world", small, seed)
        self.stack.callback(self.world.end)
        self.world.begin(crash_after=crash_after)

    def teardown(self) -> None:
        self.stack.close()

    @rule(
        among=st.sets(lanes, min_size=1),
        count=st.sampled_from([1, 2, 5, 40, 300]),
        size=st.sampled_from([0, 1, 30, 700, 3000]),
        persistent=st.booleans(),
        varied=st.booleans(),
    )
    def publish(
        self, among: set[int], count: int, size: int, persistent: bool, varied: bool
    ) -> None:
        world = self.world
        world.perform(world.publish, sorted(among), count, size, persistent, varied)

    @rule(lane=lanes, start=st.floats(0, 1), count=st.integers(1, 400))
    def settle(self, lane: int, start: float, count: int) -> None:
        self.world.perform(self.world.settle, lane, start, count)

    @rule(lane=lanes, every=st.sampled_from([1, 1, 2, 7]), count=st.integers(1, 30))
    def settle_some(self, lane: int, every: int, count: int) -> None:
        self.world.perform(self.world.settle_some, lane, every, count)

    @rule(lane=lanes)
    def purge(self, lane: int) -> None:
        self.world.perform(self.world.settle, lane, 0.0, 1 << 30)

    @rule(
        lane=lanes,
        start=st.floats(0, 1),
        count=st.integers(1, 100),
        size=st.integers(1, 5000),
    )
    def read(self, lane: int, start: float, count: int, size: int) -> None:
        self.world.perform(self.world.read, lane, start, count, size)

    @rule(lane=lanes, deliver=st.booleans())
    def read_all(self, lane: int, deliver: bool) -> None:
        self.world.perform(self.world.read_all, lane, deliver)

    @rule(
        among=st.sets(lanes, min_size=1),
        count=st.sampled_from([1, 5, 40]),
        persistent=st.booleans(),
        ahead_ms=st.sampled_from([-50, 0, 1000, 60_000]),
        spread_ms=st.sampled_from([0, 5000]),
    )
    def delay(
        self, among: set[int], count: int, persistent: bool, ahead_ms: int, spread_ms: int
    ) -> None:
        world = self.world
        world.perform(world.delay, sorted(among), count, persistent, ahead_ms, spread_ms)

    @rule(lane=lanes, start=st.floats(0, 1), count=st.sampled_from([1, 10, 400]))
    def restore(self, lane: int, start: float, count: int) -> None:
        self.world.perform(self.world.restore, lane, start, count)

    @rule(ahead_ms=st.sampled_from([0, 500, 100_000]), count=st.sampled_from([1, 5, 1000]))
    def take_due(self, ahead_ms: int, count: int) -> None:
        self.world.perform(self.world.take_due, ahead_ms, count)

    @rule(lane=lanes, start=st.floats(0, 1), count=st.integers(1, 100))
    def attempt(self, lane: int, start: float, count: int) -> None:
        self.world.perform(self.world.attempt, lane, start, count)

    @rule(lane=lanes)
    def delete_lane(self, lane: int) -> None:
        self.world.perform(self.world.delete_lane, lane)

    @rule(seconds=st.sampled_from([0.001, 0.01, 1.1, 2.5]))
    def tick(self, seconds: float) -> None:
        self.world.perform(self.world.tick, seconds)

    @rule(worker=st.integers(0, 1), advance=st.booleans())
    def work(self, worker: int, advance: bool) -> None:
        self.world.perform(self.world.work, worker, advance)

    @rule(seconds=st.sampled_from([0.01, 1.1, 2.5, 61.0]))
    def drive(self, seconds: float) -> None:
        self.world.perform(self.world.drive, seconds)

    @rule()
    def drain(self) -> None:
        self.world.perform(self.world.drain)

    @rule()
    def doubt(self) -> None:
        self.world.perform(self.world.doubt)

    @rule()
    def request_sync(self) -> None:
        self.world.perform(self.world.request_sync)

    @rule()
    def settle_down(self) -> None:
        self.world.perform(self.world.settle_down)

    @rule()
    def checkpoint(self) -> None:
        self.world.perform(self.world.checkpoint)

    @rule(fate=fates)
    def reopen(self, fate: Fate) -> None:
        self.world.perform(self.world.reopen, fate)

    @rule(after=st.integers(0, 20), fate=fates)
    def arm(self, after: int, fate: Fate) -> None:
        self.world.perform(self.world.arm, after, fate)

    @rule(fate=fates)
    def crash(self, fate: Fate) -> None:
        self.world.perform(self.world.crash, fate)

    @rule(
        left_bytes=st.sampled_from([0, 5000, 20_000]),
        lmdb_too=st.sampled_from([(), LMDB_NAMES]),
    )
    def fill_disk(self, left_bytes: int, lmdb_too: Sequence[str]) -> None:
        self.world.perform(self.world.fill_disk, left_bytes, lmdb_too)

    @rule()
    def free_disk(self) -> None:
        self.world.perform(self.world.free_disk)

    @rule(after=st.integers(0, 12))
    def fail(self, after: int) -> None:
        self.world.perform(self.world.fail, after)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
