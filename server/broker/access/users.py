"""One account: its name, password, tags, rights and limits.

A `User` is one object as long as there is a user of that name that was not deleted meanwhile:
connections hold it, and what is set about a user changes the object. So a change counts from the
next operation on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from qlog.server.broker.access.passwords import algorithm_of, is_right
from qlog.server.broker.access.permissions import Rights, TopicPatterns

LIMITS = ("max-connections", "max-channels")


class Permission(NamedTuple):
    """What a user may do in a vhost: patterns, which are looked for in names."""

    user: str
    vhost: str
    configure: str
    write: str
    read: str


class TopicPermission(NamedTuple):
    """With which routing keys a user may use a topic exchange: patterns."""

    user: str
    vhost: str
    exchange: str
    write: str
    read: str


@dataclass(slots=True, eq=False)
class User:
    """One account.

    `permissions`: vhost -> (configure, write, read) patterns. `topic_permissions`: vhost -> exchange
    -> (write, read) patterns. `limits` by RabbitMQ's names, as they were set. `connections` of
    the user are in a vhost now, and have so many `channels`. `replaced` is the fingerprint of the hash
    in RabbitMQ's form that a login has replaced, so that it is not taken for a new password when
    the same definitions are loaded again.
    """

    name: str
    password_hash: bytes
    tags: tuple[str, ...] = ()
    permissions: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    topic_permissions: dict[str, TopicPatterns] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    connections: int = 0
    channels: int = 0
    replaced: bytes = b""
    _rights: dict[str, Rights] = field(default_factory=dict)

    @property
    def hashing_algorithm(self) -> str:
        """The algorithm of the hash, as the API and definitions name it."""
        return algorithm_of(self.password_hash)

    def check_password(self, password: bytes) -> bool:
        """Whether it is the password, compared in constant time. May take some 20 ms."""
        return is_right(self.password_hash, password)

    @property
    def connections_max(self) -> int | None:
        """So many connections may be in vhosts at a time; None: any number."""
        return self._limit("max-connections")

    @property
    def channels_max(self) -> int | None:
        """So many channels all connections together may have; None: any number."""
        return self._limit("max-channels")

    def _limit(self, name: str) -> int | None:
        limit = self.limits.get(name, -1)
        return None if limit < 0 else limit

    def rights(self, vhost: str) -> Rights:
        """What the user may do in a vhost; nothing, if there are no permissions for it."""
        rights = self._rights.get(vhost)
        if rights is None:
            patterns = self.permissions.get(vhost)
            topics = self.topic_permissions.get(vhost, {})
            rights = self._rights[vhost] = Rights(self.name, vhost, patterns, topics)
        return rights

    def forget_rights(self) -> None:
        """Permissions have changed."""
        self._rights.clear()
