"""One client that does much at once: its connection, and what it needs to get there.

Frames are sent as fast as the broker takes them, without waiting for answers in between, while
answers are read and counted. What a client declared is remembered and deleted at the end.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

from benchmarks import wire
from benchmarks.deliveries import RECEIVE_BYTES
from benchmarks.flow import LoadFailed, fresh_name

# So many frames are put together for one send.
FRAMES_PER_SEND = 500
# A broker that needs longer for something done in bulk gives no figure.
ANSWER_S = 300.0
COUNT_EVERY_S = 0.01
# Properties of a persistent message, and its body: as small as a message can reasonably be.
PERSISTENT = b"\x10\x00\x02"
BODY = b"x" * 64


class BulkClient:
    """A connection that sends without waiting, and counts the answers of one kind."""

    def __init__(self, address: wire.Address) -> None:
        self.address = address
        self.connection = wire.Connection(address)
        self.frame_bytes_max = self.connection.frame_bytes_max
        self.queues: list[str] = []
        self.exchanges: list[str] = []

    def queue(self, messages: int = 0, arguments: Mapping[str, wire.Value] | None = None) -> str:
        """A durable queue, with so many small persistent messages."""
        name = fresh_name("bulk")
        self.connection.declare_queue(name, arguments=arguments)
        self.queues.append(name)
        if messages:
            one = wire.publish_frames("", name, PERSISTENT, BODY, self.frame_bytes_max)
            self.send([one] * messages)
            wait_for_messages(self.connection, name, messages)
        return name

    def exchange(self, kind: str) -> str:
        """A durable exchange."""
        name = fresh_name("bulk")
        self.connection.declare_exchange(name, kind)
        self.exchanges.append(name)
        return name

    def take(self, queue: str, messages: int) -> None:
        """Consume so many messages and leave them unacknowledged: tags from 1 on; then consume no more."""
        self.connection.limit_prefetch(0)
        self.connection.consume(queue, "bulk", no_ack=False)
        self.wait(wire.BASIC_DELIVER, messages)
        cancel = wire.method_frame(wire.BASIC_CANCEL, wire.shortstr("bulk") + b"\x00")
        self.send([cancel], (wire.BASIC_CANCEL_OK, 1))

    def send(self, frames: Iterable[bytes], answers: tuple[wire.Method, int] | None = None) -> None:
        """Send frames as fast as they are taken; then wait until all answers are there.

        Args:
            frames: what to send.
            answers: a method, and how many of it answer the frames.

        Raises:
            Refused: the broker closes the channel or the connection.
            LoadFailed: it takes too long.
        """
        method, wanted = answers or ((0, 0), 0)
        rest = iter(frames)
        pending = memoryview(b"")
        deadline = time.monotonic() + ANSWER_S
        while True:
            if not pending:
                pending = memoryview(b"".join(islice(rest, FRAMES_PER_SEND)))
            if not pending and wanted <= 0:
                return
            wanted -= self._count(method)
            if pending or wanted > 0:
                self._step(pending, deadline)
            if pending:
                try:
                    sent = self.connection.socket.send(pending, socket.MSG_DONTWAIT)
                    pending = pending[sent:]
                except BlockingIOError:
                    pass

    def wait(self, method: wire.Method, count: int) -> None:
        """Wait for so many answers."""
        self.send((), (method, count))

    def _step(self, pending: memoryview, deadline: float) -> None:
        """Wait until something can be sent, if anything is pending, or read; and read it."""
        own = self.connection.socket
        left_s = deadline - time.monotonic()
        readable, writable, _ = select.select([own], [own] if pending else [], [], max(0, left_s))
        if not readable and not writable:
            raise LoadFailed(f"no answer within {ANSWER_S:.0f} s")
        if readable:
            data = own.recv(RECEIVE_BYTES)
            if not data:
                raise wire.Refused("the broker hung up")
            self.connection.unread += data

    def _count(self, method: wire.Method) -> int:
        """How many methods of a kind are in what arrived, which is thrown away."""
        unread = self.connection.unread
        position = found = 0
        while len(unread) - position >= wire.FRAME_HEADER.size:
            kind, _, size = wire.FRAME_HEADER.unpack_from(unread, position)
            start = position + wire.FRAME_HEADER.size
            if len(unread) < start + size + 1:
                break
            if kind == wire.METHOD_FRAME:
                seen = wire.METHOD.unpack_from(unread, start)
                if seen in (wire.CONNECTION_CLOSE, wire.CHANNEL_CLOSE):
                    raise wire.Refused(wire.refusal(bytes(unread[start : start + size])))
                found += seen == method
            position = start + size + 1
        del unread[:position]
        return found

    def close(self) -> None:
        """End as a client should; what still comes is thrown away."""
        arguments = struct.pack(">H", 200) + wire.shortstr("OK") + wire.METHOD.pack(0, 0)
        frame = wire.method_frame(wire.CONNECTION_CLOSE, arguments, channel=0)
        self.send([frame], (wire.CONNECTION_CLOSE_OK, 1))
        self.connection.socket.close()

    def cut(self) -> None:
        """End without a word, as a process that is killed; nothing if that was done."""
        if self.connection.socket.fileno() < 0:
            return
        self.connection.socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.connection.socket.close()


def wait_for_messages(connection: wire.Connection, queue: str, count: int) -> None:
    """Wait until so many messages of a queue are ready.

    Raises:
        LoadFailed: it takes too long.
    """
    deadline = time.monotonic() + ANSWER_S
    while connection.count_messages(queue) != count:
        if time.monotonic() > deadline:
            raise LoadFailed(f"not {count} messages in a queue within {ANSWER_S:.0f} s")
        time.sleep(COUNT_EVERY_S)


@contextmanager
def bulk_client(address: wire.Address) -> Iterator[BulkClient]:
    """A client, whose queues and exchanges are deleted at the end with all that is in them."""
    client = BulkClient(address)
    try:
        yield client
    finally:
        client.cut()
        cleaner = BulkClient(address)
        cleaner.send(map(delete_queue, client.queues), (wire.QUEUE_DELETE_OK, len(client.queues)))
        for exchange in client.exchanges:
            cleaner.connection.delete_exchange(exchange)
        cleaner.connection.close()


def declare_queue(name: str) -> bytes:
    """The frame that declares a durable queue."""
    arguments = b"\x00\x00" + wire.shortstr(name) + bytes([wire.DURABLE]) + wire.table({})
    return wire.method_frame(wire.QUEUE_DECLARE, arguments)


def delete_queue(name: str) -> bytes:
    """The frame that deletes a queue."""
    return wire.method_frame(wire.QUEUE_DELETE, b"\x00\x00" + wire.shortstr(name) + b"\x00")


def bind_queue(
    queue: str, exchange: str, key: str, arguments: Mapping[str, wire.Value] | None = None
) -> bytes:
    """The frame that binds a queue."""
    names = wire.shortstr(queue) + wire.shortstr(exchange) + wire.shortstr(key)
    return wire.method_frame(
        wire.QUEUE_BIND, b"\x00\x00" + names + b"\x00" + wire.table(arguments or {})
    )
