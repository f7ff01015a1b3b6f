"""Which sockets a broker listens on: every address of every host that it was given, on one port.

`bind` takes the addresses when the broker starts, so that an address in use is known before a long
recovery. Nobody can connect before `accept_clients`, which is called when the broker is ready.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

BACKLOG = 1024
# Hosts that stand for one address of each family. A family that the machine does not have is left
# out: many containers have no IPv6.
BOTH_FAMILIES = {"localhost": ("127.0.0.1", "::1"), "::": ("0.0.0.0", "::")}
NO_SUCH_FAMILY = frozenset((errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL))
# With port 0, the port that the first address gets may be in use at another address: tries.
FREE_PORT_TRIES = 20

Address = tuple[Any, ...]  # host and port first


class CannotListen(OSError):
    """An address that cannot be listened on; str() is one line that names it and says why."""


def bind(hosts: Iterable[str], port: int) -> list[socket.socket]:
    """Sockets bound to all addresses of `hosts`, which do not accept yet.

    `localhost` is 127.0.0.1 and ::1, `::` is every address of both families. Port 0: all addresses
    share a free port. Raises CannotListen (taken, not of this machine, unknown); then none is
    bound.
    """
    wanted = list(dict.fromkeys(hosts))
    for _ in range(FREE_PORT_TRIES - 1):
        try:
            return _bind(wanted, port)
        except CannotListen as error:
            if port or error.errno != errno.EADDRINUSE:
                raise
    return _bind(wanted, port)


def accept_clients(sockets: Sequence[socket.socket]) -> None:
    """From now on clients can connect. Raises CannotListen (another process was faster)."""
    for listener in sockets:
        host, port = listener.getsockname()[:2]
        try:
            listener.listen(BACKLOG)
        except OSError as error:
            raise _cannot(error, host, port) from error


def _bind(hosts: Sequence[str], port: int) -> list[socket.socket]:
    bound: dict[tuple[str, int], socket.socket] = {}
    with ExitStack() as opened:
        for host in hosts:
            lacking: list[CannotListen] = []
            addresses = _addresses(host, port)
            for family, address in addresses:
                if bound and not port:
                    chosen = next(iter(bound.values())).getsockname()[1]
                    address = (address[0], chosen, *address[2:])
                if address[:2] in bound:
                    continue
                try:
                    listener = _bound(family, address)
                except OSError as error:
                    lacking.append(_cannot(error, address[0], address[1]))
                    is_optional = host in BOTH_FAMILIES and error.errno in NO_SUCH_FAMILY
                    if not is_optional or len(lacking) == len(addresses):
                        raise lacking[0] from error
                    continue
                opened.enter_context(listener)
                bound[listener.getsockname()[:2]] = listener
        opened.pop_all()  # all could be bound: keep them open
    return list(bound.values())


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, Address]]:
    found: list[tuple[socket.AddressFamily, Address]] = []
    for name in BOTH_FAMILIES.get(host, (host,)):
        try:
            infos = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except UnicodeError as error:
            raise CannotListen(f"cannot listen on {host}: it is not the name of a host") from error
        except OSError as error:
            raise _cannot(error, host, port) from error
        found += [(family, address) for family, _, _, _, address in dict.fromkeys(infos)]
    return found


def _bound(family: socket.AddressFamily, address: Address) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        # A broker that starts again must not wait until connections of the one before time out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def place(host: str, port: int) -> str:
    """An address as it stands in URLs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _cannot(error: OSError, host: str, port: int) -> CannotListen:
    why = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        why += "; perhaps another broker runs there"
    named = CannotListen(f"cannot listen on {place(host, port)}: {why}")
    named.errno = error.errno
    return named
