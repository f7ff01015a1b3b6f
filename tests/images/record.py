"""A recording: the system calls of a broker under load, through a kill -9 and an orderly stop.

    with record(directory, seconds=5, seed=1) as recording: ...

It promises: `recording.steps` is all that two brokers did, one after the other, on one directory that
was empty before; `copies` is how it looked when each was dead. Needs strace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil

from qlog.storage.start.fold import COMPACTED
from tests.images import trace
from tests.images.books import Books, Promises
from tests.images.directory import Directory
from tests.images.load import Load
from tests.images.replies import replies
from tests.images.trace import Step
from tests.live.server import ROOT, STOP_S_MAX, BrokerProcess

KILL_AFTER = 0.5  # share of the time


class TracedBroker(BrokerProcess):
    """A broker with small files (see serve.py) under strace; `tracer` is the command before it."""

    def __init__(
        self, data_dir: Path, tracer: Sequence[str], settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(data_dir, settings=settings)
        self.tracer = list(tracer)

    def launch(self) -> None:
        """Start the process and return at once."""
        self._started.clear()
        self.lines = []
        command = [
            *self.tracer,
            *(sys.executable, "-m", "tests.images.serve", "--data-dir", str(self.data_dir)),
            *("--port", "0", "--log-level", "warning"),
        ]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self.settings},
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    @property
    def broker(self) -> psutil.Process | None:
        """The broker itself, below strace; None when it has ended."""
        assert self.process is not None
        if not self.tracer:
            return psutil.Process(self.process.pid) if self.process.poll() is None else None
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0] if children else None

    def kill(self) -> None:
        """SIGKILL to the broker, and wait until strace has written everything down."""
        assert self.process is not None
        if (broker := self.broker) is not None:
            broker.kill()
        self.process.wait(STOP_S_MAX)
        self._reader.join(STOP_S_MAX)  # `lines` has all it said

    def terminate(self) -> tuple[int, float]:
        """SIGTERM: exit code and how many seconds it took. Killed if it takes too long."""
        assert self.process is not None
        begin = time.monotonic()
        if (broker := self.broker) is not None:
            broker.terminate()
        try:
            code = self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return code, time.monotonic() - begin


@dataclass(eq=False)
class Recording:
    """See the head of this file."""

    data_dir: Path
    steps: list[Step]
    killed_at: int  # the first step of the second broker
    copies: tuple[Path, Path]
    books: Books

    @cached_property
    def promises(self) -> Promises:
        """What was promised in it, and when."""
        return Promises(self.books, self.steps)

    @cached_property
    def kinds(self) -> dict[str, list[int]]:
        """The places where a crash leaves something new, by kind.

        Raises AssertionError when the trace is not all that happened to the directory.
        """
        found: dict[str, list[int]] = defaultdict(list)
        told = {reply.place for reply in replies(self.steps)}
        for place, name in enumerate(self.follow(Directory(self.data_dir))):
            step = self.steps[place]
            phase = "first run" if place < self.killed_at else "second run"
            if name:
                when = "after" if step.ends else "in"
                found[f"{phase}, {when} {step.call.name} {kind_of(name)}"].append(place)
            elif place in told:
                found[f"{phase}, a reply"].append(place)
        return found

    def follow(self, directory: Directory) -> Iterator[str]:
        """Let the directory take step after step; the names of what they were about."""
        for place, step in enumerate(self.steps):
            if place == self.killed_at:
                directory.settle(self.copies[0])
            yield directory.follow(step)
        directory.settle(self.copies[1])


def kind_of(name: str) -> str:
    """What kind of file a name stands for."""
    number, _, suffix = Path(name).name.partition(".")
    if suffix == "qstr":
        return ".qstr"
    if number.isdecimal():
        return "compacted" if int(number) >= COMPACTED and "qseg" in suffix else f".{suffix}"
    return name if "lmdb" in name else Path(name).name


def record(directory: Path, *, seconds: float, seed: int) -> Recording:
    """Run the load for about `seconds`, with a kill in between."""
    data_dir = directory / "data"
    traces = [directory / "trace.0", directory / "trace.1"]
    copies = (directory / "killed", directory / "stopped")
    books = Books()
    for process, share in ((0, KILL_AFTER), (1, 1 - KILL_AFTER)):
        broker = TracedBroker(data_dir, trace.command(traces[process]))
        try:
            broker.start()
            load = Load(broker.url, process, books, seed)
            load.start()
            time.sleep(seconds * share)
            if process == 0:
                broker.kill()
            else:
                code, _ = broker.terminate()
                assert code == 0, broker.lines
        finally:
            broker.kill()
        load.join()
        # A broker that was killed leaves its socket for `qlog ctl`, which cannot be copied.
        shutil.copytree(data_dir, copies[process], ignore=shutil.ignore_patterns("*.sock"))
    first = trace.read(traces[0], 0)
    return Recording(data_dir, first + trace.read(traces[1], 1), len(first), copies, books)
