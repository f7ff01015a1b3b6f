"""Many messages to one consumer, with as little copied and made as possible.

Promises the same octets that sending each basic.deliver, header and body by itself would give.
Knows nothing of credit or of what is unacknowledged.

    basic.deliver: class id, method id, consumer tag, delivery tag u64, redelivered u8, exchange,
    key
"""

import itertools
import struct
from collections.abc import Sequence
from itertools import chain, repeat

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.frames import (
    BASIC,
    BODY,
    CONTENT_FIXED_BYTES,
    CONTENT_HEAD,
    END,
    FRAME_END,
    FRAME_HEAD,
    HEADER,
    METHOD,
    OVERHEAD_BYTES,
    Buffer,
    body_frames,
)
from qlog.server.amqp.spec import BasicDeliver, encode_shortstr

# Copying a body of this size or more costs more than giving the kernel one more buffer.
OWN_BUFFER_BYTES_MIN = 16 * 1024
# So many ends of basic.deliver frames are remembered, for all consumers together. An end has some
# 100 octets, at most 600. When there are more, all are forgotten at once.
ENDS_MAX = 8192

_TAG = struct.Struct(">Q")
_OCTETS_8 = struct.Struct("8s")
_IDS = struct.pack(">HH", BasicDeliver.CLASS_ID, BasicDeliver.METHOD_ID)
_END_AND_BODY_HEAD = struct.Struct(">BBHI")  # the header frame's end, the body frame's head
_FIXED_BYTES = 4 + 8  # the ids and the delivery tag of a basic.deliver


class DeliveryEncoder:
    """Encodes the deliveries of one consumer: `frame_max` in octets, 0 for no limit."""

    def __init__(self, channel: int, consumer_tag: str, frame_max: int) -> None:
        self._channel = channel
        self._frame_max = frame_max
        # Bodies larger than this need several frames, or are not worth copying.
        payload_bytes_max = frame_max - OVERHEAD_BYTES if frame_max else 2**32
        self._joined_bytes_max = min(payload_bytes_max, OWN_BUFFER_BYTES_MIN - 1)
        self._consumer_tag = encode_shortstr(consumer_tag)
        # The octets before the delivery tag, by the length of those behind it: at most 512 entries.
        self._fronts: dict[int, bytes] = {}
        # What stood around the delivery tag of the last message that came alone.
        self._envelope: Envelope | None = None
        self._redelivered = False
        self._before = self._between = b""

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
        count = len(bodies)
        if count == 1:
            return self._one(first_tag, redelivered, envelopes[0], bodies[0])
        if count and envelopes[0] is envelopes[-1] and envelopes.count(envelopes[0]) == count:
            if 0 < envelopes[0].body_size <= self._joined_bytes_max:
                return [b"".join(self._alike(first_tag, redelivered, envelopes[0], bodies))]
            return self._one_by_one(first_tag, redelivered, envelopes, bodies)
        sizes = list(map(len, bodies))
        if sizes and min(sizes) > 0 and max(sizes) <= self._joined_bytes_max:
            return [b"".join(self._columns(first_tag, redelivered, envelopes, bodies, sizes))]
        return self._one_by_one(first_tag, redelivered, envelopes, bodies)

    def _one(self, tag: int, redelivered: bool, envelope: Envelope, body: bytes) -> list[Buffer]:
        """One delivery, as consumers with a prefetch of 1 get them."""
        size = len(body)
        if not 0 < size <= self._joined_bytes_max:
            return self._one_by_one(tag, redelivered, (envelope,), (body,))
        if envelope is not self._envelope or redelivered is not self._redelivered:
            properties = envelope.properties
            self._before, after = self._around(
                (envelope.exchange, envelope.routing_key, redelivered)
            )
            header_size = CONTENT_FIXED_BYTES + len(properties)
            self._between = b"".join(
                (
                    after,
                    CONTENT_HEAD.pack(
                        HEADER, self._channel, header_size, BASIC, 0, envelope.body_size
                    ),
                    properties,
                    _END_AND_BODY_HEAD.pack(FRAME_END, BODY, self._channel, size),
                )
            )
            self._envelope = envelope
            self._redelivered = redelivered
        return [b"".join((self._before, _TAG.pack(tag), self._between, body, END))]

    def _alike(
        self, first_tag: int, redelivered: bool, envelope: Envelope, bodies: Sequence[bytes]
    ) -> list[bytes]:
        """Deliveries that differ in nothing but tags and bodies, which fill one frame each."""
        count = len(bodies)
        before, after = self._around_tag(envelope, redelivered)
        pieces = [END] * (5 * count)
        pieces[0::5] = [before] * count
        pieces[1::5] = _tags(first_tag, count)
        between = after + self._header(envelope) + self._body_head(envelope.body_size)
        pieces[2::5] = [between] * count
        pieces[3::5] = bodies
        return pieces

    def _columns(
        self,
        first_tag: int,
        redelivered: bool,
        envelopes: Sequence[Envelope],
        bodies: Sequence[bytes],
        sizes: Sequence[int],
    ) -> list[bytes]:
        """Deliveries of bodies that fill one frame each, column by column instead of one by one."""
        count = len(bodies)
        pieces = [END] * (8 * count)
        keys = [envelope.routing_key for envelope in envelopes]
        exchanges = [envelope.exchange for envelope in envelopes]
        if keys.count(keys[0]) == exchanges.count(exchanges[0]) == count:
            before, after = self._around_tag(envelopes[0], redelivered)
            pieces[0::8] = [before] * count
            pieces[2::8] = [after] * count
        else:
            pieces[0::8], pieces[2::8] = self._around_tags(exchanges, keys, redelivered)
        pieces[1::8] = _tags(first_tag, count)
        properties = [envelope.properties for envelope in envelopes]
        pieces[3::8] = map(
            CONTENT_HEAD.pack,
            repeat(HEADER),
            repeat(self._channel),
            map(CONTENT_FIXED_BYTES.__add__, map(len, properties)),
            repeat(BASIC),
            repeat(0),
            sizes,
        )
        pieces[4::8] = properties
        pieces[5::8] = map(
            _END_AND_BODY_HEAD.pack,
            repeat(FRAME_END),
            repeat(BODY),
            repeat(self._channel),
            sizes,
        )
        pieces[6::8] = bodies
        return pieces

    def _one_by_one(
        self,
        first_tag: int,
        redelivered: bool,
        envelopes: Sequence[Envelope],
        bodies: Sequence[bytes],
    ) -> list[Buffer]:
        """Deliveries of bodies of any size; large ones are not copied."""
        buffers: list[Buffer] = []
        small: list[bytes] = []  # to be joined into the next buffer
        for tag, envelope, body in zip(itertools.count(first_tag), envelopes, bodies, strict=False):
            before, after = self._around_tag(envelope, redelivered)
            small += (before, _TAG.pack(tag), after, self._header(envelope))
            size = len(body)
            if not size:
                small.append(END)
            elif size <= self._joined_bytes_max:
                small += (self._body_head(size), body, END)
            else:
                small.append(END)
                buffers.append(b"".join(small))
                buffers += body_frames(self._channel, body, self._frame_max)
                small = []
        if small:
            buffers.append(b"".join(small))
        return buffers

    def _header(self, envelope: Envelope) -> bytes:
        """The content header's frame, without its end."""
        properties = envelope.properties
        size = CONTENT_FIXED_BYTES + len(properties)
        return (
            CONTENT_HEAD.pack(HEADER, self._channel, size, BASIC, 0, envelope.body_size)
            + properties
        )

    def _body_head(self, size: int) -> bytes:
        """The end of a header frame, and the head of a body frame."""
        return _END_AND_BODY_HEAD.pack(FRAME_END, BODY, self._channel, size)

    def _around_tags(
        self, exchanges: list[str], keys: list[str], redelivered: bool
    ) -> tuple[Sequence[bytes], Sequence[bytes]]:
        """The same as `_around_tag`, for many envelopes."""
        routes = list(zip(exchanges, keys, repeat(redelivered), strict=False))
        try:
            afters = list(map(_ENDS.__getitem__, routes))
            return list(map(self._fronts.__getitem__, map(len, afters))), afters
        except KeyError:
            around = [self._around(route) for route in routes]
            return [before for before, _ in around], [after for _, after in around]

    def _around_tag(self, envelope: Envelope, redelivered: bool) -> tuple[bytes, bytes]:
        """The octets of a basic.deliver frame before the delivery tag, and those behind it."""
        return self._around((envelope.exchange, envelope.routing_key, redelivered))

    def _around(self, route: tuple[str, str, bool]) -> tuple[bytes, bytes]:
        """The same as `_around_tag`, by exchange, key and redelivered; the result is remembered."""
        after = _ENDS.get(route)
        if after is None:
            if len(_ENDS) >= ENDS_MAX:
                _ENDS.clear()
            after = _ENDS[route] = _end(*route)
        before = self._fronts.get(len(after))
        if before is None:
            size = _FIXED_BYTES + len(self._consumer_tag) + len(after) - len(END)
            before = FRAME_HEAD.pack(METHOD, self._channel, size) + _IDS + self._consumer_tag
            self._fronts[len(after)] = before
        return before, after


def _tags(first: int, count: int) -> list[bytes]:
    """So many delivery tags, as they are on the wire."""
    octets = struct.pack(f">{count}Q", *range(first, first + count))
    return list(chain.from_iterable(_OCTETS_8.iter_unpack(octets)))


def _end(exchange: str, routing_key: str, redelivered: bool) -> bytes:
    """The octets behind the delivery tag, frame end included."""
    return b"".join(
        (bytes((redelivered,)), encode_shortstr(exchange), encode_shortstr(routing_key), END)
    )


_ENDS: dict[tuple[str, str, bool], bytes] = {}
