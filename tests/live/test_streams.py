"""Streams, as a client sees them. Tried with RabbitMQ 4.0.5."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker, ConnectionClosedByBroker

from qlog.server.broker.queues.arguments import COMPARED
from tests.live.conversation import unique, until

pytestmark = pytest.mark.newer

IS_QLOG = "QLOG_TEST_URL" not in os.environ
STREAM = {"x-queue-type": "stream"}
Open = Callable[[], BlockingChannel]
# What is not there yet cannot be waited for: a peer gets so long to say something wrong.
QUIET_S = 0.05 if IS_QLOG else 0.3


@pytest.fixture
def open_(broker_url: str) -> Iterator[Open]:
    """A maker of channels, each with a connection of its own."""
    connections = []

    def make() -> BlockingChannel:
        connection = pika.BlockingConnection(pika.URLParameters(broker_url))
        connections.append(connection)
        return connection.channel()

    yield make
    for connection in connections:
        with suppress(AMQPError):
            connection.close()


@pytest.fixture
def channel(open_: Open) -> BlockingChannel:
    return open_()


@pytest.fixture
def q(open_: Open) -> Iterator[str]:
    """An empty stream."""
    name = unique("stream")
    open_().queue_declare(name, durable=True, arguments=STREAM)
    yield name
    open_().queue_delete(name)


def publish(channel: BlockingChannel, q: str, *bodies: bytes, **properties: Any) -> None:
    """Publish, and wait for the confirms: each message is a chunk of its own in RabbitMQ."""
    channel.confirm_delivery()
    for body in bodies:
        channel.basic_publish("", q, body, pika.BasicProperties(**properties))


class Reading:
    """A consumer, and what it got: (offset, body)."""

    def __init__(
        self,
        channel: BlockingChannel,
        q: str,
        offset: Any = "first",
        *,
        prefetch: int = 100,
        verdict: str = "ack",
        **arguments: Any,
    ) -> None:
        self.got: list[tuple[int, bytes]] = []
        self.properties: list[Any] = []
        self.methods: list[Any] = []
        self.cancelled: list[str] = []
        self.channel = channel
        self.verdict = verdict
        channel.basic_qos(prefetch_count=prefetch)
        table = {name.replace("_", "-"): value for name, value in arguments.items()}
        if offset is not None:
            table["x-stream-offset"] = offset
        channel.add_on_cancel_callback(
            lambda frame: self.cancelled.append(frame.method.consumer_tag)
        )
        self.tag = channel.basic_consume(q, self._take, arguments=table)

    def _take(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self.got.append((properties.headers["x-stream-offset"], body))
        self.properties.append(properties)
        self.methods.append(method)
        if self.verdict == "ack":
            channel.basic_ack(method.delivery_tag)
        elif self.verdict == "requeue":
            channel.basic_nack(method.delivery_tag, requeue=True)
        elif self.verdict == "reject":
            channel.basic_reject(method.delivery_tag, requeue=False)

    def wait(self, count: int) -> list[tuple[int, bytes]]:
        """So many messages, and not one more."""

        def enough() -> bool:
            self.channel.connection.process_data_events(0.01)
            return len(self.got) >= count

        until(enough, f"{count} messages, not {len(self.got)}")
        return self.quiet()

    def quiet(self) -> list[tuple[int, bytes]]:
        """What came until nothing more comes."""
        self.channel.connection.process_data_events(QUIET_S)
        return self.got


def numbered(first: int, end: int) -> list[tuple[int, bytes]]:
    return [(at, b"m%d" % at) for at in range(first, end)]


def bodies(first: int, end: int) -> list[bytes]:
    return [body for _, body in numbered(first, end)]


# --- declaring

REFUSED = {
    "x-dead-letter-exchange": "x",
    "x-dead-letter-strategy": "at-least-once",
    "x-delivery-limit": 3,
    "x-expires": 1000,
    "x-max-in-memory-bytes": 5,
    "x-max-in-memory-length": 5,
    "x-max-length": 5,
    "x-max-priority": 5,
    "x-message-ttl": 1000,
    "x-overflow": "drop-head",
    "x-queue-master-locator": "min-masters",
    "x-queue-mode": "lazy",
    "x-queue-version": 2,
    "x-quorum-initial-group-size": 3,
    "x-single-active-consumer": True,
}


def refused(channel: BlockingChannel, code: int, text: str, act: Callable[[], object]) -> None:
    kind = ChannelClosedByBroker if code < 500 else ConnectionClosedByBroker
    with pytest.raises(kind) as caught:
        act()
    assert (caught.value.reply_code, caught.value.reply_text) == (code, text)


@pytest.mark.parametrize("key", REFUSED)
def test_arguments_of_other_types_are_refused(channel: BlockingChannel, key: str) -> None:
    name = unique()
    refused(
        channel,
        406,
        f"PRECONDITION_FAILED - invalid arg '{key}' for queue '{name}' in vhost '/' of queue type "
        "rabbit_stream_queue",
        lambda: channel.queue_declare(name, durable=True, arguments={**STREAM, key: REFUSED[key]}),
    )


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"durable": False}, "non-durable"),
        ({"durable": True, "exclusive": True}, "exclusive-owner"),
        ({"durable": True, "auto_delete": True}, "auto-delete"),
        ({"durable": False, "auto_delete": True}, "auto-delete"),
    ],
)
def test_it_is_durable_and_for_all(
    channel: BlockingChannel, flags: dict[str, bool], named: str
) -> None:
    name = unique()
    refused(
        channel,
        406,
        f"PRECONDITION_FAILED - invalid property '{named}' for queue '{name}' in vhost '/'",
        lambda: channel.queue_declare(name, arguments=STREAM, **flags),
    )


def test_it_has_a_name(channel: BlockingChannel) -> None:
    refused(
        channel,
        406,
        "PRECONDITION_FAILED - Cannot declare a server-named queue for type rabbit_stream_queue",
        lambda: channel.queue_declare("", durable=True, arguments=STREAM),
    )


BAD: dict[str, list[tuple[Any, str]]] = {
    "x-max-age": [
        ("3x", ": invalid_max_age"),
        ("1", ": invalid_max_age"),
        ("10 h", ": invalid_max_age"),
        ("0h", ": invalid_max_age"),
        ("1hh", ": invalid_max_age"),
        (5, ": {unacceptable_type,signedint}"),
        (True, ": {unacceptable_type,bool}"),
    ],
    "x-stream-max-segment-size-bytes": [
        (-1, ": {value_negative,-1}"),
        ("x", ': "expected integer, got longstr"'),
    ],
    "x-max-length-bytes": [(-1, ": {value_negative,-1}")],
    "x-initial-cluster-size": [(0, ": {value_zero,0}"), (-1, ": {value_negative,-1}")],
}


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [(key, value, complaint) for key, cases in BAD.items() for value, complaint in cases],
)
def test_values_are_checked(channel: BlockingChannel, key: str, value: Any, complaint: str) -> None:
    name = unique()
    refused(
        channel,
        406,
        f"PRECONDITION_FAILED - invalid arg '{key}' for queue '{name}' in vhost '/'{complaint}",
        lambda: channel.queue_declare(name, durable=True, arguments={**STREAM, key: value}),
    )


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (
            "x-stream-max-segment-size-bytes",
            3_000_000_001,
            "Exceeded max value for x-stream-max-segment-size-bytes",
        ),
        ("x-stream-filter-size-bytes", 15, "Invalid value for  x-stream-filter-size-bytes"),
        ("x-stream-filter-size-bytes", 256, "Invalid value for  x-stream-filter-size-bytes"),
        ("x-stream-filter-size-bytes", "x", "Invalid value for  x-stream-filter-size-bytes"),
    ],
)
def test_sizes_are_bounded(channel: BlockingChannel, key: str, value: Any, text: str) -> None:
    refused(
        channel,
        406,
        f"PRECONDITION_FAILED - {text}",
        lambda: channel.queue_declare(unique(), durable=True, arguments={**STREAM, key: value}),
    )


@pytest.mark.parametrize("text", ["7D", "1Y", "2M", "5h", "30m", "1s", "1" * 30 + "s"])
def test_spans_of_time(channel: BlockingChannel, text: str) -> None:
    name = unique()
    arguments: dict[str, Any] = {**STREAM, "x-max-age": text}
    channel.queue_declare(name, durable=True, arguments=arguments)
    channel.queue_delete(name)


@pytest.mark.parametrize("key", [key for key in COMPARED["stream"] if key != "x-queue-type"])
def test_a_redeclaration_has_to_be_the_same(channel: BlockingChannel, q: str, key: str) -> None:
    value: Any = {"x-max-age": "2h", "x-queue-leader-locator": "balanced"}.get(key, 5000)
    kind = "longstr" if isinstance(value, str) else "signedint"
    channel.queue_declare(q, durable=True, arguments={**STREAM, "x-message-ttl": 5})
    refused(
        channel,
        406,
        f"PRECONDITION_FAILED - inequivalent arg '{key}' for queue '{q}' in vhost '/': received "
        f"the value '{value}' of type '{kind}' but current is none",
        lambda: channel.queue_declare(q, durable=True, arguments={**STREAM, key: value}),
    )


def test_a_stream_stays_a_stream(channel: BlockingChannel, q: str) -> None:
    refused(
        channel,
        406,
        f"PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue '{q}' in vhost '/': "
        "received 'classic' but current is 'stream'",
        lambda: channel.queue_declare(q, durable=True),
    )


def test_a_passive_declare_counts_what_is_there(channel: BlockingChannel, q: str) -> None:
    publish(channel, q, *bodies(0, 5))

    def count() -> int:
        method = channel.queue_declare(q, passive=True).method
        found: int = method.message_count
        return found

    until(lambda: count() == 5, "five messages")  # RabbitMQ counts every five seconds
    reading = Reading(channel, q)
    reading.wait(5)
    assert count() == 5
    consumers = channel.queue_declare(q, passive=True).method.consumer_count
    assert consumers == (1 if IS_QLOG else 0)


# --- what is not there


@pytest.mark.parametrize("auto_ack", [True, False])
def test_no_get(channel: BlockingChannel, q: str, auto_ack: bool) -> None:
    text = f"NOT_IMPLEMENTED - basic.get not supported by stream queues queue '{q}' in vhost '/'"
    refused(channel, 540, text, lambda: channel.basic_get(q, auto_ack=auto_ack))


def test_no_purge(channel: BlockingChannel, q: str) -> None:
    text = f"NOT_IMPLEMENTED - queue.purge not supported by stream queues queue '{q}' in vhost '/'"
    refused(channel, 540, text, lambda: channel.queue_purge(q))


def consume(
    channel: BlockingChannel,
    q: str,
    *,
    prefetch: int = 0,
    shared: int = 0,
    auto_ack: bool = False,
    **arguments: Any,
) -> None:
    if prefetch:
        channel.basic_qos(prefetch_count=prefetch)
    if shared:
        channel.basic_qos(prefetch_count=shared, global_qos=True)
    table = {name.replace("_", "-"): value for name, value in arguments.items()}
    channel.basic_consume(q, print, auto_ack=auto_ack, arguments=table)


NO_PREFETCH = (406, "PRECONDITION_FAILED - consumer prefetch count is not set for stream {}")
NO_ACK = (540, "NOT_IMPLEMENTED - automatic acknowledgement not supported by stream {}")
BAD_OFFSET = "PRECONDITION_FAILED - invalid arg 'x-stream-offset' for {}: "
BAD_OFFSET_3X = (406, BAD_OFFSET + '{{invalid_stream_offset_arg,{{longstr,<<"3x">>}}}}')


@pytest.mark.parametrize(
    ("asked", "code_and_text"),
    [
        ({}, NO_PREFETCH),
        ({"auto_ack": True}, NO_PREFETCH),
        ({"shared": 5}, NO_PREFETCH),
        ({"shared": 5, "auto_ack": True}, NO_PREFETCH),
        ({"prefetch": 5, "auto_ack": True}, NO_ACK),
        ({"prefetch": 5, "shared": 6, "auto_ack": True}, NO_ACK),
        (
            {"prefetch": 5, "shared": 6},
            (540, "NOT_IMPLEMENTED - {} does not support global qos"),
        ),
        (
            {"prefetch": 5, "x_priority": 1},
            (
                406,
                "PRECONDITION_FAILED - invalid arg 'x-priority' for {} of queue type"
                + " rabbit_stream_queue",
            ),
        ),
        ({"prefetch": 5, "x_stream_offset": "3x"}, BAD_OFFSET_3X),
        ({"x_stream_offset": "3x"}, BAD_OFFSET_3X),
        ({"prefetch": 5, "auto_ack": True, "x_stream_offset": "3x"}, BAD_OFFSET_3X),
        ({"x_priority": "a", "x_stream_offset": "3x"}, BAD_OFFSET_3X),
    ],
)
def test_what_a_consumer_may_not(
    channel: BlockingChannel, q: str, asked: dict[str, Any], code_and_text: tuple[int, str]
) -> None:
    code, text = code_and_text
    resource = f"queue '{q}' in vhost '/'"
    refused(channel, code, text.format(resource), lambda: consume(channel, q, **asked))


@pytest.mark.parametrize("offset", ["5", "1.5h", "0s", "1H", "1h ", "1Ym"])
def test_bad_offsets(channel: BlockingChannel, q: str, offset: str) -> None:
    text = BAD_OFFSET.format(f"queue '{q}' in vhost '/'")
    text += f'{{invalid_stream_offset_arg,{{longstr,<<"{offset}">>}}}}'
    refused(channel, 406, text, lambda: consume(channel, q, prefetch=1, x_stream_offset=offset))


@pytest.mark.skipif(not IS_QLOG, reason="RabbitMQ 4.0.5 ends the connection with 541")
@pytest.mark.parametrize(
    ("offset", "shown"),
    [
        ("abc", 'longstr,<<"abc">>'),
        ("", 'longstr,<<"">>'),
        ("FIRST", 'longstr,<<"FIRST">>'),
        (True, "bool,true"),
    ],
)
def test_worse_offsets(channel: BlockingChannel, q: str, offset: Any, shown: str) -> None:
    text = BAD_OFFSET.format(f"queue '{q}' in vhost '/'")
    text += f"{{invalid_stream_offset_arg,{{{shown}}}}}"
    refused(channel, 406, text, lambda: consume(channel, q, prefetch=1, x_stream_offset=offset))


# --- where a consumer begins


def hours(number: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=number)


@pytest.mark.parametrize(
    ("offset", "first"),
    [
        ("first", 0),
        ("last", 9),
        ("next", 10),
        (None, 10),
        (0, 0),
        (5, 5),
        (9, 9),
        (10, 10),
        (-1, 0),
        ("1h", 0),
        ("5m", 0),
        ("01h", 0),
        ("10000000000000D", 0),
        (hours(-1), 0),
        (hours(1), 10),
    ],
)
def test_where_it_begins(channel: BlockingChannel, q: str, offset: Any, first: int) -> None:
    publish(channel, q, *bodies(0, 10))
    reading = Reading(channel, q, offset)
    assert reading.wait(10 - first) == numbered(first, 10)
    publish(channel, q, *bodies(10, 12))
    assert reading.wait(12 - first) == numbered(first, 12)


def test_an_offset_to_come(channel: BlockingChannel, q: str) -> None:
    publish(channel, q, *bodies(0, 3))
    reading = Reading(channel, q, 6)
    publish(channel, q, *bodies(3, 6))
    assert reading.quiet() == []
    publish(channel, q, *bodies(6, 9))
    assert reading.wait(3) == numbered(6, 9)


def test_a_time_is_found(channel: BlockingChannel, q: str) -> None:
    publish(channel, q, b"m0", b"m1")
    # Times of AMQP are whole seconds.
    time.sleep(1.1 - time.time() % 1)
    between = datetime.datetime.now(datetime.UTC)
    publish(channel, q, b"m2")
    reading = Reading(channel, q, between)
    assert reading.wait(1) == numbered(2, 3)


# --- reading


def test_messages_stay_and_are_read_by_many(open_: Open, channel: BlockingChannel, q: str) -> None:
    publish(channel, q, *bodies(0, 20))
    for _ in range(2):
        readings = [Reading(open_(), q, first) for first in (0, 0, 7)]
        for reading, first in zip(readings, (0, 0, 7), strict=True):
            assert reading.wait(20 - first) == numbered(first, 20)
            assert not any(method.redelivered for method in reading.methods)


@pytest.mark.parametrize("verdict", ["ack", "requeue", "reject"])
def test_whatever_becomes_of_a_delivery_is_credit(
    channel: BlockingChannel, q: str, verdict: str
) -> None:
    publish(channel, q, *bodies(0, 8))
    reading = Reading(channel, q, prefetch=2, verdict=verdict)
    assert reading.wait(8) == numbered(0, 8)


def test_the_prefetch_bounds_what_is_out(channel: BlockingChannel, q: str) -> None:
    publish(channel, q, *bodies(0, 8))
    reading = Reading(channel, q, prefetch=3, verdict="")
    assert reading.wait(3) == numbered(0, 3)
    channel.basic_ack(reading.methods[1].delivery_tag, multiple=True)
    assert reading.wait(5) == numbered(0, 5)
    channel.basic_recover(requeue=True)
    assert reading.wait(8) == numbered(0, 8)


def test_a_message_is_told_as_it_was_published(channel: BlockingChannel, q: str) -> None:
    headers = {"a": 1, "z": "text"}
    publish(
        channel, q, b"body", headers=headers, content_type="x/y", message_id="id", delivery_mode=1
    )
    reading = Reading(channel, q)
    assert reading.wait(1) == [(0, b"body")]
    properties, method = reading.properties[0], reading.methods[0]
    assert properties.headers == {**headers, "x-stream-offset": 0}
    assert (properties.content_type, properties.message_id) == ("x/y", "id")
    assert (method.exchange, method.routing_key) == ("", q)


def test_messages_with_all_kinds_of_properties_in_one_read(
    channel: BlockingChannel, q: str
) -> None:
    for at in range(30):
        publish(
            channel,
            q,
            b"m%d" % at,
            headers=None if at % 3 else {"n": at, "x-stream-offset": "mine"},
            priority=at % 5 or None,
            expiration="1000" if at % 7 == 0 else None,
        )
    reading = Reading(channel, q)
    assert reading.wait(30) == numbered(0, 30)
    for at, properties in enumerate(reading.properties):
        assert properties.headers.get("n") == (None if at % 3 else at)


def test_transient_messages_are_kept_and_none_expires(channel: BlockingChannel, q: str) -> None:
    publish(channel, q, b"m0", delivery_mode=1, expiration="1")
    time.sleep(0.05)  # longer than it may wait anywhere else
    assert Reading(channel, q).wait(1) == numbered(0, 1)


def test_it_is_a_target_like_any_other(channel: BlockingChannel, q: str) -> None:
    classic = channel.queue_declare("", exclusive=True).method.queue
    for name in (q, classic):
        channel.queue_bind(name, "amq.fanout")
    channel.confirm_delivery()
    for body in bodies(0, 3):
        channel.basic_publish("amq.fanout", "key", body, mandatory=True)
    reading = Reading(channel, q)
    assert reading.wait(3) == numbered(0, 3)
    assert (reading.methods[0].exchange, reading.methods[0].routing_key) == ("amq.fanout", "key")
    assert channel.basic_get(classic, auto_ack=True)[2] == b"m0"
    channel.queue_unbind(q, "amq.fanout")


def test_transactions(channel: BlockingChannel, open_: Open, q: str) -> None:
    channel.tx_select()
    channel.basic_publish("", q, b"m0")
    channel.tx_rollback()
    channel.basic_publish("", q, b"m0")
    channel.tx_commit()
    assert Reading(open_(), q).wait(1) == numbered(0, 1)


def test_a_cancelled_consumer_gets_nothing_more(
    open_: Open, channel: BlockingChannel, q: str
) -> None:
    reading = Reading(open_(), q)
    publish(channel, q, b"m0")
    assert reading.wait(1) == numbered(0, 1)
    reading.channel.basic_cancel(reading.tag)
    publish(channel, q, b"m1")
    assert reading.quiet() == numbered(0, 1)
    again = Reading(reading.channel, q, 1)
    assert again.wait(1) == numbered(1, 2)


def test_consumers_of_a_deleted_stream_are_told(
    open_: Open, channel: BlockingChannel, q: str
) -> None:
    publish(channel, q, b"m0")
    reading = Reading(open_(), q)
    reading.wait(1)
    channel.queue_delete(q)

    def told() -> bool:
        reading.channel.connection.process_data_events(0.01)
        return reading.cancelled == [reading.tag]

    until(told, "basic.cancel")
    channel.queue_declare(q, durable=True, arguments=STREAM)
    publish(channel, q, b"new")
    assert Reading(channel, q).wait(1) == [(0, b"new")]


@pytest.mark.skipif(not IS_QLOG, reason="RabbitMQ 4.0.5 deletes the stream all the same")
def test_a_delete_can_ask_for_an_unused_or_empty_stream(
    open_: Open, channel: BlockingChannel, q: str
) -> None:
    publish(channel, q, b"m0")
    resource = f"queue '{q}' in vhost '/'"
    refused(
        channel,
        406,
        f"PRECONDITION_FAILED - {resource} not empty",
        lambda: channel.queue_delete(q, if_empty=True),
    )
    channel = open_()
    Reading(open_(), q).wait(1)
    refused(
        channel,
        406,
        f"PRECONDITION_FAILED - {resource} in use",
        lambda: channel.queue_delete(q, if_unused=True),
    )


# --- filters

FILTERED = ["a", "b", None, "", "a"]


@pytest.mark.parametrize(
    ("arguments", "offsets"),
    [
        ({"x_stream_filter": "a"}, [0, 4]),
        ({"x_stream_filter": ["a", "b"]}, [0, 1, 4]),
        ({"x_stream_filter": ""}, [2, 3]),
        ({"x_stream_filter": "a", "x_stream_match_unfiltered": True}, [0, 2, 3, 4]),
        ({"x_stream_match_unfiltered": True}, [0, 1, 2, 3, 4]),
        ({"x_stream_filter": "zz"}, []),
        ({"x_stream_filter": 5}, [0, 1, 2, 3, 4]),
    ],
)
def test_filters(
    channel: BlockingChannel, q: str, arguments: dict[str, Any], offsets: list[int]
) -> None:
    for value in FILTERED:
        headers = None if value is None else {"x-stream-filter-value": value}
        publish(channel, q, b"", headers=headers)
    for prefetch in (1, 100):
        reading = Reading(channel, q, prefetch=prefetch, **arguments)
        assert [offset for offset, _ in reading.wait(len(offsets))] == offsets
        channel.basic_cancel(reading.tag)


@pytest.mark.skipif(not IS_QLOG, reason="RabbitMQ 4.0.5 ends the connection with 541")
def test_odd_filters(channel: BlockingChannel, open_: Open, q: str) -> None:
    publish(channel, q, b"m0", headers={"x-stream-filter-value": 5})
    assert Reading(channel, q, x_stream_filter="").wait(1) == numbered(0, 1)
    other = open_()
    with pytest.raises(ChannelClosedByBroker):
        consume(other, q, prefetch=1, x_stream_filter=[])


# --- retention


def test_the_oldest_messages_go_with_their_segments(channel: BlockingChannel, open_: Open) -> None:
    name = unique("stream")
    arguments = {
        **STREAM,
        "x-max-length-bytes": 1_000_000,
        "x-stream-max-segment-size-bytes": 300_000,
    }
    channel.queue_declare(name, durable=True, arguments=arguments)
    readings: list[Reading] = []

    def first_offset() -> int:
        publish(channel, name, *(bytes(10_000) for _ in range(30)))
        reading = Reading(open_(), name)
        readings.append(reading)
        reading.wait(1)
        return reading.got[0][0]

    assert until(first_offset, "messages that are gone", deadline_s=30)
    for reading in readings:  # those that had read them go on
        offsets = [offset for offset, _ in reading.quiet()]
        assert offsets == sorted(set(offsets))
        if IS_QLOG:  # RabbitMQ gives some offsets to records of its own
            assert offsets == list(range(offsets[0], offsets[-1] + 1))
    channel.queue_delete(name)


# --- much of it


def test_a_long_stream_is_read_from_everywhere(open_: Open, q: str) -> None:
    """Far beyond what is moved at once, so that it comes from segments, the log and memory."""
    count = 9_000
    channel = open_()
    channel.confirm_delivery()
    publisher = open_()
    for at in range(count):
        publisher.basic_publish("", q, b"m%d" % at)
    publish(publisher, q, b"m%d" % count)
    readings = [Reading(open_(), q, first, prefetch=2000) for first in (0, 1, 7_000, count)]
    for reading, first in zip(readings, (0, 1, 7_000, count), strict=True):
        assert reading.wait(count + 1 - first) == numbered(first, count + 1)
