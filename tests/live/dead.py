"""Queues for tests of dead letters and limits, through pika, whatever broker it is.

It promises: names that nothing else uses, queues that go when the test ends, and messages that are
waited for, since a broker may hand dead letters over when it likes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import NackError

from tests.live.conversation import DEADLINE_S, unique

# So long nothing comes, if nothing is to come.
SILENCE_S = 0.3


class Got(NamedTuple):
    """A message as a consumer gets it; `tag` to settle it."""

    body: bytes
    exchange: str
    key: str
    properties: pika.BasicProperties
    tag: int

    @property
    def headers(self) -> dict[str, Any]:
        return dict(self.properties.headers or {})

    @property
    def deaths(self) -> list[dict[str, Any]]:
        """`x-death` without its times, and with its exact counts."""
        deaths = [dict(death) for death in self.headers["x-death"]]
        for death in deaths:
            del death["time"]
            death["count"] = int(death["count"])
        return deaths


class Yard:
    """The queues and exchanges of one test, by names of its own."""

    def __init__(self, channel: BlockingChannel) -> None:
        self.channel = channel
        self._prefix = unique("yard")
        self._queues: list[str] = []
        self._exchanges: list[str] = []
        channel.confirm_delivery()

    def name(self, short: str) -> str:
        return f"{self._prefix}.{short}"

    def queue(self, short: str, *, to: str | None = None, via: str = "", **arguments: Any) -> str:
        """A durable queue; `to` is the queue of its dead letters, `via` their exchange."""
        table = {key.replace("_", "-"): value for key, value in arguments.items()}
        if to is not None or via:
            table["x-dead-letter-exchange"] = via
        if to is not None:
            table["x-dead-letter-routing-key"] = self.name(to)
        name = self.name(short)
        self.channel.queue_declare(name, durable=True, arguments=table)
        self._queues.append(name)
        return name

    def exchange(self, short: str, kind: str = "fanout") -> str:
        name = self.name(short)
        self.channel.exchange_declare(name, kind)
        self._exchanges.append(name)
        return name

    def publish(self, short: str, body: bytes = b"", exchange: str = "", **properties: Any) -> bool:
        """Whether it was acknowledged."""
        key = short if exchange else self.name(short)
        try:
            self.channel.basic_publish(exchange, key, body, pika.BasicProperties(**properties))
        except NackError:
            return False
        return True

    def get(self, short: str, within_s: float = DEADLINE_S) -> Got | None:
        """The next message, taken; None: none came in time."""
        end = time.monotonic() + within_s
        while True:
            method, properties, body = self.channel.basic_get(self.name(short))
            if method is not None:
                return Got(
                    body, method.exchange, method.routing_key, properties, method.delivery_tag
                )
            if time.monotonic() > end:
                return None
            time.sleep(0.01)

    def take(self, short: str) -> Got:
        got = self.get(short)
        assert got is not None, f"nothing in {short}"
        return got

    def nothing(self, short: str) -> bool:
        return self.get(short, SILENCE_S) is None

    def reject(self, short: str) -> Got:
        """Take a message and reject it."""
        got = self.take(short)
        self.channel.basic_reject(got.tag, requeue=False)
        return got

    def bodies(self, short: str) -> list[bytes]:
        """All that is ready now, taken."""
        found = []
        while (got := self.get(short, 0.0)) is not None:
            found.append(got.body)
        return found

    def clear(self) -> None:
        for name in self._queues:
            self.channel.queue_delete(name)
        for name in self._exchanges:
            self.channel.exchange_delete(name)


@contextmanager
def yard_at(url: str) -> Iterator[Yard]:
    """A yard on a connection of its own."""
    with BlockingConnection(pika.URLParameters(url)) as connection:
        yard = Yard(connection.channel())
        yield yard
        yard.clear()
