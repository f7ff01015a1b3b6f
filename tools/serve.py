"""`qlog serve`: the daemon on a terminal or under a supervisor.

Exit status: 0 after SIGTERM or SIGINT, 1 when it cannot start (one line on stderr says why), 2 for
wrong options, 74 (EX_IOERR) when the disk failed while it ran.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from qlog import __version__

if TYPE_CHECKING:
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
        str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")
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

    _tune_interpreter()
    _raise_descriptor_limit()
    _log_to_stderr(settings.log_level)
    try:
        trio.run(_serve, settings)
    except StorageError as error:
        _stop(str(error), 1)
    except StorageFailed as error:
        _stop(f"the disk failed: {error}", EXIT_IO_ERROR)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _stop(
            f"cannot start on {settings.host}:{settings.port}{where}: {error.strerror or error}", 1
        )


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
    import signal

    import trio

    from qlog.server.app import open_broker

    logger = logging.getLogger("qlog")
    async with AsyncExitStack() as until_stopped, open_broker(settings) as broker:
        # Received until all is written: a second signal does not break off what the first began.
        # After that there is only the exit status left to give, which none is to take away.
        numbers = (signal.SIGTERM, signal.SIGINT)
        until_stopped.callback(lambda: [signal.signal(one, signal.SIG_IGN) for one in numbers])
        signals = until_stopped.enter_context(trio.open_signal_receiver(*numbers))
        until_stopped.push_async_callback(_take_all, signals)
        # Printed whatever the log level: scripts and supervisors wait for this line.
        print(f"Server startup complete, listening on {' '.join(broker.urls)}", file=sys.stderr)
        async with trio.open_nursery() as nursery:

            async def on_signal() -> None:
                async for number in signals:
                    logger.info("stopping signal=%s", signal.Signals(number).name)
                    nursery.cancel_scope.cancel()

            async def on_failure() -> None:
                await broker.failed.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(on_signal)
            nursery.start_soon(on_failure)


async def _take_all(signals: AsyncIterator[int]) -> None:
    """Take signals that came while it stopped: trio would raise those again that nobody took."""
    import trio

    with trio.move_on_after(0.01):
        async for _ in signals:
            pass
