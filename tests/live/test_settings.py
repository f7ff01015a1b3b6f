"""What settings change for clients: acknowledgement timeout, alarms, sizes. Brokers of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pamqp.commands import Basic, Channel, Connection, Queue

from tests.live.conversation import Client, connections, encode_frame, refusal, until
from tests.live.server import BrokerProcess

pytestmark = pytest.mark.newer

Start = Callable[..., Callable[..., Client]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a broker with settings; return a maker of connections to it."""
    with ExitStack() as stack:

        def run(**settings: object) -> Callable[..., Client]:
            named = {f"QLOG_{name.upper()}": str(value) for name, value in settings.items()}
            broker = BrokerProcess(tmp_path / "data", settings=named).start()
            stack.callback(broker.kill)
            return stack.enter_context(connections(broker.url))

        yield run


def overdue(timeout_ms: int, channel: int = 1) -> str:
    """What a consumer is told that did not acknowledge in time."""
    return (
        f"PRECONDITION_FAILED - delivery acknowledgement on channel {channel} timed out. "
        f"Timeout value used: {timeout_ms} ms. "
        "This timeout value can be configured, see consumers doc guide to learn more"
    )


def test_consumer_that_does_not_acknowledge_loses_its_channel(start: Start) -> None:
    connect = start(consumer_timeout_s=0.3)
    talk, other = connect().channel(), connect().channel()
    queue = talk.queue()
    for number in range(3):
        talk.publish("", queue, b"%d" % number)
    talk.consume(queue)
    talk.deliveries(3)
    talk.send(Basic.Ack(1))
    assert talk.refusal() == refusal(406, overdue(300))
    again = [other.get_soon(queue, no_ack=True) for _ in range(2)]
    assert [(m.body, m.method.redelivered) for m in again] == [(b"1", True), (b"2", True)]
    talk.client.channel(2)


def test_acknowledgements_in_time_keep_the_channel(start: Start) -> None:
    connect = start(consumer_timeout_s=0.5)
    prompt, tardy = connect().channel(), connect().channel()
    queue, slow = prompt.queue(), tardy.queue(arguments={"x-consumer-timeout": 1500})
    prompt.call(Basic.Qos(prefetch_count=1))
    prompt.consume(queue)
    tardy.publish("", slow, b"x")
    tardy.consume(slow)
    tardy.expect(Basic.Deliver)

    # The other one's timeout, three times as long, is the clock.
    def is_over() -> bool:
        prompt.publish("", queue, b"x")
        message = prompt.expect(Basic.Deliver)
        prompt.send(Basic.Ack(message.method.delivery_tag))
        tardy.send(Channel.Flow(active=True))
        return isinstance(tardy.next(), Channel.Close)

    until(is_over, "the other channel is closed")


def test_overdue_message_alone_goes_back(start: Start) -> None:
    """With the queue's action set so, the channel lives on and a late ack is ignored."""
    connect = start()
    talk, other = connect().channel(), connect().channel()
    queue = talk.queue(
        arguments={"x-consumer-timeout": 300, "x-consumer-timeout-action": "requeue"}
    )
    talk.publish("", queue, b"x")
    talk.call(Basic.Qos(prefetch_count=1))
    talk.consume(queue)
    talk.expect(Basic.Deliver, delivery_tag=1)
    message = talk.expect(Basic.Deliver, delivery_tag=2, redelivered=True)
    assert message.body == b"x"
    talk.send(Basic.Ack(1))
    talk.send(Basic.Ack(2))
    talk.call(Channel.Flow(active=True))
    until(lambda: other.call(Queue.Purge(queue=queue)).message_count == 0, "nothing left")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"memory_high_watermark_bytes": 1}, "low on memory"),
        ({"disk_free_limit_bytes": 1 << 60}, "low on disk"),
        (
            {"memory_high_watermark_bytes": 1, "disk_free_limit_bytes": 1 << 60},
            "low on memory & low on disk",
        ),
    ],
    ids=["memory", "disk", "both"],
)
def test_publishers_are_blocked(start: Start, settings: dict[str, int], reason: str) -> None:
    """With their first publish, which does not get in, and read no further; all others go on."""
    connect = start(**settings)
    publisher, consumer = connect().channel(), connect().channel()
    queue = consumer.queue()
    consumer.consume(queue)
    publisher.confirm()
    publisher.publish("", queue, b"first")
    blocked = publisher.client.expect(0, Connection.Blocked)
    assert blocked.reason == reason
    publisher.publish("", queue, b"second")
    for _ in range(5):
        consumer.quiet(queue)
    publisher.client.closed = True


def test_client_without_the_capability_is_not_told_of_alarms(start: Start) -> None:
    connect = start(memory_high_watermark_bytes=1)
    publisher, other = connect(capabilities={}).channel(), connect().channel()
    publisher.publish("", other.queue(), b"x")
    other.publish("", "nowhere", b"x")
    other.client.expect(0, Connection.Blocked)
    assert not publisher.client.inboxes.get(0)
    publisher.client.closed = other.client.closed = True


def test_configured_message_size(start: Start) -> None:
    talk = start(message_bytes_max=1000)().channel()
    queue = talk.queue()
    talk.publish("", queue, b"x" * 1000)
    assert talk.get_soon(queue).body == b"x" * 1000
    talk.send(
        Basic.Publish(exchange="", routing_key=queue),
        encode_frame(2, 1, b"\x00\x3c\x00\x00" + (1001).to_bytes(8, "big") + b"\x00\x00"),
    )
    got = talk.refusal()
    assert (got.code, got.method_id) == (406, 40)
    assert got.text in {
        "PRECONDITION_FAILED - message size 1001 is larger than max size 1000",
        "PRECONDITION_FAILED - message size 1001 is larger than configured max size 1000",
    }


def test_negotiated_limits_are_settings(start: Start) -> None:
    connect = start(channel_max=7, heartbeat_s=33, frame_bytes_max=65536)
    client = connect(handshake=False)
    client.start()
    client.start_ok()
    tune = client.expect(0, Connection.Tune)
    assert (tune.channel_max, tune.frame_max, tune.heartbeat) == (7, 65536, 33)


def test_product_and_version_are_settings(start: Start) -> None:
    properties = start(product="Rabbit", version="3.13.7")(handshake=False).start()
    assert properties.server_properties["product"] == "Rabbit"
    assert properties.server_properties["version"] == "3.13.7"
