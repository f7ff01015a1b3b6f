"""A row of the index: its value stands behind a hash of key and value."""

import struct

from xxhash import xxh3_64_intdigest

_HASH = struct.Struct("<Q")


class IndexDoubt(Exception):
    """The index is not what it should be: it must be rebuilt."""


def close_row(key: bytes, data: bytes) -> bytes:
    """The value with its hash in front."""
    return _HASH.pack(xxh3_64_intdigest(data, xxh3_64_intdigest(key))) + data


def open_row(key: bytes, row: bytes | memoryview) -> bytes:
    """The value. Raises IndexDoubt when it is not what was written for this key."""
    row = bytes(row)
    data = row[_HASH.size :]
    if len(row) < _HASH.size or _HASH.unpack_from(row)[0] != xxh3_64_intdigest(
        data, xxh3_64_intdigest(key)
    ):
        raise IndexDoubt(f"the row {key.hex()} is damaged")
    return data
