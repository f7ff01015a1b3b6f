"""Header frames that differ in their values only: valid by comparison, without being walked.

Programs send headers of few shapes: the same properties and keys, ids of the same length. A shape is
learnt from a frame that was walked: the octets that say what is where (flags, lengths, keys, types)
must be the same again, all others may be anything. One `unpack_from` takes the former out of the
data, one comparison of lists tells whether they are.

Promises to accept only what `properties.scan` accepts, with the traits it gave the frame that was
learnt (keys, which may make a message special, are part of the shape). Learning costs more than
walking: it stops where shapes do not come back.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from qlog.server.amqp.frames import BODY, CONTENT_HEAD, FRAME_HEAD
from qlog.server.amqp.properties import STEP_MODE, STEP_SHORTSTR, STEP_TABLE, Traits, steps_of
from qlog.server.amqp.values import table_layout

# Shapes a connection learns before any was recognised, and keeps at most.
SHAPES_MAX = 64
# Beyond that, one for so many that were recognised.
RECOGNISED_PER_SHAPE = 16

# Of a header frame: type, channel, size, class and weight. Together they are the key of a shape.
SHAPE_HEAD_BYTES = 11


class Shape(NamedTuple):
    """`unpack_from` takes out of what is behind the head: the body size, the octets that must be as
    `expected` (the frame end and the type and channel of the body's frame among them), and the size
    of the body's frame. `octets` is where the body begins, from the header frame's first octet.
    The shape is of `channel` alone: content frames of several channels may stand in turn.
    """

    unpack_from: Callable[[bytes, int], tuple[Any, ...]]
    expected: list[bytes]
    traits: Traits
    octets: int
    channel: int


class Shapes(dict[bytes, Shape]):
    """The shapes a connection has lately seen, by the head of the header frame."""

    def __init__(self) -> None:
        self.recognised = 0
        self._learnt = 0

    def learn(self, frame: bytes, traits: Traits) -> None:
        """Remember the shape of a whole header frame that was found valid."""
        if self._learnt >= SHAPES_MAX + self.recognised // RECOGNISED_PER_SHAPE:
            return
        self._learnt += 1
        layout = _layout(frame)
        if layout is None:
            return
        if len(self) >= SHAPES_MAX:
            self.clear()
        # As if a body of no octets followed.
        channel = int.from_bytes(frame[1:3], "big")
        body_head = FRAME_HEAD.pack(BODY, channel, 0)
        _, *expected, _ = layout.unpack(frame[SHAPE_HEAD_BYTES:] + body_head)
        octets = len(frame) + FRAME_HEAD.size
        self[frame[:SHAPE_HEAD_BYTES]] = Shape(
            layout.unpack_from, expected, traits, octets, channel
        )


def _layout(frame: bytes) -> struct.Struct | None:
    """The shape of a header frame; None if it is too deep to be worth it."""
    # What must be the same and what need not, in turn: octets of each.
    spans = [2]  # the flags
    raw = frame[CONTENT_HEAD.size : -1]
    offset = 2
    for step in steps_of(raw[:2]):
        if step == STEP_SHORTSTR:
            spans[-1] += 1
            spans += (raw[offset], 0)
            offset += 1 + raw[offset]
        elif step == STEP_TABLE:
            table = table_layout(raw, offset)
            if table is None:
                return None
            spans[-1] += table[0]
            spans += table[1:]
            offset += sum(table)
        elif step == STEP_MODE:
            spans[-1] += 1
            offset += 1
        else:
            spans += (step, 0)
            offset += step
    spans[-1] += 1 + 3  # the frame end; type and channel of the next frame
    same = (f"{octets}s" for octets in spans[::2])
    other = (f"{octets}x" for octets in [*spans[1::2], 0])
    middle = "".join(map("".join, zip(same, other, strict=True)))
    return struct.Struct(f">Q{middle}I")
