"""The messages of a load, encoded before the clock starts: one block of bytes sent over and over.

A `Stream` is an endless sequence of messages, numbered from 0, that repeats a block of whole
messages; it translates between message numbers and byte positions, so that sending is slicing.
Knows no socket and no clock.
"""

from __future__ import annotations

import random
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, cycle

from benchmarks import wire
from benchmarks.celery_tasks import task

# A block of identical messages stays small enough for the processor's cache ...
UNIFORM_BLOCK_BYTES = 256 * 1024
# ... one of distinct messages is larger than any cache of recent messages a broker might keep.
VARIED_BLOCK_MESSAGES = 8192

PERSISTENT, TRANSIENT = 2, 1
UNIFORM, VARIED, CELERY = "uniform", "varied", "celery"
# The number at the end of a fresh key, in hexadecimal digits.
KEY_DIGITS = 12

CONTENT_TYPE_FLAG, HEADERS_FLAG, DELIVERY_MODE_FLAG = 1 << 15, 1 << 13, 1 << 12
PRIORITY_FLAG, CORRELATION_ID_FLAG, EXPIRATION_FLAG = 1 << 11, 1 << 10, 1 << 8
MESSAGE_ID_FLAG, TIMESTAMP_FLAG = 1 << 7, 1 << 6
APP_ID_FLAG = 1 << 3


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the messages of one publisher look like.

    Attributes:
        exchange: where they are published.
        routing_keys: used in turn.
        body_bytes: size of each body, or its mean.
        shape: UNIFORM: all messages with the same key are the same bytes. VARIED: distinct ids,
            headers and timestamps, and sizes from half to one and a half of `body_bytes`. CELERY:
            tasks as Celery sends them, see celery_tasks.py.
        fresh_keys: the routing keys end in the number of the message, so that none comes twice.
        persistent: delivery mode 2 rather than 1.
        distinct_bodies: of messages that are not varied: this many bodies of the same size.
        priorities: of messages that are not varied: so many priorities, from 0 on, in turn; 0 for
            messages without one.
        expiration_ms: of messages that are not varied: their own TTL; 0 for none.
        delay_ms: of messages that are not varied: their header x-delay; 0 for none.
    """

    exchange: str
    routing_keys: tuple[str, ...]
    body_bytes: int
    shape: str = UNIFORM
    fresh_keys: bool = False
    persistent: bool = True
    distinct_bodies: int = 1
    priorities: int = 0
    expiration_ms: int = 0
    delay_ms: int = 0


class Stream:
    """An endless repetition of `messages`."""

    def __init__(self, messages: Sequence[bytes]) -> None:
        assert messages and all(messages), "a stream repeats at least one message, none empty"
        self.block = memoryview(b"".join(messages))
        self.offsets = [0, *accumulate(map(len, messages))]

    def position(self, number: int) -> int:
        """Where message `number` begins, in bytes from the start of the stream."""
        rounds, index = divmod(number, len(self.offsets) - 1)
        return rounds * len(self.block) + self.offsets[index]

    def started(self, position: int) -> int:
        """How many messages have their first byte before `position`."""
        rounds, rest = divmod(position, len(self.block))
        return rounds * (len(self.offsets) - 1) + bisect_left(self.offsets, rest)

    def completed(self, position: int) -> int:
        """How many messages have their last byte before `position`."""
        rounds, rest = divmod(position, len(self.block))
        return rounds * (len(self.offsets) - 1) + bisect_right(self.offsets, rest) - 1

    def slice(self, position: int, bytes_max: int) -> memoryview:
        """Bytes from `position` on: at most `bytes_max`, and no further than the block goes."""
        rest = position % len(self.block)
        return self.block[rest : rest + bytes_max]


class FreshKeys(Stream):
    """A repetition in which a number at the end of each routing key goes on from round to round.

    Positions may only ascend, as a publisher's do: what was sent is numbered anew.
    """

    def __init__(self, messages: Sequence[bytes], digits_at: int) -> None:
        super().__init__(messages)
        # Where the digits of each message begin.
        self._places = [offset + digits_at for offset in self.offsets[:-1]]
        self._bytes = bytearray(self.block)
        self.block = memoryview(self._bytes)
        self._round = 0

    def slice(self, position: int, bytes_max: int) -> memoryview:
        rounds = position // len(self.block)
        if rounds != self._round:
            self._round = rounds
            first = rounds * len(self._places)
            for number, place in enumerate(self._places, start=first):
                self._bytes[place : place + KEY_DIGITS] = key_digits(number)
        return super().slice(position, bytes_max)


def key_digits(number: int) -> bytes:
    """What ends the fresh routing key of a message."""
    return b"%0*x" % (KEY_DIGITS, number)


def encode(traffic: Traffic, frame_bytes_max: int) -> Stream:
    """The stream of a publisher; the same for every call with the same arguments."""
    if traffic.fresh_keys:
        return _fresh(traffic, frame_bytes_max)
    return _repeated(traffic, frame_bytes_max)


# Kept: hundreds of publishers may send the same.
@cache
def _repeated(traffic: Traffic, frame_bytes_max: int) -> Stream:
    chance = random.Random(1)
    if traffic.shape == UNIFORM:
        messages = _uniform(traffic, frame_bytes_max, chance)
        size = sum(map(len, messages))
        return Stream(messages * max(1, UNIFORM_BLOCK_BYTES // size))
    keys = traffic.routing_keys
    return Stream(
        [
            wire.publish_frames(
                traffic.exchange, keys[number % len(keys)], properties, body, frame_bytes_max
            )
            for number, (properties, body) in enumerate(_distinct(traffic, chance))
        ]
    )


def _fresh(traffic: Traffic, frame_bytes_max: int) -> Stream:
    (prefix,) = traffic.routing_keys
    messages = []
    for number, (properties, body) in enumerate(_distinct(traffic, random.Random(1))):
        key = prefix + key_digits(number).decode()
        messages.append(
            wire.publish_frames(traffic.exchange, key, properties, body, frame_bytes_max)
        )
    # The routing key stands at the same place in all of them.
    at = wire.publish_key_offset(traffic.exchange) + len(prefix)
    return FreshKeys(messages, at)


def _distinct(traffic: Traffic, chance: random.Random) -> Iterator[tuple[bytes, bytes]]:
    """Properties and bodies of a block of messages, each of its own."""
    if traffic.shape == VARIED:
        yield from _varied(traffic, chance)
        return
    assert traffic.shape == CELERY and traffic.persistent, traffic
    for number in range(VARIED_BLOCK_MESSAGES):
        one = task(number, traffic.body_bytes, chance)
        yield one.properties(), one.body()


def _uniform(traffic: Traffic, frame_bytes_max: int, chance: random.Random) -> list[bytes]:
    properties = [_properties(traffic, priority) for priority in range(max(1, traffic.priorities))]
    # All keys have their turn equally often in a block.
    distinct = max(traffic.distinct_bodies, len(properties))
    keys = traffic.routing_keys * -(-distinct // len(traffic.routing_keys))
    bodies = [chance.randbytes(traffic.body_bytes) for _ in range(traffic.distinct_bodies)]
    return [
        wire.publish_frames(traffic.exchange, key, one, body, frame_bytes_max)
        for key, one, body in zip(keys, cycle(properties), cycle(bodies), strict=False)
    ]


def _properties(traffic: Traffic, priority: int) -> bytes:
    """Flags and values of a message that is not varied."""
    flags = CONTENT_TYPE_FLAG | DELIVERY_MODE_FLAG
    values = wire.shortstr("application/octet-stream")
    if traffic.delay_ms:
        flags |= HEADERS_FLAG
        values += wire.table({"x-delay": traffic.delay_ms})
    values += _delivery_mode(traffic)
    if traffic.priorities:
        flags |= PRIORITY_FLAG
        values += bytes([priority])
    if traffic.expiration_ms:
        flags |= EXPIRATION_FLAG
        values += wire.shortstr(str(traffic.expiration_ms))
    return struct.pack(">H", flags) + values


def _delivery_mode(traffic: Traffic) -> bytes:
    return bytes([PERSISTENT if traffic.persistent else TRANSIENT])


def _varied(traffic: Traffic, chance: random.Random) -> Iterator[tuple[bytes, bytes]]:
    flags = struct.pack(
        ">H",
        CONTENT_TYPE_FLAG | HEADERS_FLAG | DELIVERY_MODE_FLAG | CORRELATION_ID_FLAG
        | MESSAGE_ID_FLAG | TIMESTAMP_FLAG | APP_ID_FLAG,
    )  # fmt: skip
    half = traffic.body_bytes // 2
    bodies = chance.randbytes(4 * traffic.body_bytes)
    for number in range(VARIED_BLOCK_MESSAGES):
        headers = wire.table(
            {
                "trace": f"{chance.getrandbits(64):016x}",
                "attempt": chance.randrange(5),
                "tenant": f"customer-{chance.randrange(1000)}",
            }
        )
        properties = (
            flags
            + wire.shortstr("application/json")
            + headers
            + _delivery_mode(traffic)
            + wire.shortstr(f"{chance.getrandbits(128):032x}")
            + wire.shortstr(f"{chance.getrandbits(128):032x}")
            + struct.pack(">Q", 1_700_000_000 + number)
            + wire.shortstr("benchmark")
        )
        size = traffic.body_bytes - half + chance.randrange(2 * half + 1)
        start = chance.randrange(len(bodies) - size)
        yield properties, bodies[start : start + size]
