"""A thread that does one thing after another and says when something is done.

Results come back in the order of the jobs. This file does not know what a job does. Tests use a
worker that runs jobs when the test says so.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol


class Worker(Protocol):
    """Runs jobs, in order, away from the caller's thread. Not to be shared by two callers."""

    def submit(self, job: Callable[[], object]) -> None:
        """Run `job` some time from now."""

    def take(self) -> list[object]:
        """The results that came since the last call; an exception that a job raised is one."""

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until there is something to take; False when the time is over first."""

    def stop(self) -> None:
        """Finish what was submitted, and end."""


class ThreadWorker:
    """A worker with its own thread. `notify` is called on that thread after each result."""

    def __init__(self, name: str, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._results: deque[object] = deque()
        self._something = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], object]) -> None:
        self._jobs.put(job)

    def take(self) -> list[object]:
        results = []
        while self._results:
            results.append(self._results.popleft())
        return results

    def wait(self, timeout_s: float | None = None) -> bool:
        # Reset here and not by `take`, which is called in every turn: a result that comes in between
        # is among the results already.
        self._something.clear()
        return bool(self._results) or self._something.wait(timeout_s)

    def stop(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 - handed over, the caller decides
                result = error
            self._results.append(result)
            self._something.set()
            self._notify()
