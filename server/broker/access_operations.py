"""The part of operations.py about users, their rights and limits.

Each rule about them is written once, here, with RabbitMQ's texts. What has changed counts at once,
also for connections that are open; the outcome is known when it is durable. Changes are logged with
who asked for them (`by`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Protocol, Self, TypeVar

from qlog.routing.exchange import TOPIC
from qlog.server.amqp.errors import AMQPError, connection_forced, not_found
from qlog.server.broker.access.actor import BROKER, Actor
from qlog.server.broker.access.hashing import Busy
from qlog.server.broker.access.logins import Login, Logins
from qlog.server.broker.access.passwords import (
    PASSWORD_BYTES_MAX,
    BadHash,
    hash_password,
    parse_hash,
)
from qlog.server.broker.access.permissions import (
    Kind,
    Right,
    check_pattern,
    check_topic_pattern,
)
from qlog.server.broker.access.users import LIMITS, Permission, TopicPermission, User
from qlog.server.broker.features.parameters import InvalidParameter, integer
from qlog.server.broker.features.terms import pairs_term, term
from qlog.server.broker.jobs import Steps, letting_go
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.services import Services
from qlog.server.broker.vhost import VHost

logger = logging.getLogger("qlog.access")

T = TypeVar("T")

USER_NAME_BYTES_MAX = 255  # a name has to fit in the property `user_id`, a shortstr
TAGS_MAX = 100
TAG_BYTES_MAX = 255


class LoggedIn(Protocol):
    """A client, as far as it concerns its user."""

    account: User | None  # who logged in; None: nobody yet

    def fail(self, error: AMQPError, number: int) -> None:
        """Close the channel of that number, 0 for the connection."""


class AccessOperations:
    """See the head of this file. `vhosts`, `users` and `clients` are the broker's own."""

    __slots__ = (
        "_actor",
        "_by_user",
        "_clients",
        "_definitions",
        "_hashing",
        "_logins",
        "_services",
        "_users",
        "_vhosts",
    )

    def __init__(
        self,
        services: Services,
        vhosts: dict[str, VHost],
        users: dict[str, User],
        clients: Collection[LoggedIn],
        logins: Logins,
    ) -> None:
        self._services = services
        self._definitions = services.definitions
        self._vhosts = vhosts
        self._users = users
        self._clients = clients
        self._logins = logins
        self._actor = BROKER
        self._by_user: dict[User, Self] = {}
        # By name: done when a user's new password is hashed, so that changes keep their order.
        self._hashing: dict[str, Outcome[None]] = {}

    def by(self, actor: Actor) -> Self:
        """The same operations, as this one asks for them."""
        ours = copy(self)
        ours._actor = actor
        return ours

    @property
    def actor(self) -> Actor:
        """Who asks."""
        return self._actor

    def without_rights(self) -> Self:
        """The same operations for the same actor, of whom no rights are asked."""
        return self.by(replace(self._actor, user=None))

    def by_user(self, user: User) -> Self:
        """The same operations, as a user asks for them; all connections of the user share them."""
        ours = self._by_user.get(user)
        if ours is None:
            ours = self._by_user[user] = self.by(Actor.of(user, ""))
        return ours

    def vhost(self, name: str) -> VHost:
        """The vhost of that name. Raises 404."""
        vhost = self._vhosts.get(name)
        if vhost is None:
            raise not_found(f"no vhost '{name}'")
        return vhost

    # -- logins ------------------------------------------------------------------------------

    def authenticate(
        self, name: str, password: bytes | None, *, address: str, loopback: bool
    ) -> Login:
        """Who logs in, whatever the protocol; fails with Refused, which is logged already.

        Arguments: `password` is None when the peer has proved otherwise who it is, with a
        certificate; `address` is the peer's, without a port; `loopback`: the peer is on this
        machine. Known at once if the same password was right within the last minute.
        """
        return self._logins.authenticate(name, password, address=address, loopback=loopback)

    # -- users -------------------------------------------------------------------------------

    def users(self) -> Iterator[User]:
        """All users."""
        yield from list(self._users.values())

    def user(self, name: str) -> User:
        """The user of that name. Raises 404."""
        user = self._users.get(name)
        if user is None:
            raise not_found(f"no user '{name}'")
        return user

    def add_user(self, name: str, password: str, tags: Sequence[str] = ()) -> Outcome[User]:
        """Make a user who may enter no vhost yet. Raises InvalidParameter, also if there is one."""

        def check() -> None:
            if name in self._users:
                raise InvalidParameter(f'User "{name}" already exists')

        check()
        return self._set_user(name, _checked_password(password), tags, check)

    def set_user(
        self,
        name: str,
        *,
        tags: Iterable[str],
        password: str | None = None,
        password_hash: str | None = None,
        hashing_algorithm: str | None = None,
    ) -> Outcome[User]:
        """Make a user, or change password and tags of one; rights and limits stay.

        Arguments: either `password`, or `password_hash` as definitions have it, or neither: then no
        password lets the user in. No `hashing_algorithm`: the length of the hash tells it. Raises
        InvalidParameter.
        """
        if password is not None and password_hash is not None:
            raise InvalidParameter("both_password_and_password_hash_are_provided")
        secret: bytes | str = b""
        if password is not None:
            secret = _checked_password(password)
        elif password_hash is not None:
            secret = parsed_hash(password_hash, hashing_algorithm)
        return self._set_user(name, secret, tags, lambda: None)

    def put_user(
        self, name: str, password_hash: bytes, tags: tuple[str, ...], limits: dict[str, int]
    ) -> None:
        """Make or change a user to be as definitions say, which were checked; rights stay."""
        user = self._users.get(name)
        if user is None:
            what = "made"
            user = self._users[name] = User(name, password_hash)
        elif (user.password_hash, user.tags, user.limits) == (password_hash, tags, limits):
            return
        else:
            what = "changed"
        if password_hash != user.password_hash:
            user.password_hash, user.replaced = password_hash, b""
        user.tags, user.limits = tags, limits
        self._definitions.save_user(user)
        logger.info("user %s user=%r tags=%s %s", what, name, ",".join(tags), self._actor)

    def _set_user(
        self, name: str, secret: bytes | str, tags: Iterable[str], check: Callable[[], None]
    ) -> Outcome[User]:
        check_user_name(name)
        checked = checked_tags(tags)

        def put(password_hash: bytes) -> User:
            check()
            user = self._users.get(name)
            what = "changed" if user is not None else "made"
            if user is None:
                user = self._users[name] = User(name, password_hash)
            user.tags = checked
            self._keep_password(user, password_hash)
            logger.info("user %s user=%r tags=%s %s", what, name, ",".join(checked), self._actor)
            return user

        return self._hashed(name, secret, put)

    def change_password(self, name: str, password: str) -> Outcome[User]:
        """The new password counts when the outcome is known; connections stay. Raises 404."""
        self.user(name)
        return self._hashed(name, _checked_password(password), self._changed_password(name))

    def clear_password(self, name: str) -> Outcome[User]:
        """No password lets the user in any more. Raises 404."""
        self.user(name)
        return self._hashed(name, b"", self._changed_password(name))

    def _changed_password(self, name: str) -> Callable[[bytes], User]:
        def change(password_hash: bytes) -> User:
            user = self.user(name)
            self._keep_password(user, password_hash)
            what = "changed" if password_hash else "cleared"
            logger.info("password %s user=%r %s", what, name, self._actor)
            return user

        return change

    def _keep_password(self, user: User, password_hash: bytes) -> None:
        user.password_hash, user.replaced = password_hash, b""
        self._logins.forget(user.name)
        self._definitions.save_user(user)

    def set_user_tags(self, name: str, tags: Iterable[str]) -> Outcome[None]:
        """Replace a user's tags. Raises 404 and InvalidParameter."""
        checked = checked_tags(tags)

        def change(user: User) -> None:
            user.tags = checked
            logger.info("tags set user=%r tags=%s %s", name, ",".join(checked), self._actor)

        return self._changed(name, change)

    def delete_user(self, name: str) -> Outcome[None]:
        """Delete a user with all permissions; the user's connections are closed. Raises 404.

        The user is gone at once. The outcome is known when the connections are closed, too.
        """
        self.user(name)

        def delete() -> User:
            user = self.user(name)
            del self._users[name]
            self._by_user.pop(user, None)
            self._definitions.delete_user(name)
            self._logins.forget(name)
            user.permissions.clear()
            user.topic_permissions.clear()
            self.rights_changed(user)
            logger.info("user deleted user=%r %s", name, self._actor)
            return user

        deleted: Outcome[None] = Outcome()

        def close(gone: Outcome[User]) -> None:
            try:
                user = gone.result()
            except AMQPError as error:
                deleted.fail(error)
                return
            self._services.jobs.start(self._closing(user)).then(deleted.follow)

        self._in_order(name, delete).then(close)
        return self._durable(deleted)

    def _closing(self, user: User) -> Steps[None]:
        for client in letting_go(self._clients):
            if client.account is user:
                client.fail(connection_forced(f"user '{user.name}' is deleted"), 0)
            yield

    # -- rights ------------------------------------------------------------------------------

    def permissions(
        self, *, user: str | None = None, vhost: str | None = None
    ) -> Iterator[Permission]:
        """All permissions, or those of a user, in a vhost."""
        for one in self._users_or_one(user):
            for where, patterns in list(one.permissions.items()):
                if vhost is None or vhost == where:
                    yield Permission(one.name, where, *patterns)

    def set_permissions(
        self, vhost: str, user: str, configure: object, write: object, read: object
    ) -> Outcome[None]:
        """Let a user into a vhost, with these patterns. Raises 404 and InvalidParameter."""
        patterns = check_pattern(configure), check_pattern(write), check_pattern(read)
        self.user(user)
        self.vhost(vhost)

        def change(one: User) -> None:
            self.vhost(vhost)
            one.permissions[vhost] = patterns
            self.rights_changed(one)
            logger.info(
                "permissions set user=%r vhost=%r configure=%r write=%r read=%r %s",
                user,
                vhost,
                *patterns,
                self._actor,
            )

        return self._changed(user, change)

    def clear_permissions(self, vhost: str, user: str) -> Outcome[None]:
        """Let a user into a vhost no more; connections stay, and may do nothing. Raises 404."""
        self.vhost(vhost)
        if vhost not in self.user(user).permissions:
            raise not_found(f"no permissions of user '{user}' in vhost '{vhost}'")

        def change(one: User) -> None:
            one.permissions.pop(vhost, None)
            self.rights_changed(one)
            logger.info("permissions cleared user=%r vhost=%r %s", user, vhost, self._actor)

        return self._changed(user, change)

    def topic_permissions(
        self, *, user: str | None = None, vhost: str | None = None
    ) -> Iterator[TopicPermission]:
        """All topic permissions, or those of a user, in a vhost."""
        for one in self._users_or_one(user):
            for where, topics in list(one.topic_permissions.items()):
                if vhost is None or vhost == where:
                    for exchange, patterns in list(topics.items()):
                        yield TopicPermission(one.name, where, exchange, *patterns)

    def set_topic_permissions(
        self, vhost: str, user: str, exchange: str, write: object, read: object
    ) -> Outcome[None]:
        """Limit the routing keys that a user may use with an exchange, which need not be there.

        Raises 404 and InvalidParameter.
        """
        patterns = check_topic_pattern(write), check_topic_pattern(read)
        self.user(user)
        self.vhost(vhost)

        def change(one: User) -> None:
            self.vhost(vhost)
            one.topic_permissions.setdefault(vhost, {})[exchange] = patterns
            self.rights_changed(one)
            logger.info(
                "topic permissions set user=%r vhost=%r exchange=%r write=%r read=%r %s",
                user,
                vhost,
                exchange,
                *patterns,
                self._actor,
            )

        return self._changed(user, change)

    def clear_topic_permissions(
        self, vhost: str, user: str, exchange: str | None = None
    ) -> Outcome[None]:
        """Take the limits of routing keys away, of one exchange or all. Raises 404."""
        self.user(user)
        self.vhost(vhost)

        def change(one: User) -> None:
            topics = one.topic_permissions.get(vhost, {})
            if exchange is not None:
                topics.pop(exchange, None)
            if exchange is None or not topics:
                one.topic_permissions.pop(vhost, None)
            self.rights_changed(one)
            said = "" if exchange is None else f" exchange={exchange!r}"
            logger.info(
                "topic permissions cleared user=%r vhost=%r%s %s", user, vhost, said, self._actor
            )

        return self._changed(user, change)

    def check(self, vhost: VHost, right: Right, kind: Kind, name: str) -> None:
        """Raises 403 if who asks has no such right to a queue or an exchange."""
        user = self._actor.user
        if user is not None:
            user.rights(vhost.name).check(right, kind, name)

    def _check_topic(self, vhost: VHost, exchange: str, key: str) -> None:
        """Raises 403 if who asks may not bind to a topic exchange with this routing key."""
        user = self._actor.user
        if user is not None:
            found = vhost.find_exchange(exchange)
            if found is not None and found.type == TOPIC:
                user.rights(vhost.name).check_topic("read", exchange, key)

    def rights_changed(self, user: User) -> None:
        """The rights that a user has now count from the next operation on, everywhere."""
        user.forget_rights()
        for vhost in self._vhosts.values():
            vhost.rights_changed(user)

    # -- limits ------------------------------------------------------------------------------

    def set_user_limits(self, name: str, limits: object) -> Outcome[None]:
        """Set some of `max-connections` and `max-channels`; less than nothing: no limit.

        What is open stays open, also if it is more. Raises 404 and InvalidParameter.
        """
        checked = checked_user_limits(limits)

        def change(user: User) -> None:
            user.limits = {**user.limits, **checked}
            logger.info("limits set user=%r limits=%s %s", name, user.limits, self._actor)

        return self._changed(name, change)

    def clear_user_limits(self, name: str, limit: str | None = None) -> Outcome[None]:
        """Take a limit away, or all. Raises 404."""

        def change(user: User) -> None:
            left = {} if limit is None else user.limits
            user.limits = {key: value for key, value in left.items() if key != limit}
            logger.info("limits cleared user=%r limit=%s %s", name, limit or "all", self._actor)

        return self._changed(name, change)

    # -- how ---------------------------------------------------------------------------------

    def _users_or_one(self, name: str | None) -> Iterable[User]:
        if name is None:
            return self.users()
        user = self._users.get(name)
        return () if user is None else (user,)

    def _changed(self, name: str, change: Callable[[User], None]) -> Outcome[None]:
        """Change a user. Raises 404."""
        self.user(name)

        def do() -> None:
            user = self.user(name)
            change(user)
            self._definitions.save_user(user)

        return self._durable(self._in_order(name, do))

    def _in_order(self, name: str, do: Callable[[], T]) -> Outcome[T]:
        """Do something to a user: now, or when the password that was set before is hashed."""
        return when_free(self._hashing.get(name), do)

    def _hashed(
        self, name: str, secret: bytes | str, put: Callable[[bytes], User]
    ) -> Outcome[User]:
        """Call `put` with the hash of a password (a text), or with a hash that is there (octets)."""
        if isinstance(secret, bytes):
            password_hash = secret
            return self._durable(self._in_order(name, lambda: put(password_hash)))
        password = secret.encode()
        before = self._hashing.get(name)
        mine = self._hashing[name] = Outcome[None]()
        result: Outcome[User] = Outcome()

        def finish(hashed: Outcome[bytes]) -> None:
            try:
                user = put(hashed.result())
            except Busy:
                result.fail(InvalidParameter("too many passwords wait to be hashed"))
            except Exception as error:  # noqa: BLE001 - who asked hears of it
                result.fail(error)
            else:
                result.set(user)
            if self._hashing.get(name) is mine:
                del self._hashing[name]
            mine.set(None)

        def in_order(hashed: Outcome[bytes]) -> None:
            if before is None:
                finish(hashed)
            else:
                before.then(lambda _: finish(hashed))

        hashing = self._logins.hashing.submit(lambda: hash_password(password), str(self._actor))
        hashing.then(in_order)
        return self._durable(result)

    def _durable(self, effect: Outcome[T]) -> Outcome[T]:
        raise NotImplementedError


def when_free(leaving: Outcome[None] | None, declare: Callable[[], T]) -> Outcome[T]:
    """Declare when the name is free: now, or when what goes on under that name has ended."""
    if leaving is None or leaving.done:
        return Outcome.of(declare())
    outcome: Outcome[T] = Outcome()

    def go_on(_: Outcome[None]) -> None:
        try:
            value = declare()
        except Exception as error:  # noqa: BLE001 - who asked hears of it
            outcome.fail(error)
        else:
            outcome.set(value)

    leaving.then(go_on)
    return outcome


# --- checks of what operators give


def check_user_name(name: str) -> None:
    """Raises InvalidParameter."""
    if not name:
        raise InvalidParameter("user name cannot be an empty string")
    _check_text("user name", name, USER_NAME_BYTES_MAX)


def _check_text(what: str, text: str, bytes_max: int) -> None:
    """Raises InvalidParameter if it is too long, or no text that can be encoded."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidParameter(f"{what} is not valid UTF-8") from None
    if size > bytes_max:
        raise InvalidParameter(f"{what} must not exceed {bytes_max} bytes")


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags without blanks around them, and without empty ones. Raises InvalidParameter."""
    checked = tuple(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
    if len(checked) > TAGS_MAX:
        raise InvalidParameter(f"a user must not have more than {TAGS_MAX} tags")
    for tag in checked:
        _check_text("tag", tag, TAG_BYTES_MAX)
    return checked


def checked_user_limits(limits: object) -> dict[str, int]:
    """Limits from what an operator gave. Raises InvalidParameter."""
    if not isinstance(limits, dict):
        raise InvalidParameter(f"user-limits should be an object, actually was {term(limits)}")
    for key, value in limits.items():
        if key not in LIMITS:
            others = pairs_term({key: value})
            raise InvalidParameter(f"Unrecognised terms {others} in user-limits")
        if complaint := integer(key, value):
            raise InvalidParameter(complaint)
    return limits


def parsed_hash(text: str, algorithm: str | None) -> bytes:
    """A hash as definitions have it. Raises InvalidParameter."""
    try:
        return parse_hash(text, algorithm)
    except BadHash as error:
        raise InvalidParameter(str(error)) from error


def _checked_password(password: str) -> str:
    _check_text("password", password, PASSWORD_BYTES_MAX)
    return password
