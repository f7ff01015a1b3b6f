"""From a recording to images, and from images to what is wrong with them.

It promises: crash points of every kind that the recording has (kind of call, kind of file, before or
after it ended, which phase of the broker's life) come in turn, so that rare ones are among few
images; what was not synced is kept by turns wholly, not at all, and in random parts.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.images import trace
from tests.images.check import open_image
from tests.images.directory import Directory, write
from tests.images.record import Recording, kind_of
from tests.images.serve import LEDGER_SYNC_S
from tests.live.server import ROOT

MEMORY = Path("/dev/shm")
KEPT = ("some", "none", "some", "all")
# An ack that was read is written within milliseconds and then synced within LEDGER_SYNC_S. The rest
# is room for a machine that has other things to do: such acks are known by the clock only.
ACK_WINDOW_S = LEDGER_SYNC_S + 0.5


def in_memory() -> Path | None:
    """A place for files that are read once: no disk is needed for them. None: the usual one."""
    return MEMORY if os.access(MEMORY, os.W_OK) else None


@dataclass(slots=True)
class Image:
    """One image and what came of it."""

    place: int  # it has the steps up to here
    kind: str
    kept: str
    messages: int = 0
    violations: list[str] = field(default_factory=list)

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
        again = choice.random() < 0.2
        yield _judge(recording, Image(place, picked[place], kept), path, ack_window_s, again)


def sweep_recoveries(
    recording: Recording,
    picked: dict[int, str],
    workspace: Path,
    choice: random.Random,
    images_each: int,
) -> Iterator[Image]:
    """Recover an image at each place, recording that, and sweep the images of the recovery.

    What is lost first by the one crash and then by another must still not be what was promised.
    """
    directory = Directory(recording.data_dir)
    for place, _ in enumerate(recording.follow(directory)):
        if place not in picked:
            continue
        kept = choice.choice(("none", "some"))
        image = directory.image(choice, kept)
        path = workspace / f"recovered.{place}"
        write(image, path)
        log = workspace / "trace.recovery"
        subprocess.run(
            [*trace.command(log), sys.executable, "-m", "tests.images.check", str(path)],
            cwd=ROOT,
            check=True,
        )
        steps = trace.read(log)
        names = Directory(path, before=image)
        places = [at for at, step in enumerate(steps) if names.follow(step)]
        stops = set(choice.sample(places, min(images_each, len(places))))
        second = Directory(path, before=image)
        for at, step in enumerate(steps):
            name = second.follow(step)
            if at not in stops:
                continue
            kept_then = choice.choice(KEPT)
            target = workspace / f"image.{place}.{at}"
            write(second.image(choice, kept_then), target)
            kind = f"{picked[place]}, then in its recovery, {step.call.name} {kind_of(name)}"
            result = Image(place, kind, f"{kept}, then {kept_then}")
            yield _judge(recording, result, target, ACK_WINDOW_S, again=False)
        shutil.rmtree(path)


def _judge(
    recording: Recording, image: Image, path: Path, ack_window_s: float, again: bool
) -> Image:
    """Open the image at `path`; what is wrong with it. It is removed if nothing is."""
    try:
        found = open_image(path)
        image.messages = sum(map(len, found.queues.values()))
        image.violations = recording.promises.violations(image.place, found, ack_window_s)
        if again and open_image(path) != found:
            image.violations.append("a second start finds something else")
    except Exception as error:  # noqa: BLE001 - whatever it is, the image did not open
        image.violations.append(f"it does not open: {type(error).__name__}: {error}")
    if not image.violations:
        shutil.rmtree(path)
    return image
