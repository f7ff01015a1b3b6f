"""Long work on the loop, in slices: a task that lists much lets the others have their turn."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

import trio

T = TypeVar("T")

# A slice. Clients wait no longer than this for a listing, plus one item of it.
SLICE_S = 0.003
# Between two looks at the clock, where an item costs some microseconds and never more.
ITEMS_AT_ONCE = 32


class Pace:
    """Call `rest` after each small piece of work: it pauses when the slice is used up."""

    def __init__(self) -> None:
        self._until_s = time.perf_counter() + SLICE_S

    async def rest(self) -> None:
        """Let others have their turn, if it is time."""
        if time.perf_counter() >= self._until_s:
            await trio.lowlevel.checkpoint()
            self._until_s = time.perf_counter() + SLICE_S


async def paced(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, with pauses between them; an item may cost milliseconds (a history for a chart)."""
    pace = Pace()
    for item in items:
        yield item
        await pace.rest()
