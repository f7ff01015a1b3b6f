"""From a recording to images, and from images to what is wrong with them.

It promises: crash points of every kind that the recording has (kind of call, kind of file, before or
after it ended, which phase of the broker's life) come in turn, so that rare ones are among few
images; what was not synced is kept by turns wholly, not at all, and in random parts.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.images.check import open_image
from tests.images.directory import Directory, write
from tests.images.record import Recording
from tests.images.serve import LEDGER_SYNC_S

MEMORY = Path("/dev/shm")
KEPT = ("some", "none", "some", "all")
# An ack that was read is written within milliseconds and then synced within LEDGER_SYNC_S. The rest
# is room for a machine that has other things to do: such acks are known by the clock only.
ACK_WINDOW_S = LEDGER_SYNC_S + 0.5


def in_memory() -> Path | None:
    """A place for files that are read once: no disk is needed for them. None: the usual one."""
    return MEMORY if os.access(MEMORY, os.W_OK) else None


@dataclass(frozen=True, slots=True)
class Image:
    """One image and what came of it."""

    place: int  # it has the steps up to here
    kind: str
    kept: str
    messages: int
    violations: list[str]

    def __str__(self) -> str:
        return f"step {self.place} ({self.kind}), of the unsynced {self.kept}"


def chosen(places: dict[str, list[int]], count: int, choice: random.Random) -> dict[int, str]:
    """So many places, kind after kind, in their order."""
    pools = {kind: choice.sample(at, len(at)) for kind, at in places.items()}
    order = choice.sample(sorted(pools), len(pools))
    picked: dict[int, str] = {}
    while len(picked) < count and any(pools.values()):
        for kind in order:
            if pools[kind] and len(picked) < count:
                picked[pools[kind].pop()] = kind
    return dict(sorted(picked.items()))


def sweep(
    recording: Recording,
    picked: dict[int, str],
    workspace: Path,
    choice: random.Random,
    directory: Directory | None = None,
    ack_window_s: float = ACK_WINDOW_S,
) -> Iterator[Image]:
    """Build an image at each place, open it, and hold it against what was promised.

    A fifth of them is opened a second time: what was recovered is what a recovery finds. `workspace`
    holds one image at a time; one with violations stays there.
    """
    directory = directory or Directory(recording.data_dir)
    for place, _ in enumerate(recording.follow(directory)):
        if place not in picked:
            continue
        kept = choice.choice(KEPT)
        path = workspace / f"image.{place}"
        write(directory.image(choice, kept), path)
        messages = 0
        try:
            found = open_image(path)
            messages = sum(map(len, found.queues.values()))
            wrong = recording.promises.violations(place, found, ack_window_s)
            if choice.random() < 0.2 and open_image(path) != found:
                wrong.append("a second start finds something else")
        except Exception as error:  # noqa: BLE001 - whatever it is, the image did not open
            wrong = [f"it does not open: {type(error).__name__}: {error}"]
        if not wrong:
            shutil.rmtree(path)
        yield Image(place, picked[place], kept, messages, wrong)
