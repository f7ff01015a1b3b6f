"""pika, blocking: what programs written for it do all day."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import (
    AuthenticationError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    NackError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    UnroutableError,
)

from tests.live.conversation import unique, until


@pytest.fixture
def connection(broker_url: str) -> Iterator[BlockingConnection]:
    with BlockingConnection(pika.URLParameters(broker_url)) as connection:
        yield connection


@pytest.fixture
def channel(connection: BlockingConnection) -> BlockingChannel:
    return connection.channel()


@pytest.fixture
def queue(channel: BlockingChannel) -> str:
    return str(channel.queue_declare("", exclusive=True).method.queue)


def test_publish_with_confirms_and_get(channel: BlockingChannel, queue: str) -> None:
    channel.confirm_delivery()
    properties = pika.BasicProperties(
        content_type="application/json",
        delivery_mode=2,
        headers={"number": 1, "big": 1 << 40, "text": "t", "nested": {"list": [1, "a", None]}},
        message_id="m-1",
        timestamp=1_700_000_000,
    )
    channel.basic_publish("", queue, b"{}", properties, mandatory=True)
    method, got, body = channel.basic_get(queue)
    assert body == b"{}" and got.headers == properties.headers
    assert (got.content_type, got.delivery_mode, got.message_id) == ("application/json", 2, "m-1")
    assert method.message_count == 0
    channel.basic_ack(method.delivery_tag)
    assert channel.basic_get(queue) == (None, None, None)


def test_unroutable_message_raises(channel: BlockingChannel) -> None:
    channel.confirm_delivery()
    with pytest.raises(UnroutableError) as caught:
        channel.basic_publish("", unique("missing"), b"lost", mandatory=True)
    assert [m.body for m in caught.value.messages] == [b"lost"]
    assert caught.value.messages[0].method.reply_code == 312


def test_rejected_message_raises(channel: BlockingChannel) -> None:
    channel.confirm_delivery()
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    queue = channel.queue_declare("", exclusive=True, arguments=arguments).method.queue
    channel.basic_publish("", queue, b"1")
    with pytest.raises(NackError):
        channel.basic_publish("", queue, b"2")


def test_returned_message_reaches_its_callback(
    connection: BlockingConnection, channel: BlockingChannel
) -> None:
    returned: list[bytes] = []
    channel.add_on_return_callback(lambda _c, _m, _p, body: returned.append(body))
    channel.basic_publish("", unique("missing"), b"back", mandatory=True)

    def arrived() -> bool:
        connection.process_data_events(0.01)
        return bool(returned)

    until(arrived, "the return")
    assert returned == [b"back"]


def test_consume_with_callbacks_until_stopped(channel: BlockingChannel, queue: str) -> None:
    got: list[bytes] = []

    def on_message(ch: BlockingChannel, method: Any, _properties: Any, body: bytes) -> None:
        got.append(body)
        ch.basic_ack(method.delivery_tag)
        if len(got) == 100:
            ch.stop_consuming()

    channel.basic_qos(prefetch_count=10)
    channel.basic_consume(queue, on_message)
    for number in range(100):
        channel.basic_publish("", queue, b"%d" % number)
    channel.start_consuming()
    assert got == [b"%d" % number for number in range(100)]
    assert channel.queue_declare(queue, passive=True).method.message_count == 0


def test_consume_as_a_generator_and_cancel(channel: BlockingChannel, queue: str) -> None:
    for number in range(10):
        channel.basic_publish("", queue, b"%d" % number)
    got = []
    for method, _properties, body in channel.consume(queue, inactivity_timeout=5):
        got.append(body)
        channel.basic_ack(method.delivery_tag)
        if len(got) == 5:
            break
    assert got == [b"0", b"1", b"2", b"3", b"4"]
    channel.cancel()
    until(
        lambda: channel.queue_declare(queue, passive=True).method.message_count == 5,
        "the rest is back",
    )
    method, _, body = channel.basic_get(queue)
    assert body == b"5"


def test_reject_with_requeue_comes_again(channel: BlockingChannel, queue: str) -> None:
    channel.basic_publish("", queue, b"x")
    seen: list[bool] = []

    def on_message(ch: BlockingChannel, method: Any, _properties: Any, _body: bytes) -> None:
        seen.append(method.redelivered)
        if len(seen) < 3:
            ch.basic_nack(method.delivery_tag, requeue=True)
        else:
            ch.basic_reject(method.delivery_tag, requeue=False)
            ch.stop_consuming()

    channel.basic_consume(queue, on_message)
    channel.start_consuming()
    assert seen == [False, True, True]


def test_topic_routing(channel: BlockingChannel, queue: str) -> None:
    exchange = unique("topic")
    channel.exchange_declare(exchange, "topic", auto_delete=True)
    channel.queue_bind(queue, exchange, "logs.*.error")
    for key in ("logs.web.error", "logs.web.info", "logs.db.error"):
        channel.basic_publish(exchange, key, key.encode())
    bodies = [channel.basic_get(queue, auto_ack=True)[2] for _ in range(3)]
    assert bodies == [b"logs.web.error", b"logs.db.error", None]


def test_rpc_over_an_exclusive_queue(broker_url: str, channel: BlockingChannel) -> None:
    requests = channel.queue_declare("", auto_delete=True).method.queue

    def serve() -> None:
        with BlockingConnection(pika.URLParameters(broker_url)) as connection:
            server = connection.channel()
            for method, properties, body in server.consume(requests, inactivity_timeout=10):
                assert method is not None
                server.basic_publish(
                    "",
                    properties.reply_to,
                    str(int(body) ** 2).encode(),
                    pika.BasicProperties(correlation_id=properties.correlation_id),
                )
                server.basic_ack(method.delivery_tag)
                if body == b"4":
                    break
            server.cancel()

    thread = threading.Thread(target=serve)
    thread.start()
    replies = channel.queue_declare("", exclusive=True).method.queue
    answers: dict[str, bytes] = {}
    for number in range(5):
        channel.basic_publish(
            "",
            requests,
            str(number).encode(),
            pika.BasicProperties(reply_to=replies, correlation_id=f"c{number}"),
        )
    for _method, properties, body in channel.consume(replies, auto_ack=True, inactivity_timeout=10):
        answers[properties.correlation_id] = body
        if len(answers) == 5:
            break
    thread.join(10)
    assert answers == {f"c{n}": str(n * n).encode() for n in range(5)}


def test_rpc_over_direct_reply_to(
    connection: BlockingConnection, channel: BlockingChannel, queue: str
) -> None:
    answers: list[bytes] = []
    channel.basic_consume(
        "amq.rabbitmq.reply-to", lambda _c, _m, _p, body: answers.append(body), auto_ack=True
    )
    channel.basic_publish("", queue, b"?", pika.BasicProperties(reply_to="amq.rabbitmq.reply-to"))
    other = connection.channel()
    _method, properties, _body = other.basic_get(queue, auto_ack=True)
    other.basic_publish("", properties.reply_to, b"!")

    def arrived() -> bool:
        connection.process_data_events(0.01)
        return bool(answers)

    until(arrived, "the answer")
    assert answers == [b"!"]


def test_missing_queue_closes_only_the_channel(connection: BlockingConnection) -> None:
    channel = connection.channel()
    name = unique("missing")
    with pytest.raises(ChannelClosedByBroker) as caught:
        channel.queue_declare(name, passive=True)
    assert caught.value.reply_code == 404
    assert caught.value.reply_text == f"NOT_FOUND - no queue '{name}' in vhost '/'"
    assert connection.channel().is_open


def test_unequal_redeclaration(connection: BlockingConnection) -> None:
    name = unique("unequal")
    connection.channel().queue_declare(name, exclusive=True)
    with pytest.raises(ChannelClosedByBroker) as caught:
        connection.channel().queue_declare(name, exclusive=True, arguments={"x-max-length": 9})
    assert caught.value.reply_code == 406


def test_deleted_queue_cancels_its_consumer(
    connection: BlockingConnection, channel: BlockingChannel
) -> None:
    name = unique("deleted")
    channel.queue_declare(name)
    cancelled: list[str] = []
    channel.add_on_cancel_callback(lambda frame: cancelled.append(frame.method.consumer_tag))
    tag = channel.basic_consume(name, lambda *_: None)
    connection.channel().queue_delete(name)

    def arrived() -> bool:
        connection.process_data_events(0.01)
        return bool(cancelled)

    until(arrived, "the cancel")
    assert cancelled == [tag]


def test_transaction(channel: BlockingChannel, queue: str) -> None:
    channel.tx_select()
    channel.basic_publish("", queue, b"rolled back")
    channel.tx_rollback()
    channel.basic_publish("", queue, b"committed")
    assert channel.basic_get(queue, auto_ack=True)[2] is None
    channel.tx_commit()
    assert channel.basic_get(queue, auto_ack=True)[2] == b"committed"


def test_wrong_password(broker_url: str) -> None:
    parameters = pika.URLParameters(broker_url)
    parameters.credentials = pika.PlainCredentials("guest", "wrong")
    with pytest.raises(
        (ProbableAuthenticationError, AuthenticationError, ConnectionClosedByBroker)
    ):
        BlockingConnection(parameters)


def test_wrong_virtual_host(broker_url: str) -> None:
    parameters = pika.URLParameters(broker_url)
    parameters.virtual_host = "nowhere"
    with pytest.raises(ProbableAccessDeniedError, match=r"\(530\) 'NOT_ALLOWED - vhost nowhere"):
        BlockingConnection(parameters)


def test_update_secret(connection: BlockingConnection) -> None:
    connection.update_secret("guest", "refresh")
    assert connection.channel().is_open


def test_large_message(channel: BlockingChannel, queue: str) -> None:
    channel.confirm_delivery()
    body = bytes(range(256)) * 20_000
    channel.basic_publish("", queue, body)
    assert channel.basic_get(queue, auto_ack=True)[2] == body
