"""All sockets of a broker, and the rhythm that binds them to the disk.

A tick ends with `end_tick`: deliver, take what the disk has finished and confirm it, hand over what
came meanwhile, send. When nothing else happens, the disk's answer makes a tick of its own. Timers
live here too.
"""

import errno
import logging
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

import trio

from qlog.server.broker.broker import Broker
from qlog.server.net.session import Session

logger = logging.getLogger("qlog.network")

CHECK_INTERVAL_S = 1.0
# The broker looks for overdue deliveries this often; RabbitMQ does it once a minute.
CONSUMER_CHECK_INTERVAL_S = 60.0
# File descriptors for all else than clients. RabbitMQ sets as many aside, and like it the broker
# does not accept more clients than the others are enough for.
DESCRIPTORS_RESERVED = 100
# Of a client that cannot be accepted these say that the machine has no room for it. All else that
# Linux says there is the network's trouble with that one peer.
SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Network:
    """The listeners and sessions of one broker.

    Arguments: `broker`, whose store's `notify` must lead to `end_tick`; `check` is called once a
    second (resource alarms are the composition root's to judge).
    """

    def __init__(self, broker: Broker, check: Callable[[], None]) -> None:
        self.broker = broker
        self._unsent: list[Session] = []
        self.held_back: set[Session] = set()  # not read, for whatever reason
        self._check = check
        self._sessions: set[Session] = set()
        self._sessions_max = sessions_max()
        self._session_ended = trio.lowlevel.ParkingLot()
        self._crowded = False  # clients have to wait until others leave
        self._turned_away = False  # and one did since the last check
        self._wake_timer = trio.Event()
        self._drained: list[Session] = []
        self._wake_feeder = trio.Event()
        self.failed = trio.Event()  # the disk lied: nothing may be confirmed any more

    @property
    def congested(self) -> bool:
        """So much waits for the disk that publishers must."""
        return self.broker.store.congested

    # -- the tick ----------------------------------------------------------------------------

    def end_tick(self) -> None:
        """Deliver from the queues this tick touched, hand its messages to the disk, send."""
        self.broker.pump()
        self._exchange_with_disk()
        self._flush()
        if not self._wake_timer.is_set():
            self._wake_timer.set()

    def _exchange_with_disk(self) -> None:
        """Take what the disk has finished, and hand over what came meanwhile.

        At the end of each tick, not only when the commit thread has woken the loop: a batch's wait
        for the one before it is then not longer than a tick.
        """
        store = self.broker.store
        store.advance()
        if store.failure is not None:
            self.failed.set()
            return
        self.broker.progress()
        self.broker.pump()
        store.commit()  # what held-back events brought, if a tx.commit let them go on
        if self.held_back and not store.congested:
            self.resume_readers()

    def resume_readers(self) -> None:
        """Let those go on who were held back and need not be any more."""
        for session in [session for session in self.held_back if not session.must_wait]:
            session.resume()

    def _flush(self) -> None:
        while self._unsent:
            unsent, self._unsent = self._unsent, []
            for session in unsent:
                session.flush()

    def mark(self, session: Session) -> None:
        """The session is to be flushed when the tick ends."""
        self._unsent.append(session)

    def hold_back(self, session: Session, held: bool) -> None:
        """The session is not read any more until it is told to `resume`; or it is again."""
        if held:
            self.held_back.add(session)
        else:
            self.held_back.discard(session)

    def drained(self, session: Session) -> None:
        """A full outbox has room again: its queues are asked, after all others had their turn."""
        self._drained.append(session)
        self._wake_feeder.set()

    # -- tasks -------------------------------------------------------------------------------

    async def run_timers(self) -> None:
        """The store's deadlines: while there is something to do, and not otherwise."""
        store, now_s = self.broker.store, self.broker.now_s
        while True:
            delay_s = store.tick(now_s())
            self._wake_timer = trio.Event()
            with trio.move_on_after(delay_s):
                await self._wake_timer.wait()
                # Woken by traffic: acks are due soon, but not at once.
                await trio.sleep(min(delay_s, store.settings.ack_flush_s))

    async def run_feeder(self) -> None:
        """Feed clients that drained: one round a turn of the loop, so that nobody is starved."""
        while True:
            await self._wake_feeder.wait()
            self._wake_feeder = trio.Event()
            drained, self._drained = self._drained, []
            for session in drained:
                session.client.drained()
            self.end_tick()

    async def run_checks(self) -> None:
        """Heartbeats, handshake deadlines, resource alarms, overdue consumers."""
        next_consumer_check_s = 0.0
        interval_s = min(CONSUMER_CHECK_INTERVAL_S, max(1.0, self.broker.consumer_timeout_s / 4))
        while True:
            await trio.sleep(CHECK_INTERVAL_S)
            now_s = self.broker.now_s()
            self._check()
            self.broker.try_again()
            has_room = len(self._sessions) < self._sessions_max
            if self._crowded and has_room and not self._turned_away:
                self._crowded = False
                logger.warning("file descriptor limit alarm cleared: new connections are accepted")
            self._turned_away = False
            if now_s >= next_consumer_check_s:
                next_consumer_check_s = now_s + interval_s
                self.broker.check_consumers()
            for session in list(self._sessions):
                session.check(now_s)
            self.end_tick()
            if self.held_back and not self.broker.blocked_reason:
                self.resume_readers()

    async def serve(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        """Accept clients until cancelled; their sessions live in `nursery` until they are `cut`."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            if len(self._sessions) >= self._sessions_max:
                await self._wait_for_room(f"{len(self._sessions)} connections")
                continue
            try:
                sock, address = listener.accept()
            except OSError as error:
                if error.errno in SHORTAGES:
                    await self._wait_for_room(str(error))
                continue  # else the peer has thought better of it, or cannot be reached any more
            sock.setblocking(False)
            with suppress(OSError):  # some systems refuse when the peer has gone already
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            host, port = address[:2]
            session = Session(self, sock, f"{host}:{port}", loopback=_is_loopback(host))
            self._sessions.add(session)
            nursery.start_soon(self._run_session, session)

    async def _wait_for_room(self, why: str) -> None:
        """Out of file descriptors: those who are connected go on, the next are in the backlog."""
        if not self._crowded:
            self._crowded = True
            logger.warning(
                "file descriptor limit alarm set: new connections wait for others to close; "
                "raise `ulimit -n` reason=%s",
                why,
            )
        self._turned_away = True
        with trio.move_on_after(CHECK_INTERVAL_S / 2):
            await self._session_ended.park()

    async def _run_session(self, session: Session) -> None:
        try:
            await session.run()
        except Exception:
            # Our bug: this client pays for it, the others do not.
            logger.exception("internal error peer=%s", session.client.peer)
        finally:
            self._sessions.discard(session)
            self.held_back.discard(session)
            self._session_ended.unpark_all()

    async def drain(self, seconds: float) -> None:
        """Wait until every client has gone, but not longer."""
        with trio.move_on_after(seconds):
            while self._sessions:
                await trio.sleep(0.01)

    def cut(self) -> None:
        """Close the sockets of those who are still there."""
        for session in self._sessions:
            session.cut()


def sessions_max() -> int:
    """How many clients there can be, by the limit on file descriptors."""
    descriptors_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors_max == resource.RLIM_INFINITY:
        return sys.maxsize
    return descriptors_max - min(DESCRIPTORS_RESERVED, descriptors_max // 2)


def _is_loopback(host: str) -> bool:
    return host == "::1" or host.startswith(("127.", "::ffff:127."))
