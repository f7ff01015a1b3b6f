"""What the catalog says of streams: a definition for each, by the id of its lane."""

from collections.abc import Iterable

import msgpack

STREAM = "stream"  # the kind of these definitions


def pack_first(first: int) -> bytes:
    """The value of a definition: the offset that the stream begins with."""
    packed: bytes = msgpack.packb(first)
    return packed


def unpack_first(value: bytes) -> int:
    """The offset that a stream begins with."""
    first: int = msgpack.unpackb(value)
    return first


def stream_lanes(names: Iterable[tuple[str, str]]) -> set[int]:
    """The lanes of streams among definitions, by kind and name."""
    return {int(name) for kind, name in names if kind == STREAM}
