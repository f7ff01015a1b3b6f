"""Limits on what is ready in a queue: `x-max-length`, `x-max-length-bytes`, `x-overflow`.

Promises what RabbitMQ does (rabbit_amqqueue_process: will_overflow, maybe_drop_head):

- Only ready messages count, and only the octets of their bodies. What a consumer can take at once
  is delivered before a limit is looked at, except for what comes back to the queue. While a quorum
  queue has consumers, what is not on the disk yet does not count.
- `drop-head`: a message that comes is taken, and the first ones leave until the limit is kept, for
  the reason `maxlen`.
- `reject-publish`: what would exceed the limit is rejected, message by message: a smaller one may
  still fit. `reject-publish-dlx` dead-letters it besides.
- A backlog that exceeds a lowered limit is dropped in slices.

Knows no channel and no way of dead letters.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from qlog.server.broker.features.dead_letter import DeadLetters
from qlog.server.broker.jobs import Jobs, Steps
from qlog.server.broker.queues.backlog import Backlog
from qlog.server.broker.queues.effective import DROP_HEAD, REJECT_DEAD_LETTER
from qlog.server.broker.queues.mail import Mail, Receipt
from qlog.server.broker.queues.type import QueueType
from qlog.storage.errors import StorageError

MAXLEN = "maxlen"
# So many heads are dropped in one piece: less than a millisecond.
HEADS_AT_ONCE = 512


class Limited(QueueType, Protocol):
    """What this file needs of a queue beside what all need."""

    def head(self, count_max: int) -> tuple[Backlog, int] | None:
        """What is first of what is ready: its backlog, how many go on in it; None: nothing is."""

    @property
    def limit_count(self) -> int:
        """How many messages count for the limit: those that are ready, mostly."""

    @property
    def limit_bytes(self) -> int:
        """The octets of their bodies. Raises CorruptLog."""

    def append(self, mail: Mail) -> int:
        """Take messages, whatever the limits are; the LSN that makes them durable, or 0."""


class Overflow:
    """The limits of the queues of one vhost."""

    def __init__(self, dead_letters: DeadLetters, jobs: Jobs) -> None:
        self._dead_letters = dead_letters
        self._jobs = jobs
        self._trimming: set[Limited] = set()

    def admit(self, queue: Limited, mail: Mail) -> Receipt:
        """Take messages as far as the queue's limits allow."""
        if queue.effective.overflow == DROP_HEAD:
            lsn = queue.append(mail)
            if _excess(queue):
                _deliver(queue)  # the queue trims itself when nobody can take more
            return Receipt(lsn, eased=self._dead_letters.behind(queue))
        lsn, at, count = 0, 0, len(mail.bodies)
        rejected: list[int] = []
        pumped = False  # since the last append
        while at < count:
            fits = _fitting(queue, mail, at)
            if fits:
                lsn = max(lsn, queue.append(mail.part(at, at + fits)))
                at += fits
                pumped = False
            elif not pumped and queue.takers:
                _deliver(queue)
                pumped = True
            else:
                rejected.append(at)
                at += 1
        if rejected and queue.effective.overflow == REJECT_DEAD_LETTER:
            self._dead_letters.refuse(queue, mail.chosen(rejected), MAXLEN)
        return Receipt(lsn, rejected)

    def trim(self, queue: Limited) -> None:
        """Drop the first messages of a queue that has more than its limits allow.

        What is many is dropped by a job. Raises CorruptLog.
        """
        if queue.effective.overflow == DROP_HEAD and queue not in self._trimming:
            self._drop_some(queue)
            if _excess(queue):
                self._trimming.add(queue)
                self._jobs.later(self._trimming_on(queue))

    def _trimming_on(self, queue: Limited) -> Steps[None]:
        try:
            while _excess(queue) and not queue.deleted:
                self._drop_some(queue)
                yield
        finally:
            self._trimming.discard(queue)

    def _drop_some(self, queue: Limited) -> None:
        left = HEADS_AT_ONCE
        while left and (count := _excess(queue)) and (head := queue.head(min(count, left))):
            backlog, many = head
            left -= self._dead_letters.drop(queue, backlog, many, MAXLEN)


def _deliver(queue: Limited) -> None:
    """Let consumers take what they can.

    An error in reading is none of the publisher's: the queue is awake, and meets the same error at
    the end of the tick, where it is reported.
    """
    with suppress(StorageError):
        queue.pump()


def _excess(queue: Limited) -> int:
    """How many messages have to go at least; 0: the limits are kept."""
    effective = queue.effective
    length, size = effective.max_length, effective.max_length_bytes
    if length is not None and (excess := queue.limit_count - length) > 0:
        return excess
    return 1 if size is not None and queue.limit_bytes > size else 0


def _fitting(queue: Limited, mail: Mail, at: int) -> int:
    """How many of the messages from index `at` on fit in the queue, one after the other."""
    effective = queue.effective
    fits = len(mail.bodies) - at
    if effective.max_length is not None:
        fits = min(fits, effective.max_length - queue.limit_count)
    if effective.max_length_bytes is not None:
        room = effective.max_length_bytes - queue.limit_bytes
        for number in range(max(fits, 0)):
            room -= len(mail.bodies[at + number])
            if room < 0:
                return number
    return max(fits, 0)
