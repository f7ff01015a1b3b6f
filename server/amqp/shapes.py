"""A header with the same layout as an earlier one needs a few comparisons, not a parse.

Programs send headers of few shapes: the same properties and keys, ids of the same length. A shape
is learnt from a header frame that was parsed. Two kinds of octets must be the same again: those
that say what stands where (flags, lengths, keys, types, at every depth), and those that prove that
a value is clean. All other octets may be anything. One `unpack_from` takes the octets of these two
kinds out of the data, and one comparison of tuples tells whether they are the same.

Some programs send strings whose length is hardly ever the same again, as Celery does with the
arguments of tasks. Headers that differ in nothing but the lengths of strings in their table have
one skeleton. When a skeleton has come with some lengths, a varying shape is learnt: it is in
segments, between the strings whose lengths were seen to differ. Such a string's length says where
the next segment is.

Promises to accept only what `properties.examine` accepts, finds clean, and gives the same traits.
Learning costs more than walking: it stops where shapes do not come back.
"""

import struct
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from qlog.server.amqp.frames import BODY, CONTENT_HEAD, FRAME_HEAD, OVERHEAD_BYTES
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
# A varying shape takes longer than a fixed one: so many of a skeleton are learnt as fixed ones.
FIXED_PER_SKELETON = 4
# So many varying shapes of one channel are kept.
VARYING_PER_CHANNEL_MAX = 8
# Frames that are longer are always walked: 64 shapes should stay a small sum. Celery's have 1,000.
SHAPE_FRAME_BYTES_MAX = 4096

# Of a header frame: type, channel, size, class and weight. Together they are the key of a fixed
# shape. The size of the body follows.
SHAPE_HEAD_BYTES = 11
_SIZE_AT = 3

_PSEUDO_QUEUE = PSEUDO_QUEUE.encode()


# As many strings as a frame may have: all of them vary.
_ALL = range(SHAPE_FRAME_BYTES_MAX)

# What takes octets out of the data: `Struct.unpack_from`.
_Take: TypeAlias = Callable[[bytes, int], tuple[Any, ...]]
# Of a header whose body is whole in the next frame: the traits, the size of the body, and where it
# begins.
Found: TypeAlias = tuple[Traits, int, int]


class _Layout(NamedTuple):
    """What stands where in a header frame and the head of the frame behind it.

    `priority_at` and `expiration_at` are places among the fields of the last segment that must be
    the same, and `table_at` is where in the frame the table begins (-1: absent).
    """

    spans: Spans
    priority_at: int
    expiration_at: int
    table_at: int


class Shape(Protocol):
    """What some headers have in common."""

    def find(self, data: bytes, at: int) -> Found | None:
        """What is found if the header frame at `at` has this shape."""


class _Known:
    """The traits of a shape. `_expected` are the octets of the last segment that must be the same.

    Priority and expiration are fields of their own there, at `_priority_at` and `_expiration_at`
    (below 0: absent): other values of them make other traits, but no other shape.
    """

    __slots__ = ("_expected", "_expiration_at", "_priority_at", "_traits")

    def __init__(self, layout: _Layout, expected: tuple[bytes, ...], traits: Traits) -> None:
        self._expected = expected
        self._priority_at = layout.priority_at
        self._expiration_at = layout.expiration_at
        self._traits = traits

    def _other_traits(self, octets: tuple[bytes, ...]) -> Traits | None:
        """The traits of a header whose last segment is not as expected; None: of another shape."""
        if self._priority_at < 0 and self._expiration_at < 0:
            return None
        expected = list(self._expected)
        priority: int | None = None
        expiration: bytes | None = None
        if self._priority_at >= 0:
            expected[self._priority_at] = octets[self._priority_at]
            priority = octets[self._priority_at][0]
        if self._expiration_at >= 0:
            expected[self._expiration_at] = expiration = octets[self._expiration_at]
        if octets != tuple(expected):
            return None
        needs = self._traits.needs & ~BAD_EXPIRATION
        return traits_of(self._traits.persistent, priority, expiration, needs)


class FixedShape(_Known):
    """A shape in one segment, of frames with one head.

    Behind the head stands the size of the body, then what must be the same, and at last the size of
    the body's frame.
    """

    __slots__ = ("_octets", "_take")

    def __init__(self, frame: bytes, traits: Traits) -> None:
        layout = _layout(frame)
        _, _, *counts = layout.spans.counts  # without the head and the size of the body
        fields = struct.Struct(f">Q{_format(counts)}I")
        self._take: _Take = fields.unpack_from
        self._octets = SHAPE_HEAD_BYTES + fields.size
        expected = self._take(_with_body_head(frame), SHAPE_HEAD_BYTES)[1:-1]
        head_fields = 1
        super().__init__(
            layout._replace(
                priority_at=layout.priority_at - head_fields,
                expiration_at=layout.expiration_at - head_fields,
            ),
            expected,
            traits,
        )

    def find(self, data: bytes, at: int) -> Found | None:
        """What is found if the header frame at `at`, which has the head, has this shape."""
        try:
            fields = self._take(data, at + SHAPE_HEAD_BYTES)
        except struct.error:
            return None  # the data ends before the body begins
        octets = fields[1:-1]
        traits = self._traits if octets == self._expected else self._other_traits(octets)
        body_size = fields[0]
        if traits is None or body_size != fields[-1]:
            return None
        return traits, body_size, at + self._octets


class VaryingShape(_Known):
    """A shape in segments, some strings of any length between them.

    What is taken of a segment ends with a number: the length of the string behind it, or the size
    of the body's frame. Of the first one the sizes (of the frame, the body, and the table, and the
    length of the string) are taken apart from what must be the same. `_around_table` is the number
    of the frame's octets that are not in the table.
    """

    __slots__ = (
        "_around_table",
        "_first",
        "_first_octets",
        "_last_octets",
        "_middle",
        "_take_first",
        "_take_last",
        "_take_sizes",
    )

    def __init__(self, frame: bytes, traits: Traits, varying: Collection[int]) -> None:
        layout = _layout(frame, varying)
        first, *rest = layout.spans.segments
        data = _with_body_head(frame)
        table_at = layout.table_at
        between = table_at - CONTENT_HEAD.size, sum(first) - table_at - 4
        self._take_sizes: _Take = struct.Struct(
            f">{_SIZE_AT}xI4xQ{between[0]}xI{between[1]}xI"
        ).unpack_from
        size, _, table_size, length = self._take_sizes(data, 0)
        self._around_table = size - table_size
        self._take_first: _Take = struct.Struct(f">{_format(first)}").unpack_from
        self._first = self._take_first(data, 0)
        self._first_octets = at = sum(first) + 4
        self._middle: list[tuple[_Take, tuple[bytes, ...], int]] = []
        for counts in rest:
            at += length
            fields = struct.Struct(f">{_format(counts)}I")
            *octets, length = fields.unpack_from(data, at)
            self._middle.append((fields.unpack_from, tuple(octets), fields.size))
            at += fields.size
        self._take_last, expected, self._last_octets = self._middle.pop()
        super().__init__(layout, expected, traits)

    def find(self, data: bytes, at: int) -> Found | None:
        """See `Shape`."""
        try:
            size, body_size, table_size, length = self._take_sizes(data, at)
            if size - table_size != self._around_table or self._take_first(data, at) != self._first:
                return None
            place = at + self._first_octets + length
            for take, expected, count in self._middle:
                fields = take(data, place)
                if fields[:-1] != expected:
                    return None
                place += count + fields[-1]
            fields = self._take_last(data, place)
        except struct.error:
            return None  # the data ends before the body begins, or a length points past its end
        octets = fields[:-1]
        traits = self._traits if octets == self._expected else self._other_traits(octets)
        body_at = place + self._last_octets
        # The octets of the strings are those by which the sizes differ from the learnt ones.
        if (
            traits is None
            or body_size != fields[-1]
            or body_at - at != size + OVERHEAD_BYTES + FRAME_HEAD.size
        ):
            return None
        return traits, body_size, body_at


def _with_body_head(frame: bytes) -> bytes:
    """The header frame, and the head of a frame with the whole body."""
    return frame + FRAME_HEAD.pack(
        BODY,
        int.from_bytes(frame[1:_SIZE_AT], "big"),
        int.from_bytes(frame[CONTENT_HEAD.size - 4 : CONTENT_HEAD.size], "big"),
    )


class _Skeleton:
    """What headers have in common that differ in the lengths of strings of their table.

    `lengths` are those of the first one, `varying` the numbers of strings that had another length
    since, `seen` counts the headers that were learnt, `shape` is the varying shape.
    """

    __slots__ = ("lengths", "seen", "shape", "varying")

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.seen = 0
        self.varying: set[int] = set()
        self.shape: Shape | None = None


class Family:
    """The shapes of one channel.

    The next header has most likely the shape `latest`, a varying one, if there is one, or else the
    shape that is the `newest` of its head.
    """

    __slots__ = ("_older", "_varying", "latest", "newest")

    def __init__(self) -> None:
        self.latest: Shape | None = None
        self.newest: dict[bytes, Shape] = {}  # of the fixed ones, by the head of the header frame
        # Short lists, the most recent first.
        self._older: dict[bytes, list[Shape]] = {}
        self._varying: list[Shape] = []

    def __len__(self) -> int:
        return len(self.newest) + sum(map(len, self._older.values())) + len(self._varying)

    @property
    def varying_count(self) -> int:
        """How many of them are varying shapes."""
        return len(self._varying)

    def find(self, data: bytes, at: int) -> Found | None:
        """What is found if the header frame at `at` has one of the shapes, whichever it is."""
        latest, self.latest = self.latest, None
        head = data[at : at + SHAPE_HEAD_BYTES]
        newest = self.newest.get(head)
        if newest is not None:
            found = newest.find(data, at)
            if found is not None:
                return found
            older = self._older.get(head, [])
            shape, found = _search(older, data, at)
            if shape is not None:
                older.remove(shape)
                self.add_fixed(head, shape)
                return found
        varying = self._varying
        shape, found = _search(varying, data, at)
        if shape is not None:
            # One among many of another shape does not change what comes most.
            again = latest is None or shape is varying[0]
            varying.remove(shape)
            varying.insert(0, shape)
            self.latest = shape if again else latest
        return found

    def add_fixed(self, head: bytes, shape: Shape) -> None:
        """A shape of header frames with this head, the newest from now on."""
        newest = self.newest.get(head)
        if newest is not None:
            older = self._older.setdefault(head, [])
            older.insert(0, newest)
            del older[SHAPES_PER_HEAD_MAX - 1 :]
        self.newest[head] = shape

    def add_varying(self, shape: Shape, instead_of: Shape | None) -> None:
        """A new varying shape, in place of another one, in which fewer strings vary."""
        varying = self._varying
        varying[:] = [shape, *(other for other in varying if other is not instead_of)]
        del varying[VARYING_PER_CHANNEL_MAX:]


def _search(shapes: list[Shape], data: bytes, at: int) -> tuple[Shape | None, Found | None]:
    """The first of these shapes that the header has, and what is found by it."""
    for shape in shapes:
        found = shape.find(data, at)
        if found is not None:
            return shape, found
    return None, None


_NONE = Family()  # of a channel of which nothing was learnt: stays empty


class Shapes:
    """The shapes a connection has lately seen. `recognised` counts the headers that had one."""

    __slots__ = ("_families", "_learnt", "_skeletons", "recognised")

    def __init__(self) -> None:
        self.recognised = 0
        self._families: dict[int, Family] = {}  # by channel: frames of several may alternate
        self._skeletons: dict[bytes, _Skeleton] = {}
        self._learnt = 0

    def __len__(self) -> int:
        return sum(map(len, self._families.values()))

    def of(self, channel: int) -> Family:
        """The shapes of a channel. After `learn` and `clear` they may be others."""
        return self._families.get(channel, _NONE)

    def learn(self, frame: bytes, traits: Traits) -> int:
        """Remember the shape of a whole header frame whose properties were found clean.

        Returns about how many octets of memory it takes, 0 if it is not remembered.
        """
        if (
            self._learnt >= SHAPES_MAX + self.recognised // RECOGNISED_PER_SHAPE
            or len(frame) > SHAPE_FRAME_BYTES_MAX
        ):
            return 0
        channel = int.from_bytes(frame[1:3], "big")
        if self.of(channel).find(_with_body_head(frame), 0):
            return 0  # it was walked because of its body
        self._learnt += 1
        if len(self) >= SHAPES_MAX or len(self._skeletons) >= SHAPES_MAX:
            self.clear()
        family = self._families.setdefault(channel, Family())
        skeleton = self._skeleton(frame)
        if skeleton.seen > FIXED_PER_SKELETON and skeleton.varying:
            shape = VaryingShape(frame, traits, skeleton.varying)
            family.add_varying(shape, skeleton.shape)
            skeleton.shape = shape
        else:
            family.add_fixed(frame[:SHAPE_HEAD_BYTES], FixedShape(frame, traits))
        # Twice the frame: its skeleton is kept too. A shape has some 30 fields, in segments.
        return 2 * len(frame) + 3000 + 500 * (1 + len(skeleton.varying))

    def _skeleton(self, frame: bytes) -> _Skeleton:
        """The skeleton of the header frame, which has been seen once more."""
        layout = _layout(frame, _ALL)
        lengths = layout.spans.strings
        octets = _same_octets(frame, layout)
        skeleton = self._skeletons.setdefault(octets, _Skeleton(lengths))
        skeleton.seen += 1
        pairs = enumerate(zip(skeleton.lengths, lengths, strict=True))
        skeleton.varying.update(number for number, (one, other) in pairs if one != other)
        return skeleton

    def clear(self) -> None:
        """Forget all shapes."""
        self._families.clear()
        self._skeletons.clear()


def _same_octets(frame: bytes, layout: _Layout) -> bytes:
    """The octets of a header frame that are the same in all of its skeleton."""
    data = _with_body_head(frame)
    at = 0
    same: list[bytes] = []
    for counts, length in zip(layout.spans.segments, [*layout.spans.strings, 0], strict=True):
        last_at = len(same)
        same += struct.unpack_from(f">{_format(counts)}", data, at)
        at += sum(counts) + 4 + length
    for place in (layout.priority_at, layout.expiration_at):
        if place >= 0:
            same[last_at + place] = b""
    return b"".join(same)


def _layout(frame: bytes, varying: Collection[int] = ()) -> _Layout:
    """The layout of a header frame if the strings of the table with these numbers vary."""
    spans = Spans(varying)
    size_bytes = 4
    size = spans.differ if varying else spans.same
    spans.same(_SIZE_AT)
    size(size_bytes)
    spans.same(SHAPE_HEAD_BYTES - _SIZE_AT - size_bytes)
    spans.differ(CONTENT_HEAD.size - SHAPE_HEAD_BYTES)  # the size of the body
    spans.same(2)  # the flags
    raw = frame[CONTENT_HEAD.size : -1]
    offset = 2
    priority_at = expiration_at = table_at = -1
    for step in steps_of(raw[:2]):
        if step > 0:
            spans.differ(step)
            offset += step
        elif step == STEP_TABLE:
            table_at = CONTENT_HEAD.size + offset
            size(size_bytes)
            offset = table_spans(raw, offset, spans)
        elif step == STEP_MODE:
            spans.same(1)
            offset += 1
        elif step == STEP_PRIORITY:
            priority_at = spans.alone(1)
            offset += 1
        else:
            octets = raw[offset]
            spans.same(1)
            offset += 1
            if step == STEP_SHORTSTR:
                spans.differ(octets)
            elif step == STEP_EXPIRATION:
                expiration_at = spans.alone(octets)
            else:
                assert step == STEP_REPLY_TO
                proof = _proof_octets(raw[offset : offset + octets])
                spans.same(proof)
                spans.differ(octets - proof)
            offset += octets
    spans.same(1 + 3)  # the frame end; type and channel of the next frame
    return _Layout(spans, priority_at, expiration_at, table_at)


def _format(counts: Sequence[int]) -> str:
    """The struct format that takes the octets of a segment that must be the same."""
    same = (f"{octets}s" for octets in counts[::2])
    differ = (f"{octets}x" for octets in [*counts[1::2], 0])
    return "".join(map("".join, zip(same, differ, strict=True)))


def _proof_octets(reply_to: bytes) -> int:
    """The number of octets of a reply_to that say whether it names the pseudo-queue."""
    if len(reply_to) != len(_PSEUDO_QUEUE):
        return 0
    for at, (octet, other) in enumerate(zip(reply_to, _PSEUDO_QUEUE, strict=True)):
        if octet != other:
            return at + 1
    return len(reply_to)
