"""Deduplication: what counts as seen, for how long, and what a crash makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties
from qlog.server.amqp.values import Int64, Table
from qlog.server.broker.features import deduplication
from tests.server.broker.support import Bench, Peer, make, message

SIZE: Table = {"x-cache-size": 100}


def declare(
    peer: Peer,
    name: str = "d",
    type_: str = "x-message-deduplication",
    durable: bool = True,
    **arguments: object,
) -> None:
    table = {key.replace("_", "-"): value for key, value in arguments.items()} or SIZE
    declare = make(
        spec.ExchangeDeclare, exchange=name, type=type_, durable=durable, arguments=table
    )
    peer.ask(1, declare, spec.ExchangeDeclareOk)


def bind(peer: Peer, queue: str, exchange: str = "d") -> None:
    peer.ask(1, make(spec.QueueBind, queue=queue, exchange=exchange), spec.QueueBindOk)


def known_by(
    key: object, mode: int = 2, ttl: int | None = None, delay: int | None = None
) -> Properties:
    headers: Any = {"x-deduplication-header": key}
    if ttl is not None:
        headers["x-cache-ttl"] = ttl
    if delay is not None:
        headers["x-delay"] = delay
    return Properties(headers=headers, delivery_mode=mode)


def publish(
    peer: Peer, body: bytes, key: object, exchange: str = "d", to: str = "", **more: Any
) -> None:
    peer.publish(1, to, body, exchange=exchange, properties=known_by(key, **more))


def got(peer: Peer, queue: str = "q") -> list[bytes]:
    """All bodies that are in a queue; they are taken."""
    bodies: list[bytes] = []
    while True:
        peer.send(9, make(spec.BasicGet, queue=queue, no_ack=True))
        said = peer.take()[-1]
        if said.body is None:
            return bodies
        bodies.append(said.body)


@pytest.fixture
def q(peer: Peer) -> Peer:
    """With a queue q."""
    peer.declare("q")
    return peer


class TestExchanges:
    def test_each_passes_once(self, q: Peer) -> None:
        declare(q)
        bind(q, "q")
        for body, key in (b"1", "a"), (b"2", "b"), (b"3", "a"), (b"4", "b"), (b"5", "c"):
            publish(q, body, key)
        q.publish(1, "", b"without", exchange="d")
        q.publish(1, "", b"without", exchange="d")
        assert got(q) == [b"1", b"2", b"5", b"without", b"without"]

    def test_in_one_read(self, q: Peer) -> None:
        declare(q)
        bind(q, "q")
        same = [message(1, "", b"%d" % n, exchange="d", properties=known_by("a")) for n in (1, 2)]
        q.send(1, *same)
        assert got(q) == [b"1"]

    def test_types_of_the_header(self, q: Peer) -> None:
        declare(q)
        bind(q, "q")
        different: list[object] = [1, "1", 1.0, True, None, b"1", [1], {"a": 1}, "x" * 10_000]
        for number, key in enumerate([*different, *different, Int64(1)]):
            publish(q, b"%d" % number, key)
        assert got(q) == [b"%d" % number for number in range(len(different))]

    def test_the_oldest_is_pushed_out(self, bench: Bench, q: Peer) -> None:
        declare(q, x_cache_size="3")
        bind(q, "q")
        for number, key in enumerate("abcabcdabc"):
            publish(q, b"%d" % number, key)
        # d pushed a out, a then b, b then c, c then d.
        assert got(q) == [b"0", b"1", b"2", b"6", b"7", b"8", b"9"]

    def test_for_a_time(self, bench: Bench, q: Peer) -> None:
        declare(q, x_cache_size=100, x_cache_ttl=1000)
        bind(q, "q")
        publish(q, b"1", "a")
        publish(q, b"2", "own", ttl=3000)
        bench.pass_ms(999)
        publish(q, b"3", "a")
        publish(q, b"4", "own")
        bench.pass_ms(1)
        publish(q, b"5", "a")
        bench.pass_ms(1999)
        publish(q, b"6", "own")
        bench.pass_ms(1)
        publish(q, b"7", "own")
        assert got(q) == [b"1", b"2", b"5", b"7"]

    def test_any_type_with_the_argument(self, q: Peer) -> None:
        declare(
            q,
            type_="topic",
            x_message_deduplication=True,
            x_deduplication_header="message-key",
        )
        q.ask(1, make(spec.QueueBind, queue="q", exchange="d", routing_key="#"), spec.QueueBindOk)
        for body, key in (b"1", "a"), (b"2", "a"), (b"3", "b"):
            headers: Table = {"message-key": key, "x-deduplication-header": "same"}
            q.publish(1, "k", body, exchange="d", properties=Properties(headers=headers))
        assert got(q) == [b"1", b"3"]

    def test_it_does_not_pass_to_an_exchange_behind(self, q: Peer) -> None:
        declare(q)
        q.ask(1, make(spec.ExchangeBind, source="d", destination="amq.fanout"), spec.ExchangeBindOk)
        q.ask(1, make(spec.ExchangeBind, source="amq.direct", destination="d"), spec.ExchangeBindOk)
        bind(q, "q", "amq.fanout")
        q.declare("other")
        bind(q, "other", "amq.direct")
        publish(q, b"1", "a", exchange="amq.direct")
        publish(q, b"2", "a", exchange="amq.direct")
        assert got(q) == [b"1"] and got(q, "other") == [b"1", b"2"]

    def test_it_counts_as_unroutable(self, bench: Bench, q: Peer) -> None:
        declare(q)
        bind(q, "q")
        q.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
        publish(q, b"1", "a")
        bench.disk()
        assert q.hear() == [spec.BasicAck(1, False)]
        frames = message(1, "", b"2", exchange="d", mandatory=True, properties=known_by("a"))
        q.send(1, frames)
        assert [type(heard) for heard in q.hear()] == [spec.BasicReturn, spec.BasicAck]

    def test_delayed_and_seen(self, bench: Bench, q: Peer) -> None:
        """What is released is not taken for a duplicate of itself."""
        declare(q, type_="x-delayed-message", x_delayed_type="fanout", x_message_deduplication=True)
        bind(q, "q")
        for body in b"1", b"2":
            publish(q, body, "a", delay=500)
        bench.pass_ms(500)
        publish(q, b"3", "a")
        assert got(q) == [b"1"]

    def test_dead_letters_count(self, bench: Bench, q: Peer) -> None:
        declare(q)
        bind(q, "q")
        q.declare("source", arguments={"x-dead-letter-exchange": "d"})
        for body in b"1", b"1", b"1":
            publish(q, body, "a", exchange="", to="source")
            q.send(3, make(spec.BasicGet, queue="source"))
        q.send(3, spec.BasicNack(0, multiple=True, requeue=False))
        bench.settle()
        q.take()
        assert got(q) == [b"1"]

    def test_dead_letters_at_least_once(self, bench: Bench, q: Peer) -> None:
        """One that was seen keeps no other one waiting; one that is refused may come again."""
        declare(q)
        full = q.declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        bind(q, "full")
        arguments: Table = {
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": "d",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        source = q.declare("source", arguments=arguments)
        for body, key in (b"1", "a"), (b"2", "a"), (b"3", "b"):
            publish(q, body, key, exchange="", to="source")
        bench.disk()
        for _ in range(3):
            q.send(3, make(spec.BasicGet, queue="source"))
        q.send(3, spec.BasicNack(0, multiple=True, requeue=False))
        bench.settle()
        bench.disk()
        assert (full.ready, source.unacked) == (1, 1)  # the second is dropped, the third refused
        q.take()
        assert got(q, "full") == [b"1"]
        bench.pass_ms(5000)
        bench.disk()
        assert got(q, "full") == [b"3"] and source.unacked == 0


class TestWhatComesToNothing:
    def test_a_rollback(self, bench: Bench, q: Peer) -> None:
        declare(q)
        bind(q, "q")
        q.ask(1, spec.TxSelect(), spec.TxSelectOk)
        publish(q, b"1", "a")
        q.ask(1, spec.TxRollback(), spec.TxRollbackOk)
        publish(q, b"2", "a")
        publish(q, b"3", "a")
        q.send(1, spec.TxCommit())
        bench.disk()
        q.take()
        publish(q, b"4", "a")
        assert got(q) == [b"2"]

    def test_a_channel_that_closes(self, bench: Bench, q: Peer) -> None:
        declare(q)
        bind(q, "q")
        q.ask(2, spec.TxSelect(), spec.TxSelectOk)
        q.publish(2, "", b"1", exchange="d", properties=known_by("a"))
        q.ask(2, make(spec.ChannelClose), spec.ChannelCloseOk)
        publish(q, b"2", "a")
        assert got(q) == [b"2"]

    def test_a_queue_at_its_limit(self, bench: Bench, peer: Peer) -> None:
        peer.declare("q", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        declare(peer)
        bind(peer, "q")
        for body, key in (b"1", "a"), (b"2", "b"):
            publish(peer, body, key)
        assert got(peer) == [b"1"]
        publish(peer, b"3", "b")
        assert got(peer) == [b"3"]


class TestAcrossStarts:
    @pytest.mark.parametrize("killed", [False, True])
    def test_what_was_seen_is_known(self, bench: Bench, q: Peer, killed: bool) -> None:
        declare(q, x_cache_size=3, x_cache_ttl=60_000)
        bind(q, "q")
        for number, key in enumerate("abcd"):
            publish(q, b"%d" % number, key)
        publish(q, b"4", "brief", ttl=500)
        bench.disk()
        if killed:
            bench.kill()
            bench.open()
        else:
            bench.restart()
        bench.pass_ms(500)
        peer = Peer(bench)
        for number, key in enumerate(["c", "d", "brief", "b"], 5):
            publish(peer, b"%d" % number, key)
        assert got(peer) == [b"0", b"1", b"2", b"3", b"4", b"7", b"8"]
        (hidden,) = bench.broker.definitions.hidden_lanes()
        assert bench.store.lane(hidden.lane_id).alive == 3

    def test_what_is_lost_is_not_known(self, bench: Bench, q: Peer) -> None:
        declare(q)
        bind(q, "q")
        publish(q, b"1", "a")
        publish(q, b"transient", "b", mode=1)
        bench.disk()
        publish(q, b"2", "c")  # not on the disk
        bench.kill()
        bench.open()
        peer = Peer(bench)
        for body, key in (b"3", "a"), (b"4", "b"), (b"5", "c"):
            publish(peer, body, key)
        assert got(peer) == [b"1", b"4", b"5"]

    def test_an_exchange_that_is_not_durable(self, bench: Bench, q: Peer) -> None:
        declare(q, durable=False)
        bind(q, "q")
        publish(q, b"1", "a")
        assert list(bench.broker.definitions.hidden_lanes()) == []

    def test_a_deleted_exchange_is_forgotten(self, bench: Bench, q: Peer) -> None:
        declare(q)
        bind(q, "q")
        publish(q, b"1", "a")
        bench.disk()
        q.ask(1, make(spec.ExchangeDelete, exchange="d"), spec.ExchangeDeleteOk)
        assert list(bench.broker.definitions.hidden_lanes()) == []
        assert bench.broker.services.seen.count == 0
        declare(q)
        bind(q, "q")
        publish(q, b"2", "a")
        assert got(q) == [b"1", b"2"]


QUORUM: Table = {"x-queue-type": "quorum"}
ONCE: Table = {"x-message-deduplication": True}


class TestQueues:
    @pytest.mark.parametrize("more", [{}, {"x-max-priority": 5}, QUORUM], ids=str)
    def test_one_that_is_there_does_not_come_again(
        self, bench: Bench, peer: Peer, more: Table
    ) -> None:
        queue = peer.declare("q", arguments={**ONCE, **more})
        for number, key in enumerate("abab"):
            publish(peer, b"%d" % number, key, exchange="", to="q")
        bench.disk()
        assert queue.ready == 2
        peer.send(3, make(spec.BasicGet, queue="q"))
        publish(peer, b"4", "a", exchange="", to="q")  # unacknowledged
        assert queue.ready == 1
        peer.send(3, spec.BasicAck(1, False))
        publish(peer, b"5", "a", exchange="", to="q")
        publish(peer, b"6", "a", exchange="", to="q")
        bench.disk()
        peer.take()
        assert got(peer) == [b"1", b"5"]
        peer.publish(1, "q", b"7")
        peer.publish(1, "q", b"7")
        bench.disk()
        assert got(peer) == [b"7", b"7"]

    def test_purged_and_expired_ones_may_come_again(self, bench: Bench, peer: Peer) -> None:
        queue = peer.declare("q", arguments={**ONCE, "x-message-ttl": 2000})
        publish(peer, b"1", "a", exchange="", to="q")
        peer.ask(1, make(spec.QueuePurge, queue="q"), spec.QueuePurgeOk)
        publish(peer, b"2", "a", exchange="", to="q")
        assert queue.ready == 1
        bench.pass_ms(3000)
        publish(peer, b"3", "a", exchange="", to="q")
        assert got(peer) == [b"3"]

    def test_confirmed_and_rejected(self, bench: Bench, peer: Peer) -> None:
        limit: Table = {"x-max-length": 2, "x-overflow": "reject-publish"}
        peer.declare("q", arguments={**ONCE, **limit})
        peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
        frames = [
            message(1, "q", b"%d" % number, properties=known_by(key))
            for number, key in enumerate("abacc")
        ]
        peer.send(1, *frames)
        bench.disk()
        heard = peer.hear()
        nacked = [m.delivery_tag for m in heard if isinstance(m, spec.BasicNack)]
        assert nacked[-1] == 5 and got(peer) == [b"0", b"1"]
        peer.send(1, message(1, "q", b"5", properties=known_by("c")))
        assert got(peer) == [b"5"]

    @pytest.mark.parametrize("more", [{}, QUORUM], ids=str)
    def test_after_a_kill(self, bench: Bench, peer: Peer, more: Table) -> None:
        peer.declare("q", arguments={**ONCE, **more})
        for number, key in enumerate("abc"):
            publish(peer, b"%d" % number, key, exchange="", to="q")
        bench.disk()
        peer.send(3, make(spec.BasicGet, queue="q"), spec.BasicAck(1, False))
        bench.disk()
        bench.kill()
        bench.open()
        peer = Peer(bench)
        for number, key in enumerate("abc", 3):
            publish(peer, b"%d" % number, key, exchange="", to="q")
        bench.disk()
        assert got(peer) == [b"1", b"2", b"3"]

    @pytest.mark.parametrize("durable", [True, False])
    def test_a_queue_with_a_window(self, bench: Bench, peer: Peer, durable: bool) -> None:
        """As LavinMQ has it: what was seen lately does not come again, wherever it is now."""
        peer.declare("q", durable=durable, arguments={**ONCE, "x-cache-size": 2})
        for number, key in enumerate("aabbcca"):
            publish(peer, b"%d" % number, key, exchange="", to="q")
        assert got(peer) == [b"0", b"2", b"4", b"6"]
        publish(peer, b"7", "a", exchange="", to="q")
        assert got(peer) == []
        bench.disk()
        bench.kill()
        bench.open()
        if durable:
            peer = Peer(bench)
            for number, key in enumerate("acb", 8):
                publish(peer, b"%d" % number, key, exchange="", to="q")
            assert got(peer) == [b"10"]
            peer.ask(1, make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk)
        assert list(bench.broker.definitions.hidden_lanes()) == []

    def test_other_values_of_the_argument_mean_nothing(self, peer: Peer) -> None:
        peer.declare("q", arguments={"x-message-deduplication": "true"})
        for _ in range(2):
            publish(peer, b"x", "a", exchange="", to="q")
        assert got(peer) == [b"x", b"x"]

    def test_a_deleted_queue_is_forgotten(self, bench: Bench, peer: Peer) -> None:
        peer.declare("q", arguments=ONCE)
        publish(peer, b"1", "a", exchange="", to="q")
        peer.ask(1, make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk)
        seen = bench.broker.services.seen
        assert seen.count == 0 and not seen.holders


def set_policy(bench: Bench, pattern: str, **definition: object) -> None:
    bench.broker.operations.set_policy(
        bench.broker.vhosts["/"],
        "policy",
        "once",
        pattern=pattern,
        definition={key.replace("_", "-"): value for key, value in definition.items()},
    )
    bench.settle()


def clear_policy(bench: Bench) -> None:
    bench.broker.operations.delete_policy(bench.broker.vhosts["/"], "policy", "once")
    bench.settle()


class TestPolicies:
    """As with the plugin, whose keys they are."""

    def test_the_size_of_a_window(self, bench: Bench, q: Peer) -> None:
        declare(q)
        bind(q, "q")
        for key in "abc":
            publish(q, key.encode(), key)
        set_policy(bench, "^d$", x_cache_size=1)
        publish(q, b"a is known", "a")
        publish(q, b"d", "d")  # pushes all others out
        publish(q, b"a again", "a")
        clear_policy(bench)
        publish(q, b"e", "e")
        publish(q, b"a is known", "a")
        assert got(q) == [b"a", b"b", b"c", b"d", b"a again", b"e"]

    def test_a_window_that_shrinks_does_so_in_pieces(
        self, bench: Bench, q: Peer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deduplication, "FORGOTTEN_AT_ONCE", 2)
        declare(q)
        bind(q, "q")
        for number in range(6):
            publish(q, b"x", number)
        set_policy(bench, "^d$", x_cache_size=1)
        lengths = []
        for number in range(6, 11):
            publish(q, b"x", number)
            lengths.append(bench.broker.services.seen.count)
        assert lengths == [5, 4, 3, 2, 1]

    def test_the_time_of_a_window(self, bench: Bench, q: Peer) -> None:
        declare(q)
        bind(q, "q")
        set_policy(bench, "^d$", x_cache_ttl=1000)
        publish(q, b"first", "k")
        bench.disk()
        bench.restart()
        again = Peer(bench)
        publish(again, b"too soon", "k")
        bench.pass_ms(1000)
        publish(again, b"second", "k")
        clear_policy(bench)
        bench.pass_ms(1000)
        publish(again, b"third", "k")
        bench.pass_ms(10**9)
        publish(again, b"known for ever", "k")
        assert got(again) == [b"first", b"second", b"third"]

    def test_an_exchange_that_passes_duplicates_goes_on_with_it(
        self, bench: Bench, peer: Peer
    ) -> None:
        declare(peer, "plain", "fanout", x=1)
        peer.declare("q")
        bind(peer, "q", "plain")
        set_policy(bench, "^plain$", x_cache_size=5, x_message_deduplication=True)
        for body in (b"1", b"2"):
            publish(peer, body, "k", exchange="plain")
        assert got(peer) == [b"1", b"2"]

    @pytest.mark.parametrize("kind", ["classic", "quorum"])
    def test_a_queue_knows_what_is_there(self, bench: Bench, peer: Peer, kind: str) -> None:
        peer.declare("q", arguments={"x-queue-type": kind})
        for body in (b"1", b"2"):
            publish(peer, body, "k", exchange="", to="q")
        set_policy(bench, "^q$", x_message_deduplication=True)
        publish(peer, b"3", "k", exchange="", to="q")
        publish(peer, b"other", "l", exchange="", to="q")
        bench.disk()
        bench.restart()
        peer = Peer(bench)
        publish(peer, b"4", "l", exchange="", to="q")
        bench.disk()
        assert got(peer) == [b"1", b"2", b"other"]
        publish(peer, b"5", "k", exchange="", to="q")
        clear_policy(bench)
        publish(peer, b"6", "k", exchange="", to="q")
        bench.disk()
        assert got(peer) == [b"5", b"6"]
        assert bench.broker.services.seen.count == 0

    def test_a_policy_wins_over_the_argument(self, bench: Bench, peer: Peer) -> None:
        peer.declare("q", arguments={"x-message-deduplication": True})
        publish(peer, b"1", "k", exchange="", to="q")
        set_policy(bench, "^q$", x_message_deduplication=False)
        publish(peer, b"2", "k", exchange="", to="q")
        clear_policy(bench)
        publish(peer, b"3", "k", exchange="", to="q")
        assert got(peer) == [b"1", b"2"]

    def test_many_messages_are_looked_at_in_slices(self, bench: Bench, peer: Peer) -> None:
        queue = peer.declare("q")
        peer.receive(
            b"".join(
                message(1, "q", b"x", properties=known_by(number % 500)) for number in range(1000)
            )
        )
        steps = 0

        def clock_s() -> float:
            nonlocal steps
            steps += 1
            return float(steps)

        bench.broker.services.jobs.clock_s = clock_s  # a slice for each step
        operations = bench.broker.operations
        operations.set_policy(
            bench.broker.vhosts["/"],
            "policy",
            "once",
            pattern="q",
            definition={"x-message-deduplication": True},
        )
        bench.settle()
        assert steps > 1000 / deduplication.RECALLED_AT_ONCE
        publish(peer, b"y", 499, exchange="", to="q")
        publish(peer, b"y", 500, exchange="", to="q")
        assert queue.ready == 1001
        clear_policy(bench)
        peer.ask(1, make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk)

    def test_a_queue_that_is_deleted_meanwhile(self, bench: Bench, peer: Peer) -> None:
        peer.declare("q")
        for number in range(200):
            publish(peer, b"x", number, exchange="", to="q")
        ticks = iter(range(10**6))
        bench.broker.services.jobs.clock_s = lambda: float(next(ticks))
        bench.broker.operations.set_policy(
            bench.broker.vhosts["/"],
            "policy",
            "once",
            pattern="q",
            definition={"x-message-deduplication": True},
        )
        peer.send(1, make(spec.QueueDelete, queue="q"))
        bench.settle()
        assert bench.broker.services.seen.count == 0


class TestMemory:
    def test_the_largest_forgets(
        self, bench: Bench, q: Peer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deduplication, "ENTRIES_MAX", 100)
        monkeypatch.setattr(deduplication, "FORGOTTEN_AT_ONCE", 10)
        declare(q, x_cache_size=10**9)
        declare(q, "small")
        bind(q, "q")
        bind(q, "q", "small")
        publish(q, b"small", "a", exchange="small")
        for number in range(1000):
            publish(q, b"%d" % number, number)
        publish(q, b"again", "a", exchange="small")
        seen = bench.broker.services.seen
        assert sorted(map(len, seen.holders)) == [1, seen.count - 1]
        assert 90 <= seen.count <= 100
        publish(q, b"old", 0)
        publish(q, b"new", 999)
        assert got(q)[-1] == b"old"
        (lane_id,) = (
            lane.lane_id for lane in bench.broker.definitions.hidden_lanes() if lane.name == "d"
        )
        assert bench.store.lane(lane_id).alive <= 100

    def test_of_what_is_gone_from_a_queue_little_is_left(self, bench: Bench, peer: Peer) -> None:
        peer.declare("q", arguments=ONCE)
        for number in range(300):
            publish(peer, b"x", number, exchange="", to="q")
            if number % 50 == 49:
                got(peer)
        assert bench.broker.services.seen.count <= 100


TEXT = "PRECONDITION_FAILED - "
SIZE_TEXT = TEXT + "Missing or invalid argument, 'x-cache-size' must be an integer greater than 0"
REFUSED: list[tuple[str, Table, str]] = [
    ("x-message-deduplication", {}, SIZE_TEXT),
    ("x-message-deduplication", {"x-cache-size": 0}, SIZE_TEXT),
    ("x-message-deduplication", {"x-cache-size": "a"}, SIZE_TEXT),
    ("x-message-deduplication", {"x-cache-size": True}, SIZE_TEXT),
    ("fanout", {"x-message-deduplication": True, "x-cache-size": -1}, SIZE_TEXT),
    (
        "x-message-deduplication",
        {"x-cache-size": 1, "x-cache-ttl": 0},
        TEXT + "Invalid argument, 'x-cache-ttl' must be an integer greater than 0",
    ),
    (
        "x-message-deduplication",
        {"x-cache-size": 1, "x-cache-persistence": "paper"},
        TEXT + "Invalid argument, 'x-cache-persistence' must be either 'disk' or 'memory'",
    ),
]


@pytest.mark.parametrize(("type_", "arguments", "text"), REFUSED)
def test_refused(bench: Bench, peer: Peer, type_: str, arguments: Table, text: str) -> None:
    peer.send(1, make(spec.ExchangeDeclare, exchange="d", type=type_, arguments=arguments))
    assert peer.refused() == ("channel", 406, text)
