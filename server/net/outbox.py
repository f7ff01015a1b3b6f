"""What waits to be sent to one client. Its users bound it: they do not deliver to a full outbox."""

import socket
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from qlog.server.amqp.frames import Buffer
from qlog.server.net.transport import Transport

# Beyond this, deliveries stop until the client has read; RabbitMQ's writer keeps about as much.
OUTBOX_BYTES_MAX = 1024 * 1024
# Beyond this, the client is not read either, so that answers do not pile up here. The limit is far
# above what is owed to a client that publishes first and reads later: not to read that client would
# be a deadlock.
OVERFULL_BYTES = 64 * OUTBOX_BYTES_MAX
# Buffers a sendmsg; the kernel's limit is 1024.
BUFFERS_MAX = 256
# So much is sent to one client in one go: the others must not wait, however fast that client reads.
SEND_BYTES_MAX = 4 * 1024 * 1024
# The same where the octets are sealed: that costs a millisecond or two.
SEND_SEALED_BYTES_MAX = 1024 * 1024


class Outbox:
    """Buffers in order, sent without waiting as far as the socket takes them.

    A transport that changes the octets seals a portion when the socket has taken the one before:
    a client that does not read has one portion of ciphertext here, and the rest as it was written.
    """

    __slots__ = ("_left", "_sealed", "_written", "bytes", "sent_bytes")

    def __init__(self) -> None:
        self._written: list[Buffer] = []
        # What the socket did not take. Most clients take everything and have no queue.
        self._left: deque[Buffer] | None = None
        self._sealed: Buffer = b""  # of the portion that is being sent
        self.bytes = 0
        self.sent_bytes = 0  # in all, to the socket

    def __bool__(self) -> bool:
        return bool(self._written or self._left or self._sealed)

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
        written = self._written
        for buffer in buffers:
            written.append(buffer)
            self.bytes += len(buffer)

    def clear(self) -> None:
        """Forget everything: the client is gone."""
        self._written.clear()
        self._left = None
        self._sealed = b""
        self.bytes = 0

    def send(self, sock: socket.socket, transport: Transport) -> bool:
        """Send what the socket takes now, but not without end.

        True: all is out. Raises OSError when the peer is gone.
        """
        portion_bytes = transport.portion_bytes
        if portion_bytes:
            return self._send_sealed(sock, transport, portion_bytes)
        left = self._left
        if self._written:
            written, self._written = self._written, []
            if left is None:
                sent = _send(sock, written)
                if sent == self.bytes:
                    self.sent_bytes += sent
                    self.bytes = 0
                    return True
                left = self._left = deque(written)
                self._drop(left, sent)
                if not sent:
                    return False
            else:
                left.extend(written)
        if left is None:
            return True
        allowed = SEND_BYTES_MAX
        while left and allowed > 0:
            sent = _send(sock, left)
            if not sent:
                return False
            self._drop(left, sent)
            allowed -= sent
        if left:
            return False
        self._left = None
        return True

    def _send_sealed(self, sock: socket.socket, transport: Transport, portion_bytes: int) -> bool:
        """The same through a transport that changes the octets."""
        if self._written:
            written, self._written = self._written, []
            if self._left is None:
                self._left = deque(written)
            else:
                self._left.extend(written)
        allowed = SEND_SEALED_BYTES_MAX
        while True:
            if not self._sealed:
                if not (self._left or transport.has_words):
                    self._left = None
                    return True
                if allowed <= 0:
                    return False
                self._seal(transport, portion_bytes)
                if not self._sealed:
                    continue
            sent = _send(sock, (self._sealed,))
            if not sent:
                return False
            self.bytes -= sent
            self.sent_bytes += sent
            allowed -= sent
            self._sealed = memoryview(self._sealed)[sent:] if sent < len(self._sealed) else b""

    def _seal(self, transport: Transport, portion_bytes: int) -> None:
        """Seal the next octets that were written, and what the transport says of its own."""
        left = self._left
        portion: list[Buffer] = []
        size = 0
        while left and size < portion_bytes:
            buffer = left.popleft()
            room = portion_bytes - size
            if len(buffer) > room:
                whole = memoryview(buffer)
                left.appendleft(whole[room:])
                buffer = whole[:room]
            portion.append(buffer)
            size += len(buffer)
        self._sealed = transport.seal(portion)
        self.bytes += len(self._sealed) - size

    def _drop(self, left: deque[Buffer], sent: int) -> None:
        self.bytes -= sent
        self.sent_bytes += sent
        while sent:
            size = len(left[0])
            if sent < size:
                left[0] = memoryview(left[0])[sent:]
                break
            left.popleft()
            sent -= size


def _send(sock: socket.socket, buffers: Sequence[Buffer] | deque[Buffer]) -> int:
    """One call: how many octets of the first buffers the socket took."""
    try:
        if len(buffers) == 1:
            return sock.send(buffers[0])
        return sock.sendmsg(list(islice(buffers, BUFFERS_MAX)))
    except BlockingIOError:
        return 0
