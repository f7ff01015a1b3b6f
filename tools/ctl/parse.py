"""Arguments and options of a command line, in any order, as rabbitmqctl reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qlog.tools.ctl.command import BadUsage, Option

# All commands take these; for many of them they mean nothing.
EVERYWHERE = (
    Option("node", aliases=("-n",)),
    Option("vhost", aliases=("-p",)),
    Option("quiet", bool, ("-q",)),
    Option("silent", bool, ("-s",)),
    Option("longnames", bool, ("-l",)),
    Option("timeout", int, ("-t",)),
    Option("formatter"),
    Option("dry_run", bool),
    Option("help", bool, ("-?", "-h")),
    Option("table_headers", bool),
    Option("offline", bool),
    Option("online", bool),
    Option("erlang_cookie"),
    Option("script_name"),
    Option("printer"),
    Option("file"),
    Option("data_dir"),
    Option("url"),
)


class Parsed:
    """What a command line has: arguments, options by their names, and what is wrong with it."""

    def __init__(self) -> None:
        self.args: list[str] = []
        self.options: dict[str, Any] = {}
        self.invalid: list[tuple[str, str]] = []

    def check(self) -> None:
        """Raises BadUsage for options that are not known or have no value that fits."""
        if self.invalid:
            listed = "\n".join(f"{name} : {value}" for name, value in self.invalid)
            raise BadUsage(f"Invalid options for this command:\n{listed}")


def parse(argv: Sequence[str], options: Iterable[Option]) -> Parsed:
    """Read a command line. What follows `--` are arguments."""
    known = _by_flag([*EVERYWHERE, *options])
    parsed = Parsed()
    at = 0
    while at < len(argv):
        word = argv[at]
        at += 1
        if word == "--":
            parsed.args.extend(argv[at:])
            break
        if len(word) < 2 or not word.startswith("-") or _is_number(word):
            parsed.args.append(word)
            continue
        flag, equals, value = word.partition("=")
        found = known.get(flag)
        if found is None:
            parsed.invalid.append((flag, value))
            continue
        option, given = found
        if option.type is bool and not equals:
            parsed.options[option.name] = given
            continue
        if not equals:
            if at < len(argv) and not (argv[at].startswith("-") and argv[at] in known):
                value = argv[at]
                at += 1
            else:
                parsed.invalid.append((flag, ""))
                continue
        try:
            parsed.options[option.name] = _converted(option, value)
        except ValueError:
            parsed.invalid.append((flag, value))
    return parsed


def _by_flag(options: Iterable[Option]) -> dict[str, tuple[Option, bool]]:
    known: dict[str, tuple[Option, bool]] = {}
    for option in options:
        flag = option.name.replace("_", "-")
        for name in (f"--{flag}", *option.aliases):
            known[name] = (option, True)  # of two with one name, the command's own counts
        if option.type is bool:
            known[f"--no-{flag}"] = (option, False)
    return known


def _converted(option: Option, value: str) -> Any:
    if option.type is bool:
        return {"true": True, "false": False}[value] if value in ("true", "false") else True
    return option.type(value)


def _is_number(word: str) -> bool:
    return word[1:].replace(".", "", 1).isdigit()
