"""What is declared durable is there, as declared, after a restart."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.values import Table, decode_table, encode_table
from qlog.storage.errors import DirectoryUnreadable
from tests.server.broker.support import Bench, Peer, make

# Every type that a field table can carry, by its letter, as octets: values keep theirs.
EVERY_TYPE = b"".join(
    bytes([1]) + letter + letter + value
    for letter, value in [
        (b"t", b"\1"),
        (b"b", b"\xff"),
        (b"B", b"\xff"),
        (b"s", b"\xff\xfe"),
        (b"u", b"\xff\xfe"),
        (b"I", b"\xff\xff\xff\xfe"),
        (b"l", b"\xff" * 7 + b"\xfe"),
        (b"f", b"\x3f\xc0\0\0"),
        (b"d", b"\x3f\xf8" + bytes(6)),
        (b"D", b"\2\0\0\0\5"),
        (b"S", b"\0\0\0\2hi"),
        (b"x", b"\0\0\0\2\xff\0"),
        (b"T", bytes(4) + b"\x5f\0\0\0"),
        (b"A", b"\0\0\0\3t\1V"),
        (b"F", b"\0\0\0\4\1at\1"),
        (b"V", b""),
    ]
)
ARGUMENTS = len(EVERY_TYPE).to_bytes(4, "big") + EVERY_TYPE


def test_arguments_of_every_type_survive(bench: Bench, peer: Peer) -> None:
    arguments = decode_table(ARGUMENTS)[0]
    peer.declare("q", arguments=arguments)
    exchange = make(
        spec.ExchangeDeclare,
        exchange="e",
        type="topic",
        durable=True,
        internal=True,
        auto_delete=True,
        arguments=arguments,
    )
    peer.ask(1, exchange, spec.ExchangeDeclareOk)
    bind = make(spec.QueueBind, queue="q", exchange="e", routing_key="a.*.#", arguments=arguments)
    peer.ask(1, bind, spec.QueueBindOk)
    bench.restart()
    vhost = bench.broker.vhosts["/"]
    assert encode_table(vhost.queues["q"].declared.arguments.table) == ARGUMENTS
    found = vhost.exchange("e")
    assert (found.type, found.durable, found.internal, found.auto_delete) == (
        "topic",
        True,
        True,
        True,
    )
    assert encode_table(dict(found.arguments)) == ARGUMENTS  # type: ignore[arg-type]
    (binding,) = vhost.routing.bindings_from("e")
    assert (binding.destination, binding.routing_key) == ("q", "a.*.#")
    assert encode_table(dict(binding.arguments)) == ARGUMENTS  # type: ignore[arg-type]
    again = Peer(bench)
    again.declare("q", arguments=arguments)
    again.ask(1, exchange, spec.ExchangeDeclareOk)
    unbind = make(
        spec.QueueUnbind, queue="q", exchange="e", routing_key="a.*.#", arguments=arguments
    )
    again.ask(1, unbind, spec.QueueUnbindOk)
    bench.restart()
    assert vhost.routing.exchange("e") is None  # auto-delete
    assert bench.broker.vhosts["/"].routing.exchange("e") is None


def test_transient_definitions_are_forgotten(bench: Bench, peer: Peer) -> None:
    peer.declare("durable")
    peer.declare("transient", durable=False)
    peer.declare("exclusive", exclusive=True)
    for queue in ("durable", "transient"):
        bind = make(spec.QueueBind, queue=queue, exchange="amq.topic", routing_key=queue)
        peer.ask(1, bind, spec.QueueBindOk)
    fleeting = make(spec.ExchangeDeclare, exchange="fleeting", type="fanout")
    peer.ask(1, fleeting, spec.ExchangeDeclareOk)
    peer.ask(1, make(spec.QueueBind, queue="durable", exchange="fleeting"), spec.QueueBindOk)
    bench.restart()
    vhost = bench.broker.vhosts["/"]
    assert list(vhost.queues) == ["durable"]
    assert vhost.routing.exchange("fleeting") is None
    assert [b.routing_key for b in vhost.routing.bindings_from("amq.topic")] == ["durable"]


def test_deleted_definitions_do_not_come_back(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    declare = make(spec.ExchangeDeclare, exchange="e", type="direct", durable=True)
    peer.ask(1, declare, spec.ExchangeDeclareOk)
    for name in ("q", "kept"):
        peer.declare(name)
        peer.ask(1, make(spec.QueueBind, queue=name, exchange="e"), spec.QueueBindOk)
    peer.publish(1, "q", b"gone")
    peer.ask(1, make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk)
    peer.ask(1, make(spec.ExchangeDelete, exchange="e"), spec.ExchangeDeleteOk)
    bench.restart()
    vhost = bench.broker.vhosts["/"]
    assert list(vhost.queues) == ["kept"] and vhost.routing.exchange("e") is None
    assert {b.source for b in vhost.routing.bindings()} == {""}
    again = Peer(bench)
    assert again.declare("q").ready == 0


def test_longest_names_survive(bench: Bench, peer: Peer) -> None:
    name, key = "ü" * 127, "k" * 255
    arguments: Table = {"x" * 100: "y" * 1000, "at": datetime.datetime.now(datetime.UTC)}
    exchange = make(spec.ExchangeDeclare, exchange=name, type="direct", durable=True)
    peer.ask(1, exchange, spec.ExchangeDeclareOk)
    peer.declare(name, arguments={"name": name})
    for at in range(2):
        bind = make(
            spec.QueueBind,
            queue=name,
            exchange=name,
            routing_key=key,
            arguments={**arguments, "z": at},
        )
        peer.ask(1, bind, spec.QueueBindOk)
    bench.restart()
    vhost = bench.broker.vhosts["/"]
    assert len(list(vhost.routing.bindings_from(name))) == 2
    Peer(bench).publish(1, key, b"a", exchange=name)
    assert vhost.queues[name].ready == 1


def test_first_start_makes_the_default_user_once(bench: Bench) -> None:
    user = bench.broker.users["guest"]
    bench.restart()
    assert bench.broker.users["guest"].password_hash == user.password_hash
    assert bench.broker.users["guest"].permissions == {"/": (".*", ".*", ".*")}


def test_what_could_not_be_saved_is_not_there(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk refuses the definition; the next try is told the truth, and lasts."""
    peer.declare("q")
    declare = make(spec.ExchangeDeclare, exchange="e", type="direct", durable=True)
    bind = make(spec.QueueBind, queue="q", exchange="e", routing_key="k")
    for name, method, reply in (
        ("save_exchange", declare, spec.ExchangeDeclareOk),
        ("save_binding", bind, spec.QueueBindOk),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(bench.broker.definitions, name, _fail)
            failing = Peer(bench)
            failing.send(1, method)
            (close,) = failing.hear()
            assert isinstance(close, spec.ConnectionClose) and close.reply_code == 541
        Peer(bench).ask(1, method, reply)
    bench.restart()
    routing = bench.broker.vhosts["/"].routing
    assert routing.route("e", ["k"], dict).queues == ("q",)


def test_what_could_not_be_deleted_is_still_there(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk refuses the deletion; everything works as before, and lasts."""
    peer.declare("q")
    peer.declare("a", auto_delete=True)
    peer.ask(
        1,
        make(spec.ExchangeDeclare, exchange="e", type="direct", durable=True),
        spec.ExchangeDeclareOk,
    )
    auto_delete = make(
        spec.ExchangeDeclare, exchange="x", type="fanout", durable=True, auto_delete=True
    )
    peer.ask(1, auto_delete, spec.ExchangeDeclareOk)
    for exchange in ("e", "x"):
        bind = make(spec.QueueBind, queue="q", exchange=exchange, routing_key="k")
        peer.ask(1, bind, spec.QueueBindOk)
    peer.publish(1, "k", b"before", exchange="e")
    bench.disk()
    consuming = Peer(bench)
    consuming.ask(1, make(spec.BasicConsume, queue="a", consumer_tag="c"), spec.BasicConsumeOk)
    with monkeypatch.context() as patch:
        patch.setattr(bench.broker.definitions, "transaction", _failing_commit(bench))
        for method in (
            make(spec.QueueDelete, queue="q"),
            make(spec.ExchangeDelete, exchange="e"),
            make(spec.QueueUnbind, queue="q", exchange="x", routing_key="k"),
        ):
            failing = Peer(bench)
            failing.send(1, method)
            (close,) = failing.hear()
            assert isinstance(close, spec.ConnectionClose) and close.reply_code == 541
        consuming.client.lost()  # the last consumer of an auto-delete queue
    for restarted in (False, True):
        if restarted:
            bench.restart()
        vhost = bench.broker.vhosts["/"]
        for exchange in ("e", "x"):
            assert vhost.routing.route(exchange, ["k"], dict).queues == ("q",)
        assert vhost.queues["q"].ready == 1 and not vhost.queues["q"].deleted
        assert not vhost.queues["a"].takers
    peer = Peer(bench)
    peer.ask(1, make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk)
    bench.restart()
    assert "q" not in bench.broker.vhosts["/"].queues
    assert bench.broker.vhosts["/"].routing.exchange("x") is None


def test_exclusive_queue_goes_with_its_client_whatever_the_disk_says(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.declare("mine", durable=False, exclusive=True)
    auto_delete = make(
        spec.ExchangeDeclare, exchange="x", type="fanout", durable=True, auto_delete=True
    )
    peer.ask(1, auto_delete, spec.ExchangeDeclareOk)
    peer.ask(1, make(spec.QueueBind, queue="mine", exchange="x"), spec.QueueBindOk)
    monkeypatch.setattr(bench.broker.definitions, "transaction", _failing_commit(bench))
    peer.client.lost()
    vhost = bench.broker.vhosts["/"]
    assert "mine" not in vhost.queues and vhost.routing.exchange("x") is None


def _failing_commit(bench: Bench) -> Callable[[], AbstractContextManager[None]]:
    transaction = bench.broker.definitions.transaction

    @contextmanager
    def failing() -> Iterator[None]:
        with transaction():
            yield
            raise DirectoryUnreadable("the catalog cannot be written: no space")

    return failing


def _fail(*_: object) -> None:
    raise DirectoryUnreadable("the catalog cannot be written: no space")
