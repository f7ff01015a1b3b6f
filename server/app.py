"""The composition root: what a broker is made of, and in which order it starts and stops.

    async with open_broker(Settings(data_dir=..., port=0)) as broker:
        ...  # AMQP clients may connect to broker.url

Start: take the addresses, lock and recover the directory, load definitions, accept. Stop: stop accepting, close
connections with 320, write what is pending, checkpoint, unlock.
"""

from __future__ import annotations

import logging
import shutil
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import trio

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import connection_forced, internal_error
from qlog.server.broker.broker import Broker
from qlog.server.config import Settings
from qlog.server.net.listen import accept_clients, bind
from qlog.server.net.network import Network
from qlog.storage.bytes.disk import Disk
from qlog.storage.errors import Shortage
from qlog.storage.store import Store

logger = logging.getLogger("qlog.broker")

# Clients get this long to answer connection.close before their sockets are cut: stopping takes
# under five seconds in all.
CLOSE_S = 2.0
MEMORY_WATERMARK_FRACTION = 0.4  # RabbitMQ's vm_memory_high_watermark
PAGE_BYTES = 4096


class StorageFailed(Exception):
    """The disk failed while the broker ran: nothing can be confirmed any more. Exit status 74."""


class RunningBroker:
    """A broker that accepts connections.

    `failed` is set when the storage has failed; who runs the broker then leaves the `async with`.
    """

    def __init__(self, broker: Broker, network: Network, addresses: list[tuple[str, int]]) -> None:
        self.broker = broker
        self.addresses = addresses
        self.failed = network.failed

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self.addresses[0][1]

    @property
    def urls(self) -> list[str]:
        """The addresses as AMQP URLs."""
        return [
            f"amqp://[{host}]:{port}" if ":" in host else f"amqp://{host}:{port}"
            for host, port in self.addresses
        ]

    @property
    def url(self) -> str:
        """The first address, with the default user's credentials and vhost."""
        settings = self.broker.settings
        host, port = self.addresses[0]
        login = f"{quote(settings.default_user, '')}:{quote(settings.default_pass, '')}"
        where = f"[{host}]" if ":" in host else host
        return f"amqp://{login}@{where}:{port}/{quote(settings.default_vhost, '')}"


@asynccontextmanager
async def open_broker(
    settings: Settings, *, disk: Disk | None = None
) -> AsyncIterator[RunningBroker]:
    """Run a broker for the duration of the block, on the operating system's disk or another.

    Raises StorageError if the directory cannot be used, OSError if the address cannot be listened
    on, StorageFailed on leaving if the disk failed meanwhile.
    """
    listeners = bind(settings.host.replace(",", " ").split(), settings.port)
    try:
        token = trio.lowlevel.current_trio_token()
        network: Network | None = None

        def on_loop() -> None:
            if network is not None:
                network.end_tick()

        def notify() -> None:  # called on the storage's threads
            token.run_sync_soon(on_loop, idempotent=True)

        store: Store[Envelope] = Store.open(
            settings.data_dir,
            decode=Envelope.unpack,
            notify=notify,
            settings=settings.store_settings(),
            disk=disk,
            clock_ms=lambda: time.time_ns() // 1_000_000,
        )
        try:
            broker = Broker(store, settings.broker_settings(), now_s=trio.current_time)
            watch = _ResourceWatch(broker, settings)
            network = Network(broker, watch.check)
            watch.check()
            accept_clients(listeners)
            async with _serving(network, listeners):
                addresses = [listener.getsockname()[:2] for listener in listeners]
                yield RunningBroker(broker, network, addresses)
        finally:
            network = None
            store.close()
        if store.failure is not None:
            raise StorageFailed(str(store.failure)) from store.failure
    finally:
        for listener in listeners:
            listener.close()


@asynccontextmanager
async def _serving(network: Network, listeners: list[socket.socket]) -> AsyncIterator[None]:
    """Sessions and timers run; at the end clients are told and given a moment."""
    async with trio.open_nursery() as sessions:
        try:
            async with trio.open_nursery() as services:
                for listener in listeners:
                    services.start_soon(network.serve, listener, sessions)
                services.start_soon(network.run_timers)
                services.start_soon(network.run_feeder)
                services.start_soon(network.run_checks)
                try:
                    yield
                finally:
                    services.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await _close_clients(network)


async def _close_clients(network: Network) -> None:
    if network.failed.is_set():
        reason = internal_error("the storage failed; nothing can be confirmed any more")
    else:
        reason = connection_forced("broker forced connection closure with reason 'shutdown'")
    try:
        network.broker.close_clients(reason)
        network.end_tick()
        await network.drain(CLOSE_S)
    finally:
        network.cut()


class _ResourceWatch:
    """Memory and disk watermarks: over them, publishers are blocked."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self._broker = broker
        self._directory = settings.data_dir
        self._memory_limit_bytes = settings.memory_high_watermark_bytes or int(
            _total_memory_bytes() * MEMORY_WATERMARK_FRACTION
        )
        self._disk_limit_bytes = settings.disk_free_limit_bytes

    def check(self) -> None:
        """Compare with the limits; changes are logged, and so is damage that storage found."""
        for finding in self._broker.store.take_findings():
            logger.error("%s", finding)
        try:
            resident_bytes = _resident_bytes()
        except OSError as error:  # out of file descriptors: as before, then
            logger.warning("cannot look at the memory error=%s", error)
        else:
            self._set("low on memory", resident_bytes > self._memory_limit_bytes)
        try:
            free_bytes = shutil.disk_usage(self._directory).free
        except OSError as error:  # gone, unmounted: nothing can be kept there
            logger.warning("cannot look at the disk error=%s", error)
            free_bytes = 0
        store = self._broker.store
        full = store.shortage is Shortage.SPACE
        self._set("low on disk", full or free_bytes < self._disk_limit_bytes)
        self._set("low on file descriptors", store.shortage is Shortage.DESCRIPTORS)

    def _set(self, name: str, on: bool) -> None:
        if self._broker.alarms[name] != on:
            logger.warning("resource alarm %s: %s", "set" if on else "cleared", name)
            self._broker.set_alarm(name, on)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def _total_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemTotal")
