"""What the broker needs of a connection: a way out. The sockets are `net`'s; tests use a list."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Flag, auto
from typing import Protocol

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.spec import Method


class Hold(Flag):
    """Why a client is not read; empty: it is read. A client that is closing is read in any case,
    since the broker waits for its close-ok.
    """

    ALARM = auto()  # it publishes while memory, disk or file descriptors are short
    COMMIT = auto()  # one of its channels is held, and something that it sent waits for that
    DISK = auto()  # it publishes, and more waits for the disk than should
    ANSWERS = auto()  # it does not read what it asked for
    LOGIN = auto()  # its password is being looked at
    QUEUE = auto()  # it publishes to a queue that has to catch up with what it brought
    HANDSHAKE = auto()  # its TLS handshake has to wait for those of others


READ = Hold(0)


class Sink(Protocol):
    """One client's way out. Nothing here waits: what cannot be sent now is kept."""

    @property
    def full(self) -> bool:
        """So much waits unsent that deliveries should stop. After returning True, the sink must
        call `Client.drained` when it has room."""

    @property
    def overfull(self) -> bool:
        """So much waits unsent that requests should wait, and direct replies be dropped."""

    @property
    def why_not_read(self) -> Hold:
        """All reasons for which nothing is read from the client now."""

    def hold(self, reason: Hold) -> None:
        """Do not read from the client until the reason is released."""

    def release(self, reason: Hold) -> None:
        """The reason is gone: read on when there is no other."""

    @property
    def frame_max(self) -> int:
        """The negotiated frame size in bytes."""

    def send(self, channel: int, method: Method) -> None:
        """Send a method."""

    def send_content(self, channel: int, method: Method, envelope: Envelope, body: bytes) -> None:
        """Send a method with a message."""

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Send what is already encoded."""

    def disconnect(self, *, after_s: float = 0.0) -> None:
        """Close the connection `after_s` from now, and not before all that was written is out."""

    def finish(self) -> None:
        """Everything was written: send it, then read and drop until the client closes."""
