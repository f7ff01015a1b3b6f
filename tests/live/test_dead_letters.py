"""Dead letters, as a client sees them. Runs against RabbitMQ 4.0.5, too."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live.dead import Got, Yard, yard_at

pytestmark = pytest.mark.newer


@pytest.fixture
def yard(broker_url: str) -> Iterator[Yard]:
    with yard_at(broker_url) as yard:
        yield yard


def death(yard: Yard, queue: str, reason: str, **other: Any) -> dict[str, Any]:
    """An entry of x-death; other values by their names."""
    name = yard.name(queue)
    entry = {"count": 1, "reason": reason, "queue": name, "exchange": "", "routing-keys": [name]}
    return {**entry, **{key.replace("_", "-"): value for key, value in other.items()}}


def story(got: Got) -> tuple[list[str], list[str]]:
    """Exchange, queue and reason of the first death and of the last."""
    names = ("exchange", "queue", "reason")
    headers = got.headers
    return (
        [headers[f"x-first-death-{name}"] for name in names],
        [headers[f"x-last-death-{name}"] for name in names],
    )


def test_a_rejected_message_with_all_it_had(yard: Yard) -> None:
    yard.queue("source", to="dead")
    yard.queue("dead")
    yard.publish(
        "source",
        b"body",
        headers={"a": 1, "z": {"n": [1, None]}},
        delivery_mode=2,
        expiration="100000",
        message_id="m",
        priority=3,
        timestamp=5,
        content_type="t",
        correlation_id="c",
        reply_to="r",
        type="y",
        app_id="app",
    )
    before = yard.reject("source")
    got = yard.take("dead")
    assert (got.body, got.exchange, got.key) == (b"body", "", yard.name("dead"))
    assert got.deaths == [death(yard, "source", "rejected", original_expiration="100000")]
    first = ["", yard.name("source"), "rejected"]
    assert story(got) == (first, first)
    assert got.headers["a"] == 1 and got.headers["z"] == {"n": [1, None]}
    for name in ("delivery_mode", "message_id", "priority", "timestamp", "content_type"):
        assert getattr(got.properties, name) == getattr(before.properties, name)
    for name in ("correlation_id", "reply_to", "type", "app_id"):
        assert getattr(got.properties, name) == getattr(before.properties, name)
    assert got.properties.expiration is None
    assert before.properties.expiration == "100000"


def test_shape_of_an_entry(yard: Yard) -> None:
    yard.queue("source", to="dead")
    yard.queue("dead")
    yard.publish("source", expiration="100000", headers={"zz": 1, "b": 2})
    yard.reject("source")
    got = yard.take("dead")
    (entry,) = got.headers["x-death"]
    assert list(entry) == [
        "original-expiration",
        "count",
        "reason",
        "queue",
        "time",
        "exchange",
        "routing-keys",
    ]
    assert type(entry["count"]).__name__ == "long"  # pika's name for a 64-bit integer
    now = datetime.datetime.now(datetime.UTC)
    assert abs(now - entry["time"]) < datetime.timedelta(minutes=1)
    assert list(got.headers) == sorted(got.headers) and len(got.headers) == 9


def test_nack_of_several(yard: Yard) -> None:
    yard.queue("source", to="dead")
    yard.queue("dead")
    for number in range(5):
        yard.publish("source", b"%d" % number)
    last = [yard.take("source") for _ in range(5)][-1]
    yard.channel.basic_nack(last.tag, multiple=True, requeue=False)
    assert [yard.take("dead").body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_without_a_key_of_its_own_a_message_keeps_its_key_and_copies(yard: Yard) -> None:
    direct = yard.exchange("direct", "direct")
    yard.queue("source", via=direct)
    for name in ("dead", "cc", "bcc"):
        yard.queue(name)
    yard.channel.queue_bind(yard.name("dead"), direct, yard.name("source"))
    for name in ("cc", "bcc"):
        yard.channel.queue_bind(yard.name(name), direct, yard.name(name))
    copies = {"CC": [yard.name("cc")], "BCC": [yard.name("bcc")]}
    yard.publish("source", headers=copies)
    for name in ("cc", "bcc"):
        assert yard.take(name).headers == {"CC": [yard.name("cc")]}
    yard.reject("source")
    keys = [yard.name("source"), yard.name("cc")]
    for name in ("dead", "cc", "bcc"):
        got = yard.take(name)
        assert got.key == yard.name("source")
        assert got.headers["CC"] == [yard.name("cc")] and "BCC" not in got.headers
        assert got.deaths == [death(yard, "source", "rejected", routing_keys=keys)]


def test_a_key_of_the_queues_own_replaces_key_and_copies(yard: Yard) -> None:
    direct = yard.exchange("direct", "direct")
    yard.queue("source", to="between")
    yard.queue("between", via=direct)
    yard.queue("cc")
    yard.queue("dead")
    yard.channel.queue_bind(yard.name("cc"), direct, yard.name("cc"))
    yard.channel.queue_bind(yard.name("dead"), direct, yard.name("between"))
    yard.publish("source", headers={"CC": [yard.name("cc")]})
    yard.take("cc")
    yard.reject("source")
    yard.reject("between")
    got = yard.take("dead")
    assert yard.nothing("cc")
    assert got.headers["CC"] == [yard.name("cc")]
    keys = [yard.name("source"), yard.name("cc")]
    assert got.deaths == [
        death(yard, "between", "rejected"),
        death(yard, "source", "rejected", routing_keys=keys),
    ]
    name = yard.name
    assert story(got) == (["", name("source"), "rejected"], ["", name("between"), "rejected"])


def test_exchange_and_key_of_the_publish_are_in_x_death(yard: Yard) -> None:
    topic = yard.exchange("topic", "topic")
    yard.queue("source", to="dead")
    yard.queue("dead")
    yard.channel.queue_bind(yard.name("source"), topic, "#")
    yard.publish("a.b", exchange=topic)
    yard.reject("source")
    got = yard.take("dead")
    assert got.deaths == [death(yard, "source", "rejected", exchange=topic, routing_keys=["a.b"])]
    assert story(got)[0][0] == topic


def test_deaths_are_counted_by_queue_and_reason(yard: Yard) -> None:
    yard.queue("one", to="two")
    yard.queue("two", to="one")
    yard.publish("one", expiration="900000")
    times = []
    for count in (1, 2, 3):
        yard.reject("one")
        yard.reject("two")
        got = yard.take("one")
        assert got.deaths == [
            death(yard, "two", "rejected", count=count),
            death(yard, "one", "rejected", count=count, original_expiration="900000"),
        ]
        times.append(got.headers["x-death"][1]["time"])
        yard.channel.basic_reject(got.tag, requeue=True)
    assert len(set(times)) == 1  # of the first death


@pytest.mark.parametrize(
    "headers",
    [
        {"x-death": "junk"},
        {"x-death": [], "x-first-death-queue": "mine", "x-last-death-reason": "mine"},
        {"x-death": [{"count": 7, "reason": "rejected", "queue": "q", "exchange": ""}]},
    ],
)
def test_what_a_client_says_of_deaths_counts_for_nothing(
    yard: Yard, headers: dict[str, Any]
) -> None:
    yard.queue("source", to="dead")
    yard.queue("dead")
    yard.publish("source", headers=headers)
    assert yard.reject("source").headers == headers
    got = yard.take("dead")
    assert got.deaths == [death(yard, "source", "rejected")]
    first = ["", yard.name("source"), "rejected"]
    assert story(got) == (first, first)


def test_a_republished_dead_letter_begins_anew(yard: Yard) -> None:
    yard.queue("source", to="dead")
    yard.queue("dead")
    yard.publish("source")
    yard.reject("source")
    for _ in range(2):
        got = yard.take("dead")
        assert got.deaths == [death(yard, "source", "rejected")]
        yard.publish("source", headers=got.headers)
        yard.reject("source")


def test_a_rejected_message_may_come_back_to_its_own_queue(yard: Yard) -> None:
    yard.queue("source", to="source")
    yard.publish("source", b"again")
    yard.reject("source")
    got = yard.take("source")
    assert got.deaths == [death(yard, "source", "rejected")]


def test_an_automatic_cycle_is_cut(yard: Yard) -> None:
    yard.queue("source", to="source", x_max_length=1)
    yard.publish("source", b"1")
    yard.publish("source", b"2")
    assert yard.take("source").body == b"2"
    assert yard.nothing("source")


def test_only_the_queue_that_closes_a_cycle_is_left_out(yard: Yard) -> None:
    fanout = yard.exchange("fanout")
    yard.queue("source", via=fanout, x_max_length=1)
    yard.queue("dead")
    for name in ("source", "dead"):
        yard.channel.queue_bind(yard.name(name), fanout)
    yard.publish("source", b"1")
    yard.publish("source", b"2")
    assert yard.take("dead").deaths == [death(yard, "source", "maxlen")]
    assert yard.take("source").body == b"2"
    assert yard.nothing("source")


def test_a_rejection_makes_a_cycle_legal(yard: Yard) -> None:
    yard.queue("one", to="two", x_max_length=1)
    yard.queue("two", to="one")
    yard.publish("one", b"1")
    yard.publish("one", b"2")
    yard.reject("two")  # 1 was dropped from one, and comes back to it, so that 2 is dropped
    assert yard.take("two").body == b"2"
    got = yard.take("one")
    assert got.body == b"1"
    assert got.deaths == [death(yard, "two", "rejected"), death(yard, "one", "maxlen")]


@pytest.mark.parametrize("via", ["amq.direct", "missing"])
def test_without_a_target_the_message_is_gone_and_the_channel_lives(yard: Yard, via: str) -> None:
    yard.queue("source", via=via if via != "missing" else yard.name("missing"))
    yard.publish("source")
    yard.reject("source")
    assert yard.nothing("source")
    assert yard.publish("source", b"next") and yard.take("source").body == b"next"


def test_an_exchange_that_is_declared_later_counts(yard: Yard) -> None:
    yard.queue("source", via=yard.name("late"))
    yard.queue("dead")
    late = yard.exchange("late")
    yard.channel.queue_bind(yard.name("dead"), late)
    yard.publish("source")
    yard.reject("source")
    assert yard.take("dead").exchange == late


def test_an_internal_exchange_and_its_alternate(yard: Yard) -> None:
    other = yard.exchange("other")
    yard.queue("dead")
    yard.channel.queue_bind(yard.name("dead"), other)
    inner = yard.name("inner")
    yard.channel.exchange_declare(
        inner, "direct", internal=True, arguments={"alternate-exchange": other}
    )
    yard.queue("source", via=inner)
    yard.publish("source")
    yard.reject("source")
    assert yard.take("dead").exchange == inner
    yard.channel.exchange_delete(inner)


def test_headers_of_the_death_route(yard: Yard) -> None:
    headers = yard.exchange("headers", "headers")
    yard.queue("source", via=headers)
    yard.queue("dead")
    arguments = {"x-match": "all-with-x", "x-first-death-reason": "rejected", "kind": "k"}
    yard.channel.queue_bind(yard.name("dead"), headers, "", arguments)
    yard.publish("source", headers={"kind": "k"})
    yard.reject("source")
    assert yard.take("dead").exchange == headers


def test_purged_and_deleted_messages_are_not_dead_letters(yard: Yard) -> None:
    yard.queue("source", to="dead")
    yard.queue("dead")
    yard.publish("source")
    yard.channel.queue_purge(yard.name("source"))
    yard.publish("source")
    yard.channel.queue_delete(yard.name("source"))
    assert yard.nothing("dead")


def test_at_least_once_through_a_quorum_queue(yard: Yard) -> None:
    yard.queue(
        "source",
        to="dead",
        x_queue_type="quorum",
        x_dead_letter_strategy="at-least-once",
        x_overflow="reject-publish",
    )
    yard.queue("dead")
    yard.publish("source", b"kept", expiration="900000")
    yard.reject("source")
    got = yard.take("dead")
    assert got.body == b"kept"
    assert got.deaths == [death(yard, "source", "rejected", original_expiration="900000")]


def test_an_automatic_cycle_behind_a_rejection_is_cut(yard: Yard) -> None:
    fanout = yard.exchange("fanout")
    yard.queue("first", to="one")
    yard.queue("one", to="two", x_message_ttl=1)
    yard.queue("two", via=fanout, x_message_ttl=1)
    yard.queue("rounds")
    for name in ("one", "rounds"):
        yard.channel.queue_bind(yard.name(name), fanout)
    yard.publish("first")
    yard.reject("first")
    assert [entry["reason"] for entry in yard.take("rounds").deaths] == [
        *("expired", "expired", "rejected")
    ]
    assert yard.nothing("rounds")


def test_a_round_with_a_rejection_goes_on(yard: Yard) -> None:
    yard.queue("first", to="one")
    yard.queue("one", to="two", x_message_ttl=1)
    yard.queue("two", to="first", x_message_ttl=1)
    yard.publish("first", expiration="900000")
    for count in range(3):
        got = yard.reject("first")
        if count:
            assert got.deaths == [
                death(yard, "two", "expired", count=count),
                death(yard, "one", "expired", count=count),
                death(yard, "first", "rejected", count=count, original_expiration="900000"),
            ]
            last = ["", yard.name("two"), "expired"]
            assert story(got) == (["", yard.name("first"), "rejected"], last)
