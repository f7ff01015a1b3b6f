"""A client on a real socket inside trio, for brokers that run in the same program.

It promises: what is sent is what was given; what comes is taken apart into `Said`, heartbeats
included as None. It reads only when asked to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from qlog.server.amqp import spec
from qlog.server.amqp.frames import BODY, FRAME_HEAD, HEADER, METHOD, PROTOCOL_HEADER, method_frame
from qlog.server.amqp.spec import Method, decode_method
from qlog.server.amqp.values import Table
from qlog.server.app import RunningBroker
from qlog.server.broker.channels.client import Client
from qlog.server.net.session import Session
from tests.server.broker.support import CAPABILITIES, Said, make

T = TypeVar("T", bound=Method)


class Gone(Exception):
    """The broker closed the socket."""


class SocketPeer:
    """One connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._data = bytearray()
        self._contents: deque[Said | None] = deque()

    async def write(self, *parts: bytes) -> None:
        """Send octets."""
        await self.stream.send_all(b"".join(parts))

    async def send(self, channel: int, *methods: Method) -> None:
        """Send methods."""
        await self.write(*(method_frame(channel, method) for method in methods))

    async def next(self) -> Said | None:
        """The next that the broker says; None is a heartbeat. Raises Gone."""
        kind, channel, payload = await self._frame()
        if kind != METHOD:
            return None
        method = decode_method(payload)
        if not isinstance(method, spec.BasicDeliver | spec.BasicGetOk | spec.BasicReturn):
            return Said(channel, method)
        kind, _, payload = await self._frame()
        assert kind == HEADER
        size = int.from_bytes(payload[4:12], "big")
        body = bytearray()
        while len(body) < size:
            kind, _, payload = await self._frame()
            assert kind == BODY
            body += payload
        return Said(channel, method, bytes(body))

    async def expect(self, method: type[T]) -> T:
        """The next method, which must be of this kind; heartbeats are passed over."""
        while (said := await self.next()) is None:
            pass
        assert isinstance(said.method, method), said
        return said.method

    async def ask(self, channel: int, method: Method, reply: type[T]) -> T:
        """Send, and return the answer."""
        await self.send(channel, method)
        return await self.expect(reply)

    async def at_end(self) -> None:
        """Read to the end, which must come."""
        try:
            while True:
                await self._frame()
        except Gone:
            return

    async def _frame(self) -> tuple[int, int, bytes]:
        await self._fill(FRAME_HEAD.size)
        kind, channel, size = FRAME_HEAD.unpack_from(self._data)
        end = FRAME_HEAD.size + size + 1
        await self._fill(end)
        payload = bytes(self._data[FRAME_HEAD.size : end - 1])
        del self._data[:end]
        return kind, channel, payload

    async def _fill(self, size: int) -> None:
        while len(self._data) < size:
            try:
                data = await self.stream.receive_some(1 << 18)
            except trio.BrokenResourceError as error:
                raise Gone from error
            if not data:
                raise Gone
            self._data += data


async def connect(
    broker: RunningBroker, *, heartbeat_s: int = 0, properties: Table | None = None
) -> SocketPeer:
    """A client that is logged in, with channel 1 open."""
    peer = SocketPeer(await trio.open_tcp_stream("127.0.0.1", broker.port))
    login = spec.ConnectionStartOk(
        CAPABILITIES if properties is None else properties, "PLAIN", b"\0guest\0guest", "en_US"
    )
    await peer.write(PROTOCOL_HEADER)
    await peer.expect(spec.ConnectionStart)
    await peer.ask(0, login, spec.ConnectionTune)
    await peer.send(0, spec.ConnectionTuneOk(2047, 131072, heartbeat_s))
    await peer.ask(0, make(spec.ConnectionOpen, virtual_host="/"), spec.ConnectionOpenOk)
    await peer.ask(1, make(spec.ChannelOpen), spec.ChannelOpenOk)
    return peer


async def declare(peer: SocketPeer, queue: str) -> None:
    """A durable queue."""
    await peer.ask(1, make(spec.QueueDeclare, queue=queue, durable=True), spec.QueueDeclareOk)


def session_of(broker: RunningBroker, peer: SocketPeer) -> Session:
    """The broker's side of a connection."""
    host, port = peer.stream.socket.getsockname()[:2]
    (session,) = (
        client.sink
        for client in broker.broker.clients
        if isinstance(client, Client) and client.peer == f"{host}:{port}"
    )
    assert isinstance(session, Session)
    return session


@contextmanager
def deadline(seconds: float = 20.0) -> Iterator[None]:
    """What takes longer hangs."""
    with trio.fail_after(seconds):
        yield


async def until(condition: object, what: str) -> None:
    """Wait until `condition()` is true; the surrounding deadline ends it otherwise."""
    assert callable(condition)
    while not condition():
        await trio.sleep(0.005)
