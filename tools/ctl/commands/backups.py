"""Backups of the data directory of a running broker."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from qlog.tools.ctl.command import Call, Command, Document, Failure, Option, Status

# How often the broker is asked whether it is done.
LOOK_S = 0.2
# A wait for the disk that takes so long is said.
WAITED_S = 2.0
WAITS = (
    "waiting: the backup begins when what came before it is on the disk "
    "(is that full? see `qlog ctl alarms` and the log)"
)


def backup(call: Call) -> Document:
    """Begin one and wait for its end. The broker goes on with it if the command is broken off."""
    body: dict[str, Any] = {"directory": os.path.abspath(call.args[0])}
    if "bytes_per_s" in call.options:
        body["bytes_per_s"] = call.options["bytes_per_s"]
    state = call.ask("POST", "qlog", "backups", body=body)
    waited_s = 0.0
    while state["state"] == "running":
        time.sleep(LOOK_S)
        before_s, waited_s = waited_s, waited_s + LOOK_S if state.get("waits") else 0.0
        if before_s < WAITED_S <= waited_s:
            print(WAITS, file=sys.stderr)
        state = call.get("qlog", "backups")
    if state["state"] != "made":
        raise Failure(state.get("reason", "the broker was started anew"), Status.UNAVAILABLE)
    return Document(
        state,
        f"{state['files']} files, {state['bytes']} bytes; "
        f"{state['files_copied']} of them, {state['bytes_copied']} bytes, were copied",
    )


COMMANDS = (
    Command(
        "backup",
        "Nodes",
        "Makes a backup of the running broker, or brings the one that is there up to date",
        backup,
        usage="<directory> [--bytes-per-s <n>]",
        args=(1, 1),
        banner="Making a backup of node {node} in {0} ...",
        options=(Option("bytes_per_s", int, about="how fast is copied; 0: as fast as can be"),),
        arguments={"<directory>": "on the broker's machine; its user must be able to write there"},
        examples=("backup /backups/qlog", "-q backup /backups/qlog --formatter json"),
    ),
)
