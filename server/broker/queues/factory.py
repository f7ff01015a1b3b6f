"""The one place where queues are made, new or found at a start."""

from __future__ import annotations

from collections.abc import Mapping

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.queues.classic import ClassicQueue, Host
from qlog.server.broker.queues.effective import Applied, Effective
from qlog.server.broker.queues.type import Declaration, Owner, QueueType
from qlog.storage.lanes.lane import Lane


def make_queue(
    host: Host,
    declared: Declaration,
    lanes: Mapping[int, Lane[Envelope]],
    *,
    owner: Owner | None,
    applied: Applied,
    consumer_timeout_s: float,
) -> QueueType:
    """A queue of the type that its declaration says.

    Arguments: `lanes` have its messages, by their priority; `owner` is the connection of an exclusive
    queue; `applied` is what policies say of the queue; `consumer_timeout_s` the broker's own consumer
    timeout.
    """
    effective = Effective(declared.arguments, applied, consumer_timeout_s=consumer_timeout_s)
    return ClassicQueue(host, declared, effective, lanes, owner)
