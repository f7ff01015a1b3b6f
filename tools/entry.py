"""The `qlog` command: which of its parts is asked, before any of them is imported.

`qlog ctl` starts without the libraries that the other commands need. `run_tool` is what the
scripts of `qlog ctl install-aliases` call.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

_CTL = "qlog ctl"
# What `qlog help` knows beside its commands.
_OWN_HELP: tuple[list[str], ...] = ([], ["serve"], ["restore"], ["inspect"])


def main() -> None:
    """Run the command of this process, and end it."""
    argv = sys.argv[1:]
    if argv[:1] == ["ctl"]:
        run_tool("ctl", argv[1:], program=_CTL)
    if argv[:1] == ["top"]:
        from qlog.tools.ctl.top import main as top

        sys.exit(top(argv[1:]))
    if argv[:1] == ["help"]:
        if argv[1:] not in _OWN_HELP:
            run_tool("ctl", argv, program=_CTL)
        argv = [*argv[1:], "--help"]
    from qlog.tools.cli import app

    app(argv)


def run_tool(
    tool: str, argv: list[str], data_dir: str | None = None, program: str = ""
) -> NoReturn:
    """Run a tool (`ctl`, `diagnostics`, `queues`, `plugins`, `admin`), and end the process.

    `data_dir` is where the broker is, unless options or the environment say otherwise; `program`
    is what help calls the tool.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as `qlog ctl list_queues | head` expects
    if data_dir is not None:
        os.environ.setdefault("QLOG_DATA_DIR", data_dir)
    if tool == "ctl" and argv[:1] == ["install-aliases"]:
        from qlog.tools.ctl.aliases import install

        sys.exit(install(argv[1:]))
    if tool == "admin":
        from qlog.tools.ctl.admin import main as admin

        sys.exit(admin(argv))
    from qlog.tools.ctl.main import main as ctl

    sys.exit(ctl(tool, argv, program))
