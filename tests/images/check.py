"""Start a broker on an image, without a network, and see what it has.

    python -m tests.images.check DIR

It promises: the recovery is the real one, the definitions are read by the real broker, and every
message is read from where a consumer would get it. What it should have is not known here.
"""

from __future__ import annotations

import sys
from pathlib import Path

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.broker import Broker
from qlog.server.config import Settings
from qlog.storage.lanes.lane import Lane
from qlog.storage.store import Store
from qlog.storage.streams.stream import Cursor
from tests.images.books import Found
from tests.images.serve import SMALL
from tests.images.topology import DELAYED, FANOUT, LATE

_READ_COUNT = 100
_READ_BYTES = 1 << 20


def open_image(directory: Path) -> Found:
    """What is there after a start; the broker is stopped again in good order.

    Raises whatever keeps it from starting.
    """
    store: Store[Envelope] = Store.open(
        directory, decode=Envelope.unpack, notify=lambda: None, settings=SMALL
    )
    try:
        settings = Settings(data_dir=directory)
        # No time has come: what is to be handed on is found where it is.
        broker = Broker(store, settings.broker, now_ms=lambda: 0)
        vhost = broker.vhosts[settings.broker.default_vhost]
        queues = {
            name: _in_stream(store, queue.lane)
            if queue.declared.arguments.type == "stream"
            else _messages(queue.lane)
            for name, queue in vhost.queues.items()
        }
        delayed = vhost.delayed.find(DELAYED)
        if delayed is not None:
            waiting = delayed.messages()
            queues[LATE] += [(_id(each.envelope), each.body) for each in waiting]
        bound: set[str] = set()
        for exchange, key in ((FANOUT, ""), (DELAYED, LATE)):
            if vhost.routing.exchange(exchange) is not None:
                probe = Envelope.pack(exchange, key, b"\0\0", 0)
                targets, _ = vhost.route(exchange, [key], probe)
                bound |= {queue.name for queue in targets.queues}
    finally:
        store.close()
    assert store.failure is None, store.failure
    return Found(queues, bound)


def _messages(lane: Lane[Envelope]) -> list[tuple[str, bytes]]:
    """Message id and body of all that is not settled, in order."""
    found: list[tuple[str, bytes]] = []
    qseq = 0
    while (part := lane.read(qseq, _READ_COUNT, _READ_BYTES)) is not None:
        for envelope, body in zip(part.metas, part.bodies, strict=True):
            found.append((_id(envelope), body))
        qseq = part.first_qseq + len(part.bodies)
    return found


def _in_stream(store: Store[Envelope], lane: Lane[Envelope]) -> list[tuple[str, bytes]]:
    """The same of a stream. Raises AssertionError if an offset is missing."""
    stream = store.stream(lane)
    found: list[tuple[str, bytes]] = []
    cursor = Cursor(stream, 0)
    while (chunk := cursor.next(stream.end)) is not None:
        assert chunk.first <= cursor.offset == len(found), f"a gap before {cursor.offset}"
        begin = cursor.offset - chunk.first
        messages = chunk.messages
        for envelope, body in zip(messages.metas[begin:], messages.bodies[begin:], strict=True):
            found.append((_id(envelope), body))
        cursor.advance(chunk, chunk.end - cursor.offset)
    assert len(found) == stream.end, f"nothing from {len(found)} on, up to {stream.end}"
    cursor.close()
    return found


def _id(envelope: Envelope) -> str:
    return envelope.decoded_properties().message_id or ""


if __name__ == "__main__":
    open_image(Path(sys.argv[1]))
