"""What may follow the commands of `qlog` but `ctl`, as they say it themselves.

`python -m tests.tools.ctl.words && ruff format tools/ctl/words.py` makes tools/ctl/words.py of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer.main

from qlog.tools import cli
from qlog.tools.ctl import words
from qlog.tools.ctl.top import OPTIONS


def words_behind() -> dict[tuple[str, ...], list[str]]:
    """The commands or the long options behind each."""
    found: dict[tuple[str, ...], list[str]] = {}
    group: Any = typer.main.get_command(cli.app)
    inspect = cli._inspect()
    with group.make_context("qlog", [], resilient_parsing=True) as context:
        for name in ("serve", "restore"):
            found[name,] = _options(group.get_command(context, name), context)
        found["inspect",] = inspect.list_commands(context)
        for name in found["inspect",]:
            found["inspect", name] = _options(inspect.get_command(context, name), context)
    found["top",] = ["--data-dir", "--url", *(f"--{option.name}" for option in OPTIONS)]
    return found


def _options(command: Any, context: Any) -> list[str]:
    params = command.get_params(context)
    return [flag for param in params for flag in param.opts if flag.startswith("--")]


def _write() -> None:
    """Write the module anew: its head, and what there is now."""
    path = Path(words.__file__)
    head, _, _ = path.read_text().partition("BEHIND:")
    rows = "".join(f"    {name!r}: {found!r},\n" for name, found in words_behind().items())
    path.write_text(f"{head}BEHIND: Mapping[tuple[str, ...], list[str]] = {{\n{rows}}}\n")


if __name__ == "__main__":
    _write()
