"""`qlog serve`: the daemon on a terminal or under a supervisor.

Exit status: 0 after SIGTERM or SIGINT, 1 when it cannot start (one line on stderr says why), 2 for
wrong options, 74 (EX_IOERR) when the disk failed while it ran. No other signal that can be caught
ends it, and nothing that is wrong with stderr does.
"""

from __future__ import annotations

import gc
import inspect
import logging
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core
import typer.main

from qlog import __version__

if TYPE_CHECKING:
    import trio

    from qlog.server.app import RunningBroker
    from qlog.server.config import Setting, Settings
    from qlog.server.rabbitmq_conf import Conf
    from qlog.tools.log import Log
    from qlog.tools.supervisor import Supervisor

EXIT_IO_ERROR = 74
# The collector looks at so many new objects at a time, at those that were left twenty times as
# rarely, and so on. With a tenth of it, a fanout to 2,000 queues had a third of its rate.
COLLECT_AFTER = (50_000, 20, 50)
# A block of memory of this size or more is a mapping of its own, which the kernel has back when it is
# freed. glibc, left alone, raises this limit to the largest block that was ever freed, up to 32 MiB:
# then the bodies of large messages lie in its heap, between small things that stay, and what they
# leave is kept (66 of 130 MiB after ten minutes of the soak, 8 of 60 with this limit). Smaller blocks
# are better kept: it costs a page fault for each 4 KiB to have them from the kernel again.
MAPPED_FROM_BYTES = 12 << 20
# So much at the end of the heap is kept when it is free.
KEPT_FREE_BYTES = 16 << 20
# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Sent by terminals, log rotation and mistaken scripts; each of them would end or stop the process.
HARMLESS_SIGNALS = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTSTP,
    signal.SIGTTOU,
    signal.SIGPIPE,
)


class ServeCommand(typer.core.TyperCommand):
    """`qlog serve`, with an option for each setting.

    The options are made of the settings' definitions when they are asked for, so that the other
    commands start without them. Their values are the context's `obj`.
    """

    _settings_options: list[Any] | None = None

    def get_params(self, ctx: Any) -> list[Any]:
        """The options: first those of the settings."""
        if self._settings_options is None:
            self._settings_options = _settings_options()
        return [*self._settings_options, *super().get_params(ctx)]

    def invoke(self, ctx: Any) -> Any:
        """Run the command; only its own options are its arguments."""
        ctx.obj = {param.name: ctx.params.pop(param.name) for param in self._settings_options or ()}
        return super().invoke(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The help of the options, by groups."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            group = getattr(param, "rich_help_panel", None) or "Options"
            if record := param.get_help_record(ctx):
                groups.setdefault(group, []).append(record)
        for group in ("Options", *(group for group in groups if group != "Options")):
            with formatter.section(group):
                formatter.write_dl(groups[group])


def _settings_options() -> list[Any]:
    """An option for each setting that has one, as typer makes them."""
    from qlog.server.config import definitions

    def options(**values: Any) -> None:
        """Only its signature is looked at."""

    kinds = {
        setting.name: Annotated[
            list[str] | None if setting.is_list else str | None,
            typer.Option(
                setting.option,
                help=f"{setting.help} {_allowed(setting)}",
                metavar=_metavar(setting),
                rich_help_panel=setting.title,
            ),
        ]
        for setting in definitions().values()
        if setting.is_option
    }
    signature = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in kinds.items()
        ]
    )
    options.__annotations__ = kinds
    options.__signature__ = signature  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(options)
    return list(typer.main.get_command(app).params)


def _metavar(setting: Setting) -> str:
    if setting.metavar:
        return setting.metavar
    if setting.type is Path:
        return "DIR"
    if setting.low is None:
        return "TEXT"
    return {"s": "SECONDS", "bytes": "BYTES", "bytes/s": "BYTES/S"}.get(setting.unit, "NUMBER")


def _allowed(setting: Setting) -> str:
    parts = [f"default: {setting.default_text}"]
    if setting.choices:
        parts.append(", ".join(setting.choices))
    if setting.range_text:
        parts.append(setting.range_text)
    return f"[{'; '.join(parts)}]"


def serve(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="QLOG_CONFIG", metavar="FILE.toml", help="Read settings from a TOML file."
        ),
    ] = None,
    rabbitmq_conf: Annotated[
        Path | None,
        typer.Option(
            envvar="QLOG_RABBITMQ_CONF",
            metavar="FILE",
            help="Read settings from a rabbitmq.conf; the log names keys that have no effect.",
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Run the broker until SIGTERM or Ctrl-C.

    Every setting can also be given as QLOG_… in the environment, or by its name in a TOML file:
    options win over the environment, the environment over the file, and the file over rabbitmq.conf.
    """
    if version:
        typer.echo(f"qlog {__version__}")
        return
    signals = _Signals()
    from qlog.tools import stderr

    stderr.take_over()
    from qlog.server import config as configuration
    from qlog.storage.errors import StorageError
    from qlog.tools.log import Log

    try:
        conf = _read_conf(rabbitmq_conf)
        sources = {"config_file": config, "options": context.obj, "under": conf.given}
        settings = configuration.load(**sources)
        asked = configuration.asked_for(**sources)
    except configuration.ConfigError as error:
        _stop(str(error), 2)
    import trio

    from qlog.server.app import StorageFailed
    from qlog.server.broker.operations import DefinitionsError
    from qlog.server.net.certificates import TLSUnusable
    from qlog.server.net.listen import CannotListen

    _tune_interpreter()
    _raise_descriptor_limit()
    try:
        log = Log(settings.log)
    except OSError as error:
        _stop(f"cannot write the log to {settings.log.log_file}: {error.strerror}", 1)
    for line in conf.ignored:
        logging.getLogger("qlog").warning("%s", line)
    try:
        trio.run(_serve, settings, asked, signals, log)
    except (DefinitionsError, StorageError, CannotListen, TLSUnusable) as error:
        _stop(str(error), 1)
    except StorageFailed as error:
        _stop(f"the disk failed: {error}", EXIT_IO_ERROR)
    except OSError as error:
        where = f" {error.filename}:" if error.filename else ""
        _stop(f"cannot start:{where} {error.strerror or error}", 1)
    finally:
        _ignore(STOP_SIGNALS)
        log.close()


def _read_conf(path: Path | None) -> Conf:
    """What a rabbitmq.conf says, if there is one. Raises ConfigError."""
    from qlog.server.rabbitmq_conf import Conf, read

    if path is None:
        return Conf()
    from qlog.server.resources import usable_memory_bytes

    return read(path, usable_memory_bytes)


def _stop(message: str, status: int) -> NoReturn:
    print(f"qlog: {message}", file=sys.stderr)
    raise typer.Exit(status)


def _tune_interpreter() -> None:
    """Set the garbage collector and the switch interval for a broker.

    Messages come and go by the hundred thousand and form no cycles: a collection for each 700 of
    them would cost a tenth of the time. And the commit thread, back from the disk, must not wait
    the usual 5 ms for the interpreter: publishers wait for its result.
    """
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    sys.setswitchinterval(0.0005)
    _tune_malloc()


def _tune_malloc() -> None:
    """Have glibc give back the memory of large messages. Other C libraries do by themselves."""
    if sys.platform != "linux":
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_FREE_BYTES)


def _raise_descriptor_limit() -> None:
    """Allow as many clients as possible: the soft limit is for programs that use `select`."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS takes no more than `kern.maxfilesperproc`
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(settings: Settings, asked: frozenset[str], signals: _Signals, log: Log) -> None:
    import trio

    from qlog.server.app import open_broker
    from qlog.tools.supervisor import Supervisor

    supervisor = Supervisor()
    with trio.CancelScope() as starting:
        signals.end(starting)
        async with open_broker(settings, http=asked) as broker, trio.open_nursery() as nursery:
            signals.end(nursery.cancel_scope)
            signals.on_hangup = partial(
                nursery.start_soon, _read_again, broker, log, supervisor, trio.Lock()
            )
            if supervisor.watchdog_s:
                nursery.start_soon(_stay_alive, supervisor)
            # Queues and bindings that were there mostly stay, and none of them is in a cycle when it
            # goes. Of 20,000 queues the collector would look at 600,000 objects, for 180 ms.
            gc.freeze()
            # Printed whatever the log level: scripts and supervisors wait for this line.
            urls = " ".join(broker.urls)
            log.announce(f"Server startup complete, listening on {urls}")
            supervisor.ready(f"listening on {urls}")
            try:
                await _end_of(broker)
                nursery.cancel_scope.cancel()
            finally:
                supervisor.stopping()


async def _stay_alive(supervisor: Supervisor) -> None:
    """Give the supervisor signs of life. The loop of all sockets lets this task run."""
    import trio

    while True:
        supervisor.alive()
        await trio.sleep(supervisor.watchdog_s)


async def _read_again(
    broker: RunningBroker, log: Log, supervisor: Supervisor, lock: trio.Lock
) -> None:
    """SIGHUP: read again what can be; what cannot be used leaves everything as it was."""
    from qlog.server.net.certificates import TLSUnusable

    logger = logging.getLogger("qlog")
    async with lock:  # one after the other, if signals come fast
        supervisor.reloading()
        done = []
        try:
            if path := log.reopen():
                done.append(f"the log's file {path}")
        except OSError as error:
            logger.error("the log's file was not opened again: %s signal=SIGHUP", error)
        try:
            done += await broker.read_again()
        except TLSUnusable as error:
            logger.error("nothing was read again: %s signal=SIGHUP", error)
        else:
            if done:
                logger.info("read again: %s signal=SIGHUP", ", ".join(done))
            else:
                logger.info(
                    "nothing was read again: settings are read at a start only signal=SIGHUP"
                )
        supervisor.ready(f"listening on {' '.join(broker.urls)}")


async def _end_of(broker: RunningBroker) -> None:
    """Wait until the disk has failed, or somebody has asked for the end over `qlog ctl`."""
    import trio

    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait, broker.failed)
        nursery.start_soon(wait, broker.control.stopping)


class _Signals:
    """What signals mean, from the first moment on.

    SIGTERM and SIGINT end the broker, whatever it is doing. A second one breaks nothing off, and
    does not change the exit status. SIGHUP has files read again. Others do nothing.
    """

    def __init__(self) -> None:
        self.on_hangup: Callable[[], None] | None = None  # None: the broker has not started yet
        self._stopped_by: signal.Signals | None = None
        self._is_told = False
        self._scope: trio.CancelScope | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        _ignore(HARMLESS_SIGNALS)
        for number in STOP_SIGNALS:
            signal.signal(number, self._received)
        signal.signal(signal.SIGHUP, self._received)

    def end(self, scope: trio.CancelScope) -> None:
        """From now on a signal that ends the broker cancels this scope, and no other."""
        import trio

        self._scope = scope
        self._token = trio.lowlevel.current_trio_token()
        if self._stopped_by is not None:
            self._stop()

    def _received(self, number: int, frame: object) -> None:
        if number in STOP_SIGNALS:
            _ignore(STOP_SIGNALS)
            self._stopped_by = signal.Signals(number)
        if self._token is None:
            return  # not running yet; `end` comes
        import trio

        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._stop if number in STOP_SIGNALS else self._hang_up)

    def _stop(self) -> None:
        assert self._stopped_by is not None and self._scope is not None
        self._scope.cancel()
        if not self._is_told:
            self._is_told = True
            logging.getLogger("qlog").info("stopping signal=%s", self._stopped_by.name)

    def _hang_up(self) -> None:
        if self.on_hangup is not None:
            self.on_hangup()


def _ignore(signals: Iterable[signal.Signals]) -> None:
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
