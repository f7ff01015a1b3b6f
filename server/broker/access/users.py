"""Who may log in, and to which vhost.

Passwords are kept as salted SHA-256, RabbitMQ's default (rabbit_password_hashing_sha256), so that
definitions can be carried over. `User.permissions` has patterns for resources, but today it only
says whether a user may enter a vhost.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass, field

SALT_BYTES = 4  # RabbitMQ's format


def hash_password(password: bytes, salt: bytes | None = None) -> bytes:
    """Salt (4 bytes) followed by SHA-256 of salt and password."""
    salt = os.urandom(SALT_BYTES) if salt is None else salt
    return salt + hashlib.sha256(salt + password).digest()


@dataclass(slots=True)
class User:
    """One account. `permissions`: vhost name -> (configure, write, read) patterns."""

    name: str
    password_hash: bytes
    tags: tuple[str, ...] = ()
    permissions: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def check_password(self, password: bytes) -> bool:
        """Compare in constant time."""
        expected = hash_password(password, self.password_hash[:SALT_BYTES])
        return hmac.compare_digest(self.password_hash, expected)


class Refused(Exception):
    """The login is refused; `reason` is for the log, never for the client."""

    def __init__(self, user: str, reason: str) -> None:
        super().__init__(f"user '{user}': {reason}")


def authenticate(
    users: dict[str, User],
    name: str,
    password: bytes,
    *,
    loopback: bool,
    loopback_only: frozenset[str],
) -> User:
    """The user, if the password is right and the address allowed.

    Arguments: `loopback`: the client connects over a loopback address. `loopback_only`: users who
    are let in over loopback only (RabbitMQ's `loopback_users`). Raises Refused.
    """
    user = users.get(name)
    if user is None:
        raise Refused(name, "no such user")
    if not user.check_password(password):
        raise Refused(name, "invalid credentials")
    if name in loopback_only and not loopback:
        raise Refused(name, "can only connect via localhost")
    return user
