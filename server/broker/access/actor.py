"""Who asks for an operation, for the log, and for what that one may do."""

from __future__ import annotations

from dataclasses import dataclass

from qlog.server.broker.access.users import User


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks, and from where; str() is how the log says it.

    `user` is the account whose rights are asked; None: everything is allowed, as it is to the
    broker itself, and to who owns its data directory.
    """

    name: str
    peer: str = ""
    user: User | None = None

    @classmethod
    def of(cls, user: User, peer: str) -> Actor:
        """A user who has logged in."""
        return cls(user.name, peer, user)

    def __str__(self) -> str:
        return f"by={self.name!r} from={self.peer}" if self.peer else f"by={self.name}"


BROKER = Actor("broker")
