"""Frames: the octets on the wire, and how they are built.

Knows nothing of who sends what when.

    frame: type u8, channel u16, size u32, payload of that size, 0xCE
    header payload: class id u16, weight u16 (0), body size u64, properties
"""

import struct
from typing import TypeAlias

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.spec import Method, encode_method

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE
END = bytes((FRAME_END,))
OVERHEAD_BYTES = 8  # a frame's octets around its payload

FRAME_HEAD = struct.Struct(">BHI")
# Frame head and the fixed part of a content header's payload; the properties follow.
CONTENT_HEAD = struct.Struct(">BHIHHQ")
CONTENT_FIXED = struct.Struct(">HHQ")
CONTENT_FIXED_BYTES = CONTENT_FIXED.size
BASIC = 60

# basic.ack and basic.nack as whole frames: frame head, ids, delivery tag, bits, frame end. They are
# packed at once because each publish of a client that waits for its confirm makes one.
_CONFIRM = struct.Struct(">BHIHHQBB")
_CONFIRM_BYTES = _CONFIRM.size - OVERHEAD_BYTES
_ACK, _NACK = 80, 120

HEARTBEAT_FRAME = FRAME_HEAD.pack(HEARTBEAT, 0, 0) + END
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"

Buffer: TypeAlias = bytes | memoryview


def method_frame(channel: int, method: Method) -> bytes:
    """The frame of a method."""
    payload = encode_method(method)
    return FRAME_HEAD.pack(METHOD, channel, len(payload)) + payload + END


def confirm_frame(channel: int, tag: int, *, multiple: bool, nack: bool = False) -> bytes:
    """The frame of the server's basic.ack or basic.nack; `multiple`: for all tags up to `tag`."""
    method_id = _NACK if nack else _ACK
    return _CONFIRM.pack(
        METHOD, channel, _CONFIRM_BYTES, BASIC, method_id, tag, multiple, FRAME_END
    )


def header_frame(channel: int, envelope: Envelope) -> bytes:
    """The frame of a content header."""
    properties = envelope.properties
    size = CONTENT_FIXED_BYTES + len(properties)
    head = CONTENT_HEAD.pack(HEADER, channel, size, BASIC, 0, envelope.body_size)
    return head + properties + END


def body_frames(channel: int, body: bytes, frame_bytes_max: int) -> list[Buffer]:
    """The frames of a body as buffers to be joined, its octets not copied; none for an empty body.

    `frame_bytes_max` is the negotiated size of a whole frame, 0 for no limit.
    """
    size = len(body)
    payload_bytes_max = frame_bytes_max - OVERHEAD_BYTES if frame_bytes_max else size
    buffers: list[Buffer] = []
    view = memoryview(body)
    for start in range(0, size, payload_bytes_max or 1):
        payload = view[start : start + payload_bytes_max]
        buffers += (FRAME_HEAD.pack(BODY, channel, len(payload)), payload, END)
    return buffers


SHOWN_BYTES = 16


def shown(payload: bytes) -> str:
    """A payload as RabbitMQ's error texts show it: an Erlang binary, its first 16 octets."""
    front = payload[:SHOWN_BYTES]
    if front and all(0x20 <= octet < 0x7F and octet not in b'"\\' for octet in front):
        binary = f'<<"{front.decode("ascii")}">>'
    else:
        binary = f"<<{','.join(map(str, front))}>>"
    return f"first 16 octets = {binary}" if len(payload) > SHOWN_BYTES else f"all octets = {binary}"
