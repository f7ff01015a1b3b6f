"""Direct reply-to: a request's answer goes straight to the channel that asked, through no queue.

A channel consumes from the pseudo-queue `amq.rabbitmq.reply-to`. When it publishes with that
`reply_to`, the broker replaces the value with an address of the channel. What is published to the
default exchange with that address as routing key is sent to the channel. Answers are never stored
(RabbitMQ: rabbit_channel, "fast reply").
"""

from __future__ import annotations

import secrets

from qlog.server.amqp.properties import PSEUDO_QUEUE
from qlog.server.broker.queues.targets import ReplyChannel

REPLY_TO = PSEUDO_QUEUE
REPLY_PREFIX = REPLY_TO + "."


class Replies:
    """The channels that wait for direct replies, by address."""

    def __init__(self) -> None:
        self._channels: dict[str, ReplyChannel] = {}

    def register(self, channel: ReplyChannel) -> str:
        """A new address for the channel."""
        address = REPLY_PREFIX + secrets.token_urlsafe(24)
        self._channels[address] = channel
        return address

    def forget(self, address: str) -> None:
        """The channel is gone or cancelled its consumer."""
        self._channels.pop(address, None)

    def find(self, address: str) -> ReplyChannel | None:
        """The channel behind an address, if it still waits."""
        return self._channels.get(address)
