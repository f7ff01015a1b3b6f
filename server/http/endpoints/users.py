"""Users, their permissions and limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qlog.server.broker.operations import Permission, TopicPermission, User, hash_text
from qlog.server.http.answers import NO_CONTENT, Answer, Listing, put
from qlog.server.http.ask import Ask, required
from qlog.server.http.fields import text
from qlog.server.http.refusals import bad_request, not_found
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


def _listed(users: Iterator[User]) -> Listing[User]:
    return Listing(
        users, user_facts, name=lambda user: user.name, order=lambda user: user.name, paged=True
    )


async def list_users(ask: Ask) -> Listing[User]:
    """All users."""
    return _listed(ask.operations.users())


async def list_users_without_permissions(ask: Ask) -> Listing[User]:
    """Users who may enter no vhost."""
    return _listed(user for user in ask.operations.users() if not user.permissions)


def _find(ask: Ask) -> User | None:
    for user in ask.operations.users():
        if user.name == ask.path["user"]:
            return user
    return None


def _user(ask: Ask) -> User:
    """The user of the path. Raises 404."""
    user = _find(ask)
    if user is None:
        raise not_found()
    return user


async def show_user(ask: Ask) -> dict[str, Any]:
    """One user."""
    return user_facts(_user(ask))


def tags_of(document: dict[str, Any]) -> list[str]:
    """The tags of a document: a list, or a text with commas. Raises 400."""
    if "tags" not in document:
        raise bad_request("tags_not_present")
    tags = document["tags"]
    parts = tags.split(",") if isinstance(tags, str) else tags
    if not isinstance(parts, list) or not all(isinstance(tag, str) for tag in parts):
        raise bad_request(["not_a_list_of_strings", tags])
    return parts


async def set_user(ask: Ask) -> Answer:
    """Make or change a user: the tags, and the password or its hash."""
    document = await ask.document()
    existed = _find(ask) is not None
    tags = tags_of(document)
    password = text(document, "password") if "password" in document else None
    password_hash = text(document, "password_hash") if "password_hash" in document else None
    algorithm: dict[str, str] = {}
    if "hashing_algorithm" in document:
        algorithm["hashing_algorithm"] = text(document, "hashing_algorithm")
    outcome = ask.operations.set_user(
        ask.path["user"], tags=tags, password=password, password_hash=password_hash, **algorithm
    )
    await ask.settled(outcome)
    return put(existed)


async def delete_user(ask: Ask) -> Answer:
    """Delete a user; the user's connections are closed."""
    await ask.settled(ask.operations.delete_user(_user(ask).name))
    return NO_CONTENT


async def delete_users(ask: Ask) -> Answer:
    """Delete several users; those that are not there are passed over."""
    (names,) = required(await ask.document(), "users")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise bad_request(["not_a_list_of_strings", names])
    there = {user.name for user in ask.operations.users()}
    outcomes = [ask.operations.delete_user(name) for name in dict.fromkeys(names) if name in there]
    for outcome in outcomes:
        await ask.settled(outcome)
    return NO_CONTENT


# -- permissions


def permission_facts(permission: Permission) -> dict[str, Any]:
    """Permissions as RabbitMQ shows them."""
    return permission._asdict()


def _permissions(ask: Ask) -> Iterator[Permission]:
    return ask.operations.permissions(user=ask.path.get("user"), vhost=ask.path.get("vhost"))


async def list_permissions(ask: Ask) -> Listing[Permission]:
    """Permissions: all, or those of a user, or in a vhost."""
    _check_names(ask)
    return Listing(_permissions(ask), permission_facts, order=lambda one: (one.user, one.vhost))


def _check_names(ask: Ask) -> None:
    """Raises 404 for a user or a vhost that is not there."""
    if "user" in ask.path:
        _user(ask)
    if "vhost" in ask.path:
        ask.vhost()


async def show_permission(ask: Ask) -> dict[str, Any]:
    """What a user may do in a vhost."""
    for permission in _permissions(ask):
        return permission_facts(permission)
    raise not_found()


def _assert_there(ask: Ask) -> None:
    """Raises 400, as RabbitMQ has it, for a user or a vhost that is not there."""
    is_vhost = any(vhost.name == ask.path["vhost"] for vhost in ask.operations.vhosts())
    if not is_vhost or _find(ask) is None:
        raise bad_request("vhost_or_user_not_found")


async def set_permission(ask: Ask) -> Answer:
    """Let a user into a vhost."""
    _assert_there(ask)
    configure, write, read = required(await ask.document(), "configure", "write", "read")
    existed = any(True for _ in _permissions(ask))
    vhost, user = ask.path["vhost"], ask.path["user"]
    await ask.settled(ask.operations.set_permissions(vhost, user, configure, write, read))
    return put(existed)


async def delete_permission(ask: Ask) -> Answer:
    """Let a user into a vhost no more."""
    if not any(True for _ in _permissions(ask)):
        raise not_found()
    await ask.settled(ask.operations.clear_permissions(ask.path["vhost"], ask.path["user"]))
    return NO_CONTENT


# -- topic permissions


def topic_facts(permission: TopicPermission) -> dict[str, Any]:
    """Topic permissions as RabbitMQ shows them."""
    return permission._asdict()


def _topics(ask: Ask) -> Iterator[TopicPermission]:
    for permission in ask.operations.topic_permissions(
        user=ask.path.get("user"), vhost=ask.path.get("vhost")
    ):
        if ask.path.get("exchange", permission.exchange) == permission.exchange:
            yield permission


async def list_topics(ask: Ask) -> Listing[TopicPermission]:
    """Topic permissions: all, or those of a user, in a vhost, of an exchange."""
    _check_names(ask)
    return Listing(_topics(ask), topic_facts, order=lambda one: (one.user, one.vhost, one.exchange))


async def list_topics_or_none(ask: Ask) -> Listing[TopicPermission]:
    """The same, where RabbitMQ has 404 if there are none."""
    if not any(True for _ in _topics(ask)):
        raise not_found()
    return await list_topics(ask)


async def set_topic(ask: Ask) -> Answer:
    """Limit the routing keys that a user may use with a topic exchange."""
    _assert_there(ask)
    exchange, write, read = required(await ask.document(), "exchange", "write", "read")
    if not isinstance(exchange, str):
        raise bad_request(["not_a_string", exchange])
    existed = any(one.exchange == exchange for one in _topics(ask))
    vhost, user = ask.path["vhost"], ask.path["user"]
    await ask.settled(ask.operations.set_topic_permissions(vhost, user, exchange, write, read))
    return put(existed)


async def delete_topic(ask: Ask) -> Answer:
    """Take these limits away, of one exchange or all."""
    if not any(True for _ in _topics(ask)):
        raise not_found()
    outcome = ask.operations.clear_topic_permissions(
        ask.path["vhost"], ask.path["user"], ask.path.get("exchange")
    )
    await ask.settled(outcome)
    return NO_CONTENT


# -- limits


async def list_limits(ask: Ask) -> Listing[User]:
    """The limits of users who have some, or of one."""
    if "user" in ask.path:
        _user(ask)
    return Listing(
        (
            user
            for user in ask.operations.users()
            if user.limits and ask.path.get("user", user.name) == user.name
        ),
        lambda user: {"user": user.name, "value": dict(user.limits)},
    )


async def set_limit(ask: Ask) -> Answer:
    """Set a limit of a user."""
    if _find(ask) is None:
        raise bad_request(["no_such_user", ask.path["user"]])
    (value,) = required(await ask.document(), "value")
    outcome = ask.operations.set_user_limits(ask.path["user"], {ask.path["limit"]: value})
    await ask.settled(outcome)
    return NO_CONTENT


async def delete_limit(ask: Ask) -> Answer:
    """Take a limit of a user away."""
    user = _user(ask)
    await ask.settled(ask.operations.clear_user_limits(user.name, ask.path["limit"]))
    return NO_CONTENT


_TEXT = {"type": "string"}
_USER = {
    "password": _TEXT,
    "password_hash": _TEXT,
    "hashing_algorithm": _TEXT,
    "tags": _TEXT,
}
_RIGHTS = {"configure": _TEXT, "write": _TEXT, "read": _TEXT}
_TOPIC = {"exchange": _TEXT, "write": _TEXT, "read": _TEXT}


def _get(path: str, handler: Any, summary: str) -> Endpoint:
    return Endpoint("GET", path, handler, summary, tag="administrator")


def _delete(path: str, handler: Any, summary: str) -> Endpoint:
    return Endpoint("DELETE", path, handler, summary, tag="administrator", status=204)


def _put(path: str, handler: Any, summary: str, body: Any, needed: tuple[str, ...]) -> Endpoint:
    return Endpoint(
        "PUT",
        path,
        handler,
        summary,
        tag="administrator",
        body=body,
        required=needed,
        status=201,
    )


_PERMISSION = "/permissions/{vhost}/{user}"
_TOPICS = "/topic-permissions/{vhost}/{user}"
_LIMIT = "/user-limits/{user}/{limit}"

ENDPOINTS = [
    _get("/users", list_users, "All users"),
    _get("/users/without-permissions", list_users_without_permissions, "Users without rights"),
    Endpoint(
        "POST",
        "/users/bulk-delete",
        delete_users,
        "Delete several users",
        tag="administrator",
        body={"users": {"type": "array", "items": _TEXT}},
        required=("users",),
        status=204,
    ),
    _get("/users/{user}", show_user, "One user"),
    _put("/users/{user}", set_user, "Make or change a user", _USER, ("tags",)),
    _delete("/users/{user}", delete_user, "Delete a user"),
    _get("/users/{user}/permissions", list_permissions, "The rights of a user"),
    _get("/users/{user}/topic-permissions", list_topics, "The topic rights of a user"),
    _get("/vhosts/{vhost}/permissions", list_permissions, "The rights in a vhost"),
    _get("/vhosts/{vhost}/topic-permissions", list_topics, "The topic rights in a vhost"),
    _get("/permissions", list_permissions, "All rights"),
    _get(_PERMISSION, show_permission, "The rights of a user in a vhost"),
    _put(_PERMISSION, set_permission, "Set them", _RIGHTS, tuple(_RIGHTS)),
    _delete(_PERMISSION, delete_permission, "Take them away"),
    _get("/topic-permissions", list_topics, "All topic rights"),
    _get(_TOPICS, list_topics_or_none, "The topic rights of a user in a vhost"),
    _put(_TOPICS, set_topic, "Set them for an exchange", _TOPIC, tuple(_TOPIC)),
    _delete(_TOPICS, delete_topic, "Take them away"),
    _get(f"{_TOPICS}/{{exchange}}", list_topics_or_none, "Those of an exchange"),
    _delete(f"{_TOPICS}/{{exchange}}", delete_topic, "Take them away for an exchange"),
    _get("/user-limits", list_limits, "The limits of all users"),
    _get("/user-limits/{user}", list_limits, "The limits of a user"),
    Endpoint(
        "PUT",
        _LIMIT,
        set_limit,
        "Set a limit",
        tag="administrator",
        body={"value": {"type": "integer"}},
        required=("value",),
        status=204,
    ),
    _delete(_LIMIT, delete_limit, "Take a limit away"),
]
