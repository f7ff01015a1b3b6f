"""kombu: producers, consumers, simple queues, pools, mailboxes."""

# mypy: disable-error-code="no-untyped-call, attr-defined"

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import kombu
import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.mixins import ConsumerMixin
from kombu.pidbox import Mailbox
from kombu.pools import producers

from tests.live.conversation import unique


@pytest.fixture
def connection(broker_url: str) -> Iterator[Connection]:
    with Connection(broker_url, transport_options={"confirm_publish": True}) as connection:
        yield connection


def drained(connection: Connection, got: list[Any], count: int) -> list[Any]:
    """Drain events until `got` has `count` entries."""
    while len(got) < count:
        connection.drain_events(timeout=10)
    return got


def test_producer_and_consumer(connection: Connection) -> None:
    exchange = Exchange(unique("tasks"), "topic", auto_delete=True, durable=False)
    queue = Queue(unique("tasks"), exchange, "task.#", auto_delete=True, durable=False)
    got: list[tuple[Any, dict[str, Any]]] = []

    def on_task(body: Any, message: Any) -> None:
        got.append((body, message.headers))
        message.ack()

    with Consumer(connection, queue, callbacks=[on_task], accept=["json"]):
        producer = Producer(connection)
        for number in range(20):
            producer.publish(
                {"number": number},
                exchange=exchange,
                routing_key=f"task.{number}",
                headers={"try": number},
                retry=True,
            )
        drained(connection, got, 20)
    assert got == [({"number": n}, {"try": n}) for n in range(20)]


def test_several_queues_of_one_consumer(connection: Connection) -> None:
    """All but the last are consumed with nowait."""
    exchange = Exchange(unique("direct"), "direct", auto_delete=True)
    queues = [Queue(unique(key), exchange, key, auto_delete=True) for key in "abcd"]
    got: list[Any] = []
    with Consumer(connection, queues, callbacks=[lambda body, _m: got.append(body)], no_ack=True):
        producer = Producer(connection, exchange)
        for key in "abcd":
            producer.publish(key, routing_key=key)
        assert sorted(drained(connection, got, 4)) == list("abcd")


def test_simple_queue(connection: Connection) -> None:
    simple = connection.SimpleQueue(unique("simple"), queue_opts={"auto_delete": True})
    for number in range(3):
        simple.put({"n": number})
    first = simple.get(timeout=10)
    assert first.payload == {"n": 0}
    first.requeue()
    bodies = []
    for _ in range(3):
        message = simple.get(timeout=10)
        bodies.append(message.payload["n"])
        message.ack()
    assert sorted(bodies) == [0, 1, 2]
    assert simple.qsize() == 0
    with pytest.raises(simple.Empty):
        simple.get(block=False)
    simple.close()


def test_requeue_and_reject(connection: Connection) -> None:
    queue = Queue(unique("reject"), auto_delete=True)
    got: list[bool] = []

    def on_message(_body: Any, message: Any) -> None:
        got.append(message.delivery_info["redelivered"])
        if len(got) < 3:
            message.requeue()
        else:
            message.reject()

    with Consumer(connection, queue, callbacks=[on_message]):
        Producer(connection).publish("x", routing_key=queue.name)
        drained(connection, got, 3)
        with pytest.raises(socket.timeout):
            connection.drain_events(timeout=0.2)
    assert got == [False, True, True]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_serializers(connection: Connection, serializer: str, compression: str | None) -> None:
    queue = Queue(unique("codec"), exclusive=True)
    bound = queue(connection.default_channel)
    bound.declare()
    payload = {"text": "grüße", "list": list(range(100))}
    Producer(connection).publish(
        payload, routing_key=queue.name, serializer=serializer, compression=compression
    )
    message = bound.get(no_ack=True, accept=[serializer])
    assert message is not None and message.payload == payload


def test_declare_with_arguments(connection: Connection) -> None:
    queue = Queue(
        unique("arguments"),
        expires=60,
        message_ttl=30,
        max_length=100,
        max_priority=5,
        auto_delete=True,
        consumer_arguments={"x-priority": 3},
    )
    bound = queue(connection.default_channel)
    for _ in range(2):
        bound.declare()
    assert bound.queue_declare(passive=True).message_count == 0
    bound.delete()


def test_exchange_to_exchange(connection: Connection) -> None:
    source = Exchange(unique("source"), "fanout", auto_delete=True)
    target = Exchange(unique("target"), "direct", auto_delete=True)
    queue = Queue(unique("bound"), target, "k", auto_delete=True)
    channel = connection.default_channel
    source(channel).declare()
    queue(channel).declare()
    target(channel).bind_to(source, routing_key="k")
    Producer(channel).publish("x", exchange=source, routing_key="k")
    assert queue(channel).get(no_ack=True).payload == "x"
    queue(channel).delete()


def test_returned_message(connection: Connection) -> None:
    returned: list[Any] = []
    producer = Producer(connection, on_return=lambda *values: returned.append(values))
    producer.publish("x", routing_key=unique("missing"), mandatory=True)
    while not returned:
        connection.drain_events(timeout=10)
    assert "NO_ROUTE" in str(returned[0])


def test_producer_pool(connection: Connection) -> None:
    queue = Queue(unique("pool"), auto_delete=True)(connection.default_channel)
    queue.declare()
    for number in range(10):
        with producers[connection].acquire(block=True, timeout=10) as producer:
            producer.publish(number, routing_key=queue.name, retry=True)
    assert [queue.get(no_ack=True).payload for _ in range(10)] == list(range(10))
    queue.delete()
    kombu.pools.reset()


def test_consumer_mixin(connection: Connection) -> None:
    queue = Queue(unique("mixin"), auto_delete=True)
    seen: list[Any] = []

    class Worker(ConsumerMixin):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.connection = connection.clone()

        def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
            return [consumer([queue], callbacks=[self.on_task], prefetch_count=2)]

        def on_consume_ready(self, connection: Any, channel: Any, consumers: Any, **_: Any) -> None:
            for number in range(5):
                Producer(channel).publish(number, routing_key=queue.name)

        def on_task(self, body: Any, message: Any) -> None:
            seen.append(body)
            message.ack()
            if len(seen) == 5:
                self.should_stop = True

    Worker().run(timeout=10)
    assert seen == list(range(5))


def test_connection_comes_back(connection: Connection) -> None:
    """`ensure` repeats a publish whose connection broke under it."""
    queue = Queue(unique("ensure"), auto_delete=True)
    queue(connection.default_channel).declare()
    producer = Producer(connection.default_channel)
    publish = connection.ensure(producer, producer.publish, max_retries=3, interval_start=0.05)
    publish("first", routing_key=queue.name)
    connection.connection.transport.sock.shutdown(socket.SHUT_RDWR)
    publish("second", routing_key=queue.name)
    bound = queue(connection.default_channel)
    assert [bound.get(no_ack=True).payload for _ in range(2)] == ["first", "second"]
    bound.delete()


def test_mailbox_of_workers(connection: Connection) -> None:
    """What Celery's remote control is made of: fanout to all, answers over a reply queue."""
    mailbox = Mailbox(unique("mailbox"), type="fanout", accept=["json"], serializer="json")
    node = mailbox(connection).Node(
        "worker1", state={}, handlers={"ping": lambda _state, **_: {"ok": "pong"}}
    )
    consumer = node.listen(channel=connection.channel())
    client = connection.clone()
    box = mailbox(client)
    try:
        reply: list[Any] = []
        box._publish(  # the waiting variant would need a second thread
            "ping",
            {},
            destination=["worker1"],
            reply_ticket="ticket",
            channel=client.default_channel,
            timeout=5,
        )
        connection.drain_events(timeout=10)
        reply = box._collect("ticket", limit=1, timeout=10, channel=client.default_channel)
        assert reply == [{"worker1": {"ok": "pong"}}]
    finally:
        consumer.cancel()
        client.release()
