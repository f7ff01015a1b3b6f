"""Direct reply-to: a request's answer goes straight to the channel that asked, through no queue.

A channel consumes from the pseudo-queue `amq.rabbitmq.reply-to`. When it publishes with that
`reply_to`, the broker replaces the value with an address of the channel. What is published to the
default exchange with that address as routing key is sent to the channel. Answers are never stored
(RabbitMQ: rabbit_channel, "fast reply").
"""

from __future__ import annotations

import secrets

from qlog.server.amqp.properties import PSEUDO_QUEUE
from qlog.server.broker.queues.targets import ReplyChannel, Targets

REPLY_TO = PSEUDO_QUEUE
REPLY_PREFIX = REPLY_TO + "."


_NOBODY = Targets(())


class Replies:
    """The channels that wait for direct replies, by address."""

    def __init__(self) -> None:
        self._targets: dict[str, Targets] = {}

    def register(self, channel: ReplyChannel) -> str:
        """A new address for the channel."""
        address = REPLY_PREFIX + secrets.token_urlsafe(24)
        self._targets[address] = Targets((), channel)
        return address

    def forget(self, address: str) -> None:
        """The channel is gone or cancelled its consumer."""
        self._targets.pop(address, None)

    def find(self, address: str) -> Targets:
        """Where a reply to an address goes: to the channel that waits there, or to nobody.

        A channel that ends lets go of its address a moment later, and takes nothing meanwhile.
        """
        targets = self._targets.get(address, _NOBODY)
        waiting = targets.replies_to
        return _NOBODY if waiting is None or waiting.closed else targets
