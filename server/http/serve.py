"""HTTP on sockets: Hypercorn's trio worker in the loop of the broker, with bounds.

Promises: no more than CONNECTIONS_MAX clients at a time on a listener, others are turned away at
once; a client that does not finish its request in time, or does not read its answer, is cut off;
one that is answered before its body is complete can send the rest, within bounds, and then read.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, H11SendableEvent
from hypercorn.utils import wrap_app

logger = logging.getLogger("qlog.http")

# The file descriptors of a broker are for AMQP. A browser opens six connections.
CONNECTIONS_MAX = 200
# A client that has not sent the head of its next request by then is cut off.
HEAD_S_MAX = 10.0
HEAD_BYTES_MAX = 32 * 1024
# A client that takes nothing of its answer for so long is cut off.
SEND_S_MAX = 20.0
# What comes of a body behind its answer is read and dropped for so long, and up to so much: as long
# as a body may take, and as large as most may be (ask.py).
REST_S_MAX = 30.0
REST_BYTES_MAX = 20_000_000


REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class ReasonedProtocol(H11Protocol):
    """HTTP/1.1 with the reason in the status line, which Hypercorn leaves out.

    RabbitMQ has it ("204 No Content"), and there are clients that compare all of that.
    """

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        if isinstance(event, h11.Response):
            event = h11.Response(
                status_code=event.status_code,
                headers=event.headers.raw_items(),
                reason=REASONS.get(event.status_code, b""),
            )
        await super()._send_h11_event(event)


class ReasonedServer(TCPServer):
    """A client's connection, with the protocol from above: Hypercorn has no setting for that."""

    @property
    def protocol(self) -> ProtocolWrapper:
        """What the server talks to."""
        return self._protocol

    @protocol.setter
    def protocol(self, made: ProtocolWrapper) -> None:
        """Hypercorn has made it, for HTTP/1.1, and nothing was said yet."""
        made.protocol = ReasonedProtocol(
            made.app,
            made.config,
            made.context,
            made.task_group,
            made.state,
            made.ssl,
            made.client,
            made.server,
            made.send,
        )
        self._protocol = made


@dataclass(frozen=True, slots=True)
class Served:
    """A socket that listens, and the ASGI application for its clients."""

    listener: socket.socket
    app: Any
    tls: Callable[[], ssl.SSLContext] | None = None  # the context for the next client


class PatientStream:
    """A client's stream, with a bound for how long a send may take.

    `over` is set when one of the two sides has closed it.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream: Any = stream
        self.socket = stream.socket
        self.over = trio.Event()

    async def receive_some(self, size: int) -> bytes | bytearray:
        """As in trio."""
        data: bytes | bytearray = await self._stream.receive_some(size)
        if not data:
            self.over.set()
        return data

    async def send_all(self, data: bytes) -> None:
        """As in trio. Raises BrokenResourceError if the client takes nothing for too long."""
        view = memoryview(data)
        for first in range(0, len(view), 65536):
            with trio.move_on_after(SEND_S_MAX) as scope:
                await self._stream.send_all(view[first : first + 65536])
            if scope.cancelled_caught:
                raise trio.BrokenResourceError("the client does not read")

    async def send_eof(self) -> None:
        """As in trio."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """As in trio."""
        self.over.set()
        await self._stream.aclose()


class PatientTLSStream(PatientStream):
    """The same with TLS; Hypercorn makes the handshake."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        super().__init__(stream.transport_stream)
        self.transport_stream = stream.transport_stream
        self._stream: Any = stream
        self.do_handshake = stream.do_handshake

    def selected_alpn_protocol(self) -> str | None:
        """Known after the handshake."""
        protocol: str | None = self._stream.selected_alpn_protocol()
        return protocol

    async def send_eof(self) -> None:
        """TLS has no half-closed connections. Raises AttributeError, which Hypercorn expects."""
        raise AttributeError("send_eof")


def _encrypted(stream: trio.SocketStream, context: ssl.SSLContext) -> PatientTLSStream:
    return PatientTLSStream(
        trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    )


def _config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = logger
    config.include_server_header = False
    config.keep_alive_timeout = HEAD_S_MAX
    config.ssl_handshake_timeout = HEAD_S_MAX
    config.h11_max_incomplete_size = HEAD_BYTES_MAX
    config.alpn_protocols = ["http/1.1"]
    return config


class _Rest:
    """What comes of a request while and after it is answered: it is dropped.

    Without that an answer that needs no body (401, 404 …) would not reach a client that sends all
    of it first. And Hypercorn's queue would be full: it puts the end of a request there from the
    task that has answered, which would wait for itself.
    """

    def __init__(self, receive: Callable[[], Awaitable[Any]]) -> None:
        self._receive = receive
        self.complete = False  # nothing more comes
        self._enough = trio.Event()

    async def receive(self) -> Any:
        """The next part, for the application."""
        message = await self._receive()
        self.complete = message["type"] == "http.disconnect" or not message.get("more_body")
        return message

    async def drop(self) -> None:
        """Drop what comes until it is complete, and for ever if it never is."""
        left = REST_BYTES_MAX
        with trio.move_on_after(REST_S_MAX):
            while left > 0 and not self.complete:
                left -= len((await self.receive()).get("body", b""))
        self._enough.set()
        while not self.complete:
            await self.receive()

    async def wait(self) -> None:
        """Until the client has sent all, or has had its time."""
        await self._enough.wait()


def _reading_on(app: Any) -> Any:
    """The same ASGI application, where the end of an answer waits for the end of its request."""

    async def reading_on(scope: Any, receive: Any, send: Any) -> None:
        rest = _Rest(receive)
        async with trio.open_nursery() as nursery:
            answering = False

            async def send_on(message: Any) -> None:
                nonlocal answering
                if not answering and not rest.complete:
                    nursery.start_soon(rest.drop)
                answering = True
                last = not message.get("more_body") and message["type"] == "http.response.body"
                if last and not rest.complete:
                    await send({**message, "more_body": True})
                    await rest.wait()
                    message = {"type": "http.response.body", "body": b""}
                await send(message)

            await app(scope, rest.receive, send_on)
            nursery.cancel_scope.cancel()

    return reading_on


class Door:
    """One listener, and how many clients it has let in."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._config = _config()
        self._context = WorkerContext(None)
        self._count = 0
        self._streams: set[trio.SocketStream] = set()
        self._turned_away = False

    async def serve(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Let clients in until cancelled."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._served.listener))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cut_at_the_end)
            task_status.started()
            await trio.serve_listeners(self._client, [listener])

    async def _cut_at_the_end(self) -> None:
        """Hypercorn shields its sends: a client that does not read must not hold up the end."""
        try:
            await trio.sleep_forever()
        finally:
            for stream in list(self._streams):
                stream.socket.close()

    async def _client(self, stream: trio.SocketStream) -> None:
        if self._count >= CONNECTIONS_MAX:
            if not self._turned_away:
                self._turned_away = True
                logger.warning("too many clients over HTTP: new ones are turned away")
            await stream.aclose()
            return
        self._count += 1
        self._streams.add(stream)
        try:
            app = wrap_app(_reading_on(self._served.app), 0, "asgi")
            state = ConnectionState({})
            tls = self._served.tls
            patient: Any = PatientStream(stream) if tls is None else _encrypted(stream, tls())
            async with trio.open_nursery() as nursery:
                server = ReasonedServer(app, self._config, self._context, state, patient)
                nursery.start_soon(server.run)
                # Hypercorn would keep the tasks of a client that has gone for another HEAD_S_MAX.
                await patient.over.wait()
                nursery.cancel_scope.cancel()
        except Exception:
            logger.exception("internal error in a connection over HTTP")
        finally:
            self._count -= 1
            self._streams.discard(stream)
            self._turned_away = self._turned_away and self._count >= CONNECTIONS_MAX // 2
            await trio.aclose_forcefully(stream)


async def serve(served: Sequence[Served], ready: Callable[[], None] = lambda: None) -> None:
    """Serve all of these until cancelled. `ready` is called when all listen."""
    async with trio.open_nursery() as nursery:
        for one in served:
            await nursery.start(Door(one).serve)
        ready()
