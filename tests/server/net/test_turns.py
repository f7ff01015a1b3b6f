"""The loop, turn by turn: who has a share of it and for how long, and how little stops it."""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from qlog.server.amqp import spec
from qlog.server.amqp.frames import HEARTBEAT_FRAME, PROTOCOL_HEADER, method_frame
from qlog.server.broker.channels.sink import READ, Hold
from qlog.server.broker.jobs import Steps
from qlog.server.net import network, session, turns
from qlog.server.net.network import Network
from qlog.server.net.poller import GONE, READABLE, WRITABLE, EpollPoller, Poller, SelectorPoller
from qlog.server.net.session import HANDSHAKE_S, LINGER_S, Session
from qlog.server.net.turns import Participant, Turns
from qlog.storage.store import Store
from qlog.storage.write.commits import Commits
from tests.server.broker.support import Bench, LateHashing, make, message
from tests.server.net.loop import LOGIN, Loop, Remote, rst, running


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A loop without clients."""
    yield from running(tmp_path / "data")


class Calls:
    """Counts the calls of a method, and lets them through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.count = 0
        real = getattr(owner, name)

        def call(*args: object) -> object:
            self.count += 1
            return real(*args)

        monkeypatch.setattr(owner, name, call)


def declare(remote: Remote, name: str = "q") -> None:
    """A durable queue."""
    asked = make(spec.QueueDeclare, queue=name, durable=True)
    assert isinstance(remote.ask(1, asked)[0], spec.QueueDeclareOk)


# --- one tick for all


def test_all_that_are_ready_share_one_tick(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """One commit for the messages of ten clients, and one send for the confirms of each."""
    clients = [loop.client() for _ in range(10)]
    declare(clients[0])
    for client in clients:
        assert client.ask(1, make(spec.ConfirmSelect)) == [spec.ConfirmSelectOk()]
    loop.disk()
    commits = Calls(monkeypatch, Store, "commit")
    sends = Calls(monkeypatch, Session, "_send")
    for client in clients:
        client.write(message(1, "q", b"x"), message(1, "q", b"y"))
    assert loop.turn() and commits.count <= 2
    assert loop.broker.vhosts["/"].queues["q"].ready == 20
    assert not any(client.hear() for client in clients)  # the disk has not answered
    loop.disk()
    assert all(client.hear() == [spec.BasicAck(2, True)] for client in clients)
    assert sends.count == 10


def test_octet_by_octet_is_understood_and_costs_its_turns_only(loop: Loop) -> None:
    slow, other = loop.client(), loop.client()
    for octet in method_frame(1, make(spec.QueueDeclare, queue="slow")):
        slow.write(bytes((octet,)))
        assert loop.settle() == 1
    assert isinstance(slow.hear()[0], spec.QueueDeclareOk)
    declare(other)


# --- shares


@pytest.mark.parametrize("slices", [2, 5])
def test_a_long_read_goes_on_in_rotation(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, slices: int
) -> None:
    """Whose share of time is over waits for the next turn, and others have theirs between."""
    flood, other = loop.client(), loop.client()
    names = [f"q{number}" for number in range(slices * 2)]
    flood.send(1, *(make(spec.QueueDeclare, queue=name) for name in names))
    order: list[str] = []
    real = Session.take_turn

    def take_turn(client: Session, until_s: float) -> int:
        order.append("flood" if client is flood.session else "other")
        return real(client, until_s)

    monkeypatch.setattr(Session, "take_turn", take_turn)
    loop.step_s = turns.SHARE_S / 2  # two events a share
    turned = 0
    while loop.turn():
        turned += 1
        if turned < slices:
            other.write(HEARTBEAT_FRAME)
    answers = [answer for answer in flood.hear() if isinstance(answer, spec.QueueDeclareOk)]
    assert [answer.queue for answer in answers] == names
    assert order.count("flood") >= slices
    assert "flood other flood other" in " ".join(order)


def test_a_turn_ends_whoever_filled_it(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who had no share are the first in the next turn."""
    clients = [loop.client() for _ in range(6)]
    order: list[int] = []
    real = Session.take_turn

    def take_turn(client: Session, until_s: float) -> int:
        order.append(next(n for n, c in enumerate(clients) if c.session is client))
        size = real(client, until_s)
        loop.spent_s += turns.TURN_S / 2
        return size

    monkeypatch.setattr(Session, "take_turn", take_turn)
    for client in clients:
        client.write(HEARTBEAT_FRAME)
    done: list[int] = []
    for _ in range(3):
        assert loop.turn()
        assert len(order) == len(done) + 2  # as many as the time is enough for
        done = list(order)
    assert sorted(done) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("busy", ["client", "job"])
def test_the_disk_has_what_comes_before_the_loop_is_busy_for_long(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, busy: str
) -> None:
    """What it writes meanwhile is confirmed in the same turn."""
    flood, other = loop.client(), loop.client()
    declare(other)
    assert other.ask(1, make(spec.ConfirmSelect)) == [spec.ConfirmSelectOk()]
    loop.pass_s(5)
    loop.disk()

    def work() -> None:
        for worker in loop.bench.workers:
            worker.run_one()

    def steps() -> Steps[None]:
        for _ in range(10):
            yield
            work()

    if busy == "job":
        loop.broker.services.jobs.clock_s = loop.turns.clock_s
        loop.broker.services.jobs.later(steps())
    else:
        flood.send(1, *[make(spec.BasicQos)] * 10)
        real = Session._obey

        def obey(client: Session, *args: object) -> object:
            if client is flood.session:
                work()
            return real(client, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Session, "_obey", obey)
    loop.step_s = turns.SHARE_S / 2  # two events a share
    assert loop.turn()
    other.write(message(1, "q", b"x"))
    assert loop.turn()
    assert other.hear() == [spec.BasicAck(1, False)]
    assert loop.turns.timeout_s() == 0.0  # there is more to do


@pytest.mark.parametrize("busy", ["client", "job"])
def test_what_takes_long_has_less_of_a_turn_while_a_publisher_waits(loop: Loop, busy: str) -> None:
    flood, other = loop.client(), loop.client()
    declare(other)
    assert other.ask(1, make(spec.ConfirmSelect)) == [spec.ConfirmSelectOk()]
    loop.pass_s(5)
    loop.disk()
    steps_done: list[None] = []

    def steps() -> Steps[None]:
        for _ in range(100):
            steps_done.append(None)
            yield

    def went_on() -> int:
        before = len(steps_done)
        flood.hear()
        loop.turn()
        return len(steps_done) - before + len(flood.hear())

    if busy == "job":
        loop.broker.services.jobs.clock_s = loop.turns.clock_s
        for _ in range(5):
            loop.broker.services.jobs.later(steps())
    else:
        flood.send(1, *[make(spec.BasicQos)] * 200)
    loop.step_s = turns.HURRIED_S / 5
    loop.turn()
    alone = went_on()
    other.write(message(1, "q", b"x"))
    loop.turn()
    assert loop.broker.waiting == 1
    assert 0 < went_on() <= alone / 2
    while sum(worker.run_one() for worker in loop.bench.workers):
        loop.turns.wake()
        loop.turn()
    assert other.hear() == [spec.BasicAck(1, False)]
    assert 0 < went_on() <= alone / 2  # it may publish again now
    loop.bench.now_s += turns.HURRY_FOR_S
    assert went_on() == alone


def test_those_who_have_just_come_do_not_keep_others_from_their_rest(loop: Loop) -> None:
    """However many come in each turn, one long read of before goes on."""
    flood = loop.client()
    flood.send(1, *[make(spec.BasicQos)] * 8)
    clients = [loop.client() for _ in range(10)]
    loop.step_s = turns.SHARE_S / 2  # two events a share
    heard = []
    for _ in range(10):
        for client in clients:
            client.write(HEARTBEAT_FRAME)
        loop.turn()
        heard.append(len(flood.hear()))
    assert sum(heard) == 8


def test_a_turn_ends_when_much_was_read(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_BYTES_MAX", 20_000)
    clients = [loop.client() for _ in range(4)]
    for client in clients:
        client.write(message(1, "nowhere", b"x" * 12_000))
    loop.turn()
    assert len(loop.turns._line) == 2
    loop.settle()
    assert not loop.turns._line


def test_events_behind_an_alarm_go_on_where_they_stopped(loop: Loop) -> None:
    client = loop.client()
    declare(client)
    loop.broker.set_alarm("low on disk", True)
    client.write(message(1, "q", b"a"), message(1, "q", b"b"))
    client.send(1, make(spec.QueueDeclare, queue="q", passive=True))
    loop.settle()
    assert client.hear() == [spec.ConnectionBlocked("low on disk")]
    assert client.session.why_not_read is Hold.ALARM
    loop.broker.set_alarm("low on disk", False)
    loop.settle()
    assert client.hear() == [spec.ConnectionUnblocked(), spec.QueueDeclareOk("q", 2, 0)]
    assert client.session.why_not_read is READ


def test_a_large_message_is_stopped_before_it_is_whole(loop: Loop) -> None:
    client = loop.client()
    loop.broker.set_alarm("low on memory", True)
    client.write(message(1, "q", b"x" * 30_000)[:10_000])
    loop.settle()
    assert client.hear() == [spec.ConnectionBlocked("low on memory")]


def test_events_are_as_large_as_their_messages_are_quick(loop: Loop) -> None:
    """An event is not interrupted, so that one which took long is followed by smaller ones."""
    client = loop.client()
    declare(client)
    core = client.session._core

    def publish() -> int:
        client.write(message(1, "q", b"x" * 500) * 100)
        loop.settle()
        loop.disk()
        return core.event_bytes_max

    assert publish() > session.EVENT_BYTES
    loop.step_s = session.EVENT_S * 2
    smallest = [publish() for _ in range(10)][-1]
    assert smallest == session.EVENT_BYTES_MIN
    loop.step_s = 0.0
    largest = [publish() for _ in range(20)][-1]
    assert largest > 50_000  # as much as one read brings here
    assert loop.broker.vhosts["/"].queues["q"].ready == 3100


# --- who is held back


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection, which unlike those of a pair can be reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.setblocking(False)
    return ours, theirs


@pytest.mark.parametrize("reason", [Hold.DISK, Hold.COMMIT, Hold.ALARM, Hold.ANSWERS])
def test_a_peer_that_dies_while_it_is_held_back_does_not_make_the_loop_spin(
    loop: Loop, reason: Hold
) -> None:
    peer, ours = tcp_pair()
    held = Session(loop.turns, ours, "test", loopback=True)
    loop.settle()
    held.hold(reason)
    peer.send(PROTOCOL_HEADER)
    rst(peer)
    loop.settle()
    assert not loop.turn() and not loop.turns.poller.poll(0.0)
    if reason in (Hold.ALARM, Hold.ANSWERS):
        assert held not in loop.turns.sessions  # that may last for hours
        return
    assert held in loop.turns.sessions
    held.release(reason)
    loop.settle()
    assert held not in loop.turns.sessions


def test_what_a_peer_sent_before_it_died_counts(loop: Loop) -> None:
    """Publishes without confirms, whose sender closed while the disk was behind."""
    client = loop.client()
    declare(client)
    client.session.hold(Hold.DISK)
    client.write(message(1, "q", b"a"))
    client.die()
    loop.settle()
    client.session.release(Hold.DISK)
    loop.settle()
    assert loop.broker.vhosts["/"].queues["q"].ready == 1
    assert not loop.turns.sessions


def test_uploads_of_many_clients_take_turns_at_the_disk(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large messages that end together: each waits until the disk has the one before.

    Otherwise a small message behind them would wait for all of them.
    """
    uploads = [loop.client() for _ in range(5)]
    declare(uploads[0])
    behind = property(lambda commits: commits.log.pending_bytes > 60_000)
    monkeypatch.setattr(Commits, "congested", behind)
    large = message(1, "q", bytes(100_000))
    for client in uploads:
        client.write(large[:-10])
    loop.settle()
    queue = loop.broker.vhosts["/"].queues["q"]
    for client in uploads:
        client.write(large[-10:])
    begun = queue.ready
    while queue.ready < 5:
        if not loop.turn():
            assert sum(worker.run_one() for worker in loop.bench.workers)
            loop.turns.wake()
        assert queue.ready - begun <= 1  # one a turn
        begun = queue.ready


def test_who_sends_little_is_read_on_while_the_disk_is_behind(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message goes with the next commit, not behind large ones that others end meanwhile."""
    small, flood, upload = loop.client(), loop.client(), loop.client()
    queue = loop.broker.vhosts["/"].queues
    declare(small)
    for client in (small, flood):
        client.write(message(1, "q", b"a"))
    loop.settle()
    flood.write(message(1, "q", bytes(session.RECEIVE_BYTES_MIN + 8000)))
    large = message(1, "q", bytes(5000))
    upload.write(large[:-10])
    loop.settle()
    before = queue["q"].ready
    monkeypatch.setattr(Commits, "congested", True)
    for client in (small, flood):
        client.write(message(1, "q", b"b"))
    upload.write(large[-10:])
    loop.settle()
    assert queue["q"].ready == before + 1
    assert small.session.why_not_read is READ
    assert Hold.DISK in flood.session.why_not_read and Hold.DISK in upload.session.why_not_read
    monkeypatch.setattr(Commits, "congested", False)
    loop.turns.say()
    loop.settle()
    assert queue["q"].ready == before + 3


def test_who_sends_little_waits_when_the_disk_is_behind_for_long(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = loop.client()
    declare(client)
    client.write(message(1, "q", b"a"))
    loop.settle()
    monkeypatch.setattr(Commits, "congested", True)
    monkeypatch.setattr(turns, "LITTLE_BYTES_MAX", 1000)
    for _ in range(100):
        client.write(message(1, "q", bytes(100)))
        loop.settle()
    queue = loop.broker.vhosts["/"].queues["q"]
    assert 1 < queue.ready < 10 and Hold.DISK in client.session.why_not_read
    monkeypatch.setattr(Commits, "congested", False)
    loop.turns.say()
    loop.settle()
    assert queue.ready == 101


# --- the end of a session


def test_a_descriptor_is_closed_when_the_turn_is_over(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are ready; the first turn cuts both. Nobody gets the second's number meanwhile."""
    first, second = loop.client(), loop.client()
    numbers = {client.session._socket.fileno() for client in (first, second)}
    opened: list[socket.socket] = []
    taken: list[Session] = []

    def take_turn(client: Session, until_s: float) -> int:
        taken.append(client)
        first.session.cut()
        second.session.cut()
        opened.append(socket.socket())
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(Session, "take_turn", take_turn)
        first.write(HEARTBEAT_FRAME)
        second.write(HEARTBEAT_FRAME)
        assert loop.turn()
    assert not numbers & {sock.fileno() for sock in opened}
    assert not loop.turns.sessions and not loop.broker.clients
    assert first.at_end and second.at_end
    assert not loop.turn()
    for sock in opened:
        sock.close()


def test_a_session_that_has_ended_is_freed(loop: Loop) -> None:
    """At once, by its references alone: the collector of cycles runs rarely."""
    gc.collect()
    gc.disable()
    try:
        remote = Remote(loop)
        remote.write(PROTOCOL_HEADER)
        loop.settle()
        remote.send(0, LOGIN, spec.ConnectionTuneOk(2047, 131072, 10))
        loop.settle()
        core = weakref.ref(remote.session._core)
        remote.socket.close()
        loop.settle()
        del remote.session
        assert core() is None
    finally:
        gc.enable()


def test_what_the_end_frees_is_delivered_in_the_same_turn(loop: Loop) -> None:
    first, second = loop.client(), loop.client()
    declare(first)
    first.ask(1, make(spec.BasicConsume, queue="q", consumer_tag="c"))
    first.write(message(1, "q", b"x"))
    loop.settle()
    second.ask(1, make(spec.BasicConsume, queue="q", consumer_tag="c"))
    first.socket.close()
    assert loop.turn()
    (said,) = second.read()
    assert said is not None and said.body == b"x"


# --- errors of ours


def test_error_in_a_handler_costs_that_client(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    victim, other = loop.client(), loop.client()
    monkeypatch.setattr(victim.session._core, "receive", lambda data: 1 // 0)
    victim.write(HEARTBEAT_FRAME)
    with caplog.at_level(logging.ERROR):
        loop.settle()
    assert "ZeroDivisionError" in caplog.text and victim.at_end
    declare(other)


@pytest.mark.parametrize("stage", ["flush", "feed", "noticed", "bury"])
def test_error_around_a_session_costs_that_client(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    victim, other = loop.client(), loop.client()
    real = getattr(Session, stage)

    def fail(client: Session, *args: object) -> object:
        if client is victim.session:
            raise ZeroDivisionError
        return real(client, *args)

    monkeypatch.setattr(Session, stage, fail)
    with caplog.at_level(logging.ERROR):
        loop.turns.drained(victim.session)
        victim.send(1, make(spec.QueueDeclare, queue="victim"))
        loop.settle()
        victim.session.cut()
        loop.settle()
    assert "ZeroDivisionError" in caplog.text
    assert victim.session not in loop.turns.sessions
    declare(other)


@pytest.mark.parametrize("stage", ["pump", "progress"])
def test_error_at_the_end_of_a_tick_does_not_end_the_loop(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    client = loop.client()
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(loop.broker, stage, lambda: 1 // 0)
        client.write(HEARTBEAT_FRAME, message(1, "nowhere", b""))
        loop.settle()
    assert "ZeroDivisionError" in caplog.text and not loop.turns.failed.is_set()
    declare(client)


@pytest.mark.parametrize("call", ["take", "commit", "tick"])
def test_error_of_the_storage_stops_the_broker(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The store may be half way through something. The loop lives to tell the clients."""
    client = loop.client()
    with monkeypatch.context() as patch:
        patch.setattr(loop.bench.store, call, lambda *args: 1 // 0)
        client.write(message(1, "nowhere", b""))
        loop.settle()
        loop.pass_s(61)
    assert loop.turns.failed.is_set() and isinstance(loop.turns.failure, ZeroDivisionError)
    client.write(message(1, "nowhere", b""))
    loop.turns.wake()
    loop.settle()  # which does not go on for ever


def test_error_in_a_timer_leaves_the_others(loop: Loop) -> None:
    called: list[int] = []
    loop.turns.at(loop.bench.now_s, lambda: 1 // 0)  # type: ignore[arg-type]
    loop.turns.at(loop.bench.now_s, lambda: called.append(1))
    loop.settle()
    assert called == [1]


# --- time


def test_timers_are_called_in_order_and_not_when_cancelled(loop: Loop) -> None:
    called: list[float] = []
    now_s = loop.bench.now_s
    for due_s in (3.0, 1.0, 2.0):
        loop.turns.at(now_s + due_s, lambda due_s=due_s: called.append(due_s))  # type: ignore[misc]
    loop.turns.at(now_s + 1.5, lambda: called.append(0)).cancel()
    loop.settle()
    assert called == [] and loop.turns.timeout_s() <= 1.0
    loop.pass_s(5)
    assert called == [1.0, 2.0, 3.0]


def test_what_a_timer_gives_back_is_delivered_at_once(loop: Loop) -> None:
    """A delivery that is overdue goes to another consumer, although no client says anything."""
    first, second = loop.client(), loop.client()
    arguments = {"x-consumer-timeout": 5000, "x-consumer-timeout-action": "requeue"}
    asked = make(spec.QueueDeclare, queue="q", durable=True, arguments=arguments)
    assert isinstance(first.ask(1, asked)[0], spec.QueueDeclareOk)
    first.write(message(1, "q", b"x"))
    loop.settle()
    first.ask(1, make(spec.BasicGet, queue="q"))
    second.ask(1, make(spec.BasicConsume, queue="q", consumer_tag="c"))
    loop.disk()
    loop.pass_s(4)
    assert second.read() == []
    loop.pass_s(70)
    (said,) = second.read()
    assert said is not None and said.body == b"x"


def test_the_next_deadline_of_the_store_is_the_polls(loop: Loop) -> None:
    """An ack that nothing follows reaches the ledger, although no socket is ready any more."""
    client = loop.client()
    declare(client)
    client.write(message(1, "q", b"x"))
    loop.settle()
    loop.disk()
    loop.pass_s(5)
    loop.disk()
    client.ask(1, make(spec.BasicGet, queue="q", no_ack=True))
    flush_s = loop.bench.store.settings.ack_flush_s
    assert loop.turns.timeout_s() <= flush_s
    loop.bench.now_s += flush_s
    assert loop.turn()
    assert any(worker.jobs for worker in loop.bench.workers)


def test_heartbeats_at_half_the_interval(loop: Loop) -> None:
    client = loop.client(heartbeat_s=1)
    for _ in range(10):
        loop.bench.now_s += 0.5
        client.write(HEARTBEAT_FRAME)
        loop.settle()
        assert client.read() == [None]


def test_a_silent_client_is_reset_after_two_intervals(loop: Loop) -> None:
    """A peer that is stuck and not gone sees an error, and what it never read is dropped."""
    peer, ours = tcp_pair()
    silent = Session(loop.turns, ours, "silent", loopback=True)
    alive = loop.client(heartbeat_s=10)
    peer.send(PROTOCOL_HEADER)
    loop.settle()
    for method in (
        spec.ConnectionStartOk({}, "PLAIN", b"\0guest\0guest", "en_US"),
        spec.ConnectionTuneOk(2047, 131072, 10),
        make(spec.ConnectionOpen, virtual_host="/"),
    ):
        peer.send(method_frame(0, method))
    loop.settle()
    loop.pass_s(19)
    alive.write(HEARTBEAT_FRAME)
    assert silent in loop.turns.sessions
    loop.pass_s(1)
    assert silent not in loop.turns.sessions and alive.session in loop.turns.sessions
    with pytest.raises(ConnectionResetError):
        while peer.recv(1 << 16):
            pass
    peer.close()


def test_who_is_held_back_is_not_missed(loop: Loop) -> None:
    client = loop.client(heartbeat_s=10)
    loop.broker.set_alarm("low on disk", True)
    client.write(message(1, "q", b"a"))
    loop.pass_s(120)
    assert client.session in loop.turns.sessions
    loop.broker.set_alarm("low on disk", False)
    loop.pass_s(19)
    assert client.session in loop.turns.sessions
    loop.pass_s(2)
    assert client.session not in loop.turns.sessions


def test_half_a_handshake_is_dropped(loop: Loop) -> None:
    remotes = [Remote(loop), Remote(loop)]
    remotes[0].write(b"AMQP")
    loop.pass_s(HANDSHAKE_S - 1)
    assert len(loop.turns.sessions) == 2
    loop.pass_s(1)
    assert not loop.turns.sessions and all(remote.at_end for remote in remotes)


def test_heartbeats_alone_do_not_touch_queues_and_disk(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of idle clients send them at any time."""
    clients = [loop.client(heartbeat_s=60) for _ in range(3)]
    loop.pass_s(1)
    commits = Calls(monkeypatch, Store, "commit")
    for client in clients:
        client.write(HEARTBEAT_FRAME)
    assert loop.settle() == 1 and commits.count == 0


def test_idle_clients_without_heartbeats_wake_nobody(loop: Loop) -> None:
    for _ in range(5):
        loop.client()
    loop.pass_s(HANDSHAKE_S + 1)
    loop.disk()
    loop.pass_s(120)
    waiting = [timer for _, _, timer in loop.turns.broker.timers._heap if timer.waits]
    assert len(waiting) == 1  # for overdue consumers, once a minute for all


def test_an_idle_connection_is_small(loop: Loop) -> None:
    """With channel and heartbeats; the kernel's part left out, and what the test keeps of it."""
    count = 100
    loop.client()  # what the first one brings stays
    gc.collect()
    pairs: list[socket.socket] = []
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(count):
            client = loop.client(heartbeat_s=60)
            pairs.append(client.socket)
            del client
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / count < 6 * 1024
    for sock in pairs:
        sock.close()


# --- other threads, and trio


def test_wake_between_turns_and_during_one(loop: Loop) -> None:
    loop.settle()
    assert not loop.turns.poller.poll(0.0)
    loop.turns.wake()
    assert loop.turns.poller.poll(0.0) and loop.turns.timeout_s() == 0.0
    assert loop.turn() and not loop.turn()
    loop.turns.at(loop.bench.now_s, loop.turns.wake)
    assert loop.turn()  # in which it is woken
    assert loop.turns.timeout_s() == 0.0
    assert loop.turn() and not loop.turn()


def test_no_wake_is_lost(loop: Loop) -> None:
    """A thread that has done something and wakes the loop is heard, whenever that is."""
    loop.settle()
    done = heard = 0
    rounds = 2000
    proceed = threading.Semaphore(0)

    def work() -> None:
        nonlocal done
        for _ in range(rounds):
            proceed.acquire()
            done += 1
            loop.turns.wake()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for number in range(rounds):
            proceed.release()
            deadline_s = time.monotonic() + 20
            while done <= number or heard < done:
                if loop.turns.turn(turns.STAY_S):
                    heard = done
                elif done > number and heard < done:
                    assert time.monotonic() < deadline_s, "a wake was lost"
    finally:
        thread.join()


class ListPoller(EpollPoller[Participant]):
    """Notes how long it is told to wait, and finds something as often as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.waits_s: list[float] = []

    def poll(self, timeout_s: float) -> list[tuple[Participant, int]]:
        self.waits_s.append(timeout_s)
        return super().poll(0.0)


def test_the_loop_stays_for_a_moment_and_goes_back_to_trio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poller = ListPoller()
    loop = Loop(tmp_path / "data", poller)
    loop.settle()
    loop.bench.now_s += 1000
    loop.settle()
    poller.waits_s.clear()
    loop.turns.wake()
    loop.turns.take_turns()
    assert poller.waits_s == [0.0, turns.STAY_S]  # then there was nothing
    poller.waits_s.clear()
    loop.step_s = turns.AWAY_S / 4
    busy = 100

    def work() -> None:
        nonlocal busy
        busy -= 1
        if busy:
            loop.turns.at(loop.bench.now_s, work)

    loop.turns.at(loop.bench.now_s, work)
    loop.turns.take_turns()
    assert 1 < len(poller.waits_s) < 5 and busy > 90
    loop.close()


async def test_trio_has_its_turn_while_clients_flood(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "data")
    ours = Turns(bench.broker)
    laps = 0

    def again() -> None:
        nonlocal laps
        laps += 1
        ours.at(bench.now_s, again)

    ours.at(bench.now_s, again)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.run)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            before = laps
            while laps < before + 100:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    bench.close()
    ours.close()


# --- the end of a connection


def test_after_close_ok_what_comes_is_dropped_until_the_peer_closes(loop: Loop) -> None:
    client = loop.client()
    declare(client)
    client.send(0, spec.ConnectionClose(200, "", 0, 0))
    client.write(message(1, "q", b"x") * 100)
    loop.settle()
    assert client.hear() == [spec.ConnectionCloseOk()] and client.at_end  # of what we say
    for _ in range(20):
        client.write(message(1, "q", b"x" * 1000))
        loop.settle()
    assert client.session in loop.turns.sessions and client.session.finished
    assert loop.broker.vhosts["/"].queues["q"].ready == 0
    client.socket.close()
    loop.settle()
    assert not loop.turns.sessions


@pytest.mark.parametrize("ours", [False, True], ids=["close-ok", "close"])
def test_who_does_not_close_is_cut(loop: Loop, ours: bool) -> None:
    client = loop.client()
    if ours:
        client.send(1, make(spec.ConnectionOpen))
    else:
        client.send(0, spec.ConnectionClose(200, "", 0, 0))
    loop.settle()
    for _ in range(int(LINGER_S) - 1):
        client.write(HEARTBEAT_FRAME)
        loop.pass_s(1)
    assert client.session in loop.turns.sessions
    loop.pass_s(1)
    assert not loop.turns.sessions


def test_our_close_ends_with_the_peers_close_ok(loop: Loop) -> None:
    client = loop.client()
    client.send(1, make(spec.ConnectionOpen))
    loop.settle()
    assert isinstance(client.hear()[0], spec.ConnectionClose)
    client.write(message(1, "q", b"x") * 100)
    client.send(0, spec.ConnectionCloseOk())
    loop.settle()
    assert not loop.turns.sessions and not loop.broker.clients


async def test_nobody_waits_for_who_lingers(loop: Loop) -> None:
    """At the stop: all was said to it, and it may take its time to close."""
    client = loop.client()
    client.ask(0, spec.ConnectionClose(200, "", 0, 0))
    with trio.fail_after(5):
        await loop.turns.drain(60.0)
    assert client.session in loop.turns.sessions


# --- accepting


class Doors:
    """A broker with one listener."""

    def __init__(self, loop: Loop, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.loop = loop
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.setblocking(False)
        monkeypatch.setattr(network, "sessions_max", lambda: room)
        self.network = Network(loop.turns, [self.listener], lambda: None)
        self.peers: list[socket.socket] = []

    def come(self, count: int = 1) -> None:
        """So many clients connect."""
        for _ in range(count):
            self.peers.append(socket.create_connection(self.listener.getsockname()))

    def leave(self) -> None:
        """One leaves, and the loop sees it."""
        self.peers.pop().close()
        self.loop.settle()

    @property
    def count(self) -> int:
        """How many were let in and are there."""
        return len(self.loop.turns.sessions)

    def close(self) -> None:
        """Close all sockets."""
        self.network.close()
        for sock in (*self.peers, self.listener):
            sock.close()


@pytest.fixture
def doors(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Doors]]:
    """Makes a listener for so many clients."""
    made: list[Doors] = []

    def make_doors(room: int) -> Doors:
        made.append(Doors(loop, monkeypatch, room))
        return made[-1]

    yield make_doors
    for each in made:
        each.close()


def alarms(caplog: pytest.LogCaptureFixture) -> list[bool]:
    """What the log says of the limit on descriptors: set, cleared."""
    return ["alarm set" in text for text in caplog.messages if "descriptor limit alarm" in text]


def test_many_who_come_at_once_are_in_within_some_turns(
    loop: Loop, doors: Callable[[int], Doors]
) -> None:
    house = doors(1000)
    house.come(150)
    counts = []
    while loop.turn():
        counts.append(house.count)
    assert [count for count in counts if count] == [64, 128, 150]


def test_clients_beyond_the_descriptors_wait_until_others_leave(
    loop: Loop, doors: Callable[[int], Doors], caplog: pytest.LogCaptureFixture
) -> None:
    house = doors(4)
    house.come(6)
    loop.settle()
    loop.pass_s(3)
    assert house.count == 4 and alarms(caplog) == [True]
    house.peers[0].close()
    house.peers[1].close()
    loop.settle()  # at once, and not with a timer
    assert house.count == 4 and alarms(caplog) == [True]
    for peer in house.peers[2:4]:
        peer.close()
    loop.settle()
    loop.pass_s(2)
    assert house.count == 2 and alarms(caplog) == [True, False]


def test_the_alarm_stays_while_there_is_no_room(
    loop: Loop, doors: Callable[[int], Doors], caplog: pytest.LogCaptureFixture
) -> None:
    """Also when nobody waits: the next client would have to."""
    house = doors(4)
    house.come(5)
    loop.settle()
    house.peers.pop(0).close()
    loop.settle()
    loop.pass_s(3)
    assert house.count == 4 and alarms(caplog) == [True]
    house.leave()
    loop.pass_s(2)
    assert alarms(caplog) == [True, False]


def refuse(monkeypatch: pytest.MonkeyPatch, error: OSError, times: int) -> None:
    """Have `accept` fail so often."""
    accept = socket.socket.accept
    left = times

    def fail(listener: socket.socket) -> tuple[socket.socket, object]:
        nonlocal left
        if left:
            left -= 1
            raise error
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", fail)


@pytest.mark.parametrize(
    "error", [errno.ENETDOWN, errno.EPROTO, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EPERM]
)
def test_trouble_with_one_peer_is_no_shortage(
    loop: Loop,
    doors: Callable[[int], Doors],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: int,
) -> None:
    """`accept` says what the network had to say of it; the next one is taken at once."""
    house = doors(10)
    refuse(monkeypatch, OSError(error, os.strerror(error)), 1)
    house.come()
    loop.settle()
    assert house.count == 1 and alarms(caplog) == []


def test_who_cannot_be_accepted_waits(
    loop: Loop,
    doors: Callable[[int], Doors],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Others on the machine have taken the last descriptors. The loop does not spin meanwhile."""
    house = doors(10)
    refuse(monkeypatch, OSError(errno.ENFILE, "Too many open files in system"), 10)
    house.come()
    assert loop.settle() == 1 and house.count == 0
    loop.pass_s(10)
    assert house.count == 1 and alarms(caplog) == [True, False] and "in system" in caplog.text


def test_error_in_accepting_leaves_the_door_open(
    loop: Loop,
    doors: Callable[[int], Doors],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = doors(10)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(network, "Session", lambda *args, **options: 1 // 0)
        house.come()
        assert loop.settle() == 1
    assert "ZeroDivisionError" in caplog.text
    house.come()
    loop.pass_s(2)
    assert house.count == 1


# --- pollers


@pytest.mark.parametrize("make_poller", [EpollPoller, SelectorPoller])
def test_poller(make_poller: Callable[[], Poller[str]]) -> None:
    poller = make_poller()
    ours, theirs = socket.socketpair()
    fd = ours.fileno()
    poller.add(fd, "a", READABLE)
    assert poller.poll(0.0) == []
    theirs.send(b"x")
    assert poller.poll(0.0) == [("a", READABLE)] == poller.poll(0.0)  # until it is read
    poller.change(fd, READABLE | WRITABLE)
    assert poller.poll(0.0) == [("a", READABLE | WRITABLE)]
    poller.change(fd, 0)
    assert poller.poll(0.0) == []
    poller.change(fd, WRITABLE)
    assert poller.poll(0.0) == [("a", WRITABLE)]
    poller.remove(fd)
    assert poller.poll(0.0) == []
    poller.add(fd, "b", READABLE)
    ours.recv(1)
    theirs.close()
    ((owner, ready),) = poller.poll(0.0)
    assert owner == "b" and ready & READABLE
    poller.remove(fd)
    ours.close()
    poller.close()


def test_epoll_says_who_is_gone_without_being_asked() -> None:
    """Which is why a session that is held back leaves it then."""
    poller: EpollPoller[str] = EpollPoller()
    peer, ours = tcp_pair()
    poller.add(ours.fileno(), "a", 0)
    rst(peer)
    ((owner, ready),) = poller.poll(1.0)
    assert owner == "a" and ready & GONE
    ours.close()
    poller.close()


def test_the_loop_goes_round_with_any_poller(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "data", SelectorPoller())
    client = loop.client()
    declare(client)
    client.session.hold(Hold.DISK)
    client.die()
    assert loop.settle() == 0
    client.session.release(Hold.DISK)
    loop.settle()
    assert not loop.turns.sessions
    loop.close()


def test_epoll_says_that_a_peer_sends_nothing_more_if_asked() -> None:
    """Octets may be unread before that, and may stay so."""
    poller: EpollPoller[str] = EpollPoller()
    peer, ours = tcp_pair()
    poller.add(ours.fileno(), "a", 0)
    peer.send(b"x")
    peer.close()
    assert poller.poll(0.0) == []
    poller.change(ours.fileno(), GONE)
    assert poller.poll(1.0) == [("a", GONE)]
    ours.close()


def test_a_client_that_leaves_during_its_login_has_nothing_hashed(loop: Loop) -> None:
    """Who guesses need not wait for the answer."""
    late = LateHashing()
    loop.bench.broker.operations._logins.hashing = late
    peer, ours = tcp_pair()
    Session(loop.turns, ours, "test", loopback=True)
    peer.send(PROTOCOL_HEADER)
    loop.settle()
    peer.recv(4096)
    peer.send(method_frame(0, LOGIN))
    loop.settle()
    assert len(late.waiting) == 1
    peer.close()
    loop.settle()
    assert not late.waiting and not loop.turns.sessions
