"""One client's socket: one read a turn goes to the protocol, and what a tick wrote is sent.

A read may bring hundreds of messages; the reads of all clients in one turn are one tick. Promises:
a client that does not read holds up nobody else and costs at most its outbox. Deliveries to it
stop when the outbox is full, and it is not read any more when answers pile up beyond. While an
alarm is on or the disk is behind, publishers are not read. A session has no task: when it is not
read, or waits until the socket takes more, the poller is told, and its events go on where they
stopped.
"""

import logging
import socket
import struct
from collections.abc import Iterator, Sequence

from qlog.server.amqp.connection import Connection, Event, HeartbeatReceived
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.spec import Method
from qlog.server.broker.channels.client import Client
from qlog.server.broker.channels.sink import READ, Hold
from qlog.server.broker.timers import Timer
from qlog.server.net.outbox import Outbox
from qlog.server.net.poller import GONE, READABLE, WRITABLE
from qlog.server.net.transport import PLAIN, Transport
from qlog.server.net.turns import Turns

logger = logging.getLogger("qlog.connection")

# The size of one read: large enough to bring hundreds of messages of a busy publisher, small
# enough that the other clients have their turn within milliseconds. Large messages cost less time
# for each octet, so more is read of them. A client that sends little is read in small pieces,
# which cost less to allocate.
RECEIVE_BYTES_MIN = 16 * 1024
RECEIVE_BYTES = 256 * 1024
RECEIVE_LARGE_BYTES = 1024 * 1024
LARGE_FRAME_BYTES = 16 * 1024
# An event is not interrupted, and should take no longer than this. A message that a thousand
# bindings look at takes 200 us, an ack out of order 5 us, a message like the one before 1 us.
EVENT_S = 0.002
EVENT_BYTES_MIN = 512
EVENT_BYTES = 8 * 1024  # for a new connection, until it is known how long its messages take
# A peer that has not finished its handshake after so long is disconnected (rabbit_reader).
HANDSHAKE_S = 10.0
# Heartbeats leave at multiples of this part of their interval, so that many leave in one turn.
HEARTBEAT_GRID = 32
# How long a peer that reads slowly may take to read what was written before the end.
LAST_WORDS_S = 5.0
# How long a peer that was told everything may take to close. Publishes of it may be under way; if
# the socket were closed now, its writes would fail before it has read close-ok (rabbit_reader).
LINGER_S = 30.0

# For these reasons even events that were read already wait. For the others (the disk, a held
# channel) only the next read waits: what was read is little, and may be for other channels.
_STOPS = Hold.ALARM | Hold.ANSWERS | Hold.HANDSHAKE | Hold.LOGIN
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: what is unsent is dropped, the peer is told


class Session:
    """The socket of one client; the `Sink` that the broker writes to."""

    __slots__ = (
        "_closing_at_s",
        "_core",
        "_ended",
        "_events",
        "_fd",
        "_finishing",
        "_interest",
        "_left",
        "_marked",
        "_outbox",
        "_receive_bytes",
        "_reset",
        "_socket",
        "_starved",
        "_timer",
        "_traffic",
        "_transport",
        "_turns",
        "_writing",
        "client",
        "opened",
        "queued",
        "received_at_s",
        "sent_at_s",
        "started_at_s",
        "why_not_read",
    )

    def __init__(
        self,
        turns: Turns,
        sock: socket.socket,
        peer: str,
        *,
        loopback: bool,
        local: str = "",
        transport: Transport = PLAIN,
    ) -> None:
        self._turns = turns
        self._socket = sock
        self._fd = sock.fileno()
        self._transport = transport
        self._core = Connection(message_bytes_max=turns.broker.settings.message_bytes_max)
        self._core.event_bytes_max = EVENT_BYTES
        self._outbox = Outbox()
        self._events: Iterator[Event] | None = None  # what is left of the last read
        self._receive_bytes = RECEIVE_BYTES_MIN
        self._interest = READABLE
        self.queued = False
        self._marked = False  # is in the loop's list of sessions with something to send
        self._writing = False  # the socket is full: waits until it can be written
        self._starved = False  # deliveries were held back for a full outbox
        self._left = False  # has left the poller: the peer is gone, and its last events wait
        self._ended = False
        self._reset = False
        self._finishing = False  # all was written: what comes is dropped until the peer closes
        self._closing_at_s: float | None = None
        self.opened = False  # connection.open came
        self.why_not_read = READ
        self.client = Client(
            turns.broker, self, self._core, peer=peer, loopback=loopback, local=local
        )
        self._traffic = self.client.traffic
        self.started_at_s = self.received_at_s = self.sent_at_s = turns.now_s
        turns.poller.add(self._fd, self, READABLE)
        turns.sessions.add(self)
        self._timer: Timer = turns.at(self.started_at_s + HANDSHAKE_S, self._on_time)

    def __str__(self) -> str:
        return f"peer={self.client.peer}"

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
        """The outbox holds so much that the client must not be read."""
        return self._outbox.overfull

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
        if not self._marked:
            self._mark()

    def hold(self, reason: Hold) -> None:
        """Read nothing until the reason is released."""
        self.why_not_read |= reason
        self._watch()

    def release(self, reason: Hold) -> None:
        """The reason is gone: read on, if there is no other."""
        if reason not in self.why_not_read:
            return
        self.why_not_read &= ~reason
        if self.why_not_read is READ:
            self.received_at_s = self._turns.now_s  # the client was silent since we did not read
            self._go_on()

    def disconnect(self, *, after_s: float = 0.0) -> None:
        """Close when all that was written is out, at the latest LAST_WORDS_S from now.

        `after_s`: the socket stays open for at least so long, for the peer's answer, or to make the
        peer wait.
        """
        self._closing_at_s = self._turns.now_s + after_s
        self._schedule()
        self._go_on()  # a peer that was held back may have an answer
        self._mark()

    def finish(self) -> None:
        """Send what was written, then drop what comes until the peer closes, at most LINGER_S."""
        self._finishing = True
        self.disconnect(after_s=LINGER_S)

    def _mark(self) -> None:
        if not self._marked:
            self._marked = True
            self._turns.mark(self)

    # -- the poller --------------------------------------------------------------------------

    def noticed(self, ready: int) -> None:
        """The poller reports that the socket is readable or writable, or that the peer is gone."""
        if self._ended:
            return
        if ready & WRITABLE and self._writing:
            self._send()
        if ready & READABLE or (ready & GONE and self._interest & READABLE):
            if self._transport.greeting:
                self._turns.handshakes.enqueue(self)
            else:
                self._turns.enqueue(self)
        elif ready & GONE:
            self._peer_died()

    def _peer_died(self) -> None:
        """The peer died while it is not read. The poller would report that again and again.

        If only the disk is awaited, what the client sent before is still obeyed. Under an alarm,
        which may last for hours, or with a full outbox, the session ends now: its messages go back.
        """
        if self.why_not_read & _STOPS:
            self.cut()
        elif not self._left:
            self._left = True
            self._turns.poller.remove(self._fd)

    def _watch(self) -> None:
        """Tell the poller what to watch for. A closing client is read, for its close-ok."""
        interest = WRITABLE if self._writing else 0
        if Hold.LOGIN in self.why_not_read:
            interest |= GONE  # for who leaves no password is hashed
        if self.why_not_read is READ or self._core.ended:
            interest |= READABLE
        if interest != self._interest and not (self._left or self._ended):
            self._interest = interest
            self._turns.poller.change(self._fd, interest)

    def _go_on(self) -> None:
        self._watch()
        if self._events is not None or self._left:
            self._turns.enqueue(self)

    # -- out ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what can be sent without waiting; for the rest the poller says when."""
        self._marked = False
        if not (self._writing or self._ended):
            self._send()

    def _send(self) -> None:
        outbox, traffic = self._outbox, self._traffic
        try:
            done = outbox.send(self._socket, self._transport)
        except OSError:
            self.cut()  # a read would fail, too, but the client may not be read now
            return
        traffic.send_cnt += 1
        traffic.send_oct, traffic.send_pend = outbox.sent_bytes, outbox.bytes
        self.sent_at_s = self._turns.now_s
        if self._writing is done:
            self._writing = not done
            self._watch()
        if Hold.ANSWERS in self.why_not_read and not outbox.overfull:
            self.release(Hold.ANSWERS)
        if self._starved and not outbox.full:
            self._starved = False
            self._turns.drained(self)
        if done and self._closing_at_s is not None:
            self._after_last_words()

    def _after_last_words(self) -> None:
        assert self._closing_at_s is not None
        if not self._finishing and self._closing_at_s > self._turns.now_s:
            return
        if self._transport.farewell():
            self._send()
        elif self._finishing:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.cut()
        else:
            self.cut()

    def feed(self) -> None:
        """There is room again: ask the queues for deliveries."""
        if not self._ended:
            self.client.drained()

    # -- in ----------------------------------------------------------------------------------

    def take_turn(self, until_s: float) -> int:
        """Obey what one read brings, or what was left of the read before, until about `until_s`.

        Returns how many octets were read.
        """
        if self._ended:
            return 0
        size = 0
        events = self._events
        if events is None:
            spared = False
            if self._turns.congested and (self.client.publishes or self._core.uploads):
                spared = self._sends_little and self._turns.spares
                if not spared:
                    self.hold(Hold.DISK)  # before the read: one turn can bring many large messages
                    self._turns.fall_behind(self)
            if self.why_not_read is not READ and not self._core.ended:
                return 0
            data = self._receive()
            if not data:
                return 0
            size = len(data)
            if spared:
                self._turns.note_little(size)
            if self._transport is not PLAIN:
                data = self._opened(data)
            events = self._core.receive(data)
        if self._obey(events, until_s):
            self._events = None
            self._after_read()
        else:
            self._events = events
        return size

    @property
    def _sends_little(self) -> bool:
        """The client's reads are small, and none of them ends a large message."""
        return self._receive_bytes == RECEIVE_BYTES_MIN and not self._core.uploads

    def _opened(self, data: bytes) -> bytes:
        """What octets of a transport say."""
        transport = self._transport
        greeting = transport.greeting
        try:
            plain = transport.feed(data)
        except ConnectionError as error:
            logger.warning("TLS failed peer=%s reason=%s", self.client.peer, error)
            self._core.end()
            self.disconnect()
            plain = b""
        if greeting and not transport.greeting:
            self._turns.handshakes.leave(self)
            self.client.secured = transport.secured
        if transport.has_words:
            self._mark()
        return plain

    def _receive(self) -> bytes | None:
        """One read; None: there is nothing to read, or the peer has gone."""
        size = self._receive_bytes
        if self._core.frame_bytes_awaited >= LARGE_FRAME_BYTES:
            size = RECEIVE_LARGE_BYTES
        try:
            data = self._socket.recv(size)
        except BlockingIOError:
            return None
        except OSError:
            self.cut()
            return None
        if not data:
            self.cut()
            return None
        self.received_at_s = self._turns.now_s
        self._traffic.recv_cnt += 1
        self._traffic.recv_oct += len(data)
        if len(data) == size:
            self._receive_bytes = RECEIVE_BYTES
        elif len(data) < RECEIVE_BYTES_MIN // 4:
            self._receive_bytes = RECEIVE_BYTES_MIN
        return data

    def _obey(self, events: Iterator[Event], until_s: float) -> bool:
        """Obey events. False: some are left, for the next turn, or for the end of a hold."""
        client, core, turns, outbox = self.client, self._core, self._turns, self._outbox
        clock_s = turns.clock_s
        now_s = clock_s()
        for event in events:
            client.handle(event)
            if event.__class__ is not HeartbeatReceived:
                turns.touched = True
            if outbox.overfull:  # one read may bring hundreds of basic.get
                self.hold(Hold.ANSWERS)
            held = self.why_not_read
            if held is not READ and held & _STOPS and not core.ended:
                return False
            began_s, now_s = now_s, clock_s()
            if core.event_bytes >= core.event_bytes_max // 2 or now_s - began_s > EVENT_S:
                self._adapt(now_s - began_s)
            if now_s >= until_s:
                turns.go_on(self)
                return False
        return True

    def _adapt(self, took_s: float) -> None:
        """Adapt the size of events to the time that the last one took, which was long, or large.

        So one event takes only a part of the client's share, whatever its messages cost.
        """
        core = self._core
        size = min(core.event_bytes, core.event_bytes_max)
        if took_s > EVENT_S:
            core.event_bytes_max = max(int(size * EVENT_S / took_s), EVENT_BYTES_MIN)
        elif took_s < EVENT_S / 4:
            core.event_bytes_max = min(core.event_bytes_max * 2, RECEIVE_LARGE_BYTES)

    def _after_read(self) -> None:
        client = self.client
        if client.broker.blocked_reason and self._core.uploads:
            client.block()  # tell the client now, before it has sent all of a large message
        if not self.opened and client.vhost is not None:
            self.opened = True
            self._schedule()
        if self._left and self.why_not_read is READ:
            self._turns.enqueue(self)
        if self._transport.ended and not self._finishing:
            self.disconnect()  # as at the end of a stream of plain octets

    def catch_up(self) -> None:
        """The disk has caught up."""
        self.release(Hold.DISK)

    # -- time --------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Have `_on_time` called when something is due."""
        self._timer.cancel()
        due_s = self._next_due_s()
        if due_s is not None and not self._ended:
            self._timer = self._turns.at(due_s, self._on_time)

    def _next_due_s(self) -> float | None:
        """When to look again: a deadline, or a heartbeat."""
        closing_s = self._closing_at_s
        if closing_s is not None:
            late = self._outbox and closing_s <= self._turns.now_s
            return closing_s + LAST_WORDS_S if late else closing_s
        if not self.opened:
            return self.started_at_s + HANDSHAKE_S
        interval_s = self._core.heartbeat_s
        if not interval_s:
            return None
        # With octets under way a heartbeat says nothing new, and is not added to them.
        said_s = self._turns.now_s if self._outbox else self.sent_at_s
        heard_s = self.received_at_s if self.why_not_read is READ else self._turns.now_s
        # A little early, so that those of many clients leave in one turn.
        grid_s = interval_s / HEARTBEAT_GRID
        send_s = (said_s + interval_s / 2) // grid_s * grid_s
        return min(send_s, heard_s + 2 * interval_s)

    def _on_time(self) -> None:
        """Heartbeats, and deadlines that have passed."""
        client, now_s = self.client, self._turns.now_s
        due_s = self._next_due_s()
        if due_s is None or due_s > now_s:
            self._schedule()
            return
        if self._closing_at_s is not None:
            if not self._outbox and self._transport.farewell():
                self._send()
                self._schedule()
            else:
                self.cut()
            return
        if not self.opened:
            logger.warning("handshake timeout peer=%s", client.peer)
            self.cut()
            return
        interval_s = self._core.heartbeat_s
        if self.why_not_read is READ and now_s - self.received_at_s >= 2 * interval_s:
            logger.warning("missed heartbeats peer=%s interval_s=%d", client.peer, interval_s)
            # The peer may be stuck and not gone: reset, which tells it, and drop what is unsent.
            self._reset = True
            self.cut()
            return
        self.sent_at_s = now_s
        self._outbox.add(self._core.heartbeat())
        self._mark()
        self._schedule()

    # -- the end -----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Everything was said; only the peer has to close."""
        return self._finishing and not self._outbox

    def cut(self) -> None:
        """End now: nothing is read or sent any more, and the turn's end closes the socket."""
        if self._ended:
            return
        self._ended = True
        self._timer.cancel()
        if self._transport.greeting:
            self._turns.handshakes.leave(self)
        if not self._left:
            self._turns.poller.remove(self._fd)
        self._turns.leave(self)

    def bury(self) -> None:
        """Give back what the client held, and the socket."""
        try:
            self.client.lost()
        finally:
            del self.client  # the two hold each other, and the collector of cycles runs rarely
            self._events = None
            self._outbox.clear()
            if self._reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._socket.close()
