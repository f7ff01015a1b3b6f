"""pika, with callbacks on its own loop: the asynchronous publisher and consumer of its examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from tests.live.conversation import unique

DEADLINE_S = 15


class Script:
    """A connection whose steps run on the loop; `done` ends it, a timer ends it with a failure."""

    def __init__(self, url: str, opened: Callable[[Any], None]) -> None:
        self.opened = opened
        self.failure: BaseException | None = None
        self.finished = False
        self.connection: Any = pika.SelectConnection(
            pika.URLParameters(url),
            on_open_callback=lambda c: c.channel(on_open_callback=opened),
            on_open_error_callback=lambda _c, error: self._stop(error),
            on_close_callback=lambda _c, _reason: self.connection.ioloop.stop(),
        )

    def _stop(self, error: BaseException) -> None:
        self.failure = error
        self.connection.ioloop.stop()

    def done(self) -> None:
        """Everything happened: close and leave the loop."""
        self.finished = True
        self.connection.close()

    def run(self) -> None:
        """Run to the end; raises what failed."""
        loop = self.connection.ioloop
        timer = loop.call_later(DEADLINE_S, lambda: self._stop(TimeoutError("not in time")))
        loop.start()
        loop.remove_timeout(timer)
        if self.failure is not None:
            raise self.failure
        assert self.finished


def test_publish_confirm_consume_acknowledge(broker_url: str) -> None:
    confirmed: set[int] = set()
    got: list[bytes] = []
    count = 200

    def opened(channel: Any) -> None:
        channel.confirm_delivery(on_confirm)
        channel.queue_declare("", exclusive=True, callback=lambda f: declared(channel, f))

    def on_confirm(frame: Any) -> None:
        assert frame.method.NAME == "Basic.Ack"
        first = 1 if frame.method.multiple else frame.method.delivery_tag
        confirmed.update(range(first, frame.method.delivery_tag + 1))
        finish()

    def declared(channel: Any, frame: Any) -> None:
        queue = frame.method.queue
        channel.basic_qos(prefetch_count=20)
        channel.basic_consume(queue, on_message)
        for number in range(count):
            channel.basic_publish("", queue, b"%d" % number)

    def on_message(channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        got.append(body)
        channel.basic_ack(method.delivery_tag)
        finish()

    def finish() -> None:
        if len(got) == count and len(confirmed) == count and not script.finished:
            script.done()

    script = Script(broker_url, opened)
    script.run()
    assert got == [b"%d" % number for number in range(count)]


def test_returned_message_precedes_its_confirm(broker_url: str) -> None:
    seen: list[str] = []

    def opened(channel: Any) -> None:
        channel.add_on_return_callback(lambda *_: seen.append("return"))
        channel.confirm_delivery(on_confirm)
        channel.basic_publish("", unique("missing"), b"x", mandatory=True)

    def on_confirm(frame: Any) -> None:
        seen.append(frame.method.NAME)
        script.done()

    script = Script(broker_url, opened)
    script.run()
    assert seen == ["return", "Basic.Ack"]


def test_channel_closed_by_the_broker(broker_url: str) -> None:
    reasons: list[Any] = []

    def opened(channel: Any) -> None:
        channel.add_on_close_callback(on_close)
        channel.queue_declare(unique("missing"), passive=True)

    def on_close(_channel: Any, reason: Any) -> None:
        reasons.append(reason)
        script.connection.channel(on_open_callback=lambda _c: script.done())

    script = Script(broker_url, opened)
    script.run()
    assert isinstance(reasons[0], ChannelClosedByBroker) and reasons[0].reply_code == 404


def test_consumer_cancelled_by_the_broker(broker_url: str) -> None:
    cancelled: list[str] = []

    def opened(channel: Any) -> None:
        channel.add_on_cancel_callback(on_cancel)
        channel.queue_declare(unique("deleted"), callback=lambda f: declared(channel, f))

    def declared(channel: Any, frame: Any) -> None:
        queue = frame.method.queue
        channel.basic_consume(
            queue,
            lambda *_: None,
            consumer_tag="mine",
            callback=lambda _f: channel.queue_delete(queue),
        )

    def on_cancel(frame: Any) -> None:
        cancelled.append(frame.method.consumer_tag)
        script.done()

    script = Script(broker_url, opened)
    script.run()
    assert cancelled == ["mine"]


def test_exchange_bindings_and_cancel(broker_url: str) -> None:
    got: list[bytes] = []
    source, destination = unique("source"), unique("destination")

    def opened(channel: Any) -> None:
        channel.exchange_declare(source, "fanout", auto_delete=True)
        channel.exchange_declare(destination, "direct", auto_delete=True)
        channel.exchange_bind(destination, source)
        channel.queue_declare("", exclusive=True, callback=lambda f: declared(channel, f))

    def declared(channel: Any, frame: Any) -> None:
        queue = frame.method.queue
        channel.queue_bind(queue, destination, "k")
        channel.basic_consume(queue, on_message, auto_ack=True, consumer_tag="t")
        channel.basic_publish(source, "k", b"through")
        channel.basic_publish(source, "other", b"lost")

    def on_message(channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        got.append(body)
        channel.basic_cancel("t", callback=lambda _f: script.done())

    script = Script(broker_url, opened)
    script.run()
    assert got == [b"through"]


def test_many_channels(broker_url: str) -> None:
    opened_numbers: list[int] = []

    def opened(_channel: Any) -> None:
        for _ in range(100):
            script.connection.channel(on_open_callback=one_more)

    def one_more(channel: Any) -> None:
        opened_numbers.append(channel.channel_number)
        if len(opened_numbers) == 100:
            script.done()

    script = Script(broker_url, opened)
    script.run()
    assert len(set(opened_numbers)) == 100


@pytest.mark.parametrize("interval_s", [0, 5])
def test_heartbeat_is_the_clients_choice(broker_url: str, interval_s: int) -> None:
    separator = "&" if "?" in broker_url else "?"
    script = Script(f"{broker_url}{separator}heartbeat={interval_s}", lambda _c: script.done())
    script.run()
    assert script.connection.params.heartbeat == interval_s
