"""Many messages to one consumer, with as little copied and made as possible.

Promises the same octets that sending each basic.deliver, header and body by itself would give.
Knows nothing of credit or of what is unacknowledged.

    basic.deliver: class id, method id, consumer tag, delivery tag u64, redelivered u8, exchange, key
"""

import struct
from collections.abc import Sequence
from itertools import chain

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.frames import (
    BASIC,
    BODY,
    CONTENT_FIXED_BYTES,
    CONTENT_HEAD,
    END,
    FRAME_HEAD,
    HEADER,
    METHOD,
    OVERHEAD_BYTES,
    Buffer,
    body_frames,
)
from qlog.server.amqp.spec import BasicDeliver, encode_shortstr

# From this size on, copying a body costs more than one more buffer for the kernel to gather.
OWN_BUFFER_BYTES_MIN = 16 * 1024
# Pairs of exchange and key that a consumer has lately seen; forgotten all at once when full.
ROUTES_MAX = 256

_TAG = struct.Struct(">Q")
_OCTETS_8 = struct.Struct("8s")
_END_AND_BODY_HEAD = struct.Struct(">BBHI")  # the header frame's end, the body frame's head
_FIXED_BYTES = 4 + 8  # the ids and the delivery tag of a basic.deliver


class DeliveryEncoder:
    """Encodes the deliveries of one consumer: `frame_max` in octets, 0 for no limit."""

    def __init__(self, channel: int, consumer_tag: str, frame_max: int) -> None:
        self._channel = channel
        self._frame_max = frame_max
        self._payload_bytes_max = frame_max - OVERHEAD_BYTES if frame_max else 2**32
        # Bodies larger than this need several frames, or are not worth copying.
        self._repeated_bytes_max = min(self._payload_bytes_max, OWN_BUFFER_BYTES_MIN - 1)
        self._consumer_tag = encode_shortstr(consumer_tag)
        self._routes: dict[tuple[str, str, bool], tuple[bytes, bytes]] = {}

    def encode(
        self,
        first_tag: int,
        redelivered: bool,
        envelopes: Sequence[Envelope],
        bodies: Sequence[bytes],
    ) -> list[Buffer]:
        """The deliveries of messages with the delivery tags from `first_tag` on.

        Returns buffers to be sent in this order, or joined. Bodies of OWN_BUFFER_BYTES_MIN and more
        are not copied: they are buffers of their own, or memoryviews when they need several frames.
        """
        assert len(envelopes) == len(bodies)
        buffers: list[Buffer] = []
        small: list[Buffer] = []  # to be joined into the next buffer
        count = len(bodies)
        first = 0
        while first < count:
            envelope = envelopes[first]
            last = first + 1
            while last < count and envelopes[last] is envelope:
                last += 1
            before, after = self._around_tag(envelope, redelivered)
            tag = first_tag + first
            if last - first > 1 and 0 < envelope.body_size <= self._repeated_bytes_max:
                small += self._repeated(before, tag, after, bodies[first:last])
            else:
                for body in bodies[first:last]:
                    small += (before, _TAG.pack(tag), after)
                    tag += 1
                    size = len(body)
                    if size > self._payload_bytes_max:
                        buffers.append(b"".join(small))
                        buffers += body_frames(self._channel, body, self._frame_max)
                        small = []
                    elif size >= OWN_BUFFER_BYTES_MIN:
                        buffers += (b"".join(small), body)
                        small = [END]
                    elif size:
                        small += (body, END)
            first = last
        if small:
            buffers.append(b"".join(small))
        return buffers

    def _repeated(
        self, before: bytes, tag: int, after: bytes, bodies: Sequence[bytes]
    ) -> list[Buffer]:
        """What `encode` does message by message, without a step of Python for each."""
        count = len(bodies)
        tags = struct.pack(f">{count}Q", *range(tag, tag + count))
        pieces: list[Buffer] = [END] * (5 * count)
        pieces[0::5] = [before] * count
        pieces[1::5] = chain.from_iterable(_OCTETS_8.iter_unpack(tags))
        pieces[2::5] = [after] * count
        pieces[3::5] = bodies
        return pieces

    def _around_tag(self, envelope: Envelope, redelivered: bool) -> tuple[bytes, bytes]:
        """What stands before the delivery tag, and what stands between it and the body."""
        route = (envelope.exchange, envelope.routing_key, redelivered)
        parts = self._routes.get(route)
        if parts is None:
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            parts = self._routes[route] = self._method_parts(*route)
        before, after = parts
        properties = envelope.properties
        size = envelope.body_size
        head = CONTENT_HEAD.pack(
            HEADER, self._channel, CONTENT_FIXED_BYTES + len(properties), BASIC, 0, size
        )
        if 0 < size <= self._payload_bytes_max:
            end = _END_AND_BODY_HEAD.pack(END[0], BODY, self._channel, size)
        else:
            end = END
        return before, after + head + properties + end

    def _method_parts(
        self, exchange: str, routing_key: str, redelivered: bool
    ) -> tuple[bytes, bytes]:
        after = b"".join(
            (bytes((redelivered,)), encode_shortstr(exchange), encode_shortstr(routing_key), END)
        )
        size = _FIXED_BYTES + len(self._consumer_tag) + len(after) - len(END)
        ids = struct.pack(">HH", BasicDeliver.CLASS_ID, BasicDeliver.METHOD_ID)
        return FRAME_HEAD.pack(METHOD, self._channel, size) + ids + self._consumer_tag, after
