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
from typing import NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from qlog.server.amqp.envelope import Envelope
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
from qlog.server.amqp.properties import Traits, scan
from qlog.server.amqp.shapes import Shapes
from qlog.server.amqp.spec import BasicAck, BasicPublish, decode_method

# Different basic.publish frames remembered by a connection; forgotten all at once when full.
FORMS_MAX = 1024
# Longer properties are not remembered: a thousand of them should stay a small sum.
PROPERTIES_BYTES_MAX = 1024

PUBLISH_IDS = struct.pack(">HH", BasicPublish.CLASS_ID, BasicPublish.METHOD_ID)
ACK_IDS = struct.pack(">HH", BasicAck.CLASS_ID, BasicAck.METHOD_ID)
_ACK = struct.Struct(">11xQBB")  # 7 octets of frame head and 4 of ids, tag, bits, frame end
# frame head of a content header, then class and weight as one, then the body size
_HEADER = struct.Struct(">3sIIQ")
_HEADER_MARK = struct.Struct(">BH")
_CONTENT_IDS = BASIC << 16
# the frame end of the header, and the frame head of the body
_END_AND_BODY = struct.Struct(">4sI")
_END_AND_BODY_MARK = struct.Struct(">BBH")
_HEADER_BYTES_MIN = CONTENT_HEAD.size + 2 + 1  # with the flags and the frame end
_HEADER_SIZE_MIN = CONTENT_FIXED_BYTES + 2

NO_TRAITS = Traits(persistent=False, special=False)

_pack = msgpack.Packer().pack
_new_tuple = tuple.__new__


class PublishRun:
    """Consecutive messages of one basic.publish form with the same traits.

    Message i has `envelopes[i]` and `bodies[i]`; identical headers have the identical envelope.
    """

    __slots__ = ("bodies", "envelopes", "method", "traits")

    def __init__(self, method: BasicPublish, traits: Traits) -> None:
        self.method = method
        self.traits = traits
        self.envelopes: list[Envelope] = []
        self.bodies: list[bytes] = []


class AckRange(NamedTuple):
    """The delivery tags from `first` to `last`; with `multiple` (first is last) all up to it.

    `multiple` with tag 0 means all that is unacknowledged.
    """

    first: int
    last: int
    multiple: bool


class PublishForm:
    """One basic.publish frame, and what the last message under it was like.

    `prefix` are the octets of a message up to its body, from the method frame on, known once a
    message repeats the header of the one before (empty until then).
    """

    __slots__ = ("_packed_route", "envelope", "frame", "method", "prefix", "traits")

    def __init__(self, method: BasicPublish, frame: bytes) -> None:
        self.method = method
        self.frame = frame
        self.envelope: Envelope | None = None
        self.traits = NO_TRAITS
        self.prefix = b""
        # The front of Envelope.packed: an array of three, the first two of them.
        self._packed_route = b"\x93" + _pack(method.exchange) + _pack(method.routing_key)

    def envelope_of(
        self, properties: bytes, body_size: int, traits: Traits | None = None
    ) -> Envelope:
        """The envelope of a message with these properties; `traits` are theirs from now on.

        Raises HardError when they are malformed, unless their traits are known already.
        """
        last = self.envelope
        if last is not None and last.properties == properties:
            if last.body_size == body_size:
                return last
            packed, packed_hash = last.packed, last.packed_hash
        else:
            self.traits = traits or scan(properties)  # a tuple of two is never false
            packed = self._packed_route + _pack(properties)
            packed_hash = xxh3_64_intdigest(packed)
        method = self.method
        # As Envelope(…) does, at half the cost.
        envelope = _new_tuple(
            Envelope,
            (method.exchange, method.routing_key, properties, body_size, packed, packed_hash),
        )
        self.envelope = envelope if len(properties) <= PROPERTIES_BYTES_MAX else None
        self.prefix = b""
        return envelope


class PublishForms(dict[bytes, PublishForm]):
    """The forms a connection has lately seen, by the octets of the whole method frame."""

    def __init__(self) -> None:
        self.shapes = Shapes()

    def learn(self, frame: bytes) -> PublishForm:
        """The form of a basic.publish frame not seen before. HardError when it is malformed."""
        method = _decode_publish(frame)
        if len(self) >= FORMS_MAX:
            self.clear()
        form = self[frame] = PublishForm(method, frame)
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


def run_for(runs: list[PublishRun], method: BasicPublish, traits: Traits) -> PublishRun:
    """The run that the next message belongs to: the last one, or a new one."""
    if runs:
        run = runs[-1]
        if run.method is method and run.traits is traits:
            return run
    run = PublishRun(method, traits)
    runs.append(run)
    return run


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
    startswith = data.startswith
    shapes = forms.shapes
    header_head = _HEADER_MARK.pack(HEADER, channel)
    end_and_body_head = _END_AND_BODY_MARK.pack(FRAME_END, BODY, channel)
    form: PublishForm | None = None
    while True:
        if form is not None and form.prefix and startswith(form.prefix, position):
            behind = _take_repeats(data, position, form, runs)
            if behind == position:
                return position
            position = behind
            continue
        # The method frame.
        if form is not None and startswith(form.frame, position):
            header_at = position + len(form.frame)
        else:
            form = _form_at(data, position, channel, forms, payload_bytes_max)
            if form is None:
                return position
            header_at = position + len(form.frame)
        # The header frame.
        if header_at + _HEADER_BYTES_MIN > end:
            return position
        mark, size, ids, body_size = _HEADER.unpack_from(data, header_at)
        body_at = header_at + OVERHEAD_BYTES + size
        if (
            mark != header_head
            or ids != _CONTENT_IDS
            or not _HEADER_SIZE_MIN <= size <= payload_bytes_max
            or body_size > body_bytes_max
            or body_at > end
        ):
            return position
        # The body frame: with the end of the header's before it, and its own behind it.
        if body_size:
            start = body_at + FRAME_HEAD.size
            behind = start + body_size + 1
            if (
                behind > end
                or body_size > payload_bytes_max
                or _END_AND_BODY.unpack_from(data, body_at - 1) != (end_and_body_head, body_size)
                or data[behind - 1] != FRAME_END
            ):
                return position
            body = data[start : behind - 1]
        else:
            start = behind = body_at
            if data[body_at - 1] != FRAME_END:
                return position
            body = b""
        known = form.envelope
        properties = data[header_at + CONTENT_HEAD.size : body_at - 1]
        shape = shapes.get(data[header_at + 3 : header_at + 7])
        if shape is not None and shape[0].unpack_from(data, header_at) == shape[1]:
            shapes.recognised += 1
            envelope = form.envelope_of(properties, body_size, shape[2])
        else:
            try:
                envelope = form.envelope_of(properties, body_size)
            except HardError:
                return position
            if envelope is not known:
                shapes.learn(data[header_at:body_at], form.traits)
        if envelope is known:
            form.prefix = data[position:start]
        run = run_for(runs, form.method, form.traits)
        run.envelopes.append(envelope)
        run.bodies.append(body)
        position = behind


def _form_at(
    data: bytes, position: int, channel: int, forms: PublishForms, payload_bytes_max: int
) -> PublishForm | None:
    """The form of the basic.publish frame at `position`; None if there is none that is whole."""
    head_end = position + FRAME_HEAD.size
    if head_end > len(data):
        return None
    kind, number, size = FRAME_HEAD.unpack_from(data, position)
    frame_end = head_end + size + 1
    if kind != METHOD or number != channel or frame_end > len(data):
        return None
    frame = data[position:frame_end]
    form = forms.get(frame)
    if form is not None:
        return form
    if (
        not data.startswith(PUBLISH_IDS, head_end)
        or frame[-1] != FRAME_END
        or size > payload_bytes_max
    ):
        return None
    try:
        return forms.learn(frame)
    except HardError:
        return None


def _take_repeats(data: bytes, position: int, form: PublishForm, runs: list[PublishRun]) -> int:
    """Append the messages that begin with the form's prefix; returns what is behind them."""
    envelope = form.envelope
    assert envelope is not None
    prefix, body_size = form.prefix, envelope.body_size
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
        run = run_for(runs, form.method, form.traits)
        run.envelopes += [envelope] * len(bodies)
        run.bodies += bodies
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
