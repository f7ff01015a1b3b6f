"""What is kept of a password, and whether a password is the right one.

A password is kept as argon2id, in the text form of the reference implementation (`$argon2id$v=19$…`).
RabbitMQ's formats, a salt of four octets and the hash of salt and password, come in with definitions
and are kept until their user logs in (logins.py). The formats are told apart by what they look like.
Promises that nothing but a hash of a known format is ever taken for one, and that no hash that
somebody gives can make a comparison take long or much memory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SALT_BYTES = 4  # RabbitMQ's formats
# RabbitMQ's formats by its names. They are told apart by their lengths.
RABBITMQ_ALGORITHMS: Mapping[str, Callable[..., Any]] = {
    "rabbit_password_hashing_sha256": hashlib.sha256,
    "rabbit_password_hashing_sha512": hashlib.sha512,
    "rabbit_password_hashing_md5": hashlib.md5,
}
RABBITMQ_DEFAULT = "rabbit_password_hashing_sha256"
ARGON2ID = "argon2id"
# Longer passwords are refused when they are set. A login with one costs a hash of all of it.
PASSWORD_BYTES_MAX = 4096
_ENCODED = re.compile(
    rb"\$argon2id\$v=19\$m=(\d{1,7}),t=(\d{1,3}),p=(\d{1,2})"
    rb"\$[A-Za-z0-9+/]{11,64}\$[A-Za-z0-9+/]{16,86}"
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one hash costs: memory, passes over it, and threads that share them."""

    memory_kib: int
    passes: int
    lanes: int = 1


# One of OWASP's settings of equal strength (Password Storage Cheat Sheet): 12 MiB and about 20 ms.
COST = Cost(12 * 1024, 3)
# A hash that was made elsewhere may cost as much as this.
COST_MAX = Cost(256 * 1024, 16, 8)


class BadHash(ValueError):
    """A given hash is of no format that is known; str() says why."""


def hash_password(password: bytes) -> bytes:
    """What is kept of a password, by argon2id with a salt of its own. Takes some 20 ms."""
    # It takes as long to import as the hash takes: only a process that hashes does it.
    from argon2.low_level import Type, hash_secret

    return hash_secret(
        password,
        os.urandom(16),
        time_cost=COST.passes,
        memory_cost=COST.memory_kib,
        parallelism=COST.lanes,
        hash_len=32,
        type=Type.ID,
    )


def hash_for_rabbitmq(
    password: bytes, salt: bytes | None = None, algorithm: str = RABBITMQ_DEFAULT
) -> bytes:
    """A hash that RabbitMQ takes, too: the salt (4 octets), then the hash of salt and password."""
    salt = os.urandom(SALT_BYTES) if salt is None else salt
    digest: bytes = RABBITMQ_ALGORITHMS[algorithm](salt + password).digest()
    return salt + digest


def algorithm_of(password_hash: bytes) -> str:
    """The name of the algorithm; for an empty hash it is RabbitMQ's default, as there."""
    if is_argon2id(password_hash):
        return ARGON2ID
    digest_bytes = len(password_hash) - SALT_BYTES
    for name, algorithm in RABBITMQ_ALGORITHMS.items():
        if algorithm().digest_size == digest_bytes:
            return name
    return RABBITMQ_DEFAULT


def is_argon2id(password_hash: bytes) -> bool:
    """Whether it is one of ours."""
    return _ENCODED.fullmatch(password_hash) is not None


def is_right(password_hash: bytes, password: bytes) -> bool:
    """Whether it is the password of a hash. An empty hash, or password, lets nobody in."""
    if not password_hash or not password:
        return False
    if is_argon2id(password_hash):
        from argon2.exceptions import VerificationError
        from argon2.low_level import Type, verify_secret

        try:
            return verify_secret(password_hash, password, Type.ID)
        except VerificationError:
            return False
    salt = password_hash[:SALT_BYTES]
    expected = hash_for_rabbitmq(password, salt, algorithm_of(password_hash))
    return hmac.compare_digest(password_hash, expected)


def hash_text(password_hash: bytes) -> str:
    """A hash as the API and definitions show it: argon2id as it is, RabbitMQ's formats in base64.

    RabbitMQ takes only base64, so that it refuses what it could not use.
    """
    if is_argon2id(password_hash):
        return password_hash.decode("ascii")
    return base64.b64encode(password_hash).decode("ascii")


def parse_hash(text: str, algorithm: str | None = None) -> bytes:
    """What `hash_text` made. An empty text is a hash that lets nobody in. Raises BadHash.

    Without an algorithm it is that of RabbitMQ's whose hashes have this length: RabbitMQ takes its
    default, and clients that hash with another one do not always say so.
    """
    if algorithm not in (None, ARGON2ID) and algorithm not in RABBITMQ_ALGORITHMS:
        raise BadHash(f"the hashing algorithm '{algorithm}' is not known")
    if not text:
        return b""
    if algorithm == ARGON2ID:
        return _parsed_argon2id(text)
    try:
        password_hash = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadHash(f"'password_hash' is no base64: {error}") from error
    possible = RABBITMQ_ALGORITHMS if algorithm is None else (algorithm,)
    sizes = {SALT_BYTES + RABBITMQ_ALGORITHMS[name]().digest_size for name in possible}
    if len(password_hash) not in sizes:
        raise BadHash(f"'password_hash' is no hash of {algorithm or RABBITMQ_DEFAULT}")
    return password_hash


def fingerprint(password_hash: bytes) -> bytes:
    """A hash of a hash, to know it again without keeping it."""
    return hashlib.blake2b(password_hash, digest_size=16).digest()


def reset_passwords(users: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Give users of a definitions file that RabbitMQ could not take new random passwords.

    The dictionaries are changed. Returns the passwords by the names of their users.
    """
    made: dict[str, str] = {}
    for user in users:
        if user.get("hashing_algorithm") == ARGON2ID:
            made[user["name"]] = password = secrets.token_urlsafe(16)
            user["password_hash"] = hash_text(hash_for_rabbitmq(password.encode()))
            user["hashing_algorithm"] = RABBITMQ_DEFAULT
    return made


def _parsed_argon2id(text: str) -> bytes:
    password_hash = text.encode(errors="replace")
    found = _ENCODED.fullmatch(password_hash)
    if found is None:
        raise BadHash(f"'password_hash' is no hash of {ARGON2ID}")
    cost = Cost(*map(int, found.groups()))
    high = COST_MAX
    if cost.memory_kib > high.memory_kib or cost.passes > high.passes or cost.lanes > high.lanes:
        raise BadHash(
            f"'password_hash' costs more than m={high.memory_kib},t={high.passes},p={high.lanes}"
        )
    if not cost.passes or not cost.lanes or cost.memory_kib < 8 * cost.lanes:
        raise BadHash(f"'password_hash' is no hash of {ARGON2ID}")
    return password_hash
