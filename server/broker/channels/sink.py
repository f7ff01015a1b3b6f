"""What the broker needs of a connection: a way out. The sockets are `net`'s; tests use a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.spec import Method


class Sink(Protocol):
    """One client's way out. Nothing here waits: what cannot be sent now is kept."""

    @property
    def full(self) -> bool:
        """So much waits unsent that deliveries should stop. Who hears True is owed a call of
        `Client.drained`."""

    @property
    def overfull(self) -> bool:
        """So much waits unsent that even answers should be dropped or not be asked for."""

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
        """Close the connection when what was written is out, at the latest `after_s` from now."""
