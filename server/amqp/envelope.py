"""All of a message but its body: where it was published to, and its properties as they came.

Promises that the properties' octets are kept untouched from publisher to consumer. Knows nothing of
queues: one envelope may stand for any number of messages that differ in their bodies alone.
"""

import msgpack
from xxhash import xxh3_64_intdigest

from qlog.server.amqp.properties import Properties, decode_properties, scan

PERSISTENT = 2  # the delivery mode of messages that survive a restart


class Envelope:
    """What surrounds a body of `body_size` octets.

    `properties` are raw (flags and values). `persistent` is delivery mode 2. `special` means that
    the properties hold something a broker acts on (see `properties.Traits`). `packed` is what is
    stored, msgpack of [exchange, routing key, properties], and `packed_hash` its xxh3_64.
    """

    __slots__ = (
        "_decoded",
        "body_size",
        "exchange",
        "packed",
        "packed_hash",
        "persistent",
        "properties",
        "routing_key",
        "special",
    )

    def __init__(
        self,
        exchange: str,
        routing_key: str,
        properties: bytes,
        body_size: int,
        persistent: bool,
        special: bool,
        packed: bytes,
        packed_hash: int,
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.properties = properties
        self.body_size = body_size
        self.persistent = persistent
        self.special = special
        self.packed = packed
        self.packed_hash = packed_hash
        self._decoded: Properties | None = None

    @classmethod
    def pack(cls, exchange: str, routing_key: str, properties: bytes, body_size: int) -> "Envelope":
        """The envelope of a message just published, or made by the broker itself.

        Raises HardError when the properties are malformed.
        """
        delivery_mode, special = scan(properties)
        packed = msgpack.packb((exchange, routing_key, properties))
        return cls(
            exchange,
            routing_key,
            properties,
            body_size,
            delivery_mode == PERSISTENT,
            special,
            packed,
            xxh3_64_intdigest(packed),
        )

    @classmethod
    def unpack(cls, packed: bytes, body_size: int) -> "Envelope":
        """The envelope of a stored message. Raises ValueError when `packed` is not one."""
        exchange, routing_key, properties = msgpack.unpackb(packed)
        delivery_mode, special = scan(properties)
        return cls(
            exchange,
            routing_key,
            properties,
            body_size,
            delivery_mode == PERSISTENT,
            special,
            packed,
            xxh3_64_intdigest(packed),
        )

    def decoded_properties(self) -> Properties:
        """The properties, decoded once. Shared by all users of the envelope: do not change them."""
        if self._decoded is None:
            self._decoded = decode_properties(self.properties)
        return self._decoded

    def __repr__(self) -> str:
        return (
            f"Envelope(exchange={self.exchange!r}, routing_key={self.routing_key!r}, "
            f"properties={self.properties!r}, body_size={self.body_size})"
        )
