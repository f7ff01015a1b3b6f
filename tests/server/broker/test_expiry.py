"""Times of messages and of queues, with clocks that the tests move."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count as count_from
from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties
from qlog.server.broker import jobs
from qlog.server.broker.due import LOOK_S
from qlog.server.broker.features.expiry import EXPIRED, OFFER_MS
from qlog.server.broker.queues.classic import EXPIRED_MAX
from qlog.server.broker.queues.type import QueueType
from qlog.storage.errors import CorruptLog
from tests.server.broker.support import Bench, Peer, make

DEAD = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}


def send(peer: Peer, body: bytes, ttl_ms: int | None = None, key: str = "q") -> None:
    """One message, in a tick of its own."""
    expiration = None if ttl_ms is None else str(ttl_ms)
    peer.publish(1, key, body, properties=Properties(delivery_mode=2, expiration=expiration))


def get(peer: Peer, queue: str = "q", *, no_ack: bool = True) -> bytes | None:
    """basic.get; None: it was answered by get-empty."""
    peer.send(1, make(spec.BasicGet, queue=queue, no_ack=no_ack))
    (said,) = peer.take()
    if isinstance(said.method, spec.BasicGetEmpty):
        return None
    assert isinstance(said.method, spec.BasicGetOk)
    return said.body


def tag_of(peer: Peer, queue: str = "q") -> int:
    """A message, taken and not acknowledged."""
    peer.send(1, make(spec.BasicGet, queue=queue))
    (said,) = peer.take()
    assert isinstance(said.method, spec.BasicGetOk)
    return said.method.delivery_tag


def drain(peer: Peer, queue: str = "q") -> list[bytes]:
    """All that is ready."""
    bodies = []
    while (body := get(peer, queue)) is not None:
        bodies.append(body)
    return bodies


def consume(peer: Peer, prefetch: int = 0, *, no_ack: bool = False) -> list[bytes]:
    """Returns what is delivered at once."""
    peer.ask(1, make(spec.BasicQos, prefetch_count=prefetch), spec.BasicQosOk)
    peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag="c", no_ack=no_ack))
    answer, *deliveries = peer.take()
    assert isinstance(answer.method, spec.BasicConsumeOk)
    return [said.body for said in deliveries if said.body is not None]


def delivered(peer: Peer) -> list[bytes]:
    return [body for _, _, _, body in peer.deliveries()]


def set_ttl(bench: Bench, ttl_ms: int | None) -> None:
    operations = bench.broker.operations
    vhost = operations.vhost("/")
    if ttl_ms is None:
        operations.delete_policy(vhost, "policy", "ttl")
    else:
        definition = {"message-ttl": ttl_ms}
        operations.set_policy(vhost, "policy", "ttl", pattern="^q$", definition=definition)
    bench.settle()


# --- which time counts


@pytest.mark.parametrize(
    ("declared_ms", "policy_ms", "own_ms", "at_ms"),
    [
        (None, None, None, None),
        (500, None, None, 500),
        (None, 500, None, 500),
        (None, None, 500, 500),
        (500, 700, 900, 500),
        (700, 500, 900, 500),
        (900, 700, 500, 500),
        (5000, None, 2000, 2000),
        (2000, None, 5000, 2000),
        (1, None, None, 1),
        (None, None, 1, 1),
        (0, None, None, 0),
        (None, 0, None, 0),
        (None, None, 0, 0),
        (None, None, 315_360_000_000, 315_360_000_000),
    ],
)
def test_a_message_expires_when_the_smallest_time_is_over(
    bench: Bench,
    peer: Peer,
    declared_ms: int | None,
    policy_ms: int | None,
    own_ms: int | None,
    at_ms: int | None,
) -> None:
    queue = peer.declare(
        "q", arguments={} if declared_ms is None else {"x-message-ttl": declared_ms}
    )
    if policy_ms is not None:
        set_ttl(bench, policy_ms)
    send(peer, b"a", own_ms)
    bench.disk()
    if at_ms is None:
        bench.pass_ms(10**12)
        assert queue.ready == 1
        return
    if at_ms:
        bench.pass_ms(at_ms - 1)
        assert queue.ready == 1
    bench.pass_ms(1)
    assert queue.ready == queue.unacked == queue.lane.alive == 0


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("dead_letters", [True, False])
def test_messages_leave_wherever_they_stand(
    bench: Bench, peer: Peer, in_memory: bool, dead_letters: bool
) -> None:
    queue = peer.declare("q", arguments=DEAD if dead_letters else {})
    peer.declare("dead")
    for body, ttl_ms in ((b"a", None), (b"b", 2000), (b"c", 5000), (b"d", None), (b"e", 2000)):
        send(peer, body, ttl_ms)
    bench.disk()
    if not in_memory:
        bench.restart()
        peer = Peer(bench)
        queue = bench.broker.vhosts["/"].queues["q"]
    bench.pass_ms(2000)
    bench.disk()
    assert queue.ready == 3
    bench.pass_ms(3000)
    bench.disk()
    assert queue.lane.alive == 2
    assert drain(peer) == [b"a", b"d"]
    assert drain(peer, "dead") == ([b"b", b"e", b"c"] if dead_letters else [])


def test_dead_letters_tell_that_the_message_expired(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments={**DEAD, "x-message-ttl": 300})
    peer.declare("dead")
    send(peer, b"a")
    send(peer, b"b", 200)
    for _ in range(3):
        bench.pass_ms(100)
        bench.disk()
    found = []
    for _ in range(2):
        peer.send(1, make(spec.BasicGet, queue="dead", no_ack=True))
        (said,) = peer.take()
        assert said.properties is not None and said.properties.expiration is None
        headers: Any = said.properties.headers
        assert headers["x-last-death-reason"] == EXPIRED
        (death,) = headers["x-death"]
        found.append((said.body, death["reason"], death.get("original-expiration")))
    assert found == [(b"b", "expired", "200"), (b"a", "expired", None)]


# --- nobody gets one late


@pytest.mark.parametrize("arguments", [{"x-message-ttl": 2000}, {}])
def test_a_late_broker_gives_out_nothing_late(
    bench: Bench, peer: Peer, arguments: dict[str, Any]
) -> None:
    """The clock says so, whether or not a timer was asked since."""
    queue = peer.declare("q", arguments=arguments)
    for number in range(5):
        send(peer, b"%d" % number, None if arguments else 2000)
        bench.now_ms += 1
    bench.now_ms += 1997  # the first three are over
    assert get(peer) == b"3"
    assert consume(peer, no_ack=True) == [b"4"]
    assert queue.ready == 0
    send(peer, b"5", None if arguments else 2000)
    assert delivered(peer) == [b"5"]


def test_what_is_late_is_dead_lettered_by_who_finds_it(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments=DEAD)
    peer.declare("dead")
    send(peer, b"a", 2000)
    send(peer, b"b")
    bench.now_ms += 2000
    assert consume(peer, no_ack=True) == [b"b"]
    bench.disk()
    bench.pass_ms(5000)  # the store says that it is due: it is gone already
    bench.disk()
    assert drain(peer, "dead") == [b"a"]


def test_a_get_looks_behind_some_expired_messages_only(bench: Bench, peer: Peer) -> None:
    """More are about to leave anyway, in slices."""
    queue = peer.declare("q")
    expired = Properties(delivery_mode=2, expiration="2000")
    peer.publish(1, "q", *[b"x"] * (EXPIRED_MAX + 1), properties=expired)
    send(peer, b"a")
    bench.now_ms += 2000
    assert get(peer) is None
    assert queue.ready == 2
    assert get(peer) == b"a"


@pytest.mark.parametrize(
    ("arguments", "own_ms"), [({"x-message-ttl": 0}, None), ({}, 0), ({"x-message-ttl": 3}, None)]
)
@pytest.mark.parametrize(
    ("prefetch", "expected"), [(0, [b"a", b"b", b"c"]), (2, [b"a", b"b"]), (None, [])]
)
def test_no_time_is_enough_for_a_consumer_that_waits(
    bench: Bench,
    peer: Peer,
    arguments: dict[str, Any],
    own_ms: int | None,
    prefetch: int | None,
    expected: list[bytes],
) -> None:
    queue = peer.declare("q", arguments=arguments)
    if prefetch is not None:
        consume(peer, prefetch)
    later_ms = count_from(0)
    bench.broker.services.now_ms = lambda: (
        bench.now_ms + next(later_ms)
    )  # however slow this tick is
    expiration = None if own_ms is None else str(own_ms)
    properties = Properties(delivery_mode=2, expiration=expiration)
    peer.publish(1, "q", b"a", b"b", b"c", properties=properties)
    assert delivered(peer) == expected
    bench.pass_ms(10)
    assert (queue.ready, queue.unacked) == (0, len(expected))


def test_a_message_that_waits_to_be_offered_has_a_limit(bench: Bench, peer: Peer) -> None:
    """A queue that has no turn for so long does not deliver what has expired."""
    queue = peer.declare("q")
    consume(peer)
    time = bench.broker.services.delivery.time
    time.up = True
    bench.broker.services.delivery.go_on = lambda: None  # type: ignore[method-assign]
    send(peer, b"a", 0)
    assert queue.ready == 1
    bench.pass_ms(OFFER_MS - 1)
    assert queue.ready == 1
    bench.pass_ms(1)
    time.up = False
    bench.pass_ms(0)
    assert queue.ready == 0
    assert not delivered(peer)


def test_a_get_right_behind_a_publish_without_time_finds_nothing(peer: Peer) -> None:
    peer.declare("q", arguments={"x-message-ttl": 0})
    send(peer, b"a")
    assert get(peer) is None


# --- what is out


@pytest.mark.parametrize("arguments", [{"x-message-ttl": 2000}, {}, DEAD])
@pytest.mark.parametrize("back_at_ms", [500, 2000, 2500])
def test_a_requeued_message_keeps_its_time(
    bench: Bench, peer: Peer, arguments: dict[str, Any], back_at_ms: int
) -> None:
    queue = peer.declare("q", arguments=arguments)
    peer.declare("dead")
    send(peer, b"a", None if "x-message-ttl" in arguments else 2000)
    tag = tag_of(peer)
    send(peer, b"b", None if "x-message-ttl" in arguments else 9000)
    bench.pass_ms(back_at_ms)
    assert queue.unacked == 1
    peer.send(1, make(spec.BasicReject, delivery_tag=tag, requeue=True))
    if back_at_ms < 2000:
        bench.settle()
        assert (queue.ready, queue.unacked) == (2, 0)
        bench.pass_ms(2000 - back_at_ms)
    bench.settle()
    bench.disk()
    bench.settle()
    bench.disk()
    assert queue.lane.alive == (0 if "x-message-ttl" in arguments else 1)
    assert drain(peer, "dead") == ([b"a"] if arguments is DEAD else [])


def test_what_is_out_may_be_acknowledged_late(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q", arguments=DEAD)
    peer.declare("dead")
    consume(peer)
    send(peer, b"a", 2000)
    bench.pass_ms(5000)
    ((_, tag, _, _),) = peer.deliveries()
    peer.send(1, make(spec.BasicAck, delivery_tag=tag))
    bench.disk()
    assert (queue.ready, queue.unacked) == (0, 0)
    assert drain(peer, "dead") == []


def test_many_that_come_back_late_leave_in_slices(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    consume(peer)
    one = Properties(delivery_mode=2, expiration="2000")
    two = Properties(delivery_mode=2, expiration="90000")
    for number in range(600):
        peer.publish(1, "q", b"%d" % number, properties=one if number % 3 else two)
    bench.pass_ms(2000)
    assert queue.unacked == 600
    last = peer.deliveries()[-1][1]
    peer.send(1, make(spec.BasicCancel, consumer_tag="c"))
    peer.send(1, make(spec.BasicNack, delivery_tag=last, multiple=True, requeue=True))
    bench.settle()
    assert (queue.ready, queue.unacked) == (200, 0)
    peer.take()
    assert drain(peer) == [b"%d" % number for number in range(0, 600, 3)]


def test_what_comes_back_while_others_are_gone_through_leaves_too(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SLICE_S", 0.0)  # every step is a slice
    queue = peer.declare("q")
    consume(peer)
    for number in range(3):
        send(peer, b"%d" % number, 2000)
    bench.pass_ms(2000)
    tags = [tag for _, tag, _, _ in peer.deliveries()]
    peer.send(1, make(spec.BasicCancel, consumer_tag="c"))
    # The second comes back when it was just found to be out still.
    rejects = [make(spec.BasicReject, delivery_tag=tag, requeue=True) for tag in tags]
    peer.send(1, *rejects)
    bench.settle()
    assert (queue.ready, queue.unacked) == (0, 0)


def test_numbers_of_what_was_acknowledged_late_are_forgotten(bench: Bench, peer: Peer) -> None:
    """Or a queue whose consumers are slow would need more and more memory."""
    peer.declare("q")
    consume(peer, no_ack=False)
    for _ in range(6):
        peer.publish(1, "q", *[b"x"] * 500, properties=Properties(expiration="2000"))
        bench.pass_ms(2000)
        last = peer.deliveries()[-1][1]
        peer.send(1, make(spec.BasicAck, delivery_tag=last, multiple=True))
    expiry = bench.broker.vhosts["/"].expiry
    (watch,) = expiry._watches.values()
    assert sum(overdue.count for overdue in watch.overdue.values()) < 1700


# --- settings that change, starts, clocks


def test_a_policy_counts_for_what_waits(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    for body in (b"a", b"b", b"c"):
        send(peer, body)
        bench.pass_ms(1000)
    set_ttl(bench, 2500)
    assert queue.ready == 2
    set_ttl(bench, 5000)
    bench.pass_ms(1000)
    assert queue.ready == 2
    set_ttl(bench, 3000)
    assert queue.ready == 1
    set_ttl(bench, None)
    bench.pass_ms(10**9)
    assert drain(peer) == [b"c"]


@pytest.mark.parametrize("arguments", [{"x-message-ttl": 2000}, {}])
@pytest.mark.parametrize("kill", [True, False])
@pytest.mark.parametrize("down_ms", [500, 2000])
def test_times_go_on_while_the_broker_is_down(
    bench: Bench, peer: Peer, arguments: dict[str, Any], kill: bool, down_ms: int
) -> None:
    peer.declare("q", arguments=arguments)
    send(peer, b"a", None if arguments else 2000)
    bench.disk()
    bench.kill() if kill else bench.close()
    bench.now_ms += down_ms
    bench.open()
    queue = bench.broker.vhosts["/"].queues["q"]
    bench.pass_ms(0)
    assert queue.ready == (1 if down_ms < 2000 else 0)
    bench.pass_ms(2000 - min(down_ms, 2000))
    assert queue.ready == 0
    bench.disk()
    bench.restart()
    assert bench.broker.vhosts["/"].queues["q"].ready == 0


@pytest.mark.parametrize("arguments", [{"x-message-ttl": 60_000}, {}])
def test_a_step_of_the_clock_fires_nothing_early(
    bench: Bench, peer: Peer, arguments: dict[str, Any]
) -> None:
    queue = peer.declare("q", arguments=arguments)
    send(peer, b"a", None if arguments else 60_000)
    bench.pass_ms(1000, wall_ms=-10_000)
    bench.pass_ms(60_000)
    assert queue.ready == 1  # 10 s too late now
    send(peer, b"b", None if arguments else 60_000)
    bench.pass_ms(9_999)
    assert queue.ready == 2
    bench.pass_ms(1, wall_ms=1)
    assert queue.ready == 1
    bench.pass_ms(1, wall_ms=49_998)
    assert queue.ready == 1


def test_a_step_forth_is_noticed_within_a_second(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    send(peer, b"a", 10**9)
    bench.pass_ms(0, wall_ms=10**9)
    bench.pass_ms(int(LOOK_S * 1000))
    assert queue.ready == 0


# --- many


@pytest.mark.parametrize(
    "arguments", [{"x-message-ttl": 2000}, {}, {**DEAD, "x-message-ttl": 2000}]
)
def test_many_that_expire_at_once_leave_in_slices(
    bench: Bench, peer: Peer, arguments: dict[str, Any]
) -> None:
    queue = peer.declare("q", arguments=arguments)
    target = peer.declare("dead")
    expiration = None if "x-message-ttl" in arguments else "2000"
    properties = Properties(delivery_mode=2, expiration=expiration)
    for _ in range(4):
        peer.publish(1, "q", *[b"x"] * 1000, properties=properties)
    bench.disk()
    bench.pass_ms(100)
    send(peer, b"last")
    jobs = bench.broker.services.jobs
    seconds = count_from(0)
    jobs.clock_s = lambda: float(next(seconds))  # each slice is one step
    bench.now_s += 1.9
    bench.now_ms += 1900
    bench.broker.timers.run(bench.now_s)
    before = queue.ready
    bench.end_tick()
    assert before - queue.ready < 1000
    for _ in range(2000):
        bench.disk()
        if queue.lane.alive == 1:
            break
    assert queue.ready == 1
    if DEAD.items() <= arguments.items():
        assert target.ready == 4000
    assert drain(peer) == [b"last"]


def test_few_messages_are_read_to_find_many_expired_ones(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = peer.declare("q", arguments={"x-message-ttl": 2000})
    for _ in range(3):
        peer.publish(1, "q", *[b"x"] * 1000)
    bench.pass_ms(1)
    peer.publish(1, "q", *[b"y"] * 777)
    lane, reads = queue.lane, 0
    read = lane.read

    def counting(*arguments: Any, **named: Any) -> Any:
        nonlocal reads
        reads += 1
        return read(*arguments, **named)

    monkeypatch.setattr(lane, "read", counting)
    bench.pass_ms(1999)
    assert queue.ready == 777
    assert reads < 40


@pytest.mark.parametrize("own_ms", [None, 2000])
def test_messages_of_all_priorities_expire(bench: Bench, peer: Peer, own_ms: int | None) -> None:
    arguments = {"x-max-priority": 9}
    if own_ms is None:
        arguments["x-message-ttl"] = 2000
    queue = peer.declare("q", arguments=arguments)
    expiration = None if own_ms is None else str(own_ms)
    for priority in (0, 5, 9, 5):
        peer.publish(1, "q", b"a", properties=Properties(priority=priority, expiration=expiration))
        bench.pass_ms(100)
    left: list[int] = []
    for _ in range(4):
        bench.pass_ms(1600 if not left else 100)
        left.append(queue.ready)
    assert left == [3, 2, 1, 0]
    peer.publish(1, "q", b"a", properties=Properties(priority=7, expiration="0"))
    bench.pass_ms(0)
    assert queue.ready == 0


def test_what_comes_while_others_leave_is_looked_for_again(bench: Bench, peer: Peer) -> None:
    """Two levels: the first is done, and gets a message while the second is cleared."""
    queue = peer.declare("q", arguments={"x-max-priority": 1, "x-message-ttl": 2000})
    peer.publish(1, "q", b"high", properties=Properties(priority=1))
    peer.publish(1, "q", *[b"low"] * 3000)
    jobs = bench.broker.services.jobs
    seconds = count_from(0)
    jobs.clock_s = lambda: float(next(seconds))  # each slice is one step
    bench.now_s += 2
    bench.now_ms += 2000
    bench.broker.timers.run(bench.now_s)
    for _ in range(10):
        bench.end_tick()
    assert 0 < queue.ready < 3001
    peer.publish(1, "q", b"high", properties=Properties(priority=1))
    bench.settle()
    bench.pass_ms(0)
    assert queue.ready == 1
    bench.pass_ms(2000)
    assert queue.ready == 0


@pytest.mark.parametrize("gone", [{3}, {2, 3}, {1, 3, 5, 7}, {7}, {0, 4, 5, 6, 7}])
@pytest.mark.parametrize("old", [1, 2, 3, 4])
def test_gaps_among_those_that_wait_cost_no_younger_message(
    bench: Bench, peer: Peer, gone: set[int], old: int
) -> None:
    """The search for the last expired message meets places where no message is any more."""
    queue = peer.declare("q", arguments={"x-message-ttl": 5000})
    for number in range(8):
        if number == old:
            bench.pass_ms(2000)
        send(peer, b"%d" % number, 1500 if number in gone else None)
    bench.pass_ms(2999)
    assert queue.ready == 8 - len(gone)
    bench.pass_ms(1)
    assert drain(peer) == [b"%d" % number for number in range(old, 8) if number not in gone]


def test_damage_costs_nobody_else(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = peer.declare("damaged", arguments={"x-message-ttl": 2000})
    queue = peer.declare("q", arguments={"x-message-ttl": 2000})
    send(peer, b"a", key="damaged")
    send(peer, b"b")

    def fail(*arguments: Any, **named: Any) -> Any:
        raise CorruptLog("damaged for this test")

    monkeypatch.setattr(damaged.lane, "read", fail)
    bench.pass_ms(2000)
    assert (damaged.ready, queue.ready) == (1, 0)
    assert "cannot find expired messages of queue 'damaged'" in caplog.text


# --- queues that nobody uses


def is_there(bench: Bench, queue: QueueType) -> bool:
    return not queue.deleted and bench.broker.vhosts["/"].queues.get(queue.name) is queue


def test_an_unused_queue_is_deleted_for_good(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q", arguments={"x-expires": 1000})
    send(peer, b"a")
    bench.pass_ms(980)
    assert is_there(bench, queue)
    bench.pass_ms(20)
    assert not is_there(bench, queue)
    bench.disk()
    bench.restart()
    assert "q" not in bench.broker.vhosts["/"].queues


@pytest.mark.parametrize(
    "methods",
    [
        [make(spec.QueueDeclare, queue="q", durable=True, arguments={"x-expires": 1000})],
        [make(spec.QueueDeclare, queue="q", passive=True)],
        [make(spec.BasicGet, queue="q")],
        [
            make(spec.BasicConsume, queue="q", consumer_tag="c"),
            make(spec.BasicCancel, consumer_tag="c"),
        ],
    ],
)
def test_use_begins_the_time_anew(bench: Bench, peer: Peer, methods: Sequence[Any]) -> None:
    queue = peer.declare("q", arguments={"x-expires": 1000})
    for _ in range(3):
        bench.pass_ms(900)
        peer.send(1, *methods)
    bench.pass_ms(999)
    assert is_there(bench, queue)
    bench.pass_ms(1)
    assert not is_there(bench, queue)


@pytest.mark.parametrize(
    "method",
    [make(spec.QueuePurge, queue="q"), make(spec.QueueBind, queue="q", exchange="amq.topic")],
)
def test_other_methods_are_no_use(bench: Bench, peer: Peer, method: Any) -> None:
    queue = peer.declare("q", arguments={"x-expires": 1000})
    bench.pass_ms(900)
    peer.send(1, method)
    send(peer, b"a")
    bench.pass_ms(100)
    assert not is_there(bench, queue)


def test_a_consumer_is_use_however_long(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q", arguments={"x-expires": 1000})
    consume(peer)
    bench.pass_ms(10_000)
    assert is_there(bench, queue)
    peer.send(1, make(spec.BasicCancel, consumer_tag="c"))
    bench.pass_ms(999)
    assert is_there(bench, queue)
    bench.pass_ms(1)
    assert not is_there(bench, queue)


def test_the_time_begins_anew_with_a_start(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments={"x-expires": 1000})
    bench.disk()
    bench.pass_ms(900)
    bench.restart()
    queue = bench.broker.vhosts["/"].queues["q"]
    bench.pass_ms(900)
    assert is_there(bench, queue)
    bench.pass_ms(100)
    assert not is_there(bench, queue)


def test_the_time_of_a_policy_begins_with_the_policy(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    bench.pass_ms(5000)
    operations = bench.broker.operations
    vhost = operations.vhost("/")
    for expires_ms in (5000, 1000):
        definition = {"expires": expires_ms}
        operations.set_policy(vhost, "policy", "p", pattern="q", definition=definition)
        bench.pass_ms(900)
        assert is_there(bench, queue)
    bench.pass_ms(100)
    assert not is_there(bench, queue)


def test_a_queue_that_is_deleted_has_no_time(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments={"x-expires": 1000, "x-message-ttl": 500})
    send(peer, b"a", 700)
    peer.ask(1, make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk)
    second = peer.declare("q", arguments={"x-expires": 2000})
    send(peer, b"b")
    bench.pass_ms(1500)
    assert is_there(bench, second)
    assert second.ready == 1
