"""What all commands of `qlog inspect` have in common: options, one look at a directory, the end.

Exit status: 0 when everything that was looked at is sound, 1 when damage was found, 2 for a wrong
option, a directory that cannot be inspected, or a report that cannot be written (one line on stderr
says why).
"""

import inspect
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from qlog.storage.errors import CorruptLog, DirectoryLocked, StorageError
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.environment import Forbidden
from qlog.tools.inspect.rows import Report

DataDir = Annotated[
    Path,
    typer.Option(
        metavar="DIR",
        envvar="QLOG_DATA_DIR",
        help="The data directory of a running or stopped broker, or a copy of one.",
    ),
]
OfQueue = Annotated[
    str | None, typer.Option("--queue", metavar="NAME", help="Only what concerns this queue.")
]
OfVhost = Annotated[str, typer.Option("--vhost", help="The vhost of the queue.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
DATA_DIR_DEFAULT = Path("qlog-data")


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command that looks at a directory: `function(directory, report, options…)`.

    The command has --data-dir and --json beside the options of the function. The function fills in
    the report, and may raise StorageError, Forbidden and PermissionError, which end with one line.
    Its name is the name of the command. It may have an argument `as_json`.
    """
    signature = inspect.signature(function, eval_str=True)
    _, _, *own = signature.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    data_dir = inspect.Parameter("data_dir", keyword, default=DATA_DIR_DEFAULT, annotation=DataDir)
    as_json = inspect.Parameter("as_json", keyword, default=False, annotation=AsJson)
    takes_json = "as_json" in signature.parameters
    options = [data_dir, *own, *([] if takes_json else [as_json])]
    options = [option.replace(kind=keyword) for option in options]

    @wraps(function)
    def run(data_dir: Path, as_json: bool, **given: Any) -> None:
        with errors_told():
            directory = Directory(data_dir)
            report = Report(function.__name__, directory)
            function(directory, report, **given, **({"as_json": as_json} if takes_json else {}))
        finish(report, as_json=as_json)

    run.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


@contextmanager
def errors_told(*, of_damage: bool = True) -> Iterator[None]:
    """An error that ends a command becomes one line, and status 2.

    `of_damage`: so does CorruptLog; otherwise it is passed on.
    """
    try:
        yield
    except DirectoryLocked:
        stop("a broker runs on the directory; stop it first (`qlog ctl shutdown`)")
    except (StorageError, Forbidden) as error:
        if isinstance(error, CorruptLog) and not of_damage:
            raise
        stop(str(error))
    except PermissionError as error:
        stop(f"{error.filename} cannot be opened with these rights; run as the broker's user")
    except OSError as error:
        stop(f"{error.filename}: {error.strerror}")


def find_lanes(directory: Directory, vhost: str, queue: str) -> frozenset[int]:
    """The lanes of a queue, or end with status 2."""
    lane_ids = frozenset(
        lane_id
        for lane_id, owner in directory.owners.items()
        if (owner.vhost, owner.name) == (vhost, queue)
    )
    if not lane_ids:
        why = "; the ledger is damaged" if directory.ledger.damaged else ""
        others = sorted(one.vhost for one in directory.defined.queues if one.name == queue)
        if others:
            why += f" (but there is one in '{others[0]}': give --vhost)"
        stop(f"no durable queue '{queue}' in vhost '{vhost}'{why}; see `qlog inspect queues`")
    return lane_ids


def finish(report: Report, *, as_json: bool) -> None:
    """Print the report and end with the status that it deserves."""
    with writing_stdout(report.summary):
        report.show(as_json=as_json)
    if report.all_damage:
        raise typer.Exit(1)


@contextmanager
def writing_stdout(done: str = "") -> Iterator[None]:
    """What is printed inside is written at the end of the block. If it cannot be, the command ends.

    `done` says what the command has done, in case the report cannot be read. A reader that has gone
    (`| head`) ends it as it ends other programs: the status says nothing of damage. PermissionError
    is not of stdout, and passed on.
    """
    why: str | None = "it is closed"
    if sys.stdout is not None:
        try:
            yield
            sys.stdout.flush()
            return
        except PermissionError:
            raise
        except OSError as error:
            # Python would write what is left in the buffer at its end, and fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                raise typer.Exit(128 + signal.SIGPIPE) from error
            why = error.strerror
    stop(f"{done}; stdout cannot be written: {why}".removeprefix("; "))


def stop(message: str) -> NoReturn:
    """End with one line."""
    print(f"qlog: {message}", file=sys.stderr)
    raise typer.Exit(2)
