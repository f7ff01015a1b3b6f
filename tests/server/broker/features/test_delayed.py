"""Delayed messages: when they are released, what becomes of them, and what operators do with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.errors import AMQPError
from qlog.server.amqp.properties import Properties
from qlog.server.amqp.values import Int64, LongStr, Table, Timestamp
from qlog.server.broker import due, removals
from qlog.server.broker.features import delayed as delayed_module
from qlog.server.broker.features.delayed import Delayed
from qlog.server.broker.queues.backlog import TAKE_BYTES_MAX, Backlog, Taken
from qlog.server.broker.vhost import VHost
from qlog.storage.errors import CorruptLog, OutOfDescriptors
from tests.server.broker.support import Bench, Peer, make, message


def declare(
    peer: Peer,
    name: str = "d",
    type_: str = "direct",
    durable: bool = True,
    alternate: str | None = None,
    auto_delete: bool = False,
) -> None:
    arguments: Table = {"x-delayed-type": type_}
    if alternate is not None:
        arguments["alternate-exchange"] = alternate
    declare = make(
        spec.ExchangeDeclare,
        exchange=name,
        type="x-delayed-message",
        durable=durable,
        auto_delete=auto_delete,
        arguments=arguments,
    )
    peer.ask(1, declare, spec.ExchangeDeclareOk)


def bind(peer: Peer, queue: str, exchange: str = "d", key: str = "k") -> None:
    peer.ask(
        1, make(spec.QueueBind, queue=queue, exchange=exchange, routing_key=key), spec.QueueBindOk
    )


def delay(value: object, mode: int = 2, **more: Any) -> Properties:
    return Properties(headers={"x-delay": value}, delivery_mode=mode, **more)  # type: ignore[dict-item]


def publish(peer: Peer, body: bytes, value: object, exchange: str = "d", **more: Any) -> None:
    properties = delay(value, **more)
    peer.publish(1, "k", body, exchange=exchange, properties=properties)


def got(peer: Peer, queue: str = "q") -> list[bytes]:
    """All bodies that are in a queue; they are taken."""
    bodies: list[bytes] = []
    while True:
        peer.send(9, make(spec.BasicGet, queue=queue, no_ack=True))
        said = peer.take()[-1]
        if said.body is None:
            return bodies
        bodies.append(said.body)


def waiting(bench: Bench, exchange: str = "d") -> list[bytes]:
    vhost = bench.broker.vhosts["/"]
    operations = bench.broker.operations
    found = list(operations.delayed_messages(vhost, exchange))
    assert operations.delayed_count(vhost, exchange) == len(found)
    facts = operations.exchange_facts(vhost, vhost.exchange(exchange))
    assert facts["messages_delayed"] == len(found)
    return [each.body for each in found]


@pytest.fixture
def q(peer: Peer) -> Peer:
    """With an exchange d that delays, and a queue q."""
    declare(peer)
    peer.declare("q")
    bind(peer, "q")
    return peer


def frames(body: bytes, value: object, exchange: str = "d", key: str = "k") -> bytes:
    return message(1, key, body, exchange=exchange, properties=delay(value))


class TestRead:
    """What one read brings is sorted out before it waits."""

    def test_messages_that_all_wait_are_not_routed_one_by_one(
        self, bench: Bench, q: Peer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        routed: list[str] = []
        route = VHost.route

        def counted(self: VHost, exchange: str, *args: Any, **named: Any) -> Any:
            routed.append(exchange)
            return route(self, exchange, *args, **named)

        monkeypatch.setattr(VHost, "route", counted)
        bodies = [b"%d" % number for number in range(50)]
        q.send(1, *(frames(body, 1000) for body in bodies))
        q.send(1, *(frames(body, 900 + at, key=f"k{at}") for at, body in enumerate(bodies)))
        assert routed == [] and waiting(bench) == bodies * 2
        bench.disk()
        bench.pass_ms(1000)
        bench.disk()
        assert got(q) == bodies  # those with other keys have no queue

    @pytest.mark.parametrize("odd", [0, -5, "text", True])
    def test_one_that_does_not_wait_is_routed_at_once(
        self, bench: Bench, q: Peer, odd: object
    ) -> None:
        q.send(1, frames(b"a", 1000), frames(b"b", odd), frames(b"c", 1000))
        assert waiting(bench) == [b"a", b"c"] and got(q) == [b"b"]

    def test_messages_for_several_exchanges(self, bench: Bench, q: Peer) -> None:
        declare(q, "e")
        q.send(1, frames(b"a", 1000), frames(b"b", 1000, "e"), frames(b"c", 1000, "amq.direct"))
        assert waiting(bench) == [b"a"] and waiting(bench, "e") == [b"b"]

    def test_one_to_an_exchange_that_is_missing_is_refused_and_those_before_it_wait(
        self, bench: Bench, q: Peer
    ) -> None:
        q.send(1, frames(b"a", 1000), frames(b"b", 1000), frames(b"c", 1000, "missing"))
        assert q.refused()[:2] == ("channel", 404)
        assert waiting(bench) == [b"a", b"b"]

    def test_who_may_not_publish_makes_no_place_to_wait(self, bench: Bench, q: Peer) -> None:
        declare(q, "e")
        bench.broker.operations.set_permissions("/", "guest", ".*", "^$", ".*")
        bench.disk()
        before = len(list(bench.broker.vhosts["/"].hidden_lanes))
        q.send(1, frames(b"a", 1000, "e"), frames(b"b", 1000, "e"))
        assert q.refused()[:2] == ("channel", 403)
        assert len(list(bench.broker.vhosts["/"].hidden_lanes)) == before

    def test_a_window_sees_each_of_them(self, bench: Bench, peer: Peer) -> None:
        arguments: Table = {"x-delayed-type": "direct", "x-message-deduplication": True}
        arguments["x-cache-size"] = 10
        exchange = make(
            spec.ExchangeDeclare,
            exchange="d",
            type="x-delayed-message",
            durable=True,
            arguments=arguments,
        )
        peer.ask(1, exchange, spec.ExchangeDeclareOk)
        headers: Table = {"x-delay": 1000, "x-deduplication-header": "same"}
        properties = Properties(headers=headers, delivery_mode=2)
        one = message(1, "k", b"a", exchange="d", properties=properties)
        peer.send(1, one, one)
        assert waiting(bench) == [b"a"]


UNBIND = make(spec.QueueUnbind, queue="q", exchange="d", routing_key="k")
DELETIONS = {
    "itself": (make(spec.ExchangeDelete, exchange="d"), False),
    "unbound": (UNBIND, True),
    "left by its last queue": (make(spec.QueueDelete, queue="other"), True),
    "left by its last exchange": (make(spec.ExchangeDelete, exchange="x"), True),
}


class TestDeletion:
    """An exchange is deleted when what it released is on the disk elsewhere.

    A full disk takes the deletion in reserved space, and the copies later.
    """

    @pytest.mark.parametrize("at_once", [1, 200], ids=["in parts", "whole"])
    @pytest.mark.parametrize("way", DELETIONS)
    def test_the_copies_come_first(
        self, bench: Bench, peer: Peer, way: str, at_once: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(removals, "BINDINGS_AT_ONCE", at_once)
        deletion, auto_delete = DELETIONS[way]
        self._declare(peer, way, auto_delete=auto_delete)
        publish(peer, b"x", 1000)
        publish(peer, b"y", 3000)
        bench.disk()
        with bench.full_log():
            bench.pass_ms(1000)
            peer.send(1, deletion)
            bench.disk_thrice()
            assert not peer.hear() and not bench.broker.services.jobs
            assert waiting(bench) == [b"y"]
            bench.pass_ms(5000)
            assert waiting(bench) == [b"y"]  # nothing more is on its way
        bench.disk_thrice()
        assert len(peer.hear()) == 1 and "d" not in bench.broker.vhosts["/"].routing
        bench.kill()
        bench.open()
        assert "d" not in bench.broker.vhosts["/"].routing
        assert got(Peer(bench)) == [b"x"]

    def _declare(self, peer: Peer, way: str, *, auto_delete: bool) -> None:
        """`d` leads to the queue `q`, and loses its last binding, or is deleted, in this way."""
        peer.declare("q")
        if "queue" in way:  # what the queue does not get goes to `q`, by the alternate exchange
            declare(peer, alternate="amq.fanout", auto_delete=auto_delete)
            bind(peer, "q", "amq.fanout")
            peer.declare("other")
            bind(peer, "other", key="other")
            return
        declare(peer, auto_delete=auto_delete)
        if "exchange" in way:
            fanout = make(spec.ExchangeDeclare, exchange="x", type="fanout", durable=True)
            peer.ask(1, fanout, spec.ExchangeDeclareOk)
            bind(peer, "q", "x")
            bind_x = make(spec.ExchangeBind, destination="x", source="d", routing_key="k")
            peer.ask(1, bind_x, spec.ExchangeBindOk)
        else:
            bind(peer, "q")

    def test_one_that_is_used_again_meanwhile_stays_and_goes_on(
        self, bench: Bench, peer: Peer
    ) -> None:
        peer.declare("q")
        declare(peer, alternate="amq.fanout")
        bind(peer, "q", "amq.fanout")
        publish(peer, b"x", 1000)
        publish(peer, b"y", 2000)
        other = Peer(bench)
        other.send(1)
        bench.disk()
        with bench.full_log():
            bench.pass_ms(1000)
            peer.send(1, make(spec.ExchangeDelete, exchange="d", if_unused=True))
            bind(other, "q")
            bench.pass_ms(2000)
            assert waiting(bench) == [b"y"]
        bench.disk_thrice()
        in_use = "PRECONDITION_FAILED - exchange 'd' in vhost '/' in use"
        assert peer.refused() == ("channel", 406, in_use)
        bench.pass_ms(100)
        assert got(other) == [b"x", b"y"] and waiting(bench) == []

    def test_it_ends_though_something_is_due_all_the_time(self, bench: Bench, q: Peer) -> None:
        publish(q, b"x", 1)
        for delay_ms in range(2, 20):
            publish(q, b"later", delay_ms)
        bench.disk()
        bench.pass_ms(1)
        q.send(1, make(spec.ExchangeDelete, exchange="d"))
        for _ in range(10):
            bench.pass_ms(1)  # the next message is due, and then the disk does one thing
            bench.disk_once()
        assert [type(said) for said in q.hear()] == [spec.ExchangeDeleteOk]
        assert got(q) == [b"x"]


class TestWhen:
    def test_in_the_order_of_their_times(self, bench: Bench, q: Peer) -> None:
        for body, value in (b"late", 3000), (b"soon", 1000), (b"now", 0), (b"soon too", 1000):
            publish(q, body, value)
        assert got(q) == [b"now"]
        bench.pass_ms(999)
        assert got(q) == []
        bench.pass_ms(1)
        assert got(q) == [b"soon", b"soon too"]
        assert waiting(bench) == [b"late"]
        bench.pass_ms(2000)
        assert got(q) == [b"late"] and waiting(bench) == []

    @pytest.mark.parametrize(
        "value",
        [0, -5, True, None, "soon", "", "-7", [5], {"a": 5}, b"50", Timestamp(5000), 0.9],
        ids=repr,
    )
    def test_not_at_all(self, bench: Bench, q: Peer, value: object) -> None:
        publish(q, b"x", value)
        assert got(q) == [b"x"] and waiting(bench) == []

    def test_without_the_header(self, bench: Bench, q: Peer) -> None:
        q.publish(1, "k", b"x", exchange="d")
        assert got(q) == [b"x"] and waiting(bench) == []

    @pytest.mark.parametrize("value", [5000, Int64(5000), 5000.7, "5000", "+5000"], ids=repr)
    def test_numbers_and_texts_that_are_one(self, bench: Bench, q: Peer, value: object) -> None:
        publish(q, b"x", value)
        bench.pass_ms(4999)
        assert got(q) == []
        bench.pass_ms(1)
        assert got(q) == [b"x"]

    def test_for_very_long(self, bench: Bench, q: Peer) -> None:
        """The plugin does not delay for more than 2**32 - 1 ms."""
        publish(q, b"years", 10 * 365 * 86_400_000)
        publish(q, b"for ever", 2**63 - 1)
        bench.pass_ms(2**32)
        assert got(q) == []
        bench.disk()
        bench.restart()
        bench.pass_ms(10 * 365 * 86_400_000 - 2**32)
        assert got(Peer(bench)) == [b"years"]
        assert waiting(bench) == [b"for ever"]

    @pytest.mark.parametrize("step_ms", [-3000, 3000])
    def test_a_step_of_the_clock_is_all_that_is_early(
        self, bench: Bench, q: Peer, step_ms: int
    ) -> None:
        publish(q, b"x", 10_000)
        bench.pass_ms(1000, wall_ms=1000 + step_ms)
        assert got(q) == []
        bench.pass_ms(8999 - step_ms)
        assert got(q) == []
        bench.pass_ms(1000)
        assert got(q) == [b"x"]


class TestWhereItGoes:
    def test_messages_of_one_key_are_routed_together(
        self, bench: Bench, q: Peer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vhost = bench.broker.vhosts["/"]
        for number in range(20):
            publish(q, b"%d" % number, 1000, message_id=f"{number}")
        q.publish(1, "other", b"nowhere", exchange="d", properties=delay(1000))
        calls: list[Sequence[str]] = []
        route = vhost.route

        def counted(exchange: str, keys: Sequence[str], *given: Any, **more: Any) -> Any:
            calls.append(keys)
            return route(exchange, keys, *given, **more)

        monkeypatch.setattr(vhost, "route", counted)
        bench.pass_ms(1000)
        assert got(q) == [b"%d" % number for number in range(20)]
        assert calls == [("k",), ("other",)]

    def test_each_by_its_own_headers(self, bench: Bench, peer: Peer) -> None:
        declare(peer, type_="headers")
        for name in ("a", "b"):
            peer.declare(name)
            bound = make(spec.QueueBind, queue=name, exchange="d", arguments={"to": name})
            peer.ask(1, bound, spec.QueueBindOk)
        for body, to in ((b"1", "a"), (b"2", "b"), (b"3", "a"), (b"4", "c")):
            properties = Properties(headers={"x-delay": 1000, "to": to}, delivery_mode=2)
            peer.publish(1, "k", body, exchange="d", properties=properties)
        bench.pass_ms(1000)
        assert (got(peer, "a"), got(peer, "b")) == ([b"1", b"3"], [b"2"])


class TestWhatComesOut:
    def test_the_header_is_turned(self, bench: Bench, q: Peer) -> None:
        q.publish(
            1,
            "k",
            b"x",
            exchange="d",
            properties=Properties(
                headers={"z": 1, "x-delay": 500, "a": LongStr(b"\xff")},
                delivery_mode=1,
                expiration="60000",
                message_id="m",
            ),
        )
        bench.pass_ms(500)
        q.send(2, make(spec.BasicGet, queue="q"))
        said = q.take()[-1]
        assert said.body == b"x" and said.properties is not None
        assert said.properties.headers == {"z": 1, "x-delay": -500, "a": b"\xff"}
        assert type(said.properties.headers["x-delay"]) in (int, Int64)
        assert (said.properties.expiration, said.properties.message_id) == ("60000", "m")
        assert said.properties.delivery_mode == 1
        assert isinstance(said.method, spec.BasicGetOk)
        assert (said.method.exchange, said.method.routing_key) == ("d", "k")

    def test_no_other_exchange_delays_it_again(self, bench: Bench, q: Peer) -> None:
        declare(q, "second")
        q.ask(
            1,
            make(spec.ExchangeBind, source="d", destination="second", routing_key="k"),
            spec.ExchangeBindOk,
        )
        q.declare("r")
        bind(q, "r", "second")
        publish(q, b"x", 500)
        bench.pass_ms(500)
        assert got(q) == [b"x"] and got(q, "r") == [b"x"]

    def test_an_expiration_counts_from_the_release(self, bench: Bench, q: Peer) -> None:
        publish(q, b"x", 5000, expiration="1000")
        bench.pass_ms(5000)
        bench.pass_ms(900)
        assert bench.broker.vhosts["/"].queues["q"].ready == 1
        bench.pass_ms(200)
        assert got(q) == []

    @pytest.mark.parametrize("type_", ["topic", "fanout", "headers", "x-consistent-hash"])
    def test_it_is_routed_by_the_other_type(self, bench: Bench, peer: Peer, type_: str) -> None:
        declare(peer, type_=type_)
        peer.declare("q")
        arguments: Table = {"x-match": "any-with-x", "x-delay": -500} if type_ == "headers" else {}
        key = {"topic": "#", "x-consistent-hash": "1"}.get(type_, "other")
        peer.ask(
            1,
            make(spec.QueueBind, queue="q", exchange="d", routing_key=key, arguments=arguments),
            spec.QueueBindOk,
        )
        publish(peer, b"x", 500)
        bench.pass_ms(500)
        assert got(peer) == [b"x"]

    def test_by_the_bindings_of_then(self, bench: Bench, q: Peer) -> None:
        publish(q, b"x", 500)
        q.declare("r")
        bind(q, "r")
        q.ask(
            1, make(spec.QueueUnbind, queue="q", exchange="d", routing_key="k"), spec.QueueUnbindOk
        )
        bench.pass_ms(500)
        assert got(q) == [] and got(q, "r") == [b"x"]

    def test_copies_go_by_their_keys(self, bench: Bench, q: Peer) -> None:
        q.declare("bcc")
        bind(q, "bcc", key="hidden")
        headers: Table = {"x-delay": 500, "BCC": ["hidden"], "CC": ["k"]}
        q.publish(1, "other", b"x", exchange="d", properties=Properties(headers=headers))
        bench.pass_ms(500)
        assert got(q) == [b"x"]
        q.send(2, make(spec.BasicGet, queue="bcc"))
        said = q.take()[-1]
        assert said.properties is not None
        assert said.properties.headers == {"x-delay": -500, "CC": ["k"]}

    def test_what_nobody_takes_goes_to_the_alternate_exchange_then(
        self, bench: Bench, peer: Peer
    ) -> None:
        declare(peer, alternate="amq.fanout")
        peer.declare("lost")
        bind(peer, "lost", "amq.fanout")
        publish(peer, b"x", 500)
        assert got(peer, "lost") == []
        bench.pass_ms(500)
        assert got(peer, "lost") == [b"x"]

    def test_what_nobody_takes_is_dropped(self, bench: Bench, peer: Peer) -> None:
        declare(peer)
        publish(peer, b"x", 500)
        bench.pass_ms(500)
        assert waiting(bench) == []
        assert bench.broker.services.stats.unrouted == 1

    def test_an_exchange_before_it(self, bench: Bench, q: Peer) -> None:
        """Queues that are bound elsewhere get the message at once."""
        q.declare("direct")
        bind(q, "direct", "amq.fanout")
        q.ask(
            1,
            make(spec.ExchangeBind, source="amq.fanout", destination="d"),
            spec.ExchangeBindOk,
        )
        publish(q, b"x", 500, exchange="amq.fanout")
        assert got(q, "direct") == [b"x"] and waiting(bench) == [b"x"]
        bench.pass_ms(500)
        assert got(q) == [b"x"] and got(q, "direct") == []

    def test_a_dead_letter_is_delayed(self, bench: Bench, q: Peer) -> None:
        arguments: Table = {"x-dead-letter-exchange": "d", "x-dead-letter-routing-key": "k"}
        q.declare("source", arguments=arguments)
        for body in b"1", b"2":
            q.publish(1, "source", body, properties=delay(500))
        q.send(3, make(spec.BasicGet, queue="source"))
        q.send(3, make(spec.BasicGet, queue="source"))
        q.send(3, spec.BasicNack(0, multiple=True, requeue=False))
        bench.settle()
        q.take()
        assert waiting(bench) == [b"1", b"2"]
        bench.pass_ms(500)
        assert got(q) == [b"1", b"2"]

    def test_dead_letters_that_must_not_be_lost(self, bench: Bench, q: Peer) -> None:
        arguments: Table = {
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": "d",
            "x-dead-letter-routing-key": "k",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        source = q.declare("source", arguments=arguments)
        q.publish(1, "source", b"1", properties=delay(500))
        bench.disk()
        q.send(3, make(spec.BasicGet, queue="source"))
        q.send(3, spec.BasicNack(0, multiple=True, requeue=False))
        bench.settle()
        bench.disk()
        q.take()
        assert source.unacked == 0 and waiting(bench) == [b"1"]
        bench.pass_ms(500)
        assert got(q) == [b"1"]


class TestPublishers:
    def test_confirmed_when_it_is_on_the_disk(self, bench: Bench, q: Peer) -> None:
        q.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
        publish(q, b"x", 500, mode=1)
        assert q.hear() == []
        bench.disk()
        assert q.hear() == [spec.BasicAck(1, False)]

    def test_mandatory_is_not_returned(self, bench: Bench, q: Peer) -> None:
        frames = message(1, "k", b"x", exchange="d", mandatory=True, properties=delay(500))
        q.send(1, frames)
        assert q.hear() == []

    def test_in_a_transaction(self, bench: Bench, q: Peer) -> None:
        q.ask(1, spec.TxSelect(), spec.TxSelectOk)
        publish(q, b"back", 500)
        q.ask(1, spec.TxRollback(), spec.TxRollbackOk)
        publish(q, b"x", 500)
        assert waiting(bench) == []
        q.send(1, spec.TxCommit())
        bench.disk()
        q.take()
        assert waiting(bench) == [b"x"]

    def test_the_exchange_goes_within_a_transaction(self, bench: Bench, q: Peer) -> None:
        q.ask(2, spec.TxSelect(), spec.TxSelectOk)
        q.publish(2, "k", b"x", exchange="d", properties=delay(500))
        q.ask(1, make(spec.ExchangeDelete, exchange="d"), spec.ExchangeDeleteOk)
        q.send(2, spec.TxCommit())
        bench.disk()
        assert q.hear() == [spec.TxCommitOk()]
        bench.pass_ms(1000)
        assert got(q) == []


class TestAcrossStarts:
    def test_what_waits_is_released_after_it(self, bench: Bench, q: Peer) -> None:
        for body, value in (b"1", 2000), (b"2", 1000), (b"3", 60_000):
            publish(q, body, value, mode=1)
        bench.disk()
        bench.kill()
        bench.open()
        assert waiting(bench) == [b"1", b"2", b"3"]
        bench.kill()
        bench.now_ms += 2000  # it was due while the broker was down
        bench.open()
        bench.settle()
        assert got(Peer(bench)) == [b"2", b"1"]
        assert waiting(bench) == [b"3"]
        bench.pass_ms(60_000)
        bench.disk()
        bench.restart()
        assert waiting(bench) == []
        assert got(Peer(bench)) == []  # neither copy was asked to last

    def test_a_kill_between_the_copy_and_its_settlement(self, bench: Bench, q: Peer) -> None:
        publish(q, b"x", 1000)
        bench.disk()
        bench.pass_ms(1000)  # the copy is not on the disk
        assert waiting(bench) == []
        bench.kill()
        bench.open()
        peer = Peer(bench)
        bench.settle()
        bench.disk()
        assert got(peer) == [b"x"]
        bench.kill()
        bench.open()
        bench.settle()
        assert waiting(bench) == []

    def test_an_exchange_that_is_not_durable(self, bench: Bench, peer: Peer) -> None:
        declare(peer, durable=False)
        peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
        publish(peer, b"x", 1000)
        assert peer.hear() == [spec.BasicAck(1, False)]
        assert waiting(bench) == [b"x"]
        bench.disk()
        bench.restart()
        declare(Peer(bench), durable=False)
        assert waiting(bench) == []

    def test_a_deleted_exchange_takes_all_with_it(self, bench: Bench, q: Peer) -> None:
        publish(q, b"x", 1000)
        bench.disk()
        q.ask(1, make(spec.ExchangeDelete, exchange="d"), spec.ExchangeDeleteOk)
        assert list(bench.broker.definitions.hidden_lanes()) == []
        declare(q)
        bind(q, "q")
        bench.pass_ms(1000)
        assert got(q) == [] and waiting(bench) == []
        publish(q, b"new", 1000)
        bench.disk()
        bench.restart()
        bench.pass_ms(1000)
        assert got(Peer(bench)) == [b"new"]

    def test_an_auto_delete_exchange(self, bench: Bench, peer: Peer) -> None:
        declare(peer)
        peer.declare("q", auto_delete=True)
        bind(peer, "q")
        publish(peer, b"x", 1000)
        auto = make(
            spec.ExchangeDeclare,
            exchange="auto",
            type="x-delayed-message",
            durable=True,
            auto_delete=True,
            arguments={"x-delayed-type": "fanout"},
        )
        peer.ask(1, auto, spec.ExchangeDeclareOk)
        bind(peer, "q", "auto")
        publish(peer, b"x", 1000, exchange="auto")
        assert len(list(bench.broker.definitions.hidden_lanes())) == 2
        peer.ask(1, make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk)
        assert [lane.name for lane in bench.broker.definitions.hidden_lanes()] == ["d"]
        bench.pass_ms(1000)
        assert waiting(bench) == []


class TestOperators:
    def numbers(self, bench: Bench) -> dict[bytes, int]:
        vhost = bench.broker.vhosts["/"]
        found = bench.broker.operations.delayed_messages(vhost, "d")
        return {each.body: each.number for each in found}

    def test_listing(self, bench: Bench, q: Peer) -> None:
        for number in range(100):
            publish(q, b"%d" % number, 1000 + number)
        vhost, operations = bench.broker.vhosts["/"], bench.broker.operations
        found = list(operations.delayed_messages(vhost, "d"))
        assert [each.number for each in found] == list(range(100))
        assert [each.due_ms for each in found] == [bench.now_ms + 1000 + n for n in range(100)]
        assert {each.came_ms for each in found} == {bench.now_ms}
        assert found[7].envelope.routing_key == "k" and found[7].body == b"7"
        rest = operations.delayed_messages(vhost, "d", 98)
        assert [each.number for each in rest] == [98, 99]

    def test_cancelling(self, bench: Bench, q: Peer) -> None:
        for body in b"1", b"2", b"3":
            publish(q, body, 1000)
        bench.disk()
        vhost, operations = bench.broker.vhosts["/"], bench.broker.operations
        number = self.numbers(bench)[b"2"]
        outcome = operations.cancel_delayed(vhost, "d", number)
        assert not outcome.done
        bench.disk()
        outcome.result()
        with pytest.raises(AMQPError, match=f"no delayed message {number} at exchange 'd'"):
            operations.cancel_delayed(vhost, "d", number)
        bench.kill()
        bench.open()
        bench.pass_ms(1000)
        assert got(Peer(bench)) == [b"1", b"3"]

    @pytest.mark.parametrize("killed", [False, True])
    def test_rescheduling(self, bench: Bench, q: Peer, killed: bool) -> None:
        for body in b"1", b"2", b"3":
            publish(q, body, 10_000)
        bench.disk()
        vhost, operations = bench.broker.vhosts["/"], bench.broker.operations
        numbers = self.numbers(bench)
        later = operations.reschedule_delayed(vhost, "d", numbers[b"1"], bench.now_ms + 20_000)
        sooner = operations.reschedule_delayed(vhost, "d", numbers[b"3"], 0)
        bench.pass_ms(0)
        assert got(q) == [b"3"]
        bench.disk()
        again = self.numbers(bench)
        assert later.result() == again[b"1"] != numbers[b"1"]
        assert sooner.result() not in again.values()
        if killed:
            bench.kill()
            bench.open()
        bench.pass_ms(10_000)
        assert got(Peer(bench)) == [b"2"]
        bench.pass_ms(10_000)
        assert got(Peer(bench)) == [b"1"]

    def test_purging(self, bench: Bench, q: Peer) -> None:
        for number in range(50):
            publish(q, b"x", 1000 + number)
        vhost, operations = bench.broker.vhosts["/"], bench.broker.operations
        assert operations.purge_delayed(vhost, "d").result() == 50
        bench.pass_ms(2000)
        assert got(q) == []
        assert operations.purge_delayed(vhost, "amq.fanout").result() == 0

    @pytest.mark.parametrize("number", [-1, 0, 5])
    def test_what_is_not_there(self, bench: Bench, q: Peer, number: int) -> None:
        vhost, operations = bench.broker.vhosts["/"], bench.broker.operations
        assert waiting(bench) == []
        for ask in (
            lambda: operations.cancel_delayed(vhost, "d", number),
            lambda: operations.reschedule_delayed(vhost, "d", number, 1),
            lambda: operations.cancel_delayed(vhost, "none", number),
        ):
            with pytest.raises(AMQPError, match="404|no "):
                ask()


class TestABusyOrFaultyDisk:
    @pytest.fixture
    def delayed(self, bench: Bench, q: Peer) -> Iterator[Delayed]:
        for number in range(100):
            publish(q, b"%d" % number, 1000 - number)
        found = bench.broker.vhosts["/"].delayed.find("d")
        assert found is not None
        yield found

    def test_while_the_disk_is_behind_some_is_released_all_the_same(
        self, bench: Bench, q: Peer, delayed: Delayed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A sync that takes long makes nothing late, as long as it is not too much for memory."""
        monkeypatch.setattr(due, "DUE_AT_ONCE", 4)
        bench.broker.services.dues._at_once = 4
        with monkeypatch.context() as patch:
            patch.setattr(type(bench.store), "congested", property(lambda store: True))
            patch.setattr(delayed_module, "AHEAD_BYTES_MAX", 20 * 201)
            patch.setattr(due, "DUE_AT_ONCE_MAX", 4)
            for _ in range(2):
                bench.pass_ms(1000)
                assert 20 <= 100 - delayed.count < 24 + 4
            released = 100 - delayed.count
            patch.setattr(type(bench.store), "congested", property(lambda store: False))
            assert not bench.broker.services.ahead.spent
            patch.setattr(type(bench.store), "congested", property(lambda store: True))
            bench.pass_ms(100)  # it had caught up: as much again
            assert released + 20 <= 100 - delayed.count < released + 20 + 32
        bench.pass_ms(100)
        assert sorted(map(int, got(q))) == list(range(100))
        assert delayed.count == 0

    def test_while_the_disk_is_too_far_behind_it_waits(
        self, bench: Bench, q: Peer, delayed: Delayed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(delayed_module, "AHEAD_BYTES_MAX", 0)
            patch.setattr(type(bench.store), "congested", property(lambda store: True))
            bench.pass_ms(1000)
            bench.pass_ms(1000)
            assert got(q) == [] and delayed.count == 100
            bench.broker.operations.cancel_delayed(bench.broker.vhosts["/"], "d", 50)
        bench.pass_ms(100)
        assert got(q) == [b"%d" % number for number in range(100) if number != 50]
        assert delayed.count == 0

    def test_large_ones_are_not_released_all_at_once(
        self, bench: Bench, q: Peer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many small ones are released at a time; and they keep the order of their times."""
        done: list[int] = []
        hand_over, due = Delayed._hand_over, Delayed.due

        def counted(self: Delayed, taken: Taken) -> None:
            done[-1] += sum(taken.sizes)
            hand_over(self, taken)

        def told(self: Delayed, lane_id: int, qseq: int, count: int) -> int:
            done.append(0)
            return due(self, lane_id, qseq, count)

        monkeypatch.setattr(Delayed, "_hand_over", counted)
        monkeypatch.setattr(Delayed, "due", told)
        body = b"x" * 10_000
        order = [*range(40, 80), *range(40)]
        for number in order:
            publish(q, b"%d" % number + body, 1000 + number)
            bench.disk()
        bench.broker.services.dues._at_once = 80
        bench.pass_ms(2000)
        bench.disk()
        assert sum(done) > 3 * TAKE_BYTES_MAX
        assert max(done) < TAKE_BYTES_MAX + 2 * len(body)
        assert [int(each.rstrip(b"x")) for each in got(q)] == list(range(80))

    def test_large_ones_do_not_overstep_what_may_be_ahead_of_the_disk(
        self, bench: Bench, q: Peer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        body = b"x" * 10_000
        for _ in range(100):
            publish(q, body, 1000)
        bench.disk()
        delayed = bench.broker.vhosts["/"].delayed.find("d")
        assert delayed is not None
        bench.broker.services.dues._at_once = 100
        with monkeypatch.context() as patch:
            patch.setattr(type(bench.store), "congested", property(lambda store: True))
            patch.setattr(delayed_module, "AHEAD_BYTES_MAX", TAKE_BYTES_MAX)
            for _ in range(3):
                bench.pass_ms(1000)
                released = (100 - delayed.count) * len(body)
                assert TAKE_BYTES_MAX - len(body) < released < TAKE_BYTES_MAX + 2 * len(body)
        bench.pass_ms(100)
        for _ in range(10):
            bench.disk()
        assert delayed.count == 0 and got(q) == [body] * 100

    def test_without_descriptors_it_is_tried_again(
        self, bench: Bench, q: Peer, delayed: Delayed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: object, **named: object) -> None:
            raise OutOfDescriptors("none")

        with monkeypatch.context() as patch:
            patch.setattr(Backlog, "read_out", fail)
            bench.pass_ms(1000)
            assert got(q) == [] and delayed.count == 100
            bench.pass_ms(100)  # after a pause, and without being busy until then
            bench.pass_ms(100)
            assert got(q) == [] and delayed.count == 100
        bench.pass_ms(100)
        bench.pass_ms(100)
        assert len(got(q)) == 100

    def test_a_damaged_message_keeps_no_other_one(
        self,
        bench: Bench,
        q: Peer,
        delayed: Delayed,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        read_out = Backlog.read_out

        def fail(backlog: Any, qseq: int, count: int, **more: Any) -> Any:
            if qseq <= 7 < qseq + count:
                raise CorruptLog("damaged")
            return read_out(backlog, qseq, count, **more)

        monkeypatch.setattr(Backlog, "read_out", fail)
        bench.pass_ms(1000)
        assert sorted(got(q)) == sorted(b"%d" % number for number in range(100) if number != 7)
        assert "cannot release from delayed messages of exchange 'd'" in caplog.text


REFUSED = [
    (
        {},
        "PRECONDITION_FAILED - Invalid argument, 'x-delayed-type' must be an existing exchange type",
    ),
    (
        {"x-delayed-type": 5},
        "PRECONDITION_FAILED - Invalid argument, 'x-delayed-type' must be an existing exchange type",
    ),
    (
        {"x-delayed-type": "x-delayed-message"},
        (
            "PRECONDITION_FAILED - Invalid argument, 'x-delayed-message' can't be used for "
            "'x-delayed-type'"
        ),
    ),
    ({"x-delayed-type": "nix"}, "PRECONDITION_FAILED - unknown exchange type 'nix'"),
]


@pytest.mark.parametrize(("arguments", "text"), REFUSED)
def test_refused(bench: Bench, peer: Peer, arguments: Table, text: str) -> None:
    declare = make(
        spec.ExchangeDeclare, exchange="d", type="x-delayed-message", arguments=arguments
    )
    peer.send(1, declare)
    assert peer.refused() == ("channel", 406, text)


def test_messages_are_released_more_at_a_time_while_that_is_quick(
    bench: Bench, q: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are read and handed on together cost less; a slow piece makes the next one small."""
    told: list[int] = []
    due, took_s = Delayed.due, [0.0]
    clock_s = [0.0]

    def counted(self: Delayed, lane_id: int, qseq: int, count: int) -> int:
        told.append(count)
        clock_s[0] += took_s[0]
        return due(self, lane_id, qseq, count)

    monkeypatch.setattr(Delayed, "due", counted)
    monkeypatch.setattr(bench.broker.services.jobs, "clock_s", lambda: clock_s[0])
    bodies = [b"%d" % number for number in range(400)]
    q.send(1, *(frames(body, 1000) for body in bodies))
    bench.disk()
    bench.pass_ms(1000)
    assert told == [32, 64, 128, 128, 48]
    q.send(1, *(frames(body, 1000) for body in bodies[:300]))
    bench.disk()
    told.clear()
    took_s[0] = 0.001
    bench.pass_ms(1000)
    assert told == [128, *[32] * 5, 12]
    bench.disk()
    assert got(q) == bodies + bodies[:300]
