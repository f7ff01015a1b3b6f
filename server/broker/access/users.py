"""Who may log in, and to which vhost.

Passwords are kept as salted SHA-256, RabbitMQ's default (rabbit_password_hashing_sha256); those of
users whose definitions were carried over may be SHA-512 or MD5, too. `User.permissions` has patterns for resources, but today it only
says whether a user may enter a vhost.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SALT_BYTES = 4  # RabbitMQ's format
# By RabbitMQ's names. They are told apart by their lengths.
ALGORITHMS: Mapping[str, Callable[..., Any]] = {
    "rabbit_password_hashing_sha256": hashlib.sha256,
    "rabbit_password_hashing_sha512": hashlib.sha512,
    "rabbit_password_hashing_md5": hashlib.md5,
}
DEFAULT_ALGORITHM = "rabbit_password_hashing_sha256"


def hash_password(
    password: bytes, salt: bytes | None = None, algorithm: str = DEFAULT_ALGORITHM
) -> bytes:
    """Salt (4 bytes) followed by the hash of salt and password."""
    salt = os.urandom(SALT_BYTES) if salt is None else salt
    digest: bytes = ALGORITHMS[algorithm](salt + password).digest()
    return salt + digest


@dataclass(slots=True)
class User:
    """One account. `permissions`: vhost name -> (configure, write, read) patterns.

    An empty `password_hash` lets nobody in.
    """

    name: str
    password_hash: bytes
    tags: tuple[str, ...] = ()
    permissions: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    @property
    def hashing_algorithm(self) -> str:
        """The algorithm of the hash, by RabbitMQ's name."""
        digest_bytes = len(self.password_hash) - SALT_BYTES
        for name, algorithm in ALGORITHMS.items():
            if algorithm().digest_size == digest_bytes:
                return name
        return DEFAULT_ALGORITHM

    def check_password(self, password: bytes) -> bool:
        """Compare in constant time."""
        salt = self.password_hash[:SALT_BYTES]
        expected = hash_password(password, salt, self.hashing_algorithm)
        return hmac.compare_digest(self.password_hash, expected)


class Refused(Exception):
    """The login is refused; `reason` is for the log, never for the client."""

    def __init__(self, user: str, reason: str) -> None:
        super().__init__(f"user '{user}': {reason}")


def authenticate(
    users: dict[str, User],
    name: str,
    password: bytes | None,
    *,
    loopback: bool,
    loopback_only: frozenset[str],
) -> User:
    """The user, if the password is right and the address allowed.

    Arguments: `password`: None when the client has proved otherwise who it is. `loopback`: the client connects over a loopback address. `loopback_only`: users who
    are let in over loopback only (RabbitMQ's `loopback_users`). Raises Refused.
    """
    user = users.get(name)
    if user is None:
        raise Refused(name, "no such user")
    if password is not None and not user.check_password(password):
        raise Refused(name, "invalid credentials")
    if name in loopback_only and not loopback:
        raise Refused(name, "can only connect via localhost")
    return user
