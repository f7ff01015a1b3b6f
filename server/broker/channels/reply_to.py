"""Direct reply-to: a request's answer goes straight to the channel that asked, through no queue.

A channel consumes from the pseudo-queue `amq.rabbitmq.reply-to`; its publishes with that `reply_to` get
a name of their own, and whoever publishes to the default exchange with that name reaches the channel.
Answers are never stored (RabbitMQ: rabbit_channel, "fast reply").
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from qlog.server.amqp.properties import PSEUDO_QUEUE

if TYPE_CHECKING:
    from qlog.server.broker.channels.channel import Channel

REPLY_TO = PSEUDO_QUEUE
REPLY_PREFIX = REPLY_TO + "."


class Replies:
    """The channels that wait for direct replies, by address."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}

    def register(self, channel: Channel) -> str:
        """A new address for the channel."""
        address = REPLY_PREFIX + secrets.token_urlsafe(24)
        self._channels[address] = channel
        return address

    def forget(self, address: str) -> None:
        """The channel is gone or cancelled its consumer."""
        self._channels.pop(address, None)

    def find(self, address: str) -> Channel | None:
        """The channel behind an address, if it still waits."""
        return self._channels.get(address)
