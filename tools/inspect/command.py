"""The options that every `qlog inspect` command has, and how it ends.

Exit status: 0 when everything that was looked at is sound, 1 when damage was found, 2 for a wrong
option, a directory that cannot be inspected, or a report that cannot be written (one line on stderr
says why).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.rows import Report

DataDir = Annotated[
    Path,
    typer.Option(
        metavar="DIR",
        envvar="QLOG_DATA_DIR",
        help="The data directory of a running or stopped broker, or a copy of one.",
    ),
]
OfVhost = Annotated[str, typer.Option("--vhost", help="The vhost of the queue.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DATA_DIR_DEFAULT = Path("qlog-data")


def look_at(data_dir: Path) -> Directory:
    """Read the directory's definitions and state, or end with status 2."""
    from qlog.storage.errors import StorageError
    from qlog.tools.inspect.look.directory import Directory
    from qlog.tools.inspect.look.environment import Forbidden

    try:
        return Directory(data_dir)
    except (StorageError, Forbidden) as error:
        stop(str(error))
    except PermissionError as error:
        stop_for_rights(error)


def find_lanes(directory: Directory, vhost: str, queue: str) -> frozenset[int]:
    """The lanes of a queue, or end with status 2."""
    lane_ids = frozenset(
        lane_id
        for lane_id, owner in directory.owners.items()
        if (owner.vhost, owner.name) == (vhost, queue)
    )
    if not lane_ids:
        facts = directory.catalog_facts
        why = "; the catalog is damaged" if facts.damaged or facts.identity is None else ""
        others = sorted(owner.vhost for owner in facts.queues if owner.name == queue)
        if others:
            why += f" (but there is one in '{others[0]}': give --vhost)"
        stop(f"no durable queue '{queue}' in vhost '{vhost}'{why}; see `qlog inspect queues`")
    return lane_ids


def finish(report: Report, *, as_json: bool) -> None:
    """Print the report and end with the status that it deserves."""
    with writing_stdout(report.summary):
        report.show(as_json=as_json)
    if report.damage:
        raise typer.Exit(1)


@contextmanager
def writing_stdout(done: str = "") -> Iterator[None]:
    """What is printed inside is written at its end, or the command ends.

    `done` is what it has done, for those who cannot read the report.
    """
    if sys.stdout is None:
        stop_for_stdout("it is closed", done)
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        stop_for_pipe()
    except OSError as error:
        stop_for_stdout(error.strerror, done)


def stop_for_rights(error: PermissionError) -> NoReturn:
    """End because a file may not be read."""
    stop(f"{error.filename} cannot be opened with these rights; run as the broker's user")


def stop_for_pipe() -> NoReturn:
    """End as programs do whose reader has gone (`| head`): that is neither sound nor damage."""
    _discard_stdout()
    raise typer.Exit(128 + signal.SIGPIPE)


def stop_for_stdout(why: str | None, done: str = "") -> NoReturn:
    """End because what there is to say cannot be written."""
    if sys.stdout is not None:
        _discard_stdout()
    stop(f"{done}; stdout cannot be written: {why}".removeprefix("; "))


def _discard_stdout() -> None:
    """Python writes what is left in its buffer when it ends; that must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stop(message: str) -> NoReturn:
    """End with one line."""
    print(f"qlog: {message}", file=sys.stderr)
    raise typer.Exit(2)
