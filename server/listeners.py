"""The sockets of management and metrics: bound at the start, served once AMQP accepts clients.

The modules of `server/http` take a third of a second to import. That is done by another thread,
after AMQP accepts clients; without a TCP listener it is done for the first client of the socket in
the data directory.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from qlog.server.config import HttpSettings
from qlog.server.net.listen import CannotListen, accept_clients, bind, place

logger = logging.getLogger("qlog.http")

SOCKET_NAME = "ctl.sock"
BACKLOG = 128


@dataclass(slots=True)
class HttpSockets:
    """What was bound; closed by `close`."""

    management: list[socket.socket] = field(default_factory=list)
    management_tls: list[socket.socket] = field(default_factory=list)
    metrics: list[socket.socket] = field(default_factory=list)
    owner: socket.socket | None = None
    asked: frozenset[str] = frozenset()  # the settings of ports that were asked for

    @property
    def all(self) -> list[socket.socket]:
        """All of them."""
        owner = [] if self.owner is None else [self.owner]
        return [*self.management, *self.management_tls, *self.metrics, *owner]

    @property
    def eager(self) -> bool:
        """Somebody listens on TCP: what serves them is to be there."""
        return bool(self.management or self.management_tls or self.metrics)

    def __str__(self) -> str:
        """Where clients find what."""
        return ", ".join(
            f"{what} {scheme}://{place(*each.getsockname()[:2])}"
            for what, scheme, group in (
                ("management", "http", self.management),
                ("management", "https", self.management_tls),
                ("metrics", "http", self.metrics),
            )
            for each in group
        )

    def listen(self) -> None:
        """From now on clients can connect; they wait until somebody serves them.

        Another process may have been faster since the addresses were bound: see `bind_http`.
        """
        for name in ("management", "management_tls", "metrics"):
            sockets = getattr(self, name)
            try:
                accept_clients(sockets)
            except CannotListen as error:
                for each in sockets:
                    each.close()
                setattr(self, name, [])
                _refused(f"{name}_port", error, self.asked)
        if self.owner is not None:
            self.owner.listen(BACKLOG)
        if self.eager:
            logger.info("%s", str(self))  # the sockets are closed when it is read

    def close(self) -> None:
        """Close all."""
        for each in self.all:
            each.close()


def bind_http(settings: HttpSettings, asked: frozenset[str], *, tls: bool = False) -> HttpSockets:
    """Bind the TCP addresses; `tls`: those for TLS, too. A default port in use is a warning.

    Raises CannotListen for one that was asked for.
    """
    sockets = HttpSockets(asked=asked)
    try:
        sockets.management = _bind(
            settings.management_host, settings.management_port, "management_port", asked
        )
        if tls:
            sockets.management_tls = _bind(
                settings.management_host,
                settings.management_tls_port,
                "management_tls_port",
                asked,
            )
        sockets.metrics = _bind(settings.metrics_host, settings.metrics_port, "metrics_port", asked)
    except BaseException:
        sockets.close()
        raise
    return sockets


def _bind(
    hosts: tuple[str, ...], port: int, name: str, asked: frozenset[str]
) -> list[socket.socket]:
    if not port:
        return []
    try:
        return bind(hosts, port)
    except CannotListen as error:
        _refused(name, error, asked)
        return []


def _refused(name: str, error: CannotListen, asked: frozenset[str]) -> None:
    """A port cannot be listened on: an error if it was asked for, else a warning."""
    if name in asked:
        raise error
    what = name.removesuffix("_port").replace("_", " ")
    option = name.replace("_", "-")
    logger.warning("no %s: %s; --%s says where else, 0 nowhere", what, error, option)


@contextmanager
def owner_socket(directory: Path) -> Iterator[socket.socket | None]:
    """The socket in the data directory that only the directory's owner may connect to.

    None where there can be none: `qlog ctl` does not work then.
    """
    path = directory / SOCKET_NAME
    try:
        listener = _bound_path(path)
    except OSError as error:
        logger.warning("no socket for qlog ctl: %s: %s", path, error.strerror or error)
        yield None
        return
    try:
        yield listener
    finally:
        listener.close()
        with suppress(OSError):
            path.unlink()


def _bound_path(path: Path) -> socket.socket:
    """Bind a path, also one that is longer than a socket's address can be."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()  # of a broker that was killed; the lock says that no other one runs
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            where = f"/proc/self/fd/{directory}/{path.name}"
            listener.bind(where if os.path.isdir("/proc/self/fd") else str(path))
        finally:
            os.close(directory)
        path.chmod(0o600)  # nobody can connect before `listen`
    except BaseException:
        listener.close()
        raise
    return listener


async def load_http(sockets: HttpSockets) -> Any:
    """The modules that serve HTTP: at once, or when the first client of the owner's comes.

    There has to be a socket at all.
    """
    if not sockets.eager and sockets.owner is not None:
        await trio.lowlevel.wait_readable(sockets.owner)
    return await trio.to_thread.run_sync(importlib.import_module, "qlog.server.http.start")
