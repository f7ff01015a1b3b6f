"""What is measured: backlogs that differ in size, in queues, or in what was acknowledged."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

BODY_BYTES = 1024
# What a message of 1 KiB takes in a data directory, index and room to work included.
DISK_BYTES_EACH = 1400
DISK_BYTES_SPARE = 2 << 30
SPARSE_STEP = 10


def _all(tags: range) -> Iterator[int]:
    yield from tags


def _random_half(tags: range) -> Iterator[int]:
    chance = random.Random(tags.start)
    return (tag for tag in tags if chance.getrandbits(1))


def _sparse(tags: range) -> Iterator[int]:
    return (tag for tag in tags if tag % SPARSE_STEP == 0)


def _most(tags: range) -> Iterator[int]:
    return (tag for tag in tags if tag % SPARSE_STEP)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which messages of a backlog were acknowledged before the kill.

    Attributes:
        text: what the page calls it.
        select: of consecutive delivery tags those to be acknowledged.
        share: acknowledge within this part of the backlog; the rest is not delivered.
    """

    text: str
    select: Callable[[range], Iterator[int]]
    share: float = 1.0


NONE = "none"
PATTERNS = {
    NONE: Pattern("none", _all, 0.0),
    "in-order": Pattern("the first half, in order", _all, 0.5),
    "random": Pattern("every other one, at random", _random_half),
    "sparse": Pattern(f"every {SPARSE_STEP}th", _sparse),
    "most": Pattern(f"all but every {SPARSE_STEP}th", _most),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A backlog.

    Attributes:
        messages: how many are published, 1 KiB each.
        queues: over which they are spread in turn.
        acks: a name of PATTERNS.
    """

    messages: int
    queues: int = 1
    acks: str = NONE

    def __str__(self) -> str:
        queues = "1 queue" if self.queues == 1 else f"{self.queues:,} queues"
        return f"{self.messages:,} messages, {queues}, acks {self.acks}"

    @property
    def disk_bytes(self) -> int:
        """Free space that it needs."""
        return self.messages * DISK_BYTES_EACH + DISK_BYTES_SPARE


def sweep(
    messages: Sequence[int], queues: Sequence[int], acks: Sequence[str], across: Sequence[int]
) -> list[Case]:
    """The cases of a session: every size alone, and at some all numbers of queues and patterns.

    Args:
        messages: sizes of backlogs, in one queue and without acks.
        queues: numbers of queues, without acks, at each size of `across`.
        acks: names of patterns, in one queue, at each size of `across`.
        across: the sizes of backlogs at which queues and patterns are compared.
    """
    cases = [Case(count) for count in messages]
    cases += [Case(size, count) for size in across for count in queues]
    cases += [Case(size, 1, pattern) for size in across for pattern in acks]
    return list(dict.fromkeys(cases))
