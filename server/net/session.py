"""One client's socket: a reader that hands over what came, and a way out that rarely waits.

A read brings up to RECEIVE_BYTES: hundreds of messages, one tick. What the tick wrote is sent at its
end without waiting; only when the socket is full does a writer task wait for it. Promises: a client
that does not read holds up nobody else and costs at most its outbox: deliveries stop when that is
full, and it is not read either when its answers pile up beyond. While an alarm is on or the disk is
behind, publishers are not read.
"""

import logging
import socket
from collections.abc import Sequence
from typing import Protocol

import trio

from qlog.server.amqp.connection import Connection
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.spec import Method
from qlog.server.broker.broker import Broker
from qlog.server.broker.channels.client import Client
from qlog.server.broker.channels.sink import READ, Hold
from qlog.server.net.outbox import Outbox
from qlog.server.net.transport import PLAIN, Transport

logger = logging.getLogger("qlog.connection")

# One read: large enough that a busy publisher's tick carries hundreds of messages, small enough that
# the others' turn comes within milliseconds. Of large messages, more fit in the same time.
RECEIVE_BYTES = 256 * 1024
RECEIVE_LARGE_BYTES = 1024 * 1024
LARGE_FRAME_BYTES = 16 * 1024
# A peer that has not finished its handshake by then is not a client (rabbit_reader).
HANDSHAKE_S = 10.0
# How long a peer that reads slowly may take to read what was written before the end.
LAST_WORDS_S = 5.0


class Ticks(Protocol):
    """What a session needs of those who end its ticks."""

    @property
    def broker(self) -> Broker:
        """Whose client it is."""

    @property
    def congested(self) -> bool:
        """So much waits for the disk that publishers must."""

    def end_tick(self) -> None:
        """Deliver, hand over to the disk, and send what was written."""

    def mark(self, session: "Session") -> None:
        """The session is to be flushed when the tick ends."""

    def drained(self, session: "Session") -> None:
        """The session can take deliveries again."""

    def hold_back(self, session: "Session", held: bool) -> None:
        """The session is not read any more until it is told to `resume`; or it is again."""


class Session:
    """The socket of one client; the `Sink` that the broker writes to."""

    def __init__(
        self,
        network: Ticks,
        sock: socket.socket,
        peer: str,
        *,
        loopback: bool,
        transport: Transport = PLAIN,
    ) -> None:
        self._network = network
        self._transport = transport
        self._socket = sock
        self._core = Connection(message_bytes_max=network.broker.settings.message_bytes_max)
        self._outbox = Outbox()
        self._marked = False  # stands in the network's list of those with something to send
        self._writing = False  # a writer task waits for the socket
        self._starved = False  # deliveries were held back for a full outbox
        self._closing_at_s: float | None = None
        # Who cancels the broker stops it politely: clients are told before they are cut.
        self._scope = trio.CancelScope(shield=True)
        self._nursery: trio.Nursery | None = None
        self._resume = trio.Event()
        self.why_not_read = READ
        self.client = Client(network.broker, self, self._core, peer=peer, loopback=loopback)
        self.started_at_s = self.received_at_s = self.sent_at_s = network.broker.now_s()

    # -- the Sink ----------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """The outbox holds enough."""
        if self._outbox.full:
            self._starved = True
            return True
        return False

    @property
    def overfull(self) -> bool:
        """The outbox holds more than it ever should."""
        return self._outbox.overfull

    def hold(self, reason: Hold) -> None:
        """Read nothing until the reason is released."""
        self.why_not_read |= reason

    def release(self, reason: Hold) -> None:
        """The reason is gone."""
        if reason in self.why_not_read:
            self.why_not_read &= ~reason
            self.resume()

    @property
    def frame_max(self) -> int:
        """Negotiated, in bytes."""
        return self._core.frame_max

    def send(self, channel: int, method: Method) -> None:
        """Queue a method."""
        self._outbox.add(self._core.send(channel, method))
        self._mark()

    def send_content(self, channel: int, method: Method, envelope: Envelope, body: bytes) -> None:
        """Queue a method with its message."""
        self._outbox.add(self._core.send_content(channel, method, envelope, body))
        self._mark()

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Queue encoded frames."""
        self._outbox.extend(buffers)
        self._mark()

    def disconnect(self, *, after_s: float = 0.0) -> None:
        """Close when what was written is out, at the latest LAST_WORDS_S from now; with a delay,
        not before: the socket stays open for the peer's answer, or to make it wait.
        """
        self._closing_at_s = self._network.broker.now_s() + after_s
        self._resume.set()  # a reader that is held back reads the peer's answer
        self._mark()

    def _mark(self) -> None:
        if not self._marked:
            self._marked = True
            self._network.mark(self)

    # -- out ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what can be sent without waiting; the rest is a writer task's."""
        self._marked = False
        if self._writing:
            return
        try:
            done = self._outbox.send(self._socket, self._transport)
        except OSError:
            self._scope.cancel()  # the reader would find out too, but not if it is not reading
            return
        self.sent_at_s = self._network.broker.now_s()
        if done:
            self._after_sending()
        elif self._nursery is not None:
            self._writing = True
            self._nursery.start_soon(self._write)

    async def _write(self) -> None:
        while self._outbox:
            await trio.lowlevel.wait_writable(self._socket)
            overfull = self._outbox.overfull
            try:
                self._outbox.send(self._socket, self._transport)
            except OSError:
                self._scope.cancel()
                return
            self.sent_at_s = self._network.broker.now_s()
            if overfull and not self._outbox.overfull:
                self.resume()
            self._feed()
        self._writing = False
        self._after_sending()

    def _feed(self) -> None:
        if self._starved and not self._outbox.full:
            self._starved = False
            self._network.drained(self)

    def _after_sending(self) -> None:
        self._feed()
        if self._closing_at_s is not None and self._closing_at_s <= self._network.broker.now_s():
            self._scope.cancel()

    # -- in ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the client until it goes, is thrown out, or the broker stops."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    try:
                        await self._read()
                    finally:
                        self._nursery = None  # it closes: no writer can start any more
                    nursery.cancel_scope.cancel()
        finally:
            try:
                self.client.lost()
            finally:
                self._outbox.clear()
                self._socket.close()
            self._network.end_tick()

    async def _read(self) -> None:
        sock, core, client, network = self._socket, self._core, self.client, self._network
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                large = core.frame_bytes_awaited >= LARGE_FRAME_BYTES
                data = sock.recv(RECEIVE_LARGE_BYTES if large else RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            self.received_at_s = network.broker.now_s()
            for event in core.receive(self._transport.feed(data)):
                client.handle_events((event,))
                if self._outbox.overfull:  # hundreds of basic.get may stand in one read
                    network.end_tick()
                    await self._wait_to_read()
            network.end_tick()
            await self._wait_to_read()

    def _judge(self) -> None:
        """Set or clear the reasons that are the session's own to see."""
        if self._outbox.overfull:
            self.why_not_read |= Hold.ANSWERS
        else:
            self.why_not_read &= ~Hold.ANSWERS
        if self._network.congested and self.client.publishes:
            self.why_not_read |= Hold.DISK
        else:
            self.why_not_read &= ~Hold.DISK

    @property
    def must_wait(self) -> bool:
        """The client is not to be read. One that is closing is: its close-ok is awaited."""
        self._judge()
        return self.why_not_read is not READ and not self._core.ended

    async def _wait_to_read(self) -> None:
        while self.must_wait:
            self._resume = trio.Event()
            self._network.hold_back(self, True)
            await self._resume.wait()
            self._network.hold_back(self, False)

    def cut(self) -> None:
        """Close the socket now."""
        self._scope.cancel()

    def resume(self) -> None:
        """The alarm is over, or the disk has caught up: read on."""
        self.received_at_s = self._network.broker.now_s()  # silence was ours until now
        self._resume.set()

    # -- time --------------------------------------------------------------------------------

    def check(self, now_s: float) -> None:
        """Once a second: heartbeats, and deadlines that have passed."""
        client = self.client
        if self._closing_at_s is not None:
            deadline_s = self._closing_at_s + (LAST_WORDS_S if self._outbox else 0)
            if deadline_s <= now_s:
                self._scope.cancel()
            return
        if client.vhost is None and now_s - self.started_at_s > HANDSHAKE_S:
            logger.warning("handshake timeout peer=%s", client.peer)
            self._scope.cancel()
            return
        interval_s = client.heartbeat_s
        if not interval_s or client.vhost is None:
            return
        if now_s - self.sent_at_s >= interval_s / 2 and not self._outbox:
            self._outbox.add(self._core.heartbeat())
            self._mark()
        if now_s - self.received_at_s > 2 * interval_s and not self.must_wait:
            logger.warning("missed heartbeats peer=%s interval_s=%d", client.peer, interval_s)
            self._scope.cancel()
