"""The part of operations.py about the messages in a queue (features/handling.py, adoption.py)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from qlog.server.amqp.envelope import NO_RECORD, Envelope
from qlog.server.amqp.errors import precondition_failed
from qlog.server.amqp.properties import Properties, encode_properties, examine
from qlog.server.broker.access.actor import Actor
from qlog.server.broker.features import adoption, handling
from qlog.server.broker.features.adoption import Adopted, Found, Search
from qlog.server.broker.features.handling import ALL, Ends, Match, Moved, Mover, Page, Place, Seen
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.classic import ClassicQueue
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.services import Services
from qlog.server.broker.vhost import VHost

__all__ = [
    "ALL",
    "Adopted",
    "Ends",
    "Found",
    "Match",
    "MessageOperations",
    "Moved",
    "Page",
    "Place",
    "Search",
    "Seen",
    "Walk",
]

logger = logging.getLogger("qlog.broker")


@dataclass(frozen=True, slots=True)
class Walk:
    """How far to go: from a place on (None: the head), up to `ends`, and up to so many messages."""

    start: Place | None
    ends: Ends
    count: int
    match: Match = ALL


class MessageOperations:
    """See the head of this file."""

    _services: Services
    _actor: Actor

    def peek_messages(
        self, vhost: VHost, name: str, start: Place | None, count: int, match: Match = ALL
    ) -> Outcome[Page]:
        """Look at messages that are ready. Raises 404, 405; fails with CorruptLog."""
        queue = self._lasting(vhost, name)
        return self._services.jobs.start(handling.peeking(queue.backlogs, start, count, match))

    def message_ends(self, vhost: VHost, name: str) -> Ends:
        """Where a walk that begins now ends. Raises 404, 405."""
        return Ends.of(self._lasting(vhost, name).backlogs)

    def move_messages(self, vhost: VHost, name: str, to: str, walk: Walk) -> Outcome[Moved]:
        """Move messages to another queue. Raises 404, 405 and 406; fails with CorruptLog."""
        queue = self._lasting(vhost, name)
        other: QueueType = vhost.queue(to)
        vhost.assert_access(other, None)
        logger.info("moving messages from %s to %s %s", queue, other, self._actor)
        return self._moving(queue, handling.to_queue(other), walk)

    def redrive_messages(self, vhost: VHost, name: str, walk: Walk) -> Outcome[Moved]:
        """Send dead letters back to where they died. Raises 404, 405; fails with CorruptLog."""
        queue = self._lasting(vhost, name)
        logger.info("redriving messages from %s %s", queue, self._actor)
        return self._moving(queue, handling.back_to_origin(vhost.queues), walk)

    def _moving(self, queue: ClassicQueue, address: handling.Address, walk: Walk) -> Outcome[Moved]:
        mover = Mover(self._services, queue, address)
        steps = mover.moving(queue.backlogs, walk.start, walk.ends, walk.count, walk.match)
        return self._lasting_moves(self._services.jobs.start(steps))

    def _lasting_moves(self, moves: Outcome[Moved]) -> Outcome[Moved]:
        """The same, known when copies and settlements are durable."""
        answer: Outcome[Moved] = Outcome()

        def durable(done: Outcome[Moved]) -> None:
            if not done.succeeded:
                answer.follow(done)
                return
            synced = self._services.durability.sync(done.result().lsn)
            synced.then(lambda _: answer.follow(done))

        moves.then(durable)
        return answer

    def delete_message(self, vhost: VHost, name: str, place: Place) -> Outcome[None]:
        """A ready message is gone: not dead-lettered. Raises 404, 405, and CorruptLog."""
        queue = self._lasting(vhost, name)
        for backlog in queue.backlogs:
            if backlog.lane.id == place.lane and backlog.remove(place.qseq, 1):
                logger.info("message deleted place=%s %s %s", place, queue, self._actor)
                return self._services.durability.sync()
        raise handling.no_message(place)

    def edit_message(
        self,
        vhost: VHost,
        name: str,
        place: Place,
        *,
        properties: Properties | None = None,
        body: bytes | None = None,
    ) -> Outcome[Moved]:
        """Put a changed copy of a ready message at the end of its queue, and settle it.

        What is None stays. Raises 404, 405, 406, ValueError for properties that AMQP has no octets
        for, CorruptLog and OutOfDescriptors.
        """
        queue = self._lasting(vhost, name)
        handling.assert_takes_copies(queue)
        taken = handling.one(queue.backlogs, place)
        old = taken.envelopes[0]
        raw = old.properties
        if properties is not None:
            _, raw = examine(encode_properties(properties))
        if body is not None:
            taken.bodies = [body]
        size = len(taken.bodies[0])
        if size > self._services.settings.message_bytes_max:
            raise precondition_failed(f"message size {size} is larger than what is allowed")
        record = old.record if properties is None else NO_RECORD
        copy = Envelope.pack(old.exchange, old.routing_key, raw, size, record)
        mover = Mover(self._services, queue, lambda _: (copy, queue))
        logger.info("message changed place=%s %s %s", place, queue, self._actor)
        return self._lasting_moves(self._services.jobs.start(mover.moving_taken(taken)))

    @property
    def message_bytes_max(self) -> int:
        """Larger messages are refused."""
        return self._services.settings.message_bytes_max

    def adopt_messages(
        self,
        vhost: VHost,
        name: str,
        envelopes: Sequence[Envelope],
        bodies: Sequence[bytes],
        start: int,
    ) -> Outcome[Adopted]:
        """Put messages of another broker, from an index on, into a queue. Raises 404, 405."""
        queue = self._unowned(vhost, name)
        return self._services.jobs.start(
            adoption.adopting(self._services, queue, envelopes, bodies, start)
        )

    def adopted_last(self, lsn: int) -> Outcome[None]:
        """Done when what was adopted up to this LSN is on the disk."""
        return self._services.durability.sync(lsn)

    def adoption_ends(self, vhost: VHost, name: str) -> Search:
        """Where messages that come from now on will be. Raises 404, 405."""
        return adoption.ends(self._unowned(vhost, name))

    def adopted_messages(
        self, vhost: VHost, name: str, mark: str, search: Search
    ) -> Outcome[Found]:
        """What was adopted with a mark and nobody has taken; it is on the disk when that is known.

        Raises 404, 405; fails with CorruptLog.
        """
        queue = self._unowned(vhost, name)
        end = queue.lane.next_qseq
        answer: Outcome[Found] = Outcome()

        def look(_: Outcome[None]) -> None:
            steps = adoption.searching(queue, mark, search, end)
            self._services.jobs.start(steps).then(answer.follow)

        self._services.durability.sync().then(look)
        return answer

    def _unowned(self, vhost: VHost, name: str) -> QueueType:
        """A queue of any type. Raises 404, 405."""
        queue: QueueType = vhost.queue(name)
        vhost.assert_access(queue, None)
        return queue

    def _lasting(self, vhost: VHost, name: str) -> ClassicQueue:
        """A queue whose messages lie in backlogs. Raises 404, 405 and 406."""
        queue = self._unowned(vhost, name)
        if not isinstance(queue, ClassicQueue):
            raise precondition_failed(f"{queue} is a stream: its messages are read by offset")
        return queue
