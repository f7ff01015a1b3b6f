"""`qlog serve`: the daemon on a terminal or under a supervisor.

Exit status: 0 after SIGTERM or SIGINT, 1 when it cannot start (one line on stderr says why), 2 for
wrong options, 74 (EX_IOERR) when the disk failed while it ran.
"""

from __future__ import annotations

import gc
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from qlog import __version__

if TYPE_CHECKING:
    import trio

    from qlog.server.config import Settings

EXIT_IO_ERROR = 74


def serve(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where everything is kept; created if missing. [default: ./qlog-data]",
            metavar="DIR",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Addresses to listen on, separated by commas. [default: 127.0.0.1]"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 picks a free one. [default: 5672]")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="QLOG_CONFIG", metavar="FILE.toml", help="Read settings from a TOML file."
        ),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error. [default: info]")
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Run the broker until SIGTERM or Ctrl-C.

    Every setting can also be given as QLOG_… in the environment.
    """
    if version:
        typer.echo(f"qlog {__version__}")
        return
    from qlog.server import config as configuration
    from qlog.storage.errors import StorageError

    try:
        settings = configuration.load(
            config_file=config,
            options={"data_dir": data_dir, "host": host, "port": port, "log_level": log_level},
        )
    except configuration.ConfigError as error:
        _stop(str(error), 2)
    import trio

    from qlog.server.app import StorageFailed
    from qlog.server.net.listen import CannotListen

    _tune_interpreter()
    _raise_descriptor_limit()
    _log_to_stderr(settings.log_level)
    try:
        trio.run(_serve, settings)
    except StorageError as error:
        _stop(str(error), 1)
    except StorageFailed as error:
        _stop(f"the disk failed: {error}", EXIT_IO_ERROR)
    except CannotListen as error:
        _stop(str(error), 1)
    except OSError as error:
        where = f" {error.filename}:" if error.filename else ""
        _stop(f"cannot start:{where} {error.strerror or error}", 1)
    finally:
        _ignore_signals()


def _stop(message: str, status: int) -> NoReturn:
    print(f"qlog: {message}", file=sys.stderr)
    raise typer.Exit(status)


def _tune_interpreter() -> None:
    """Messages come and go by the hundred thousand and form no cycles: collecting garbage for each
    700 of them costs a tenth of the time. And the commit thread, back from the disk, should
    not wait the usual 5 ms for its turn: publishers wait for what it has to say."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    sys.setswitchinterval(0.0005)


def _raise_descriptor_limit() -> None:
    """As many clients as may be: the soft limit is there for programs that use `select`."""
    import resource
    from contextlib import suppress

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS takes no more than `kern.maxfilesperproc`
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


class _OneLine(logging.Formatter):
    """A message is one line of plain text, whatever names clients gave; tracebacks may follow."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line."""
        line = super().formatMessage(record)
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


async def _serve(settings: Settings) -> None:
    import trio

    from qlog.server.app import open_broker

    async with open_broker(settings) as broker:
        with trio.CancelScope() as serving:
            _stop_by_signal(serving)
            # Printed whatever the log level: scripts and supervisors wait for this line.
            urls = " ".join(broker.urls)
            print(f"Server startup complete, listening on {urls}", file=sys.stderr)
            await broker.failed.wait()


def _stop_by_signal(serving: trio.CancelScope) -> None:
    """Have SIGTERM and SIGINT end what is in the scope, and nothing from then on: a second signal
    does not break off what the first began, nor change the exit status."""
    import signal
    from contextlib import suppress

    import trio

    def stop(number: int) -> None:
        if not serving.cancel_called:
            logging.getLogger("qlog").info("stopping signal=%s", signal.Signals(number).name)
            serving.cancel()

    def received(number: int, frame: object) -> None:
        _ignore_signals()
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(stop, number)

    token = trio.lowlevel.current_trio_token()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, received)


def _ignore_signals() -> None:
    """It ends anyway."""
    import signal

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
