"""The loop of all sockets: one poller inside one trio task, and one tick for all that are ready.

A turn: poll; give each socket that is ready its one read and let the broker obey; then `end_tick`
once: deliver, hand over to the disk what came and take what it has finished, confirm, one send for
each session. Then it polls again at once, for up to STAY_S without going back to trio, whose timers
and other tasks have their turn after AWAY_S at the latest.

Promises: nobody's turn is longer than TURN_S, and no client's share of it longer than SHARE_S,
but for one event that takes longer; what is left, of one long read too, goes on in rotation. An
error of ours costs the client in whose turn it happened, and never ends the loop. The descriptor of
a session that ends stays open until the turn is over, so that no other socket has its number while
the turn may still name it. Timers (`at`) are part of the turn: the next one is the poll's timeout.
So are the broker's jobs: while some are left, no turn waits.

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
from qlog.server.net.poller import READABLE, Poller, Waker, new_poller

logger = logging.getLogger("qlog.network")

# A client whose read is obeyed for longer waits for its next turn, and a turn that lasts longer
# ends, whoever filled it: the other clients wait for no longer than some turns.
SHARE_S = 0.005
TURN_S = 0.010
# So much read in one turn is a batch for the disk, and work for some milliseconds.
TURN_BYTES_MAX = 1024 * 1024
# Going back to trio costs some 20 us; a client that answers what it has got does it within 1 ms.
STAY_S = 0.001
# Timers and tasks of trio's (HTTP, signals) wait no longer than this and the turn under way.
AWAY_S = 0.003

STORE_FAILED = "internal error of the storage: the broker stops"


class Participant(Protocol):
    """What a turn goes round: a session, or a listener."""

    queued: bool  # stands in the line of those whose turn it is: kept by `Turns`

    def noticed(self, ready: int) -> None:
        """The poller says so of its socket (READABLE, WRITABLE, GONE): no more than a few calls."""

    def take_turn(self, until_s: float) -> int:
        """Do its share, till about `until_s` by the loop's clock; returns how many octets it read.

        What is left: `Turns.enqueue` again.
        """

    def cut(self) -> None:
        """End now. Called, too, upon an exception in one of its calls, which is our bug."""


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
        """It has ended and its turn is over: give back all it held, and its descriptor."""


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
        self.failed = trio.Event()  # the disk lied: nothing may be confirmed any more
        self.clock_s = clock_s
        self._now_s = broker.now_s()  # in a turn
        self.poller: Poller[Participant] = poller or new_poller()
        self._waker = Waker()
        self.on_burial: Callable[[], None] = _nothing  # there is a descriptor to spare again
        self._line: deque[Participant] = deque()
        self._unsent: list[Member] = []
        self._drained: list[Member] = []
        self._error: Exception | None = None
        self._behind: set[Member] = set()  # not read since the disk is behind
        self._ended: list[Member] = []
        self._store_due_s = self._now_s
        # Whether this tick may have changed something that the queues or the disk have to see: not
        # by heartbeats alone, which 5,000 idle clients send at any time.
        self.touched = False
        self._lively = False  # and one since it came from trio has
        self._busy = False  # in a turn
        self._woken = False  # and woken meanwhile
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
        # Between turns the waker has to be written to; during one it is enough to say so, since
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
        """It has something to do: it gets its turn when those before it have had theirs."""
        if not participant.queued:
            participant.queued = True
            self._line.append(participant)

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
        """So much waits for the disk that publishers must."""
        return self.broker.store.congested

    # -- the turn ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Take turns until cancelled."""
        while True:
            # One scope for many waits: its deadline moves, and ends it only when it is reached.
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
            stay_s = STAY_S  # behind heartbeats alone there is nothing to stay for

    def timeout_s(self) -> float:
        """How long there is nothing to do unless a socket or another thread says so."""
        if self._woken or self._anything_left():
            return 0.0
        due_s = min(self._store_due_s, self.broker.timers.due_s)
        return max(0.0, due_s - self.broker.now_s())

    def _anything_left(self) -> bool:
        left = self._line or self._drained or self._unsent or self._ended
        return bool(left) or self.broker.jobs_left

    def turn(self, timeout_s: float) -> bool:
        """One turn, waiting at most so long for the first socket. False: nothing was to be done."""
        self._busy = False
        timeout_s = min(timeout_s, self.timeout_s()) if timeout_s else 0.0
        ready = self.poller.poll(timeout_s)
        if self._woken:
            self._woken = False  # before `_busy` is set: who wakes the loop now is heard next time
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
            if not (ready or due or self.touched or self._anything_left()):
                return False
            self._go_round()
            self._feed()
            if self.broker.jobs_left:
                self.touched = True
                self._fence(self.broker.work)
            self.end_tick()
            return True
        finally:
            self._busy = False

    def _go_round(self) -> None:
        """Give those in line their turn, each once, as long as the turn's time and size allow."""
        line, clock_s = self._line, self.clock_s
        now_s = clock_s()
        until_s = now_s + TURN_S
        read_bytes = 0
        for _ in range(len(line)):
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
        """Do what is due by now: the store's deadlines, and all others. Whether something was."""
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
            self._bury()
            if self.touched and self._error is None:
                self.touched = False
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
        if self._behind and not store.congested:
            behind, self._behind = self._behind, set()
            for session in behind:
                session.catch_up()

    def _fence(self, call: Callable[[], None]) -> None:
        """The broker fences each queue and client. What comes through all the same is reported."""
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
        """End the tick of something that was done outside of a turn."""
        self.touched = True
        self.end_tick()
        self.wake()  # what it has changed may be due before the poller would look


def _nothing() -> None:
    pass


class _WakerParticipant:
    """The waker's place in the poller: that there is a turn is all it is for."""

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
