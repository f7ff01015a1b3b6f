"""Lives of a stream on the simulated disk: published, moved, cut by retention, killed, powerless.

The model is a list of bodies, by offset. After each start it holds: everything that was confirmed
is there, at its offset; whatever else is there is what was published; there is no gap. Retention
takes from the front only. No damage is reported.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from msgspec.structs import replace

from qlog.storage.errors import StorageError
from qlog.storage.store import Store
from qlog.storage.streams.stream import Cursor
from tests.simulation.disk import Crash, SimulatedDisk
from tests.simulation.world import small_steps
from tests.storage.support import (
    SMALL,
    Envelope,
    ManualWorker,
    abandon,
    decode,
    envelope,
    ignore,
)

STEPS = (
    *("publish", "publish", "commit", "tick", "work", "work", "down", "checkpoint", "retain"),
    *("fill", "free"),
)
ROUNDS = 10


class StreamViolation(Exception):
    """Something did not hold."""


class StreamLife:
    """See the head of this file."""

    def __init__(self, base: Path, seed: int, left_out: Collection[str] = ()) -> None:
        self.choice = random.Random(seed)
        self.base = base
        (base / "disk").mkdir(parents=True)
        self.disk = SimulatedDisk(base / "disk")
        self.disk.use(random.Random(seed))
        self.disk.left_out = left_out
        self.settings = replace(
            SMALL,
            segment_bytes_max=8 << 10,
            stream_move_bytes=self.choice.choice((200, 2000)),
            stream_move_count=20,
            stream_segment_bytes=self.choice.choice((300, 2000)),
            stream_batch_bytes=self.choice.choice((150, 1000)),
        )
        self.bodies: list[bytes] = []  # by offset
        self.serial = 0
        self.durable = 0
        self.first = 0  # of the last retention that was noted
        self.lane_id = -1
        self.now_s = 0.0
        self.store: Store[Envelope] | None = None
        self.opened = 0

    def live(self) -> None:
        """Raises StreamViolation."""
        self._start()
        for _ in range(ROUNDS):
            if self.choice.random() < 0.6:
                self.disk.crash_in = self.choice.randrange(1, 120)
            try:
                for _ in range(self.choice.randrange(5, 40)):
                    self._step(self.choice.choice(STEPS))
                if self.choice.random() < 0.15:
                    self.disk.space_bytes = None
                    assert self.store is not None
                    self.store.close()
                    self.store = None
            except Crash:
                pass
            self._crash()
            self._start()

    def _crash(self) -> None:
        if self.store is not None:
            self.disk.crash_in = None
            self.disk.space_bytes = None
            abandon(self.store)
            self.store = None
        self.disk.crash(self.choice, power=self.choice.random() < 0.7)

    def _start(self) -> None:
        while self.store is None:
            self.disk.crash_in = (
                self.choice.randrange(1, 200) if self.choice.random() < 0.3 else None
            )
            try:
                self._open()
            except Crash:
                self._crash()
            except StorageError as error:
                raise StreamViolation(str(error)) from error
        self.disk.crash_in = None
        self._check()

    def _open(self) -> None:
        self.workers: list[ManualWorker] = []

        def new_worker(name: str, notify: Callable[[], None]) -> ManualWorker:
            self.workers.append(ManualWorker())
            return self.workers[-1]

        with patch("lmdb.open", self.disk.lmdb_open):
            store = self.store = Store.open(
                self.disk.root,
                decode=decode,
                notify=ignore,
                settings=self.settings,
                disk=self.disk,
                new_worker=new_worker,
            )
        known = [int(name) for name, _ in store.catalog.items("stream")]
        if known:
            (self.lane_id,) = known
        else:
            if self.durable:
                raise StreamViolation("the stream is not defined any more")
            self.lane_id = store.new_lane_id()
            store.define_stream(self.lane_id)
        self.lane = store.lane(self.lane_id)
        self.stream = store.stream(self.lane)
        store.retain([self.lane_id])

    def _step(self, name: str) -> None:
        store, choice = self.store, self.choice
        assert store is not None
        match name:
            case "publish":
                count = choice.randrange(1, 12)
                bodies = [
                    b"%d:" % (self.serial + at) + bytes(choice.randrange(60)) for at in range(count)
                ]
                self.serial += count
                metas = [envelope(b"key%d" % (at % choice.randrange(1, 3))) for at in range(count)]
                store.append([self.lane], metas, bodies, persistent=True, now_ms=self.serial)
                self.bodies += bodies
                store.stream_touched(self.stream)
            case "commit":
                store.commit()
            case "tick":
                self.now_s += choice.choice((0.01, 0.3, 2.0, 6.0))
                store.tick(self.now_s)
            case "work":
                choice.choice(self.workers).run_one()
                store.advance()
            case "down":
                store.settle_down()
            case "checkpoint":
                if choice.random() < 0.3:
                    store.checkpoint()
            case "fill":
                if choice.random() < 0.3:
                    self.disk.space_bytes = self.disk.used_bytes + choice.randrange(8000)
            case "free":
                self.disk.space_bytes = None
            case "retain":
                self.stream.max_bytes = choice.choice((None, 1000, 4000))
        if store.failure is not None:
            raise store.failure
        self.first = max(self.first, self.stream.first)
        if store.durable_lsn == store.lsn:
            self.durable = len(self.bodies)

    def _check(self) -> None:
        store, stream = self.store, self.stream
        assert store is not None
        for finding in store.take_findings():
            raise StreamViolation(finding)
        if not self.durable <= stream.end <= len(self.bodies):
            raise StreamViolation(f"ends at {stream.end}: {self.durable} to {len(self.bodies)}")
        if stream.first > self.first:
            raise StreamViolation(f"begins at {stream.first}: {self.first} at most")
        del self.bodies[stream.end :]
        self.first = stream.first
        cursor: Cursor[Envelope] = Cursor(stream, 0)
        at = stream.first
        try:
            while (chunk := cursor.next(stream.end)) is not None:
                start = cursor.offset - chunk.first
                bodies = chunk.messages.bodies[start:]
                if cursor.offset != at or bodies != self.bodies[at : at + len(bodies)]:
                    raise StreamViolation(f"other messages from {at} on")
                at += len(bodies)
                cursor.advance(chunk, len(bodies))
        except StorageError as error:
            raise StreamViolation(str(error)) from error
        cursor.close()
        if at != stream.end:
            raise StreamViolation(f"read up to {at}, not {stream.end}")
        stream.shelf.clear()

    def end(self) -> None:
        """Let go of everything."""
        if self.store is not None:
            abandon(self.store)
        shutil.rmtree(self.base)


def live(base: Path, seed: int, left_out: Collection[str] = ()) -> StreamLife:
    """One life, which is over when this returns. Raises StreamViolation."""
    life = StreamLife(base / str(seed), seed, left_out)
    with ExitStack() as stack:
        stack.enter_context(small_steps())
        stack.callback(life.end)
        life.live()
    return life
