"""What the tests of the protocol core share: octets built by hand, and connections brought along.

The frames are built here with struct alone, so that a mistake of the encoder does not hide one of
the decoder.
"""

import struct

from qlog.server.amqp import spec
from qlog.server.amqp.connection import Connection, Event

HEADER = b"AMQP\x00\x00\x09\x01"
NO_PROPERTIES = b"\x00\x00"


def frame(kind: int, channel: int, payload: bytes, end: int = 0xCE) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes((end,))


def method(channel: int, class_id: int, method_id: int, arguments: bytes = b"") -> bytes:
    return frame(1, channel, struct.pack(">HH", class_id, method_id) + arguments)


def shortstr(text: str | bytes) -> bytes:
    octets = text.encode() if isinstance(text, str) else text
    return bytes((len(octets),)) + octets


def longstr(octets: bytes) -> bytes:
    return struct.pack(">I", len(octets)) + octets


def publish(channel: int = 1, key: str = "k", exchange: str = "") -> bytes:
    return method(channel, 60, 40, b"\0\0" + shortstr(exchange) + shortstr(key) + b"\0")


def header(
    size: int,
    properties: bytes = NO_PROPERTIES,
    *,
    channel: int = 1,
    class_id: int = 60,
    weight: int = 0,
) -> bytes:
    return frame(2, channel, struct.pack(">HHQ", class_id, weight, size) + properties)


def body(octets: bytes, channel: int = 1) -> bytes:
    return frame(3, channel, octets)


def message(octets: bytes, properties: bytes = NO_PROPERTIES, key: str = "k", ch: int = 1) -> bytes:
    last = body(octets, ch) if octets else b""
    return publish(ch, key) + header(len(octets), properties, channel=ch) + last


def ack(tag: int, multiple: bool = False, channel: int = 1) -> bytes:
    return method(channel, 60, 80, struct.pack(">QB", tag, multiple))


START_OK = method(
    0, 10, 11, longstr(b"") + shortstr("PLAIN") + longstr(b"\0u\0p") + shortstr("en_US")
)
OPEN = method(0, 10, 40, shortstr("/") + shortstr("") + b"\0")
CLOSE = method(0, 10, 50, struct.pack(">H", 200) + shortstr("bye") + b"\0\0\0\0")
CLOSE_OK = method(0, 10, 51)
CHANNEL_OPEN = method(1, 20, 10, shortstr(""))
CHANNEL_CLOSE = method(1, 20, 40, struct.pack(">H", 200) + shortstr("") + b"\0\0\0\0")
CHANNEL_CLOSE_OK = method(1, 20, 41)
HEARTBEAT = frame(8, 0, b"")


def declare(queue: str | bytes = "q", channel: int = 1, table: bytes = b"") -> bytes:
    return method(channel, 50, 10, b"\0\0" + shortstr(queue) + b"\0" + longstr(table))


def tune_ok(channel_max: int = 2047, frame_max: int = 131072, heartbeat: int = 60) -> bytes:
    return method(0, 10, 31, struct.pack(">HIH", channel_max, frame_max, heartbeat))


def hear(connection: Connection, data: bytes) -> list[Event]:
    return list(connection.receive(data))


def starting() -> Connection:
    """A connection that has sent connection.start."""
    connection = Connection(message_bytes_max=300_000)
    hear(connection, HEADER)
    connection.send(0, spec.ConnectionStart(0, 9, {}, b"PLAIN", b"en_US"))
    return connection


def tuning(channel_max: int = 2047, frame_max: int = 131072) -> Connection:
    """A connection that has sent connection.tune with these limits."""
    connection = starting()
    hear(connection, START_OK)
    connection.send(0, spec.ConnectionTune(channel_max, frame_max, 60))
    return connection


def running(frame_max: int = 131072, channel_max: int = 2047) -> Connection:
    """A connection with channel 1 open."""
    connection = tuning()
    hear(connection, tune_ok(channel_max, frame_max))
    hear(connection, OPEN)
    connection.send(0, spec.ConnectionOpenOk())
    hear(connection, CHANNEL_OPEN)
    connection.send(1, spec.ChannelOpenOk())
    return connection
