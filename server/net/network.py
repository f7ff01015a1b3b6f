"""How clients get in, and what is looked at once a second.

Accepting is part of the turn (turns.py), some clients at a time. File descriptors are the limit:
some are kept for the broker itself. When there are no others, new clients wait in the listener's
backlog until some leave.
"""

import errno
import logging
import resource
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from qlog.server.net.certificates import Certificates
from qlog.server.net.poller import READABLE
from qlog.server.net.session import Session
from qlog.server.net.transport import PLAIN, Transport
from qlog.server.net.turns import Turns

logger = logging.getLogger("qlog.network")

CHECK_INTERVAL_S = 1.0
# So many clients are accepted in one turn: a thousand that come at once are in within some turns,
# and connected clients have their turns meanwhile.
ACCEPTED_MAX = 64
# File descriptors that are kept for the broker itself, as many as RabbitMQ keeps. No more clients
# are accepted than the others are enough for.
DESCRIPTORS_RESERVED = 100
# These errors of accept(2) say that the machine has no room for the client. All others that Linux
# gives are the network's trouble with that one peer.
SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Network:
    """The listeners of one broker.

    Arguments: `turns` is the loop of all its sockets; `check` is called once a second and looks at
    memory and disk. Clients of `tls_listeners` get a transport of `certificates`.
    """

    def __init__(
        self,
        turns: Turns,
        listeners: Sequence[socket.socket],
        check: Callable[[], None],
        *,
        tls_listeners: Sequence[socket.socket] = (),
        certificates: Certificates | None = None,
    ) -> None:
        self.turns = turns
        self._check = check
        self._sessions_max = sessions_max()
        self._crowded = False  # new clients have to wait until others leave
        self._turned_away = False  # a client had to wait since the last check
        self._certificates = certificates
        self._doors: list[Door] = []
        self.open(listeners, tls_listeners)
        turns.on_burial = self._open_doors
        turns.at(turns.now_s + CHECK_INTERVAL_S, self._on_second)

    def open(
        self, listeners: Sequence[socket.socket], tls_listeners: Sequence[socket.socket] = ()
    ) -> None:
        """Let clients in at these sockets, too."""
        self._doors += [Door(self, listener, _plain) for listener in listeners]
        if self._certificates is not None:
            new = self._certificates.transport
            self._doors += [Door(self, listener, new) for listener in tls_listeners]

    def close(self) -> None:
        """Let nobody in any more, unless `open` is called again."""
        for door in self._doors:
            door.close()
        self._doors.clear()

    def _on_second(self) -> None:
        """Resource alarms, overdue consumers, and whether there is room for clients again."""
        turns, broker = self.turns, self.turns.broker
        turns.at(turns.now_s + CHECK_INTERVAL_S, self._on_second)
        self._check()
        broker.try_again()
        has_room = len(turns.sessions) < self._sessions_max
        if self._crowded and has_room and not self._turned_away:
            self._crowded = False
            logger.warning("file descriptor limit alarm cleared: new connections are accepted")
        self._turned_away = False
        turns.touched = True

    # -- accepting ---------------------------------------------------------------------------

    def accept(self, listener: socket.socket, new_transport: Callable[[], Transport]) -> bool:
        """Let one client in. False: nobody waits, or there is no room."""
        turns = self.turns
        if len(turns.sessions) >= self._sessions_max:
            self._turn_away(f"{len(turns.sessions)} connections")
            return False
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in SHORTAGES:
                self._turn_away(str(error))
                return False
            return True  # the peer has left, or cannot be reached any more
        sock.setblocking(False)
        with suppress(OSError):  # some systems refuse when the peer has gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = address[:2]
        Session(
            turns,
            sock,
            f"{host}:{port}",
            loopback=is_loopback(host),
            # Mostly the same text for all of a listener's clients: it is kept once.
            local=sys.intern("{}:{}".format(*sock.getsockname()[:2])),
            transport=new_transport(),
        )
        return True

    def _turn_away(self, why: str) -> None:
        """Out of file descriptors: connected clients go on, new ones wait in the backlog."""
        if not self._crowded:
            self._crowded = True
            logger.warning(
                "file descriptor limit alarm set: new connections wait for others to close; "
                "raise `ulimit -n` reason=%s",
                why,
            )
        self._turned_away = True
        self.pause()

    def pause(self) -> None:
        """Let nobody in for a moment, unless somebody leaves."""
        for door in self._doors:
            door.shut()
        self.turns.at(self.turns.now_s + CHECK_INTERVAL_S / 2, self._open_doors)

    def _open_doors(self) -> None:
        for door in self._doors:
            door.open()


class Door:
    """A listener in the poller."""

    def __init__(
        self, network: Network, listener: socket.socket, new_transport: Callable[[], Transport]
    ) -> None:
        self.queued = False
        self._new_transport = new_transport
        self._network = network
        self._listener = listener
        self._open = True
        self._turns = network.turns
        self._turns.poller.add(listener.fileno(), self, READABLE)

    def __str__(self) -> str:
        return f"listener={self._listener.getsockname()}"

    def noticed(self, ready: int) -> None:
        """A client wants to connect."""
        self._turns.enqueue(self)

    def take_turn(self, until_s: float) -> int:
        """Let some clients in."""
        for _ in range(ACCEPTED_MAX):
            if not self._open or not self._network.accept(self._listener, self._new_transport):
                break
            if self._turns.clock_s() >= until_s:
                break
        return 0

    def shut(self) -> None:
        """Let nobody in for now."""
        if self._open:
            self._open = False
            self._turns.poller.change(self._listener.fileno(), 0)

    def open(self) -> None:
        """Let them in again."""
        if not self._open:
            self._open = True
            self._turns.poller.change(self._listener.fileno(), READABLE)

    def close(self) -> None:
        """Leave the poller; the socket is its owner's."""
        self._open = False
        self._turns.poller.remove(self._listener.fileno())

    def cut(self) -> None:
        """A session could not be made, which is our bug: pause, then try the next client."""
        self._network.pause()


def sessions_max() -> int:
    """How many clients there can be, by the limit on file descriptors."""
    descriptors_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors_max == resource.RLIM_INFINITY:
        return sys.maxsize
    return descriptors_max - min(DESCRIPTORS_RESERVED, descriptors_max // 2)


def _plain() -> Transport:
    return PLAIN


def is_loopback(host: str) -> bool:
    """Whether a numeric address is one of this machine alone."""
    return host == "::1" or host.startswith(("127.", "::ffff:127."))
