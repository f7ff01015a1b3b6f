"""The composition root: what a broker is made of, and in which order it starts and stops.

    async with open_broker(config.of(data_dir=..., port=0)) as broker:
        ...  # AMQP clients may connect to broker.url

Start: take the addresses, lock and recover the directory, load definitions, accept. Stop: stop
accepting, close connections with 320, write what is pending, checkpoint, unlock.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trio

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import connection_forced, internal_error
from qlog.server.broker.access.hashing import ThreadedHashing
from qlog.server.broker.broker import Broker
from qlog.server.broker.definitions_file import read_definitions
from qlog.server.broker.settings import NO_FILE
from qlog.server.config import Settings
from qlog.server.control import SHUTDOWN, Control, close_clients
from qlog.server.listeners import HttpSockets, bind_http, load_http, owner_socket
from qlog.server.net.certificates import Certificates, TLSUnusable
from qlog.server.net.listen import CannotListen, accept_clients, bind, place
from qlog.server.net.network import Network, is_loopback
from qlog.server.net.turns import Turns
from qlog.server.resources import ResourceWatch
from qlog.storage.bytes.datadir import Paths
from qlog.storage.bytes.disk import Disk, OSDisk
from qlog.storage.space.backup import clear_staging
from qlog.storage.store import Store

logger = logging.getLogger("qlog.broker")

# A recovery that takes long logs how far it is, this often.
PROGRESS_INTERVAL_S = 5.0
CANCEL_INTERVAL_S = 0.02
FIRST_START = 1  # the epoch of a directory is the number of its starts


class StorageFailed(Exception):
    """The disk failed while the broker ran: nothing can be confirmed any more. Exit status 74."""


class RunningBroker:
    """A broker that accepts connections.

    `failed` is set when the storage has failed; the caller then leaves the `async with`.
    `addresses` and `tls_addresses` are hosts and ports.
    """

    def __init__(
        self, broker: Broker, turns: Turns, entrances: Entrances, control: Control
    ) -> None:
        self.broker = broker
        self.control = control
        self.entrances = entrances
        self.addresses = entrances.addresses
        self.tls_addresses = entrances.tls_addresses
        self.turns = turns
        self.failed = turns.failed
        self.certificates = entrances.certificates

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self.addresses[0][1]

    @property
    def tls_port(self) -> int:
        """The port for TLS, if there is one."""
        return self.tls_addresses[0][1]

    @property
    def urls(self) -> list[str]:
        """The addresses as AMQP URLs."""
        plain = [f"amqp://{place(*address)}" for address in self.addresses]
        return plain + [f"amqps://{place(*address)}" for address in self.tls_addresses]

    @property
    def url(self) -> str:
        """The first address, with the default user's credentials and vhost."""
        settings = self.broker.settings
        login = f"{quote(settings.default_user, '')}:{quote(settings.default_pass, '')}"
        scheme, _, where = self.urls[0].partition("://")
        return f"{scheme}://{login}@{where}/{quote(settings.default_vhost, '')}"

    async def read_again(self) -> list[str]:
        """Read the files again that can be: those of TLS. Returns what was read, for the log.

        Connections stay as they are. Raises TLSUnusable; then nothing has changed.
        """
        if self.certificates is None:
            return []
        await trio.to_thread.run_sync(self.certificates.read_again)
        return ["the certificates of TLS"]


class Entrances:
    """All sockets that clients connect to, bound at the start and closed at the end.

    Raises TLSUnusable and CannotListen; then none is bound.
    """

    def __init__(self, settings: Settings) -> None:
        network, tls = settings.network, settings.tls
        self.certificates: Certificates | None = None
        if tls.tls_certificate != NO_FILE:
            self.certificates = Certificates(tls)
        elif not network.plain_listener:
            raise TLSUnusable(
                "nothing to listen on: plain_listener is off, tls_certificate not set"
            )
        self.plain = bind(network.host, network.port) if network.plain_listener else []
        self.tls: list[socket.socket] = []
        if self.certificates is not None:
            try:
                self.tls = bind(network.host, tls.tls_port)
            except CannotListen:
                self.close()
                raise

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Without TLS: hosts and ports."""
        return [listener.getsockname()[:2] for listener in self.plain]

    @property
    def tls_addresses(self) -> list[tuple[str, int]]:
        """With TLS."""
        return [listener.getsockname()[:2] for listener in self.tls]

    def open(self) -> None:
        """From now on clients can connect."""
        accept_clients([*self.plain, *self.tls])

    def close(self) -> None:
        """Give the addresses back."""
        for listener in [*self.plain, *self.tls]:
            listener.close()


@asynccontextmanager
async def open_broker(
    settings: Settings, *, disk: Disk | None = None, http: frozenset[str] | None = None
) -> AsyncIterator[RunningBroker]:
    """Run a broker for the duration of the block, on the operating system's disk or another.

    `http`: serve management and metrics, too; the names of the settings that were asked for, of
    which a port that is in use is an error. A broker inside a program listens for AMQP alone.
    The directory is recovered by another thread; that can be cancelled. Raises DefinitionsError if
    the definitions file cannot be loaded, StorageError if the directory cannot be used, TLSUnusable
    if a certificate cannot, CannotListen if an address cannot be listened on, StorageFailed on
    leaving if the disk failed meanwhile.
    """
    document = _definitions(settings)
    entrances = Entrances(settings)
    http_sockets = HttpSockets()
    try:
        if http is not None:
            has_tls = entrances.certificates is not None
            http_sockets = bind_http(settings.http, http, tls=has_tls)
        turns: Turns | None = None

        def notify() -> None:  # called on the threads of the storage, and of hashes
            if turns is not None:
                turns.wake()

        hashing = ThreadedHashing(notify)
        store = await trio.to_thread.run_sync(_open_store, settings, disk, notify)
        broker: Broker | None = None
        try:
            # A backup that a kill has broken off keeps the space of what was given up since.
            clear_staging(disk or OSDisk(), Paths(settings.data_dir))
            await trio.lowlevel.checkpoint()  # a cancellation may have come during recovery
            broker = Broker(
                store,
                settings.broker,
                now_s=trio.current_time,
                document=document,
                hashing=hashing,
            )
            _log_start(broker)
            watch = ResourceWatch(broker, settings.resources, settings.data_dir)
            turns = Turns(broker)
            watch.check()
            entrances.open()
            network = Network(
                turns,
                entrances.plain,
                watch.check,
                tls_listeners=entrances.tls,
                certificates=entrances.certificates,
            )
            async with _serving(turns, network, settings.network.shutdown_s):
                control = Control(turns, network, entrances, watch, settings)
                running = RunningBroker(broker, turns, entrances, control)
                if http is None:
                    yield running
                else:
                    async with serving_http(running, http_sockets, watch, settings):
                        try:
                            yield running
                        finally:
                            # Health checks fail from now on, so that balancers send nobody here.
                            with trio.CancelScope(shield=True):
                                control.drain()
                                await _close_clients(turns, settings.network.shutdown_s)
        finally:
            if broker is not None:
                broker.services.backups.close()
            hashing.close()
            store.close()  # this, too, ends threads that call `wake`
            if turns is not None:
                turns.close()
        failure = turns.failure
        if failure is not None:
            raise StorageFailed(str(failure)) from failure
    finally:
        http_sockets.close()
        entrances.close()


def _open_store(
    settings: Settings, disk: Disk | None, notify: Callable[[], None]
) -> Store[Envelope]:
    """Recover the directory; not on the loop's thread. Raises StorageError."""
    return Store.open(
        settings.data_dir,
        decode=Envelope.unpack,
        notify=notify,
        settings=settings.storage,
        disk=disk,
        clock_s=trio.current_time,
        clock_ms=lambda: time.time_ns() // 1_000_000,
        progress=_Progress(),
    )


@asynccontextmanager
async def serving_http(
    running: RunningBroker, sockets: HttpSockets, watch: ResourceWatch, settings: Settings
) -> AsyncIterator[None]:
    """Serve management and metrics for the duration of the block."""
    with owner_socket(settings.data_dir) as owner:
        sockets.owner = owner
        sockets.listen()
        async with trio.open_nursery() as nursery:
            if sockets.all:
                nursery.start_soon(_serve_http, running, sockets, watch, settings)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()


async def _serve_http(
    running: RunningBroker, sockets: HttpSockets, watch: ResourceWatch, settings: Settings
) -> None:
    http = await load_http(sockets)
    started_s = trio.current_time()
    broker = running.broker

    def listeners() -> list[Any]:
        entrances = running.entrances
        found = [http.Listener("amqp", host, port) for host, port in entrances.addresses]
        found += [http.Listener("amqp/ssl", host, port) for host, port in entrances.tls_addresses]
        for protocol, group in (
            ("http", sockets.management),
            ("https", sockets.management_tls),
            ("http/prometheus", sockets.metrics),
        ):
            found += [http.Listener(protocol, *each.getsockname()[:2]) for each in group]
        return found

    context = http.Context(
        is_loopback=is_loopback,
        listeners=listeners,
        resources=watch.facts,
        uptime_s=lambda: trio.current_time() - started_s,
        data_dir=os.path.abspath(settings.data_dir),
        definitions=broker,
        certificates=lambda: _certificates(http, running.certificates),
        node=running.control,
        log_file=settings.log.path or "<stderr>",
    )
    certificates = running.certificates
    tls = None if certificates is None else lambda: certificates.context
    await http.run(broker.operations, context, running.turns.wake, sockets, tls)


def _certificates(http: Any, certificates: Certificates | None) -> list[Any]:
    if certificates is None:
        return []
    return [http.Certificate(path, ends_s) for path, ends_s in certificates.ends_s.items()]


def _definitions(settings: Settings) -> dict[str, Any] | None:
    path = settings.broker.load_definitions
    return None if path == NO_FILE else read_definitions(Path(path))


class _Progress:
    """Called by recovery, on its thread: logs how far it is, and ends it on cancellation."""

    def __init__(self) -> None:
        self._said_s = self._looked_s = time.monotonic()

    def __call__(self, what: str, count: int) -> None:
        """`count` of `what` are done. Raises trio.Cancelled when the start was cancelled."""
        now_s = time.monotonic()
        if now_s < self._looked_s + CANCEL_INTERVAL_S:
            return
        self._looked_s = now_s
        trio.from_thread.check_cancelled()
        if now_s >= self._said_s + PROGRESS_INTERVAL_S:
            self._said_s = now_s
            logger.info("recovering: %d %s", count, what)


def _log_start(broker: Broker) -> None:
    """What the start found and did: a warning where something was cut or made anew."""
    report = broker.store.report
    queues = [queue for vhost in broker.vhosts.values() for queue in vhost.queues.values()]
    waiting = [queue.ready for queue in queues if queue.ready]
    said = [f"{sum(waiting)} messages wait in {len(waiting)} of {len(queues)} queues"]
    if report.log_bytes_cut:
        said.append(
            f"cut {report.log_bytes_cut} bytes off the end of the log, with "
            f"{report.log_records_cut} messages that were never confirmed"
        )
    if report.ledger_bytes_cut:
        said.append(f"cut {report.ledger_bytes_cut} bytes off the end of the ledger")
    if report.index_rebuilt:
        said.append(f"made the index anew: {report.index_rebuilt}")
    if report.catalog_rebuilt:
        said.append(f"made the catalog anew: {report.catalog_rebuilt}")
    level = logging.INFO if len(said) == 1 else logging.WARNING
    if report.records_replayed:
        said.append(f"replayed {report.records_replayed} messages")
    done = "made the data directory" if report.epoch == FIRST_START else "recovered"
    logger.log(level, "%s in %.3f s: %s", done, report.duration_s, "; ".join(said))


@asynccontextmanager
async def _serving(turns: Turns, network: Network, shutdown_s: float) -> AsyncIterator[None]:
    """Run the loop. At the end clients are told, and given a moment, even under cancellation."""
    scope = trio.CancelScope(shield=True)

    async def run() -> None:
        with scope:
            await turns.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                network.close()
                await _close_clients(turns, shutdown_s)
            scope.cancel()


async def _close_clients(turns: Turns, shutdown_s: float) -> None:
    if turns.failed.is_set():
        reason = internal_error("the storage failed; nothing can be confirmed any more")
    else:
        reason = connection_forced(SHUTDOWN)
    await close_clients(turns, reason, shutdown_s)
