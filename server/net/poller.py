"""Which sockets can be read or written: epoll, or what else the system has; level-triggered.

Promises: `poll` names no owner that was removed; it names an owner whose socket is ready again and
again until the socket is served; if more are ready than one call names, they take turns. Knows
nothing of what the sockets carry. All but `Waker.wake` is for one thread.
"""

import os
import select
import selectors
import socket
from typing import Generic, Protocol, TypeVar

READABLE = 1
WRITABLE = 2
GONE = 4  # the peer is gone, both ways: reported even for a socket without any interest; as an
# interest: that the peer sends nothing more is taken for that, too, where the system can tell

# Sockets named by one poll: enough that a thousand clients need few calls, few enough that the
# tick they share stays short.
READY_MAX = 256
RDHUP = 0x2000  # epoll's: the peer sends nothing more

Owner = TypeVar("Owner")


class Poller(Protocol, Generic[Owner]):
    """Sockets, each with an owner that `poll` names."""

    def fileno(self) -> int:
        """A descriptor that is readable when `poll` has something to say."""

    def add(self, fd: int, owner: Owner, interest: int) -> None:
        """Watch a descriptor; `interest` is of READABLE, WRITABLE and GONE, or 0."""

    def change(self, fd: int, interest: int) -> None:
        """Watch the descriptor for something else from now on."""

    def remove(self, fd: int) -> None:
        """Forget a descriptor.

        Call it before the descriptor is closed: the number is used again.
        """

    def poll(self, timeout_s: float) -> list[tuple[Owner, int]]:
        """Owners, and what their sockets are (READABLE, WRITABLE, GONE).

        Waits until one is ready.
        """

    def close(self) -> None:
        """Close the poller's own descriptor."""


class EpollPoller(Generic[Owner]):
    """Linux."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._owners: dict[int, Owner] = {}

    def fileno(self) -> int:
        """The epoll's own descriptor."""
        return self._epoll.fileno()

    def add(self, fd: int, owner: Owner, interest: int) -> None:
        """See `Poller`."""
        self._epoll.register(fd, _EPOLL[interest])
        self._owners[fd] = owner

    def change(self, fd: int, interest: int) -> None:
        """See `Poller`."""
        self._epoll.modify(fd, _EPOLL[interest])

    def remove(self, fd: int) -> None:
        """See `Poller`."""
        del self._owners[fd]
        self._epoll.unregister(fd)

    def poll(self, timeout_s: float) -> list[tuple[Owner, int]]:
        """See `Poller`."""
        owners = self._owners
        return [
            (owners[fd], _READY[events & 0x1D | events >> 9 & 0x10])  # RDHUP counts as HUP
            for fd, events in self._epoll.poll(timeout_s, READY_MAX)
        ]

    def close(self) -> None:
        """See `Poller`."""
        self._epoll.close()


def _epoll_tables() -> tuple[list[int], list[int]]:
    """Interests as epoll wants them, and epoll's answers (IN 1, OUT 4, ERR 8, HUP 16) as ours."""
    wanted = [0, 1, 4, 5]
    wanted += [interest | RDHUP for interest in wanted]
    ready = []
    for events in range(0x20):
        said = READABLE if events & 1 else 0
        said |= WRITABLE if events & 4 else 0
        ready.append(said | (GONE if events & 0x18 else 0))
    return wanted, ready


_EPOLL, _READY = _epoll_tables()


class SelectorPoller(Generic[Owner]):
    """Any other system: kqueue on macOS and BSD.

    A selector cannot watch for nothing, so a descriptor without an interest leaves it. A peer that
    is gone makes its socket readable and writable.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._owners: dict[int, Owner] = {}

    def fileno(self) -> int:
        """The selector's own descriptor."""
        return int(self._selector.fileno())

    def add(self, fd: int, owner: Owner, interest: int) -> None:
        """See `Poller`."""
        self._owners[fd] = owner
        self.change(fd, interest)

    def change(self, fd: int, interest: int) -> None:
        """See `Poller`."""
        interest &= READABLE | WRITABLE
        known = fd in self._selector.get_map()
        if not interest:
            if known:
                self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, interest)
        else:
            self._selector.register(fd, interest)

    def remove(self, fd: int) -> None:
        """See `Poller`."""
        self.change(fd, 0)
        del self._owners[fd]

    def poll(self, timeout_s: float) -> list[tuple[Owner, int]]:
        """See `Poller`."""
        return [(self._owners[key.fd], said) for key, said in self._selector.select(timeout_s)]

    def close(self) -> None:
        """See `Poller`."""
        self._selector.close()


class Waker:
    """Makes a poll return, from any thread: an eventfd, or two sockets where there is none."""

    def __init__(self) -> None:
        self._ends: tuple[socket.socket, socket.socket] | None = None
        if hasattr(os, "eventfd"):
            self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self._ends = socket.socketpair()
            for end in self._ends:
                end.setblocking(False)
            self._fd = self._ends[0].fileno()

    def fileno(self) -> int:
        """Readable after `wake` until `clear`."""
        return self._fd

    def wake(self) -> None:
        """Make `fileno` readable. It does no harm to call it again, or too late."""
        try:
            if self._ends is None:
                os.eventfd_write(self._fd, 1)
            else:
                self._ends[1].send(b"\0")
        except BlockingIOError:
            pass  # it is readable already

    def clear(self) -> None:
        """Make it unreadable again."""
        try:
            if self._ends is None:
                os.eventfd_read(self._fd)
            else:
                self._ends[0].recv(4096)
        except BlockingIOError:
            pass  # nobody woke it

    def close(self) -> None:
        """Give back the descriptors."""
        if self._ends is None:
            os.close(self._fd)
        else:
            for end in self._ends:
                end.close()


def new_poller() -> Poller[Owner]:
    """The best that this system has."""
    return EpollPoller() if hasattr(select, "epoll") else SelectorPoller()
