"""What a client does before it leaves: all that one can do in bulk, what clients do every day, and
the same with names that never come again.

Each is an `Operation` (see operations.py): it prepares up to its `yield`, and then acts. So a client
can also be cut when it has prepared, and holds what it was going to act on. Promises that a client
leaves nothing in the broker, however it leaves.
"""

from __future__ import annotations

import enum
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import wire
from benchmarks.beside import QUESTION
from benchmarks.bulk import (
    BODY,
    PERSISTENT,
    BulkClient,
    bind_queue,
    bulk_client,
    declare_queue,
    delete_queue,
    wait_for_messages,
)
from benchmarks.flow import fresh_name
from benchmarks.operations import Operation
from benchmarks.scenarios.bystanders import OPERATIONS

TRANSIENT = b"\x10\x00\x01"
# Of a header frame: headers, delivery mode, correlation id and message id are there.
NAMED_FLAGS = b"\x34\x80"
# Delivery mode and priority are there; delivery mode and expiration are.
PRIORITY_FLAGS, EXPIRATION_FLAGS = b"\x18\x00", b"\x11\x00"
PRIORITIES = 5
TTL_MS = 50
# The answer to QUESTION.
ANSWERED = (wire.BASIC_QOS_OK, 1)
EXCHANGE_BIND, EXCHANGE_BIND_OK = (40, 30), (40, 31)
# The bit of an exchange.declare; that of a queue.declare is another.
EXCHANGE_AUTO_DELETE = 4
EXCHANGE_TYPES = ("direct", "topic", "fanout", "headers")


class Leaving(enum.Enum):
    """How a client leaves."""

    CLOSES = "closes its connection"
    CUT = "is cut after its work"
    CUT_BEFORE = "is cut when all is prepared"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of visit.

    Attributes:
        name: what the report calls it.
        operation: what is done.
        count: of the things it is done with, at scale 1.
    """

    name: str
    operation: Operation
    count: int


def visit(address: wire.Address, kind: Kind, count: int, leaving: Leaving) -> None:
    """One client comes, does its work and leaves; what it declared is deleted.

    Raises:
        Refused, LoadFailed, OSError: the broker did not do what was asked for.
    """
    with bulk_client(address) as client:
        steps = kind.operation(client, count)
        next(steps)
        if leaving is Leaving.CUT_BEFORE:
            client.cut()
            return
        for _ in steps:
            raise AssertionError("an operation has one preparation")
        if leaving is Leaving.CLOSES and client.connection.socket.fileno() >= 0:
            client.close()


def every_day(client: BulkClient, count: int) -> Iterator[None]:
    """Publish with confirms, consume, acknowledge some, give some back, and hold the rest."""
    queue = client.queue()
    client.connection.select_confirms()
    yield
    for properties in (PERSISTENT, TRANSIENT):
        one = wire.publish_frames("", queue, properties, BODY, client.frame_bytes_max)
        client.send([one] * count)
    with wire.Connection(client.address) as other:
        wait_for_messages(other, queue, 2 * count)
    client.send([_consume(queue, "every-day")], (wire.BASIC_DELIVER, 2 * count))
    acks = [wire.ack_frame(tag, multiple=False) for tag in range(1, count + 1)]
    rejects = [
        wire.method_frame(wire.BASIC_REJECT, struct.pack(">QB", tag, 1))
        for tag in range(count + 1, count + count // 2 + 1)
    ]
    # What is given back comes again.
    client.send([*acks, *rejects], (wire.BASIC_DELIVER, len(rejects)))


def priorities(client: BulkClient, count: int) -> Iterator[None]:
    """Publish with priorities, consume, give all back, and consume them again."""
    queue = client.queue(0, {"x-max-priority": PRIORITIES - 1})
    yield
    messages = [
        wire.publish_frames(
            "", queue, PRIORITY_FLAGS + bytes([2, priority]), BODY, client.frame_bytes_max
        )
        for priority in range(PRIORITIES)
    ]
    client.send([*itertools.islice(itertools.cycle(messages), count), QUESTION], ANSWERED)
    client.take(queue, count)
    multiple_and_requeue = 3
    nack = wire.method_frame(wire.BASIC_NACK, struct.pack(">QB", count, multiple_and_requeue))
    client.send([nack, _consume(queue, "again")], (wire.BASIC_DELIVER, count))
    client.send([wire.ack_frame(2 * count, multiple=True), QUESTION], ANSWERED)


def expiring(client: BulkClient, count: int) -> Iterator[None]:
    """Publish what soon expires, by the queue's limit and by its own; it goes to another queue."""
    dead = client.queue()
    arguments: dict[str, wire.Value] = {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead,
    }
    limited = client.queue(0, {**arguments, "x-message-ttl": TTL_MS})
    unlimited = client.queue(0, arguments)
    yield
    expiration = EXPIRATION_FLAGS + b"\x02" + wire.shortstr(str(TTL_MS))
    for queue, properties in ((limited, PERSISTENT), (unlimited, expiration)):
        one = wire.publish_frames("", queue, properties, BODY, client.frame_bytes_max)
        client.send([one] * count)
    with wire.Connection(client.address) as other:
        wait_for_messages(other, dead, 2 * count)


def new_keys(client: BulkClient, count: int) -> Iterator[None]:
    """Publish with routing keys that never come again, to exchanges of three types, and consume."""
    queue = client.queue()
    exchanges = {kind: client.exchange(kind) for kind in ("topic", "fanout", "direct")}
    frames = [
        bind_queue(queue, exchanges["topic"], "#"),
        bind_queue(queue, exchanges["fanout"], ""),
    ]
    client.send(frames, (wire.QUEUE_BIND_OK, len(frames)))
    yield
    messages = (
        wire.publish_frames(exchange, fresh_name("key"), PERSISTENT, BODY, client.frame_bytes_max)
        for exchange in exchanges.values()
        for _ in range(count)
    )
    client.send([*messages, QUESTION], ANSWERED)
    # The direct exchange has no binding: what was published there goes nowhere.
    _take_all(client, queue, 2 * count)


def new_headers(client: BulkClient, count: int) -> Iterator[None]:
    """Publish with headers, ids and values of them that never come again, and consume."""
    queue, exchange = client.queue(), client.exchange("headers")
    frames = [
        bind_queue(queue, exchange, "", {"x-match": "any", "wanted": True}),
        bind_queue(queue, exchange, "", {"x-match": "any", fresh_name("header"): "never"}),
    ]
    client.send(frames, (wire.QUEUE_BIND_OK, len(frames)))
    yield
    messages = (
        wire.publish_frames(exchange, "", _named(), BODY, client.frame_bytes_max)
        for _ in range(count)
    )
    client.send([*messages, QUESTION], ANSWERED)
    _take_all(client, queue, count)


def _named() -> bytes:
    """Properties that no message had before."""
    headers: dict[str, wire.Value] = {"wanted": True, fresh_name("header"): fresh_name("value")}
    ids = wire.shortstr(fresh_name("correlation")) + wire.shortstr(fresh_name("message"))
    return NAMED_FLAGS + wire.table(headers) + b"\x02" + ids


def new_queues(client: BulkClient, count: int) -> Iterator[None]:
    """Declare queues, bind each with a key of its own, publish to it in two ways, and delete it."""
    names = [fresh_name("soak") for _ in range(count)]
    client.queues += names
    client.send(map(declare_queue, names), (wire.QUEUE_DECLARE_OK, count))
    binds = (bind_queue(name, "amq.direct", f"key.{name}") for name in names)
    client.send(binds, (wire.QUEUE_BIND_OK, count))
    yield
    messages = (
        wire.publish_frames(exchange, key + name, PERSISTENT, BODY, client.frame_bytes_max)
        for name in names
        for exchange, key in (("", ""), ("amq.direct", "key."))
    )
    client.send([*messages, QUESTION], ANSWERED)
    client.send(map(delete_queue, names), (wire.QUEUE_DELETE_OK, count))


def new_exchanges(client: BulkClient, count: int) -> Iterator[None]:
    """Declare exchanges of all types with an alternate, bind each to the one before, and use it."""
    queue = client.queue()
    alternate = client.exchange("fanout")
    client.send([bind_queue(queue, alternate, "")], (wire.QUEUE_BIND_OK, 1))
    names = [fresh_name("soak") for _ in range(count)]
    client.exchanges += names
    arguments = wire.table({"alternate-exchange": alternate})
    declares = (
        wire.method_frame(
            wire.EXCHANGE_DECLARE,
            b"\x00\x00"
            + wire.shortstr(name)
            + wire.shortstr(EXCHANGE_TYPES[number % len(EXCHANGE_TYPES)])
            + bytes([wire.DURABLE])
            + arguments,
        )
        for number, name in enumerate(names)
    )
    client.send(declares, (wire.EXCHANGE_DECLARE_OK, count))
    yield
    bound = list(zip(names[1:], names, strict=False))
    binds = (_bind_exchange(name, before, f"key.{name}") for name, before in bound)
    client.send(binds, (EXCHANGE_BIND_OK, len(bound)))
    messages = (
        wire.publish_frames(name, fresh_name("key"), PERSISTENT, BODY, client.frame_bytes_max)
        for name in names
    )
    client.send([*messages, QUESTION], ANSWERED)


def _bind_exchange(destination: str, source: str, key: str) -> bytes:
    names = wire.shortstr(destination) + wire.shortstr(source) + wire.shortstr(key)
    return wire.method_frame(EXCHANGE_BIND, b"\x00\x00" + names + b"\x00" + wire.table({}))


def left_behind(client: BulkClient, count: int) -> Iterator[None]:
    """Leave queues and exchanges that go by themselves: exclusive ones, and auto-delete ones."""
    yield
    for bits in (wire.EXCLUSIVE, wire.AUTO_DELETE):
        queues = [fresh_name("soak") for _ in range(count)]
        declares = (
            wire.method_frame(
                wire.QUEUE_DECLARE,
                b"\x00\x00" + wire.shortstr(name) + bytes([bits]) + wire.table({}),
            )
            for name in queues
        )
        client.send(declares, (wire.QUEUE_DECLARE_OK, count))
        exchanges = [fresh_name("soak") for _ in range(count)]
        declares = (
            wire.method_frame(
                wire.EXCHANGE_DECLARE,
                b"\x00\x00"
                + wire.shortstr(name)
                + wire.shortstr("topic")
                + bytes([EXCHANGE_AUTO_DELETE])
                + wire.table({}),
            )
            for name in exchanges
        )
        client.send(declares, (wire.EXCHANGE_DECLARE_OK, count))
        pairs = zip(queues, exchanges, strict=True)
        binds = (bind_queue(queue, exchange, f"{queue}.#") for queue, exchange in pairs)
        client.send(binds, (wire.QUEUE_BIND_OK, count))
        # An auto-delete queue goes with its last consumer.
        consumes = (_consume(queue, fresh_name("tag")) for queue in queues)
        client.send(consumes, (wire.BASIC_CONSUME_OK, count))


def _consume(queue: str, tag: str) -> bytes:
    names = wire.shortstr(queue) + wire.shortstr(tag)
    return wire.method_frame(wire.BASIC_CONSUME, b"\x00\x00" + names + b"\x00" + wire.table({}))


def _take_all(client: BulkClient, queue: str, count: int) -> None:
    """Consume so many messages and acknowledge them with one frame."""
    client.take(queue, count)
    client.send([wire.ack_frame(count, multiple=True), QUESTION], ANSWERED)


# What one client can do in bulk: all that the bystanders see.
BULK = tuple(Kind(name, operation, count) for name, _, operation, count in OPERATIONS)
# What goes on all the time, and names that never come again.
NEW = (
    Kind("every-day", every_day, 20_000),
    Kind("new-keys", new_keys, 20_000),
    Kind("every-day-again", every_day, 2_000),
    Kind("priorities", priorities, 20_000),
    Kind("expiring", expiring, 20_000),
    Kind("new-headers", new_headers, 20_000),
    Kind("new-queues", new_queues, 2_000),
    Kind("new-exchanges", new_exchanges, 1_000),
    Kind("left-behind", left_behind, 500),
)
