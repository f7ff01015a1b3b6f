"""Asks a broker for its answers: `python -m tests.live.behaviours.ask URL [FILE]`.

Without a file the answers that differ from answers.json are printed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.live.behaviours.cases import all_cases
from tests.live.behaviours.play import Stage

ANSWERS = Path(__file__).with_name("answers.json")


def main(url: str, file: str | None = None) -> None:
    with Stage(url) as stage:
        answers = {name: stage.play(steps) for name, steps in all_cases().items()}
    if file is not None:
        text = json.dumps(answers, indent=1, ensure_ascii=False, sort_keys=True)
        Path(file).write_text(text + "\n", encoding="utf-8")
        return
    known = json.loads(ANSWERS.read_text(encoding="utf-8"))
    for name, lines in answers.items():
        if lines != known.get(name):
            print(f"{name}\n  known: {known.get(name)}\n  now:   {lines}")


if __name__ == "__main__":
    main(*sys.argv[1:])
