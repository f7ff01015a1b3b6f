"""Limits of queues, as a client sees them. Runs against RabbitMQ 4.0.5, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pika
import pytest

from tests.live.dead import Yard, yard_at

pytestmark = pytest.mark.newer


@pytest.fixture
def yard(broker_url: str) -> Iterator[Yard]:
    with yard_at(broker_url) as yard:
        yield yard


@pytest.mark.parametrize(
    ("arguments", "published", "kept"),
    [
        ({"x_max_length": 2}, [b"a", b"b", b"c"], [b"b", b"c"]),
        ({"x_max_length": 0}, [b"a"], []),
        ({"x_max_length": 2, "x_overflow": "drop-head"}, [b"a", b"b", b"c"], [b"b", b"c"]),
        ({"x_max_length_bytes": 4}, [b"aa", b"bb", b"c", b""], [b"bb", b"c", b""]),
        ({"x_max_length_bytes": 4}, [b"a", b"too large"], []),
        (
            {"x_max_length": 3, "x_max_length_bytes": 4},
            [b"aa", b"b", b"c", b"d"],
            [b"b", b"c", b"d"],
        ),
    ],
)
def test_the_first_messages_are_dropped(
    yard: Yard, arguments: dict[str, Any], published: list[bytes], kept: list[bytes]
) -> None:
    yard.queue("q", **arguments)
    for body in published:
        assert yard.publish("q", body)
    assert yard.bodies("q") == kept


@pytest.mark.parametrize(
    ("arguments", "published", "expected"),
    [
        ({"x_max_length": 2}, [b"a", b"b", b"c", b"d"], [True, True, False, False]),
        ({"x_max_length": 0}, [b"a"], [False]),
        (
            {"x_max_length_bytes": 10},
            [b"12345", b"1234567", b"12345", b"", b"1", b""],
            [True, False, True, True, False, True],
        ),
    ],
)
def test_what_does_not_fit_is_rejected(
    yard: Yard, arguments: dict[str, Any], published: list[bytes], expected: list[bool]
) -> None:
    yard.queue("q", to="dead", x_overflow="reject-publish", **arguments)
    yard.queue("dead")
    assert [yard.publish("q", body) for body in published] == expected
    taken = zip(published, expected, strict=True)
    assert yard.bodies("q") == [body for body, acked in taken if acked]
    assert yard.nothing("dead")


def test_what_is_unacknowledged_does_not_count(yard: Yard) -> None:
    yard.queue("q", x_max_length=1, x_overflow="reject-publish")
    assert yard.publish("q", b"1")
    assert not yard.publish("q", b"2")
    got = yard.take("q")
    assert yard.publish("q", b"3")
    yard.channel.basic_reject(got.tag, requeue=True)
    assert yard.bodies("q") == [b"1", b"3"]  # nothing is rejected that was taken once


def test_what_comes_back_is_dropped_first(yard: Yard) -> None:
    yard.queue("q", to="dead", x_max_length=1)
    yard.queue("dead")
    yard.publish("q", b"1")
    got = yard.take("q")
    yard.publish("q", b"2")
    yard.channel.basic_reject(got.tag, requeue=True)
    assert yard.take("dead").body == b"1"
    assert yard.bodies("q") == [b"2"]


def test_rejected_publishes_may_be_dead_lettered(yard: Yard) -> None:
    yard.queue("q", to="dead", x_max_length=1, x_overflow="reject-publish-dlx")
    yard.queue("dead")
    copies = {"CC": [yard.name("nobody")]}
    answers = [yard.publish("q", b"%d" % n, headers=copies, expiration="70000") for n in range(3)]
    assert answers == [True, False, False]
    for body in (b"1", b"2"):
        got = yard.take("dead")
        assert got.body == body
        assert got.deaths == [
            {
                "original-expiration": "70000",
                "count": 1,
                "reason": "maxlen",
                "queue": yard.name("q"),
                "exchange": "",
                "routing-keys": [yard.name("q"), yard.name("nobody")],
            }
        ]


def test_the_other_queues_of_a_rejected_message_take_it(yard: Yard) -> None:
    fanout = yard.exchange("fanout")
    yard.queue("full", x_max_length=0, x_overflow="reject-publish")
    yard.queue("free")
    for name in ("full", "free"):
        yard.channel.queue_bind(yard.name(name), fanout)
    assert not yard.publish("", b"a", exchange=fanout)
    assert yard.bodies("free") == [b"a"]


def test_a_consumer_takes_what_would_not_fit(yard: Yard) -> None:
    yard.queue("q", x_max_length=1, x_overflow="reject-publish")
    yard.channel.basic_qos(prefetch_count=2)
    got: list[bytes] = []
    yard.channel.basic_consume(yard.name("q"), lambda *delivery: got.append(delivery[3]))
    answers = [yard.publish("q", b"%d" % number) for number in range(5)]
    assert answers == [True, True, True, False, False]
    yard.channel.connection.process_data_events(0.2)
    assert got == [b"0", b"1"]


def test_a_transaction_that_is_rejected_in_part(yard: Yard) -> None:
    yard.queue("q", x_max_length=1, x_overflow="reject-publish")
    channel = yard.channel.connection.channel()
    channel.tx_select()
    for number in range(2):
        channel.basic_publish("", yard.name("q"), b"%d" % number)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as closed:
        channel.tx_commit()
    assert closed.value.reply_code == 406
    assert closed.value.reply_text == "PRECONDITION_FAILED - partial tx completion"
    assert yard.bodies("q") == [b"0"]


def test_many_at_once_leave_the_last(yard: Yard) -> None:
    """pika's blocking channel waits for each; a transaction's publishes come together."""
    yard.queue("q", x_max_length=3)
    channel = yard.channel.connection.channel()
    channel.tx_select()
    for number in range(10):
        channel.basic_publish("", yard.name("q"), b"%d" % number)
    channel.tx_commit()
    assert yard.bodies("q") == [b"7", b"8", b"9"]


def test_limits_drop_the_highest_priority_first(yard: Yard) -> None:
    yard.queue("q", to="dead", x_max_length=2, x_max_priority=5)
    yard.queue("dead")
    for body, priority in ((b"a", 5), (b"b", 0), (b"c", 3), (b"d", 1)):
        yard.publish("q", body, priority=priority)
    assert yard.bodies("q") == [b"d", b"b"]
    assert [yard.take("dead").body for _ in range(2)] == [b"a", b"c"]
