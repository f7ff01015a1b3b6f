"""Quorum queues: durable deliveries, returns in their order, counts and the delivery limit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Properties, decode_properties, encode_properties
from qlog.server.amqp.values import Int64, Table
from qlog.server.broker.numbers import Numbers
from qlog.server.broker.queues.returns import Returns, counted
from tests.server.broker.support import Bench, Peer, Said, make, message

QUORUM: Table = {"x-queue-type": "quorum"}
TO_DEAD: Table = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}


def consume(peer: Peer, **options: Any) -> None:
    peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag="c", **options))
    assert isinstance(peer.take()[0].method, spec.BasicConsumeOk)


def publish(bench: Bench, peer: Peer, *bodies: bytes) -> None:
    """Messages that are on the disk then."""
    peer.publish(1, "q", *bodies)
    bench.disk()


def heard(peer: Peer) -> list[tuple[bytes | None, Any]]:
    """What was delivered: bodies and counts."""
    return [(said.body, count_of(said)) for said in peer.take()]


def count_of(said: Said) -> Any:
    assert said.properties is not None
    return (said.properties.headers or {}).get("x-delivery-count")


def get(peer: Peer, queue: str = "q") -> Said:
    peer.send(1, make(spec.BasicGet, queue=queue))
    (said,) = peer.take()
    return said


def got(peer: Peer, queue: str = "q") -> list[tuple[bytes | None, Any]]:
    """All that is ready, taken: bodies and counts."""
    found: list[tuple[bytes | None, Any]] = []
    while (said := get(peer, queue)).body is not None:
        found.append((said.body, count_of(said)))
    return found


# --- the order of what came back


class ReturnsMachine(RuleBasedStateMachine):
    """The model: a list of numbers in the order in which they came back."""

    def __init__(self) -> None:
        super().__init__()
        self.returns = Returns()
        self.present = Numbers()
        self.waiting: list[int] = []
        self.out = list(range(30))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), count=st.integers(1, 5))
    def come_back(self, data: st.DataObject, count: int) -> None:
        first = data.draw(st.sampled_from(self.out))
        count = next(n for n in range(1, count + 1) if n == count or first + n not in self.out)
        self.returns.add(first, count)
        self.present.add(first, count)
        self.waiting += range(first, first + count)
        self.out = [number for number in self.out if not first <= number < first + count]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Expired, say: it does not come back."""
        number = data.draw(st.sampled_from(self.waiting))
        self.present.discard(number, 1)
        self.waiting.remove(number)

    @rule(count=st.integers(1, 6))
    def take(self, count: int) -> None:
        found = self.returns.next(self.present, count)
        if found is None:
            assert not self.waiting
            return
        first, length = found
        assert 1 <= length <= count
        assert self.waiting[:length] == list(range(first, first + length))
        self.returns.advance(first + length)
        self.present.discard(first, length)
        del self.waiting[:length]
        self.out += range(first, first + length)


TestReturns = ReturnsMachine.TestCase
TestReturns.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_one_that_is_returned_again_and_again_keeps_no_other_from_its_turn(
    bench: Bench, peer: Peer
) -> None:
    peer.declare("q", arguments=QUORUM)
    publish(bench, peer, b"0", b"1", b"2")
    tags = [get(peer).method.delivery_tag for _ in range(2)]  # type: ignore[attr-defined]
    for tag in tags:
        peer.send(1, spec.BasicNack(tag, False, True))
    again = get(peer)
    assert again.body == b"0"
    peer.send(1, spec.BasicReject(again.method.delivery_tag, True))  # type: ignore[attr-defined]
    assert got(peer) == [(b"1", 1), (b"0", 2), (b"2", None)]


def test_what_comes_back_together_comes_in_the_order_of_the_queue(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments=QUORUM)
    publish(bench, peer, b"0", b"1", b"2", b"3")
    tags = [get(peer).method.delivery_tag for _ in range(3)]  # type: ignore[attr-defined]
    peer.send(1, spec.BasicNack(tags[2], False, True))
    peer.send(1, spec.BasicNack(0, True, True))
    assert got(peer) == [(b"2", 1), (b"0", 1), (b"1", 1), (b"3", None)]


# --- only what is durable


def test_consumers_get_only_what_is_on_the_disk(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments=QUORUM)
    consume(peer)
    peer.publish(1, "q", b"0", b"1")
    assert peer.take() == []
    bench.disk()
    assert heard(peer) == [(b"0", None), (b"1", None)]


def test_a_get_waits_for_what_was_published_just_now(bench: Bench, peer: Peer) -> None:
    """RabbitMQ 4.0.5, too, mostly gives a client what it has published just before."""
    peer.declare("q", arguments=QUORUM)
    peer.send(1, message(1, "q", b"0"), make(spec.BasicGet, queue="q"))
    assert peer.take() == []
    bench.disk()
    (said,) = peer.take()
    assert said.body == b"0"
    assert get(peer).body is None


def test_a_get_that_waits_hears_that_the_queue_is_gone(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments=QUORUM)
    peer.send(1, message(1, "q", b"0"), make(spec.BasicGet, queue="q"))
    other = Peer(bench)
    other.send(1, make(spec.QueueDelete, queue="q"))
    bench.disk()
    assert peer.hear() == [spec.BasicGetEmpty()]


def test_what_does_not_ask_for_it_is_durable_too(bench: Bench, peer: Peer) -> None:
    """In a quorum queue, and in no other one that gets the same message."""
    for name, arguments in (("q", QUORUM), ("plain", {}), ("timed", {**QUORUM, "x-max-length": 9})):
        peer.declare(name, arguments=arguments)
        bind = make(spec.QueueBind, queue=name, exchange="amq.fanout")
        peer.ask(1, bind, spec.QueueBindOk)
    peer.send(1, message(1, "", b"a", exchange="amq.fanout", persistent=False))
    bench.disk()
    bench.kill()
    bench.open()
    again = Peer(bench)
    assert [got(again, name) for name in ("q", "plain", "timed")] == [
        [(b"a", None)],
        [],
        [(b"a", None)],
    ]


def test_transient_messages_are_confirmed_when_they_are_on_the_disk(
    bench: Bench, peer: Peer
) -> None:
    peer.declare("q", arguments=QUORUM)
    peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    peer.send(1, message(1, "q", b"a", persistent=False))
    assert peer.take() == []
    bench.disk()
    assert peer.hear() == [spec.BasicAck(1, False)]


def test_what_a_consumer_can_take_when_it_is_there_is_not_dropped_at_a_limit(
    bench: Bench, peer: Peer
) -> None:
    peer.declare("q", arguments={**QUORUM, "x-max-length": 1, "x-max-length-bytes": 1})
    consume(peer, no_ack=True)
    publish(bench, peer, b"0", b"1", b"2")
    assert heard(peer) == [(b"0", None), (b"1", None), (b"2", None)]


def test_a_time_of_0_is_enough_for_a_consumer_that_waits(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q", arguments={**QUORUM, "x-message-ttl": 0})
    consume(peer)
    publish(bench, peer, b"0")
    assert heard(peer) == [(b"0", None)]
    peer.send(1, make(spec.BasicCancel, consumer_tag="c"))
    publish(bench, peer, b"1")
    bench.disk()
    assert queue.ready == 0


# --- counts and the limit


def nack(tag: int) -> spec.Method:
    return spec.BasicNack(tag, False, True)


def reject(tag: int) -> spec.Method:
    return spec.BasicReject(tag, True)


def recover(tag: int) -> spec.Method:
    return spec.BasicRecover(True)


def close_channel(tag: int) -> spec.Method:
    return make(spec.ChannelClose, reply_code=200)


@pytest.mark.parametrize("back", [nack, reject, recover, close_channel])
def test_each_return_counts(bench: Bench, peer: Peer, back: Any) -> None:
    peer.declare("q", arguments=QUORUM)
    publish(bench, peer, b"a")
    for count in (None, 1, 2):
        other = Peer(bench)
        said = get(other)
        assert (said.body, count_of(said)) == (b"a", count)
        assert said.method.redelivered is (count is not None)  # type: ignore[attr-defined]
        other.send(1, back(said.method.delivery_tag))  # type: ignore[attr-defined]


def test_a_lost_connection_counts(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments=QUORUM)
    publish(bench, peer, b"a", b"b")
    other = Peer(bench)
    get(other)
    other.client.lost()
    assert got(peer) == [(b"a", 1), (b"b", None)]


def test_an_overdue_delivery_counts(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments={**QUORUM, "x-consumer-timeout": 1000})
    publish(bench, peer, b"a")
    other = Peer(bench)
    get(other)
    bench.now_s += 10
    bench.broker.check_consumers()
    assert got(peer) == [(b"a", 1)]


@pytest.mark.parametrize(
    ("arguments", "deliveries"),
    [
        ({}, 21),
        ({"x-delivery-limit": 0}, 1),
        ({"x-delivery-limit": 2}, 3),
        ({"x-delivery-limit": "2"}, 21),
    ],
)
@pytest.mark.parametrize("dead", [True, False])
def test_the_limit(bench: Bench, peer: Peer, arguments: Table, deliveries: int, dead: bool) -> None:
    queue = peer.declare("q", arguments={**QUORUM, **arguments, **(TO_DEAD if dead else {})})
    peer.declare("dead")
    properties = Properties(headers={"z": 1, "a": "own"}, expiration="100000")
    peer.send(1, message(1, "q", b"a", properties=properties))
    bench.disk()
    for number in range(deliveries):
        said = get(peer)
        assert said.properties is not None
        told: Table = {"x-delivery-count": number} if number else {}
        assert said.properties.headers == {"a": "own", **told, "z": 1}
        assert said.properties.expiration == "100000"
        peer.send(1, spec.BasicNack(0, True, True))
    bench.disk()
    assert (queue.ready, queue.unacked) == (0, 0)
    if dead:
        said = get(peer, "dead")
        assert said.body == b"a" and said.properties is not None
        headers = said.properties.headers or {}
        assert headers["x-first-death-reason"] == "delivery_limit"
        assert "x-delivery-count" not in headers


def test_without_a_limit_a_message_comes_back_for_ever(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments={**QUORUM, "x-delivery-limit": -1})
    publish(bench, peer, b"a")
    for _ in range(30):
        get(peer)
        peer.send(1, spec.BasicNack(0, True, True))
    assert got(peer) == [(b"a", 30)]


def test_some_of_many_exceed_the_limit(bench: Bench, peer: Peer) -> None:
    """They leave in pieces, and the others are there at once."""
    queue = peer.declare("q", arguments={**QUORUM, **TO_DEAD, "x-delivery-limit": 1})
    dead = peer.declare("dead")
    many = 3000
    consume(peer)
    publish(bench, peer, *(b"%d" % number for number in range(many)))
    tags = [said.method.delivery_tag for said in peer.take()]  # type: ignore[attr-defined]
    assert len(tags) == many
    peer.send(1, *(spec.BasicNack(tag, False, True) for tag in tags[::2]))
    assert len(peer.take()) == many // 2
    peer.send(1, make(spec.BasicCancel, consumer_tag="c"))
    peer.send(1, spec.BasicNack(0, True, True))
    for _ in range(200):
        bench.disk()
    assert (queue.ready, queue.unacked, dead.ready) == (many // 2, 0, many // 2)


def test_a_lost_client_with_many_scattered_messages_keeps_nobody_waiting(
    bench: Bench, peer: Peer
) -> None:
    """What comes back is noted in pieces, and is there all at once."""
    queue = peer.declare("q", arguments=QUORUM)
    many = 4000
    publish(bench, peer, *[b"x"] * many)
    other = Peer(bench)
    consume(other)
    assert queue.unacked == many
    ticks = 0.0

    def clock_s() -> float:  # a slice has time for one look at the clock
        nonlocal ticks
        ticks += 1.0
        return ticks

    other.send(1, *(spec.BasicAck(tag, False) for tag in range(1, many, 2)))
    while queue.unacked > many // 2:
        bench.disk()
    bench.broker.services.jobs.clock_s = clock_s
    other.client.lost()
    assert (queue.ready, queue.unacked) == (0, many // 2)
    turns = 0
    while queue.unacked:
        bench.end_tick()
        assert queue.ready in (0, many // 2)
        turns += 1
    assert turns > many // 8


def test_counts_survive_a_crash(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments=QUORUM)
    publish(bench, peer, b"0", b"1", b"2")
    for _ in range(3):
        get(peer)
        peer.send(1, spec.BasicNack(0, True, True))
    bench.disk()
    bench.kill()
    bench.open()
    assert got(Peer(bench)) == [(b"0", 3), (b"1", None), (b"2", None)]


@given(
    properties=st.builds(
        Properties,
        content_type=st.none() | st.just("text/plain"),
        headers=st.none() | st.dictionaries(st.text("xyz", min_size=1), st.integers(0, 9)),
        expiration=st.none() | st.just("5"),
        message_id=st.none() | st.text("ab"),
    ),
    count=st.integers(1, 1 << 40),
)
def test_the_count_is_one_more_header(properties: Properties, count: int) -> None:
    envelope = Envelope.pack("x", "k", encode_properties(properties), 3)
    told = decode_properties(counted(envelope, count).properties)
    headers = told.headers or {}
    assert type(headers["x-delivery-count"]) is Int64 or count >= 1 << 31
    assert headers == {**(properties.headers or {}), "x-delivery-count": count}
    assert replace(told, headers=None) == replace(properties, headers=None)


# --- what is refused

CANNOT_DELETE = (
    "NOT_IMPLEMENTED - cannot delete queue 'q' in vhost '/'. queue.delete operations with {} flag "
    "set are not supported by quorum queues"
)


@pytest.mark.parametrize(
    ("method", "refusal"),
    [
        (
            make(spec.BasicConsume, queue="q"),
            "NOT_IMPLEMENTED - queue 'q' in vhost '/' does not support global qos",
        ),
        (
            make(spec.QueueDelete, queue="q", if_unused=True, if_empty=True),
            CANNOT_DELETE.format("if-unused"),
        ),
        (
            make(spec.QueueDelete, queue="q", if_empty=True),
            CANNOT_DELETE.format("if-empty"),
        ),
    ],
)
def test_what_quorum_queues_do_not_support(peer: Peer, method: spec.Method, refusal: str) -> None:
    peer.declare("q", arguments=QUORUM)
    peer.send(1, make(spec.BasicQos, prefetch_count=5, global_=True), method)
    assert peer.refused() == ("connection", 540, refusal)


def test_a_prefetch_for_the_channel_that_is_gone_again_refuses_nothing(peer: Peer) -> None:
    peer.declare("q", arguments=QUORUM)
    for count in (5, 0):
        peer.send(1, make(spec.BasicQos, prefetch_count=count, global_=True))
    peer.take()
    consume(peer)
