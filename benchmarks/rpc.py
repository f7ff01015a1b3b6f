"""Request and reply: a process of clients that wait for an answer each, and one that answers.

Each client has one request in flight. A request and its reply carry a correlation id, and the
client checks that the reply is to its request. Processes are driven as those of load.py are.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe

from benchmarks import wire
from benchmarks.deliveries import RECEIVE_BYTES, take_deliveries
from benchmarks.load import GO, READY, STALL_S, STOP, Meter, Published, guarded

# The name that a request gives to have its reply sent to its own channel.
DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"
CORRELATION_ID_FLAG, REPLY_TO_FLAG = 1 << 10, 1 << 9
REQUEST_FLAGS = struct.pack(">H", CORRELATION_ID_FLAG | REPLY_TO_FLAG)
REPLY_FLAGS = struct.pack(">H", CORRELATION_ID_FLAG)
# Class, weight and body size stand before the flags in a header frame.
FLAGS_OFFSET = 12
RESPONDER_PREFETCH = 100


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """One client.

    Attributes:
        queue: where requests go, by the default exchange.
        direct: replies come by direct reply-to rather than through an exclusive queue.
        body_bytes: of a request.
    """

    queue: str
    direct: bool
    body_bytes: int = 256


class Client:
    """One connection that sends a request and waits for its reply before the next one."""

    def __init__(self, address: wire.Address, plan: RequestPlan) -> None:
        self.connection = wire.Connection(address)
        reply_to = DIRECT_REPLY_TO if plan.direct else self.connection.declare_reply_queue()
        self._name = os.urandom(4).hex()
        # A tag of its own: LavinMQ finds the consumer of direct replies by its tag alone.
        self.connection.consume(reply_to, f"replies-{self._name}", no_ack=True)
        self.result = Published()
        self._reply_to = wire.shortstr(reply_to)
        self._plan = plan
        self._body = os.urandom(plan.body_bytes)
        self._correlation_id = b""
        self.sent = self.answered = 0

    def ask(self) -> None:
        """Send the next request."""
        self.sent += 1
        self._correlation_id = wire.shortstr(f"{self._name}-{self.sent}")
        request = wire.publish_frames(
            "",
            self._plan.queue,
            REQUEST_FLAGS + self._correlation_id + self._reply_to,
            self._body,
            self.connection.frame_bytes_max,
        )
        self.result.begun.note(time.monotonic_ns(), self.sent)
        self.connection.socket.sendall(request)

    def read(self) -> bool:
        """Receive; whether the reply is there.

        Raises:
            Refused: it is the reply to something else.
        """
        data = self.connection.socket.recv(RECEIVE_BYTES)
        now_ns = time.monotonic_ns()
        if not data:
            raise wire.Refused("the broker hung up on a client")
        self.connection.unread += data
        replies = take_deliveries(self.connection.unread)
        for _, header in replies:
            if header[FLAGS_OFFSET:] != REPLY_FLAGS + self._correlation_id:
                raise wire.Refused("a reply to another request")
        self.answered += len(replies)
        if self.answered > self.sent:
            raise wire.Refused("more replies than requests")
        if replies:
            self.result.confirmed.note(now_ns, self.answered)
        return bool(replies)


def request(control: Pipe, address: wire.Address, plans: Sequence[RequestPlan]) -> None:
    """The main function of a process of clients; sends a Report of Published, replies as confirms."""
    guarded(control, lambda: _request(control, address, plans))


def respond(control: Pipe, address: wire.Address, queue: str, body_bytes: int) -> None:
    """The main function of a process that answers all requests of a queue until `STOP`.

    Sends a Report of how many it answered.
    """
    guarded(control, lambda: _respond(control, address, queue, body_bytes))


def _request(control: Pipe, address: wire.Address, plans: Sequence[RequestPlan]) -> None:
    clients = {}
    poll = select.epoll()
    poll.register(control, select.EPOLLIN)
    for plan in plans:
        client = Client(address, plan)
        clients[client.connection.socket.fileno()] = client
        poll.register(client.connection.socket, select.EPOLLIN)
    control.send(READY)
    assert control.recv() == GO
    meter = Meter()
    for client in clients.values():
        client.ask()
    waiting = len(clients)
    stopped = False
    while waiting:
        events = poll.poll(STALL_S)
        if not events:
            raise wire.Refused(f"no reply for {STALL_S:.0f} s")
        for descriptor, _ in events:
            if descriptor == control.fileno():
                assert control.recv() == STOP
                stopped = True
            elif clients[descriptor].read():
                if stopped:
                    waiting -= 1
                else:
                    clients[descriptor].ask()
    report = meter.report([client.result for client in clients.values()])
    for client in clients.values():
        client.connection.close()
    control.send(report)


def _respond(control: Pipe, address: wire.Address, queue: str, body_bytes: int) -> None:
    connection = wire.Connection(address)
    connection.limit_prefetch(RESPONDER_PREFETCH)
    poll = select.epoll()
    poll.register(control, select.EPOLLIN)
    poll.register(connection.socket, select.EPOLLIN)
    reply = replier(os.urandom(body_bytes), connection.frame_bytes_max)
    control.send(READY)
    assert control.recv() == GO
    meter = Meter()
    connection.consume(queue, "requests", no_ack=False)
    control.send(READY)
    answered = 0
    stopped = False
    while not stopped:
        for descriptor, _ in poll.poll():
            if descriptor == control.fileno():
                assert control.recv() == STOP
                stopped = True
                continue
            data = connection.socket.recv(RECEIVE_BYTES)
            if not data:
                raise wire.Refused("the broker hung up on the responder")
            connection.unread += data
            parts = []
            for tag, header in take_deliveries(connection.unread):
                parts += [reply(header), wire.ack_frame(tag, multiple=False)]
            connection.socket.sendall(b"".join(parts))
            answered += len(parts) // 2
    report = meter.report([answered])
    connection.close()
    control.send(report)


def replier(body: bytes, frame_bytes_max: int) -> Callable[[bytes], bytes]:
    """What makes the frames of a reply out of the payload of a request's header frame."""

    def reply(header: bytes) -> bytes:
        if header[FLAGS_OFFSET : FLAGS_OFFSET + 2] != REQUEST_FLAGS:
            raise wire.Refused("a request without reply_to and correlation_id, or with more")
        at = FLAGS_OFFSET + 2
        end = at + 1 + header[at]
        correlation_id = header[at:end]
        reply_to = header[end + 1 : end + 1 + header[end]].decode()
        properties = REPLY_FLAGS + correlation_id
        return wire.publish_frames("", reply_to, properties, body, frame_bytes_max)

    return reply
