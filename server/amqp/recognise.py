"""Recognising what was seen before: the fast path of receiving.

Traffic repeats itself. The octets of a basic.publish frame (exchange, key, flags) come again and
again, those of its header often, and both together make a prefix by which a whole run of messages
is told apart without being parsed. The same goes for acks, which differ in their tags alone.

Promises to take from the front of the data only what is whole and right, and what slow parsing
would have understood alike; the first octet it is not sure of stops it and is left to
`connection`, which knows all the rules. Knows nothing of channels' states.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from qlog.server.amqp.envelope import PERSISTENT, Envelope
from qlog.server.amqp.errors import HardError
from qlog.server.amqp.frames import (
    BASIC,
    BODY,
    CONTENT_FIXED_BYTES,
    CONTENT_HEAD,
    FRAME_END,
    FRAME_HEAD,
    HEADER,
    METHOD,
    OVERHEAD_BYTES,
)
from qlog.server.amqp.properties import scan
from qlog.server.amqp.spec import BasicAck, BasicPublish, decode_method

# Different basic.publish frames remembered by a connection; forgotten all at once when full.
FORMS_MAX = 256
# Header frames larger than this are not remembered: 256 of them should stay a small sum.
HEADER_BYTES_MAX = 4096

PUBLISH_IDS = struct.pack(">HH", BasicPublish.CLASS_ID, BasicPublish.METHOD_ID)
ACK_IDS = struct.pack(">HH", BasicAck.CLASS_ID, BasicAck.METHOD_ID)
_ACK = struct.Struct(">11xQBB")  # 7 octets of frame head and 4 of ids, tag, bits, frame end
_HEADER_BYTES_MIN = CONTENT_HEAD.size + 2 + 1  # with the flags and the frame end
_HEADER_SIZE_MIN = CONTENT_FIXED_BYTES + 2

_pack = msgpack.Packer().pack


@dataclass(slots=True)
class PublishRun:
    """Messages that differ in their bodies alone."""

    method: BasicPublish
    envelope: Envelope
    bodies: list[bytes]


class AckRange(NamedTuple):
    """The delivery tags from `first` to `last`; with `multiple` (first is last) all up to it.

    `multiple` with tag 0 means all that is unacknowledged.
    """

    first: int
    last: int
    multiple: bool


class PublishForm:
    """One basic.publish frame, and what its last content header was.

    `header` and `prefix` are octets: the last header frame, and from the method frame on all that
    stands before the body of a message that repeats it (empty until one did).
    """

    __slots__ = ("_packed_route", "envelope", "header", "method", "prefix")

    def __init__(self, method: BasicPublish) -> None:
        self.method = method
        self.header = b""
        self.envelope: Envelope | None = None
        self.prefix = b""
        # The front of Envelope.packed: an array of three, the first two of them.
        self._packed_route = b"\x93" + _pack(method.exchange) + _pack(method.routing_key)

    def envelope_of(self, header: bytes, body_size: int) -> Envelope:
        """The envelope under a header frame. Raises HardError when its properties are malformed."""
        if header == self.header:
            assert self.envelope is not None
            return self.envelope
        properties = header[CONTENT_HEAD.size : -1]
        method, last = self.method, self.envelope
        if last is not None and last.properties == properties:
            persistent, special, packed = last.persistent, last.special, last.packed
            packed_hash = last.packed_hash
        else:
            delivery_mode, special = scan(properties)
            persistent = delivery_mode == PERSISTENT
            packed = self._packed_route + _pack(properties)
            packed_hash = xxh3_64_intdigest(packed)
        envelope = Envelope(
            method.exchange,
            method.routing_key,
            properties,
            body_size,
            persistent,
            special,
            packed,
            packed_hash,
        )
        if len(header) <= HEADER_BYTES_MAX:
            self.header = header
            self.envelope = envelope
            self.prefix = b""
        return envelope


class PublishForms(dict[bytes, PublishForm]):
    """The forms a connection has lately seen, by the octets of the whole method frame."""

    def learn(self, frame: bytes) -> PublishForm:
        """The form of a basic.publish frame not seen before. HardError when it is malformed."""
        method = _decode_publish(frame)
        if len(self) >= FORMS_MAX:
            self.clear()
        form = self[frame] = PublishForm(method)
        return form


def _decode_publish(frame: bytes) -> BasicPublish:
    """What `decode_method` does, faster: publishers may use a new key for every message.

    frame head (7), ids (4), reserved (2), exchange, routing key, bits (1), frame end (1)
    """
    try:
        exchange_end = 14 + frame[13]
        key_end = exchange_end + 1 + frame[exchange_end]
        if key_end == len(frame) - 2:
            exchange = str(frame[14:exchange_end], "utf-8")
            routing_key = str(frame[exchange_end + 1 : key_end], "utf-8")
            bits = frame[key_end]
            return BasicPublish(exchange, routing_key, bits & 1 != 0, bits & 2 != 0)
    except (IndexError, UnicodeDecodeError):
        pass  # decode_method says what is wrong
    method = decode_method(frame[FRAME_HEAD.size : -1])
    assert isinstance(method, BasicPublish)
    return method


def add_to_runs(
    runs: list[PublishRun], form: PublishForm, envelope: Envelope, bodies: list[bytes]
) -> None:
    """Messages with this envelope follow."""
    if runs and runs[-1].envelope is envelope and runs[-1].method is form.method:
        runs[-1].bodies += bodies
    else:
        runs.append(PublishRun(form.method, envelope, bodies))


def take_publishes(
    data: bytes,
    position: int,
    channel: int,
    forms: PublishForms,
    runs: list[PublishRun],
    *,
    payload_bytes_max: int,
    body_bytes_max: int,
) -> int:
    """Append the whole messages of one channel at `position` to `runs`; returns what is behind them.

    Takes messages with a body in at most one frame.
    """
    end = len(data)
    form: PublishForm | None = None
    while True:
        if form is not None and form.prefix and data.startswith(form.prefix, position):
            behind = _take_repeats(data, position, form, runs)
            if behind == position:
                return position
            position = behind
            continue
        # The method frame.
        head_end = position + FRAME_HEAD.size
        if head_end > end:
            return position
        kind, number, size = FRAME_HEAD.unpack_from(data, position)
        header_at = head_end + size + 1
        if kind != METHOD or number != channel or header_at + _HEADER_BYTES_MIN > end:
            return position
        frame = data[position:header_at]
        form = forms.get(frame)
        if form is None:
            if (
                not data.startswith(PUBLISH_IDS, head_end)
                or frame[-1] != FRAME_END
                or size > payload_bytes_max
            ):
                return position
            try:
                form = forms.learn(frame)
            except HardError:
                return position
        # The header frame.
        header = form.header
        if header and data.startswith(header, header_at):
            envelope = form.envelope
            assert envelope is not None
            body_size = envelope.body_size
            body_at = header_at + len(header)
            repeats = True
        else:
            kind, number, size, class_id, weight, body_size = CONTENT_HEAD.unpack_from(
                data, header_at
            )
            body_at = header_at + OVERHEAD_BYTES + size
            if (
                kind != HEADER
                or number != channel
                or class_id != BASIC
                or weight
                or not _HEADER_SIZE_MIN <= size <= payload_bytes_max
                or body_size > body_bytes_max
                or body_at > end
                or data[body_at - 1] != FRAME_END
            ):
                return position
            try:
                envelope = form.envelope_of(data[header_at:body_at], body_size)
            except HardError:
                return position
            repeats = False
        # The body frame.
        if body_size:
            start = body_at + FRAME_HEAD.size
            behind = start + body_size + 1
            if behind > end or FRAME_HEAD.unpack_from(data, body_at) != (BODY, channel, body_size):
                return position
            if data[behind - 1] != FRAME_END or body_size > payload_bytes_max:
                return position
            body = data[start : behind - 1]
        else:
            start = behind = body_at
            body = b""
        if repeats:
            form.prefix = data[position:start]
        add_to_runs(runs, form, envelope, [body])
        position = behind


def _take_repeats(data: bytes, position: int, form: PublishForm, runs: list[PublishRun]) -> int:
    """Append the messages that begin with the form's prefix; returns what is behind them."""
    assert form.envelope is not None
    prefix, body_size = form.prefix, form.envelope.body_size
    stride = len(prefix) + body_size + (1 if body_size else 0)
    first = position
    last = len(data) - stride
    startswith = data.startswith
    while position <= last and startswith(prefix, position):
        position += stride
    ends = data[first + stride - 1 : position : stride]
    if ends.count(FRAME_END) < len(ends):
        # Up to the first body that does not end where it should.
        position = first + stride * next(i for i, end in enumerate(ends) if end != FRAME_END)
    if position > first:
        # Counted by where messages begin: behind an empty body is the next message already.
        start = len(prefix)
        end = start + body_size
        bodies = [data[at + start : at + end] for at in range(first, position, stride)]
        add_to_runs(runs, form, form.envelope, bodies)
    return position


def take_acks(data: bytes, position: int, channel: int) -> tuple[list[AckRange], int]:
    """The basic.ack frames of one channel at `position` as ranges, and what is behind them."""
    prefix = FRAME_HEAD.pack(METHOD, channel, _ACK.size - OVERHEAD_BYTES) + ACK_IDS
    first = position
    last = len(data) - _ACK.size
    while position <= last and data.startswith(prefix, position):
        position += _ACK.size
    if position == first:
        return [], position
    tags, bits, ends = zip(*_ACK.iter_unpack(memoryview(data)[first:position]), strict=True)
    if ends.count(FRAME_END) < len(ends):
        good = next(i for i, end in enumerate(ends) if end != FRAME_END)
        tags, bits = tags[:good], bits[:good]
        position = first + good * _ACK.size
    if not tags:
        return [], position
    if not any(bits) and tags == tuple(range(tags[0], tags[0] + len(tags))):
        return [AckRange(tags[0], tags[-1], False)], position
    return _ranges(tags, bits), position


def _ranges(tags: Sequence[int], bits: Sequence[int]) -> list[AckRange]:
    ranges: list[AckRange] = []
    first = following = -1  # of the range being gathered: its first tag, and the one to continue it
    for tag, bit in zip(tags, bits, strict=True):
        if bit & 1:
            if first >= 0:
                ranges.append(AckRange(first, following - 1, False))
            ranges.append(AckRange(tag, tag, True))
            first = following = -1
        elif tag == following:
            following += 1
        else:
            if first >= 0:
                ranges.append(AckRange(first, following - 1, False))
            first, following = tag, tag + 1
    if first >= 0:
        ranges.append(AckRange(first, following - 1, False))
    return ranges
