"""Recognising what was seen before: the fast path of receiving.

Traffic repeats itself. The octets of a basic.publish frame (exchange, key, flags) come again and
again, those of its header often, and both together make a prefix by which a whole run of messages
is told apart without being parsed. The same goes for acks, which differ in their tags alone.

Promises to take from the front of the data only what is whole and valid, and to understand it as
slow parsing would. At the first octet that is not recognised it stops: `connection` goes on there,
and knows all the rules. Knows nothing of channels' states.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from qlog.server.amqp.budget import Budget
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
from qlog.server.amqp.properties import NO_TRAITS, Traits, examine
from qlog.server.amqp.shapes import SHAPE_HEAD_BYTES, Shapes
from qlog.server.amqp.spec import BasicAck, BasicPublish, decode_method

# Different basic.publish frames remembered by a connection; forgotten all at once when full.
FORMS_MAX = 1024
# Longer properties are not remembered: a thousand of them should stay a small sum.
PROPERTIES_BYTES_MAX = 1024
# A form has its frame three times, and beside that about so many octets: 500 of objects, and three
# times (raw, packed, in the prefix) properties of 250 octets. Most properties are shorter.
FORM_BYTES = 1250
# All that the connections of a process may remember of what they have seen.
BUDGET = Budget(32 * 1024 * 1024)

PUBLISH_IDS = struct.pack(">HH", BasicPublish.CLASS_ID, BasicPublish.METHOD_ID)
ACK_IDS = struct.pack(">HH", BasicAck.CLASS_ID, BasicAck.METHOD_ID)
_ACK = struct.Struct(">11xQBB")  # 7 octets of frame head and 4 of ids, tag, bits, frame end
_HEADER_BYTES_MIN = CONTENT_HEAD.size + 2 + 1  # with the flags and the frame end
_HEADER_SIZE_MIN = CONTENT_FIXED_BYTES + 2

_pack = msgpack.Packer().pack
_new_tuple = tuple.__new__


class PublishRun:
    """Consecutive messages with the same traits: message i has `methods[i]`, `envelopes[i]` and
    `bodies[i]`. Identical octets have the identical method and envelope.
    """

    __slots__ = ("bodies", "envelopes", "methods", "traits")

    def __init__(self, traits: Traits) -> None:
        self.traits = traits
        self.methods: list[BasicPublish] = []
        self.envelopes: list[Envelope] = []
        self.bodies: list[bytes] = []

    def add(self, method: BasicPublish, envelope: Envelope, body: bytes) -> None:
        """One more message."""
        self.methods.append(method)
        self.envelopes.append(envelope)
        self.bodies.append(body)


class AckRange(NamedTuple):
    """The delivery tags from `first` to `last`; with `multiple` (first is last) all up to it.

    `multiple` with tag 0 means all that is unacknowledged.
    """

    first: int
    last: int
    multiple: bool


class PublishForm:
    """One basic.publish frame, and what the last message under it was like.

    `prefix` are the octets of a message from its method frame up to its body. It is known once a
    message repeats the header of the one before, and empty until then.
    """

    __slots__ = ("_packed_route", "envelope", "frame", "method", "prefix", "traits")

    def __init__(self, method: BasicPublish, frame: bytes) -> None:
        self.method = method
        self.frame = frame
        self.envelope: Envelope | None = None
        self.traits = NO_TRAITS
        self.prefix = b""
        # The front of Envelope.packed: an array of three, the first two of them. It is made when a
        # second message comes under this frame: many routing keys come once.
        self._packed_route = b""

    def envelope_of(
        self, properties: bytes, body_size: int, traits: Traits | None = None
    ) -> Envelope:
        """The envelope of a message with these properties, which are made clean.

        `traits` are given if the properties are known to be clean already. Raises HardError when
        the properties are malformed.
        """
        last, method = self.envelope, self.method
        if last is not None and last.properties == properties:
            if last.body_size == body_size:
                return last
            packed, packed_hash = last.packed, last.packed_hash
        else:
            if traits is None:
                traits, properties = examine(properties)
            self.traits = traits
            if last is None:
                packed = _pack((method.exchange, method.routing_key, properties))
            else:
                route = self._packed_route or self._pack_route()
                packed = route + _pack(properties)
            packed_hash = xxh3_64_intdigest(packed)
        # The same result as Envelope(…), at half the cost.
        envelope = _new_tuple(
            Envelope,
            (method.exchange, method.routing_key, properties, body_size, packed, packed_hash),
        )
        self.envelope = envelope if len(properties) <= PROPERTIES_BYTES_MAX else None
        self.prefix = b""
        return envelope

    def _pack_route(self) -> bytes:
        method = self.method
        self._packed_route = b"\x93" + _pack(method.exchange) + _pack(method.routing_key)
        return self._packed_route


class PublishForms:
    """What a connection has lately seen: `by_frame` the forms by the octets of the method frame."""

    __slots__ = ("_budget", "by_frame", "shapes")

    def __init__(self, budget: Budget = BUDGET) -> None:
        self._budget = budget
        self.by_frame: dict[bytes, PublishForm] = {}
        self.shapes = Shapes()

    def learn(self, frame: bytes) -> PublishForm:
        """The form of a basic.publish frame not seen before. HardError when it is malformed."""
        method = _decode_publish(frame)
        if len(self.by_frame) >= FORMS_MAX:
            self.close()
        self._budget.charge(self, FORM_BYTES + 3 * len(frame))
        form = self.by_frame[frame] = PublishForm(method, frame)
        return form

    def learn_shape(self, header: bytes, traits: Traits) -> None:
        """Remember the shape of a whole header frame whose properties were found clean."""
        octets = self.shapes.learn(header, traits)
        if octets:
            self._budget.charge(self, octets)

    def forget(self) -> None:
        """Forget all (see `Budget`)."""
        self.by_frame.clear()
        self.shapes.clear()

    def close(self) -> None:
        """Forget all, and give the budget its share back."""
        self._budget.release(self)
        self.forget()


def _decode_publish(frame: bytes) -> BasicPublish:
    """The same result as `decode_method`, faster: every message may have a new routing key.

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


def run_with(runs: list[PublishRun], traits: Traits) -> PublishRun:
    """The run that a message with these traits belongs to: the last one, or a new one."""
    if not runs or runs[-1].traits is not traits:
        runs.append(PublishRun(traits))
    return runs[-1]


class Limits(NamedTuple):
    """What a message must comply with: its channel, and the octets of a payload, and of a body that
    is in one frame.
    """

    channel: int
    payload_bytes_max: int
    body_bytes_max: int


# Kept: one message at a time comes from many clients, and to make a tuple costs more than to find it.
limits_of = lru_cache(1024)(Limits)


def take_publishes(
    data: bytes,
    position: int,
    forms: PublishForms,
    runs: list[PublishRun],
    *,
    until: int,
    limits: Limits,
) -> int:
    """Append the whole messages of one channel at `position` to `runs`; returns where they end.

    Takes messages that begin before the position `until` and whose body is in at most one frame.
    """
    channel, payload_bytes_max, body_bytes_max = limits
    header_bytes_max = payload_bytes_max + OVERHEAD_BYTES
    shapes = forms.shapes
    family = shapes.of(channel)
    newest, latest = family.newest.get, family.latest
    end = len(data)
    form: PublishForm | None = None
    run: PublishRun | None = None
    while position < until:
        # The method frame is like the one before, or like one before that.
        if form is None or not data.startswith(form.frame, position):
            form = _form_at(data, position, forms, limits)
            if form is None:
                break
        if form.prefix and data.startswith(form.prefix, position):
            # The header is also like the one before: only the body is new.
            behind = _take_repeats(data, position, form, runs, until)
            run = None
        else:
            # Or the header is of a known shape: that says where the body is.
            header_at = position + len(form.frame)
            shape = latest or newest(data[header_at : header_at + SHAPE_HEAD_BYTES])
            found = shape and shape.find(data, header_at)
            if not found:
                found = family.find(data, header_at)
                latest = family.latest
            if found:
                traits, body_size, body_at = found
                header_end = body_at - FRAME_HEAD.size
                body_end = body_at + body_size
            if (
                not found
                or not 0 < body_size <= body_bytes_max
                or body_end >= end
                or data[body_end] != FRAME_END
                or header_end - header_at > header_bytes_max
            ):
                behind = _take_one(data, position, form, forms, limits, runs)
                family = shapes.of(channel)
                newest, latest = family.newest.get, family.latest
                run = None
            else:
                shapes.recognised += 1
                known = form.envelope
                properties = data[header_at + CONTENT_HEAD.size : header_end - 1]
                envelope = form.envelope_of(properties, body_size, traits)
                if envelope is known:
                    form.prefix = data[position:body_at]
                if run is None or run.traits is not form.traits:
                    run = run_with(runs, form.traits)
                run.methods.append(form.method)
                run.envelopes.append(envelope)
                run.bodies.append(data[body_at:body_end])
                behind = body_end + 1
        if behind == position:
            break
        position = behind
    return position


def _take_one(
    data: bytes,
    position: int,
    form: PublishForm,
    forms: PublishForms,
    limits: Limits,
    runs: list[PublishRun],
) -> int:
    """Append the message at `position`, whose header has to be walked; returns where it ends."""
    channel, payload_bytes_max, body_bytes_max = limits
    end = len(data)
    header_at = position + len(form.frame)
    if header_at + _HEADER_BYTES_MIN > end:
        return position
    kind, number, size, class_id, weight, body_size = CONTENT_HEAD.unpack_from(data, header_at)
    header_end = header_at + OVERHEAD_BYTES + size
    if (
        kind != HEADER
        or number != channel
        or class_id != BASIC
        or weight
        or not _HEADER_SIZE_MIN <= size <= payload_bytes_max
        or body_size > body_bytes_max
        or header_end > end
        or data[header_end - 1] != FRAME_END
    ):
        return position
    body_at: int = header_end
    behind: int = header_end
    if body_size:
        body_at = header_end + FRAME_HEAD.size
        behind = body_at + body_size + 1
        if (
            behind > end
            or FRAME_HEAD.unpack_from(data, header_end) != (BODY, channel, body_size)
            or data[behind - 1] != FRAME_END
        ):
            return position
    known = form.envelope
    properties = data[header_at + CONTENT_HEAD.size : header_end - 1]
    try:
        envelope = form.envelope_of(properties, body_size)
    except HardError:
        return position
    if envelope is known:
        form.prefix = data[position:body_at]
    elif envelope.properties == properties:  # they are clean
        forms.learn_shape(data[header_at:header_end], form.traits)
    run_with(runs, form.traits).add(form.method, envelope, data[body_at : body_at + body_size])
    return behind


def _form_at(data: bytes, position: int, forms: PublishForms, limits: Limits) -> PublishForm | None:
    """The form of the basic.publish frame at `position`; None if there is none that is whole."""
    head_end = position + FRAME_HEAD.size
    if head_end > len(data):
        return None
    kind, number, size = FRAME_HEAD.unpack_from(data, position)
    frame = data[position : head_end + size + 1]
    if number != limits.channel:
        return None
    form = forms.by_frame.get(frame)
    if form is not None:
        return form
    if kind != METHOD or len(frame) < size + OVERHEAD_BYTES:
        return None
    if (
        not data.startswith(PUBLISH_IDS, head_end)
        or frame[-1] != FRAME_END
        or size > limits.payload_bytes_max
    ):
        return None
    try:
        return forms.learn(frame)
    except HardError:
        return None


def _take_repeats(
    data: bytes, position: int, form: PublishForm, runs: list[PublishRun], until: int
) -> int:
    """Append the messages that begin with the form's prefix; returns what is behind them."""
    envelope = form.envelope
    assert envelope is not None
    prefix, body_size = form.prefix, envelope.body_size
    stride = len(prefix) + body_size + (1 if body_size else 0)
    first = position
    last = min(len(data) - stride, until - 1)
    startswith = data.startswith
    if body_size and position <= last and not startswith(prefix, position + stride):
        # One alone: the next message has another key.
        position += stride
        if data[position - 1] != FRAME_END:
            return first
        body = data[first + len(prefix) : position - 1]
        run_with(runs, form.traits).add(form.method, envelope, body)
        return position
    while position <= last and startswith(prefix, position):
        position += stride
    ends = data[first + stride - 1 : position : stride]
    if ends.count(FRAME_END) < len(ends):
        # Up to the first body that does not end where it should.
        position = first + stride * next(i for i, end in enumerate(ends) if end != FRAME_END)
    if position > first:
        # Found by where messages begin: behind an empty body the next message begins at once.
        start = len(prefix)
        end = start + body_size
        bodies = [data[at + start : at + end] for at in range(first, position, stride)]
        run = run_with(runs, form.traits)
        run.methods += [form.method] * len(bodies)
        run.envelopes += [envelope] * len(bodies)
        run.bodies += bodies
    return position


@lru_cache(1024)
def _ack_prefix(channel: int) -> bytes:
    """What all basic.ack frames of a channel begin with."""
    return FRAME_HEAD.pack(METHOD, channel, _ACK.size - OVERHEAD_BYTES) + ACK_IDS


def take_acks(data: bytes, position: int, channel: int, until: int) -> tuple[list[AckRange], int]:
    """The basic.ack frames of one channel at `position` as ranges, and the position behind them.

    Takes frames that begin before the position `until`.
    """
    prefix = _ack_prefix(channel)
    if len(data) - position == _ACK.size and data.startswith(prefix, position) and position < until:
        tag, bit, end = _ACK.unpack_from(data, position)  # the last, and mostly the only one
        if end == FRAME_END:
            return [AckRange(tag, tag, bool(bit & 1))], len(data)
    first = position
    last = min(len(data) - _ACK.size, until - 1)
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
