"""What waits to be sent to one client. Bounded by its users: a full outbox gets no deliveries."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable
from itertools import islice

# Beyond this, deliveries stop until the client has read; RabbitMQ's writer keeps about as much.
OUTBOX_BYTES_MAX = 1024 * 1024
# Beyond this, the client is not read either: what it asks for is not to pile up here. Far above what
# a client that publishes now and reads later is owed, since for that one it would be a deadlock.
OVERFULL_BYTES = 64 * OUTBOX_BYTES_MAX
# Small buffers are joined up to this size: one copy is cheaper than many buffers in one sendmsg.
JOIN_BYTES_MAX = 256 * 1024
# Buffers a sendmsg; the kernel's limit is 1024.
BUFFERS_MAX = 64

Buffer = bytes | memoryview


class Outbox:
    """Buffers in order, sent without waiting as far as the socket takes them."""

    def __init__(self) -> None:
        self._buffers: deque[Buffer] = deque()
        self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self._buffers)

    @property
    def full(self) -> bool:
        """Deliveries should stop."""
        return self.bytes >= OUTBOX_BYTES_MAX

    @property
    def overfull(self) -> bool:
        """Answers should stop, too."""
        return self.bytes >= OVERFULL_BYTES

    def add(self, buffer: Buffer) -> None:
        """Append one buffer."""
        self._buffers.append(buffer)
        self.bytes += len(buffer)

    def extend(self, buffers: Iterable[Buffer]) -> None:
        """Append several."""
        for buffer in buffers:
            self.add(buffer)

    def clear(self) -> None:
        """Forget everything: the client is gone."""
        self._buffers.clear()
        self.bytes = 0

    def send(self, sock: socket.socket) -> bool:
        """Send what the socket takes now. True: all is out. Raises OSError when the peer is gone."""
        buffers = self._buffers
        while buffers:
            try:
                sent = sock.sendmsg(self._next())
            except BlockingIOError:
                return False
            self.bytes -= sent
            while sent:
                size = len(buffers[0])
                if sent < size:
                    buffers[0] = memoryview(buffers[0])[sent:]
                    break
                buffers.popleft()
                sent -= size
        return True

    def _next(self) -> list[Buffer]:
        """The first buffers, small neighbours joined."""
        buffers = self._buffers
        if len(buffers) > 1 and len(buffers[0]) + len(buffers[1]) <= JOIN_BYTES_MAX:
            size = 0
            parts = []
            while buffers and size + len(buffers[0]) <= JOIN_BYTES_MAX:
                part = buffers.popleft()
                parts.append(part)
                size += len(part)
            buffers.appendleft(b"".join(parts))
        return list(islice(buffers, BUFFERS_MAX))
