"""The two priorities of quorum queues: whose turn it is, across starts, and what else they touch."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties
from qlog.server.amqp.values import Table
from qlog.server.broker.queues import two_priorities
from qlog.server.broker.queues.quorum import QuorumQueue
from qlog.server.broker.queues.two_priorities import Arrival
from tests.server.broker.support import Bench, Peer, make, message

QUORUM: Table = {"x-queue-type": "quorum"}


def one(priority: int | None, body: bytes, queue: str = "q", exchange: str = "") -> bytes:
    properties = Properties(delivery_mode=2, priority=priority)
    return message(1, queue, body, exchange=exchange, properties=properties)


def publish(bench: Bench, peer: Peer, *bodies: str) -> None:
    """Messages of which those with a capital letter are high, each in a read of its own."""
    for body in bodies:
        peer.send(1, one(9 if body[0].isupper() else 0, body.encode()))
    bench.disk()


class Got(NamedTuple):
    body: str
    tag: int


def get(peer: Peer, queue: str = "q") -> Got | None:
    peer.send(2, make(spec.BasicGet, queue=queue))
    (said,) = peer.take()
    if said.body is None:
        return None
    assert isinstance(said.method, spec.BasicGetOk)
    return Got(said.body.decode(), said.method.delivery_tag)


def drained(peer: Peer, queue: str = "q") -> str:
    found = []
    while (got := get(peer, queue)) is not None:
        found.append(got.body)
    return " ".join(found)


class Model:
    """What RabbitMQ does (rabbit_fifo_q, and the returns of rabbit_fifo)."""

    def __init__(self) -> None:
        self.high: list[tuple[int, str]] = []
        self.low: list[tuple[int, str]] = []
        self.returned: list[str] = []
        self.taken = 0
        self.came = 0

    def add(self, body: str) -> None:
        self.came += 1
        (self.high if body[0].isupper() else self.low).append((self.came, body))

    def next(self) -> str | None:
        if self.returned:
            return self.returned.pop(0)
        if not self.high and not self.low:
            return None
        turn_of_low = self.taken == 2
        self.taken = (self.taken + 1) % 3
        if self.high and (not self.low or not turn_of_low or self.high[0] < self.low[0]):
            return self.high.pop(0)[1]
        return self.low.pop(0)[1]


@pytest.mark.parametrize("seed", range(12))
def test_as_a_model_of_rabbitmq(bench: Bench, peer: Peer, seed: int) -> None:
    chance = random.Random(seed)
    peer.declare("q", arguments={**QUORUM, "x-delivery-limit": 1000})
    model, held, number = Model(), [], 0
    for _ in range(150):
        what = chance.random()
        if what < 0.35:
            bodies = []
            for _ in range(chance.choice((1, 1, 2, 8))):
                number += 1
                bodies.append(f"{chance.choice('Hhl' if seed % 2 else 'HHHhl')}{number}")
            publish(bench, peer, *bodies)
            for body in bodies:
                model.add(body)
        elif what < 0.8:
            got = get(peer)
            assert (None if got is None else got.body) == model.next()
            if got is not None:
                held.append(got)
        elif held and what < 0.95:
            back = held.pop(chance.randrange(len(held)))
            peer.send(2, spec.BasicNack(back.tag, multiple=False, requeue=True))
            model.returned.append(back.body)
        elif held:
            peer.send(2, spec.BasicAck(held.pop(chance.randrange(len(held))).tag, multiple=False))
    while (expected := model.next()) is not None:
        got = get(peer)
        assert got is not None and got.body == expected
    assert get(peer) is None


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_priorities_survive(bench: Bench, peer: Peer, how: str) -> None:
    peer.declare("q", arguments=QUORUM)
    publish(bench, peer, "a", "b", "C", "D", "E", "f")
    assert get(peer) == Got("C", 1)
    if how == "stop":
        bench.restart()
    else:
        bench.kill()
        bench.open()
    again = Peer(bench)
    queue = bench.broker.vhosts["/"].queues["q"]
    assert queue.ready == 6 and len(queue.lanes) == 2
    assert drained(again) == "C D a E b f"
    publish(bench, again, "g", "H", "i")
    assert drained(again) == "H g i"


def test_which_came_before_which_is_not_known_after_a_start(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments=QUORUM)
    publish(bench, peer, *"ABCDE", *"fgh")
    bench.restart()
    assert drained(Peer(bench)) == "A B f C D g E h"


def test_without_high_messages_there_is_one_lane(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q", arguments=QUORUM)
    for priority in (None, 0, 4):
        peer.send(1, one(priority, b"x"))
    bench.disk()
    assert len(queue.lanes) == 1
    peer.send(1, one(5, b"x"))
    assert len(queue.lanes) == 2 and queue.ready == 4


def test_messages_for_queues_of_several_types(bench: Bench, peer: Peer) -> None:
    """The classic queue has them in the order in which they came."""
    peer.declare("q", arguments=QUORUM)
    peer.declare("classic")
    for name in ("q", "classic"):
        bind = make(spec.QueueBind, queue=name, exchange="amq.fanout", routing_key="")
        peer.ask(1, bind, spec.QueueBindOk)
    peer.send(1, *(one(p, b, "", "amq.fanout") for p, b in ((0, b"a"), (9, b"B"), (0, b"c"))))
    bench.disk()
    assert drained(peer) == "B a c" and drained(peer, "classic") == "a B c"


def test_consumers_get_only_what_is_on_the_disk(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments=QUORUM)
    publish(bench, peer, "a", "B", "c")
    peer.send(3, make(spec.BasicConsume, queue="q", consumer_tag="c"))
    assert [said.body for said in peer.take()[1:]] == [b"B", b"a", b"c"]
    peer.send(1, one(9, b"D"), one(0, b"e"))
    assert peer.take() == []
    bench.disk()
    assert sorted(said.body or b"" for said in peer.take()) == [b"D", b"e"]


def test_a_get_waits_for_what_was_published_just_now(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments=QUORUM)
    publish(bench, peer, "A")
    assert drained(peer) == "A"
    peer.send(1, one(9, b"B"))
    peer.send(2, make(spec.BasicGet, queue="q"))
    assert peer.take() == []
    bench.disk()
    (said,) = peer.take()
    assert said.body == b"B"


@pytest.mark.parametrize("killed", [False, True])
def test_what_waits_for_its_next_delivery_goes_back_to_its_lane(
    bench: Bench, peer: Peer, killed: bool
) -> None:
    backoff = {"x-delayed-retry-type": "all", "x-delayed-retry-min": 1000}
    queue = peer.declare("q", arguments={**QUORUM, **backoff})
    publish(bench, peer, "a", "B")
    for _ in range(2):
        got = get(peer)
        assert got is not None
        peer.send(2, spec.BasicNack(got.tag, multiple=False, requeue=True))
    bench.disk()
    assert queue.ready == 0
    if killed:
        bench.kill()
        bench.open()
        peer = Peer(bench)
        assert bench.broker.vhosts["/"].queues["q"].ready == 0
    bench.pass_ms(1100)
    assert sorted(drained(peer).split()) == ["B", "a"]


def test_the_octets_of_both_count_for_a_limit(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q", arguments={**QUORUM, "x-max-length-bytes": 10})
    publish(bench, peer, *("aaa", "BBB", "ccc", "DDD"))
    assert queue.ready == 3 and drained(peer) == "DDD aaa ccc"


def test_a_limit_drops_only_what_counts_for_it(bench: Bench, peer: Peer) -> None:
    """While somebody consumes, high messages on their way to the disk do not: low ones go."""
    queue = peer.declare("q", arguments={**QUORUM, "x-max-length": 8})
    consume = make(spec.BasicConsume, queue="q", consumer_tag="c")
    peer.send(3, make(spec.BasicQos, prefetch_count=1), consume)
    publish(bench, peer, "A", *"abcdefgh")
    assert [said.body for said in peer.take()][-1] == b"A"
    assert isinstance(queue, QuorumQueue)
    high, low = queue.backlogs
    peer.send(1, one(0, b"i"), one(0, b"j"))
    peer.send(1, *(one(9, body) for body in (b"B", b"C", b"D", b"E", b"F")))
    assert (high.ready, low.ready, low.takeable) == (5, 10, 8)
    bench.disk_once()
    assert (high.ready, high.takeable, low.ready) == (5, 0, 8)
    bench.disk()
    assert queue.ready == 8


def test_a_deleted_queue_lets_go_of_both(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments=QUORUM)
    publish(bench, peer, "a", "B")
    deleted = peer.ask(1, make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk)
    assert deleted.message_count == 2
    peer.declare("q", arguments=QUORUM)
    publish(bench, peer, "C")
    assert drained(peer) == "C"


def test_what_is_known_of_arrivals_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of high messages behind the last mark it is taken that low ones came before."""
    monkeypatch.setattr(two_priorities, "MARKS_MAX", 4)
    arrival = Arrival()
    for number in range(10):  # a low one, then a high one, …
        arrival.high(number, number + 1, lambda: 0)
    assert len(arrival._marks) == 5
    assert arrival.before(1, 0, 100) == 1
    assert arrival.before(3, 0, 100) == 3
    assert arrival.before(100, 0, 100) == 4
    assert arrival.before(100, 4, 100) == 0
    arrival.high(10, 11, lambda: 4)  # there is room again
    assert arrival.before(100, 9, 100) == 0 and arrival.before(100, 10, 100) == 100


def test_a_queue_that_is_kept_empty_forgets_what_came_when(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Low and high messages take turns, none is ever beside another; then a backlog comes."""
    monkeypatch.setattr(two_priorities, "MARKS_MAX", 4)
    queue = peer.declare("q", arguments=QUORUM)
    consume = make(spec.BasicConsume, queue="q", consumer_tag="c", no_ack=True)
    peer.ask(3, consume, spec.BasicConsumeOk)
    for _ in range(10):
        publish(bench, peer, "a")
        publish(bench, peer, "B")
    assert len(peer.take()) == 20
    peer.ask(3, make(spec.BasicCancel, consumer_tag="c"), spec.BasicCancelOk)
    model = Model()
    model.taken = 20 % 3
    for body in ("C", "D", "E", "f", "G", "h"):
        model.add(body)
        publish(bench, peer, body)
    assert drained(peer).split() == list(iter(model.next, None))
    assert queue.ready == 0


@pytest.mark.parametrize("how", ["plain", "limit", "expiration", "dead letters"])
def test_the_order_of_one_read_is_kept(bench: Bench, peer: Peer, how: str) -> None:
    """Also of messages that the queue gets together, and not by one append."""
    limit: Table = {"x-max-length": 1000} if how == "limit" else {}
    peer.declare("q", arguments={**QUORUM, **limit})
    first = "q"
    if how == "dead letters":
        first = "first"
        dead: Table = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"}
        peer.declare(first, arguments=dead)
    model = Model()
    frames = []
    for body in ("a", "B", "C", "D", "E", "F", "g", "H"):
        model.add(body)
        properties = Properties(delivery_mode=2, priority=9 if body.isupper() else None)
        if how == "expiration":
            properties.expiration = "60000"
        frames.append(message(1, first, body.encode(), properties=properties))
    peer.send(1, *frames)
    bench.disk()
    if how == "dead letters":
        while get(peer, first) is not None:
            pass
        peer.send(2, spec.BasicNack(0, multiple=True, requeue=False))
        bench.settle()
        bench.disk()
    assert drained(peer).split() == list(iter(model.next, None))


@pytest.mark.parametrize("bodies", ["aB", "a", "B"])
def test_a_choice_looks_at_few_messages(
    bench: Bench, peer: Peer, asked: list[int], bodies: str
) -> None:
    """However much is ready, and whatever credit the consumer has."""
    peer.declare("q", arguments=QUORUM)
    publish(bench, peer, *"ABab")
    tags = [got.tag for _ in range(4) if (got := get(peer)) is not None]
    for body in bodies * 1500:  # more than a block of a lane's settled messages
        peer.send(1, one(9 if body.isupper() else 0, body.encode()))
    bench.disk()
    for tag in tags[1:]:  # so that the messages behind the first ones are no whole range
        peer.send(2, spec.BasicAck(tag, multiple=False))
    asked.clear()
    peer.send(3, make(spec.BasicConsume, queue="q", consumer_tag="c"))
    bench.settle()
    assert len(peer.take()) == 1 + len(bodies) * 1500
    assert max(asked) <= two_priorities.FRESH_MAX
