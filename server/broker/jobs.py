"""Work that takes longer than a moment, in slices: nobody waits for the work of somebody else.

A job is an iterator that pauses (yields) after each small piece of its work. Its first slice is
taken at once, so that a small job is done when `start` returns. The rest goes on at the end of
turns, in rotation with the other jobs. `start_in_turn` is for jobs that may be thousands: as many
of them begin at once as there is time for in one turn. Promises that a slice is not much longer
than SLICE_S, and that a job's outcome is set when all of it is done, or has failed. A job itself
has to see to it that nobody sees half of its work: it changes in one piece what others can see.

A job that has to wait for something yields the outcome that it waits for, and goes on in a turn
after that is known. Until then it costs the loop nothing: it is not among the jobs that are asked.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

from qlog.server.broker.outcome import Outcome

T = TypeVar("T")

# The length of a slice. A job should yield about every tenth of a millisecond.
SLICE_S = 0.002
# The time of all jobs in one turn. The clients have the other half of the turn.
TURN_S = 0.005

# The iterator of a job; its return value is the job's outcome. It yields nothing, or the Outcome that
# it waits for (mypy allows a bare `yield` for None and Any alone).
Steps = Generator[Any, None, T]


def letting_go(things: Iterable[T]) -> Iterator[T]:
    """What `things` are now, one by one; each is held only until the next one is asked for.

    For jobs that end things, or at which they may end: freeing thousands at once, when the job is
    done, would be one long piece of work.
    """
    left = deque(things)

    def each() -> Iterator[T]:
        while left:
            yield left.popleft()

    return each()


class Job(Generic[T]):
    """One piece of work that is under way. `awaited`: what it waits for before its next step."""

    __slots__ = ("_clock_s", "_steps", "awaited", "outcome")

    def __init__(self, steps: Steps[T], clock_s: Callable[[], float]) -> None:
        self.outcome: Outcome[T] = Outcome()
        self.awaited: Outcome[Any] | None = None
        self._steps = steps
        self._clock_s = clock_s

    def step(self, until_s: float) -> bool:
        """Work until about `until_s`, or as far as it goes without waiting.

        True: it is done, and its outcome is set.
        """
        clock_s = self._clock_s
        try:
            while True:
                awaited: Outcome[Any] | None = next(self._steps)
                if awaited is not None and not awaited.done:
                    self.awaited = awaited
                    return False
                if clock_s() >= until_s:
                    return False
        except StopIteration as stop:
            value: T = stop.value
        except Exception as error:  # noqa: BLE001 - whoever started it hears of it
            self.outcome.fail(error)
            return True
        self.outcome.set(value)
        return True


class Jobs:
    """The jobs of a broker. `clock_s` is a clock in seconds, for the length of slices alone.

    `len` is how many can go on: those that wait for an outcome do not count.
    """

    def __init__(self, clock_s: Callable[[], float] = time.perf_counter) -> None:
        self.clock_s = clock_s
        self._ready: deque[Job[Any]] = deque()  # in the order of their turns
        self._burst_end_s = 0.0  # until then the jobs of `start_in_turn` share TURN_S
        self._burst_left_s = 0.0

    def __len__(self) -> int:
        return len(self._ready)

    def start(self, steps: Steps[T]) -> Outcome[T]:
        """Begin; the outcome may be there already."""
        job = Job(steps, self.clock_s)
        self._step(job, self.clock_s() + SLICE_S)
        return job.outcome

    def later(self, steps: Steps[None]) -> None:
        """Begin with the next `run`. Nobody waits for the outcome: an error is logged."""
        self._ready.append(Job(steps, self.clock_s))

    def start_in_turn(self, steps: Steps[T]) -> Outcome[T]:
        """Begin at once, or, if many have begun so in this moment, in a turn soon.

        For what a client leaves behind: it may be thousands of things, each of them little work.
        Whatever the job is about may have changed when it begins.
        """
        began_s = self.clock_s()
        if began_s >= self._burst_end_s:
            self._burst_end_s = began_s + 2 * TURN_S
            self._burst_left_s = TURN_S
        if self._burst_left_s > 0:
            outcome = self.start(steps)
            self._burst_left_s -= self.clock_s() - began_s
            return outcome
        job = Job(steps, self.clock_s)
        self._ready.append(job)
        return job.outcome

    def run(self, most_s: float = TURN_S) -> None:
        """A slice for each job in rotation, for `most_s` seconds in all."""
        ready, clock_s = self._ready, self.clock_s
        until_s = clock_s() + most_s
        for _ in range(len(ready)):
            self._step(ready.popleft(), min(clock_s() + SLICE_S, until_s))
            if clock_s() >= until_s:
                return

    def _step(self, job: Job[Any], until_s: float) -> None:
        """A slice of a job, which then has its next turn, waits, or is done."""
        if job.step(until_s):
            return
        awaited, job.awaited = job.awaited, None
        if awaited is None:
            self._ready.append(job)
        else:
            awaited.then(lambda _: self._ready.append(job))
