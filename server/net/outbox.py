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


class Outbox:
    """Buffers in order, sent without waiting as far as the socket takes them.

    When buffers are first sent, the transport seals all that were added till then at once.
    """

    __slots__ = ("_sealed", "_written", "bytes")

    def __init__(self) -> None:
        self._written: list[Buffer] = []
        # What the socket did not take. Most clients take everything and have no queue.
        self._sealed: deque[Buffer] | None = None
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
        self._sealed = None
        self.bytes = 0

    def send(self, sock: socket.socket, transport: Transport) -> bool:
        """Send what the socket takes now, but not without end.

        True: all is out. Raises OSError when the peer is gone.
        """
        sealed = self._sealed
        if self._written or transport.has_words:
            written, self._written = self._written, []
            buffers = transport.seal(written)
            if buffers is not written:
                self.bytes += sum(map(len, buffers)) - sum(map(len, written))
            if sealed is None:
                sent = _send(sock, buffers)
                if sent == self.bytes:
                    self.bytes = 0
                    return True
                sealed = self._sealed = deque(buffers)
                self._drop(sealed, sent)
                if not sent:
                    return False
            else:
                sealed.extend(buffers)
        if sealed is None:
            return True
        allowed = SEND_BYTES_MAX
        while sealed and allowed > 0:
            sent = _send(sock, sealed)
            if not sent:
                return False
            self._drop(sealed, sent)
            allowed -= sent
        if sealed:
            return False
        self._sealed = None
        return True

    def _drop(self, sealed: deque[Buffer], sent: int) -> None:
        self.bytes -= sent
        while sent:
            size = len(sealed[0])
            if sent < size:
                sealed[0] = memoryview(sealed[0])[sent:]
                break
            sealed.popleft()
            sent -= size


def _send(sock: socket.socket, buffers: Sequence[Buffer] | deque[Buffer]) -> int:
    """One call: how many octets of the first buffers the socket took."""
    try:
        if len(buffers) == 1:
            return sock.send(buffers[0])
        return sock.sendmsg(list(islice(buffers, BUFFERS_MAX)))
    except BlockingIOError:
        return 0
