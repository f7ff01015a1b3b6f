"""Users and their permissions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qlog.server.broker.operations import User, hash_text
from qlog.server.http.answers import Listing
from qlog.server.http.ask import Ask
from qlog.server.http.refusals import not_found
from qlog.server.http.table import Endpoint


def user_facts(user: User) -> dict[str, Any]:
    """A user as RabbitMQ shows one."""
    return {
        "name": user.name,
        "password_hash": hash_text(user.password_hash),
        "hashing_algorithm": user.hashing_algorithm,
        "tags": list(user.tags),
        "limits": dict(user.limits),
    }


async def list_users(ask: Ask) -> Listing[User]:
    """All users."""
    return Listing(
        ask.operations.users(),
        user_facts,
        name=lambda user: user.name,
        order=lambda user: user.name,
    )


def _user(ask: Ask) -> User:
    for user in ask.operations.users():
        if user.name == ask.path["user"]:
            return user
    raise not_found()


async def show_user(ask: Ask) -> dict[str, Any]:
    """One user."""
    return user_facts(_user(ask))


def _permissions(ask: Ask) -> Iterator[tuple[str, str, tuple[str, str, str]]]:
    for user in ask.operations.users():
        if ask.path.get("user", user.name) == user.name:
            for vhost, rights in list(user.permissions.items()):
                if ask.path.get("vhost", vhost) == vhost:
                    yield user.name, vhost, rights


def permission_facts(row: tuple[str, str, tuple[str, str, str]]) -> dict[str, Any]:
    """Permissions as RabbitMQ shows them."""
    user, vhost, (configure, write, read) = row
    return {"user": user, "vhost": vhost, "configure": configure, "write": write, "read": read}


async def list_permissions(ask: Ask) -> Listing[Any]:
    """Permissions of all users, or of one."""
    if "user" in ask.path:
        _user(ask)
    return Listing(_permissions(ask), permission_facts)


ENDPOINTS = [
    Endpoint("GET", "/users", list_users, "All users", tag="administrator"),
    Endpoint("GET", "/users/{user}", show_user, "One user", tag="administrator"),
    Endpoint(
        "GET", "/users/{user}/permissions", list_permissions, "Its rights", tag="administrator"
    ),
    Endpoint("GET", "/permissions", list_permissions, "All rights", tag="administrator"),
]
