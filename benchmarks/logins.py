"""The process that logs in: clients that come again and again, or guess passwords.

Each login is a connection of its own. One with the right password opens a channel, closes the
connection as a client should, and is done. A guess is cut when the broker has refused it, or after
PATIENCE_S, so that a broker that makes guessers wait hears the next guess all the same; each guess
is another password, and comes from one of many addresses of this machine. Processes are driven as
those of load.py are.
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe

from benchmarks import wire
from benchmarks.load import GO, READY, STALL_S, STOP, Meter, guarded
from benchmarks.measure import Latencies, Progress

# How long one who guesses waits for an answer.
PATIENCE_S = 0.05
# Guesses come from so many addresses, 127.1.0.1 and so on.
GUESSING_ADDRESSES = 200
LOOK_S = 0.01
CLOSE = struct.pack(">H", 200) + wire.shortstr("OK") + wire.METHOD.pack(0, 0)


@dataclass(frozen=True, slots=True)
class LoginPlan:
    """Who logs in.

    Attributes:
        at_once: how many logins may be under way.
        a_second: how many begin in a second, 0 for as many as can.
        guesses: with wrong passwords.
    """

    at_once: int
    a_second: int = 0
    guesses: bool = False


@dataclass(slots=True)
class Logins:
    """How many logins had ended by when, and how long those took that were not guesses."""

    ended: Progress = field(default_factory=Progress)
    took: Latencies = field(default_factory=list)


class Login:
    """One login under way: what it says next, and to which answer."""

    def __init__(self, address: wire.Address, guess: int | None) -> None:
        self.begun_ns = time.monotonic_ns()
        self.socket = socket.socket()
        self.socket.setblocking(False)
        if guess is not None:
            self.socket.bind((f"127.1.0.{1 + guess % GUESSING_ADDRESSES}", 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex((address.host, address.port))
        self._unread = bytearray()
        self._steps = iter(_guess(address, guess) if guess is not None else _login(address))
        self._says, self._awaited = next(self._steps)

    def speak(self) -> None:
        """Say what is next."""
        if self.socket.send(self._says) < len(self._says):
            raise wire.Refused("no room for some hundred octets")

    def read(self) -> bool:
        """Receive, and speak if that was an answer. True: the last answer has come.

        Raises:
            Refused: the broker answers something else, or hangs up.
        """
        data = self.socket.recv(65536)
        if not data:
            raise wire.Refused("the broker hung up on a login")
        self._unread += data
        for payload in wire.take_methods(self._unread):
            if wire.METHOD.unpack_from(payload) != self._awaited:
                raise wire.Refused(wire.refusal(payload))
            step = next(self._steps, None)
            if step is None:
                return True
            self._says, self._awaited = step
            self.speak()
        return False


Steps = list[tuple[bytes, wire.Method]]


def _login(address: wire.Address) -> Steps:
    """What a client says that knows the password, and the answers to that."""
    tune_ok = struct.pack(">HIH", 2047, 131072, 0)
    opening = wire.method_frame(wire.CONNECTION_TUNE_OK, tune_ok, channel=0) + wire.method_frame(
        wire.CONNECTION_OPEN, wire.shortstr(address.vhost) + b"\x00\x00", channel=0
    )
    return [
        (wire.PROTOCOL_HEADER, wire.CONNECTION_START),
        (wire.start_ok(address.user, address.password), wire.CONNECTION_TUNE),
        (opening, wire.CONNECTION_OPEN_OK),
        (wire.method_frame(wire.CHANNEL_OPEN, b"\x00"), wire.CHANNEL_OPEN_OK),
        (wire.method_frame(wire.CONNECTION_CLOSE, CLOSE, channel=0), wire.CONNECTION_CLOSE_OK),
    ]


def _guess(address: wire.Address, number: int) -> Steps:
    """What a client says that guesses; a broker refuses that, if it has the time."""
    return [
        (wire.PROTOCOL_HEADER, wire.CONNECTION_START),
        (wire.start_ok(address.user, f"guess {number}"), wire.CONNECTION_CLOSE),
    ]


def log_in(control: Pipe, address: wire.Address, plan: LoginPlan) -> None:
    """The main function of a process that logs in until `STOP`; sends a Report of Logins."""
    guarded(control, lambda: _log_in(control, address, plan))


def _log_in(control: Pipe, address: wire.Address, plan: LoginPlan) -> None:
    poll = select.epoll()
    poll.register(control, select.EPOLLIN)
    control.send(READY)
    assert control.recv() == GO
    meter = Meter()
    crowd = _Crowd(address, plan, poll)
    stopped = False
    while not stopped or crowd.under_way:
        if not stopped:
            crowd.begin()
        for descriptor, event in poll.poll(LOOK_S):
            if descriptor == control.fileno():
                assert control.recv() == STOP
                stopped = True
            else:
                crowd.go_on(descriptor, event)
        crowd.lose_patience()
    control.send(meter.report([crowd.result]))


class _Crowd:
    """All logins under way."""

    def __init__(self, address: wire.Address, plan: LoginPlan, poll: select.epoll) -> None:
        self.result = Logins()
        self.under_way: dict[int, Login] = {}  # by descriptor, oldest first
        self._address, self._plan, self._poll = address, plan, poll
        self._numbers = itertools.count()
        self._begun_ns = time.monotonic_ns()
        self._begun = 0
        self._patience_ns = round((PATIENCE_S if plan.guesses else STALL_S) * 1e9)

    def begin(self) -> None:
        """Begin those logins that are due. Those for which there was no room are not made up for."""
        room = self._plan.at_once - len(self.under_way)
        due = room
        if self._plan.a_second:
            passed_s = (time.monotonic_ns() - self._begun_ns) / 1e9
            due = int(passed_s * self._plan.a_second) - self._begun
            self._begun += due
        for _ in range(min(due, room)):
            login = Login(self._address, next(self._numbers) if self._plan.guesses else None)
            self.under_way[login.socket.fileno()] = login
            self._poll.register(login.socket, select.EPOLLOUT)

    def go_on(self, descriptor: int, event: int) -> None:
        """A socket has something to say.

        Raises:
            Refused: a right password is.
        """
        login = self.under_way[descriptor]
        try:
            if event & select.EPOLLOUT:
                login.speak()
                self._poll.modify(descriptor, select.EPOLLIN)
            elif login.read():
                self._end(descriptor)
        except (wire.Refused, OSError):
            if not self._plan.guesses:
                raise
            self._end(descriptor)

    def lose_patience(self) -> None:
        """Cut those that have waited too long.

        Raises:
            Refused: it was one with the right password.
        """
        now_ns = time.monotonic_ns()
        while self.under_way:
            descriptor, login = next(iter(self.under_way.items()))
            if now_ns - login.begun_ns < self._patience_ns:
                return
            if not self._plan.guesses:
                raise wire.Refused(f"a login was not answered within {STALL_S:.0f} s")
            self._end(descriptor)

    def _end(self, descriptor: int) -> None:
        login = self.under_way.pop(descriptor)
        login.socket.close()
        now_ns = time.monotonic_ns()
        self.result.ended.note(now_ns, self.result.ended.count + 1)
        if not self._plan.guesses:
            self.result.took.append((now_ns - login.begun_ns, 1))
