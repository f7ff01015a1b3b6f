"""Jobs: little work is done at once, much of it in slices that leave room for others."""

from __future__ import annotations

import gc
import itertools
import random
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.frames import method_frame
from qlog.server.amqp.values import Table
from qlog.server.broker.channels import channel as channel_module
from qlog.server.broker.channels.channel import FED_AT_ONCE
from qlog.server.broker.channels.consumer import Consumer
from qlog.server.broker.jobs import SLICE_S, TURN_S, Jobs, Steps, letting_go
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.classic import ClassicQueue
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.settings import BrokerSettings
from qlog.server.broker.vhost import VHost
from tests.costs import bytecodes
from tests.server.broker.support import Bench, Peer, make

SLICE_MAX_S = 0.020


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def working(clock: Clock, pieces: int, seen: list[str], name: str) -> Steps[str]:
    """A job of pieces that take a millisecond each."""
    for _ in range(pieces):
        clock.now_s += 0.001
        seen.append(name)
        yield
    return name


def test_little_work_is_done_at_once() -> None:
    clock = Clock()
    jobs = Jobs(clock)
    outcome = jobs.start(working(clock, 1, [], "a"))
    assert outcome.done and outcome.result() == "a" and not jobs


def test_jobs_take_turns_and_leave_room() -> None:
    clock = Clock()
    jobs = Jobs(clock)
    seen: list[str] = []
    told: list[str] = []
    for name in "abc":
        jobs.start(working(clock, 6, seen, name)).then(lambda known: told.append(known.result()))
    seen.clear()
    turns = 0
    while jobs:
        before_s = clock.now_s
        jobs.run()
        turns += 1
        assert clock.now_s - before_s <= TURN_S + SLICE_S
    assert turns >= 2 and sorted(told) == ["a", "b", "c"]
    assert seen[:5] == ["a", "a", "b", "b", "c"]  # and then the turn was over


def test_thousands_of_little_jobs_leave_room() -> None:
    clock = Clock()
    jobs = Jobs(clock)
    done: list[object] = []
    for _ in range(100):
        jobs.start_in_turn(working(clock, 1, [], "a")).then(done.append)
    assert 0 < len(done) < 10
    while jobs:
        before_s = clock.now_s
        jobs.run()
        assert clock.now_s - before_s <= TURN_S + SLICE_S
    assert len(done) == 100
    clock.now_s += 1
    assert jobs.start_in_turn(working(clock, 1, [], "a")).done


def test_a_job_that_waits_costs_nothing_until_it_goes_on() -> None:
    jobs = Jobs(Clock())
    awaited: Outcome[str] = Outcome()
    asked = 0

    def waiting() -> Steps[str]:
        nonlocal asked
        asked += 1
        yield awaited
        asked += 1
        yield awaited  # known by now: there is nothing to wait for
        return awaited.result()

    outcome = jobs.start(waiting())
    for _ in range(3):
        jobs.run()
    assert asked == 1 and not jobs and not outcome.done
    awaited.set("known")
    assert jobs and not outcome.done  # not within whatever made it known
    jobs.run()
    assert outcome.result() == "known" and not jobs


def test_a_job_hears_of_the_error_that_it_waited_for() -> None:
    jobs = Jobs(Clock())
    awaited: Outcome[None] = Outcome()

    def waiting() -> Steps[None]:
        yield awaited
        awaited.result()

    outcome = jobs.start(waiting())
    awaited.fail(ValueError("no"))
    jobs.run()
    with pytest.raises(ValueError, match="no"):
        outcome.result()


def test_error_is_the_outcome() -> None:
    clock = Clock()
    jobs = Jobs(clock)

    def failing() -> Steps[None]:
        yield from working(clock, 5, [], "a")
        raise ValueError("no")

    outcome = jobs.start(failing())
    assert not outcome.done
    while jobs:
        jobs.run()
    with pytest.raises(ValueError, match="no"):
        outcome.result()


class Thing:
    """Something that can be seen to be gone."""


def test_what_a_job_ends_is_let_go_of_one_by_one() -> None:
    """Thousands of things that are freed at its end would be one long piece of work."""
    things = [Thing() for _ in range(3)]
    seen = [weakref.ref(thing) for thing in things]
    going = letting_go(things)
    things.clear()
    left = [sum(ref() is not None for ref in seen) for _ in going]
    assert left == [3, 2, 1]


# --- what is in bulk


@pytest.fixture
def sliced(bench: Bench) -> Bench:
    """A broker whose jobs go by the processor time of this thread."""
    bench.broker.services.jobs.clock_s = time.thread_time
    bench.broker.services.delivery.time.clock_s = time.thread_time
    return bench


def fill(bench: Bench, queue: QueueType, count: int) -> None:
    """Messages that are in memory only."""
    envelope = Envelope.pack("", queue.name, b"\0\0", 10)
    for first in range(0, count, 4096):
        bodies = [b"%010d" % number for number in range(first, min(first + 4096, count))]
        envelopes = [envelope] * len(bodies)
        bench.store.append([queue.lane], envelopes, bodies, persistent=False, now_ms=1)


@contextmanager
def no_collections() -> Iterator[None]:
    """What the test itself holds is not looked through by the collector, which would be counted."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def nobody_looks() -> None:
    """What is under way is seen by nobody."""


def longest_slice(
    bench: Bench, begin: Callable[[], None], look: Callable[[], None] = nobody_looks
) -> float:
    """The processor time of the longest piece, from the request to the end of the work.

    `look` is called once in its middle.
    """
    longest_s = 0.0

    def timed(call: Callable[[], None]) -> None:
        nonlocal longest_s
        started_s = time.thread_time()
        call()
        longest_s = max(longest_s, time.thread_time() - started_s)

    def run_timers() -> None:
        bench.broker.timers.run(bench.now_s)

    with no_collections():
        timed(begin)
        if bench.broker.jobs_left:
            look()
        quiet = 0
        while quiet < 100:  # memory is freed bit by bit
            quiet = 0 if bench.broker.jobs_left else quiet + 1
            timed(run_timers)
            timed(bench.broker.work)
            timed(bench.broker.pump)
            bench.now_s += 0.005
            bench.store.tick(bench.now_s)
            timed(bench.store.advance)
            timed(bench.broker.progress)
            for worker in bench.workers:  # the other threads
                worker.run_one()
    return longest_s


def hand_out(bench: Bench, peer: Peer, queue: QueueType, count: int, consumers: int) -> None:
    """All of it is with consumers of one channel, in small hands."""
    for number in range(consumers):
        peer.send(1, make(spec.BasicConsume, queue=queue.name, consumer_tag=f"c{number}"))
    fill(bench, queue, count)
    bench.broker.services.delivery.wake(queue)
    while queue.ready:
        bench.broker.work()
        bench.broker.pump()
    peer.sink.written.clear()
    assert (queue.ready, queue.unacked) == (0, count)


def request(peer: Peer, channel: int, method: spec.Method) -> Callable[[], None]:
    """Obey the method, without the end of the tick."""
    data = method_frame(channel, method)

    def obey() -> None:
        for event in peer.core.receive(data):
            peer.client.handle(event)

    return obey


def test_recover_of_a_million_is_sliced_and_seen_at_once(sliced: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    hand_out(sliced, peer, queue, 1_000_000, 4)
    for tag in ("c0", "c1", "c2", "c3"):
        peer.send(1, make(spec.BasicCancel, consumer_tag=tag))
    peer.take()
    seen = set()

    def begin() -> None:
        request(peer, 1, spec.BasicRecover(True))()
        seen.add(queue.ready)

    longest_s = longest_slice(sliced, begin)
    assert longest_s < SLICE_MAX_S
    assert seen == {0}  # nothing of it, while it was under way
    assert (queue.ready, queue.unacked) == (1_000_000, 0)
    assert peer.hear() == [spec.BasicRecoverOk()]


def test_delivering_a_million_is_sliced_and_other_queues_have_their_turn(
    sliced: Bench, peer: Peer
) -> None:
    """Many consumers of one queue that read fast: the message in another queue does not wait."""
    queue = peer.declare("q")
    for number in range(4):
        peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag=f"c{number}", no_ack=True))
    fill(sliced, queue, 1_000_000)
    other = Peer(sliced)
    other.declare("other")
    other.send(1, make(spec.BasicConsume, queue="other", consumer_tag="other", no_ack=True))
    other.take()
    left = []

    def begin() -> None:
        sliced.broker.services.delivery.wake(queue)
        sliced.broker.pump()

    def look() -> None:
        other.publish(1, "other", b"a", persistent=False)  # one tick, as is the next
        sliced.end_tick()
        left.append((other.deliveries(), queue.ready > 500_000))

    longest_s = longest_slice(sliced, begin, look)
    assert longest_s < SLICE_MAX_S
    assert left == [([("other", 1, False, b"a")], True)]
    assert queue.ready == 0


def test_ack_of_all_of_a_million_is_sliced(sliced: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    hand_out(sliced, peer, queue, 1_000_000, 4)
    longest_s = longest_slice(sliced, request(peer, 1, spec.BasicAck(0, True)))
    assert longest_s < SLICE_MAX_S
    assert (queue.ready, queue.unacked) == (0, 0)


def test_overdue_deliveries_go_back_in_slices_and_are_seen_at_once(
    sliced: Bench, peer: Peer
) -> None:
    arguments = {"x-consumer-timeout": 5000, "x-consumer-timeout-action": "requeue"}
    queue = peer.declare("q", arguments=arguments)
    hand_out(sliced, peer, queue, 500_000, 4)
    for tag in ("c0", "c1", "c2", "c3"):
        peer.send(1, make(spec.BasicCancel, consumer_tag=tag))
    peer.take()
    sliced.now_s += 6
    seen = set()

    def begin() -> None:
        sliced.broker.check_consumers()
        seen.add(queue.ready)

    def look() -> None:
        seen.add(queue.ready)
        peer.send(1, spec.BasicAck(1, False))  # late: nothing happens

    longest_s = longest_slice(sliced, begin, look)
    assert longest_s < SLICE_MAX_S
    assert seen == {0} and (queue.ready, queue.unacked) == (500_000, 0)
    assert peer.take() == []


def test_closing_a_channel_with_a_million_is_sliced(sliced: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    hand_out(sliced, peer, queue, 1_000_000, 4)
    longest_s = longest_slice(sliced, request(peer, 1, spec.ChannelClose(200, "", 0, 0)))
    assert longest_s < SLICE_MAX_S
    assert (queue.ready, queue.unacked, len(queue.takers)) == (1_000_000, 0, 0)
    assert peer.hear() == [spec.ChannelCloseOk()]


def test_what_follows_a_long_requeue_waits_for_it(sliced: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    hand_out(sliced, peer, queue, 100_000, 2)
    for tag in ("c0", "c1"):
        peer.send(1, make(spec.BasicCancel, consumer_tag=tag))
    peer.take()
    request(peer, 1, spec.BasicNack(0, True, True))()
    request(peer, 1, make(spec.QueueDeclare, queue="q", passive=True))()
    request(peer, 1, spec.ChannelClose(200, "", 0, 0))()
    assert sliced.broker.jobs_left and peer.hear() == []
    other = Peer(sliced)  # each of whose methods is a tick
    assert other.ask(1, make(spec.QueueDeclare, queue="q", passive=True), spec.QueueDeclareOk)
    while sliced.broker.jobs_left:
        sliced.broker.work()
    assert peer.hear() == [spec.QueueDeclareOk("q", 100_000, 0), spec.ChannelCloseOk()]


def test_connection_lost_in_a_long_requeue_gives_all_of_it_back(sliced: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    hand_out(sliced, peer, queue, 100_000, 2)
    request(peer, 1, spec.BasicNack(0, True, True))()
    assert sliced.broker.jobs_left
    peer.client.lost()
    while sliced.broker.jobs_left:
        sliced.broker.work()
    assert (queue.ready, queue.unacked) == (100_000, 0)
    assert peer.take() == []


def test_purge_of_a_million_is_sliced_and_seen_at_once(sliced: Bench, peer: Peer) -> None:
    """Also of what came back, every second message, so that it is in half a million pieces."""
    queue = peer.declare("q")
    fill(sliced, queue, 1_000_000)
    assert isinstance(queue, ClassicQueue)
    (backlog,) = queue.backlogs
    while backlog.out < 500_000:
        backlog.take(500_000 - backlog.out)
    for qseq in range(0, 500_000, 2):
        queue.requeue(backlog, qseq, 1, 10)
    assert (queue.ready, queue.unacked) == (750_000, 250_000)
    seen = set()

    def begin() -> None:
        request(peer, 1, make(spec.QueuePurge, queue="q"))()
        seen.add(queue.ready)

    longest_s = longest_slice(sliced, begin)
    assert longest_s < SLICE_MAX_S
    assert seen == {0} and (queue.ready, queue.unacked) == (0, 250_000)
    assert peer.hear() == [spec.QueuePurgeOk(750_000)]


def test_what_a_channel_held_is_obeyed_in_slices(sliced: Bench, peer: Peer) -> None:
    """Thousands of binds in one read, behind a method that waits for the reply of a bind."""
    peer.declare("q")
    binds = [
        make(spec.QueueBind, queue="q", exchange="amq.direct", routing_key=str(number))
        for number in range(3000)
    ]
    peer.send(1, binds[0], make(spec.BasicQos, prefetch_count=1), *binds[1:])
    assert longest_slice(sliced, nobody_looks) < SLICE_MAX_S
    assert len(peer.hear()) == len(binds) + 1


def test_delete_of_a_million_messages_is_sliced(sliced: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    fill(sliced, queue, 1_000_000)
    longest_s = longest_slice(sliced, request(peer, 1, make(spec.QueueDelete, queue="q")))
    assert longest_s < SLICE_MAX_S
    sliced.disk()
    assert peer.hear() == [spec.QueueDeleteOk(1_000_000)]


def bind_often(bench: Bench, peer: Peer, count: int) -> None:
    """Bindings of exchange e to queue q, all durable."""
    peer.declare("q")
    declare = make(spec.ExchangeDeclare, exchange="e", type="direct", durable=True)
    peer.ask(1, declare, spec.ExchangeDeclareOk)
    vhost = bench.broker.vhosts["/"]
    with bench.broker.definitions.transaction():
        for number in range(count):
            vhost.bind("e", "queue", "q", str(number), {})


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        (make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk(1)),
        (make(spec.ExchangeDelete, exchange="e"), spec.ExchangeDeleteOk()),
    ],
    ids=["queue", "exchange"],
)
def test_delete_with_many_bindings_is_sliced_and_seen_at_once(
    sliced: Bench, peer: Peer, method: spec.Method, reply: spec.Method
) -> None:
    bind_often(sliced, peer, 30_000)
    peer.publish(1, "q", b"a")
    other = Peer(sliced)
    other.ask(1, spec.ConfirmSelect(False), spec.ConfirmSelectOk)

    def begin() -> None:
        request(peer, 1, method)()

    def look() -> None:
        """To nobody but the one who deletes is the work visible."""
        other.publish(1, "29999", b"b", exchange="e", mandatory=True)
        answer = other.hear()[0]
        if isinstance(method, spec.QueueDelete):
            assert isinstance(answer, spec.BasicReturn)
        else:
            assert isinstance(answer, spec.ChannelClose) and answer.reply_code == 404

    longest_s = longest_slice(sliced, begin, look)
    assert longest_s < SLICE_MAX_S
    sliced.disk()
    assert peer.hear() == [reply]
    vhost = sliced.broker.vhosts["/"]
    assert not list(vhost.routing.bindings_from("e"))
    sliced.restart()
    routing = sliced.broker.vhosts["/"].routing
    assert not list(routing.bindings_from("e"))


def declare_auto_delete(vhost: VHost, name: str, alternate: str | None = None) -> None:
    """A durable auto-delete exchange."""
    arguments: Table = {} if alternate is None else {"alternate-exchange": alternate}
    vhost.declare_exchange(
        name, "direct", durable=True, auto_delete=True, internal=False, arguments=arguments
    )


def many_to_one(vhost: VHost) -> None:
    """20,000 bindings of amq.topic to exchange e, which has one to queue q."""
    declare_auto_delete(vhost, "e")
    vhost.bind("e", "queue", "q", "", {})
    for number in range(20_000):
        vhost.bind("amq.topic", "exchange", "e", str(number), {})


def chain(vhost: VHost) -> None:
    """Exchange e, which has a binding to queue q, behind 5,000 others."""
    names = ["e", *(f"link {number}" for number in range(5000))]
    for name in names:
        declare_auto_delete(vhost, name)
    vhost.bind("e", "queue", "q", "", {})
    for destination, source in itertools.pairwise(names):
        vhost.bind(source, "exchange", destination, "", {})


def fans(vhost: VHost) -> None:
    """Exchange e, which has a binding to queue q, behind 100 with 100 exchanges behind each."""
    declare_auto_delete(vhost, "e")
    vhost.bind("e", "queue", "q", "", {})
    for number in range(100):
        declare_auto_delete(vhost, f"fan {number}")
        vhost.bind(f"fan {number}", "exchange", "e", "", {})
        for part in range(100):
            declare_auto_delete(vhost, f"fan {number} {part}")
            vhost.bind(f"fan {number} {part}", "exchange", f"fan {number}", "", {})


def star(vhost: VHost) -> None:
    """5,000 exchanges with a binding to queue q, and one to each of amq.topic."""
    declare_auto_delete(vhost, "e")
    vhost.bind("e", "queue", "q", "", {})
    for number in range(5000):
        declare_auto_delete(vhost, f"ray {number}")
        vhost.bind(f"ray {number}", "queue", "q", "", {})
        vhost.bind(f"ray {number}", "exchange", "e", "", {})
        vhost.bind("amq.topic", "exchange", f"ray {number}", "", {})


@pytest.mark.parametrize("shape", [many_to_one, chain, fans, star])
@pytest.mark.parametrize(
    ("method", "reply"),
    [
        (make(spec.QueueUnbind, queue="q", exchange="e"), spec.QueueUnbindOk()),
        (make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk(0)),
        (make(spec.ExchangeDelete, exchange="e"), spec.ExchangeDeleteOk()),
    ],
    ids=["unbind", "queue", "exchange"],
)
def test_auto_delete_exchanges_follow_in_slices(
    sliced: Bench,
    peer: Peer,
    method: spec.Method,
    reply: spec.Method,
    shape: Callable[[VHost], None],
) -> None:
    peer.declare("q")
    vhost = sliced.broker.vhosts["/"]
    with sliced.broker.definitions.transaction():
        shape(vhost)
    other = Peer(sliced)
    other.send(1)
    looked = []

    def look() -> None:
        """What has lost its last binding is gone; its name is free at once, or later."""
        other.send(1, make(spec.ExchangeDeclare, exchange="e", type="fanout"))
        found = vhost.find_exchange("e")
        assert found is None or found.type == "fanout"
        looked.append(peer.hear())

    longest_s = longest_slice(sliced, request(peer, 1, method), look)
    assert longest_s < SLICE_MAX_S
    sliced.disk()
    assert looked == [[]]
    assert peer.hear() == [reply] and other.hear() == [spec.ExchangeDeclareOk()]
    # A ray has one more binding as long as its queue is there.
    kept = shape is star and not isinstance(method, spec.QueueDelete)
    routing = vhost.routing
    for _ in range(2):
        left = {x.name for x in routing.exchanges() if x.auto_delete}
        assert left == ({f"ray {number}" for number in range(5000)} if kept else set())
        sources = {binding.source for binding in routing.bindings()} - {""}
        assert sources == (left | {"amq.topic"} if kept else set())
        sliced.restart()
        routing = sliced.broker.vhosts["/"].routing


def test_messages_pass_by_an_exchange_that_is_on_its_way_out(sliced: Bench, peer: Peer) -> None:
    """Those that came through it go to the alternate of the exchange before, as if it was gone."""
    for name in ("q", "other", "unwanted"):
        peer.declare(name)
    vhost = sliced.broker.vhosts["/"]
    declare_auto_delete(vhost, "e", alternate="amq.fanout")
    vhost.declare_exchange(
        "first",
        "direct",
        durable=True,
        auto_delete=False,
        internal=False,
        arguments={"alternate-exchange": "amq.topic"},
    )
    vhost.bind("amq.topic", "queue", "other", "#", {})
    vhost.bind("amq.fanout", "queue", "unwanted", "", {})
    vhost.bind("e", "queue", "q", "999", {})
    with sliced.broker.definitions.transaction():
        for number in range(1000):
            vhost.bind("first", "exchange", "e", str(number), {})
    peer.publish(1, "999", b"before", exchange="first")
    request(peer, 1, make(spec.QueueUnbind, queue="q", exchange="e", routing_key="999"))()
    assert sliced.broker.jobs_left
    other = Peer(sliced)
    other.publish(1, "999", b"after", exchange="first")
    ready = {queue.name: queue.ready for queue in vhost.queues.values()}
    assert ready == {"q": 1, "other": 1, "unwanted": 0}


@pytest.mark.parametrize("auto_delete", [False, True])
def test_thousands_of_exclusive_queues_go_in_slices(
    sliced: Bench, peer: Peer, auto_delete: bool
) -> None:
    """With their owner, or with the channel of their consumers; close-ok follows the last."""
    vhost = sliced.broker.vhosts["/"]
    for number in range(4000):
        vhost.declare_queue(
            f"mine {number}",
            peer.client,
            durable=False,
            exclusive=True,
            auto_delete=auto_delete,
            arguments={},
        )
    if auto_delete:
        for number in range(4000):
            consume = make(spec.BasicConsume, queue=f"mine {number}", nowait=True)
            peer.send(1, consume)
    seen = []
    longest_s = longest_slice(
        sliced,
        request(peer, 0, spec.ConnectionClose(200, "", 0, 0)),
        lambda: seen.append((len(vhost.queues), peer.hear())),
    )
    assert longest_s < SLICE_MAX_S
    ((left, heard),) = seen
    assert left and heard == []
    assert not vhost.queues and peer.hear() == [spec.ConnectionCloseOk()]


def test_a_consumer_that_comes_in_time_keeps_an_auto_delete_queue(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q", auto_delete=True)
    bench.broker.services.jobs.clock_s = lambda: 0.0
    bench.broker.services.jobs._burst_end_s = 1.0  # the time for such jobs is used up
    peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag="a"))
    request(peer, 1, make(spec.BasicCancel, consumer_tag="a"))()
    request(peer, 1, make(spec.BasicConsume, queue="q", consumer_tag="b"))()
    bench.end_tick()
    assert not queue.deleted and len(queue.takers) == 1
    request(peer, 1, make(spec.BasicCancel, consumer_tag="b"))()
    bench.end_tick()
    assert queue.deleted


def consume_often(peer: Peer, count: int) -> None:
    """Consumers of queue q: c0, c1 and so on."""
    for number in range(count):
        asked = make(spec.BasicConsume, queue="q", consumer_tag=f"c{number}", nowait=True)
        peer.send(1, asked)


def test_thousands_of_consumers_leave_in_slices(sliced: Bench, peer: Peer) -> None:
    """With their channel, which hands nothing out meanwhile."""
    queue = peer.declare("q")
    other = Peer(sliced)
    consume_often(other, 40_000)
    left = []

    def look() -> None:
        peer.publish(1, "q", b"a", persistent=False)
        left.append((len(queue.takers), queue.ready, other.hear()))

    longest_s = longest_slice(sliced, request(other, 1, spec.ChannelClose(200, "", 0, 0)), look)
    assert longest_s < SLICE_MAX_S
    ((takers, ready, heard),) = left
    assert takers and ready == 1 and heard == []
    assert (len(queue.takers), queue.ready) == (0, 1)
    assert other.hear() == [spec.ChannelCloseOk()]


def test_consumers_are_cancelled_in_any_order_at_the_same_cost(
    sliced: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that goes is not looked for among all others."""
    queue = peer.declare("q")
    count = 2000
    consume_often(peer, count)
    looks = 0

    def equal(consumer: Consumer, other: object) -> bool:
        nonlocal looks
        looks += 1
        return consumer is other

    monkeypatch.setattr(Consumer, "__eq__", equal)
    tags = [f"c{number}" for number in range(count)]
    random.Random(1).shuffle(tags)
    peer.send(1, *(make(spec.BasicCancel, consumer_tag=tag) for tag in tags[:-1]))
    assert looks < 2 * count  # by a hash that is the same by chance
    peer.publish(1, "q", b"a", persistent=False)
    assert [said.method for said in peer.take()][-1:] == [
        spec.BasicDeliver(tags[-1], 1, False, "", "q")
    ]
    assert len(queue.takers) == 1


def test_a_connection_with_thousands_of_channels_ends_in_slices(tmp_path: Path) -> None:
    """Nothing is handed out on any of them meanwhile."""
    bench = Bench(tmp_path / "data", BrokerSettings(channel_max=65535))
    bench.broker.services.jobs.clock_s = time.thread_time
    peer = Peer(bench)
    peer.declare("q")
    other = Peer(bench, channel_max=65535)
    count = 10_000
    consume = make(spec.BasicConsume, queue="q", consumer_tag="c", nowait=True)
    for number in range(1, count + 1):
        other.receive(method_frame(number, make(spec.ChannelOpen)) + method_frame(number, consume))
    other.take()
    left = []

    def look() -> None:
        peer.publish(1, "q", b"a", persistent=False)
        left.append((len(bench.broker.vhosts["/"].queues["q"].takers), other.take()))

    longest_s = longest_slice(bench, other.client.lost, look)
    assert longest_s < SLICE_MAX_S
    ((takers, heard),) = left
    queue = bench.broker.vhosts["/"].queues["q"]
    assert takers and heard == [] and (len(queue.takers), queue.ready) == (0, 1)
    bench.close()


def many_channels(bench: Bench, count: int) -> Peer:
    """A client with so many channels, on which it does nothing."""
    peer = Peer(bench, channel_max=65535)
    for number in range(2, 2 + count):
        peer.receive(method_frame(number, make(spec.ChannelOpen)))
    peer.take()
    return peer


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[Bench]:
    """A broker whose clients may have very many channels, and whose slices count processor time."""
    bench = Bench(tmp_path / "data", BrokerSettings(channel_max=65535))
    bench.broker.services.jobs.clock_s = time.thread_time
    yield bench
    bench.close()


def test_a_check_of_overdue_deliveries_pauses_at_each_channel(wide: Bench) -> None:
    """Also where nothing is out: 65,000 such channels took 40 to 120 ms in one piece."""
    peer = many_channels(wide, 1000)
    assert sum(1 for _ in peer.client.checking_consumers(wide.now_s)) >= 1000


def test_channels_that_want_nothing_are_not_fed_when_a_socket_drains(wide: Bench) -> None:
    """65,000 of them took 39 ms each time. Those that want something are fed in slices."""
    peer = many_channels(wide, 1000)
    peer.declare("q")
    consume = make(spec.BasicConsume, queue="q", consumer_tag="c", no_ack=True)
    peer.send(1, consume)
    peer.take()
    peer.sink.full = True
    peer.publish(1, "q", b"a")
    assert peer.deliveries() == []
    peer.sink.full = False
    assert bytecodes(lambda: peer.client.drained()) < 1000
    wide.end_tick()
    assert [body for *_, body in peer.deliveries()] == [b"a"]
    assert bytecodes(lambda: peer.client.drained()) < 100


def test_thousands_of_channels_are_fed_in_slices(wide: Bench) -> None:
    peer = Peer(wide)
    queue = peer.declare("q")
    other = many_channels(wide, 20_000)
    consume = make(spec.BasicConsume, queue="q", consumer_tag="c", no_ack=True)
    other.sink.full = True
    for number in range(2, 20_002):
        other.receive(method_frame(number, consume))
    peer.publish(1, "q", *[b"a"] * 20_000, persistent=False)
    while wide.broker.jobs_left:
        wide.end_tick()
    assert len(other.client.starving) == 20_000
    other.take()
    other.sink.full = False
    assert longest_slice(wide, other.client.drained) < SLICE_MAX_S
    assert queue.ready == 0 and len({said.channel for said in other.take()}) > 1


def test_a_client_that_goes_while_its_channels_are_fed_holds_none_of_them(wide: Bench) -> None:
    peer = Peer(wide)
    peer.declare("q")
    other = Peer(wide)
    other.sink.full = True
    for number in range(3 * FED_AT_ONCE):
        other.send(1, make(spec.BasicConsume, queue="q", consumer_tag=f"c{number}", no_ack=True))
    peer.publish(1, "q", b"a")
    wide.end_tick()
    other.sink.full = False
    wide.broker.services.jobs.clock_s = itertools.count().__next__  # a step takes a second
    other.client.drained()
    other.sink.full = True
    other.client.lost()
    while wide.broker.jobs_left:
        wide.broker.work()
    assert not other.client.starving and not other.client.channels


def test_thousands_of_queues_expire_in_slices(sliced: Bench, peer: Peer) -> None:
    vhost = sliced.broker.vhosts["/"]
    arguments: Table = {"x-expires": 1000}
    with sliced.broker.definitions.transaction():
        for number in range(2000):
            vhost.declare_queue(
                f"q{number}",
                None,
                durable=True,
                exclusive=False,
                auto_delete=False,
                arguments=arguments,
            )
    sliced.disk()
    sliced.now_s += 2
    assert longest_slice(sliced, nobody_looks) < SLICE_MAX_S
    assert not vhost.queues


def test_thousands_of_clients_hear_in_slices_that_an_alarm_is_over(sliced: Bench) -> None:
    peers = [Peer(sliced) for _ in range(3000)]
    sliced.broker.set_alarm("low on disk", True)
    for peer in peers:
        peer.publish(1, "nowhere", b"a")
        peer.take()

    def over() -> None:
        sliced.broker.set_alarm("low on disk", False)

    longest_s = longest_slice(sliced, over)
    assert longest_s < SLICE_MAX_S
    heard = [peer.hear() for peer in peers]
    assert heard == [[spec.ConnectionUnblocked()]] * len(peers)


def test_an_alarm_that_comes_back_ends_the_telling(sliced: Bench) -> None:
    """Those who have not heard yet that the last one is over stay blocked."""
    peers = [Peer(sliced) for _ in range(50)]
    sliced.broker.set_alarm("low on disk", True)
    for peer in peers:
        peer.publish(1, "nowhere", b"a")
        peer.take()
    looks = itertools.count()
    sliced.broker.services.jobs.clock_s = lambda: next(looks) * SLICE_S / 4
    sliced.broker.set_alarm("low on disk", False)
    sliced.broker.set_alarm("low on memory", True)
    while sliced.broker.jobs_left:
        sliced.broker.work()
    blocked = [peer.client.blocked for peer in peers]
    assert True in blocked and False in blocked
    sliced.broker.set_alarm("low on memory", False)
    while sliced.broker.jobs_left:
        sliced.broker.work()
    assert not any(peer.client.blocked for peer in peers)


def test_thousands_of_consumers_that_share_a_prefetch_are_fed_in_slices(
    sliced: Bench, peer: Peer
) -> None:
    """Each of them has its turn all the same."""
    queue = peer.declare("q")
    other = Peer(sliced)
    other.send(1, make(spec.BasicQos, prefetch_count=1, global_=True))
    consume_often(other, 40_000)
    other.take()
    fill(sliced, queue, 3)
    sliced.broker.services.delivery.wake(queue)
    seen = []
    for number in range(1, 4):
        assert longest_slice(sliced, nobody_looks) < SLICE_MAX_S
        seen += [tag for tag, *_ in other.deliveries()]
        ack = request(other, 1, spec.BasicAck(number, False))
        assert longest_slice(sliced, ack) < SLICE_MAX_S
    assert len(set(seen)) == 3 and (queue.ready, queue.unacked) == (0, 0)


def test_those_who_share_a_prefetch_are_asked_in_parts(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until there is no room, or nobody is left: the first ones may have nothing to take."""
    monkeypatch.setattr(channel_module, "FED_AT_ONCE", 2)
    names = [f"q{number}" for number in range(7)]
    for name in names:
        peer.declare(name)
    other = Peer(bench)
    other.send(1, make(spec.BasicQos, prefetch_count=2, global_=True))
    for name in names:
        other.send(1, make(spec.BasicConsume, queue=name, consumer_tag=name))
    other.take()
    for name in names:
        peer.publish(1, name, b"a", persistent=False)
    bench.end_tick()
    assert [tag for tag, *_ in other.deliveries()] == ["q0", "q1"]
    for name in names[2:6]:
        peer.ask(1, make(spec.QueuePurge, queue=name), spec.QueuePurgeOk)
    other.send(1, spec.BasicAck(1, False))
    bench.end_tick()
    while bench.broker.jobs_left:
        bench.broker.work()
        bench.broker.pump()
    assert [tag for tag, *_ in other.deliveries()] == ["q6"]


def test_who_leaves_hears_nothing_of_deleted_queues(sliced: Bench, peer: Peer) -> None:
    peer.declare("q")
    other = Peer(sliced)
    consume_often(other, 10_000)
    request(other, 1, spec.ChannelClose(200, "", 0, 0))()
    assert other.client.channels[1].consumers
    request(peer, 1, make(spec.QueueDelete, queue="q"))()
    while sliced.broker.jobs_left:
        sliced.broker.work()
    sliced.disk()
    assert peer.hear() == [spec.QueueDeleteOk(0)]
    assert other.hear() == [spec.ChannelCloseOk()]


def test_thousands_of_consumers_hear_in_slices_that_their_queue_is_gone(
    sliced: Bench, peer: Peer
) -> None:
    peer.declare("q")
    other = Peer(sliced)
    count = 30_000
    consume_often(other, count)
    longest_s = longest_slice(sliced, request(peer, 1, make(spec.QueueDelete, queue="q")))
    longest_s = max(longest_s, longest_slice(sliced, sliced.broker.progress))
    assert longest_s < SLICE_MAX_S
    cancels = [spec.BasicCancel(f"c{number}", True) for number in range(count)]
    assert other.hear() == cancels and not other.client.channels[1].consumers


def test_name_is_free_when_the_deletion_is_done(sliced: Bench, peer: Peer) -> None:
    bind_often(sliced, peer, 5_000)
    other = Peer(sliced)
    other.send(1)
    request(peer, 1, make(spec.QueueDelete, queue="q"))()
    assert sliced.broker.jobs_left
    request(other, 1, make(spec.QueueDeclare, queue="q", durable=True))()
    assert "q" not in sliced.broker.vhosts["/"].queues and peer.hear() == other.hear() == []
    while sliced.broker.jobs_left:
        sliced.broker.work()
    sliced.disk()
    assert peer.hear() == [spec.QueueDeleteOk(0)]
    assert other.hear() == [spec.QueueDeclareOk("q", 0, 0)]
    bindings = sliced.broker.vhosts["/"].routing.bindings_to("queue", "q")
    assert [binding.source for binding in bindings] == [""]


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        (make(spec.QueueDelete, queue="q"), None),
        (make(spec.ExchangeDelete, exchange="e"), None),
        (make(spec.QueueUnbind, queue="q", exchange="e"), many_to_one),
        (make(spec.QueueUnbind, queue="q", exchange="e"), chain),
        (make(spec.QueueDelete, queue="q"), fans),
    ],
    ids=["queue", "exchange", "many-to-one", "chain", "fans"],
)
def test_start_finishes_a_deletion_that_was_cut_off(
    sliced: Bench, peer: Peer, method: spec.Method, shape: Callable[[VHost], None] | None
) -> None:
    if shape is None:
        bind_often(sliced, peer, 5_000)
    else:
        peer.declare("q")
        with sliced.broker.definitions.transaction():
            shape(sliced.broker.vhosts["/"])
    request(peer, 1, method)()
    assert sliced.broker.jobs_left
    sliced.kill()
    sliced.open()
    for restarted in (False, True):
        if restarted:
            sliced.restart()
        vhost = sliced.broker.vhosts["/"]
        assert {binding.source for binding in vhost.routing.bindings()} <= {""}
        assert not any(exchange.auto_delete for exchange in vhost.routing.exchanges())
        assert not list(sliced.broker.definitions.bindings())
