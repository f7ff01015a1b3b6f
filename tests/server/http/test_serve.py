"""HTTP on sockets: who is slow, or too many, costs nobody else; and where it listens."""

from __future__ import annotations

import json
import logging
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from qlog.server import listeners
from qlog.server.config import HttpSettings
from qlog.server.http import ask, serve
from qlog.server.http.serve import Served
from qlog.server.listeners import bind_http, owner_socket
from qlog.server.net.listen import CannotListen
from tests.server.http.support import Site

LOGIN = "authorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n"


@asynccontextmanager
async def served(site: Site) -> AsyncIterator[int]:
    """The API on a port of its own."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        nursery.start_soon(serve.serve, [Served(listener, site.api)], ready.set)
        await ready.wait()
        yield listener.getsockname()[1]
        nursery.cancel_scope.cancel()


async def connected(port: int, said: str = "") -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(said.encode())
    return stream


async def everything(stream: trio.SocketStream) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    try:
        while data := await stream.receive_some():
            parts.append(bytes(data))
    except trio.BrokenResourceError:
        pass
    return b"".join(parts)


async def asked(port: int, path: str = "/api/whoami") -> bytes:
    request = f"GET {path} HTTP/1.1\r\nhost: x\r\n{LOGIN}connection: close\r\n\r\n"
    return await everything(await connected(port, request))


async def test_a_request_over_a_socket(site: Site) -> None:
    async with served(site) as port:
        answer = await asked(port)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"name":"guest"' in answer
        answer = await asked(port, "/api/queues/%2F")
        assert b"transfer-encoding: chunked" in answer.lower()
        answer = await everything(
            await connected(
                port, f"HEAD /api/whoami HTTP/1.1\r\nhost: x\r\n{LOGIN}connection: close\r\n\r\n"
            )
        )
        assert answer.startswith(b"HTTP/1.1 200") and b"guest" not in answer


@pytest.mark.parametrize(
    "request_line, head, status_line",
    [
        ("GET /api/whoami", LOGIN, b"200 OK"),
        ("PUT /api/vhosts/new", LOGIN, b"201 Created"),
        ("DELETE /api/vhosts/%2F", LOGIN, b"204 No Content"),
        ("GET /api/vhosts/nobody", LOGIN, b"404 Not Found"),
        ("GET /api/whoami", "", b"401 Unauthorized"),
        ("GET /two words", "", b"400 Bad Request"),
    ],
)
async def test_status_lines_have_a_reason(
    site: Site, request_line: str, head: str, status_line: bytes
) -> None:
    """RabbitMQ's have, and rabbit-hole compares all of it."""
    async with served(site) as port:
        request = f"{request_line} HTTP/1.1\r\nhost: x\r\n{head}content-length: 0\r\n"
        answer = await everything(await connected(port, request + "connection: close\r\n\r\n"))
        assert answer.split(b"\r\n")[0] == b"HTTP/1.1 " + status_line


async def test_a_head_that_never_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEAD_S_MAX", 0.05)
    async with served(site) as port:
        slow = await connected(port, "GET /api/whoami HTTP/1.1\r\nhost: x\r\n")
        silent = await connected(port)
        assert b"200" not in await everything(slow)
        assert await everything(silent) == b""


async def test_a_body_that_never_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "BODY_S_MAX", 0.05)
    async with served(site) as port:
        head = f"PUT /api/vhosts/v HTTP/1.1\r\nhost: x\r\n{LOGIN}content-length: 100\r\n\r\n"
        slow = await connected(port, head + "{")
        assert (await slow.receive_some()).startswith(b"HTTP/1.1 408")


LARGE_BYTES = ask.DOCUMENT_BYTES_MAX + 2
PUBLISH = "/api/exchanges/%2F/amq.default/publish"


async def crowded(site: Site) -> None:
    """Others have all places for large bodies."""
    while site.context.large_bodies.value:
        await site.context.large_bodies.acquire()


async def large_request(port: int) -> trio.SocketStream:
    document = {"properties": {}, "routing_key": "nobody", "payload_encoding": "string"}
    body = json.dumps({**document, "payload": "x" * LARGE_BYTES})
    head = f"POST {PUBLISH} HTTP/1.1\r\nhost: x\r\n{LOGIN}connection: close\r\n"
    return await connected(port, f"{head}content-length: {len(body)}\r\n\r\n{body}")


async def test_a_large_body_for_which_there_is_no_place(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come again; the client was not slow."""
    monkeypatch.setattr(ask, "PLACE_S_MAX", 0.05)
    async with served(site) as port:
        await crowded(site)
        answer = await everything(await large_request(port))
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable")
        assert b"\r\nretry-after: 5\r\n" in answer and b'"error":"busy"' in answer
        site.context.large_bodies.release()
        answer = await everything(await large_request(port))
        assert answer.startswith(b"HTTP/1.1 200") and b'"routed":false' in answer
        assert site.context.large_bodies.value == 1


HUGE_BYTES = 4_000_000  # more than sockets and Hypercorn's queue take


@asynccontextmanager
async def behind_a_door(site: Site) -> AsyncIterator[tuple[serve.Door, int]]:
    """The same as `served`, with the door; at the end nobody is counted any more."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    door = serve.Door(Served(listener, site.api))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(door.serve)
            yield door, listener.getsockname()[1]
            while door._count:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


def huge(request_line: str, login: str = LOGIN, size: int = HUGE_BYTES) -> str:
    """A request with a body of HUGE_BYTES; or with only so much of it."""
    head = f"{request_line} HTTP/1.1\r\nhost: x\r\n{login}content-length: {HUGE_BYTES}\r\n"
    return f"{head}connection: close\r\n\r\n" + "x" * size


EARLY = [
    ("PUT /api/vhosts/v", "", b"401"),
    ("PUT /api/vhosts/v", LOGIN.replace("Z3Vlc3Q=", "d3Jvbmc="), b"401"),
    ("PUT /api/nowhere", LOGIN, b"404"),
    ("POST /api/qlog/queues/%2F/none/adopted?mark=m", LOGIN, b"404"),
    ("POST /api/whoami", LOGIN, b"405"),
    ("PUT /api/vhosts/v", LOGIN, b"400"),  # too large
    ("OPTIONS /api/whoami", LOGIN, b"200"),
    ("GET /api/queues", LOGIN, b"200"),
]


@pytest.mark.parametrize(("request_line", "login", "status"), EARLY)
async def test_an_answer_before_the_body_is_there(
    site: Site, request_line: str, login: str, status: bytes
) -> None:
    """Many clients send everything before they read."""
    async with behind_a_door(site) as (_, port):
        stream = await connected(port, huge(request_line, login))
        assert (await everything(stream)).startswith(b"HTTP/1.1 " + status)


async def test_an_answer_to_a_client_that_has_gone_before_its_body_was_there(site: Site) -> None:
    async with behind_a_door(site) as (door, port):
        for request_line, login, _ in EARLY:
            stream = await connected(port, huge(request_line, login, HUGE_BYTES // 2))
            assert door._count
            await stream.aclose()


@pytest.mark.parametrize("bound", ["REST_S_MAX", "REST_BYTES_MAX"])
async def test_the_rest_of_a_body_is_not_read_for_ever(
    site: Site, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(serve, bound, 0.05 if bound == "REST_S_MAX" else HUGE_BYTES // 4)
    async with behind_a_door(site) as (_, port):
        stream = await connected(port, huge("PUT /api/vhosts/v", "", 0))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 401")
        with suppress(trio.BrokenResourceError):
            await stream.send_all(b"x" * (HUGE_BYTES // 2))
        await everything(stream)


async def test_an_answer_does_not_wait_for_the_body(site: Site) -> None:
    """Who reads first is not kept waiting; and the connection is used again."""
    async with behind_a_door(site) as (_, port):
        head, body = (
            f"PUT /api/vhosts/v HTTP/1.1\r\nhost: x\r\ncontent-length: {HUGE_BYTES}\r\n\r\n",
            b"x",
        )
        stream = await connected(port, head)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 401")
        await stream.send_all(body * HUGE_BYTES)
        request = f"GET /api/whoami HTTP/1.1\r\nhost: x\r\n{LOGIN}connection: close\r\n\r\n"
        await stream.send_all(request.encode())
        assert (await everything(stream)).startswith(b"HTTP/1.1 200")


async def test_a_huge_body_for_which_there_is_no_place(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is read, also more than is read behind other answers."""
    monkeypatch.setattr(ask, "PLACE_S_MAX", 0.05)
    monkeypatch.setattr(serve, "REST_BYTES_MAX", 0)
    async with behind_a_door(site) as (_, port):
        await crowded(site)
        stream = await connected(port, huge("POST /api/definitions"))
        answer = await everything(stream)
        assert answer.startswith(b"HTTP/1.1 503") and b'"error":"busy"' in answer
        gone = await connected(port, huge("POST /api/definitions", size=HUGE_BYTES // 2))
        await gone.aclose()


async def test_to_wait_for_a_place_is_not_to_be_slow(
    site: Site, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(ask, "BODY_S_MAX", ask.PLACE_S_MAX / 4)
    async with served(site) as port:
        await crowded(site)
        stream = await large_request(port)
        while not site.context.large_bodies.statistics().tasks_waiting:
            await trio.lowlevel.checkpoint()
        mock_clock.jump(ask.PLACE_S_MAX / 2)
        site.context.large_bodies.release()
        assert (await everything(stream)).startswith(b"HTTP/1.1 200")


async def test_a_head_that_is_too_large(site: Site) -> None:
    async with served(site) as port:
        bomb = "GET / HTTP/1.1\r\nhost: x\r\n" + "x-header: " + "x" * serve.HEAD_BYTES_MAX * 2
        answer = await everything(await connected(port, bomb))
        assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")) or answer == b""
        assert (await asked(port)).startswith(b"HTTP/1.1 200")


async def test_too_many_clients_are_turned_away(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve, "CONNECTIONS_MAX", 3)
    async with served(site) as port:
        half_open = [await connected(port, "GET") for _ in range(3)]
        with caplog.at_level(logging.WARNING):
            assert await asked(port) == b""
        assert "too many clients over HTTP" in caplog.text
        for stream in half_open:
            await stream.aclose()
        while not (await asked(port)).startswith(b"HTTP/1.1 200"):
            await trio.lowlevel.checkpoint()


async def test_clients_that_come_and_go_leave_no_room_taken(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "CONNECTIONS_MAX", 3)
    async with served(site) as port:
        for _ in range(10):
            assert (await asked(port)).startswith(b"HTTP/1.1 200")


async def test_a_client_that_does_not_read_holds_up_no_end(site: Site) -> None:
    """Its answer is larger than what the sockets take."""
    peer = site.peer()
    for number in range(6000):
        peer.client.operations.declare_queue(
            site.bench.broker.vhosts["/"],
            None,
            f"q{number}" + "x" * 200,
            durable=False,
            exclusive=False,
            auto_delete=False,
            arguments={},
        )
    with trio.fail_after(15):
        async with served(site) as port:
            stuck = await connected(port, f"GET /api/queues HTTP/1.1\r\nhost: x\r\n{LOGIN}\r\n")
            await stuck.receive_some(10)


async def test_the_socket_of_the_owner(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100) / ("e" * 100)  # longer than a socket's address can be
    directory.mkdir(parents=True)
    path = directory / listeners.SOCKET_NAME
    for _ in range(2):  # the second time a killed broker's is there
        with owner_socket(directory) as listener:
            assert listener is not None
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_ISSOCK(path.stat().st_mode)
        assert not path.exists()
        left = socket.socket(socket.AF_UNIX)
        here = Path.cwd()
        try:
            import os

            os.chdir(directory)
            left.bind(listeners.SOCKET_NAME)
        finally:
            os.chdir(here)
            left.close()


def test_a_default_port_in_use_is_a_warning_one_that_was_asked_for_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    settings = HttpSettings(management_port=port, metrics_port=0)
    with caplog.at_level(logging.WARNING):
        sockets = bind_http(settings, frozenset())
    assert not sockets.all
    assert f"cannot listen on 127.0.0.1:{port}" in caplog.text
    with pytest.raises(CannotListen):
        bind_http(settings, frozenset({"management_port"}))
    taken.close()


@pytest.mark.parametrize("asked", [frozenset[str](), frozenset({"metrics_port"})])
def test_a_port_that_another_process_listens_on_since_it_was_bound(
    asked: frozenset[str], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = HttpSettings(management_port=0, metrics_port=port)
    sockets, faster = bind_http(settings, asked), bind_http(settings, frozenset())
    faster.listen()
    try:
        if asked:
            with pytest.raises(CannotListen):
                sockets.listen()
        else:
            with caplog.at_level(logging.WARNING):
                sockets.listen()
            assert f"no metrics: cannot listen on 127.0.0.1:{port}" in caplog.text
        assert not sockets.eager
    finally:
        faster.close()
        sockets.close()
