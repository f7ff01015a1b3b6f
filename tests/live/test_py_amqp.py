"""py-amqp: the transport under kombu and Celery, used directly."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import amqp
import pytest
from amqp.exceptions import (
    AccessRefused,
    ConsumerCancelled,
    NotFound,
    PreconditionFailed,
    ResourceLocked,
)

from tests.live.conversation import unique, until


def connect(url: str, **options: Any) -> amqp.Connection:
    """An open connection."""
    parts = urlsplit(url)
    settings = {"userid": "guest", "password": "guest", "connect_timeout": 10, **options}
    connection = amqp.Connection(f"{parts.hostname}:{parts.port}", **settings)
    connection.connect()
    return connection


@pytest.fixture
def connection(broker_url: str) -> Iterator[amqp.Connection]:
    with connect(broker_url, confirm_publish=True) as connection:
        yield connection


@pytest.fixture
def channel(connection: amqp.Connection) -> amqp.Channel:
    return connection.channel()


@pytest.fixture
def queue(channel: amqp.Channel) -> str:
    return str(channel.queue_declare("", exclusive=True).queue)


def test_capabilities_turn_features_on(connection: amqp.Connection) -> None:
    capabilities = connection.server_capabilities
    assert capabilities["consumer_cancel_notify"] and capabilities["connection.blocked"]
    assert connection.server_properties["product"] == "RabbitMQ"


@pytest.mark.parametrize("method", ["PLAIN", "AMQPLAIN"])
def test_login_methods(broker_url: str, method: str) -> None:
    with connect(broker_url, login_method=method) as connection:
        assert connection.channel().is_open


def test_wrong_password(broker_url: str) -> None:
    with pytest.raises(AccessRefused, match="Login was refused using authentication mechanism"):
        connect(broker_url, password="wrong")


def test_publish_confirmed_and_get(channel: amqp.Channel, queue: str) -> None:
    message = amqp.Message(
        "hällo",
        content_type="text/plain",
        content_encoding="utf-8",
        delivery_mode=2,
        application_headers={"int": 7, "long": 1 << 40, "list": ["a", 1], "table": {"x": None}},
    )
    channel.basic_publish_confirm(message, "", queue)
    got = channel.basic_get(queue)
    assert got.body == "hällo"
    assert got.headers == message.properties["application_headers"]
    assert got.delivery_info["redelivered"] is False
    channel.basic_ack(got.delivery_tag)
    assert channel.basic_get(queue) is None


def test_consume_and_acknowledge(
    connection: amqp.Connection, channel: amqp.Channel, queue: str
) -> None:
    got: list[str] = []

    def on_message(message: Any) -> None:
        got.append(message.body)
        channel.basic_ack(message.delivery_tag)

    channel.basic_qos(0, 5, False)
    channel.basic_consume(queue, callback=on_message)
    for number in range(50):
        channel.basic_publish(amqp.Message(str(number)), "", queue)
    while len(got) < 50:
        connection.drain_events(timeout=10)
    assert got == [str(number) for number in range(50)]


def test_global_prefetch(connection: amqp.Connection, channel: amqp.Channel, queue: str) -> None:
    got: list[Any] = []
    channel.basic_qos(0, 2, True)
    for _ in range(2):
        channel.basic_consume(queue, callback=got.append)
    for number in range(5):
        channel.basic_publish_confirm(amqp.Message(str(number)), "", queue)
    while len(got) < 2:
        connection.drain_events(timeout=10)
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.2)
    channel.basic_ack(got[1].delivery_tag, multiple=True)
    while len(got) < 4:
        connection.drain_events(timeout=10)


def test_reject_and_recover(connection: amqp.Connection, channel: amqp.Channel, queue: str) -> None:
    for number in range(2):
        channel.basic_publish_confirm(amqp.Message(str(number)), "", queue)
    first, second = channel.basic_get(queue), channel.basic_get(queue)
    channel.basic_reject(first.delivery_tag, requeue=True)
    channel.basic_recover(requeue=True)
    again = [channel.basic_get(queue) for _ in range(2)]
    assert [m.body for m in again] == [first.body, second.body]
    assert all(m.delivery_info["redelivered"] for m in again)


def test_returned_message(connection: amqp.Connection, channel: amqp.Channel) -> None:
    returned: list[Any] = []
    channel.events["basic_return"].add(lambda *values: returned.append(values))
    channel.basic_publish(amqp.Message("x"), "", unique("missing"), mandatory=True)
    while not returned:
        connection.drain_events(timeout=10)
    assert returned[0][0] is not None


def test_nowait_declarations(channel: amqp.Channel) -> None:
    queue, exchange = unique("nowait"), unique("nowait")
    channel.exchange_declare(exchange, "fanout", nowait=True, auto_delete=True)
    channel.queue_declare(queue, nowait=True, auto_delete=True)
    channel.queue_bind(queue, exchange, nowait=True)
    channel.basic_publish_confirm(amqp.Message("x"), exchange)
    assert channel.basic_get(queue, no_ack=True).body == "x"
    channel.queue_delete(queue, nowait=True)


def test_errors_by_their_class(connection: amqp.Connection) -> None:
    name = unique("errors")
    connection.channel().queue_declare(name, exclusive=True)
    with pytest.raises(NotFound):
        connection.channel().queue_declare(unique("missing"), passive=True)
    with pytest.raises(PreconditionFailed):
        connection.channel().queue_declare(name, exclusive=True, arguments={"x-expires": 1000})
    with pytest.raises(AccessRefused):
        connection.channel().queue_declare("amq.reserved")


def test_locked_queue(broker_url: str, channel: amqp.Channel, queue: str) -> None:
    with connect(broker_url) as other, pytest.raises(ResourceLocked):
        other.channel().basic_get(queue)


def test_cancelled_consumer_raises(connection: amqp.Connection, channel: amqp.Channel) -> None:
    name = unique("cancelled")
    channel.queue_declare(name)
    channel.basic_consume(name)
    with pytest.raises(ConsumerCancelled):
        connection.channel().queue_delete(name)
        connection.drain_events(timeout=10)


def test_purge_and_delete_count(channel: amqp.Channel, queue: str) -> None:
    for _ in range(4):
        channel.basic_publish_confirm(amqp.Message("x"), "", queue)
    until(lambda: channel.queue_declare(queue, passive=True).message_count == 4, "four messages")
    assert channel.queue_purge(queue) == 4
    assert channel.queue_delete(queue) == 0


def test_heartbeats_keep_a_connection(broker_url: str) -> None:
    with connect(broker_url, heartbeat=2) as connection:
        assert connection.heartbeat == 2
        for _ in range(12):
            with pytest.raises(socket.timeout):
                connection.drain_events(timeout=0.25)
            connection.heartbeat_tick()
        assert connection.channel().is_open
