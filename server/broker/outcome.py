"""The result or the error of an operation, which is known at once or later.

Operations answer by an `Outcome`. The caller need not know whether the work was a few lines, a job
of many slices (jobs.py), or a wait for the disk (durability.py). Promises that no error is lost:
one that nobody asked for is logged when its outcome is forgotten, as asyncio's futures do it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

logger = logging.getLogger("qlog.broker")

T = TypeVar("T")


class Outcome(Generic[T]):
    """See the head of this file. `done`: the result or the error is known."""

    __slots__ = ("_calls", "_error", "_heard", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: Exception | None = None
        self._heard = False  # somebody has asked for the error, or took it over
        self._calls: list[Callable[[Outcome[T]], None]] = []

    @classmethod
    def of(cls, value: T) -> Outcome[T]:
        """An outcome that is known already."""
        outcome = cls()
        outcome.set(value)
        return outcome

    def set(self, value: T) -> None:
        """The operation is done, with this result."""
        self._value = value
        self._settle()

    def fail(self, error: Exception) -> None:
        """The operation has failed."""
        self._error = error
        self._settle()

    def follow(self, other: Outcome[T]) -> None:
        """What came of another that is done comes of this one."""
        assert other.done
        other._heard = True
        self._value, self._error = other._value, other._error
        self._settle()

    @property
    def succeeded(self) -> bool:
        """Whether there is a result."""
        return self.done and self._error is None

    @property
    def error(self) -> Exception | None:
        """Why the operation has failed; None: there is a result.

        An error that is raised knows the frames that it passed, and they know the outcome: such a
        cycle is freed only by the collector.
        """
        assert self.done
        self._heard = True
        return self._error

    @property
    def effect(self) -> Outcome[T]:
        """What comes of it as far as others see it, perhaps known before it may be told."""
        return self

    def _settle(self) -> None:
        assert not self.done
        self.done = True
        calls, self._calls = self._calls, []
        for call in calls:
            call(self)

    def result(self) -> T:
        """The result. Raises the error if the operation has failed."""
        assert self.done
        self._heard = True
        if self._error is not None:
            raise self._error
        return cast(T, self._value)

    def __del__(self) -> None:
        if self._error is not None and not self._heard:
            logger.error("an operation failed that nobody waited for", exc_info=self._error)

    def then(self, call: Callable[[Outcome[T]], None]) -> None:
        """Have `call` called when the outcome is known; at once, if it is."""
        if self.done:
            call(self)
        else:
            self._calls.append(call)


class Durable(Outcome[T]):
    """An outcome that is told only when it is durable. Its effect counts before."""

    __slots__ = ("_effect",)

    def __init__(self, effect: Outcome[T]) -> None:
        super().__init__()
        self._effect = effect

    @property
    def effect(self) -> Outcome[T]:
        return self._effect


def all_of(outcomes: Sequence[Outcome[Any]]) -> Outcome[None]:
    """Done when all of these are; fails with the error of the last one that failed."""
    together: Outcome[None] = Outcome()
    left = len(outcomes)
    failure: Exception | None = None

    def one_is_done(outcome: Outcome[Any]) -> None:
        nonlocal left, failure
        left -= 1
        failure = outcome.error or failure
        if not left:
            if failure is None:
                together.set(None)
            else:
                together.fail(failure)

    if not outcomes:
        together.set(None)
    for outcome in outcomes:
        outcome.then(one_is_done)
    return together
