"""Who may log in: users and passwords, from where, and how fast.

A right password is remembered for a minute as a keyed hash that no other process can make (BLAKE2),
so that clients that come again cost microseconds. All else is hashed away from the loop
(hashing.py), and the attempts of a peer that fails again and again wait (failures.py). A password
that is kept in one of RabbitMQ's formats is kept as argon2id from the first login on. Promises that
no password, right or wrong, gets into the log or stays in memory, and that an unknown user takes as
long as a wrong password.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from qlog.server.broker.access.failures import WAIT_S_MAX, Failures, peer_of
from qlog.server.broker.access.hashing import Busy, Doubt, Hashing
from qlog.server.broker.access.passwords import (
    PASSWORD_BYTES_MAX,
    fingerprint,
    hash_password,
    is_argon2id,
    is_right,
)
from qlog.server.broker.access.users import User
from qlog.server.broker.outcome import Outcome

logger = logging.getLogger("qlog.access")

REMEMBERED_S = 60.0
# Who would have to wait longer than this is refused without a look, ANSWERED_S later: who guesses
# must not come again at once.
LATE_S = WAIT_S_MAX
ANSWERED_S = 1.0
# So many refused logins of one second are logged; the others are counted.
LOGGED_MAX = 10


class Refused(Exception):
    """The login is refused; `reason` is for the log, never for the client."""

    def __init__(self, user: str, reason: str) -> None:
        super().__init__(f"user {user!r}: {reason}")
        self.reason = reason


class NotNow(Refused):
    """So many logins wait that this one is not looked at; the same one may succeed later."""


class Call(Protocol):
    """A call that is to be made later."""

    def cancel(self) -> None:
        """Have it not made."""


class Clock(Protocol):
    """Calls that are made later."""

    def at(self, due_s: float, call: Callable[[], None]) -> Call:
        """Have `call` called at or after `due_s`."""


class Login(Outcome[User]):
    """An attempt to log in: the user, or Refused."""

    __slots__ = ("_leave",)

    def __init__(self) -> None:
        super().__init__()
        self._leave: Callable[[Login], None] | None = None

    def awaits(self, leave: Callable[[Login], None]) -> None:
        """What `withdraw` does."""
        self._leave = leave

    def withdraw(self) -> None:
        """The client has left: the attempt is looked at no more, if that has not begun."""
        leave, self._leave = self._leave, None
        if leave is not None and not self.done:
            leave(self)


@dataclass(slots=True)
class _Attempt:
    """A password for a hash, and who brought it. `timer`: when it is looked at; `look`: it is."""

    waiting: dict[Login, None]
    timer: Call | None = None
    look: Outcome[tuple[bool, bytes]] | None = None


# The name, a digest of the password, and the hash that it is compared with.
_About = tuple[str, bytes, bytes]


@dataclass(slots=True)
class _Remembered:
    digest: bytes
    password_hash: bytes  # the digest counts as long as the user has this one
    until_s: float


class Logins:
    """See the head of this file.

    Arguments: `users` are the broker's own, as they are; `loopback_only` are let in over loopback
    only (RabbitMQ's `loopback_users`); `save` makes a user's new hash durable; `timers` and `now_s`
    are the broker's.
    """

    def __init__(
        self,
        users: Mapping[str, User],
        hashing: Hashing,
        timers: Clock,
        now_s: Callable[[], float],
        save: Callable[[User], None],
        *,
        loopback_only: Collection[str],
    ) -> None:
        self._users = users
        self.hashing = hashing
        self._timers = timers
        self._now_s = now_s
        self._save = save
        self.loopback_only = loopback_only
        self.failures = Failures()
        self._key = os.urandom(32)
        self._remembered: dict[str, _Remembered] = {}
        # The same password for the same hash is hashed once, however many clients bring it.
        self._under_way: dict[_About, _Attempt] = {}
        self._nobody = b""  # a hash that an unknown user's password is compared with
        self._logged_in = 0  # this second
        self._logged = 0
        self._unlogged = 0
        self.succeeded_count = 0
        self.failed_count = 0

    def authenticate(
        self, name: str, password: bytes | None, *, address: str, loopback: bool
    ) -> Login:
        """The user, if the password is right and the address allowed; fails with Refused.

        Arguments: `password` is None when the peer has proved otherwise who it is; `address` is the
        peer's, without a port. `loopback`: the peer is on this machine. What is refused is logged
        here.
        """
        outcome = Login()
        if password is not None and len(password) > PASSWORD_BYTES_MAX:
            self._refuse([outcome], name, address, "the password is too long")
            return outcome
        if not loopback and name in self.loopback_only:
            self._refuse([outcome], name, address, "can only connect via localhost")
            return outcome
        user = self._users.get(name)
        if password is None:
            if user is None:
                self._refuse([outcome], name, address, "no such user")
            else:
                outcome.set(user)
            return outcome
        digest = hashlib.blake2b(password, key=self._key, digest_size=32).digest()
        if user is not None and self._remembers(user, digest):
            self.succeeded_count += 1
            outcome.set(user)
            return outcome
        about = name, digest, b"" if user is None else user.password_hash
        attempt = self._under_way.get(about)
        if attempt is not None:
            attempt.waiting[outcome] = None
        elif not self._begin(about, password, address, outcome):
            return outcome
        outcome.awaits(partial(self._withdrawn, about, peer_of(address)))
        return outcome

    def _begin(self, about: _About, password: bytes, address: str, login: Login) -> bool:
        """Look at an attempt, as soon as its peer may have one looked at. False: it has to come again."""
        name = about[0]
        now_s = self._now_s()
        wait_s = self.failures.wait_s(peer_of(address), name, now_s)
        if wait_s > LATE_S:
            reason = "too many failed logins: not looked at"
            self._log(name, address, reason, 1)
            self.failed_count += 1
            refused = Refused(name, reason)
            timer = self._timers.at(now_s + ANSWERED_S, lambda: login.fail(refused))
            login.awaits(lambda _: timer.cancel())
            return False
        attempt = self._under_way[about] = _Attempt({login: None})
        if wait_s:
            attempt.timer = self._timers.at(
                now_s + wait_s, lambda: self._hash(about, password, address, attempt)
            )
        else:
            self._hash(about, password, address, attempt)
        return True

    def _withdrawn(self, about: _About, peer: str, login: Login) -> None:
        """A client has left. Without it perhaps nobody wants to know whether the password is right."""
        attempt = self._under_way.get(about)
        if attempt is None or login not in attempt.waiting:
            return
        if len(attempt.waiting) > 1:
            del attempt.waiting[login]
        elif attempt.timer is not None:
            attempt.timer.cancel()
            del self._under_way[about]
        elif attempt.look is not None and self.hashing.withdraw(attempt.look, peer):
            del self._under_way[about]

    def forget(self, name: str) -> None:
        """The user is gone, or has another password."""
        self._remembered.pop(name, None)

    def _remembers(self, user: User, digest: bytes) -> bool:
        remembered = self._remembered.get(user.name)
        if remembered is None:
            return False
        now_s = self._now_s()
        if remembered.password_hash != user.password_hash or remembered.until_s < now_s:
            del self._remembered[user.name]
            return False
        if not hmac.compare_digest(remembered.digest, digest):
            return False
        remembered.until_s = now_s + REMEMBERED_S
        return True

    def _hash(self, about: _About, password: bytes, address: str, attempt: _Attempt) -> None:
        """Look at an attempt, away from the loop."""
        attempt.timer = None
        name, digest, password_hash = about
        if not self._nobody:
            self._nobody = _hash_of_nobody()
        compared = password_hash or self._nobody

        def look() -> tuple[bool, bytes]:
            right = is_right(compared, password) and bool(password_hash)
            kept = hash_password(password) if right and not is_argon2id(compared) else compared
            return right, kept

        def looked(outcome: Outcome[tuple[bool, bytes]]) -> None:
            waiting = list(self._under_way.pop(about).waiting)
            error = outcome.error
            if isinstance(error, Busy):
                self._refuse(waiting, name, address, "too many logins wait", NotNow)
                return
            if error is not None:
                logger.error("a password could not be compared user=%s", name, exc_info=error)
                self._refuse(waiting, name, address, "internal error", NotNow)
                return
            right, kept = outcome.result()
            user = self._users.get(name)
            if not right or user is None or user.password_hash != password_hash:
                self._refuse(waiting, name, address, _why(user, password))
                return
            self._let_in(user, kept, digest, address, waiting)

        peer = peer_of(address)
        doubt = self.failures.doubt(peer, name, self._now_s())
        # Else a peer that is new could have as many looked at first as it likes.
        if doubt is Doubt.NONE and self.hashing.waits(peer, Doubt.SOME):
            doubt = Doubt.SOME
        attempt.look = self.hashing.submit(look, peer, doubt)
        attempt.look.then(looked)

    def _let_in(
        self, user: User, kept: bytes, digest: bytes, address: str, waiting: list[Login]
    ) -> None:
        if kept != user.password_hash:
            logger.info("password kept as argon2id from now on user=%s", user.name)
            user.replaced, user.password_hash = fingerprint(user.password_hash), kept
            self._save(user)
        until_s = self._now_s() + REMEMBERED_S
        self._remembered[user.name] = _Remembered(digest, kept, until_s)
        self.failures.succeeded(peer_of(address), user.name)
        self.succeeded_count += len(waiting)
        for outcome in waiting:
            outcome.set(user)

    def _refuse(
        self,
        waiting: list[Login],
        name: str,
        address: str,
        reason: str,
        how: type[Refused] = Refused,
    ) -> None:
        self.failed_count += len(waiting)
        if how is Refused:
            peer = peer_of(address)
            for _ in waiting:
                self.failures.failed(peer, name, self._now_s())
        self._log(name, address, reason, len(waiting))
        for outcome in waiting:
            outcome.fail(how(name, reason))

    def _log(self, name: str, address: str, reason: str, count: int) -> None:
        """Say what was refused; a flood of it is counted, a few lines a second."""
        second = int(self._now_s())
        if second != self._logged_in:
            self._logged_in, self._logged = second, 0
        if self._logged >= LOGGED_MAX:
            self._unlogged += count
            return
        self._logged += 1
        more, self._unlogged = self._unlogged, 0
        said = f"; {more} more were refused, and not logged" if more else ""
        times = f" times={count}" if count > 1 else ""
        logger.warning(
            "login refused from=%s user=%r reason=%s%s%s", address, name[:255], reason, times, said
        )


def _why(user: User | None, password: bytes) -> str:
    if user is None:
        return "no such user"
    if not password:
        return "the password is empty"
    return "invalid credentials"


def _hash_of_nobody() -> bytes:
    """A hash in our form, of a password that nobody knows; made up, so that it costs nothing."""
    from qlog.server.broker.access import passwords

    cost = passwords.COST
    text = f"$argon2id$v=19$m={cost.memory_kib},t={cost.passes},p={cost.lanes}"
    return f"{text}${'A' * 22}${'A' * 43}".encode()
