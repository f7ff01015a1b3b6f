"""Backups of the data directory: begun, and looked at. For its owner, whose files are written."""

from __future__ import annotations

from typing import Any

from qlog.server.broker.operations import BackupError
from qlog.server.http.access import THE_OWNER
from qlog.server.http.answers import Answer, encode
from qlog.server.http.ask import Ask, required
from qlog.server.http.refusals import bad_request, not_authorised
from qlog.server.http.table import Endpoint

# How fast is copied if nothing is said: a backup takes long rather than publishers wait.
BYTES_PER_S = 64 << 20


def _owner(ask: Ask) -> None:
    """Raises 401 for everybody else."""
    if ask.identity is not THE_OWNER:
        raise not_authorised("only the owner of the data directory may do that, by its socket")


async def begin(ask: Ask) -> Answer:
    """Begin a backup: 202, and `state` says what becomes of it."""
    _owner(ask)
    document = await ask.document()
    (directory,) = required(document, "directory")
    bytes_per_s = document.get("bytes_per_s", BYTES_PER_S)
    if not isinstance(directory, str) or type(bytes_per_s) is not int or "\0" in directory:
        raise bad_request("directory is a path, bytes_per_s a whole number")
    try:
        ask.operations.back_up(directory, bytes_per_s)
    except BackupError as error:
        raise bad_request(str(error)) from error
    ask.wake()
    return Answer(202, encode(_state(ask)))


async def look(ask: Ask) -> dict[str, Any]:
    """What became of the last backup since the broker has started."""
    _owner(ask)
    return _state(ask)


def _state(ask: Ask) -> dict[str, Any]:
    """`state`: none, running, made or failed; with the numbers, or why not."""
    last = ask.operations.last_backup
    if last is None:
        return {"state": "none"}
    directory, outcome = last
    about = {"directory": str(directory)}
    if not outcome.done:
        return {"state": "running", **about, "waits": ask.operations.backup_waits}
    try:
        done = outcome.result()
    except Exception as error:  # noqa: BLE001 - it is told
        return {"state": "failed", **about, "reason": str(error)}
    return {
        "state": "made",
        **about,
        "files": done.files,
        "bytes": done.bytes,
        "files_copied": done.files_copied,
        "bytes_copied": done.bytes_copied,
    }


ENDPOINTS = [
    Endpoint(
        "POST",
        "/qlog/backups",
        begin,
        "Begin a backup of the data directory (by the owner's socket)",
        body={
            "directory": {"type": "string", "description": "an absolute path on the broker"},
            "bytes_per_s": {"type": "integer", "description": "how fast is copied; 0: as can be"},
        },
        required=("directory",),
        status=202,
    ),
    Endpoint("GET", "/qlog/backups", look, "What became of the last backup"),
]
