"""`qlog inspect`: what is in a data directory, sound or damaged, running, stopped or copied.

Promises to change nothing in the directory: no lock is taken, and no file is written. The
exceptions are `repair --accept-loss` and `rebuild-index`, which need that no broker runs. Damage
is named, never left out. Each command has a file of its own, which is imported when the command is
asked for, so that all start fast.
"""

from importlib import import_module
from typing import Any

import typer
import typer.core
import typer.main

# In the order of the help. A command's function is named as its module is.
_COMMANDS = {
    **{
        name: f"qlog.tools.inspect.commands.{name.replace('-', '_')}"
        for name in (
            *("summary", "segments", "queues", "streams", "messages", "message", "history"),
            *("ledger", "index", "catalog", "verify", "repair", "rebuild-index"),
        )
    },
    "export": "qlog.tools.transfer.export",
    "import": "qlog.tools.transfer.import_",
}


class _Commands(typer.core.TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; None when there is none."""
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        one = typer.Typer(
            add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
        )
        one.command(cmd_name)(getattr(import_module(module), module.rpartition(".")[2]))
        return typer.main.get_command(one)


app = typer.Typer(
    cls=_Commands,
    help="Look into a data directory, check it, and get messages out of it.",
    epilog="Exit status: 0 sound, 1 damage found, 2 wrong option or no such directory.",
    no_args_is_help=True,
)
