"""Hashes of what clients send, the same on every machine and after every start.

Python's own hash() differs between two runs, so nothing that clients can observe may depend on it.
"""

from collections.abc import Mapping

from xxhash import xxh3_64_intdigest

_U64 = (1 << 64) - 1


def octets_of(value: object) -> bytes:
    """A field value as octets; values that differ have others, but for texts made to collide.

    A text has the octets that the same text has as binary. Equal integers have the same octets
    whatever their width, and so have tables whose keys stand in different orders.

    >>> octets_of({"a": 1, "b": [None]}) == octets_of({"b": [None], "a": 1})
    True
    """
    match value:
        case str():
            return value.encode(errors="surrogateescape")
        case bytes():
            return bytes(value)
        case list() | tuple():
            return b"\0[" + b"".join(map(_framed, value))
        case Mapping():
            items = sorted((_framed(key), _framed(item)) for key, item in value.items())
            return b"\0{" + b"".join(key + item for key, item in items)
        case bool():
            return b"\0b%d" % value
        case int():
            return b"\0i%d" % value
        case float():
            return b"\0f" + float(value).hex().encode()
    return b"\0v" + repr(value).encode()  # void, decimal, datetime


def _framed(value: object) -> bytes:
    octets = octets_of(value)
    return b"%d:" % len(octets) + octets


def digest(octets: bytes, seed: int = 0) -> int:
    """A hash of 64 bits. Other seeds give hashes that have nothing to do with each other."""
    return xxh3_64_intdigest(octets, seed)


def jump(key: int, buckets: int) -> int:
    """The bucket, of `buckets` > 0, of a hash of 64 bits: "jump consistent hash".

    Promises that all buckets are equally likely, and that one more bucket moves keys only to the
    new one. (Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm", 2014.)
    """
    bucket, following = -1, 0
    while following < buckets:
        bucket = following
        key = (key * 2862933555777941757 + 1) & _U64
        following = int((bucket + 1) * (2**31 / ((key >> 33) + 1)))
    return bucket
