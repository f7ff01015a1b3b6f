"""Handshakes of TLS: in a line of their own, so that those who are connected do not wait for them.

A step of a handshake is a signature, which cannot be interrupted: a tenth of a millisecond to some
milliseconds, by the kind of the key. A thousand clients that come at once would be in the turn's
line before everybody else. Promises: a turn spends HANDSHAKES_S on handshakes, plus one step; at
most BEGUN_MAX handshakes are under way, each of which has memory; clients beyond that are not read
until others are done. One that keeps the others waiting and is silent for STALLED_S is cut. How
long a handshake may take in all is the session's to see to.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from qlog.server.broker.channels.sink import Hold

logger = logging.getLogger("qlog.network")

HANDSHAKES_S = 0.002
# Each has some 60 KB of OpenSSL's and what it has sent, so 30 MB in all.
BEGUN_MAX = 512
STALLED_S = 2.0
LOOK_S = 0.5


class Greeting(Protocol):
    """A session whose handshake is under way."""

    queued: bool

    def take_turn(self, until_s: float) -> int:
        """Take one step of the handshake."""

    def hold(self, reason: Hold) -> None:
        """Do not read it."""

    def release(self, reason: Hold) -> None:
        """Read it again."""

    def cut(self) -> None:
        """End it."""


class Handshakes:
    """See the head of this file.

    Arguments: `clock_s` is the loop's clock, for the length of slices; `now_s` the broker's; `at`
    has something called at a time by the broker's clock.
    """

    def __init__(
        self,
        clock_s: Callable[[], float],
        now_s: Callable[[], float],
        at: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self.line: deque[Greeting] = deque()  # have something to read
        self._clock_s = clock_s
        self._now_s = now_s
        self._at = at
        self._begun: dict[Greeting, float] = {}  # and when, oldest first
        self._waiting: dict[Greeting, None] = {}
        self._looking = False

    def enqueue(self, session: Greeting) -> None:
        """The session has something to read; if there is no room for it, it has to wait."""
        if session.queued or session in self._waiting:
            return
        if session not in self._begun:
            if self._waiting or (len(self._begun) >= BEGUN_MAX and not self._make_room()):
                self._waiting[session] = None
                session.hold(Hold.HANDSHAKE)
                self._look_later()
                return
            self._begun[session] = self._now_s()
        session.queued = True
        self.line.append(session)

    def leave(self, session: Greeting) -> None:
        """The handshake is done, or the session has ended."""
        self._waiting.pop(session, None)
        if self._begun.pop(session, None) is not None:
            self._admit()

    def step(self) -> None:
        """Take steps of those in line, for HANDSHAKES_S. An error of ours costs its session."""
        until_s = self._clock_s() + HANDSHAKES_S
        while self.line:
            session = self.line.popleft()
            session.queued = False
            try:
                session.take_turn(until_s)
            except Exception:
                logger.exception("internal error %s", session)
                session.cut()
            if self._clock_s() >= until_s:
                return

    def _admit(self) -> None:
        while self._waiting and len(self._begun) < BEGUN_MAX:
            session = next(iter(self._waiting))
            del self._waiting[session]
            self._begun[session] = self._now_s()
            session.release(Hold.HANDSHAKE)

    def _make_room(self) -> bool:
        """Cut the oldest handshake, if its client keeps the others waiting."""
        session = next(iter(self._begun))
        if session.queued or self._now_s() - self._begun[session] < STALLED_S:
            return False
        logger.warning("TLS handshake cut: silent while others wait %s", session)
        session.cut()
        return True

    def _look_later(self) -> None:
        if not self._looking:
            self._looking = True
            self._at(self._now_s() + LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = False
        while self._waiting and self._make_room():
            pass
        if self._waiting:
            self._look_later()
