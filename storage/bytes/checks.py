"""Hashes that prove bytes whole: xxh3_64 (little-endian), seeded with the place of the hash.

The place is directory, file and offset, so that bytes which are valid somewhere else, in another
broker's log or inside a message's body, are not valid here.
"""

import struct
from array import array

from xxhash import xxh3_64_intdigest

U64 = (1 << 64) - 1
U32 = (1 << 32) - 1


def place_seed(uuid: bytes, file_id: int, offset: int) -> int:
    """The seed of a hash at this place of the directory with this uuid."""
    return (xxh3_64_intdigest(uuid) ^ (file_id << 32) ^ offset) & U64


BIG_ENDIAN = struct.pack("=H", 1) == b"\0\1"


def little_endian(column: "array[int]") -> bytes:
    if BIG_ENDIAN:
        column = column[:]
        column.byteswap()
    return column.tobytes()
