"""Limits of queues: who is dropped, who is rejected, and what counts.

What RabbitMQ 4.0.5 does was asked; tests/live/test_limits.py asks it again.
"""

from __future__ import annotations

from itertools import count as count_from

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties
from qlog.server.amqp.values import Table
from qlog.server.broker.channels.sink import Hold
from qlog.server.broker.features.dead_letter import BEHIND_COUNT, PAUSE_S
from qlog.server.broker.features.overflow import HEADS_AT_ONCE
from qlog.server.broker.queues.arguments import QueueArguments
from qlog.server.broker.queues.effective import Effective
from qlog.server.broker.queues.type import QueueType
from qlog.storage.errors import CorruptLog
from tests.server.broker.support import Bench, Peer, make, message
from tests.server.broker.test_dead_letters import bodies, deaths_in, pass_time, waiting
from tests.server.broker.test_publisher import answered

REJECT: Table = {"x-overflow": "reject-publish"}


@pytest.fixture
def confirming(peer: Peer) -> Peer:
    peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    return peer


def outcomes(bench: Bench, peer: Peer, count: int) -> list[str]:
    """Ack or nack for each of the publishes of a peer, in their order."""
    bench.disk()
    result: list[str] = []
    for kind, tag, _ in answered(peer):
        result += [kind] * (tag - len(result))
    assert len(result) == count
    return result


@pytest.mark.parametrize(
    ("arguments", "published", "kept"),
    [
        ({"x-max-length": 2}, [b"a", b"b", b"c", b"d"], [b"c", b"d"]),
        ({"x-max-length": 0}, [b"a", b"b"], []),
        ({"x-max-length-bytes": 4}, [b"aa", b"bb", b"c", b""], [b"bb", b"c", b""]),
        ({"x-max-length-bytes": 4}, [b"a", b"b", b"too large"], []),
        ({"x-max-length-bytes": 0}, [b"a", b"", b""], [b"", b""]),
        (
            {"x-max-length": 3, "x-max-length-bytes": 4},
            [b"aa", b"b", b"c", b"d"],
            [b"b", b"c", b"d"],
        ),
        ({"x-max-length": 2, "x-overflow": "drop-head"}, [b"a", b"b", b"c"], [b"b", b"c"]),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_the_first_messages_are_dropped(
    peer: Peer, arguments: Table, published: list[bytes], kept: list[bytes], together: bool
) -> None:
    queue = peer.declare("q", arguments=arguments)
    if together:
        peer.publish(1, "q", *published)
    else:
        for body in published:
            peer.publish(1, "q", body)
    assert waiting(queue) == (len(kept), 0)
    assert bodies(peer, "q") == kept


@pytest.mark.parametrize(
    ("arguments", "published", "expected"),
    [
        ({"x-max-length": 2}, [b"a", b"b", b"c", b"d"], "ack ack nack nack"),
        ({"x-max-length": 0}, [b"a"], "nack"),
        (
            {"x-max-length-bytes": 10},
            [b"12345", b"1234567", b"12345", b"", b"1", b""],
            "ack nack ack ack nack ack",
        ),
        ({"x-max-length": 1, "x-max-length-bytes": 3}, [b"1234", b"1", b"2"], "nack ack nack"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_what_does_not_fit_is_rejected(
    bench: Bench,
    confirming: Peer,
    arguments: Table,
    published: list[bytes],
    expected: str,
    together: bool,
) -> None:
    confirming.declare("q", arguments={**arguments, **REJECT})
    if together:
        confirming.publish(1, "q", *published)
    else:
        for body in published:
            confirming.publish(1, "q", body)
    assert outcomes(bench, confirming, len(published)) == expected.split()
    acked = zip(published, expected.split(), strict=True)
    assert bodies(confirming, "q") == [body for body, outcome in acked if outcome == "ack"]


def test_what_is_out_does_not_count(bench: Bench, confirming: Peer) -> None:
    confirming.declare("q", arguments={"x-max-length": 1, **REJECT})
    confirming.publish(1, "q", b"1", b"2")
    assert outcomes(bench, confirming, 2) == ["ack", "nack"]
    confirming.send(2, make(spec.BasicGet, queue="q"))
    assert isinstance(confirming.take()[-1].method, spec.BasicGetOk)
    confirming.publish(1, "q", b"3")
    bench.disk()
    assert answered(confirming) == [("ack", 3, False)]


@pytest.mark.parametrize("overflow", ["drop-head", "reject-publish"])
def test_what_consumers_can_take_does_not_count(
    bench: Bench, confirming: Peer, overflow: str
) -> None:
    queue = confirming.declare("q", arguments={"x-max-length": 1, "x-overflow": overflow})
    consumer = Peer(bench)
    consumer.send(1, make(spec.BasicQos, prefetch_count=3), make(spec.BasicConsume, queue="q"))
    consumer.take()
    confirming.publish(1, "q", *(b"%d" % number for number in range(6)))
    expected = {"drop-head": ["ack"] * 6, "reject-publish": ["ack"] * 4 + ["nack"] * 2}
    assert outcomes(bench, confirming, 6) == expected[overflow]
    assert [said.body for said in consumer.take()] == [b"0", b"1", b"2"]
    assert waiting(queue) == (1, 3)
    assert bodies(confirming, "q") == [{"drop-head": b"5", "reject-publish": b"3"}[overflow]]


def test_what_comes_back_beyond_the_limit_is_dropped_though_a_consumer_could_take_it(
    bench: Bench, peer: Peer
) -> None:
    queue = peer.declare("q", arguments={"x-max-length": 1})
    consumer = Peer(bench)
    consumer.send(1, make(spec.BasicQos, prefetch_count=1), make(spec.BasicConsume, queue="q"))
    consumer.take()
    peer.publish(1, "q", b"1", b"2")
    ((_, tag, _, body),) = consumer.deliveries()
    assert body == b"1"
    consumer.send(1, make(spec.BasicNack, delivery_tag=tag, requeue=True))
    ((_, _, redelivered, body),) = consumer.deliveries()
    assert (body, redelivered) == (b"2", False)
    assert waiting(queue) == (0, 1)


def test_dropped_heads_are_dead_lettered(bench: Bench, peer: Peer) -> None:
    arguments: Table = {
        "x-max-length": 1,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "dead",
    }
    queue = peer.declare("q", arguments=arguments)
    dead = peer.declare("dead")
    peer.publish(1, "q", b"a", b"b", b"c", properties=Properties(delivery_mode=2, expiration="99"))
    bench.disk()
    assert (waiting(queue), waiting(dead)) == ((1, 0), (2, 0))
    peer.send(1, make(spec.BasicGet, queue="dead"))
    (said,) = peer.take()
    assert said.body == b"a"
    assert said.properties is not None
    (death,) = deaths_in(said.properties.headers)
    assert (death["reason"], death["original-expiration"]) == ("maxlen", "99")
    bench.restart()
    queues = bench.broker.vhosts["/"].queues
    assert (queues["q"].ready, queues["dead"].ready) == (1, 2)


def test_rejected_publishes_are_dead_lettered_besides(bench: Bench, confirming: Peer) -> None:
    arguments: Table = {
        "x-max-length": 2,
        "x-overflow": "reject-publish-dlx",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "dead",
    }
    confirming.declare("q", arguments=arguments)
    confirming.declare("dead")
    confirming.publish(1, "q", b"0", b"1", b"2", b"3")
    assert outcomes(bench, confirming, 4) == ["ack", "ack", "nack", "nack"]
    assert bodies(confirming, "q") == [b"0", b"1"]
    assert bodies(confirming, "dead") == [b"2", b"3"]


def test_a_quorum_queue_drops_its_head_instead_of_dead_lettering_publishes(
    bench: Bench, peer: Peer
) -> None:
    arguments: Table = {
        "x-queue-type": "quorum",
        "x-max-length": 1,
        "x-overflow": "reject-publish-dlx",
    }
    peer.declare("q", arguments=arguments)
    peer.publish(1, "q", b"a", b"b")
    bench.disk()
    assert bodies(peer, "q") == [b"b"]


def test_the_other_queues_of_a_message_take_it_all_the_same(bench: Bench, confirming: Peer) -> None:
    confirming.declare("full", arguments={"x-max-length": 0, **REJECT})
    confirming.declare("free")
    for name in ("full", "free"):
        bind = make(spec.QueueBind, queue=name, exchange="amq.fanout")
        confirming.ask(1, bind, spec.QueueBindOk)
    confirming.send(1, message(1, "", b"a", exchange="amq.fanout"))
    assert outcomes(bench, confirming, 1) == ["nack"]
    assert bodies(confirming, "free") == [b"a"]


def lower(queue: QueueType, length_max: int) -> None:
    """As a policy does."""
    table: Table = {**queue.declared.arguments.table, "x-max-length": length_max}
    queue.reconfigure(Effective(QueueArguments(table), consumer_timeout_s=0.0))


@pytest.mark.parametrize("dead_letters", [True, False])
def test_a_backlog_beyond_a_lowered_limit_is_dropped_in_slices(
    bench: Bench, peer: Peer, dead_letters: bool
) -> None:
    arguments: Table = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    queue = peer.declare("q", arguments=arguments if dead_letters else {})
    dead = peer.declare("dead")
    count = 3 * HEADS_AT_ONCE
    peer.publish(1, "q", *(b"%d" % number for number in range(count)))
    times = count_from(0)
    bench.broker.services.jobs.clock_s = lambda: float(next(times))  # each step takes its slice
    lower(queue, 10)
    seen = []
    while queue.ready > 10:
        bench.end_tick()
        seen.append(queue.ready)
    assert sorted(set(seen)) == [10, HEADS_AT_ONCE, 2 * HEADS_AT_ONCE]
    while queue.unacked:
        bench.disk()
        pass_time(bench, PAUSE_S)
    assert dead.ready == (count - 10 if dead_letters else 0)
    assert bodies(peer, "q") == [b"%d" % number for number in range(count - 10, count)]


def test_a_start_keeps_the_limit(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q", arguments={"x-max-length": 2})
    lower(queue, 9)
    peer.publish(1, "q", b"1", b"2", b"3")
    bench.disk()
    assert queue.ready == 3
    bench.restart()
    bench.end_tick()
    assert bench.broker.vhosts["/"].queues["q"].ready == 2


def test_an_error_in_delivering_is_not_the_publishers(bench: Bench, confirming: Peer) -> None:
    queue = confirming.declare("q", arguments={"x-max-length": 1, **REJECT})
    consumer = Peer(bench)
    consumer.send(1, make(spec.BasicConsume, queue="q"))
    consumer.take()

    def damaged(*_: object, **named: object) -> None:
        raise CorruptLog("damaged")

    queue.lane.read = damaged  # type: ignore[method-assign]
    confirming.publish(1, "q", b"a", b"b")
    assert outcomes(bench, confirming, 2) == ["ack", "nack"]
    assert consumer.refused()[:2] == ("connection", 541)


def test_who_floods_a_limited_queue_waits_until_its_dead_letters_are_fewer(
    bench: Bench, peer: Peer
) -> None:
    arguments: Table = {
        "x-max-length": 1,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "dead",
    }
    queue = peer.declare("q", arguments=arguments)
    dead = peer.declare("dead", durable=False)
    other = Peer(bench)
    bench.broker.services.jobs.clock_s = map(float, count_from(0)).__next__  # a slice for each step
    published = 0
    while Hold.QUEUE not in peer.sink.why_not_read:
        assert queue.unacked <= BEHIND_COUNT and published < 4 * BEHIND_COUNT
        peer.publish(1, "q", *(b"%d" % number for number in range(BEHIND_COUNT // 4)))
        published += BEHIND_COUNT // 4
    assert queue.unacked > BEHIND_COUNT
    other.publish(1, "dead", b"")
    assert Hold.QUEUE not in other.sink.why_not_read
    while Hold.QUEUE in peer.sink.why_not_read:
        assert queue.unacked > BEHIND_COUNT // 2
        bench.disk()
        pass_time(bench, PAUSE_S)
    assert queue.unacked <= BEHIND_COUNT // 2 < dead.ready


def test_who_waits_for_dead_letters_goes_on_when_a_policy_makes_them_wait_for_a_queue(
    bench: Bench, peer: Peer
) -> None:
    arguments: Table = {
        "x-queue-type": "quorum",
        "x-max-length": 1,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "nowhere",
        "x-dead-letter-strategy": "at-least-once",
    }
    queue = peer.declare("q", arguments=arguments)
    bench.broker.services.jobs.clock_s = map(float, count_from(0)).__next__  # a slice for each step
    for _ in range(4):
        peer.publish(1, "q", *(b"%d" % number for number in range(BEHIND_COUNT)))
        bench.disk()
    peer.publish(1, "q", b"")
    assert Hold.QUEUE in peer.sink.why_not_read
    operations = bench.broker.operations
    definition = {"overflow": "reject-publish"}
    operations.set_policy(
        operations.vhost("/"), "policy", "p", pattern="^q$", definition=definition
    )
    bench.disk()
    bench.pass_ms(int(1000 * PAUSE_S))
    assert queue.unacked > BEHIND_COUNT // 2
    assert Hold.QUEUE not in peer.sink.why_not_read
