"""Messages that wait before they are routed: exchanges of the type `x-delayed-message`.

Promises:

- A message with the header `x-delay` (milliseconds, above 0) waits at the exchange for so long, and
  is then routed, by the bindings that there are by then. All others are routed at once. Its time is
  one of the wall clock: if that is set, the message is early by no more than the step.
- What waits at a durable exchange is as durable as a persistent message in a durable queue,
  whatever its delivery mode, and is confirmed when it is on the disk. At a release the copies are
  on the disk before the message is settled: a crash may leave both, and never neither.
- Messages are released in the order of their times, those of one time in the order in which they
  came. A disk that is behind delays them no sooner than AHEAD_BYTES_MAX have been released
  meanwhile; then what is due waits, and is released in the order in which it came.
- A consumer sees `x-delay` with the sign turned, as RabbitMQ's plugin does it, so that no other
  exchange delays the message again. An expiration counts from the release on.
- However many wait, they take no memory; however many are due at once, nobody waits for them.
- What waits can be listed, cancelled and rescheduled (operations.py).

Unlike with the plugin a delay may be of any length, a message that waits is not returned as
unroutable, and does not go to the alternate exchange before its time. A message that no queue takes
at its release is dropped, as there. Knows no channel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

from qlog.routing.exchange import Exchange
from qlog.routing.table import Removed
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Traits, examine, headers_of, raw_headers, with_headers
from qlog.server.amqp.values import Int64, Timestamp, Value, encode_value
from qlog.server.broker.definitions import DELAYED
from qlog.server.broker.due import DueMessages
from qlog.server.broker.durability import Durability
from qlog.server.broker.features.carbon_copies import keys_of
from qlog.server.broker.hidden_lanes import HiddenLanes, Owner
from qlog.server.broker.jobs import Jobs, Steps
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.post import PostOffice
from qlog.server.broker.queues.backlog import TAKE_BYTES_MAX, Backlog, Taken
from qlog.server.broker.queues.mail import Mail
from qlog.server.broker.queues.targets import Targets
from qlog.server.broker.stats import Stats
from qlog.server.broker.timers import Timers
from qlog.storage.errors import CorruptLog, OutOfDescriptors
from qlog.storage.lanes.lane import Lane
from qlog.storage.store import Store

logger = logging.getLogger("qlog.broker")

DELAY = "x-delay"
_RAW_DELAY = DELAY.encode()
# So many messages are listed in one piece, or released when the disk has caught up: a millisecond if
# all are different.
AT_ONCE = 32
# While the disk is behind, or file descriptors have run out, what is due waits for so long.
PAUSE_S = 0.02
# Publishers wait while the disk is behind. What is due is late then, so that so much is released all
# the same: at 20,000 messages of 1 KiB a second a sync may take 0.4 s longer than others.
AHEAD_BYTES_MAX = 8 << 20
# What a copy takes beside its body, about.
_COPY_BYTES = 200
# A purge settles so many stretches of what waits in one piece.
SWEEP_STRETCHES = 64


class Ahead:
    """How much all exchanges together have released since the disk is behind."""

    def __init__(self, store: Store[Envelope]) -> None:
        self._store = store
        self._bytes = 0

    @property
    def spent(self) -> bool:
        """Nothing more is to be released now."""
        if not self._store.congested:
            self._bytes = 0
            return False
        return self._bytes >= AHEAD_BYTES_MAX

    def add(self, count: int, size: int) -> None:
        """So many messages are released, with so many octets of bodies."""
        if self._store.congested:
            self._bytes += size + count * _COPY_BYTES


class Router(Protocol):
    """What this file needs of its vhost."""

    hidden_lanes: HiddenLanes

    def route(
        self, exchange: str, keys: Sequence[str], envelope: Envelope, *, released: bool = False
    ) -> tuple[Targets, bool]:
        """The queues of a message. `released`: the exchange has had it before."""


class Services(Protocol):
    """What this file needs of what the parts of a broker share."""

    store: Store[Envelope]
    post: PostOffice
    jobs: Jobs
    timers: Timers
    stats: Stats
    dues: DueMessages
    ahead: Ahead
    durability: Durability
    now_s: Callable[[], float]
    now_ms: Callable[[], int]


class DelayedMessage(NamedTuple):
    """A message that waits: `number` names it, `due_ms` and `came_ms` are of the wall clock."""

    number: int
    due_ms: int
    came_ms: int
    envelope: Envelope
    body: bytes


class Released(NamedTuple):
    """A message whose time has come, and where it goes."""

    envelope: Envelope
    traits: Traits
    targets: Targets


def delay_of(envelope: Envelope) -> int:
    """How long a message wants to be delayed, in ms; 0 or less: not at all.

    Numbers and texts that are one count, as in RabbitMQ's plugin.
    """
    value: Value = headers_of(envelope.properties, (DELAY,)).get(DELAY)
    if isinstance(value, str) and value.lstrip("+-").isdecimal():
        try:
            return int(value)
        except ValueError:
            return 0
    if isinstance(value, (bool, Timestamp)) or not isinstance(value, (int, float)):
        return 0
    return int(value)


def released(envelope: Envelope) -> Envelope:
    """The message as it leaves: it says how long it was delayed, with the sign turned."""
    headers = raw_headers(envelope.properties)
    headers[_RAW_DELAY] = encode_value(Int64(-delay_of(envelope)))
    properties = with_headers(envelope.properties, headers, keep_expiration=True)
    return Envelope.pack(
        envelope.exchange, envelope.routing_key, properties, envelope.body_size, envelope.record
    )


class Delayed:
    """What waits at one exchange."""

    takes = True

    def __init__(
        self, exchange: Exchange, lane: Lane[Envelope], router: Router, services: Services
    ) -> None:
        self.exchange = exchange
        self.closed = False
        self._router = router
        self._services = services
        self._store = services.store
        self._backlog = Backlog(lane)
        # Due, and not released yet: the disk was behind. `_catching_up`: a job, or a timer, looks.
        self._overdue = Numbers()
        self._catches_up = False
        self._starved = False  # of file descriptors, when something was released the last time
        self._holds = 0  # deletions that wait for what was released; nothing more is, meanwhile
        services.dues.hold(lane.id, self)

    def __str__(self) -> str:
        return f"delayed messages of exchange '{self.exchange.name}'"

    @property
    def count(self) -> int:
        """How many messages wait."""
        return self._backlog.ready

    @property
    def after_lsn(self) -> int:
        """What was released is on the disk elsewhere when the log is durable up to here."""
        return self._backlog.after_lsn

    # -- what comes ----------------------------------------------------------------------------

    def add(self, mail: Mail, rejected: Collection[int]) -> int:
        """Messages that are to wait; see `Keeper`."""
        if self.closed:
            return 0
        now_ms = mail.now_ms
        known: dict[bytes, int] = {}
        dues_ms = []
        for envelope in mail.envelopes:
            due_ms = known.get(envelope.packed)
            if due_ms is None:
                due_ms = known[envelope.packed] = now_ms + max(delay_of(envelope), 1)
            dues_ms.append(due_ms)
        return self._append(mail.envelopes, mail.bodies, now_ms, dues_ms)

    def passed(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> None:
        """Never called: what comes here is taken."""
        raise AssertionError("a delayed message is not unrouted")

    def forget(self, envelopes: Sequence[Envelope]) -> None:
        """A transaction is rolled back. Its messages have not come yet."""

    def _append(
        self,
        envelopes: Sequence[Envelope],
        bodies: Sequence[bytes],
        now_ms: int,
        dues_ms: Sequence[int],
    ) -> int:
        durable = self.exchange.durable
        lsn = self._store.append(
            [self._backlog.lane],
            envelopes,
            bodies,
            persistent=durable,
            now_ms=now_ms,
            dues_ms=dues_ms,
        )
        self._services.dues.expect(min(dues_ms))
        return lsn if durable else 0

    # -- what goes -----------------------------------------------------------------------------

    def due(self, lane_id: int, qseq: int, count: int) -> int:
        """The time of these messages has come; see `due.Holder`. Raises CorruptLog."""
        if not self._overdue.count and not self._waits:
            return self._release(qseq, count)
        self._put_off(qseq, count)
        return count

    @property
    def _waits(self) -> bool:
        """Whether what is due has to wait."""
        return self._starved or bool(self._holds) or self._services.ahead.spent

    def hold(self) -> None:
        """Release nothing until `let_go`: the exchange is about to be deleted."""
        self._holds += 1

    def let_go(self) -> None:
        """The deletion does not wait any more."""
        self._holds -= 1

    def _put_off(self, qseq: int, count: int) -> None:
        self._overdue.discard(qseq, count)
        self._overdue.add(qseq, count)
        if not self._catches_up:
            self._catches_up = True
            self._look_later()

    def _look_later(self) -> None:
        services = self._services
        services.timers.at(services.now_s() + PAUSE_S, self._look)

    def _look(self) -> None:
        """Go on with what is overdue, if it has not to wait any more."""
        self._starved = False
        if self._waits and not self.closed:
            self._look_later()
        else:
            self._services.jobs.later(self._catching_up())

    def _catching_up(self) -> Steps[None]:
        overdue = self._overdue
        try:
            while overdue.count and not self.closed and not self._waits:
                first, count = overdue.lowest(AT_ONCE)
                overdue.discard(first, count)
                done = self._release(first, count)
                if done < count:
                    overdue.add(first + done, count - done)
                yield
        finally:
            self._catches_up = bool(overdue.count) and not self.closed
            if self._catches_up:
                self._look_later()

    def _release(self, qseq: int, count: int) -> int:
        """Route those that wait among these messages; how many of them are done with.

        Not all of them, but at least one, if they have more than TAKE_BYTES_MAX octets: the others
        wait as before. A message that is damaged stays, and is tried again after the next start.
        Raises CorruptLog if the index is wrong.
        """
        backlog = self._backlog
        bytes_left = TAKE_BYTES_MAX
        done = count
        for first, length, _ in backlog.withdraw_at(qseq, count):
            end, at_once = first + length, length
            while first < end:
                if bytes_left <= 0:
                    self._give_back(first, end)
                    done = min(done, first - qseq)
                    break
                try:
                    taken = backlog.read_out(first, min(end - first, at_once), bytes_max=bytes_left)
                except OutOfDescriptors:
                    self._starved = True
                    self._give_back(first, end)
                    self._put_off(first, end - first)
                    break
                except CorruptLog as error:
                    if at_once == 1:
                        logger.error("cannot release from %s error=%s", self, error)
                        first += 1
                    at_once = 1  # those before the damage can be read
                    continue
                self._hand_over(taken)
                first += len(taken.bodies)
                bytes_left -= sum(taken.sizes)
        return done

    def _give_back(self, first: int, end: int) -> None:
        """These messages, which were about to be released, wait as before."""
        backlog = self._backlog
        backlog.give_back(first, end - first, backlog.lane.bytes_of(first, end - first))

    def _hand_over(self, taken: Taken) -> None:
        """Publish copies, and settle the messages when the copies are on the disk."""
        self._services.ahead.add(len(taken.bodies), sum(taken.sizes))
        routed = self._routed(taken.envelopes)
        at = 0
        while at < len(routed):
            _, traits, targets = routed[at]
            stop = at + 1
            while (
                stop < len(routed)
                and routed[stop].targets is targets
                and routed[stop].traits.persistent == traits.persistent
            ):
                stop += 1
            lsn = 0
            if targets.queues or targets.keepers:
                mail = Mail(
                    traits.persistent,
                    [each.traits for each in routed[at:stop]],
                    [each.envelope for each in routed[at:stop]],
                    taken.bodies[at:stop],
                    self._services.now_ms(),
                )
                lsn = self._services.post.pass_on(targets, mail).lsn
            if targets.unrouted:
                self._services.stats.unrouted += stop - at
            size = sum(taken.sizes[at:stop])
            self._backlog.settle(taken.first_qseq + at, stop - at, size, lsn)
            at = stop

    def _routed(self, envelopes: Sequence[Envelope]) -> list[Released]:
        known: dict[tuple[bytes, int], Released] = {}
        ways: dict[tuple[str, ...], Targets] = {}
        routed = []
        for envelope in envelopes:
            message = known.get((envelope.packed, envelope.body_size))
            if message is None:
                copy = released(envelope)
                keys = tuple(keys_of(copy))
                targets, cacheable = ways.get(keys), True
                if targets is None:
                    targets, cacheable = self._router.route(
                        self.exchange.name, keys, copy, released=True
                    )
                message = Released(copy, examine(copy.properties)[0], targets)
                if cacheable:
                    ways[keys] = targets
                    known[envelope.packed, envelope.body_size] = message
            routed.append(message)
        return routed

    # -- for operators -------------------------------------------------------------------------

    def messages(self, first: int = 0) -> Iterator[DelayedMessage]:
        """What waits, in the order in which it came, from the message of that number on.

        Messages that come or go meanwhile may be there or not. Raises CorruptLog and
        OutOfDescriptors.
        """
        while not self.closed and (taken := self._backlog.peek(first, AT_ONCE)) is not None:
            dues_ms = taken.dues_ms or [0] * len(taken.bodies)
            for number, due_ms, came_ms, envelope, body in zip(
                range(taken.first_qseq, taken.first_qseq + len(taken.bodies)),
                dues_ms,
                taken.times_ms,
                taken.envelopes,
                taken.bodies,
                strict=True,
            ):
                yield DelayedMessage(number, due_ms, came_ms, envelope, body)
            first = taken.first_qseq + len(taken.bodies)

    def cancel(self, number: int) -> bool:
        """A message does not wait any more, and is not released; False: none of that number waits.

        Raises CorruptLog if the index is wrong.
        """
        return bool(self._backlog.remove(number, 1))

    def cancelling_all(self) -> Steps[int]:
        """Nothing of what waits is released; how many messages there were. Raises CorruptLog."""
        count = self._backlog.purge()
        while not self._backlog.sweep(SWEEP_STRETCHES):
            yield
        return count

    def reschedule(self, number: int, due_ms: int) -> tuple[int, int] | None:
        """A message is released at another time (wall clock, ms), and gets another number.

        Returns the number, and the LSN that makes it durable, or 0; None: no message of that number
        waits. Raises CorruptLog and OutOfDescriptors.
        """
        for _, _, size in self._backlog.withdraw_at(number, 1):
            try:
                taken = self._backlog.read_out(number, 1)
            except (CorruptLog, OutOfDescriptors):
                self._backlog.give_back(number, 1, size)
                raise
            now_ms = self._services.now_ms()
            again = self._backlog.lane.next_qseq
            lsn = self._append(taken.envelopes, taken.bodies, now_ms, [max(due_ms, 1)])
            self._backlog.settle(number, 1, size, lsn)
            return again, lsn
        return None

    def close(self) -> None:
        """The exchange is deleted, with what waits."""
        self.closed = True
        self._services.dues.release(self._backlog.lane.id)
        self._backlog.close()


def no_steps() -> Steps[None]:
    """Work that is done."""
    yield from ()


class DelayedMessages:
    """What waits at the exchanges of one vhost."""

    def __init__(self, router: Router, services: Services) -> None:
        self._router = router
        self._services = services
        self._by_exchange: dict[str, Delayed] = {}

    def at(self, exchange: Exchange) -> Delayed:
        """What waits at an exchange of the type."""
        delayed = self._by_exchange.get(exchange.name)
        if delayed is None:
            owner = Owner("exchange", exchange.name, DELAYED)
            lane = self._router.hidden_lanes.lane(owner, durable=exchange.durable)
            delayed = Delayed(exchange, lane, self._router, self._services)
            self._by_exchange[exchange.name] = delayed
        return delayed

    def find(self, name: str) -> Delayed | None:
        """What waits at the exchange of that name, None if nothing ever did."""
        return self._by_exchange.get(name)

    def removal(
        self, find: Callable[[], Removed], before: Callable[[], Steps[None]] = no_steps
    ) -> Steps[Removed]:
        """What goes, found again until what the exchanges among it have released is on the disk.

        A full disk takes a deletion in reserved space, and then a crash would leave such messages
        nowhere. Meanwhile these exchanges release nothing. `before` is what else has to be done
        each time; the caller removes what was found before its next pause.
        """
        held: set[Delayed] = set()
        try:
            while True:
                yield from before()
                removed = find()
                going = [each for each in map(self.find, removed.exchanges) if each is not None]
                after_lsn = max((each.after_lsn for each in going), default=0)
                if after_lsn <= self._services.store.durable_lsn:
                    return removed
                for each in set(going) - held:
                    each.hold()
                    held.add(each)
                yield self._services.durability.sync(after_lsn)
        finally:
            for each in held:
                each.let_go()

    def forget_all(self) -> None:
        """The vhost is deleted."""
        for name in list(self._by_exchange):
            self.forget(name)

    def forget(self, name: str) -> None:
        """The exchange is deleted."""
        delayed = self._by_exchange.pop(name, None)
        if delayed is not None:
            delayed.close()
