"""What an operator may do to a running broker beside its objects: listeners, thresholds, alarms.

`qlog ctl` asks for it, over the owner's socket (http/qlog.py). Nothing here lasts longer than the
process: the next start goes by the settings again. Listeners that were closed are opened at the
addresses that they had.
"""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec
import trio

from qlog.server.amqp.errors import HardError, connection_forced
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.settings import CHANNELS_MAX, FRAME_BYTES_MAX
from qlog.server.config import Settings, definitions
from qlog.server.net.listen import bind
from qlog.server.net.network import Network
from qlog.server.net.turns import Turns
from qlog.server.resources import ResourceWatch, usable_memory_bytes

logger = logging.getLogger("qlog.broker")

SHUTDOWN = "broker forced connection closure with reason 'shutdown'"
ANSWER_S = 0.1  # an answer over HTTP is sent by then
# Names of levels that the log does not have: the next ones above the highest.
LEVELS = {"critical": logging.CRITICAL, "none": logging.CRITICAL + 10}


# RabbitMQ's names of settings that can be set for a while, ours, and how many of our unit are one
# of theirs.
PASSING: Mapping[str, tuple[str, float]] = {
    "channel_max": ("channel_max", 1),
    "consumer_timeout": ("consumer_timeout_s", 0.001),
    "frame_max": ("frame_bytes_max", 1),
    "heartbeat": ("heartbeat_s", 1),
    "loopback_users": ("loopback_users", 1),
    "max_message_size": ("message_bytes_max", 1),
}


# What 0 means where RabbitMQ has no limit then: the most that the protocol can say.
NO_LIMIT: Mapping[str, int] = {"channel_max": CHANNELS_MAX, "frame_bytes_max": FRAME_BYTES_MAX}


class StillRunning(Exception):
    """The application has to be stopped first."""


class Doors(Protocol):
    """The sockets that clients connect to."""

    plain: list[socket.socket]
    tls: list[socket.socket]

    def open(self) -> None:
        """Accept clients. Raises CannotListen."""

    def close(self) -> None:
        """Give the addresses back."""


class Control:
    """See the head of this file. `stopping` is set when the process is to end."""

    def __init__(
        self,
        turns: Turns,
        network: Network,
        doors: Doors,
        watch: ResourceWatch,
        settings: Settings,
    ) -> None:
        self.stopping = trio.Event()
        self._turns = turns
        self._network = network
        self._doors = doors
        self._watch = watch
        self._settings = settings
        # Where the closed listeners were, without and with TLS.
        self._closed: tuple[list[Any], list[Any]] | None = None
        self._stopped = False

    # -- listeners -----------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Clients are accepted, and were not all sent away."""
        return not self._stopped

    @property
    def listening(self) -> bool:
        """Clients are accepted."""
        return self._closed is None

    def suspend(self) -> None:
        """Close the listeners: those who are connected stay."""
        if self._closed is not None:
            return
        self._closed = _addresses(self._doors.plain), _addresses(self._doors.tls)
        self.drain()
        logger.warning("listeners closed")

    def drain(self) -> None:
        """Let nobody in any more: the broker ends, and health checks say so."""
        self._network.close()
        self._doors.close()
        self._doors.plain, self._doors.tls = [], []

    def resume(self) -> None:
        """Open them again. Raises CannotListen if somebody has taken an address meanwhile."""
        if self._closed is None:
            return
        plain, tls = self._closed
        self._doors.plain, self._doors.tls = _bound(plain), []
        try:
            self._doors.tls = _bound(tls)
            self._doors.open()
        except OSError:
            self._doors.close()
            self._doors.plain, self._doors.tls = [], []
            raise
        self._network.open(self._doors.plain, self._doors.tls)
        self._closed = None
        logger.warning("listeners opened")

    async def stop_app(self) -> None:
        """Close the listeners, and every connection with 320."""
        self.suspend()
        self._stopped = True
        logger.warning("the application was stopped")
        await close_clients(
            self._turns, connection_forced(SHUTDOWN), self._settings.network.shutdown_s
        )

    def start_app(self) -> None:
        """Accept clients again. Raises CannotListen."""
        self.resume()
        if self._stopped:
            self._stopped = False
            logger.warning("the application was started")

    def stop(self) -> None:
        """End the process, as SIGTERM does: in a moment, so that who asked gets an answer."""
        self._turns.at(self._turns.now_s + ANSWER_S, self.stopping.set)
        self._turns.say()

    async def reset(self) -> None:
        """Delete all messages and definitions, and make what a first start makes.

        A crash in the middle leaves some of it; the next start goes on from there. Raises
        StillRunning unless the application was stopped.
        """
        if not self._stopped:
            raise StillRunning
        broker = self._turns.broker
        operations = broker.operations
        logger.warning("everything is deleted: the broker is reset")
        for vhost in list(operations.vhosts()):
            await self._done(operations.protect_vhost(vhost, False))
            await self._done(operations.delete_vhost(vhost.name))
        for user in list(operations.users()):
            await self._done(operations.delete_user(user.name))
        broker.begin_anew()
        await self._done(broker.services.durability.sync())

    async def _done(self, outcome: Outcome[Any]) -> None:
        self._turns.say()
        known = trio.Event()
        outcome.then(lambda _: known.set())
        await known.wait()
        outcome.result()

    # -- resources -----------------------------------------------------------------------------

    def alarms(self) -> list[str]:
        """The resources that are short, or said to be: `memory`, `disk`, `descriptors`."""
        return self._watch.alarms()

    def set_alarm(self, resource: str, on: bool) -> None:
        """Say that a resource is short, or leave it to what is measured. Raises KeyError."""
        self._watch.pretend(resource, on)
        self._check()

    def set_memory_limit(self, *, fraction: float | None = None, octets: int = 0) -> None:
        """Block publishers above this use of memory: octets, or a fraction of what there is."""
        if fraction is not None:
            octets = int(usable_memory_bytes() * fraction)
        self._watch.memory_limit_bytes = octets
        logger.warning("memory high watermark set bytes=%d", octets)
        self._check()

    def set_disk_limit(self, *, fraction: float | None = None, octets: int = 0) -> None:
        """Block publishers below this much free disk: octets, or a fraction of the memory."""
        if fraction is not None:
            octets = int(usable_memory_bytes() * fraction)
        self._watch.disk_limit_bytes = octets
        logger.warning("disk free limit set bytes=%d", octets)
        self._check()

    def _check(self) -> None:
        self._watch.check()
        self._turns.say()

    # -- the process -----------------------------------------------------------------------------

    def set_log_level(self, level: str) -> None:
        """Log what is at least so important: a name of Python's, `critical` or `none`."""
        logging.getLogger().setLevel(LEVELS.get(level, level.upper()))

    def environment(self) -> Mapping[str, Any]:
        """All settings but the secret ones, as an operator would write them."""
        found: dict[str, Any] = {}
        for name, definition in definitions().items():
            group = self._settings
            if definition.group:
                group = getattr(self._settings, definition.group)
            if not definition.secret:
                found[name] = msgspec.to_builtins(getattr(group, name), enc_hook=str)
        return found

    def set_passing(self, name: str, value: Any) -> None:
        """Set a setting by RabbitMQ's name, for clients that come from now on.

        Raises KeyError for one that cannot be set so, ValueError for a value that is wrong.
        """
        ours, factor = PASSING[name]
        definition = definitions()[ours]
        if not definition.is_list:
            value = type(definition.default)(value * factor) or NO_LIMIT.get(ours, 0)
        try:
            checked = msgspec.convert(value, definition.constrained)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None
        broker = self._turns.broker
        broker.use(msgspec.structs.replace(broker.settings, **{ours: checked}))
        logger.warning("setting changed until the next start name=%s value=%s", ours, checked)

    def collect_garbage(self) -> None:
        """Collect garbage: some milliseconds for each ten thousand objects."""
        gc.collect()


def _addresses(listeners: Iterable[socket.socket]) -> list[Any]:
    return [listener.getsockname() for listener in listeners]


def _bound(addresses: Iterable[Any]) -> list[socket.socket]:
    found: list[socket.socket] = []
    try:
        for host, port, *_ in addresses:
            found += bind([host], port)
    except OSError:
        for listener in found:
            listener.close()
        raise
    return found


async def close_clients(turns: Turns, reason: HardError, seconds: float) -> None:
    """Close every connection, and give each so long to say so; then cut it."""
    try:
        turns.broker.close_clients(reason)
        turns.say()
        await turns.drain(seconds)
    finally:
        turns.cut()
