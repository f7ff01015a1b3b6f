"""Ctrl-C, for commands that end where they can go on: the first one is noted, the second one ends."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _nothing() -> None:
    """Nothing is said."""


@contextmanager
def patiently(say: Callable[[], None] = _nothing) -> Iterator[Callable[[], bool]]:
    """A function that tells whether there was a Ctrl-C. Only a second one interrupts.

    `say` is called at the first.
    """
    noted = False

    def note(number: int, frame: object) -> None:
        nonlocal noted
        noted = True
        signal.signal(signal.SIGINT, before)
        say()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, before)
