"""`qlog inspect`: what is in a data directory, sound or damaged, running, stopped or copied.

Promises to change nothing in it, but for `repair --accept-loss` and `rebuild-index`, which need that
no broker runs: no lock is taken, no file is written. One file a command; each imports what it needs when it
runs. What is found damaged is named, never left out.
"""

from __future__ import annotations

import typer

from qlog.tools.inspect.commands.catalog import catalog
from qlog.tools.inspect.commands.history import history
from qlog.tools.inspect.commands.index import index
from qlog.tools.inspect.commands.ledger import ledger
from qlog.tools.inspect.commands.message import message
from qlog.tools.inspect.commands.messages import messages
from qlog.tools.inspect.commands.queues import queues
from qlog.tools.inspect.commands.rebuild_index import rebuild_index
from qlog.tools.inspect.commands.repair import repair
from qlog.tools.inspect.commands.segments import segments
from qlog.tools.inspect.commands.summary import summary
from qlog.tools.inspect.commands.verify import verify
from qlog.tools.transfer.export import export
from qlog.tools.transfer.import_ import import_

app = typer.Typer(
    help="Look into a data directory, check it, and get messages out of it.",
    epilog="Exit status: 0 sound, 1 damage found, 2 wrong option or no such directory.",
    no_args_is_help=True,
)
_COMMANDS = (
    summary,
    segments,
    queues,
    messages,
    message,
    history,
    ledger,
    index,
    catalog,
    verify,
    repair,
    rebuild_index,
    export,
)
for command in _COMMANDS:
    app.command()(command)
app.command("import")(import_)
