"""Histories of exchanges: what is kept, who gets it, and when nobody does."""

from __future__ import annotations

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.frames import method_frame
from qlog.server.broker.features import recent_history
from qlog.server.broker.features.recent_history import History
from qlog.server.broker.vhost import VHost
from tests.server.broker.support import Bench, Peer, make


def envelope(number: int) -> Envelope:
    return Envelope.pack("e", f"{number}", b"\0\0", 0)


def add(history: History, *numbers: int, size: int = 0) -> None:
    bodies = [b"%d" % number + bytes(size) for number in numbers]
    history.passed([envelope(number) for number in numbers], bodies)


def keys(history: History, seen: int = 0) -> list[int]:
    return [int(envelope.routing_key) for envelope, _ in history.since(seen)]


def test_the_newest_are_kept() -> None:
    history = History(3)
    assert keys(history) == []
    add(history, 0, 1)
    assert keys(history) == [0, 1]
    add(history, 2, 3, 4)
    assert keys(history) == [2, 3, 4]
    assert keys(history, seen=3) == [3, 4]
    assert keys(history, seen=5) == []


def test_memory_bounds_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_history, "BYTES_MAX", 10_000)
    history = History(10**12)
    add(history, *range(100), size=1000)
    assert keys(history) == list(range(93, 100))
    add(history, 100, size=20_000)
    assert keys(history) == [100]  # the newest in any case
    add(history, 101)
    assert keys(history) == [101]


class TestInABroker:
    @pytest.fixture
    def peer(self, peer: Peer) -> Peer:
        """With an exchange e that has the type."""
        declare = make(
            spec.ExchangeDeclare,
            exchange="e",
            type="x-recent-history",
            durable=True,
            auto_delete=True,
            arguments={"x-recent-history-length": 1000},
        )
        peer.ask(1, declare, spec.ExchangeDeclareOk)
        return peer

    def bind(self, peer: Peer, queue: str, **options: object) -> None:
        bind = make(spec.QueueBind, queue=queue, exchange="e", **options)
        peer.ask(1, bind, spec.QueueBindOk)

    def bodies(self, peer: Peer, queue: str) -> list[bytes]:
        """What the queue has."""
        consume = make(spec.BasicConsume, queue=queue, consumer_tag=queue, no_ack=True)
        peer.send(9, consume)
        said = peer.take()
        peer.ask(9, spec.BasicCancel(queue, False), spec.BasicCancelOk)
        return [each.body for each in said if each.body is not None]

    def test_without_a_transaction_and_with_one(self, bench: Bench, peer: Peer) -> None:
        peer.declare("q")
        peer.publish(1, "k", b"kept", exchange="e")
        peer.ask(2, spec.TxSelect(), spec.TxSelectOk)
        peer.publish(2, "k", b"rolled back", exchange="e")
        peer.ask(2, spec.TxRollback(), spec.TxRollbackOk)
        peer.publish(2, "k", b"committed", exchange="e")
        peer.send(2, spec.TxCommit())
        bench.disk()
        peer.take()
        self.bind(peer, "q")
        peer.publish(2, "k", b"later", exchange="e")
        peer.declare("r")
        self.bind(peer, "r")  # in the middle of the transaction
        peer.send(2, spec.TxCommit())
        bench.disk()
        peer.take()
        assert self.bodies(peer, "q") == [b"kept", b"committed", b"later"]
        assert self.bodies(peer, "r") == [b"kept", b"committed"]

    def test_history_is_durable_where_it_was_persistent(self, bench: Bench, peer: Peer) -> None:
        for number in range(6):
            body = b"%d" % number
            peer.publish(1, "k", body, exchange="e", persistent=bool(number % 3))
        peer.declare("q")
        self.bind(peer, "q")
        bench.disk()
        bench.restart()
        assert self.bodies(Peer(bench), "q") == [b"1", b"2", b"4", b"5"]

    def test_a_restart_forgets_history(self, bench: Bench, peer: Peer) -> None:
        peer.declare("q")
        self.bind(peer, "q")
        peer.publish(1, "k", b"before", exchange="e")
        bench.disk()
        bench.restart()
        again = Peer(bench)
        again.declare("r")
        self.bind(again, "r")
        again.publish(1, "k", b"after", exchange="e")
        assert self.bodies(again, "q") == [b"before", b"after"]
        assert self.bodies(again, "r") == [b"after"]

    def test_history_goes_with_an_auto_delete_exchange(self, bench: Bench, peer: Peer) -> None:
        peer.declare("q")
        self.bind(peer, "q")
        peer.publish(1, "k", b"x", exchange="e")
        vhost = bench.broker.vhosts["/"]
        assert vhost._histories
        unbind = make(spec.QueueUnbind, queue="q", exchange="e")
        peer.ask(1, unbind, spec.QueueUnbindOk)
        assert not vhost._histories


class TestSlices:
    """A history that takes several slices to be given: each step is one."""

    @pytest.fixture
    def vhost(self, bench: Bench, peer: Peer) -> VHost:
        declare = make(
            spec.ExchangeDeclare,
            exchange="e",
            type="x-recent-history",
            durable=True,
            arguments={"x-recent-history-length": 1000},
        )
        peer.ask(1, declare, spec.ExchangeDeclareOk)
        peer.declare("q")
        peer.publish(1, "k", *(b"%d" % number for number in range(250)), exchange="e")
        clock = iter(range(10**9))
        bench.broker.services.jobs.clock_s = lambda: float(next(clock))
        return bench.broker.vhosts["/"]

    def bind(self, peer: Peer) -> None:
        """As in one tick: the first slice, and nothing else."""
        events = peer.core.receive(method_frame(1, make(spec.QueueBind, queue="q", exchange="e")))
        for event in events:
            peer.client.handle(event)

    def test_what_comes_meanwhile_comes_behind(
        self, bench: Bench, peer: Peer, vhost: VHost
    ) -> None:
        other = Peer(bench)
        other.publish(1, "nowhere", b"")
        self.bind(peer)
        assert vhost.queues["q"].ready == 100
        assert not vhost.routing.in_use("e")
        other.publish(1, "k", *(b"%d" % number for number in range(250, 370)), exchange="e")
        while bench.broker.jobs_left:
            bench.broker.work()
        other.publish(1, "k", b"370", exchange="e")
        bench.disk()
        assert isinstance(peer.hear()[-1], spec.QueueBindOk)
        peer.send(2, make(spec.BasicConsume, queue="q", no_ack=True))
        said = [each.body for each in peer.take() if each.body is not None]
        assert said == [b"%d" % number for number in range(371)]

    def test_a_publisher_that_is_faster_than_the_history_does_not_keep_the_bind_waiting(
        self, bench: Bench, peer: Peer, vhost: VHost
    ) -> None:
        other = Peer(bench)
        self.bind(peer)
        number, turns = 250, 0
        while bench.broker.jobs_left:
            bodies = [b"%d" % (number + more) for more in range(150)]  # more than a step gives
            other.publish(1, "k", *bodies, exchange="e")
            number, turns = number + 150, turns + 1
            assert turns < 50
            bench.broker.work()
        bench.disk()
        assert isinstance(peer.hear()[-1], spec.QueueBindOk)
        peer.send(2, make(spec.BasicConsume, queue="q", no_ack=True))
        said = [each.body for each in peer.take() if each.body is not None]
        assert said == [b"%d" % each for each in range(number)]

    @pytest.mark.parametrize("gone", ["q", "e"])
    def test_an_end_goes_meanwhile(self, bench: Bench, peer: Peer, vhost: VHost, gone: str) -> None:
        self.bind(peer)
        operations = bench.broker.operations
        if gone == "q":
            operations.delete_queue(vhost, None, "q", if_unused=False, if_empty=False)
        else:
            operations.delete_exchange(vhost, "e", if_unused=False)
        while bench.broker.jobs_left:
            bench.broker.work()
        bench.disk()
        kind = "queue" if gone == "q" else "exchange"
        assert peer.refused() == ("channel", 404, f"NOT_FOUND - no {kind} '{gone}' in vhost '/'")
