"""What is declared durable is there, as declared, after a restart."""

from __future__ import annotations

import datetime
import errno
from dataclasses import replace

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.spec import Method
from qlog.server.amqp.values import Table, decode_table, encode_table
from qlog.storage.journal import Defined
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


def test_a_consistent_hash_is_the_same_after_a_restart(bench: Bench, peer: Peer) -> None:
    """Also with the gap that a queue left, and with a queue that is bound twice."""
    declare = make(
        spec.ExchangeDeclare, exchange="e", type="x-consistent-hash", durable=True, arguments={}
    )
    peer.ask(1, declare, spec.ExchangeDeclareOk)
    for name, weight in (("z", "2"), ("gone", "3"), ("a", "1"), ("m", "9"), ("m", "1")):
        peer.declare(name)
        bind = make(spec.QueueBind, queue=name, exchange="e", routing_key=weight)
        peer.ask(1, bind, spec.QueueBindOk)
    peer.ask(1, make(spec.QueueDelete, queue="gone"), spec.QueueDeleteOk)

    def ways() -> list[tuple[str, ...]]:
        routing = bench.broker.vhosts["/"].routing
        envelopes = [Envelope.pack("e", f"key {number}", b"\0\0", 0) for number in range(200)]
        return [routing.route("e", [each.routing_key], each).queues for each in envelopes]

    before = ways()
    assert set(before) == {("z",), ("a",), ("m",)}
    bench.restart()
    assert ways() == before
    bench.kill()
    bench.open()
    assert ways() == before


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


def defined(bench: Bench) -> list[Defined]:
    """All definitions but storage's own."""
    return sorted(record for record in bench.store.catalog.records() if record.kind != "storage")


@pytest.mark.parametrize(
    "method, reply",
    [
        (make(spec.ExchangeDeclare, exchange="new", type="direct"), spec.ExchangeDeclareOk),
        (make(spec.ExchangeDelete, exchange="e"), spec.ExchangeDeleteOk),
        (make(spec.ExchangeBind, source="e", destination="e2"), spec.ExchangeBindOk),
        (make(spec.QueueDeclare, queue="new"), spec.QueueDeclareOk),
        (make(spec.QueueBind, queue="q", exchange="e"), spec.QueueBindOk),
        (make(spec.QueueUnbind, queue="q", exchange="e", routing_key="k"), spec.QueueUnbindOk),
        (make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_definition_is_durable_before_its_reply(
    bench: Bench, peer: Peer, method: Method, reply: type[Method]
) -> None:
    """And what the channel sends behind it waits, while others go on."""
    peer.declare("q")
    for exchange in ("e", "e2"):
        declare = make(spec.ExchangeDeclare, exchange=exchange, type="direct", durable=True)
        peer.ask(1, declare, spec.ExchangeDeclareOk)
    bind = make(spec.QueueBind, queue="q", exchange="e", routing_key="k")
    peer.ask(1, bind, spec.QueueBindOk)
    if isinstance(method, spec.ExchangeDeclare | spec.QueueDeclare):
        method = replace(method, durable=True)
    other = Peer(bench)
    peer.send(1, method, make(spec.BasicQos, prefetch_count=1))
    assert peer.hear() == []
    other.ask(1, make(spec.BasicQos, prefetch_count=1), spec.BasicQosOk)
    before = defined(bench)
    bench.disk()
    done, after = peer.hear()
    assert isinstance(done, reply) and isinstance(after, spec.BasicQosOk)
    bench.kill()
    bench.open()
    assert defined(bench) == before


@pytest.mark.parametrize(
    "change, question, answer",
    [
        (
            make(spec.QueueDeclare, queue="new", durable=True),
            make(spec.QueueDeclare, queue="new", passive=True),
            spec.QueueDeclareOk,
        ),
        (
            make(spec.ExchangeDeclare, exchange="new", type="direct", durable=True),
            make(spec.ExchangeDeclare, exchange="new", passive=True),
            spec.ExchangeDeclareOk,
        ),
        (
            make(spec.QueueDelete, queue="q"),
            make(spec.QueueDelete, queue="q"),
            spec.QueueDeleteOk,
        ),
        (
            make(spec.ExchangeDelete, exchange="e"),
            make(spec.ExchangeDelete, exchange="e"),
            spec.ExchangeDeleteOk,
        ),
    ],
    ids=["queue passive", "exchange passive", "queue gone", "exchange gone"],
)
def test_who_asks_for_what_another_has_changed_waits_for_the_disk_too(
    bench: Bench, peer: Peer, change: Method, question: Method, answer: type[Method]
) -> None:
    """After a crash the answer would not be true."""
    peer.declare("q")
    declare = make(spec.ExchangeDeclare, exchange="e", type="direct", durable=True)
    peer.ask(1, declare, spec.ExchangeDeclareOk)
    other = Peer(bench)
    other.send(1)
    peer.send(1, change)
    other.send(1, question)
    assert peer.hear() == other.hear() == []
    bench.disk()
    assert len(peer.hear()) == 1
    (heard,) = other.hear()
    assert isinstance(heard, answer)


def test_what_is_not_durable_is_not_waited_for(bench: Bench, peer: Peer) -> None:
    peer.send(1, make(spec.QueueDeclare, queue="t"), make(spec.QueueDelete, queue="t"))
    declared, deleted = peer.hear()
    assert isinstance(declared, spec.QueueDeclareOk) and isinstance(deleted, spec.QueueDeleteOk)


def test_a_message_in_a_new_queue_is_not_confirmed_before_the_queue_is_durable(
    bench: Bench, peer: Peer
) -> None:
    """Who did not declare it does not wait for it either, and must not be told too early."""
    publisher = Peer(bench)
    publisher.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    peer.send(1, make(spec.QueueDeclare, queue="q", durable=True))
    publisher.publish(1, "q", b"body")
    bench.faulty.fail = lambda operation: (
        OSError(errno.ENOSPC, "No space left on device") if operation == "write" else None
    )
    bench.disk()
    assert publisher.hear() == [] and peer.hear() == []


def test_a_definition_on_a_full_disk_waits_for_space(bench: Bench, peer: Peer) -> None:
    bench.faulty.fail = lambda operation: (
        OSError(errno.ENOSPC, "No space left on device") if operation == "write" else None
    )
    peer.send(1, make(spec.QueueDeclare, queue="q", durable=True))
    bench.disk()
    assert peer.hear() == []
    bench.faulty.fail = lambda operation: None
    bench.now_s += 1
    bench.disk()
    (declared,) = peer.hear()
    assert isinstance(declared, spec.QueueDeclareOk)
    bench.kill()
    bench.open()
    assert "q" in bench.broker.vhosts["/"].queues
