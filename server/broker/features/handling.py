"""Messages that an operator looks at, moves, sends back, changes or deletes.

Promises:

- What is looked at is neither delivered nor redelivered, and keeps its place.
- A message that is moved is copied to the end of the other queue, and settled in its own when the
  copy is on the disk: a crash may leave both, never neither. Only ready messages are moved; those
  that a consumer has stay with it. What the other queue rejects stays where it is.
- A redriven dead letter goes straight to the queue that it died in last, with the exchange and the
  routing key that it came with. Its `x-death` stays, for people; it counts for nothing any more.
- A changed message goes to the end of its queue, and the original is settled when it is durable.
- Everything goes in slices, and stops after LOOKED_AT_MAX messages: the caller goes on from where
  it stopped, as often as he wants. A walk ends at what was in the queue when it began.

A queue that deduplicates takes no copies: it would drop them as messages that it has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from qlog.server.amqp.envelope import NO_RECORD, Envelope
from qlog.server.amqp.errors import AMQPError, not_found, precondition_failed
from qlog.server.amqp.properties import examine, headers_of
from qlog.server.broker.jobs import Steps
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.post import PostOffice
from qlog.server.broker.queues.backlog import Backlog, Taken
from qlog.server.broker.queues.mail import Mail
from qlog.server.broker.queues.targets import Targets
from qlog.server.broker.queues.type import QueueType
from qlog.storage.store import Store

# So many are read together: about a millisecond if all are different.
AT_ONCE = 32
# A walk stops after so many, or so many octets of those that were asked for.
LOOKED_AT_MAX = 5000
FOUND_BYTES_MAX = 8 * 1024 * 1024


class Place(NamedTuple):
    """Where a message lies: the lane of its priority, and its number there.

    As text `LANE-QSEQ`, which names one message for ever.
    """

    lane: int
    qseq: int

    def __str__(self) -> str:
        return f"{self.lane}-{self.qseq}"

    @classmethod
    def of(cls, text: str) -> Place:
        """The place that the text names. Raises ValueError."""
        lane, dash, qseq = text.partition("-")
        if not dash or not (lane + qseq).isascii() or not lane.isdigit() or not qseq.isdigit():
            raise ValueError(text)
        return cls(int(lane), int(qseq))


class Match(NamedTuple):
    """Which messages are meant: those that fit everything that is given.

    `key`: the routing key; `headers`: values that headers must have (as text, whatever their
    types); `since_ms`, `until_ms`: when they were published, wall clock; `reason`, `died_in`: of
    the newest death of a dead letter.
    """

    key: str | None = None
    headers: Mapping[str, str] = {}
    since_ms: int = 0
    until_ms: int | None = None
    reason: str | None = None
    died_in: str | None = None

    def fits(self, envelope: Envelope, time_ms: int) -> bool:
        """Whether a message is meant."""
        if self.key is not None and envelope.routing_key != self.key:
            return False
        if time_ms < self.since_ms or (self.until_ms is not None and time_ms > self.until_ms):
            return False
        if not self.headers and self.reason is None and self.died_in is None:
            return True
        headers = headers_of(envelope.properties)
        if any(as_text(headers.get(name)) != text for name, text in self.headers.items()):
            return False
        if self.reason is None and self.died_in is None:
            return True
        death = newest_death(headers)
        return (self.reason is None or death.get("reason") == self.reason) and (
            self.died_in is None or death.get("queue") == self.died_in
        )


ALL = Match()


class Seen(NamedTuple):
    """A message that was looked at. `due_ms`: 0 if it has no such time."""

    place: Place
    envelope: Envelope
    body: bytes
    time_ms: int
    due_ms: int
    redelivered: bool


class Page(NamedTuple):
    """What a walk found, and where it stopped; None: there is nothing behind."""

    found: list[Seen]
    next: Place | None


class Moved(NamedTuple):
    """What a walk did: how many were moved, and how many were refused by their destination.

    `lsn`: all of it lasts when the log is durable up to there. `next`: where it stopped. `busy`: it
    stopped since the disk, or a queue, is behind.
    """

    moved: int
    refused: int
    lsn: int
    next: Place | None
    busy: bool


class Wake(Protocol):
    """See delivery.py."""

    def wake(self, queue: QueueType) -> None:
        """The queue may have something to deliver."""


class Services(Protocol):
    """What is needed of what the parts of a broker share."""

    store: Store[Envelope]
    post: PostOffice
    now_ms: Callable[[], int]

    @property
    def delivery(self) -> Wake: ...


# The copy of a message and where it goes; None: nowhere.
Address = Callable[[Envelope], tuple[Envelope, QueueType] | None]


def as_text(value: Any) -> str | None:
    """A header's value as an operator writes it."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode(errors="replace")
    return str(value)


def newest_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """The death that a dead letter died last; empty if it is none."""
    deaths = headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths else None
    return first if isinstance(first, Mapping) else {}


# -- looking -----------------------------------------------------------------------------------


def peeking(
    backlogs: Sequence[Backlog], start: Place | None, count: int, match: Match
) -> Steps[Page]:
    """Look at up to so many ready messages that fit. Raises CorruptLog, OutOfDescriptors."""
    found: list[Seen] = []
    octets = looked_at = 0
    for backlog, qseq in _from(backlogs, start):
        while (taken := backlog.peek(qseq, AT_ONCE)) is not None:
            for index, envelope in enumerate(taken.envelopes):
                qseq = taken.first_qseq + index
                if len(found) == count or octets > FOUND_BYTES_MAX:
                    return Page(found, Place(backlog.lane.id, qseq))
                if match.fits(envelope, taken.times_ms[index]):
                    found.append(_seen(taken, index))
                    octets += len(taken.bodies[index])
            qseq += 1
            looked_at += len(taken.envelopes)
            if looked_at >= LOOKED_AT_MAX:
                return Page(found, Place(backlog.lane.id, qseq))
            yield
    return Page(found, None)


def _seen(taken: Taken, index: int) -> Seen:
    dues_ms = taken.dues_ms
    return Seen(
        Place(taken.backlog.lane.id, taken.first_qseq + index),
        taken.envelopes[index],
        taken.bodies[index],
        taken.times_ms[index],
        0 if dues_ms is None else dues_ms[index],
        taken.redelivered,
    )


def _from(backlogs: Sequence[Backlog], start: Place | None) -> Iterator[tuple[Backlog, int]]:
    """The backlogs from a place on, each with the qseq to begin at. A lane that is gone: none."""
    passed = start is not None
    for backlog in list(backlogs):
        if start is not None and backlog.lane.id == start.lane:
            passed = False
            yield backlog, start.qseq
        elif not passed:
            yield backlog, 0


def one(backlogs: Sequence[Backlog], place: Place) -> Taken:
    """A ready message. Raises 404, CorruptLog and OutOfDescriptors."""
    for backlog in backlogs:
        if backlog.lane.id == place.lane:
            taken = backlog.peek(place.qseq, 1)
            if taken is not None and taken.first_qseq == place.qseq:
                return taken
    raise no_message(place)


def no_message(place: Place) -> AMQPError:
    """404: it is not ready there."""
    return not_found(f"no ready message {place}")


# -- moving ------------------------------------------------------------------------------------


class Ends(NamedTuple):
    """Where a walk ends: by lane, the first qseq that it does not look at."""

    by_lane: Mapping[int, int]

    @classmethod
    def of(cls, backlogs: Sequence[Backlog]) -> Ends:
        """The ends of the backlogs as they are now."""
        return cls({backlog.lane.id: backlog.lane.next_qseq for backlog in backlogs})


class Mover:
    """Moves messages of one queue, each to where `address` says."""

    def __init__(self, services: Services, queue: QueueType, address: Address) -> None:
        self._services = services
        self._queue = queue
        self._address = address
        self._moved = self._refused = self._lsn = 0
        self._busy = False

    def moving(
        self,
        backlogs: Sequence[Backlog],
        start: Place | None,
        ends: Ends,
        count: int,
        match: Match,
    ) -> Steps[Moved]:
        """Move up to so many messages that fit. Raises CorruptLog and OutOfDescriptors."""
        looked_at = 0
        for backlog, qseq in _from(backlogs, start):
            end = ends.by_lane.get(backlog.lane.id, 0)
            while qseq < end and not self._queue.deleted:
                self._busy = self._busy or self._services.store.congested
                if self._busy or self._moved >= count or looked_at >= LOOKED_AT_MAX:
                    return self._result(Place(backlog.lane.id, qseq))
                wanted = min(AT_ONCE, end - qseq, count - self._moved)
                taken = backlog.peek(qseq, wanted)
                if taken is None or taken.first_qseq >= end:
                    break
                self._move_some(taken, match)
                qseq = taken.first_qseq + len(taken.bodies)
                looked_at += len(taken.bodies)
                yield
        return self._result(None)

    def moving_taken(self, taken: Taken) -> Steps[Moved]:
        """Move these messages, which were just looked at."""
        self._move_some(taken, ALL)
        yield
        return self._result(None)

    def _result(self, place: Place | None) -> Moved:
        return Moved(self._moved, self._refused, self._lsn, place, self._busy)

    def _move_some(self, taken: Taken, match: Match) -> None:
        """Move what fits, those together that go to the same queue and are equally durable."""
        group: list[tuple[int, Envelope]] = []
        kind: tuple[QueueType, bool] | None = None
        for index, envelope in enumerate(taken.envelopes):
            addressed = None
            if match.fits(envelope, taken.times_ms[index]):
                addressed = self._address(envelope)
                self._refused += addressed is None
            if addressed is None:
                self._hand_over(taken, group, kind)
                group, kind = [], None
                continue
            copy, queue = addressed
            mine = queue, examine(copy.properties)[0].persistent
            if kind is not None and mine != kind:
                self._hand_over(taken, group, kind)
                group = []
            kind = mine
            group.append((index, copy))
        self._hand_over(taken, group, kind)

    def _hand_over(
        self, taken: Taken, group: list[tuple[int, Envelope]], kind: tuple[QueueType, bool] | None
    ) -> None:
        """Copy messages with consecutive qseqs, and settle them once the copies are durable."""
        if not group or kind is None:
            return
        queue, persistent = kind
        backlog, first = taken.backlog, taken.first_qseq + group[0][0]
        size = sum(octets for _, _, octets in backlog.withdraw_at(first, len(group)))
        envelopes = [copy for _, copy in group]
        bodies = [taken.bodies[index] for index, _ in group]
        traits = [examine(copy.properties)[0] for copy in envelopes]
        mail = Mail(persistent, traits, envelopes, bodies, self._services.now_ms())
        receipt = self._services.post.pass_on(Targets((queue,)), mail)
        self._busy = self._busy or receipt.eased is not None
        self._lsn = max(self._lsn, receipt.lsn)
        back = Numbers()
        for number in receipt.rejected:
            back.add(first + number, 1)
        back_size = sum(taken.sizes[group[number][0]] for number in receipt.rejected)
        for start, length, octets in _others(taken, group, set(receipt.rejected)):
            backlog.settle(start, length, octets, receipt.lsn)
            size -= octets
        assert size == back_size
        if back.count:
            backlog.give_all_back(back, back_size)
            self._services.delivery.wake(self._queue)
        self._refused += len(receipt.rejected)
        self._moved += len(group) - len(receipt.rejected)


def _others(
    taken: Taken, group: list[tuple[int, Envelope]], without: set[int]
) -> Iterator[tuple[int, int, int]]:
    """Stretches of the group without some of it: first qseq, count, octets."""
    number = 0
    while number < len(group):
        if number in without:
            number += 1
            continue
        begin = number
        while number < len(group) and number not in without:
            number += 1
        indices = [index for index, _ in group[begin:number]]
        octets = sum(taken.sizes[index] for index in indices)
        yield taken.first_qseq + indices[0], len(indices), octets


def to_queue(queue: QueueType) -> Address:
    """All to one queue, as they are. Raises 406 if that queue deduplicates."""
    assert_takes_copies(queue)
    return lambda envelope: (envelope, queue)


def back_to_origin(queues: Mapping[str, QueueType]) -> Address:
    """Each dead letter to the queue that it died in last; what is none stays."""

    def address(envelope: Envelope) -> tuple[Envelope, QueueType] | None:
        death = newest_death(envelope.headers())
        queue = queues.get(str(death.get("queue", "")))
        if queue is None or queue.deleted or queue.owner is not None:
            return None
        if queue.effective.deduplicates:
            return None
        return redriven(envelope, death), queue

    return address


def redriven(envelope: Envelope, death: Mapping[str, Any]) -> Envelope:
    """A dead letter as it was published first, but for its headers."""
    keys = death.get("routing-keys")
    key = keys[0] if isinstance(keys, list) and keys else envelope.routing_key
    exchange = death.get("exchange", envelope.exchange)
    return Envelope.pack(
        str(exchange), str(key), envelope.properties, envelope.body_size, NO_RECORD
    )


def assert_takes_copies(queue: QueueType) -> None:
    """Raises 406 for a queue that would drop copies as messages that it has seen."""
    if queue.effective.deduplicates:
        raise precondition_failed(f"{queue} deduplicates: it would drop copies of what it has seen")
