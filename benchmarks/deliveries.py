"""Counts the deliveries of one consumer in the bytes that arrive, looking at the last one only."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from benchmarks import wire

RECEIVE_BYTES = 256 * 1024
# Room for several large messages and one receive behind them.
DELIVERY_BUFFER_BYTES = 4 * 1024 * 1024
DELIVERY_TIMEOUT_S = 600.0
DELIVERY_TAG = struct.Struct(">Q")
BODY_SIZE_OFFSET = wire.FRAME_HEADER.size + 4


class DeliveryCounter:
    """Counts deliveries in a stream of bytes, however it is cut.

    Delivery tags of a channel with one consumer are consecutive, so the last whole delivery says
    how many there were. It is found from the end, by the constant part of the deliver method that
    ends with the consumer tag, which no body contains.

    Args:
        consumer_tag: the consumer's.
        message_bytes_max: the largest message with its frames, to make room for it.
    """

    def __init__(self, consumer_tag: str, message_bytes_max: int = 0) -> None:
        self._marker = wire.METHOD.pack(*wire.BASIC_DELIVER) + wire.shortstr(consumer_tag)
        self._buffer = bytearray(max(DELIVERY_BUFFER_BYTES, 4 * message_bytes_max))
        self._view = memoryview(self._buffer)
        # The bytes that arrived and do not belong to a whole delivery.
        self._begin = self._end = 0
        # Where the delivery that begins at `_begin` ends, as far as is known.
        self._needed = 0
        self.count = 0

    def space(self) -> memoryview:
        """Where to receive into; at most RECEIVE_BYTES."""
        if len(self._buffer) - self._end < RECEIVE_BYTES:
            rest = bytes(self._view[self._begin : self._end])
            self._view[: len(rest)] = rest
            self._needed = max(0, self._needed - self._begin)
            self._begin, self._end = 0, len(rest)
            assert self._end + RECEIVE_BYTES <= len(self._buffer), "a message fits the buffer"
        return self._view[self._end : self._end + RECEIVE_BYTES]

    def received(self, size: int) -> None:
        """`size` bytes were put into `space()`.

        Raises:
            Refused: something that is not a delivery stands where one has to.
        """
        self._end += size
        if self._end < self._needed:
            return
        # Not below 0, which would mean the end of the buffer.
        marker_end_max = max(0, self._end - DELIVERY_TAG.size)
        at = self._buffer.rfind(self._marker, self._begin, marker_end_max)
        if at < 0:
            self._check_method()
            return
        (tag,) = DELIVERY_TAG.unpack_from(self._buffer, at + len(self._marker))
        start = at - wire.FRAME_HEADER.size
        whole, stop = self._delivery_end(start)
        self.count = tag if whole else tag - 1
        self._begin = stop if whole else start
        self._needed = 0 if whole else stop
        if self._begin == self._end:
            self._begin = self._end = 0

    def _delivery_end(self, start: int) -> tuple[bool, int]:
        """Whether the delivery that begins at `start` is whole, and where it ends.

        Of one that is not whole, the end is the earliest one that what is known of it allows: that
        of the frame that is not whole, or of its body in a single further frame.
        """
        position = start
        body_left: int | None = None
        while body_left != 0:
            if body_left is None:
                earliest = position + wire.FRAME_HEADER.size
            else:
                earliest = position + wire.FRAME_OVERHEAD_BYTES + body_left
            if self._end - position < wire.FRAME_HEADER.size:
                return False, earliest
            kind, _, size = wire.FRAME_HEADER.unpack_from(self._buffer, position)
            stop = position + wire.FRAME_OVERHEAD_BYTES + size
            if self._end < stop:
                return False, max(stop, earliest)
            if kind == wire.HEADER_FRAME:
                (body_left,) = DELIVERY_TAG.unpack_from(self._buffer, position + BODY_SIZE_OFFSET)
            elif kind == wire.BODY_FRAME:
                assert body_left is not None
                body_left -= size
            position = stop
        return True, position

    def _check_method(self) -> None:
        """No delivery is in the rest; refuse it if a whole frame is."""
        rest = bytearray(self._view[self._begin : self._end])
        for payload in wire.take_methods(rest):
            raise wire.Refused(wire.refusal(payload))


def delivered(connection: wire.Connection, queue: str, wanted: int) -> Iterator[range]:
    """Consume `wanted` messages with manual acks; the tags as they arrive, without gaps."""
    tag = f"consumer-{os.urandom(12).hex()}"
    counter = DeliveryCounter(tag)
    connection.socket.settimeout(DELIVERY_TIMEOUT_S)
    connection.consume(queue, tag, no_ack=False)
    count = 0
    while count < wanted:
        unread = connection.unread[:RECEIVE_BYTES]
        del connection.unread[:RECEIVE_BYTES]
        if unread:
            counter.space()[: len(unread)] = unread
            size = len(unread)
        else:
            size = connection.socket.recv_into(counter.space())
        if not size:
            raise wire.Refused("the broker hung up on a consumer")
        counter.received(size)
        before, count = count, min(counter.count, wanted)
        if count > before:
            yield range(before + 1, count + 1)


def take_deliveries(buffer: bytearray) -> list[tuple[int, bytes]]:
    """The whole deliveries at the front of `buffer`, which are removed from it.

    Returns:
        For each its delivery tag and the payload of its header frame.

    Raises:
        Refused: something that is not a delivery stands there.
    """
    found = []
    begin = position = 0
    tag = 0
    header = b""
    body_left: int | None = None
    while len(buffer) - position >= wire.FRAME_HEADER.size:
        kind, _, size = wire.FRAME_HEADER.unpack_from(buffer, position)
        start = position + wire.FRAME_HEADER.size
        position = start + size + 1
        if len(buffer) < position:
            break
        if kind == wire.METHOD_FRAME:
            payload = bytes(buffer[start : start + size])
            if wire.METHOD.unpack_from(payload) != wire.BASIC_DELIVER:
                raise wire.Refused(wire.refusal(payload))
            (tag,) = DELIVERY_TAG.unpack_from(payload, wire.METHOD.size + 1 + payload[4])
        elif kind == wire.HEADER_FRAME:
            header = bytes(buffer[start : start + size])
            (body_left,) = DELIVERY_TAG.unpack_from(header, 4)
        elif body_left is None:
            raise wire.Refused(f"frame of kind {kind} where a method was expected")
        else:
            body_left -= size
        if body_left == 0:
            found.append((tag, header))
            begin, body_left = position, None
    del buffer[:begin]
    return found
