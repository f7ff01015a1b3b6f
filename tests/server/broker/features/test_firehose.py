"""The firehose: what it says of messages is what RabbitMQ 4.0.5 says, and it is off when it is off.

The expected keys and headers were taken from RabbitMQ 4.0.5 (but for node and connection).
"""

from __future__ import annotations

from dataclasses import fields

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties
from qlog.server.amqp.values import LongStr, Table, Timestamp
from qlog.server.broker.features.firehose import Firehose
from tests.server.broker.support import Bench, Peer, Said, make

WHO = {"node": "qlog", "vhost": "/", "connection": "test", "user": "guest"}


@pytest.fixture
def traces(bench: Bench, peer: Peer) -> Traces:
    """The firehose is on, and its copies are in a queue."""
    bench.broker.operations.set_tracing(bench.broker.vhosts["/"], True)
    return Traces(bench)


class Traces:
    """Who consumes the copies."""

    def __init__(self, bench: Bench, key: str = "#") -> None:
        self.peer = Peer(bench)
        self.peer.declare("traces")
        bind = make(spec.QueueBind, queue="traces", exchange="amq.rabbitmq.trace", routing_key=key)
        self.peer.ask(1, bind, spec.QueueBindOk)
        consume = make(spec.BasicConsume, queue="traces", consumer_tag="t", no_ack=True)
        self.peer.ask(1, consume, spec.BasicConsumeOk)

    def said(self) -> list[Said]:
        self.peer.bench.end_tick()
        return self.peer.take()

    def seen(self) -> list[tuple[str, Table, bytes | None]]:
        """(routing key, headers, body) of each copy; there is nothing in it beside headers."""
        result = []
        for said in self.said():
            method, properties = said.method, said.properties
            assert isinstance(method, spec.BasicDeliver) and properties is not None
            assert method.exchange == "amq.rabbitmq.trace" and not method.redelivered
            assert properties.headers is not None
            others = [f.name for f in fields(Properties) if f.name != "headers"]
            assert not any(getattr(properties, name) for name in others)
            result.append((method.routing_key, properties.headers, said.body))
        return result


def published(keys: list[str], queues: list[str], exchange: str = "", **others: object) -> Table:
    return {
        **WHO,
        "channel": 1,
        "exchange_name": exchange,
        "routing_keys": keys,
        "routed_queues": queues,
        "properties": {},
        **others,  # type: ignore[dict-item]
    }


def delivered(keys: list[str], redelivered: int = 0, **others: object) -> Table:
    return {
        **WHO,
        "channel": 1,
        "exchange_name": "",
        "routing_keys": keys,
        "redelivered": redelivered,
        "properties": {},
        **others,  # type: ignore[dict-item]
    }


NOTHING = Properties()


def test_published_and_delivered(traces: Traces, peer: Peer) -> None:
    peer.declare("q")
    peer.publish(1, "q", b"body", properties=NOTHING)
    assert traces.seen() == [("publish.", published(["q"], ["q"]), b"body")]
    peer.send(3, make(spec.BasicGet, queue="q"))
    peer.take()
    assert traces.seen() == [("deliver.q", delivered(["q"], channel=3), b"body")]
    peer.send(3, make(spec.BasicNack, delivery_tag=1, requeue=True))
    peer.send(1, make(spec.BasicConsume, queue="q"))
    assert traces.seen() == [("deliver.q", delivered(["q"], redelivered=1), b"body")]
    peer.send(1, make(spec.BasicAck, delivery_tag=1), make(spec.BasicGet, queue="q"))
    assert traces.seen() == []


def test_all_properties_are_told(traces: Traces, peer: Peer) -> None:
    peer.declare("q")
    bind = make(spec.QueueBind, queue="q", exchange="amq.topic", routing_key="a.#")
    peer.ask(1, bind, spec.QueueBindOk)
    properties = Properties(
        content_type="text/plain",
        content_encoding="e",
        headers={"h": 1, "CC": ["a.c"], "BCC": ["a.d"]},
        delivery_mode=2,
        priority=3,
        correlation_id="\udcff",
        reply_to="r",
        expiration="60000",
        message_id="m",
        timestamp=Timestamp(1577836800),
        type="t",
        user_id="guest",
        app_id="app",
    )
    peer.publish(1, "a.b", b"body", exchange="amq.topic", properties=properties)
    told: Table = {
        "content_type": "text/plain",
        "content_encoding": "e",
        "headers": {"h": 1, "CC": ["a.c"]},
        "delivery_mode": 2,
        "priority": 3,
        "correlation_id": LongStr(b"\xff"),
        "reply_to": "r",
        "expiration": "60000",
        "message_id": "m",
        "timestamp": 1577836800,
        "type": "t",
        "user_id": "guest",
        "app_id": "app",
    }
    keys = ["a.b", "a.c", "a.d"]
    expected = published(keys, ["q"], "amq.topic", properties=told)
    assert traces.seen() == [("publish.amq.topic", expected, b"body")]
    peer.send(1, make(spec.BasicGet, queue="q", no_ack=True))
    expected = delivered(keys, exchange_name="amq.topic", properties=told)
    assert traces.seen() == [("deliver.q", expected, b"body")]


def test_what_no_queue_takes_is_traced(traces: Traces, peer: Peer) -> None:
    peer.publish(1, "nowhere", b"", properties=NOTHING, mandatory=True)
    assert traces.seen() == [("publish.", published(["nowhere"], []), b"")]
    assert isinstance(peer.hear()[-1], spec.BasicReturn)


def test_a_transaction_is_traced_as_it_is_published(traces: Traces, peer: Peer) -> None:
    peer.declare("q")
    peer.ask(1, spec.TxSelect(), spec.TxSelectOk)
    peer.publish(1, "q", b"tx", properties=NOTHING)
    assert traces.seen() == [("publish.", published(["q"], ["q"]), b"tx")]
    peer.ask(1, spec.TxRollback(), spec.TxRollbackOk)
    assert traces.seen() == []


def test_a_direct_reply_is_traced_with_its_address(traces: Traces, peer: Peer) -> None:
    peer.declare("q")
    consume = make(spec.BasicConsume, queue="amq.rabbitmq.reply-to", no_ack=True)
    peer.ask(1, consume, spec.BasicConsumeOk)
    request = Properties(reply_to="amq.rabbitmq.reply-to")
    peer.publish(1, "q", b"request", properties=request)
    ((_, headers, _),) = traces.seen()
    address = headers["properties"]["reply_to"]  # type: ignore[index, call-overload]
    assert isinstance(address, str)
    peer.publish(2, address, b"reply", properties=NOTHING)
    expected = published([address], [address], channel=2)
    assert traces.seen() == [("publish.", expected, b"reply")]


def test_copies_are_not_traced(bench: Bench, peer: Peer) -> None:
    """Nor are they when they come to a queue over another exchange, or by basic.get."""
    operations = bench.broker.operations
    operations.set_tracing(bench.broker.vhosts["/"], True)
    peer.declare("q")
    bind = make(
        spec.ExchangeBind,
        source="amq.rabbitmq.trace",
        destination="amq.fanout",
        routing_key="publish.#",
    )
    peer.ask(1, bind, spec.ExchangeBindOk)
    peer.ask(1, make(spec.QueueBind, queue="q", exchange="amq.fanout"), spec.QueueBindOk)
    traces = Traces(bench)
    peer.publish(1, "nowhere", b"x")
    peer.send(1, make(spec.BasicGet, queue="q", no_ack=True))
    assert [key for key, _, _ in traces.seen()] == ["publish."]


def test_a_refused_message_is_not_traced(traces: Traces, peer: Peer) -> None:
    peer.publish(1, "q", b"x", properties=Properties(user_id="nobody"))
    peer.publish(2, "q", b"x", exchange="amq.rabbitmq.trace")
    assert peer.refused()[1] == 403
    assert traces.seen() == []


def test_many_in_one_read_keep_their_order(traces: Traces, peer: Peer) -> None:
    peer.declare("q")
    peer.publish(1, "q", *(b"%d" % number for number in range(50)))
    peer.send(1, make(spec.BasicConsume, queue="q", no_ack=True))
    seen = [(key, body) for key, _, body in traces.seen()]
    assert seen == [("publish.", b"%d" % n) for n in range(50)] + [
        ("deliver.q", b"%d" % n) for n in range(50)
    ]


def test_the_longest_names_have_room(traces: Traces, peer: Peer) -> None:
    name = "ü" * 127 + "x"
    peer.declare(name)
    peer.publish(1, name, b"x", properties=NOTHING)
    peer.send(1, make(spec.BasicGet, queue=name, no_ack=True))
    (_, (key, _, _)) = traces.seen()
    assert key == ("deliver." + name).encode()[:255].decode(errors="ignore")


def test_it_is_off_until_it_is_turned_on_and_after_a_restart(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = Traces(bench)
    operations, vhost = bench.broker.operations, bench.broker.vhosts["/"]
    assert not operations.tracing(vhost)
    peer.publish(1, "nowhere", b"x")
    assert traces.seen() == []
    operations.set_tracing(vhost, True)
    assert operations.tracing(vhost)
    peer.publish(1, "nowhere", b"x")
    assert len(traces.seen()) == 1
    operations.set_tracing(vhost, False)
    peer.publish(1, "nowhere", b"x")
    assert traces.seen() == []
    operations.set_tracing(vhost, True)
    bench.restart()
    assert not bench.broker.operations.tracing(bench.broker.vhosts["/"])


def test_nothing_is_asked_of_a_firehose_that_is_off(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages that are alike stay one run."""

    def never(*_: object) -> None:
        raise AssertionError("the firehose is off")

    monkeypatch.setattr(Firehose, "published", never)
    monkeypatch.setattr(Firehose, "delivered", never)
    peer.declare("q")
    peer.publish(1, "q", *(b"x",) * 10)
    peer.send(1, make(spec.BasicConsume, queue="q", no_ack=True))
    assert sum(said.body is not None for said in peer.take()) == 10


def test_copies_in_the_queue_that_is_traced_come_behind_and_keep_to_the_prefetch(
    bench: Bench, peer: Peer
) -> None:
    peer.declare("limited", arguments={"x-max-length": 1})
    bind = make(
        spec.QueueBind, queue="limited", exchange="amq.rabbitmq.trace", routing_key="deliver.#"
    )
    peer.ask(1, bind, spec.QueueBindOk)
    consumer = Peer(bench)
    consumer.send(
        1, make(spec.BasicQos, prefetch_count=2), make(spec.BasicConsume, queue="limited")
    )
    consumer.take()
    operations = bench.broker.operations
    operations.set_tracing(operations.vhost("/"), True)
    peer.publish(1, "limited", b"a", b"b", b"c")
    assert [(tag, body) for _, tag, _, body in consumer.deliveries()] == [(1, b"a"), (2, b"b")]


def test_a_consumer_of_a_backlog_gets_few_messages_between_two_looks_at_the_clock(
    bench: Bench, peer: Peer
) -> None:
    peer.declare("q")
    peer.publish(1, "q", *[b"x"] * 1000)
    bench.broker.operations.set_tracing(bench.broker.vhosts["/"], True)
    traces = Traces(bench, "deliver.#")
    clock = iter(range(10**9))
    bench.broker.services.delivery.time.clock_s = lambda: float(
        next(clock)
    )  # each hand is too long
    peer.send(1, make(spec.BasicConsume, queue="q", no_ack=True))
    got = 0
    turns = 0
    while got < 1000:
        bench.end_tick()
        hand = sum(each.body is not None for each in peer.take())
        assert hand <= 64
        got, turns = got + hand, turns + 1
        assert turns < 200
    bench.settle()
    for _ in range(100):
        bench.end_tick()
    assert len(traces.seen()) == 1000
