"""The one place where queues are made, new or found at a start."""

from __future__ import annotations

from collections.abc import Mapping

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.queues.classic import ClassicQueue, Host
from qlog.server.broker.queues.effective import Effective
from qlog.server.broker.queues.quorum import QuorumQueue
from qlog.server.broker.queues.stream import StreamQueue
from qlog.server.broker.queues.type import Declaration, Owner, QueueType
from qlog.storage.lanes.lane import Lane


def make_queue(
    host: Host,
    declared: Declaration,
    lanes: Mapping[int, Lane[Envelope]],
    *,
    owner: Owner | None,
    effective: Effective,
) -> QueueType:
    """A queue of the type that its declaration says.

    Arguments: `lanes` have its messages, by their priority; `owner` is the connection of an
    exclusive queue; `effective` is what it goes by, its arguments and policies together.
    """
    queue_class = _CLASSES[declared.arguments.type]
    return queue_class(host, declared, effective, lanes, owner)


_CLASSES: Mapping[str, type[ClassicQueue | QuorumQueue | StreamQueue]] = {
    "classic": ClassicQueue,
    "quorum": QuorumQueue,
    "stream": StreamQueue,
}
