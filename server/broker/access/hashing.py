"""Hashes of passwords, away from the loop: a hash takes some 20 ms and 12 MiB.

Promises that at most `at_once` hashes are made at the same time, that the next one is of another
peer if one waits, and that the line is not longer than LINE_MAX: whoever comes from a peer of whom
nothing waits takes the place of one of the peer of whom most does. Results come back when the loop
calls `progress`. This file does not know what a job does.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from qlog.server.broker.outcome import Outcome
from qlog.storage.worker import ThreadWorker, Worker

T = TypeVar("T")

# Who waits holds a password and a connection; at 20 ms each this is longer than a client waits.
LINE_MAX = 1000


class Busy(Exception):
    """So many hashes wait that no more are taken."""


class Hashing(Protocol):
    """Makes hashes."""

    def submit(self, job: Callable[[], T], peer: str) -> Outcome[T]:
        """Run a job some time from now, or at once; the outcome is set on the loop's thread.

        Jobs of different peers take turns. Fails with Busy when the line is full, perhaps later.
        """

    def withdraw(self, outcome: Outcome[T], peer: str) -> bool:
        """Forget a job whose outcome nobody waits for. False: it has begun."""

    def progress(self) -> None:
        """Take what has been done since the last call."""

    def close(self) -> None:
        """Finish what has begun, forget the rest, and end."""


class InlineHashing:
    """Hashes on the caller's thread: for tests, and where nobody waits."""

    def submit(self, job: Callable[[], T], peer: str) -> Outcome[T]:
        outcome: Outcome[T] = Outcome()
        try:
            outcome.set(job())
        except Exception as error:  # noqa: BLE001 - handed over
            outcome.fail(error)
        return outcome

    def withdraw(self, outcome: Outcome[T], peer: str) -> bool:
        """It has begun."""
        return False

    def progress(self) -> None:
        """Nothing is ever left."""

    def close(self) -> None:
        """Nothing to end."""


@dataclass(slots=True, eq=False)
class _Job:
    run: Callable[[], Any]
    outcome: Outcome[Any]


class ThreadedHashing:
    """Hashes on threads of its own, which begin with the first one.

    Arguments: `notify` is called on such a thread when there is something for `progress`; `at_once`
    is the number of threads.
    """

    def __init__(
        self,
        notify: Callable[[], None],
        at_once: int = 0,
        new_worker: Callable[[str, Callable[[], None]], Worker] = ThreadWorker,
    ) -> None:
        self._notify = notify
        self._at_once = at_once or hashes_at_once()
        self._new_worker = new_worker
        self._workers: list[Worker] = []
        self._at_work: dict[Worker, _Job] = {}
        # By peer, whose turn it is first; of each in their order, by their outcomes.
        self._lines: OrderedDict[str, dict[Outcome[Any], _Job]] = OrderedDict()
        self._waiting = 0

    def submit(self, job: Callable[[], T], peer: str) -> Outcome[T]:
        """See `Hashing`."""
        outcome: Outcome[T] = Outcome()
        if self._waiting >= LINE_MAX and not self._make_room(peer):
            outcome.fail(Busy())
            return outcome
        self._lines.setdefault(peer, {})[outcome] = _Job(job, outcome)
        self._waiting += 1
        self._begin()
        return outcome

    def withdraw(self, outcome: Outcome[T], peer: str) -> bool:
        """See `Hashing`."""
        line = self._lines.get(peer)
        if line is None or line.pop(outcome, None) is None:
            return False
        self._waiting -= 1
        if not line:
            del self._lines[peer]
        return True

    def _make_room(self, peer: str) -> bool:
        """Give up the last job of who has most, for one of a peer who has none."""
        if peer in self._lines:
            return False
        line = max(self._lines.values(), key=len)
        if len(line) == 1:
            return False
        _, job = line.popitem()
        self._waiting -= 1
        job.outcome.fail(Busy())
        return True

    def _begin(self) -> None:
        """Give idle workers something to do."""
        while self._waiting and (worker := self._idle()) is not None:
            peer, line = self._lines.popitem(last=False)
            job = line.pop(next(iter(line)))
            self._waiting -= 1
            if line:
                self._lines[peer] = line  # behind the others
            self._at_work[worker] = job
            worker.submit(job.run)

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
        for worker in list(self._at_work):
            for result in worker.take():
                if result is not _MODEST:
                    done.append((self._at_work.pop(worker), result))
        if not done:
            return
        self._begin()
        for job, result in done:
            if isinstance(result, BaseException):
                job.outcome.fail(result if isinstance(result, Exception) else RuntimeError(result))
            else:
                job.outcome.set(result)

    def close(self) -> None:
        """See `Hashing`."""
        self._lines.clear()
        self._waiting = 0
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
