"""What was published to a broker of qlog 0.1.0 before its messages were exported.

`data/format2.jsonl` is that export, and `data/format2.tar.xz` the directory (format 2) that it was made
from. Both were made once, with the qlog that wrote that format:

    qlog serve --data-dir D --port P     with segments of 1 MiB and a ledger of 64 KiB
    python tests/tools/format2.py amqp://guest:guest@127.0.0.1:P/
    (the broker is stopped)
    qlog inspect export --data-dir D -o tests/tools/data/format2.jsonl
    tar -cJf tests/tools/data/format2.tar.xz -C D .
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pika

QUEUES = ("orders", "audit", "Ümläute 数", "large", "emptied")
EXCHANGES = {"shop": "direct", "events": "topic", "news": "fanout", "match": "headers"}
BINDINGS: list[tuple[str, str, str, dict[str, Any]]] = [  # exchange, queue, key, arguments
    ("shop", "orders", "new", {}),
    ("shop", "Ümläute 数", "ü", {}),
    ("events", "audit", "order.#", {}),
    ("events", "orders", "order.*.paid", {}),
    ("news", "audit", "", {}),
    ("news", "large", "", {}),
    ("news", "emptied", "", {}),
    ("match", "orders", "", {"x-match": "all", "kind": "gift", "amount": 3}),
]


@dataclass(frozen=True, slots=True)
class Published:
    """A message, and the queues that it went to."""

    exchange: str
    routing_key: str
    queues: tuple[str, ...]
    body: bytes
    properties: dict[str, Any] = field(default_factory=dict)


ALL_PROPERTIES: dict[str, Any] = {
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "priority": 7,
    "correlation_id": "c-1",
    "reply_to": "answers",
    "expiration": "4294967295",
    "message_id": "m-1",
    "timestamp": 1_700_000_000,
    "type": "order",
    "user_id": "guest",
    "app_id": "shop",
}
HEADERS: dict[str, Any] = {
    "text": "grün",
    "number": -5,
    "long": 1 << 40,
    "yes": True,
    "nothing": None,
    "octets": b"\x00\xff",
    "when": datetime(2026, 11, 26, 12, 0, tzinfo=UTC),
    "list": [1, "two", {"three": 3}],
    "table": {"a": {"b": "c"}},
}


def messages() -> Iterator[Published]:
    """All of them, in the order in which they were published."""
    for number in range(12):
        yield Published("", "orders", ("orders",), b"plain %d" % number)
    yield Published("", "orders", ("orders",), b"")
    yield Published("", "audit", ("audit",), bytes(range(256)), {"headers": HEADERS})
    yield Published("", "audit", ("audit",), '{"ü": 1}'.encode(), ALL_PROPERTIES)
    yield Published("", "Ümläute 数", ("Ümläute 数",), "größer".encode())
    yield Published("shop", "new", ("orders",), b"by the shop")
    yield Published("shop", "ü", ("Ümläute 数",), b"\xc3\x28 is no text")
    yield Published("events", "order.17.paid", ("orders", "audit"), b"paid", {"type": "event"})
    yield Published("events", "order.18", ("audit",), b"only the audit")
    for number in range(3):
        body = b"news %d " % number + b"x" * 400
        yield Published("news", "", ("audit", "large", "emptied"), body)
    gift = {"headers": {"kind": "gift", "amount": 3}}
    yield Published("match", "", ("orders",), b"a gift", gift)
    copied = {"headers": {"CC": ["audit"]}}
    yield Published("", "large", ("large", "audit"), b"with a copy", copied)
    yield Published("", "large", ("large",), bytes(range(256)) * 12)


def publish(url: str) -> None:
    """Define, publish and confirm everything; `emptied` is consumed, and the half of `orders`' first."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    for queue in QUEUES:
        channel.queue_declare(queue, durable=True)
    for exchange, kind in EXCHANGES.items():
        channel.exchange_declare(exchange, kind, durable=True)
    for exchange, queue, key, arguments in BINDINGS:
        channel.queue_bind(queue, exchange, key, arguments)
    for one in messages():
        properties = pika.BasicProperties(delivery_mode=2, **one.properties)
        channel.basic_publish(one.exchange, one.routing_key, one.body, properties)
    for queue, count in (("emptied", 3), ("orders", ACKED)):
        for _ in range(count):
            method, _, _ = channel.basic_get(queue)
            channel.basic_ack(method.delivery_tag)
    connection.close()


ACKED = 6  # of the first messages of `orders`


def left() -> dict[str, list[Published]]:
    """What waits in each queue."""
    found: dict[str, list[Published]] = {queue: [] for queue in QUEUES}
    for one in messages():
        for queue in one.queues:
            found[queue].append(one)
    found["emptied"] = []
    del found["orders"][:ACKED]
    return found


if __name__ == "__main__":
    publish(sys.argv[1])
