"""What one client can do in bulk, one function each.

Each is a generator: what stands before its only `yield` is prepared, what follows is the operation.
It returns when the broker has done it, so far as a client can know. Queues and exchanges that a
client declares are deleted by `bulk_client`.
"""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from benchmarks import load, wire
from benchmarks.beside import QUESTION
from benchmarks.bulk import (
    BODY,
    PERSISTENT,
    BulkClient,
    bind_queue,
    declare_queue,
    delete_queue,
    wait_for_messages,
)
from benchmarks.flow import LoadProcess, expect_ready, fresh_name

Operation = Callable[[BulkClient, int], Iterator[None]]

HEADERS_FLAG = b"\x20\x00"
# Patterns of a headers exchange, and queues of a fanout exchange.
HEADERS_BINDINGS = 1000
FANOUT_QUEUES = 1000
# A tenth of the messages is looked at by each of a thousand bindings, or copied as often.
SHARE_OF_MESSAGES = 10
UPLOADS = 16
STREAM_READERS = 50
# As much as RabbitMQ 4 accepts, but for the last bit.
UPLOAD_BYTES = 15 * 1024 * 1024


def acks(
    client: BulkClient, count: int, *, order: Callable[[int], Iterable[int]]
) -> Iterator[None]:
    """Acknowledge each of so many messages on its own."""
    client.take(client.queue(count), count)
    yield
    frames = [wire.ack_frame(tag, multiple=False) for tag in order(count)]
    client.send([*frames, QUESTION], (wire.BASIC_QOS_OK, 1))


def ascending(count: int) -> Iterable[int]:
    """All tags, the oldest first."""
    return range(1, count + 1)


def descending(count: int) -> Iterable[int]:
    """All tags, the newest first."""
    return range(count, 0, -1)


def shuffled(count: int) -> Iterable[int]:
    """All tags in an order that is the same each time, and no order."""
    return random.Random(1).sample(range(1, count + 1), count)


def ack_all(client: BulkClient, count: int) -> Iterator[None]:
    """Acknowledge all messages with one frame."""
    client.take(client.queue(count), count)
    yield
    client.send([wire.ack_frame(count, multiple=True), QUESTION], (wire.BASIC_QOS_OK, 1))


def nack_all(client: BulkClient, count: int) -> Iterator[None]:
    """Give all messages back with one frame."""
    client.take(client.queue(count), count)
    yield
    multiple_and_requeue = 3
    nack = wire.method_frame(wire.BASIC_NACK, struct.pack(">QB", count, multiple_and_requeue))
    client.send([nack, QUESTION], (wire.BASIC_QOS_OK, 1))


def reject_each(client: BulkClient, count: int) -> Iterator[None]:
    """Give each message back on its own, in no order."""
    client.take(client.queue(count), count)
    yield
    frames = [
        wire.method_frame(wire.BASIC_REJECT, struct.pack(">QB", tag, 1)) for tag in shuffled(count)
    ]
    client.send([*frames, QUESTION], (wire.BASIC_QOS_OK, 1))


def dead_letter_all(client: BulkClient, count: int) -> Iterator[None]:
    """Reject all messages with one frame; they go to another queue."""
    dead = client.queue()
    client.take(client.queue(count, _to(dead)), count)
    yield
    multiple = 1
    nack = wire.method_frame(wire.BASIC_NACK, struct.pack(">QB", count, multiple))
    client.send([nack])
    with wire.Connection(client.address) as other:
        wait_for_messages(other, dead, count)


def drop_heads(client: BulkClient, count: int) -> Iterator[None]:
    """Publish to a queue that keeps one message; all others go to another queue."""
    dead = client.queue()
    limited = client.queue(0, {**_to(dead), "x-max-length": 1})
    one = wire.publish_frames("", limited, PERSISTENT, BODY, client.frame_bytes_max)
    yield
    client.send([one] * count)
    with wire.Connection(client.address) as other:
        wait_for_messages(other, dead, count - 1)


def _to(dead: str) -> dict[str, wire.Value]:
    """The arguments of a queue whose dead letters go to another one."""
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead}


def close_holding(client: BulkClient, count: int) -> Iterator[None]:
    """Close the channel that holds all messages."""
    queue = client.queue(count)
    client.take(queue, count)
    yield
    close = struct.pack(">H", 200) + wire.shortstr("") + wire.METHOD.pack(0, 0)
    client.send([wire.method_frame(wire.CHANNEL_CLOSE, close)], (wire.CHANNEL_CLOSE_OK, 1))
    with wire.Connection(client.address) as other:
        wait_for_messages(other, queue, count)


def read_stream(client: BulkClient, count: int) -> Iterator[None]:
    """Read a stream of so many messages from its start, by 50 consumers at once."""
    stream = client.queue(count, {"x-queue-type": "stream"})
    plan = load.ConsumerPlan(stream, offset="first")
    process = LoadProcess(load.consume, client.address, (plan,) * STREAM_READERS, None)
    try:
        expect_ready(process)
        yield
        process.send(load.GO)
        expect_ready(process)
        process.send(count * STREAM_READERS)
        process.receive()
    finally:
        process.end()


def cut_holding(client: BulkClient, count: int) -> Iterator[None]:
    """Die holding all messages."""
    queue = client.queue(count)
    client.take(queue, count)
    yield
    client.cut()
    with wire.Connection(client.address) as other:
        wait_for_messages(other, queue, count)


def gets(client: BulkClient, count: int) -> Iterator[None]:
    """Get each message with a question of its own, none waiting for the answer."""
    queue = client.queue(count)
    yield
    get = wire.method_frame(wire.BASIC_GET, b"\x00\x00" + wire.shortstr(queue) + b"\x01")
    client.send([get] * count, (wire.BASIC_GET_OK, count))


def declares(client: BulkClient, count: int) -> Iterator[None]:
    """Declare durable queues, none waiting for the answer."""
    names = [fresh_name("bulk") for _ in range(count)]
    client.queues += names
    yield
    client.send(map(declare_queue, names), (wire.QUEUE_DECLARE_OK, count))


def deletes(client: BulkClient, count: int) -> Iterator[None]:
    """Delete queues, none waiting for the answer."""
    names = [fresh_name("bulk") for _ in range(count)]
    client.queues += names
    client.send(map(declare_queue, names), (wire.QUEUE_DECLARE_OK, count))
    yield
    client.send(map(delete_queue, names), (wire.QUEUE_DELETE_OK, count))


def binds(client: BulkClient, count: int) -> Iterator[None]:
    """Bind a queue with many keys, none waiting for the answer."""
    queue, exchange = client.queue(), client.exchange("topic")
    yield
    _bind(client, queue, exchange, count)


def unbinds(client: BulkClient, count: int) -> Iterator[None]:
    """Take many bindings away, none waiting for the answer."""
    queue, exchange = client.queue(), client.exchange("topic")
    _bind(client, queue, exchange, count)
    yield
    names = wire.shortstr(queue) + wire.shortstr(exchange)
    frames = (
        wire.method_frame(
            wire.QUEUE_UNBIND, b"\x00\x00" + names + wire.shortstr(key) + wire.table({})
        )
        for key in _keys(count)
    )
    client.send(frames, (wire.QUEUE_UNBIND_OK, count))


def delete_bound_queue(client: BulkClient, count: int) -> Iterator[None]:
    """Delete a queue that has many bindings."""
    queue, exchange = client.queue(), client.exchange("topic")
    _bind(client, queue, exchange, count)
    yield
    client.send([delete_queue(queue)], (wire.QUEUE_DELETE_OK, 1))


def delete_bound_exchange(client: BulkClient, count: int) -> Iterator[None]:
    """Delete an exchange that has many bindings."""
    queue, exchange = client.queue(), client.exchange("topic")
    _bind(client, queue, exchange, count)
    yield
    arguments = b"\x00\x00" + wire.shortstr(exchange) + b"\x00"
    delete = wire.method_frame(wire.EXCHANGE_DELETE, arguments)
    client.send([delete], (wire.EXCHANGE_DELETE_OK, 1))


def _keys(count: int) -> Iterator[str]:
    return (f"key.{number}" for number in range(count))


def _bind(client: BulkClient, queue: str, exchange: str, count: int) -> None:
    frames = (bind_queue(queue, exchange, key) for key in _keys(count))
    client.send(frames, (wire.QUEUE_BIND_OK, count))


def delete_full(client: BulkClient, count: int) -> Iterator[None]:
    """Delete a queue that has many messages."""
    queue = client.queue(count)
    yield
    client.send([delete_queue(queue)], (wire.QUEUE_DELETE_OK, 1))


def purge(client: BulkClient, count: int) -> Iterator[None]:
    """Purge a queue that has many messages."""
    queue = client.queue(count)
    yield
    arguments = b"\x00\x00" + wire.shortstr(queue) + b"\x00"
    client.send([wire.method_frame(wire.QUEUE_PURGE, arguments)], (wire.QUEUE_PURGE_OK, 1))


def commit_publishes(client: BulkClient, count: int) -> Iterator[None]:
    """Publish many messages in one transaction."""
    queue = client.queue()
    _select(client)
    one = wire.publish_frames("", queue, PERSISTENT, BODY, client.frame_bytes_max)
    yield
    client.send([*[one] * count, wire.method_frame(wire.TX_COMMIT)], (wire.TX_COMMIT_OK, 1))


def commit_acks(client: BulkClient, count: int) -> Iterator[None]:
    """Acknowledge many messages, one by one, in one transaction."""
    client.take(client.queue(count), count)
    _select(client)
    yield
    frames = [wire.ack_frame(tag, multiple=False) for tag in ascending(count)]
    client.send([*frames, wire.method_frame(wire.TX_COMMIT)], (wire.TX_COMMIT_OK, 1))


def roll_back(client: BulkClient, count: int) -> Iterator[None]:
    """Publish many messages in a transaction, and take it back."""
    queue = client.queue()
    _select(client)
    one = wire.publish_frames("", queue, PERSISTENT, BODY, client.frame_bytes_max)
    yield
    client.send([*[one] * count, wire.method_frame(wire.TX_ROLLBACK)], (wire.TX_ROLLBACK_OK, 1))


def _select(client: BulkClient) -> None:
    client.send([wire.method_frame(wire.TX_SELECT)], (wire.TX_SELECT_OK, 1))


def channels(client: BulkClient, count: int) -> Iterator[None]:
    """Open many channels with a consumer each, and close them."""
    queue = client.queue()
    numbers = range(wire.CHANNEL + 1, wire.CHANNEL + 1 + count)
    consume = b"\x00\x00" + wire.shortstr(queue) + wire.shortstr("bulk") + b"\x00" + wire.table({})
    close = struct.pack(">H", 200) + wire.shortstr("") + wire.METHOD.pack(0, 0)
    yield
    steps = (
        (wire.CHANNEL_OPEN, b"\x00", wire.CHANNEL_OPEN_OK),
        (wire.BASIC_CONSUME, consume, wire.BASIC_CONSUME_OK),
        (wire.CHANNEL_CLOSE, close, wire.CHANNEL_CLOSE_OK),
    )
    for method, arguments, answer in steps:
        frames = (wire.method_frame(method, arguments, channel) for channel in numbers)
        client.send(frames, (answer, count))


def connections(client: BulkClient, count: int) -> Iterator[None]:
    """Open connections, one after the other, and cut them all."""
    yield
    opened = [BulkClient(client.address) for _ in range(count)]
    for one in opened:
        one.cut()


def fanout(client: BulkClient, count: int) -> Iterator[None]:
    """Publish to a fanout exchange with many queues; `count` copies in all."""
    queues = max(1, min(FANOUT_QUEUES, count // SHARE_OF_MESSAGES))
    exchange = client.exchange("fanout")
    names = [fresh_name("bulk") for _ in range(queues)]
    client.queues += names
    client.send(map(declare_queue, names), (wire.QUEUE_DECLARE_OK, queues))
    client.send((bind_queue(name, exchange, "") for name in names), (wire.QUEUE_BIND_OK, queues))
    one = wire.publish_frames(exchange, "", PERSISTENT, BODY, client.frame_bytes_max)
    yield
    client.send([*[one] * max(1, count // queues), QUESTION], (wire.BASIC_QOS_OK, 1))


def headers(client: BulkClient, count: int) -> Iterator[None]:
    """Publish to a headers exchange with many bindings, each message with headers of its own."""
    queue, exchange = client.queue(), client.exchange("headers")
    bindings = max(1, min(HEADERS_BINDINGS, count // SHARE_OF_MESSAGES))
    frames = (
        bind_queue(queue, exchange, "", {"x-match": "all", "tenant": f"customer-{number}"})
        for number in range(bindings)
    )
    client.send(frames, (wire.QUEUE_BIND_OK, bindings))
    messages = [
        wire.publish_frames(
            exchange,
            "",
            HEADERS_FLAG + wire.table({"tenant": f"customer-{number % bindings}", "at": number}),
            BODY,
            client.frame_bytes_max,
        )
        for number in range(max(1, count // SHARE_OF_MESSAGES))
    ]
    yield
    client.send([*messages, QUESTION], (wire.BASIC_QOS_OK, 1))


def uploads(client: BulkClient, count: int, *, share: float) -> Iterator[None]:
    """Publish large messages on connections of their own at the same time.

    Args:
        client: declares the queue.
        count: of messages.
        share: how much of each message is sent; if it is less than all, the connection is cut.
    """
    queue = client.queue()
    message = wire.publish_frames(
        "", queue, PERSISTENT, bytes(UPLOAD_BYTES), client.frame_bytes_max
    )
    part = memoryview(message)[: int(len(message) * share)]
    clients = [BulkClient(client.address) for _ in range(count)]
    yield
    _at_once([partial(one.connection.socket.sendall, part) for one in clients])
    if share < 1:
        for one in clients:
            one.cut()
    else:
        for one in clients:
            # The answer comes when the message is routed.
            one.send([QUESTION], (wire.BASIC_QOS_OK, 1))
            one.cut()


def _at_once(calls: Sequence[Callable[[], object]]) -> None:
    """Make calls in threads of their own; an OSError of one is raised here."""
    errors: list[OSError] = []

    def make(call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=make, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
