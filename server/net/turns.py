"""The loop of all sockets: one poller inside one trio task, and one tick for all that are ready.

A turn: poll; give each socket that is ready its one read, and let the broker obey what it brings;
then `end_tick` once: deliver, exchange with the disk, confirm, and one send for each session. Then
the loop polls again at once, for up to STAY_S, without going back to trio. After AWAY_S at the
latest trio's timers and other tasks have their turn.

Promises: a turn takes no longer than TURN_S, and a client's share of it no longer than SHARE_S,
plus one event. What is left goes on in rotation, also when it is the rest of one long read, but
behind those who have just come: what these brought is handed to the disk before anything that
takes long, and they are confirmed as soon as it is done. While publishers wait for a confirm, what
takes long has less of a turn. An error of ours costs the client in whose turn it happened, and
never ends the loop. The descriptor of a session that ends stays open until the turn is over: no
other socket can have its number while the turn may still name it. Timers (`at`) are part of the
turn: the next one is the poll's timeout. The broker's jobs are part of the turn, too: while some
are left, the poll does not wait. So are handshakes of TLS, which have a line of their own
(handshakes.py).

`wake` is the only call for other threads.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

from qlog.server.broker.broker import Broker
from qlog.server.broker.timers import Timer
from qlog.server.net.handshakes import Handshakes
from qlog.server.net.poller import READABLE, Poller, Waker, new_poller

logger = logging.getLogger("qlog.network")

# A client that is served for longer than SHARE_S has to wait for its next turn. A turn that lasts
# longer than TURN_S ends, and the clients that are left come first in the next one.
SHARE_S = 0.005
TURN_S = 0.010
# While publishers wait for a confirm, and a moment later, when they publish again, what takes long
# has less of a turn: the rest of others, and jobs, so much each.
HURRIED_S = 0.002
HURRY_FOR_S = 0.02
# When so much was read in one turn, it ends: that is a batch for the disk.
TURN_BYTES_MAX = 1024 * 1024
# While the disk is behind, clients that send little are read on, all together for so many octets.
LITTLE_BYTES_MAX = 1024 * 1024
# Going back to trio costs some 20 us; a client that answers what it has got does it within 1 ms.
STAY_S = 0.001
# trio's timers and tasks (HTTP, signals) wait for this, plus the turn under way, at most.
AWAY_S = 0.003

STORE_FAILED = "internal error of the storage: the broker stops"


class Participant(Protocol):
    """What a turn goes round: a session, or a listener."""

    queued: bool  # is in the line for its turn; `Turns` sets it

    def noticed(self, ready: int) -> None:
        """The poller reports this of the socket (READABLE, WRITABLE, GONE). Must be short."""

    def take_turn(self, until_s: float) -> int:
        """Do work until about `until_s` by the loop's clock; returns how many octets were read.

        If work is left, the participant calls `Turns.go_on`, or `enqueue` if it is little.
        """

    def cut(self) -> None:
        """End now. Called also after an exception in one of its calls, which is our bug."""


class Member(Participant, Protocol):
    """A session: a participant that the end of the tick sends for, and that ends."""

    @property
    def finished(self) -> bool:
        """Everything was said; only the peer has to close."""

    def flush(self) -> None:
        """Send what was written."""

    def feed(self) -> None:
        """It has room again: ask the queues for deliveries."""

    def catch_up(self) -> None:
        """The disk has caught up."""

    def bury(self) -> None:
        """The session has ended, and the turn is over: give back its messages and descriptor."""


class Turns:
    """See the head of this file.

    Arguments: `broker`, whose store's `notify` must lead to `wake`; `poller` and `clock_s`, the
    loop's own monotonic clock in seconds, are for tests to replace.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        poller: Poller[Participant] | None = None,
        clock_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.broker = broker
        self.sessions: set[Member] = set()
        self.failed = trio.Event()  # the disk has failed: nothing may be confirmed any more
        self.clock_s = clock_s
        self._now_s = broker.now_s()  # the time of the turn
        self.poller: Poller[Participant] = poller or new_poller()
        self._waker = Waker()
        self.on_burial: Callable[[], None] = _nothing  # called when a descriptor is free again
        self._line: deque[Participant] = deque()
        self._rest: deque[Participant] = deque()  # whose share of an earlier turn was not enough
        self.handshakes = Handshakes(clock_s, lambda: self.now_s, self.at)
        self._unsent: list[Member] = []
        self._drained: list[Member] = []
        self._error: Exception | None = None
        self._behind: set[Member] = set()  # sessions that are not read since the disk is behind
        self._ended: list[Member] = []
        self._hurries_until_s = 0.0  # by the broker's clock
        self._little_bytes = 0  # see `note_little`; since the disk is behind
        self._store_due_s = self._now_s
        # This tick may have changed something that queues or the disk have to see. Heartbeats
        # alone, of which 5,000 idle clients always send some, change nothing.
        self.touched = False
        self._lively = False  # a tick since the loop came from trio was `touched`
        self._busy = False  # a turn is under way
        self._woken = False  # a thread has called `wake`, and no turn has taken notice yet
        self.poller.add(self._waker.fileno(), _WakerParticipant(self._waker), READABLE)

    @property
    def failure(self) -> BaseException | None:
        """Why nothing is confirmed any more, if that is so."""
        return self.broker.store.failure or self._error

    def close(self) -> None:
        """Give back the loop's own descriptors. No thread may call `wake` any more."""
        self.poller.close()
        self._waker.close()

    # -- what sessions and others ask for ----------------------------------------------------

    def wake(self) -> None:
        """Have a turn soon. For any thread."""
        # Between turns the waker has to be written to. During a turn `_woken` is enough, since
        # `_busy` is reset before `_woken` is looked at.
        self._woken = True
        if not self._busy:
            self._waker.wake()

    def at(self, due_s: float, call: Callable[[], None]) -> Timer:
        """Have `call` called in the first turn at or after `due_s` by the broker's clock."""
        timer = self.broker.timers.at(due_s, call)
        if not self._busy:
            self.wake()
        return timer

    def enqueue(self, participant: Participant) -> None:
        """Put a participant that has something to do at the end of the line."""
        if not participant.queued:
            participant.queued = True
            self._line.append(participant)

    def go_on(self, participant: Participant) -> None:
        """The participant's share was not enough: it has another one, behind those who come."""
        if not participant.queued:
            participant.queued = True
            self._rest.append(participant)

    def mark(self, session: Member) -> None:
        """The session is to be flushed when the tick ends."""
        self._unsent.append(session)

    def drained(self, session: Member) -> None:
        """A full outbox has room again: its queues are asked, after all others had their turn."""
        self._drained.append(session)

    def fall_behind(self, session: Member) -> None:
        """The session is told when the disk has caught up."""
        self._behind.add(session)

    def leave(self, session: Member) -> None:
        """The session has ended: it is buried when the turn is over."""
        self._ended.append(session)

    @property
    def now_s(self) -> float:
        """The broker's clock; the same all through a turn."""
        return self._now_s if self._busy else self.broker.now_s()

    @property
    def congested(self) -> bool:
        """So much waits for the disk that publishers have to wait."""
        return self.broker.store.congested

    @property
    def spares(self) -> bool:
        """Publishers that send little at a time need not wait yet while it is `congested`.

        They would wait not only for what is ahead of them, but also for the large messages that
        others end before their turn comes.
        """
        return self._little_bytes < LITTLE_BYTES_MAX

    def note_little(self, size: int) -> None:
        """So many octets were read of a publisher that was spared."""
        self._little_bytes += size

    # -- the turn ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Take turns until cancelled."""
        while True:
            # One scope serves many waits: its deadline is moved, and ends it only when reached.
            with trio.CancelScope() as scope:
                while True:
                    timeout_s = self.timeout_s()
                    if timeout_s > 0:
                        scope.deadline = trio.current_time() + timeout_s
                        await trio.lowlevel.wait_readable(self.poller)
                    else:
                        await trio.lowlevel.checkpoint()
                    self.take_turns()
            self.take_turns()

    def take_turns(self) -> None:
        """Turns one after the other while there is something to do, but not for long."""
        away_s = self.clock_s() + AWAY_S
        self._lively = False
        stay_s = 0.0
        while self.turn(stay_s) and self._lively and self.clock_s() < away_s:
            stay_s = STAY_S  # after heartbeats alone no answer is to be expected soon

    def timeout_s(self) -> float:
        """How long the poll may wait if neither a socket nor another thread has something."""
        if self._woken or self._anything_left():
            return 0.0
        due_s = min(self._store_due_s, self.broker.timers.due_s)
        return max(0.0, due_s - self.broker.now_s())

    def _anything_left(self) -> bool:
        waiting = self._line or self._rest or self.handshakes.line
        left = waiting or self._drained or self._unsent or self._ended
        return bool(left) or self.broker.jobs_left

    def turn(self, timeout_s: float) -> bool:
        """One turn, waiting at most so long for the first socket. False: nothing was to be done."""
        self._busy = False
        timeout_s = min(timeout_s, self.timeout_s()) if timeout_s else 0.0
        ready = self.poller.poll(timeout_s)
        if self._woken:
            self._woken = False  # before `_busy` is set: a call of `wake` from now on is not lost
            self.touched = True
        self._busy = True
        try:
            self._now_s = now_s = self.broker.now_s()
            for participant, said in ready:
                try:
                    participant.noticed(said)
                except Exception:
                    logger.exception("internal error %s", participant)
                    participant.cut()
            due = self._due(now_s)
            if due and self.broker.awaits_pump:
                self.touched = True
            if not (ready or due or self.touched or self._anything_left()):
                return False
            self._go_round()
            if self.handshakes.line:
                self.handshakes.step()
            if self._drained:
                self._feed()
            if self.broker.jobs_left:
                self.touched = True
                self._hand_over()
                self._fence(self._work)
                self._hand_over()
            self.end_tick()
            return True
        finally:
            self._busy = False

    def _go_round(self) -> None:
        """Give those in line their turn, each once, as long as the turn's time and size allow.

        If some are left from earlier turns, one of them has its share at least.
        """
        began_s = self.clock_s()
        until_s = began_s + TURN_S
        rest = len(self._rest)
        self._serve(self._line, len(self._line), until_s - SHARE_S if rest else until_s)
        if rest:
            self._hand_over()
            if self._hurry():
                until_s = min(until_s, self.clock_s() + HURRIED_S)
            self._serve(self._rest, rest, until_s)

    def _serve(self, line: deque[Participant], count: int, until_s: float) -> None:
        """Give the first `count` in a line their turn."""
        clock_s = self.clock_s
        now_s = clock_s()
        read_bytes = 0
        for _ in range(count):
            participant = line.popleft()
            participant.queued = False
            try:
                read_bytes += participant.take_turn(min(now_s + SHARE_S, until_s))
            except Exception:
                logger.exception("internal error %s", participant)
                participant.cut()
            now_s = clock_s()
            if now_s >= until_s or read_bytes >= TURN_BYTES_MAX:
                return

    def _hurry(self) -> bool:
        """Note that publishers wait for a confirm; whether they do, or did a moment ago."""
        if self.broker.waiting:
            self._hurries_until_s = self._now_s + HURRY_FOR_S
        return self._now_s < self._hurries_until_s

    def _work(self) -> None:
        """Have the broker's jobs go on."""
        if self._hurry():
            self.broker.work(HURRIED_S)
        else:
            self.broker.work()

    def _feed(self) -> None:
        drained, self._drained = self._drained, []
        for session in drained:
            self.touched = True
            try:
                session.feed()
            except Exception:
                logger.exception("internal error %s", session)
                session.cut()

    def _due(self, now_s: float) -> bool:
        """Do what is due: the store's deadlines, and timers. Returns whether something was due."""
        due = now_s >= self._store_due_s
        if due:
            try:
                self._store_due_s = now_s + self.broker.store.tick(now_s)
            except Exception as error:
                logger.exception(STORE_FAILED)
                self._stop(error)
        return self.broker.timers.run(now_s) or due

    # -- the end of the tick -----------------------------------------------------------------

    def end_tick(self) -> None:
        """Bury who has ended, deliver, hand this tick's messages to the disk, confirm, send."""
        while True:
            if self._ended:
                self._bury()
            if self.touched:
                self.touched = False
                if self._error is None:
                    self._lively = True
                    self._exchange()
                    # Settlements are due soon, but not at once.
                    soon_s = self.now_s + self.broker.store.settings.ack_flush_s
                    self._store_due_s = min(self._store_due_s, soon_s)
            self._flush()
            if not self._ended:
                return

    def _bury(self) -> None:
        while self._ended:
            session = self._ended.pop()
            self.touched = True
            self._behind.discard(session)
            self.sessions.discard(session)
            try:
                session.bury()
            except Exception:
                logger.exception("internal error at the end of a connection")
            self.on_burial()

    def _exchange(self) -> None:
        """Deliver; take what the disk has finished, and hand over what came meanwhile.

        At the end of each tick, not only when the commit thread has woken the loop: a batch's wait
        for the one before it is then not longer than a tick.
        """
        broker = self.broker
        store = broker.store
        try:
            self._fence(broker.pump)
            store.take(broker.waiting)
            self._fence(broker.progress)  # first: who is confirmed publishes again meanwhile
            self._fence(broker.pump)
            durable_lsn = store.durable_lsn
            store.commit(broker.waiting, self._flush)
            if store.durable_lsn != durable_lsn:  # the commit was made at once
                self._fence(broker.progress)
                self._fence(broker.pump)
            if store.failure is not None:
                self.failed.set()
                return
            self._store_due_s = min(self._store_due_s, store.due_s)
        except Exception as error:
            logger.exception(STORE_FAILED)
            self._stop(error)
            return
        if (self._behind or self._little_bytes) and not store.congested:
            self._little_bytes = 0
            behind, self._behind = self._behind, set()
            for session in behind:
                session.catch_up()

    def _hand_over(self) -> None:
        """Confirm what the disk has finished, and give it what came, before what takes long."""
        if self._error is not None:
            return
        broker = self.broker
        store = broker.store
        try:
            store.take(broker.waiting)
            self._fence(broker.progress)
            durable_lsn = store.durable_lsn
            store.commit_early(broker.waiting, self._flush)
            if store.durable_lsn != durable_lsn:  # the commit was made at once
                self._fence(broker.progress)
        except Exception as error:
            logger.exception(STORE_FAILED)
            self._stop(error)
            return
        self._flush()

    def _fence(self, call: Callable[[], None]) -> None:
        """Make a call. The broker catches the errors of each queue and client; others end here."""
        try:
            call()
        except Exception:
            logger.exception("internal error at the end of a tick")

    def _stop(self, error: Exception) -> None:
        """The store may be half way through something: nothing is confirmed any more."""
        self._error = error
        self._store_due_s = math.inf
        self.failed.set()

    def _flush(self) -> None:
        while self._unsent:
            unsent, self._unsent = self._unsent, []
            for session in unsent:
                try:
                    session.flush()
                except Exception:
                    logger.exception("internal error %s", session)
                    session.cut()

    # -- the end -----------------------------------------------------------------------------

    async def drain(self, seconds: float) -> None:
        """Wait until every client has been told everything, or has gone, but not longer."""
        with trio.move_on_after(seconds):
            while not all(session.finished for session in self.sessions):
                await trio.sleep(0.01)

    def cut(self) -> None:
        """Close the sockets of those who are still there."""
        for session in list(self.sessions):
            session.cut()
        self.end_tick()

    def say(self) -> None:
        """End a tick for something that was done outside of a turn."""
        self.touched = True
        self.end_tick()
        self.wake()  # a new deadline may be before the poll's timeout


def _nothing() -> None:
    pass


class _WakerParticipant:
    """The waker's place in the poller: it has nothing to do but to make the poll return."""

    def __init__(self, waker: Waker) -> None:
        self.queued = False
        self._waker = waker

    def noticed(self, ready: int) -> None:
        """Woken."""
        self._waker.clear()

    def take_turn(self, until_s: float) -> int:
        """Never in line."""
        return 0

    def cut(self) -> None:
        """It never ends."""
