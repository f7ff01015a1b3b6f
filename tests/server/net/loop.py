"""The loop without trio: a test drives it turn by turn, with sockets and clocks of its own.

It promises: nothing happens but in `turn` and `settle`; time passes only when the test says so; the
disk (`Bench`) answers only when it is told to.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from qlog.server.amqp import spec
from qlog.server.amqp.frames import BODY, FRAME_HEAD, HEADER, METHOD, PROTOCOL_HEADER, method_frame
from qlog.server.amqp.spec import Method, decode_method
from qlog.server.net.poller import Poller
from qlog.server.net.session import Session
from qlog.server.net.transport import PLAIN, Transport
from qlog.server.net.turns import Participant, Turns
from tests.server.broker.support import CAPABILITIES, DEFINING, Bench, Said, make

LOGIN = spec.ConnectionStartOk(CAPABILITIES, "PLAIN", b"\0guest\0guest", "en_US")
# More turns than anything here needs: what goes on for longer goes on for ever.
TURNS_MAX = 2000


class Remote:
    """The client's end of a socket pair."""

    def __init__(self, loop: Loop, transport: Transport = PLAIN) -> None:
        self.loop = loop
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        theirs.setblocking(False)
        self.session = Session(loop.turns, theirs, "test", loopback=True, transport=transport)
        self._heard = b""

    def write(self, *parts: bytes) -> None:
        """Put octets into the socket, all of which it must take."""
        data = b"".join(parts)
        assert self.socket.send(data) == len(data)

    def send(self, channel: int, *methods: Method) -> None:
        """Put methods into the socket."""
        self.write(*(method_frame(channel, method) for method in methods))

    def read(self) -> list[Said | None]:
        """All that has come; None is a heartbeat."""
        while True:
            try:
                data = self.socket.recv(1 << 20)
            except BlockingIOError:
                break
            if not data:
                break
            self._heard += data
        said: list[Said | None] = []
        at = 0
        while len(self._heard) - at >= FRAME_HEAD.size:
            kind, channel, size = FRAME_HEAD.unpack_from(self._heard, at)
            end = at + FRAME_HEAD.size + size
            if len(self._heard) <= end:
                break
            payload = self._heard[at + FRAME_HEAD.size : end]
            at = end + 1
            if kind == METHOD:
                said.append(Said(channel, decode_method(payload)))
            elif kind == HEADER:
                last = said[-1]
                assert last is not None
                said[-1] = Said(channel, last.method, b"")
            elif kind == BODY:
                last = said[-1]
                assert last is not None and last.body is not None
                said[-1] = Said(channel, last.method, last.body + payload)
            else:
                said.append(None)
        self._heard = self._heard[at:]
        return said

    def hear(self) -> list[Method | None]:
        """The same without messages."""
        return [None if said is None else said.method for said in self.read()]

    def ask(self, channel: int, *methods: Method) -> list[Method | None]:
        """Send, let the loop settle, and read; a definition is on disk before its reply."""
        self.send(channel, *methods)
        self.loop.settle()
        heard = self.hear()
        if not heard and isinstance(methods[-1], DEFINING):
            self.loop.disk()
            heard = self.hear()
        return heard

    @property
    def at_end(self) -> bool:
        """The broker has said its last: the socket is closed, or its half."""
        try:
            return not self.socket.recv(1 << 20)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def die(self) -> None:
        """Close at once and unread, so that the broker's end is reset as a TCP socket is."""
        self.socket.close()


class Loop:
    """A broker with a loop and no clients."""

    def __init__(self, directory: Path, poller: Poller[Participant] | None = None) -> None:
        self.bench = Bench(directory)
        self.broker = self.bench.broker
        self.spent_s = 0.0  # the loop's own clock
        self.step_s = 0.0  # by which each look at it moves it
        self.turns = Turns(self.broker, poller=poller, clock_s=self._clock_s)

    def _clock_s(self) -> float:
        self.spent_s += self.step_s
        return self.spent_s

    def turn(self) -> bool:
        """One turn; whether there was something to do."""
        return self.turns.turn(0.0)

    def settle(self) -> int:
        """Turns until there is nothing more to do; how many had something."""
        for number in range(TURNS_MAX):
            if not self.turn():
                return number
        raise AssertionError("the loop spins")

    def disk(self) -> None:
        """The disk does all it was given, and the loop hears of it."""
        while sum(worker.run_one() for worker in self.bench.workers):
            self.turns.wake()
            self.settle()

    def pass_s(self, seconds: float) -> None:
        """Time passes, half a second at a time, with all that is due."""
        end_s = self.bench.now_s + seconds
        while self.bench.now_s < end_s:
            self.bench.now_s = min(end_s, self.bench.now_s + 0.5)
            self.settle()

    def client(self, *, heartbeat_s: int = 0, transport: Transport = PLAIN) -> Remote:
        """A client that is logged in, with channel 1 open."""
        remote = Remote(self, transport)
        remote.write(PROTOCOL_HEADER)
        self.settle()
        remote.send(
            0,
            LOGIN,
            spec.ConnectionTuneOk(2047, 131072, heartbeat_s),
            make(spec.ConnectionOpen, virtual_host="/"),
        )
        remote.send(1, make(spec.ChannelOpen))
        self.settle()
        assert remote.hear()[-1] == spec.ChannelOpenOk()
        return remote

    def close(self) -> None:
        """Cut who is left, and stop."""
        self.turns.cut()
        self.bench.close()
        self.turns.close()


def running(directory: Path) -> Iterator[Loop]:
    """A loop for the duration of a test."""
    loop = Loop(directory)
    yield loop
    loop.close()


def rst(sock: socket.socket) -> None:
    """Close a TCP socket so that the peer's is reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
