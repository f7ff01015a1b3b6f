"""Messages that a migration brings from another broker.

Promises:

- A message is put into its queue and nowhere else: it is not routed. It keeps exchange, routing
  key and properties, and its time begins anew.
- Each message carries the mark of the portion that it came with, which nobody is told. Whoever was
  broken off can ask which messages of a portion are in the queue (`adopted`).
- What a queue rejects is named, and not in the queue. Nothing is appended while the disk or the
  queue is behind: the caller hears of that, and goes on later.

Messages that have left the queue since, or that a consumer holds, are not found again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple, Protocol

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import not_found
from qlog.server.amqp.properties import Traits, examine
from qlog.server.broker.jobs import Steps
from qlog.server.broker.post import PostOffice
from qlog.server.broker.queues.classic import ClassicQueue
from qlog.server.broker.queues.mail import Mail
from qlog.server.broker.queues.stream import StreamQueue
from qlog.server.broker.queues.targets import Targets
from qlog.server.broker.queues.type import QueueType
from qlog.storage.store import Store

# So many are appended, or looked at, together: some tenths of a millisecond.
AT_ONCE = 32
# A search pauses for its caller after so many messages.
LOOKED_AT_MAX = 5000


class Services(Protocol):
    """What is needed of what the parts of a broker share."""

    store: Store[Envelope]
    post: PostOffice
    now_ms: Callable[[], int]


class Adopted(NamedTuple):
    """What became of messages: those before the index `next` were handed to the queue.

    `rejected`: the indices of those that it turned away. All of it lasts when the log is durable up
    to `lsn`. `busy`: the disk, or the queue, is behind.
    """

    next: int
    rejected: list[int]
    lsn: int
    busy: bool


class Search(NamedTuple):
    """Where to look: by lane, the first qseq; lanes that are not named are looked at from 0."""

    starts: Mapping[int, int]


class Found(NamedTuple):
    """The digests of messages that were found, in order, and where to go on; None: nowhere."""

    digests: list[str]
    next: Search | None


def adopting(
    services: Services,
    queue: QueueType,
    envelopes: Sequence[Envelope],
    bodies: Sequence[bytes],
    start: int,
) -> Steps[Adopted]:
    """Put messages from an index on into a queue, in their order. Raises 404 if it is deleted."""
    targets = Targets((queue,))
    rejected: list[int] = []
    lsn = 0
    while start < len(bodies):
        if queue.deleted:
            raise not_found(f"no {queue}")
        if services.store.congested:
            return Adopted(start, rejected, lsn, True)
        traits, stop = _alike(envelopes, start)
        part = slice(start, stop)
        mail = Mail(traits[0].persistent, traits, envelopes[part], bodies[part], services.now_ms())
        receipt = services.post.pass_on(targets.now(), mail)
        lsn = max(lsn, receipt.lsn)
        rejected += [start + number for number in receipt.rejected]
        start = stop
        if receipt.eased is not None and not receipt.eased.done:
            return Adopted(start, rejected, lsn, True)
        yield
    return Adopted(start, rejected, lsn, False)


def _alike(envelopes: Sequence[Envelope], start: int) -> tuple[list[Traits], int]:
    """The traits of messages from an index on that are equally durable, and where these end."""
    traits = [examine(envelopes[start].properties)[0]]
    stop = start + 1
    while stop < min(len(envelopes), start + AT_ONCE):
        mine = examine(envelopes[stop].properties)[0]
        if mine.persistent != traits[0].persistent:
            break
        traits.append(mine)
        stop += 1
    return traits, stop


def ends(queue: QueueType) -> Search:
    """Where messages that come from now on will be."""
    return Search({lane.id: lane.next_qseq for lane in queue.lanes})


def searching(queue: QueueType, mark: str, search: Search, end: int) -> Steps[Found]:
    """Find messages with a mark that nobody has taken. Raises CorruptLog, OutOfDescriptors.

    `end`: of a stream only messages below this offset, which have to be on the disk: what was read
    of it may be delivered to others.
    """
    digests: list[str] = []
    starts = dict(search.starts)
    looked_at = 0
    for lane, stop, envelopes, bodies in _messages(queue, search, end):
        for envelope, body in zip(envelopes, bodies, strict=True):
            if envelope.mark == mark:
                digests.append(envelope.digest(body))
        starts[lane] = stop
        looked_at += len(bodies)
        if looked_at >= LOOKED_AT_MAX:
            return Found(digests, Search(starts))
        yield
    return Found(digests, None)


_Some = tuple[int, int, Sequence[Envelope], Sequence[bytes]]


def _messages(queue: QueueType, search: Search, end: int) -> Iterator[_Some]:
    """Messages of a queue: their lane, the qseq behind them, their envelopes and bodies."""
    if isinstance(queue, StreamQueue):
        yield from _of_stream(queue, search, end)
        return
    assert isinstance(queue, ClassicQueue)
    for backlog in list(queue.backlogs):
        qseq = search.starts.get(backlog.lane.id, 0)
        while not queue.deleted and (taken := backlog.peek(qseq, AT_ONCE)) is not None:
            qseq = taken.first_qseq + len(taken.bodies)
            yield backlog.lane.id, qseq, taken.envelopes, taken.bodies


def _of_stream(queue: StreamQueue, search: Search, end: int) -> Iterator[_Some]:
    lane = queue.lane.id
    with closing(queue.cursor(search.starts.get(lane, 0))) as cursor:
        while not queue.deleted and (chunk := cursor.next(end)) is not None:
            first = cursor.offset - chunk.first
            messages = chunk.messages
            for start in range(first, len(messages.bodies), AT_ONCE):
                stop = min(start + AT_ONCE, len(messages.bodies))
                part = slice(start, stop)
                yield lane, chunk.first + stop, messages.metas[part], messages.bodies[part]
            cursor.advance(chunk, len(messages.bodies) - first)
