"""`qlog inspect`: what is in a data directory, sound or damaged, running, stopped or copied.

Promises to change nothing in it, but for `repair --accept-loss` and `rebuild-index`, which need that
no broker runs: no lock is taken, no file is written. One file a command; each imports what it needs when it
runs. What is found damaged is named, never left out.
"""

from __future__ import annotations

import typer

from qlog.tools.inspect.catalog import catalog
from qlog.tools.inspect.export import export
from qlog.tools.inspect.history import history
from qlog.tools.inspect.import_ import import_
from qlog.tools.inspect.index import index
from qlog.tools.inspect.ledger import ledger
from qlog.tools.inspect.message import message
from qlog.tools.inspect.messages import messages
from qlog.tools.inspect.queues import queues
from qlog.tools.inspect.rebuild_index import rebuild_index
from qlog.tools.inspect.repair import repair
from qlog.tools.inspect.segments import segments
from qlog.tools.inspect.summary import summary
from qlog.tools.inspect.verify import verify

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
