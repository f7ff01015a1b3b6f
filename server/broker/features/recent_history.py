"""What exchanges of the type `x-recent-history` keep, and give to what is bound to them.

Promises:

- A queue that is bound gets the newest messages that the exchange has seen, the oldest of them
  first, before all that are published later: `x-recent-history-length` messages (20 if that is not
  given), fewer if they take more than BYTES_MAX. An exchange that is bound gets them, too, and
  passes each on as it would a published one.
- Messages whose header `x-recent-history-no-store` is true are not kept, nor are those of a
  transaction that is rolled back.
- What is kept is in memory, as in RabbitMQ's plugin (with Mnesia): a restart forgets it.
- However much is kept, nobody else waits for a bind.

Knows no exchange, and no binding: the vhost says what passes which exchange, and when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Traits, examine, headers_of
from qlog.server.broker.features.carbon_copies import keys_of
from qlog.server.broker.jobs import Steps
from qlog.server.broker.post import PostOffice
from qlog.server.broker.queues.mail import Mail
from qlog.server.broker.queues.targets import Targets

NO_STORE = "x-recent-history-no-store"
# The memory that the history of one exchange may take; its newest message is kept in any case.
BYTES_MAX = 64 * 1024 * 1024
# What a message takes beside its body and what surrounds it (measured: about 400 octets).
_MESSAGE_BYTES = 400
# So many messages are given in one step of a job: some tenths of a millisecond.
AT_ONCE = 100

Kept = tuple[Envelope, bytes]
# The queues of a message with these routing keys. Raises 404 if there is no way any more.
TargetsOf = Callable[[Envelope, Sequence[str]], Targets]


class History:
    """The newest messages of one exchange: `length` of them."""

    takes = False

    def __init__(self, length: int) -> None:
        self.length = length
        self.seen = 0  # how many were ever kept
        self._kept: deque[Kept] = deque()
        self._bytes = 0

    def add(self, mail: Mail, rejected: Collection[int]) -> int:
        """Messages have passed the exchange. (What a queue turned away has, too.)"""
        self.passed(mail.envelopes, mail.bodies)
        return 0

    def forget(self, envelopes: Sequence[Envelope]) -> None:
        """A transaction is rolled back: its messages have not passed yet."""

    def passed(self, envelopes: Sequence[Envelope], bodies: Sequence[bytes]) -> None:
        """Messages have passed the exchange."""
        kept = self._kept
        for envelope, body in zip(envelopes, bodies, strict=True):
            if headers_of(envelope.properties, (NO_STORE,)).get(NO_STORE) is True:
                continue
            kept.append((envelope, body))
            self.seen += 1
            self._bytes += _bytes_of(envelope, body)
            while len(kept) > self.length or (self._bytes > BYTES_MAX and len(kept) > 1):
                self._bytes -= _bytes_of(*kept.popleft())

    def since(self, seen: int) -> list[Kept]:
        """What was kept after `seen` messages had been, and still is."""
        new = min(self.seen - seen, len(self._kept))
        if not new:
            return []
        newest_first = reversed(self._kept)
        return [kept for kept, _ in zip(newest_first, range(new), strict=False)][::-1]


def _bytes_of(envelope: Envelope, body: bytes) -> int:
    return _MESSAGE_BYTES + len(body) + 2 * len(envelope.packed)


def giving(
    history: History,
    post: PostOffice,
    targets_of: TargetsOf,
    bind: Callable[[], None],
) -> Steps[None]:
    """Give the history to what is about to be bound, then bind it.

    `targets_of` says where a message goes by the new binding alone. Both raise 404 if an end of the
    binding is gone. `bind` is called when what is left can be given at once: from then on messages
    take the new way by themselves. A publisher may be faster than this job; so the steps get longer
    each time, until one takes more than comes in a turn.
    """
    at_once = AT_ONCE
    seen, left = history.seen, history.since(0)
    while len(left) > at_once:
        for start in range(0, len(left), at_once):
            _give(left[start : start + at_once], post, targets_of)
            yield
        seen, left = history.seen, history.since(seen)
        at_once *= 2
    bind()
    _give(left, post, targets_of)


def _give(messages: Sequence[Kept], post: PostOffice, targets_of: TargetsOf) -> None:
    addressed = [(targets_of(each, keys_of(each)), each, body) for each, body in messages]
    for targets, group in groupby(addressed, key=itemgetter(0)):
        for mail in _mail([(envelope, body) for _, envelope, body in group], post.now_ms):
            if targets.queues or targets.keepers:
                post.pass_on(targets, mail)


def _mail(messages: Sequence[Kept], now_ms: int) -> Iterator[Mail]:
    """Mail of messages, for each stretch of those that are equally persistent."""
    examined = [(examine(envelope.properties)[0], envelope, body) for envelope, body in messages]

    def persistent(message: tuple[Traits, Envelope, bytes]) -> bool:
        return message[0].persistent

    for is_persistent, stretch in groupby(examined, key=persistent):
        traits, envelopes, bodies = zip(*stretch, strict=True)
        yield Mail(is_persistent, traits, envelopes, bodies, now_ms)
