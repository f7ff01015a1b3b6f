"""The store against a simple model, through kills at any disk operation and orderly restarts.

A power loss leaves any of the sectors that were not synced; names are kept. Promises checked after each
restart: what was durable and never settled is there; what is there was published, byte for byte;
a settlement that was synced holds; qseqs only grow.
"""

import random
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from tests.storage.support import Bench, Killed, contents, publish

LANES = 3


@dataclass
class Model:
    """One lane as it should be."""

    lane_id: int
    bodies: dict[int, bytes] = field(default_factory=dict)  # unsettled
    lsns: dict[int, int] = field(default_factory=dict)  # of the persistent ones
    settled: dict[int, bytes] = field(default_factory=dict)  # and maybe not synced
    next_qseq: int = 0
    delivered: int = 0


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="qlog-test-"))
        self.bench = Bench(self.root)
        self.serial = 0
        self.models = [Model(self.bench.store.new_lane_id()) for _ in range(LANES)]

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.store.close()
            shutil.rmtree(self.root)

    @rule(
        lanes=st.sets(st.integers(0, LANES - 1), min_size=1),
        count=st.sampled_from([1, 2, 5, 40, 300]),
        size=st.sampled_from([0, 1, 30, 700]),
        persistent=st.booleans(),
        varied=st.booleans(),
    )
    def publish(
        self, lanes: set[int], count: int, size: int, persistent: bool, varied: bool
    ) -> None:
        store = self.bench.store
        count = min(count, 1 + 20_000 // (size + 1))
        bodies = [f"{self.serial + at}:".encode() + b"x" * size for at in range(count)]
        self.serial += count
        models = [self.models[at] for at in sorted(lanes)]
        before = store.lsn
        publish(
            store,
            [store.lane(model.lane_id) for model in models],
            bodies,
            persistent=persistent,
            packed=b"key%d" % (self.serial if varied else 0),
        )
        for model in models:
            for at, body in enumerate(bodies):
                model.bodies[model.next_qseq + at] = body
                if persistent:
                    model.lsns[model.next_qseq + at] = before + at + 1
            model.next_qseq += count

    @rule(lane=st.integers(0, LANES - 1), start=st.floats(0, 1), count=st.integers(1, 400))
    def settle(self, lane: int, start: float, count: int) -> None:
        model = self.models[lane]
        first = int(start * model.next_qseq)
        fresh = self.bench.store.lane(model.lane_id).settle(first, count)
        going = [qseq for qseq in model.bodies if first <= qseq < first + count]
        assert fresh == len(going)
        for qseq in going:
            model.settled[qseq] = model.bodies.pop(qseq)

    @rule(lane=st.integers(0, LANES - 1), count=st.integers(1, 30))
    def settle_oldest(self, lane: int, count: int) -> None:
        model = self.models[lane]
        for qseq in sorted(model.bodies)[:count]:
            assert self.bench.store.lane(model.lane_id).settle(qseq, 1) == 1
            model.settled[qseq] = model.bodies.pop(qseq)

    @rule(
        lane=st.integers(0, LANES - 1),
        start=st.floats(0, 1),
        count=st.integers(1, 100),
        size=st.integers(1, 5000),
    )
    def read(self, lane: int, start: float, count: int, size: int) -> None:
        model = self.models[lane]
        qseq = int(start * model.next_qseq)
        found = self.bench.store.lane(model.lane_id).read(qseq, count, size)
        first = min((known for known in model.bodies if known >= qseq), default=None)
        if first is None:
            assert found is None
            return
        assert found is not None and found.first_qseq == first
        assert 1 <= len(found.bodies) <= count
        for at, body in enumerate(found.bodies):
            assert model.bodies[first + at] == body

    @rule(lane=st.integers(0, LANES - 1))
    def read_all(self, lane: int) -> None:
        model = self.models[lane]
        handle = self.bench.store.lane(model.lane_id)
        assert contents(handle) == model.bodies
        handle.note_delivered(model.next_qseq)
        model.delivered = model.next_qseq

    @rule(lane=st.integers(0, LANES - 1))
    def delete_lane(self, lane: int) -> None:
        store = self.bench.store
        store.drop(store.lane(self.models[lane].lane_id))
        self.models[lane] = Model(store.new_lane_id())

    @rule(seconds=st.sampled_from([0.001, 0.01, 1.1]))
    def tick(self, seconds: float) -> None:
        self.bench.store.commit()
        self.bench.tick(seconds)

    @rule(worker=st.integers(0, 1), advance=st.booleans())
    def work(self, worker: int, advance: bool) -> None:
        self.bench.workers[worker].run_one()
        if advance:
            self.bench.store.advance()

    @rule()
    def settle_down(self) -> None:
        assert self.bench.store.settle_down()
        for model in self.models:
            model.settled.clear()

    @rule()
    def checkpoint(self) -> None:
        assert self.bench.store.checkpoint()

    @rule()
    def reopen(self) -> None:
        for model in self.models:
            model.settled.clear()
        self.bench.reopen()
        self.recovered(durable_lsn=self.bench.store.lsn)

    @rule(rebuild=st.booleans())
    def kill(self, rebuild: bool) -> None:
        durable_lsn = self.bench.store.durable_lsn
        self.bench.kill()
        if rebuild:
            shutil.rmtree(self.bench.directory / "index.lmdb")
        self.bench.open()
        self.recovered(durable_lsn)

    @rule(choice=st.randoms(use_true_random=False), rebuild=st.booleans())
    def lose_power(self, choice: random.Random, rebuild: bool) -> None:
        durable_lsn = self.bench.store.durable_lsn
        self.bench.lose_power(choice)
        if rebuild:
            shutil.rmtree(self.bench.directory / "index.lmdb")
        self.bench.open()
        self.recovered(durable_lsn)

    @rule(after=st.integers(0, 12), again=st.integers(0, 40))
    def kill_at_an_operation(self, after: int, again: int) -> None:
        """Die inside some disk operation, and once more inside the recovery."""
        store = self.bench.store
        self.bench.disk.fail = killer(after)
        store.commit()
        self.bench.tick(1.1)
        for _ in range(3):
            for worker in self.bench.workers:
                worker.run_one()
                if store.failure is None:
                    store.advance()
        durable_lsn = store.durable_lsn
        self.bench.kill()
        self.bench.disk.fail = killer(again)
        try:
            self.bench.open()
        except Killed:
            self.bench.disk.fail = lambda operation: None
            old = self.bench.directory
            self.bench.generation += 1
            shutil.copytree(old, self.bench.directory)
            self.bench.open()
        self.bench.disk.fail = lambda operation: None
        self.recovered(durable_lsn)

    def recovered(self, durable_lsn: int) -> None:
        store = self.bench.store
        for model in self.models:
            lane = store.lane(model.lane_id)
            found = contents(lane)
            for qseq, body in model.bodies.items():
                if model.lsns.get(qseq, durable_lsn + 1) <= durable_lsn:
                    assert found.get(qseq) == body, f"lost {qseq}"
            for qseq, body in found.items():
                assert qseq in model.lsns, f"{qseq} was never persistent"
                assert body == model.bodies.get(qseq, model.settled.get(qseq)), f"not {qseq}"
            assert lane.alive == len(found)
            assert lane.next_qseq >= max(found, default=-1) + 1
            model.bodies = found
            model.lsns = dict.fromkeys(found, 0)
            model.settled = {}
            model.next_qseq = lane.next_qseq
            model.delivered = lane.delivered

    @invariant()
    def counts(self) -> None:
        if not hasattr(self, "bench"):
            return
        assert self.bench.store.failure is None
        for model in self.models:
            lane = self.bench.store.lane(model.lane_id)
            assert lane.alive == len(model.bodies)
            assert lane.next_qseq == model.next_qseq
            assert lane.delivered == model.delivered


def killer(after: int):  # type: ignore[no-untyped-def]
    left = after

    def fail(operation: str) -> BaseException | None:
        nonlocal left
        left -= 1
        return Killed() if left < 0 else None

    return fail


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
