"""What a broker told its clients, from the trace of its system calls.

It promises: every method frame that was handed to a socket, with the step of the trace at which the
call began that had its last byte; a client cannot know it earlier. Clients are known by their port.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.images.trace import Step

METHOD_FRAME = 1
FLOW_OK = (20, 21)
EXCHANGE_DECLARE_OK = (40, 11)
QUEUE_DECLARE_OK, QUEUE_BIND_OK, QUEUE_DELETE_OK = (50, 11), (50, 21), (50, 41)
ACK = (60, 80)
COMMIT_OK = (90, 21)

_PORT = re.compile(rb"sin6?_port=htons\((\d+)\)")


@dataclass(frozen=True, slots=True)
class Reply:
    """A method that a client was told."""

    place: int  # in the steps
    client: tuple[int, int]  # the broker's process, the client's port
    method: tuple[int, int]
    payload: bytes


def replies(steps: Sequence[Step]) -> Iterator[Reply]:
    """All of them, in order."""
    clients: dict[tuple[int, int], tuple[int, int]] = {}  # process, descriptor
    streams: dict[tuple[int, int], bytearray] = {}
    for place, step in enumerate(steps):
        call = step.call
        if call.failed:
            continue
        if call.name in ("accept", "accept4"):
            if step.ends and (port := _PORT.search(call.arguments)):
                assert call.result is not None
                client = (call.process, int(port[1]))
                clients[call.process, call.result] = client
                streams[client] = bytearray()
        elif call.name == "close" and not step.ends:
            clients.pop((call.process, call.numbers()[0]), None)
        elif call.name in ("sendto", "sendmsg") and not step.ends:
            found = clients.get((call.process, call.numbers()[0]))
            if found is not None:
                stream = streams[found]
                stream += b"".join(call.strings())[: call.result]
                for method, payload in _methods(stream):
                    yield Reply(place, found, method, payload)


def _methods(stream: bytearray) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Take the whole frames off the stream; the methods among them, with their arguments."""
    at = 0
    while len(stream) >= at + 8:
        kind, _, size = struct.unpack_from(">BHI", stream, at)
        if len(stream) < at + size + 8:
            break
        if kind == METHOD_FRAME:
            class_id, method_id = struct.unpack_from(">HH", stream, at + 7)
            yield (class_id, method_id), bytes(stream[at + 11 : at + 7 + size])
        at += size + 8
    del stream[:at]
