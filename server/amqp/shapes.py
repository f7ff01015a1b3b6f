"""A header with the same layout as an earlier one needs one comparison, not a parse.

Programs send headers of few shapes: the same properties and keys, ids of the same length. A shape
is learnt from a header frame that was parsed. Two kinds of octets must be the same again: those
that say what stands where (flags, lengths, keys, types, at every depth), and those that prove that
a value is clean. All other octets may be anything. One `unpack_from` takes the octets of these two
kinds out of the data, and one comparison of lists tells whether they are the same.

Promises to accept only what `properties.examine` accepts, finds clean, and gives the same traits.
Learning costs more than walking: it stops where shapes do not come back.
"""

import struct
from collections.abc import Callable
from typing import Any

from qlog.server.amqp.frames import BODY, CONTENT_HEAD, FRAME_HEAD
from qlog.server.amqp.properties import (
    BAD_EXPIRATION,
    PSEUDO_QUEUE,
    STEP_EXPIRATION,
    STEP_MODE,
    STEP_PRIORITY,
    STEP_REPLY_TO,
    STEP_SHORTSTR,
    STEP_TABLE,
    Traits,
    steps_of,
    traits_of,
)
from qlog.server.amqp.values import Spans, table_spans

# So many shapes a connection learns before any was recognised, and keeps at most.
SHAPES_MAX = 64
# Beyond that, one more shape is learnt for so many headers that were recognised.
RECOGNISED_PER_SHAPE = 16
# So many shapes of one size are kept side by side. Each costs a comparison.
SHAPES_PER_HEAD_MAX = 8
# Frames that are longer are always walked: 64 shapes should stay a small sum. Celery's have 1,000.
SHAPE_FRAME_BYTES_MAX = 4096

# Of a header frame: type, channel, size, class and weight. Together they are the key of a shape.
SHAPE_HEAD_BYTES = 11

_PSEUDO_QUEUE = PSEUDO_QUEUE.encode()


class Shape:
    """`unpack_from` takes these from the octets behind the head: the body size, the octets that
    must be as `expected` (the frame end, and the type and channel of the body's frame, are among
    them), and the size of the body's frame. `octets` is where the body begins, counted from the
    header frame's first octet. A shape belongs to one `channel`: frames of several channels may
    alternate.

    Priority and expiration are fields of their own among the expected octets, at `priority_at` and
    `expiration_at` (-1: absent). Other values of these make other traits, but no other shape.
    `tells`: the shape has at least one of the two.
    """

    __slots__ = (
        "channel",
        "expected",
        "expiration_at",
        "octets",
        "priority_at",
        "tells",
        "traits",
        "unpack_from",
    )

    def __init__(self, frame: bytes, traits: Traits) -> None:
        layout, self.priority_at, self.expiration_at = _layout(frame)
        self.tells = self.priority_at >= 0 or self.expiration_at >= 0
        self.channel = int.from_bytes(frame[1:3], "big")
        self.unpack_from: Callable[[bytes, int], tuple[Any, ...]] = layout.unpack_from
        _, *expected, _ = layout.unpack_from(_with_body_head(frame), SHAPE_HEAD_BYTES)
        self.expected: list[bytes] = expected
        self.octets = len(frame) + FRAME_HEAD.size
        self.traits = traits

    def traits_with(self, found: list[bytes]) -> Traits | None:
        """The traits of a header in which priority or expiration differ; None if more does."""
        expected = self.expected
        priority: int | None = None
        expiration: bytes | None = None
        if self.priority_at >= 0:
            priority = found[self.priority_at][0]
            found[self.priority_at] = expected[self.priority_at]
        if self.expiration_at >= 0:
            expiration = found[self.expiration_at]
            found[self.expiration_at] = expected[self.expiration_at]
        if found != expected:
            return None
        needs = self.traits.needs & ~BAD_EXPIRATION
        return traits_of(self.traits.persistent, priority, expiration, needs)


def _with_body_head(frame: bytes) -> bytes:
    """The header frame as if a body of no octets followed."""
    return frame + FRAME_HEAD.pack(BODY, int.from_bytes(frame[1:3], "big"), 0)


def find_traits(alike: list[Shape], data: bytes, at: int) -> Traits | None:
    """The traits of the header whose octets behind its head are at `at` in `data`.

    None if the header has none of these shapes, which all have the same head. The shape that it has
    is moved to the front.
    """
    for shape in alike:
        _, *found, _ = shape.unpack_from(data, at)
        if found == shape.expected:
            traits: Traits | None = shape.traits
        else:
            traits = shape.traits_with(found) if shape.tells else None
        if traits is not None:
            if shape is not alike[0]:
                alike.remove(shape)
                alike.insert(0, shape)
            return traits
    return None


class Shapes:
    """The shapes a connection has lately seen.

    `by_head` has them by the head of the header frame: a short list each, the most recent first.
    """

    __slots__ = ("_count", "_learnt", "by_head", "recognised")

    def __init__(self) -> None:
        self.by_head: dict[bytes, list[Shape]] = {}
        self.recognised = 0
        self._learnt = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def learn(self, frame: bytes, traits: Traits) -> int:
        """Remember the shape of a whole header frame whose properties were found clean.

        Returns about how many octets of memory it takes, 0 if it is not remembered.
        """
        if (
            self._learnt >= SHAPES_MAX + self.recognised // RECOGNISED_PER_SHAPE
            or len(frame) > SHAPE_FRAME_BYTES_MAX
        ):
            return 0
        head = frame[:SHAPE_HEAD_BYTES]
        alike = self.by_head.get(head)
        if alike and find_traits(alike, _with_body_head(frame), SHAPE_HEAD_BYTES):
            return 0  # it was walked because of its body
        self._learnt += 1
        if self._count >= SHAPES_MAX:
            self.clear()
        shape = Shape(frame, traits)
        alike = self.by_head.setdefault(head, [])
        alike.insert(0, shape)
        if len(alike) > SHAPES_PER_HEAD_MAX:
            alike.pop()
        else:
            self._count += 1
        return len(frame) + 100 * len(shape.expected) + 500

    def clear(self) -> None:
        """Forget all shapes."""
        self.by_head.clear()
        self._count = 0


def _layout(frame: bytes) -> tuple[struct.Struct, int, int]:
    """The layout behind the head; which fields are priority and expiration (-1: absent)."""
    spans = Spans()
    spans.same(2)  # the flags
    raw = frame[CONTENT_HEAD.size : -1]
    offset = 2
    priority_at = expiration_at = -1
    for step in steps_of(raw[:2]):
        if step > 0:
            spans.differ(step)
            offset += step
        elif step == STEP_TABLE:
            offset = table_spans(raw, offset, spans)
        elif step == STEP_MODE:
            spans.same(1)
            offset += 1
        elif step == STEP_PRIORITY:
            priority_at = _alone(spans, 1)
            offset += 1
        else:
            size = raw[offset]
            spans.same(1)
            offset += 1
            if step == STEP_SHORTSTR:
                spans.differ(size)
            elif step == STEP_EXPIRATION:
                expiration_at = _alone(spans, size)
            else:
                assert step == STEP_REPLY_TO
                proof = _proof_octets(raw[offset : offset + size])
                spans.same(proof)
                spans.differ(size - proof)
            offset += size
    spans.same(1 + 3)  # the frame end; type and channel of the next frame
    counts = spans.counts
    same = (f"{octets}s" for octets in counts[::2])
    differ = (f"{octets}x" for octets in [*counts[1::2], 0])
    middle = "".join(map("".join, zip(same, differ, strict=True)))
    return struct.Struct(f">Q{middle}I"), priority_at, expiration_at


def _alone(spans: Spans, octets: int) -> int:
    """Add octets as a field of their own; its place among the fields that must be the same."""
    at = (len(spans.counts) + 1) // 2
    spans.counts += (0, octets, 0, 0)
    return at


def _proof_octets(reply_to: bytes) -> int:
    """The number of octets of a reply_to that say whether it names the pseudo-queue."""
    if len(reply_to) != len(_PSEUDO_QUEUE):
        return 0
    for at, (octet, other) in enumerate(zip(reply_to, _PSEUDO_QUEUE, strict=True)):
        if octet != other:
            return at + 1
    return len(reply_to)
