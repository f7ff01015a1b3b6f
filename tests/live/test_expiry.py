"""Times of messages and queues, as a client sees them. Runs against RabbitMQ 4.0.5, too.

A broker may be late, never early: what has to be there is looked for well before its time, and what
has to be gone is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pika
import pytest

from tests.live.conversation import DEADLINE_S
from tests.live.dead import Yard, yard_at

pytestmark = pytest.mark.newer

# Long enough that what has to happen before it does, on a slow machine, too.
LONG_MS = 60_000
SHORT_MS = 60


@pytest.fixture
def yard(broker_url: str) -> Iterator[Yard]:
    with yard_at(broker_url) as yard:
        yield yard


def count(yard: Yard, short: str) -> int:
    """What is ready."""
    return int(yard.channel.queue_declare(yard.name(short), passive=True).method.message_count)


def empties(yard: Yard, short: str) -> bool:
    """Whether a queue that nobody takes from is empty in time."""
    end = time.monotonic() + DEADLINE_S
    while count(yard, short):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize(
    ("declared_ms", "own"),
    [
        (SHORT_MS, None),
        (None, str(SHORT_MS)),
        (SHORT_MS, str(LONG_MS)),
        (LONG_MS, str(SHORT_MS)),
        (0, None),
        (None, "0"),
        (LONG_MS, "0"),
    ],
)
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_the_smaller_time_counts(
    yard: Yard, kind: str, declared_ms: int | None, own: str | None
) -> None:
    arguments: dict[str, Any] = {} if declared_ms is None else {"x_message_ttl": declared_ms}
    yard.queue("q", to="dead", x_queue_type=kind, **arguments)
    yard.queue("dead")
    assert yard.publish("q", b"a", expiration=own)
    got = yard.take("dead")
    assert got.body == b"a"
    assert got.properties.expiration is None
    (death,) = got.deaths
    assert death["reason"] == "expired"
    assert death.get("original-expiration") == own
    assert empties(yard, "q")


@pytest.mark.parametrize("arguments", [{"x_message_ttl": LONG_MS}, {}])
def test_a_message_waits_until_its_time(yard: Yard, arguments: dict[str, Any]) -> None:
    yard.queue("q", **arguments)
    assert yard.publish("q", b"a", expiration=str(LONG_MS))
    time.sleep(0.1)
    got = yard.take("q")
    assert (got.body, got.properties.expiration) == (b"a", str(LONG_MS))


def test_without_a_dead_letter_exchange_it_is_gone(yard: Yard) -> None:
    yard.queue("q", x_message_ttl=SHORT_MS)
    assert yard.publish("q", b"a")
    assert empties(yard, "q")
    assert yard.nothing("q")


@pytest.mark.parametrize(
    ("arguments", "own"), [({"x_message_ttl": 0}, None), ({}, "0"), ({"x_message_ttl": 1}, None)]
)
def test_no_time_is_enough_for_a_consumer_that_waits(
    yard: Yard, arguments: dict[str, Any], own: str | None
) -> None:
    yard.queue("q", to="dead", **arguments)
    yard.queue("dead")
    yard.channel.basic_qos(prefetch_count=2)
    got: list[bytes] = []
    yard.channel.basic_consume(yard.name("q"), lambda *delivery: got.append(delivery[3]))
    for number in range(3):
        assert yard.publish("q", b"%d" % number, expiration=own)
    assert yard.take("dead").body == b"2"
    yard.channel.connection.process_data_events(0)
    assert got == [b"0", b"1"]


@pytest.mark.parametrize(
    ("arguments", "own"), [({"x_message_ttl": 500}, None), ({}, "500"), ({}, "700")]
)
def test_a_requeued_message_keeps_its_time(
    yard: Yard, arguments: dict[str, Any], own: str | None
) -> None:
    yard.queue("q", to="dead", **arguments)
    yard.queue("dead")
    assert yard.publish("q", b"a", expiration=own)
    got = yard.take("q")
    time.sleep(1.0)
    assert yard.nothing("dead")  # what is out does not expire
    yard.channel.basic_reject(got.tag, requeue=True)
    assert yard.take("dead").body == b"a"
    assert empties(yard, "q")


def test_what_is_out_may_be_acknowledged_late(yard: Yard) -> None:
    yard.queue("q", to="dead", x_message_ttl=SHORT_MS)
    yard.queue("dead")
    got: list[int] = []
    yard.channel.basic_consume(
        yard.name("q"), lambda *delivery: got.append(delivery[1].delivery_tag)
    )
    assert yard.publish("q", b"a")
    yard.channel.connection.process_data_events(0.3)
    yard.channel.basic_ack(got[0])
    assert yard.nothing("dead")
    assert count(yard, "q") == 0


def test_the_queue_s_time_expires_messages_in_order(yard: Yard) -> None:
    yard.queue("q", to="dead", x_message_ttl=200)
    yard.queue("dead")
    bodies = [b"%d" % number for number in range(50)]
    for body in bodies:
        assert yard.publish("q", body)
    assert [yard.take("dead").body for _ in bodies] == bodies


def test_a_copy_has_no_time_of_its_own(yard: Yard) -> None:
    """A delay by a queue that nobody consumes, as clients build it; the way back has no time."""
    yard.queue("delay", to="work")
    yard.queue("work", to="delay")
    assert yard.publish("delay", b"a", expiration=str(SHORT_MS))
    got = yard.reject("work")
    assert [(death["queue"], death["reason"]) for death in got.deaths] == [
        (yard.name("delay"), "expired")
    ]
    time.sleep(3 * SHORT_MS / 1000)
    got = yard.take("delay")
    assert [death["reason"] for death in got.deaths] == ["rejected", "expired"]


@pytest.mark.parametrize(
    ("expiration", "text"),
    [
        ("-1", "invalid expiration '-1': {value_negative,-1}"),
        ("x", "invalid expiration 'x': no_integer"),
        ("1x", "invalid expiration '1x': {leftover_string,\"x\"}"),
        ("315360000001", "invalid expiration '315360000001': {value_too_large,315360000001}"),
    ],
)
def test_what_is_no_time_is_refused(yard: Yard, expiration: str, text: str) -> None:
    yard.queue("q")
    channel = yard.channel.connection.channel()
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as closed:
        channel.basic_publish("", yard.name("q"), b"", pika.BasicProperties(expiration=expiration))
    assert (closed.value.reply_code, closed.value.reply_text) == (
        406,
        f"PRECONDITION_FAILED - {text}",
    )


# --- queues


def goes(yard: Yard, short: str, within_s: float = DEADLINE_S) -> bool:
    """Whether a queue is deleted in time; it is not used meanwhile."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        time.sleep(0.3)  # asking is use
        channel = yard.channel.connection.channel()
        try:
            channel.queue_unbind(yard.name(short), "amq.direct", "none")
            channel.queue_bind(yard.name(short), "amq.direct", "none")
        except pika.exceptions.ChannelClosedByBroker as closed:
            return bool(closed.reply_code == 404)
        channel.close()
    return False


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_an_unused_queue_is_deleted(yard: Yard, kind: str) -> None:
    yard.queue("q", x_expires=200, x_queue_type=kind)
    yard.publish("q", b"a")
    assert goes(yard, "q")


def test_a_deleted_queue_dead_letters_nothing(yard: Yard) -> None:
    yard.queue("q", to="dead", x_expires=200)
    yard.queue("dead")
    yard.publish("q", b"a")
    assert goes(yard, "q")
    assert yard.nothing("dead")


@pytest.mark.parametrize("use", ["declare", "passive", "get", "consume"])
def test_a_queue_that_is_used_stays(yard: Yard, use: str) -> None:
    name = yard.queue("q", x_expires=1500)
    channel = yard.channel
    if use == "consume":
        tag = channel.basic_consume(name, lambda *delivery: None)
    for _ in range(6):
        time.sleep(0.4)
        if use == "declare":
            channel.queue_declare(name, durable=True, arguments={"x-expires": 1500})
        elif use == "passive":
            channel.queue_declare(name, passive=True)
        elif use == "get":
            channel.basic_get(name)
    if use == "consume":
        channel.basic_cancel(tag)
    assert channel.queue_declare(name, passive=True).method.queue == name
    assert goes(yard, "q")


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_native_delayed_delivery_of_celery(yard: Yard, kind: str) -> None:
    """Four of its 28 levels, each half as long as the one above; the key has a bit for each."""
    top, unit_ms = 3, 100
    channel = yard.channel
    delivery = yard.exchange("delivery", "topic")
    levels = [yard.exchange(f"level{level}", "topic") for level in range(top + 1)]
    for level, exchange in enumerate(levels):
        below = levels[level - 1] if level else delivery
        arguments: dict[str, Any] = {"x_overflow": "reject-publish", "x_queue_type": kind}
        if kind == "quorum":
            arguments["x_dead_letter_strategy"] = "at-least-once"
        queue = yard.queue(f"level{level}", via=below, x_message_ttl=unit_ms << level, **arguments)
        passed = "*." * (top - level)
        channel.queue_bind(queue, exchange, passed + "1.#")
        channel.exchange_bind(below, exchange, passed + "0.#")
    tasks = yard.exchange("tasks", "topic")
    channel.exchange_bind(tasks, delivery, "#.add")
    channel.queue_bind(yard.queue("work"), tasks, "#.add")
    for key, units in (("0.1.0.1.add", 5), ("0.0.0.0.add", 0), ("0.0.1.0.add", 2)):
        began_s = time.monotonic()
        assert yard.publish(key, b"task", exchange=levels[top])
        got = yard.take("work")
        assert (got.body, got.key) == (b"task", key)
        assert time.monotonic() - began_s >= units * unit_ms / 1000
        assert len(got.headers.get("x-death", [])) == key.count("1")


def test_pidbox_of_celery(yard: Yard) -> None:
    """Exclusive, auto-delete, with both times, as Celery declares its reply queues."""
    name = yard.name("reply.celery.pidbox")
    arguments = {"x-expires": 10_000, "x-message-ttl": 300_000}
    yard.channel.queue_declare(name, exclusive=True, auto_delete=True, arguments=arguments)
    yard.channel.basic_publish("", name, b"a")
    assert yard.take("reply.celery.pidbox").body == b"a"
