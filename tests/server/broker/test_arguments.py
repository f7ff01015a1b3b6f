"""Arguments: what is refused, and what makes two declarations differ, in RabbitMQ's words."""

from __future__ import annotations

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.values import Table, Timestamp, UInt8
from qlog.server.broker.queues.arguments import FOREIGN, LEADER_LOCATORS
from tests.server.broker.support import Peer, make

Q = "queue 'q' in vhost '/'"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"x-message-ttl": -1}, f"invalid arg 'x-message-ttl' for {Q}: {{value_negative,-1}}"),
        ({"x-message-ttl": "1"}, f"invalid arg 'x-message-ttl' for {Q}: "),
        ({"x-message-ttl": True}, f"invalid arg 'x-message-ttl' for {Q}: "),
        ({"x-message-ttl": 315_360_000_001}, f"invalid arg 'x-message-ttl' for {Q}: "),
        ({"x-expires": 0}, f"invalid arg 'x-expires' for {Q}: {{value_zero,0}}"),
        (
            {"x-max-priority": 256},
            f"invalid arg 'x-max-priority' for {Q}: {{max_value_exceeded,256}}",
        ),
        ({"x-max-length": -5}, f"invalid arg 'x-max-length' for {Q}: {{value_negative,-5}}"),
        ({"x-overflow": "x"}, f"invalid arg 'x-overflow' for {Q}: invalid_overflow"),
        (
            {"x-dead-letter-routing-key": "k"},
            f"invalid arg 'x-dead-letter-routing-key' for {Q}: routing_key_but_no_dlx_defined",
        ),
        (
            {"x-queue-type": "foo"},
            f"invalid arg 'x-queue-type' for {Q}: \"unsupported queue type 'foo'\"",
        ),
        (
            {"x-queue-version": 3},
            f"invalid arg 'x-queue-version' for {Q}: \"unsupported queue version '3'\"",
        ),
        ({"x-queue-version": -1}, f"invalid arg 'x-queue-version' for {Q}: {{value_negative,-1}}"),
        (
            {"x-queue-mode": "eager"},
            f"invalid arg 'x-queue-mode' for {Q}: \"unsupported queue mode 'eager'\"",
        ),
        (
            {"x-queue-mode": 5},
            f"invalid arg 'x-queue-mode' for {Q}: {{unacceptable_type,signedint}}",
        ),
        (
            {"x-queue-leader-locator": "foo"},
            f"invalid arg 'x-queue-leader-locator' for {Q}: invalid_queue_locator_arg",
        ),
        (
            {"x-queue-leader-locator": True},
            f"invalid arg 'x-queue-leader-locator' for {Q}: {{unacceptable_type,bool}}",
        ),
        (
            {"x-queue-type": "quorum", "x-dead-letter-strategy": "foo"},
            f"invalid arg 'x-dead-letter-strategy' for {Q}: invalid_dlx_strategy",
        ),
        (
            {"x-queue-type": "quorum", "x-quorum-initial-group-size": 0},
            f"invalid arg 'x-quorum-initial-group-size' for {Q}: {{value_zero,0}}",
        ),
        (
            {"x-queue-type": "quorum", "x-max-in-memory-length": -1},
            f"invalid arg 'x-max-in-memory-length' for {Q}: {{value_negative,-1}}",
        ),
        # Of several complaints, the first.
        ({"x-message-ttl": -1, "x-expires": -1}, f"invalid arg 'x-expires' for {Q}: "),
        ({"x-expires": -1, "x-queue-type": "foo"}, f"invalid arg 'x-queue-type' for {Q}: "),
        (
            {"x-delivery-limit": 1, "x-message-ttl": -1},
            f"invalid arg 'x-message-ttl' for {Q}: {{value_negative,-1}}",
        ),
        (
            {"x-max-age": "1D", "x-delivery-limit": 1},
            f"invalid arg 'x-delivery-limit' for {Q} of queue type rabbit_classic_queue",
        ),
        (
            {"x-max-age": "1D", "x-dead-letter-exchange": 5},
            f"invalid type 'signedint' for arg 'x-dead-letter-exchange' in {Q}",
        ),
        ({"x-single-active-consumer": 1}, f"invalid arg 'x-single-active-consumer' for {Q}: "),
    ],
)
def test_refused(peer: Peer, arguments: Table, text: str) -> None:
    peer.send(1, make(spec.QueueDeclare, queue="q", durable=True, arguments=arguments))
    scope, code, reply = peer.refused()
    assert (scope, code) == ("channel", 406)
    assert reply.startswith(f"PRECONDITION_FAILED - {text}")
    assert "q" not in peer.bench.broker.vhosts["/"].queues


@pytest.mark.parametrize(
    "key",
    [
        "x-message-ttl",
        "x-expires",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-priority",
        "x-queue-version",
        "x-consumer-timeout",
    ],
)
def test_timestamp_is_no_integer(peer: Peer, key: str) -> None:
    arguments: Table = {key: Timestamp(100)}
    peer.send(1, make(spec.QueueDeclare, queue="q", durable=True, arguments=arguments))
    assert peer.refused() == (
        "channel",
        406,
        f"PRECONDITION_FAILED - invalid arg '{key}' for {Q}: \"expected integer, got timestamp\"",
    )


@pytest.mark.parametrize(
    ("queue_type", "key"), [(kind, key) for kind, keys in FOREIGN.items() for key in keys]
)
def test_arguments_of_other_types(peer: Peer, queue_type: str, key: str) -> None:
    value = "x" if key == "x-dead-letter-exchange" else 1  # another type is refused for itself
    arguments: Table = {"x-queue-type": queue_type, key: value}
    peer.send(1, make(spec.QueueDeclare, queue="q", durable=True, arguments=arguments))
    text = f"invalid arg '{key}' for {Q} of queue type rabbit_{queue_type}_queue"
    assert peer.refused() == ("channel", 406, f"PRECONDITION_FAILED - {text}")


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-queue-version": 1},
        {"x-queue-version": 2},
        {"x-queue-mode": "lazy"},
        *({"x-queue-leader-locator": locator} for locator in LEADER_LOCATORS),
        {"x-queue-master-locator": 5},
        {"x-stream-filter-size-bytes": "anything"},
        {"x-queue-type": "quorum", "x-delivery-limit": "anything"},
        {"x-queue-type": "quorum", "x-quorum-initial-group-size": 3},
        {"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once"},
        {"x-queue-type": "quorum", "x-overflow": "reject-publish-dlx"},
    ],
)
def test_accepted(peer: Peer, arguments: Table) -> None:
    assert peer.declare("q", arguments=arguments).declared.arguments.table == arguments


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"durable": False}, f"invalid property 'non-durable' for {Q}"),
        ({"exclusive": True}, f"invalid property 'exclusive-owner' for {Q}"),
        ({"auto_delete": True}, f"invalid property 'auto-delete' for {Q}"),
        (
            {"durable": False, "exclusive": True, "auto_delete": True},
            f"invalid property 'auto-delete' for {Q}",
        ),
        (
            {"durable": False, "exclusive": True},
            f"invalid property 'exclusive-owner' for {Q}",
        ),
        ({"queue": ""}, "Cannot declare a server-named queue for type rabbit_quorum_queue"),
    ],
)
def test_quorum_queues_last(peer: Peer, options: dict[str, object], text: str) -> None:
    method = {"queue": "q", "durable": True, "arguments": {"x-queue-type": "quorum"}, **options}
    peer.send(1, make(spec.QueueDeclare, **method))
    assert peer.refused() == ("channel", 406, f"PRECONDITION_FAILED - {text}")
    assert not peer.bench.broker.vhosts["/"].queues


@pytest.mark.parametrize(
    ("current", "received", "text"),
    [
        (
            {"x-message-ttl": 1000},
            {},
            (
                "'x-message-ttl' for {}: received none but current is the value '1000' of type "
                "'signedint'"
            ),
        ),
        (
            {},
            {"x-overflow": "drop-head"},
            (
                "'x-overflow' for {}: received the value 'drop-head' of type 'longstr' but current is "
                "none"
            ),
        ),
        (
            {"x-max-length": 1},
            {"x-max-length": 2},
            "'x-max-length' for {}: received '2' but current is '1'",
        ),
        (
            {},
            {"x-queue-type": "quorum"},
            "'x-queue-type' for {}: received 'quorum' but current is 'classic'",
        ),
        (
            {"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once"},
            {"x-queue-type": "quorum", "x-dead-letter-strategy": "at-most-once"},
            (
                "'x-dead-letter-strategy' for {}: received 'at-most-once' but current is "
                "'at-least-once'"
            ),
        ),
    ],
)
def test_inequivalent(peer: Peer, current: Table, received: Table, text: str) -> None:
    peer.declare("q", arguments=current)
    peer.send(1, make(spec.QueueDeclare, queue="q", durable=True, arguments=received))
    assert peer.refused() == (
        "channel",
        406,
        f"PRECONDITION_FAILED - inequivalent arg {text.format(Q)}",
    )


@pytest.mark.parametrize(
    ("current", "received"),
    [
        ({"x-max-length": 5}, {"x-max-length": UInt8(5)}),
        ({}, {"x-queue-type": "classic"}),
        ({"x-queue-type": "classic"}, {}),
        ({"x-own": 1}, {"x-own": "other"}),
        ({}, {"x-delivery-limit": 1}),  # means nothing to a classic queue
    ],
)
def test_equivalent(peer: Peer, current: Table, received: Table) -> None:
    queue = peer.declare("q", arguments=current)
    assert peer.declare("q", arguments=received) is queue


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"durable": False}, "'durable' for {}: received 'false' but current is 'true'"),
        (
            {"durable": True, "auto_delete": True},
            "'auto_delete' for {}: received 'true' but current is 'false'",
        ),
    ],
)
def test_properties_differ(peer: Peer, options: dict[str, object], text: str) -> None:
    peer.declare("q")
    peer.send(1, make(spec.QueueDeclare, queue="q", **options))
    assert peer.refused()[2] == f"PRECONDITION_FAILED - inequivalent arg {text.format(Q)}"


@pytest.mark.parametrize("value", [5, True, {}, b"\xff"])
def test_alternate_exchange_must_be_a_string(peer: Peer, value: object) -> None:
    arguments = {"alternate-exchange": value}
    peer.send(1, make(spec.ExchangeDeclare, exchange="e", type="direct", arguments=arguments))
    assert peer.refused()[:2] == ("channel", 406)
    assert peer.bench.broker.vhosts["/"].routing.exchange("e") is None


@pytest.mark.parametrize(("value", "kind"), [("high", "longstr"), (Timestamp(1), "timestamp")])
def test_priority_of_a_consumer_must_be_an_integer(peer: Peer, value: object, kind: str) -> None:
    peer.declare("q")
    peer.send(1, make(spec.BasicConsume, queue="q", arguments={"x-priority": value}))
    text = f"invalid arg 'x-priority' for {Q}: \"expected integer, got {kind}\""
    assert peer.refused() == ("channel", 406, f"PRECONDITION_FAILED - {text}")
