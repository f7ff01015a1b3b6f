"""All of a message but its body: where it was published to, and its properties.

Promises that the properties' octets, made clean when they are received (`properties.examine`), are
kept untouched up to the consumer. Knows nothing of queues: one envelope may stand for any number of
messages that differ in their bodies alone.
"""

from typing import NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest, xxh3_128

from qlog.server.amqp.properties import (
    Properties,
    decode_properties,
    headers_of,
    text_of,
    timestamp_of,
)
from qlog.server.amqp.values import Table


class Record(NamedTuple):
    """What the broker knows of a message and its properties do not say.

    `died`: it is a dead letter, and the broker has written its `x-death`. `keys` are the routing
    keys that it goes by beside its own, and `hidden` those of BCC, which nobody is told.
    """

    died: bool
    keys: list[str]
    hidden: list[str]

    def as_table(self) -> Table:
        """For the header by which an import gives it back."""
        return {"died": self.died, "keys": list(self.keys), "hidden": list(self.hidden)}

    @classmethod
    def of_table(cls, table: object) -> "Record":
        """Raises ValueError when this is none."""
        match table:
            case {"died": bool(died), "keys": list(keys), "hidden": list(hidden)} if all(
                isinstance(key, str) for key in (*keys, *hidden)
            ):
                return cls(died, list(map(str, keys)), list(map(str, hidden)))
        raise ValueError(f"{table!r} is no record of a message")


NO_RECORD = Record(False, [], [])
# The first octets of arrays of four and of five, as msgpack has them.
_RECORDED, _MARKED = 0x94, 0x95

_new_tuple = tuple.__new__  # the same result as Envelope(…), at two thirds of the cost


class Envelope(NamedTuple):
    """What surrounds a body of `body_size` octets.

    `properties` are raw (flags and values). `packed` is what is stored, and `packed_hash` its
    xxh3_64. It is a tuple, which is cheap to make: every message that differs from the one before
    it needs an envelope of its own.

        packed: msgpack of [exchange, routing key, properties], and behind them for a message that
        has one its record: [died, keys, hidden]; or for one that has a mark nil and the mark

    A mark is a text that nobody is told: by it a migration finds what it has brought
    (broker/features/adoption.py).
    """

    exchange: str
    routing_key: str
    properties: bytes
    body_size: int
    packed: bytes
    packed_hash: int

    @classmethod
    def pack(
        cls,
        exchange: str,
        routing_key: str,
        properties: bytes,
        body_size: int,
        record: Record = NO_RECORD,
        mark: str = "",
    ) -> "Envelope":
        """The envelope of a message that the broker made or changed itself.

        It has a record, or a mark, or neither.
        """
        if mark:
            assert record is NO_RECORD
            packed = msgpack.packb((exchange, routing_key, properties, None, mark))
        elif record is NO_RECORD:
            packed = msgpack.packb((exchange, routing_key, properties))
        else:
            packed = msgpack.packb((exchange, routing_key, properties, record))
        return _new_tuple(
            cls,
            (exchange, routing_key, properties, body_size, packed, xxh3_64_intdigest(packed)),
        )

    @classmethod
    def unpack(cls, packed: bytes, body_size: int, packed_hash: int | None = None) -> "Envelope":
        """The envelope of a stored message. Raises ValueError when `packed` is not one.

        `packed_hash`: the xxh3_64 of `packed`, from those who have it.
        """
        exchange, routing_key, properties, *_ = msgpack.unpackb(packed)
        if packed_hash is None:
            packed_hash = xxh3_64_intdigest(packed)
        return _new_tuple(cls, (exchange, routing_key, properties, body_size, packed, packed_hash))

    @property
    def record(self) -> Record:
        """What the broker noted beside the properties; NO_RECORD for nearly every message."""
        if self.packed[0] != _RECORDED:
            return NO_RECORD
        died, keys, hidden = msgpack.unpackb(self.packed)[3]
        return Record(died, keys, hidden)

    @property
    def mark(self) -> str:
        """The mark of a message that was brought from elsewhere; empty: it has none."""
        if self.packed[0] != _MARKED:
            return ""
        mark: str = msgpack.unpackb(self.packed)[4]
        return mark

    def digest(self, body: bytes) -> str:
        """What is the same for two messages that are the same to all who get them."""
        plain = msgpack.packb((self.exchange, self.routing_key, self.properties))
        digest = xxh3_128(plain)
        digest.update(body)
        return digest.hexdigest()

    def headers(self) -> Table:
        """The headers, decoded; empty when there are none. Raises HardError when malformed."""
        return headers_of(self.properties)

    def property_text(self, name: str) -> str | None:
        """A property that is a short string, or `timestamp` in seconds, as text; None: absent."""
        if name != "timestamp":
            return text_of(self.properties, name)
        seconds = timestamp_of(self.properties)
        return None if seconds is None else str(seconds)

    def decoded_properties(self) -> Properties:
        """The properties, decoded. Raises HardError when they are malformed."""
        return decode_properties(self.properties)
