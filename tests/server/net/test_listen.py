"""Listening: which addresses a host means, and what is said of one that cannot be had."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from qlog.server.net import listen
from qlog.server.net.listen import Address, CannotListen, accept_clients, bind

Sockets = list[socket.socket]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def addresses(sockets: Sockets) -> list[str]:
    """The addresses, in order; the sockets are closed."""
    found = [listener.getsockname()[0] for listener in sockets]
    assert len({listener.getsockname()[1] for listener in sockets}) == 1
    for listener in sockets:
        listener.close()
    return found


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["127.0.0.1"], ["127.0.0.1"]),
        (["localhost"], ["127.0.0.1", "::1"]),
        (["::"], ["0.0.0.0", "::"]),
        (["0.0.0.0"], ["0.0.0.0"]),
        (["::1", "127.0.0.1", "::1"], ["::1", "127.0.0.1"]),
        (["127.0.0.1", "localhost"], ["127.0.0.1", "::1"]),
    ],
)
def test_addresses_of_hosts(hosts: list[str], expected: list[str]) -> None:
    assert addresses(bind(hosts, 0)) == expected


@pytest.mark.parametrize("code", sorted(listen.NO_SUCH_FAMILY))
@pytest.mark.parametrize(
    ("hosts", "expected"),
    [(["localhost"], ["127.0.0.1"]), (["::"], ["0.0.0.0"]), (["::1", "127.0.0.1"], None)],
)
def test_machine_without_ipv6(
    monkeypatch: pytest.MonkeyPatch, hosts: list[str], expected: list[str] | None, code: int
) -> None:
    """What stands for both families is served on one; an address of the other is refused."""
    real = listen._bound

    def bound(family: socket.AddressFamily, address: Address) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(code, "no IPv6 here")
        return real(family, address)

    monkeypatch.setattr(listen, "_bound", bound)
    if expected is not None:
        assert addresses(bind(hosts, 0)) == expected
        return
    with pytest.raises(CannotListen, match=r"^cannot listen on \[::1\]:0: no IPv6 here$"):
        bind(hosts, 0)


def test_no_family_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def bound(family: socket.AddressFamily, address: Address) -> socket.socket:
        raise OSError(errno.EADDRNOTAVAIL, "not here")

    monkeypatch.setattr(listen, "_bound", bound)
    with pytest.raises(CannotListen, match=r"^cannot listen on 127\.0\.0\.1:5: not here$"):
        bind(["localhost"], 5)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 70, "..", "999.1.1.1"])
def test_host_that_cannot_be(host: str) -> None:
    with pytest.raises(CannotListen) as caught:
        bind([host], 0)
    assert host in str(caught.value)


def test_taken_address_is_named_and_the_others_are_given_back(taken: int) -> None:
    with pytest.raises(CannotListen) as caught:
        bind(["::1", "127.0.0.1"], taken)
    said = f"cannot listen on 127.0.0.1:{taken}: Address already in use; perhaps another broker "
    assert str(caught.value).startswith(said)
    assert caught.value.errno == errno.EADDRINUSE
    assert addresses(bind(["::1"], taken)) == ["::1"]


def test_free_port_is_free_at_all_addresses(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """The first address may get a port that is in use at the second."""
    real = listen._bound
    first = [taken]

    def bound(family: socket.AddressFamily, address: Address) -> socket.socket:
        if address == ("127.0.0.2", 0) and first:
            return real(family, ("127.0.0.2", first.pop()))
        return real(family, address)

    monkeypatch.setattr(listen, "_bound", bound)
    assert addresses(bind(["127.0.0.2", "127.0.0.1"], 0)) == ["127.0.0.2", "127.0.0.1"]
    assert not first


def test_nobody_gets_in_before_all_is_ready() -> None:
    (listener,) = bind(["127.0.0.1"], 0)
    with closing(listener):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(listener.getsockname()[:2])
        accept_clients([listener])
        socket.create_connection(listener.getsockname()[:2]).close()


def test_address_that_another_took_meanwhile() -> None:
    mine = bind(["127.0.0.1"], 0)
    port = mine[0].getsockname()[1]
    other = bind(["127.0.0.1"], port)  # both may be bound while none listens
    accept_clients(other)
    with pytest.raises(CannotListen, match=f"^cannot listen on 127.0.0.1:{port}: "):
        accept_clients(mine)
    for listener in mine + other:
        listener.close()
