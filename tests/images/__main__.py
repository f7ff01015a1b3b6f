"""Record a real broker's system calls, and open its directory as a crash could have left it.

    python -m tests.images --seconds 10 --images 500 --recoveries 20

The recording has a run that ends in kill -9, the recovery from it, and a run that is stopped in
good order. Exit status 1 when an image did not open, or a promise was broken in it.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.images import trace
from tests.images.record import record
from tests.images.sweep import Image, chosen, in_memory, sweep, sweep_recoveries

IMAGES_EACH = 15  # of a recovery
PROGRESS_S = 10.0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="of load")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument(
        "--recoveries", type=int, default=20, help="images whose recovery is recorded, and crashes"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--keep", type=Path, help="where the recording and bad images stay")
    arguments = parser.parse_args()
    if reason := trace.missing():
        print(reason)
        return 2
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(dir=in_memory()) as temporary:
        workspace = arguments.keep or Path(temporary)
        workspace.mkdir(parents=True, exist_ok=True)
        choice = random.Random(arguments.seed)
        begin = time.monotonic()
        recording = record(workspace, seconds=arguments.seconds, seed=arguments.seed)
        places = recording.kinds
        print(
            f"recorded in {time.monotonic() - begin:.1f} s: {sum(map(len, places.values()))} crash "
            f"points of {len(places)} kinds; promised: {recording.promises.summary}",
            flush=True,
        )
        picked = chosen(places, arguments.images, choice)
        bad = report("images", sweep(recording, picked, workspace, choice), len(picked))
        picked = chosen(places, arguments.recoveries, choice)
        images = sweep_recoveries(recording, picked, workspace, choice, IMAGES_EACH)
        bad += report("images of recoveries", images, len(picked) * IMAGES_EACH)
    return 1 if bad else 0


def report(what: str, images: Iterator[Image], count: int) -> int:
    """Print how it goes; how many were bad."""
    begin = shown = time.monotonic()
    bad = done = messages = 0
    kept: Counter[str] = Counter()
    kinds: set[str] = set()
    for image in images:
        done += 1
        messages += image.messages
        kept[image.kept] += 1
        kinds.add(image.kind)
        if image.violations:
            bad += 1
            print(f"BAD {image}")
            for text in image.violations[:10]:
                print(f"    {text}")
        if time.monotonic() - shown > PROGRESS_S:
            shown = time.monotonic()
            print(f"{done} of {count} {what}, {bad} bad", flush=True)
    print(
        f"{done} {what} of {len(kinds)} kinds in {time.monotonic() - begin:.1f} s, "
        f"unsynced kept: {dict(kept)}; {messages} messages read; {bad} bad",
        flush=True,
    )
    return bad


if __name__ == "__main__":
    sys.exit(main())
