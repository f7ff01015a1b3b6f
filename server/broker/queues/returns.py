"""What came back to a quorum queue: in which order it is delivered again, and how often it came back.

Promises what RabbitMQ 4.0 does (rabbit_fifo), which was asked:

- What came back is delivered before all else, in the order in which it came back: a message that is
  returned again and again keeps no other one from its turn. Without a delivery limit, what a client
  gives back itself is delivered behind all that is there.
- Each return counts, whoever caused it. A message that came back says how often in the header
  `x-delivery-count`. The stored message is as it was published, and so is its dead letter.
- A message that came back more often than the delivery limit allows is not delivered again.

The counts are kept by the lane (`Lane.note_attempts`), and last as settlements do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import groupby

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import raw_headers, with_headers
from qlog.server.amqp.values import Int64, encode_value
from qlog.server.broker.numbers import Numbers
from qlog.storage.lanes.lane import Lane

DELIVERY_COUNT = b"x-delivery-count"
# So many numbers are looked through at once for those that are still there.
WINDOW = 4096


class Returns:
    """Stretches of messages in the order in which they came back.

    A stretch is some 130 octets: less than each of its deliveries took while it was unacknowledged.
    Messages may leave otherwise than by `advance`: who asks says which of them are still there.
    `turn` numbers what came back to the backlogs of a queue that has several (`Turns`).
    """

    __slots__ = ("_stretches",)

    def __init__(self) -> None:
        self._stretches: deque[tuple[int, int, int]] = deque()  # first, count, turn

    def add(self, first: int, count: int, turn: int = 0) -> None:
        """So many messages from `first` on came back, and are the last ones."""
        stretches = self._stretches
        if stretches:
            before, length, its_turn = stretches[-1]
            if before + length == first and its_turn == turn:
                del stretches[-1]
                first, count = before, length + count
        stretches.append((first, count, turn))

    def next(self, present: Numbers, count_max: int) -> tuple[int, int] | None:
        """The first message that is present, and how many follow it, at most `count_max`.

        None: none of all is present.
        """
        stretches = self._stretches
        while stretches:
            first, count, _ = stretches[0]
            window = min(count, WINDOW)
            found = next(present.within(first, first + window), None)
            if found is not None:
                return found[0], min(found[1], count_max)
            self.advance(first + window)
        return None

    def advance(self, to: int) -> None:
        """All messages before `to` are gone from the first stretch."""
        first, count, turn = self._stretches.popleft()
        if first + count > to:
            self._stretches.appendleft((to, first + count - to, turn))

    def turn(self, present: Numbers) -> int | None:
        """The turn of the first message that is present; None: none of all is."""
        return None if self.next(present, 1) is None else self._stretches[0][2]

    def join(self, later: Returns, turn: int = 0) -> None:
        """All of these came back after all of those that are here."""
        self._stretches.extend((first, count, turn) for first, count, _ in later._stretches)

    def clear(self) -> None:
        """Forget all."""
        self._stretches.clear()


class Turns:
    """Numbers what comes back to several backlogs, so that all know what came back before what."""

    __slots__ = ("_last", "_number")

    def __init__(self) -> None:
        self._number = 0
        self._last: object = None

    def of(self, backlog: object) -> int:
        """The turn of what comes back to this backlog now; the same until another one has some."""
        if backlog is not self._last:
            self._last = backlog
            self._number += 1
        return self._number


def note_return(
    lane: Lane[Envelope], first: int, count: int, limit: int | None
) -> Iterator[tuple[int, int]]:
    """These messages, which are out, come back once more.

    Yields the stretches (first, count) of those that have come back more often than `limit`.
    """
    for attempts, group in groupby(lane.attempts_of(first, count)):
        length = sum(1 for _ in group)
        if limit is not None and attempts >= limit:
            yield first, length
        else:
            lane.note_attempts(first, length, attempts + 1)
        first += length


def counted(envelope: Envelope, count: int) -> Envelope:
    """The envelope of a message that came back so often, as a consumer gets it."""
    headers = raw_headers(envelope.properties)
    headers[DELIVERY_COUNT] = encode_value(Int64(count))
    properties = with_headers(envelope.properties, headers, keep_expiration=True)
    return Envelope.pack(envelope.exchange, envelope.routing_key, properties, envelope.body_size)
