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
from collections.abc import Callable, Collection
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

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

# Of a header frame: type, channel, size, class and weight. Together they are the key of a shape.
SHAPE_HEAD_BYTES = 11

_PSEUDO_QUEUE = PSEUDO_QUEUE.encode()


class _Layout(NamedTuple):
    """What stands where in a header frame: `spans` are the octets behind the body size.

    `priority_at` and `expiration_at` are places among the fields of the last segment that must be
    the same (-1: absent). `table_size_at` is such a place in the first segment, if strings vary;
    if none does, so many octets that must be the same stand before the table's size.
    """

    spans: Spans
    priority_at: int
    expiration_at: int
    table_size_at: int


class _Known:
    """Priority and expiration are fields of their own among the `expected` octets, at `priority_at`
    and `expiration_at` (-1: absent). Other values of these make other traits, but no other shape.
    `tells`: the shape has at least one of the two.
    """

    __slots__ = ("expected", "expiration_at", "priority_at", "tells", "traits")

    def __init__(self, layout: _Layout, expected: tuple[bytes, ...], traits: Traits) -> None:
        self.expected = expected
        self.priority_at = layout.priority_at
        self.expiration_at = layout.expiration_at
        self.tells = self.priority_at >= 0 or self.expiration_at >= 0
        self.traits = traits

    def traits_with(self, found: tuple[bytes, ...]) -> Traits | None:
        """The traits of a header in which priority or expiration differ; None if more does."""
        expected = list(self.expected)
        priority: int | None = None
        expiration: bytes | None = None
        if self.priority_at >= 0:
            expected[self.priority_at] = found[self.priority_at]
            priority = found[self.priority_at][0]
        if self.expiration_at >= 0:
            expected[self.expiration_at] = expiration = found[self.expiration_at]
        if found != tuple(expected):
            return None
        needs = self.traits.needs & ~BAD_EXPIRATION
        return traits_of(self.traits.persistent, priority, expiration, needs)


class Shape(_Known):
    """`unpack_from` takes these from the octets behind the head: the body size, the octets that
    must be as `expected` (the frame end, and the type and channel of the body's frame, are among
    them), and the size of the body's frame. `octets` is where the body begins, counted from the
    header frame's first octet. A shape belongs to one `channel`: frames of several channels may
    alternate.
    """

    __slots__ = ("channel", "octets", "unpack_from")

    def __init__(self, frame: bytes, layout: _Layout, traits: Traits) -> None:
        self.channel = int.from_bytes(frame[1:3], "big")
        fields = struct.Struct(f">Q{_format(layout.spans.counts)}I")
        self.unpack_from: Callable[[bytes, int], tuple[Any, ...]] = fields.unpack_from
        expected = fields.unpack_from(_with_body_head(frame), SHAPE_HEAD_BYTES)[1:-1]
        self.octets = len(frame) + FRAME_HEAD.size
        super().__init__(layout, expected, traits)


class VaryingShape(_Known):
    """A shape in segments, some strings of any length between them.

    Each segment is what `unpack_from` takes, what must be as expected, and its octets up to the
    string that follows. What the first one takes begins with the head and the body size, and has
    the table's size. `expected` are those of the last segment, which is like the end of a `Shape`.

    The sizes of the frame and of the table are those of the learnt frame without its varying
    strings, `fixed_bytes` and `table_bytes`, and the octets of the varying strings that came.
    """

    __slots__ = ("first", "fixed_bytes", "last", "middle", "same", "table_bytes", "table_size_at")

    def __init__(self, frame: bytes, traits: Traits, varying: Collection[int]) -> None:
        layout = _layout(frame, varying)
        data = _with_body_head(frame)
        at = 0
        varying_bytes = sum(layout.spans.strings[number][0] for number in varying)
        segments: list[tuple[Callable[[bytes, int], tuple[Any, ...]], tuple[Any, ...], int]] = []
        for counts in layout.spans.segments:
            head, size_at = ("", -1) if segments else (_FIRST, layout.table_size_at)
            fields = struct.Struct(f">{head}{_format(counts, size_at)}I")
            *found, length = fields.unpack_from(data, at)
            segments.append((fields.unpack_from, tuple(found), fields.size))
            at += fields.size + length
        (unpack_first, fields_first, octets), *self.middle, self.last = segments
        self.table_size_at = _FIRST_FIELDS + layout.table_size_at
        numbers = (_SIZE_AT, _BODY_SIZE_AT, self.table_size_at)
        self.same = itemgetter(*(at for at in range(len(fields_first)) if at not in numbers))
        self.first = unpack_first, self.same(fields_first), octets
        table_size = int(fields_first[self.table_size_at])
        self.fixed_bytes = len(frame) - OVERHEAD_BYTES - varying_bytes
        self.table_bytes = table_size - varying_bytes
        super().__init__(layout, self.last[1], traits)

    def find(self, data: bytes, at: int) -> "Found | None":
        """What is found if the frame at `at` has this shape. Raises struct.error at data's end."""
        unpack_from, expected, octets = self.first
        fields = unpack_from(data, at)
        # The octets of the varying strings still to come.
        left = fields[_SIZE_AT] - self.fixed_bytes
        if fields[self.table_size_at] - self.table_bytes != left or self.same(fields) != expected:
            return None
        body_size, length = fields[_BODY_SIZE_AT], fields[-1]
        at += octets + length
        left -= length
        for unpack_from, expected, octets in self.middle:
            fields = unpack_from(data, at)
            if fields[:-1] != expected:
                return None
            length = fields[-1]
            at += octets + length
            left -= length
        if left:
            return None
        unpack_from, expected, octets = self.last
        fields = unpack_from(data, at)
        found = fields[:-1]
        traits = self.traits
        if found != expected:
            others = self.traits_with(found) if self.tells else None
            if others is None:
                return None
            traits = others
        return traits, body_size, fields[-1], at + octets


# What the first segment of a varying shape begins with: type and channel, size of the frame, class
# and weight, body size.
_FIRST = "3sI4sQ"
_FIRST_FIELDS, _SIZE_AT, _BODY_SIZE_AT = 4, 1, 3
# Traits, body size, size of the body's frame, and where the body begins.
Found: TypeAlias = tuple[Traits | None, int, int, int]
NOT_FOUND: Found = (None, 0, 0, 0)


def _with_body_head(frame: bytes) -> bytes:
    """The header frame as if a body of no octets followed."""
    return frame + FRAME_HEAD.pack(BODY, int.from_bytes(frame[1:3], "big"), 0)


def find_traits(alike: list[Shape], data: bytes, at: int) -> Traits | None:
    """The traits of the header whose octets behind its head are at `at` in `data`.

    None if the header has none of these shapes, which all have the same head. The shape that it has
    is moved to the front.
    """
    for shape in alike:
        found = shape.unpack_from(data, at)[1:-1]
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


def other_traits(
    alike: list[Shape], found: tuple[bytes, ...], data: bytes, at: int
) -> Traits | None:
    """As `find_traits`, when the first shape has taken `found`, which is not as expected."""
    first = alike[0]
    traits = first.traits_with(found) if first.tells else None
    if traits is None and len(alike) > 1:
        return find_traits(alike, data, at)
    return traits


def find_varying(alike: list[VaryingShape], data: bytes, at: int, payload_bytes_max: int) -> Found:
    """What is found if the header frame at `at` has one of these shapes.

    `NOT_FOUND` if it has none of them, if it is longer than `payload_bytes_max` (unlike a header of
    a fixed shape it may be longer than the one that was learnt), or if the data ends before the
    body begins. The shape that it has is moved to the front.
    """
    for shape in alike:
        try:
            found = shape.find(data, at)
        except struct.error:
            continue  # a length points past the end of the data
        if found is not None:
            if shape is not alike[0]:
                alike.remove(shape)
                alike.insert(0, shape)
            if found[3] - FRAME_HEAD.size - at - OVERHEAD_BYTES > payload_bytes_max:
                break
            return found
    return NOT_FOUND


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
        self.shape: VaryingShape | None = None


class Shapes:
    """The shapes a connection has lately seen.

    `by_head` has the fixed ones by the head of the header frame, `varying` the others by channel:
    a short list each, the most recent first.
    """

    __slots__ = ("_learnt", "_skeletons", "by_head", "recognised", "varying")

    def __init__(self) -> None:
        self.by_head: dict[bytes, list[Shape]] = {}
        self.varying: dict[int, list[VaryingShape]] = {}
        self.recognised = 0
        self._skeletons: dict[bytes, _Skeleton] = {}
        self._learnt = 0

    def __len__(self) -> int:
        return sum(map(len, self.by_head.values())) + sum(map(len, self.varying.values()))

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
        channel = int.from_bytes(frame[1:3], "big")
        data = _with_body_head(frame)
        if (
            find_traits(self.by_head.get(head, []), data, SHAPE_HEAD_BYTES)
            or find_varying(self.varying.get(channel, []), data, 0, len(data))[0]
        ):
            return 0  # it was walked because of its body
        self._learnt += 1
        if len(self) >= SHAPES_MAX or len(self._skeletons) >= SHAPES_MAX:
            self.clear()
        layout = _layout(frame)
        shape = Shape(frame, layout, traits)
        lengths = [octets for octets, _ in layout.spans.strings]
        skeleton = self._skeletons.setdefault(_skeleton_of(shape, layout), _Skeleton(lengths))
        skeleton.seen += 1
        pairs = enumerate(zip(skeleton.lengths, lengths, strict=True))
        skeleton.varying.update(number for number, (one, other) in pairs if one != other)
        if skeleton.seen > FIXED_PER_SKELETON and skeleton.varying:
            varying = self.varying.setdefault(channel, [])
            if skeleton.shape in varying:  # fewer strings vary in it
                varying.remove(skeleton.shape)
            skeleton.shape = VaryingShape(frame, traits, skeleton.varying)
            varying.insert(0, skeleton.shape)
            del varying[VARYING_PER_CHANNEL_MAX:]
        else:
            alike = self.by_head.setdefault(head, [])
            alike.insert(0, shape)
            del alike[SHAPES_PER_HEAD_MAX:]
        # Twice the frame: its skeleton is kept too. A varying shape has a few segments more.
        return 2 * len(frame) + 100 * len(shape.expected) + 500 * (1 + len(skeleton.varying))

    def clear(self) -> None:
        """Forget all shapes."""
        self.by_head.clear()
        self.varying.clear()
        self._skeletons.clear()


def _skeleton_of(shape: Shape, layout: _Layout) -> bytes:
    """The octets of a fixed shape without what may differ between headers of one skeleton."""
    expected = list(shape.expected)
    for at in (shape.priority_at, shape.expiration_at):
        if at >= 0:
            expected[at] = b""
    octets = bytearray(b"".join(expected))
    # From the back: the table is before priority and expiration, its size before its strings.
    for _, at in reversed(layout.spans.strings):
        del octets[at : at + 4]
    if layout.table_size_at >= 0:
        del octets[layout.table_size_at : layout.table_size_at + 4]
    return bytes(octets)


def _layout(frame: bytes, varying: Collection[int] = ()) -> _Layout:
    """The layout behind the head, if the strings of the table with these numbers vary."""
    spans = Spans(varying)
    spans.same(2)  # the flags
    raw = frame[CONTENT_HEAD.size : -1]
    offset = 2
    priority_at = expiration_at = table_size_at = -1
    for step in steps_of(raw[:2]):
        if step > 0:
            spans.differ(step)
            offset += step
        elif step == STEP_TABLE:
            if varying:
                table_size_at = spans.alone(4)
            else:
                table_size_at = sum(spans.counts[::2])
                spans.same(4)
            offset = table_spans(raw, offset, spans)
        elif step == STEP_MODE:
            spans.same(1)
            offset += 1
        elif step == STEP_PRIORITY:
            priority_at = spans.alone(1)
            offset += 1
        else:
            size = raw[offset]
            spans.same(1)
            offset += 1
            if step == STEP_SHORTSTR:
                spans.differ(size)
            elif step == STEP_EXPIRATION:
                expiration_at = spans.alone(size)
            else:
                assert step == STEP_REPLY_TO
                proof = _proof_octets(raw[offset : offset + size])
                spans.same(proof)
                spans.differ(size - proof)
            offset += size
    spans.same(1 + 3)  # the frame end; type and channel of the next frame
    return _Layout(spans, priority_at, expiration_at, table_size_at)


def _format(counts: list[int], number_at: int = -1) -> str:
    """The struct format of a segment; the field at `number_at` (-1: none) is a number of 4."""
    same = [f"{octets}s" for octets in counts[::2]]
    if number_at >= 0:
        same[number_at] = "I"
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
