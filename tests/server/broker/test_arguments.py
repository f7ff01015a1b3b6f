"""Arguments: what is refused, and what makes two declarations differ, in RabbitMQ's words."""

from __future__ import annotations

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.values import Table, UInt8
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
        ({"x-queue-version": 1}, f"invalid arg 'x-queue-version' for {Q}: "),
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


def test_priority_of_a_consumer_must_be_an_integer(peer: Peer) -> None:
    peer.declare("q")
    peer.send(1, make(spec.BasicConsume, queue="q", arguments={"x-priority": "high"}))
    assert peer.refused()[:2] == ("channel", 406)
