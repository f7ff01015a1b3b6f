"""What waits to be sent to one client. Bounded by its users: a full outbox gets no deliveries."""

import socket
from collections import deque
from collections.abc import Iterable
from itertools import islice

from qlog.server.amqp.frames import Buffer
from qlog.server.net.transport import Transport

# Beyond this, deliveries stop until the client has read; RabbitMQ's writer keeps about as much.
OUTBOX_BYTES_MAX = 1024 * 1024
# Beyond this, the client is not read either: what it asks for is not to pile up here. Far above what
# a client that publishes now and reads later is owed, since for that one it would be a deadlock.
OVERFULL_BYTES = 64 * OUTBOX_BYTES_MAX
# Buffers a sendmsg; the kernel's limit is 1024.
BUFFERS_MAX = 256


class Outbox:
    """Buffers in order, sent without waiting as far as the socket takes them.

    They are sealed by the transport when they are first sent, all that was written till then at once.
    """

    def __init__(self) -> None:
        self._written: list[Buffer] = []
        self._sealed: deque[Buffer] = deque()
        self.bytes = 0

    def __bool__(self) -> bool:
        return bool(self._written or self._sealed)

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
        self._written.append(buffer)
        self.bytes += len(buffer)

    def extend(self, buffers: Iterable[Buffer]) -> None:
        """Append several."""
        for buffer in buffers:
            self.add(buffer)

    def clear(self) -> None:
        """Forget everything: the client is gone."""
        self._written.clear()
        self._sealed.clear()
        self.bytes = 0

    def send(self, sock: socket.socket, transport: Transport) -> bool:
        """Send what the socket takes now. True: all is out. Raises OSError when the peer is gone."""
        buffers = self._sealed
        if self._written or transport.has_words:
            before = len(buffers)
            buffers.extend(transport.seal(self._written))
            self.bytes += sum(map(len, islice(buffers, before, None)))
            self.bytes -= sum(map(len, self._written))
            self._written = []
        while buffers:
            try:
                sent = sock.sendmsg(list(islice(buffers, BUFFERS_MAX)))
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
