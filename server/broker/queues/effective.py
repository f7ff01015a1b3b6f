"""The settings that a queue works with, as opposed to those that it was declared with.

A redeclaration is compared with the declared arguments. All other code asks the queue for its
effective settings, which are replaced as a whole when something (a policy, later) changes them. So
no code may keep a copy of a value for longer than a call.
"""

from __future__ import annotations

from qlog.server.broker.queues.arguments import QueueArguments


class Effective:
    """The settings of one queue.

    `consumer_timeout_s`: how long a delivery may stay unacknowledged, in seconds; 0: for ever.
    `timeout_requeues`: an overdue delivery is requeued, instead of the channel being closed.
    `plain`: a message that comes is appended to the queue's lane, and nothing else has to be done.
    When it changes, the vhost's routes have to be forgotten (`Targets.plain`).
    """

    __slots__ = ("consumer_timeout_s", "plain", "timeout_requeues")

    def __init__(self, declared: QueueArguments, *, consumer_timeout_s: float) -> None:
        """`consumer_timeout_s` is the broker's own, for queues that say nothing else."""
        own_s = declared.consumer_timeout_s
        self.consumer_timeout_s = consumer_timeout_s if own_s is None else own_s
        self.timeout_requeues = declared.timeout_requeues
        self.plain = True
