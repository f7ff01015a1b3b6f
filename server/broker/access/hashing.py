"""Hashes of passwords, away from the loop: a hash takes some 20 ms and 12 MiB.

Promises that at most `at_once` hashes are made at the same time, that those in less doubt come
first, that among those in the same doubt the next one is of another peer if one waits, and that all
in doubt together take a fifth of one processor. The line is not longer than LINE_MAX. When it is
full, a newcomer of whose peer nothing waits, but for what is in more doubt, takes the place of one
in more doubt; if there is none, of one in the same doubt whose peer has two or more of those; else
it is Busy. Results come back when the loop calls `progress`. This file does not know what a job
does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol, TypeVar

from qlog.server.broker.outcome import Outcome
from qlog.storage.worker import ThreadWorker, Worker

T = TypeVar("T")

# Who waits holds a password and a connection; at 20 ms each this is longer than a client waits.
LINE_MAX = 1000
# Behind a hash for somebody in doubt there is none for so many times the time that it took.
RESTS = 4


class Doubt(IntEnum):
    """What is known of who wants to log in. Those of whom least is held against them come first."""

    NONE = 0
    SOME = 1  # a wrong password or two: anybody may mistype; or another attempt waits already
    MUCH = 2


class Busy(Exception):
    """So many hashes wait that no more are taken."""


class Hashing(Protocol):
    """Makes hashes."""

    def submit(self, job: Callable[[], T], peer: str, doubt: Doubt = Doubt.NONE) -> Outcome[T]:
        """Run a job some time from now, or at once; the outcome is set on the loop's thread.

        Jobs of different peers take turns. Fails with Busy when the line is full, perhaps later.
        """

    def waits(self, peer: str, doubt: Doubt) -> bool:
        """Whether a job of the peer waits that is in no more doubt than this."""

    def withdraw(self, outcome: Outcome[T], peer: str) -> bool:
        """Forget a job whose outcome nobody waits for. False: it has begun."""

    def progress(self) -> None:
        """Take what has been done since the last call."""

    def close(self) -> None:
        """Finish what has begun, forget the rest, and end."""


class InlineHashing:
    """Hashes on the caller's thread: for tests, and where nobody waits."""

    def submit(self, job: Callable[[], T], peer: str, doubt: Doubt = Doubt.NONE) -> Outcome[T]:
        outcome: Outcome[T] = Outcome()
        try:
            outcome.set(job())
        except Exception as error:  # noqa: BLE001 - handed over
            outcome.fail(error)
        return outcome

    def waits(self, peer: str, doubt: Doubt) -> bool:
        """Nothing ever does."""
        return False

    def withdraw(self, outcome: Outcome[T], peer: str) -> bool:
        """It has begun."""
        return False

    def progress(self) -> None:
        """Nothing is ever left."""

    def close(self) -> None:
        """Nothing to end."""


@dataclass(slots=True, eq=False)
class _Job:
    """`took_s`: processor time, known when it has run."""

    run: Callable[[], Any]
    outcome: Outcome[Any]
    doubt: Doubt
    took_s: float = 0.0

    def timed(self) -> Any:
        """Run it."""
        begun_s = time.thread_time()
        try:
            return self.run()
        finally:
            self.took_s = time.thread_time() - begun_s


# By peer, whose turn it is first; of each in their order, by their outcomes.
_Lines = OrderedDict[str, dict[Outcome[Any], _Job]]


class ThreadedHashing:
    """Hashes on threads of its own, which begin with the first one.

    Arguments: `notify` is called on such a thread when there is something for `progress`; `at_once`
    is the number of threads; `now_s` is a clock of seconds.
    """

    def __init__(
        self,
        notify: Callable[[], None],
        at_once: int = 0,
        new_worker: Callable[[str, Callable[[], None]], Worker] = ThreadWorker,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._notify = notify
        self._at_once = at_once or hashes_at_once()
        self._new_worker = new_worker
        self._now_s = now_s
        self._workers: list[Worker] = []
        self._at_work: dict[Worker, _Job | None] = {}  # None: it lets time pass
        self._lines: dict[Doubt, _Lines] = {doubt: OrderedDict() for doubt in Doubt}
        self._waiting = 0
        self._rests_until_s = 0.0  # nothing for anybody in doubt before
        self._no_rest = threading.Event()

    def submit(self, job: Callable[[], T], peer: str, doubt: Doubt = Doubt.NONE) -> Outcome[T]:
        """See `Hashing`."""
        outcome: Outcome[T] = Outcome()
        if self._waiting >= LINE_MAX and not self._make_room(peer, doubt):
            outcome.fail(Busy())
            return outcome
        self._lines[doubt].setdefault(peer, {})[outcome] = _Job(job, outcome, doubt)
        self._waiting += 1
        self._begin()
        return outcome

    def waits(self, peer: str, doubt: Doubt) -> bool:
        """See `Hashing`."""
        return any(peer in lines for which, lines in self._lines.items() if which <= doubt)

    def withdraw(self, outcome: Outcome[T], peer: str) -> bool:
        """See `Hashing`."""
        for lines in self._lines.values():
            line = lines.get(peer)
            if line is not None and line.pop(outcome, None) is not None:
                self._waiting -= 1
                if not line:
                    del lines[peer]
                return True
        return False

    def _make_room(self, peer: str, doubt: Doubt) -> bool:
        """Give up the last job of one in more doubt, or in the same who has more: see the head."""
        if self.waits(peer, doubt):
            return False
        worst = max(which for which, lines in self._lines.items() if lines)
        if worst < doubt:
            return False
        lines = self._lines[worst]
        crowd = max(lines, key=lambda each: len(lines[each]))
        if worst == doubt and len(lines[crowd]) == 1:
            return False
        _, job = lines[crowd].popitem()
        if not lines[crowd]:
            del lines[crowd]
        self._waiting -= 1
        job.outcome.fail(Busy())
        return True

    def _begin(self) -> None:
        """Give idle workers something to do."""
        while self._waiting:
            doubt = next(doubt for doubt, lines in self._lines.items() if lines)
            if doubt and any(job is None or job.doubt for job in self._at_work.values()):
                return  # one after the other
            worker = self._idle()
            if worker is None:
                if not doubt:
                    self._no_rest.set()
                return
            left_s = self._rests_until_s - self._now_s() if doubt else 0.0
            if left_s > 0:
                self._at_work[worker] = None
                self._no_rest.clear()
                worker.submit(lambda left_s=left_s: self._rest(left_s))  # type: ignore[misc]
            else:
                job = self._at_work[worker] = self._take(self._lines[doubt])
                worker.submit(job.timed)

    def _take(self, lines: _Lines) -> _Job:
        """The next job."""
        peer, line = lines.popitem(last=False)
        job = line.pop(next(iter(line)))
        self._waiting -= 1
        if line:
            lines[peer] = line  # behind the others
        return job

    def _rest(self, left_s: float) -> None:
        """Let time pass, on a worker's thread, until somebody comes who is not in doubt."""
        self._no_rest.wait(left_s)

    def _idle(self) -> Worker | None:
        for worker in self._workers:
            if worker not in self._at_work:
                return worker
        if len(self._workers) >= self._at_once:
            return None
        worker = self._new_worker("qlog-passwords", self._notify)
        worker.submit(_be_modest)
        self._workers.append(worker)
        return worker

    def progress(self) -> None:
        """See `Hashing`."""
        if not self._at_work:
            return
        done: list[tuple[_Job, object]] = []
        ended = False
        for worker in list(self._at_work):
            for result in worker.take():
                if result is _MODEST:
                    continue
                ended = True
                job = self._at_work.pop(worker)
                if job is None:
                    continue
                done.append((job, result))
                if job.doubt:
                    self._rests_until_s = self._now_s() + RESTS * job.took_s
        if not ended:
            return
        self._begin()
        for job, result in done:
            if isinstance(result, BaseException):
                job.outcome.fail(result if isinstance(result, Exception) else RuntimeError(result))
            else:
                job.outcome.set(result)

    def close(self) -> None:
        """See `Hashing`."""
        for lines in self._lines.values():
            lines.clear()
        self._waiting = 0
        self._no_rest.set()
        for worker in self._workers:
            worker.stop()


_MODEST = object()


def _be_modest() -> object:
    """Others come first: a flood of logins must not take the processor from the broker's loop."""
    if sys.platform == "linux":  # where each thread has a priority of its own
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    return _MODEST


def hashes_at_once() -> int:
    """Half of the processors, and at most four: 12 MiB each."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))
