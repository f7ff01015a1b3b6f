"""Messages that come twice: exchanges and queues that pass each message once.

A message is known by the header `x-deduplication-header`; a message without it always passes.

Promises:

- An exchange of the type `x-message-deduplication`, or one with the argument of that name, routes
  no message whose header it has seen among the last `x-cache-size` ones, nor, if `x-cache-ttl` is
  given, within that time (ms; the header `x-cache-ttl` of a message counts instead). The message
  counts as unroutable. So it is with a queue that has one of these two arguments beside
  `x-message-deduplication`.
- A queue with `x-message-deduplication` alone takes no message whose header one has that is in the
  queue: ready, or unacknowledged.
- Policies: `x-cache-size` and `x-cache-ttl` count for exchanges instead of the arguments of these
  names, and `x-message-deduplication` for queues, also for what is there already.
- What a durable exchange or queue has seen is as durable as the message that it was seen with, and
  never more: nothing is remembered of a message that a crash, a rollback or a queue at its limit
  has taken back. Its publisher may send it again. (RabbitMQ's plugin remembers it.)
- All of them together remember ENTRIES_MAX messages; beyond that the largest one forgets its
  oldest. What an entry takes does not depend on the header's size.

After a start the exchanges know what they have seen from a hidden lane, which has a small record
for each entry, written behind the message. Queues without a window read the messages that are in
them, which a start waits for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from xxhash import xxh3_128_digest

from qlog.routing.deduplication import HEADER, SIZE, TTL, Window, window_of
from qlog.routing.exchange import Exchange
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Properties, encode_properties, headers_of, text_of
from qlog.server.amqp.values import Int64, Table, Timestamp, Value, encode_value
from qlog.server.broker.definitions import WINDOW
from qlog.server.broker.hidden_lanes import HiddenLanes, Owner
from qlog.server.broker.jobs import Steps
from qlog.server.broker.queues.mail import Mail, Receipt
from qlog.server.broker.queues.type import Declaration
from qlog.storage.errors import StorageError
from qlog.storage.lanes.lane import Lane
from qlog.storage.store import Store

logger = logging.getLogger("qlog.broker")

# What all windows and queues of the process remember: some 250 octets each.
ENTRIES_MAX = 1_000_000
# So many entries are forgotten at once when there are too many: about a millisecond.
FORGOTTEN_AT_ONCE = 1000
# So many are looked at with each message that comes, to forget those that are over.
LOOKS = 2
# So many messages of a queue are looked at in one piece: some tenths of a millisecond.
RECALLED_AT_ONCE = 64
_READ_COUNT, _READ_BYTES = 1024, 1024 * 1024


class Remembering(Protocol):
    """Who has entries in the memory of the process."""

    def __len__(self) -> int: ...

    def forget_oldest(self, count: int) -> None:
        """Forget so many entries, or all."""


class Memory:
    """Bounds what all who remember have together."""

    def __init__(self) -> None:
        self.count = 0
        self.holders: dict[Remembering, None] = {}

    def remember(self) -> None:
        """One more entry. If there are too many now, the largest holder forgets some."""
        self.count += 1
        if self.count > ENTRIES_MAX:
            max(self.holders, key=len).forget_oldest(FORGOTTEN_AT_ONCE)


class Services(Protocol):
    """What this file needs of what the parts of a broker share."""

    store: Store[Envelope]
    now_ms: Callable[[], int]
    seen: Memory


class Entry(NamedTuple):
    """A message that was seen: when that is over (wall clock, ms; None: never), and its record.

    `qseq` is the place of the record in the hidden lane, -1 if there is none.
    """

    over_ms: int | None
    qseq: int


def key_of(envelope: Envelope, header: str = HEADER) -> bytes | None:
    """What tells the message from others: a digest of the header; None if it has none.

    Integers are equal whatever their width, as in RabbitMQ.
    """
    headers = headers_of(envelope.properties, (header,))
    return _digest(headers[header]) if header in headers else None


def _digest(value: Value) -> bytes:
    if isinstance(value, int) and not isinstance(value, (bool, Timestamp)):
        value = Int64(value)
    return xxh3_128_digest(encode_value(value))


class SeenWindow:
    """What one exchange, or one queue, has seen lately: a `Keeper` of the messages that pass it.

    Arguments: `lane` gives the lane of the records; None: nothing has to last.
    """

    takes = False

    def __init__(
        self, window: Window, lane: Callable[[], Lane[Envelope]] | None, services: Services
    ) -> None:
        self.window = window
        self._lane = lane
        self._store = services.store
        self._now_ms = services.now_ms
        self._memory = services.seen
        self._entries: dict[bytes, Entry] = {}  # the oldest first
        self._memory.holders[self] = None

    def __len__(self) -> int:
        return len(self._entries)

    def passes(self, envelope: Envelope) -> bool | None:
        """Whether a message is new, and noted now; None if it does not say what it is known by."""
        key = key_of(envelope, self.window.header)
        if key is None:
            return None
        now_ms = self._now_ms()
        entry = self._entries.get(key)
        if entry is not None:
            if entry.over_ms is None or entry.over_ms > now_ms:
                return False
            self._drop(key)
        ttl_ms = self._ttl_of(envelope)
        self._insert(key, Entry(None if ttl_ms is None else now_ms + ttl_ms, -1))
        for oldest in list(_first(self._entries, LOOKS)):
            over_ms = self._entries[oldest].over_ms
            if over_ms is not None and over_ms <= now_ms:
                self._drop(oldest)
        return True

    def _ttl_of(self, envelope: Envelope) -> int | None:
        ttl_ms = headers_of(envelope.properties, (TTL,)).get(TTL)
        if isinstance(ttl_ms, int) and not isinstance(ttl_ms, bool) and ttl_ms >= 0:
            return ttl_ms
        return self.window.ttl_ms

    def _insert(self, key: bytes, entry: Entry) -> None:
        excess = len(self._entries) - self.window.size + 1
        if excess > 0:  # more than one after a policy, and then as many as take little time
            self.forget_oldest(min(excess, FORGOTTEN_AT_ONCE))
        self._entries[key] = entry
        self._memory.remember()

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._memory.count -= 1
        if entry.qseq >= 0 and self._lane is not None:
            self._lane().settle(entry.qseq, 1, 0)

    def forget_oldest(self, count: int) -> None:
        """Forget so many entries, or all."""
        for key in list(_first(self._entries, count)):
            self._drop(key)

    def add(self, mail: Mail, rejected: Collection[int]) -> int:
        """Messages have passed, and were given to their queues; see `Keeper`."""
        keys: list[bytes] = []
        records: list[Envelope] = []
        for index, envelope in enumerate(mail.envelopes):
            key = key_of(envelope, self.window.header)
            if key is None:
                continue
            if index in rejected:
                self._drop(key)
            elif mail.persistent and self._lane is not None and key in self._entries:
                keys.append(key)
                records.append(_record(key, self._entries[key].over_ms, mail.now_ms))
        if not keys or self._lane is None:
            return 0
        lane = self._lane()
        first = lane.next_qseq
        lsn = self._store.append(
            [lane], records, [b""] * len(keys), persistent=True, now_ms=mail.now_ms
        )
        for qseq, key in enumerate(keys, first):
            before = self._entries[key]
            if before.qseq >= 0:  # it came by two ways
                lane.settle(before.qseq, 1, 0)
            self._entries[key] = before._replace(qseq=qseq)
        return lsn

    def publish(self, mail: Mail, admit: Callable[[Mail], Receipt]) -> Receipt:
        """Have a queue take those that are new; see `Once`."""
        new = [
            at for at, envelope in enumerate(mail.envelopes) if self.passes(envelope) is not False
        ]
        if not new:
            return Receipt(0)
        chosen = mail.chosen(new)
        receipt = admit(chosen)
        lsn = self.add(chosen, receipt.rejected)
        return Receipt(max(lsn, receipt.lsn), [new[at] for at in receipt.rejected], receipt.eased)

    def passed(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> None:
        """Messages have passed that no queue takes. What was seen of them does not last."""

    def forget(self, envelopes: Sequence[Envelope]) -> None:
        """A transaction is rolled back: its messages may come again."""
        for envelope in envelopes:
            key = key_of(envelope, self.window.header)
            if key is not None:
                self._drop(key)

    def recalling(self) -> Steps[None]:
        """Nothing: the records say what was seen."""
        yield from ()

    def recall(self) -> None:
        """After a start: what the records say. Raises nothing: what is damaged is not known."""
        if self._lane is None:
            return
        lane, now_ms = self._lane(), self._now_ms()
        for qseq, time_ms, envelope in _alive(lane):
            key = bytes.fromhex(envelope.routing_key)
            ttl = text_of(envelope.properties, "expiration")
            over_ms = None if ttl is None else time_ms + int(ttl)
            self._drop(key)
            if over_ms is not None and over_ms <= now_ms:
                lane.settle(qseq, 1, 0)
            else:
                self._insert(key, Entry(over_ms, qseq))

    def close(self) -> None:
        """Its exchange or queue is deleted, and so is the lane."""
        self._memory.count -= len(self._entries)
        self._entries.clear()
        del self._memory.holders[self]


def _record(key: bytes, over_ms: int | None, now_ms: int) -> Envelope:
    """What the hidden lane has of an entry: its digest, and for how long it counts."""
    ttl = None if over_ms is None else str(max(over_ms - now_ms, 0))
    return Envelope.pack("", key.hex(), encode_properties(Properties(expiration=ttl)), 0)


def _first(entries: Iterable[bytes], count: int) -> Iterator[bytes]:
    return (key for key, _ in zip(entries, range(count), strict=False))


def _alive(lane: Lane[Envelope]) -> Iterator[tuple[int, int, Envelope]]:
    """The unsettled messages of a lane: place, time, envelope. What is damaged ends it, logged."""
    at = 0
    try:
        while not lane.dropped:
            slice_ = lane.read(at, _READ_COUNT, _READ_BYTES, passing=False)
            if slice_ is None:
                return
            first = slice_.first_qseq
            yield from zip(
                range(first, first + len(slice_.metas)), slice_.times_ms, slice_.metas, strict=True
            )
            at = first + len(slice_.metas)
    except StorageError as error:
        logger.error("cannot read what was seen before lane=%d error=%s", lane.id, error)


class Once(Protocol):
    """Keeps messages from coming into a queue twice."""

    def publish(self, mail: Mail, admit: Callable[[Mail], Receipt]) -> Receipt:
        """Have the queue take those that are new. What is left out is not rejected.

        `admit` takes messages as far as the limits of the queue allow.
        """

    def recalling(self) -> Steps[None]:
        """Look at the messages that are in the queue."""

    def close(self) -> None:
        """The queue is deleted, or has another one."""


class Present:
    """The messages with a header that are in a queue: none of them comes in twice; see `Once`.

    `lanes` gives those of the queue.
    """

    def __init__(self, lanes: Callable[[], Collection[Lane[Envelope]]], memory: Memory) -> None:
        self._memory = memory
        self._lanes = lanes
        self._entries: dict[bytes, tuple[Lane[Envelope], int]] = {}
        memory.holders[self] = None

    def recalling(self) -> Steps[None]:
        """Note the messages that are in the queue; what has come meanwhile is noted already."""
        for lane in self._lanes():
            for at, (qseq, _, envelope) in enumerate(_alive(lane)):
                if self not in self._memory.holders:
                    return
                key = key_of(envelope)
                if key is not None and not self._is_there(key) and _unsettled(lane, qseq):
                    self._note(key, lane, qseq)
                if at % RECALLED_AT_ONCE == RECALLED_AT_ONCE - 1:
                    yield

    def __len__(self) -> int:
        return len(self._entries)

    def _note(self, key: bytes, lane: Lane[Envelope], qseq: int) -> None:
        if self._entries.pop(key, None) is not None:
            self._memory.count -= 1
        self._entries[key] = lane, qseq
        self._memory.remember()

    def _is_there(self, key: bytes) -> bool:
        place = self._entries.get(key)
        return place is not None and _unsettled(*place)

    def publish(self, mail: Mail, admit: Callable[[Mail], Receipt]) -> Receipt:
        """Have the queue take those that are not there; see `Once`."""
        lsn, lanes = 0, self._lanes
        rejected: list[int] = []
        eased = None
        for index, envelope in enumerate(mail.envelopes):
            key = key_of(envelope)
            if key is not None and self._is_there(key):
                continue
            ends = {lane: lane.next_qseq for lane in lanes()}
            receipt = admit(mail.part(index, index + 1))
            lsn = max(lsn, receipt.lsn)
            eased = eased or receipt.eased
            if receipt.rejected:
                rejected.append(index)
            elif key is not None:
                for lane in lanes():
                    if lane.next_qseq > ends.get(lane, 0):
                        self._note(key, lane, lane.next_qseq - 1)
                self._look_at_oldest()
        return Receipt(lsn, rejected, eased)

    def _look_at_oldest(self) -> None:
        """Forget messages that are gone; two for each that comes, so that few such ones are left."""
        for key in list(_first(self._entries, LOOKS)):
            place = self._entries.pop(key)
            if _unsettled(*place):
                self._entries[key] = place
            else:
                self._memory.count -= 1

    def forget_oldest(self, count: int) -> None:
        """Forget so many entries, or all: their messages may come twice."""
        for key in list(_first(self._entries, count)):
            del self._entries[key]
            self._memory.count -= 1

    def close(self) -> None:
        """The queue is deleted."""
        self._memory.count -= len(self._entries)
        self._entries.clear()
        self._memory.holders.pop(self, None)


def _unsettled(lane: Lane[Envelope], qseq: int) -> bool:
    return not lane.dropped and bool(lane.settled.unsettled(qseq, 1))


def queue_window(arguments: Table) -> Window | None:
    """The window of a queue that is told to pass messages once; None if it has none.

    Arguments that an exchange would be refused for count as not given: RabbitMQ checks none of
    them in queues.
    """
    given = {key: value for key, value in arguments.items() if key in ("x-cache-size", TTL, HEADER)}
    for key in ("x-cache-size", TTL):
        value = given.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            given.pop(key, None)
    if not given.keys() & {"x-cache-size", TTL}:
        return None
    return window_of("", {"x-message-deduplication": True, **given})


class Repeated:
    """The `Keeper` of messages that an exchange has seen before: they go nowhere."""

    takes = False

    def add(self, mail: Mail, rejected: Collection[int]) -> int:
        """Nothing is kept of them."""
        return 0

    def passed(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> None:
        """Nothing is kept of them."""

    def forget(self, envelopes: Sequence[Envelope]) -> None:
        """What they repeat has been seen all the same."""


REPEATED = Repeated()


class SeenWindows:
    """The windows of one vhost."""

    def __init__(self, hidden_lanes: HiddenLanes, services: Services) -> None:
        self._hidden_lanes = hidden_lanes
        self._services = services
        self._windows: dict[Owner, SeenWindow] = {}
        self._policies: dict[str, Mapping[str, Any]] = {}  # by exchange, where there is one

    def of_exchange(self, exchange: Exchange) -> SeenWindow | None:
        """What an exchange has seen; None if it passes duplicates."""
        owner = Owner("exchange", exchange.name, WINDOW)
        known = self._windows.get(owner)
        if known is None and (window := self._window_of(exchange)) is not None:
            known = self._windows[owner] = self._make(owner, window, exchange.durable)
        return known

    def _window_of(self, exchange: Exchange) -> Window | None:
        window = window_of(exchange.type, exchange.arguments)
        policy = self._policies.get(exchange.name)
        if window is None or policy is None:
            return window
        return window._replace(
            size=policy.get(SIZE, window.size), ttl_ms=policy.get(TTL, window.ttl_ms)
        )

    def go_by(self, exchange: Exchange, policy: Mapping[str, Any]) -> None:
        """What policies say of an exchange counts from now on."""
        if policy.keys() & {SIZE, TTL}:
            self._policies[exchange.name] = policy
        elif self._policies.pop(exchange.name, None) is None:
            return
        known = self._windows.get(Owner("exchange", exchange.name, WINDOW))
        window = self._window_of(exchange)
        if known is not None and window is not None:
            known.window = window

    def of_queue(
        self, declared: Declaration, lanes: Callable[[], Collection[Lane[Envelope]]]
    ) -> Once:
        """What keeps messages from coming into a queue twice."""
        window = queue_window(declared.arguments.table)
        if window is None:
            return Present(lanes, self._services.seen)
        return self._make(Owner("queue", declared.name, WINDOW), window, declared.durable)

    def _make(self, owner: Owner, window: Window, durable: bool) -> SeenWindow:
        def lane() -> Lane[Envelope]:
            return self._hidden_lanes.lane(owner, durable=True)

        made = SeenWindow(window, lane if durable else None, self._services)
        if owner in self._hidden_lanes:
            made.recall()
        return made

    def forget_exchange(self, name: str) -> None:
        """The exchange is deleted."""
        self._policies.pop(name, None)
        window = self._windows.pop(Owner("exchange", name, WINDOW), None)
        if window is not None:
            window.close()
