"""The door for operators: the same rules as clients meet, and listings that stand changes."""

from __future__ import annotations

from typing import TypeVar

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.errors import AMQPError
from qlog.server.broker.operations import page
from qlog.server.broker.outcome import Outcome, all_of
from tests.server.broker.support import Bench, Peer, make

Known = TypeVar("Known")


def known(bench: Bench, outcome: Outcome[Known]) -> Known:
    """What was asked came to, when the disk has it."""
    bench.disk()
    return outcome.result()


def declare(bench: Bench, name: str, *, durable: bool = True) -> None:
    operations = bench.broker.operations
    outcome = operations.declare_queue(
        operations.vhost("/"),
        None,
        name,
        durable=durable,
        exclusive=False,
        auto_delete=False,
        arguments={},
    )
    assert known(bench, outcome).name == name


def test_operators_declare_bind_purge_and_delete(bench: Bench, peer: Peer) -> None:
    operations = bench.broker.operations
    vhost = operations.vhost("/")
    declare(bench, "q")
    exchange = operations.declare_exchange(
        vhost, "e", "fanout", durable=True, auto_delete=False, internal=False, arguments={}
    )
    known(bench, exchange)
    known(bench, operations.bind(vhost, None, "e", "queue", "q", "", {}))
    peer.publish(1, "", b"a", b"b", exchange="e")
    assert known(bench, operations.purge_queue(vhost, None, "q")) == 2
    known(bench, operations.unbind(vhost, None, "e", "queue", "q", "", {}))
    known(bench, operations.delete_exchange(vhost, "e", if_unused=True))
    outcome = operations.delete_queue(vhost, None, "q", if_unused=True, if_empty=True)
    assert known(bench, outcome) == 0
    assert operations.delete_queue(vhost, None, "q", if_unused=False, if_empty=False).done
    bench.restart()
    assert not bench.broker.vhosts["/"].queues


def test_operators_are_refused_as_clients_are(bench: Bench, peer: Peer) -> None:
    operations = bench.broker.operations
    vhost = operations.vhost("/")
    peer.declare("mine", exclusive=True, durable=False)
    peer.ask(1, make(spec.QueueBind, queue="mine", exchange="amq.topic"), spec.QueueBindOk)
    peer.declare("full")
    peer.publish(1, "full", b"a")
    for code, call in (
        (404, lambda: operations.vhost("nowhere")),
        (404, lambda: operations.purge_queue(vhost, None, "no")),
        (405, lambda: operations.purge_queue(vhost, None, "mine")),
        (405, lambda: operations.bind(vhost, None, "amq.topic", "queue", "mine", "", {})),
        (405, lambda: operations.unbind(vhost, None, "amq.topic", "queue", "mine", "", {})),
        (403, lambda: operations.bind(vhost, None, "", "queue", "full", "", {})),
        (403, lambda: operations.delete_exchange(vhost, "amq.topic", if_unused=False)),
        (406, lambda: operations.delete_queue(vhost, None, "full", if_unused=False, if_empty=True)),
    ):
        with pytest.raises(AMQPError) as refused:
            call()
        assert refused.value.code == code
    assert bench.broker.vhosts["/"].queues["full"].ready == 1


def test_listings_stand_changes(bench: Bench, peer: Peer) -> None:
    operations = bench.broker.operations
    vhost = operations.vhost("/")
    for number in range(10):
        declare(bench, f"q{number}", durable=False)
    queues = operations.queues(vhost)
    seen = [next(queues).name, next(queues).name]
    for name in ("q0", "q2", "q9"):
        operations.delete_queue(vhost, None, name, if_unused=False, if_empty=False).result()
    declare(bench, "new", durable=False)
    seen += [queue.name for queue in queues]
    assert seen == ["q0", "q1", "q3", "q4", "q5", "q6", "q7", "q8"]
    assert [queue.name for queue in page(operations.queues(vhost), 4, 3)] == ["q6", "q7", "q8"]
    assert [queue.name for queue in page(operations.queues(vhost), 7, 3)] == ["new"]
    assert [vhost.name for vhost in operations.vhosts()] == ["/"]
    assert "amq.topic" in [exchange.name for exchange in operations.exchanges(vhost)]
    assert {binding.destination for binding in operations.bindings(vhost)} == set(vhost.queues)


def test_operator_throws_a_client_out(bench: Bench, peer: Peer) -> None:
    operations = bench.broker.operations
    (client,) = operations.connections()
    operations.close_connection(client, "maintenance")
    assert peer.refused() == ("connection", 320, "CONNECTION_FORCED - maintenance")


def test_who_consumes_from_a_deleted_queue_is_told(bench: Bench, peer: Peer) -> None:
    operations = bench.broker.operations
    peer.declare("q")
    peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag="c"))
    peer.take()
    vhost = operations.vhost("/")
    known(bench, operations.delete_queue(vhost, None, "q", if_unused=False, if_empty=False))
    assert peer.hear() == [spec.BasicCancel("c", True)]


# --- outcomes


def test_outcome_is_told_once_whenever_it_is_asked() -> None:
    outcome: Outcome[int] = Outcome()
    told: list[int] = []
    outcome.then(lambda known: told.append(known.result()))
    assert not outcome.done and told == []
    outcome.set(7)
    outcome.then(lambda known: told.append(known.result() + 1))
    assert told == [7, 8] and Outcome.of(3).result() == 3


def test_an_error_that_nobody_asked_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    heard: Outcome[int] = Outcome()
    heard.fail(RuntimeError("heard"))
    with pytest.raises(RuntimeError, match="heard"):
        heard.result()
    taken_over: Outcome[int] = Outcome()
    taken_over.follow(heard)
    del heard
    assert not caplog.records
    del taken_over  # it has the error too, and nobody asked it
    (record,) = caplog.records
    assert record.exc_info is not None and str(record.exc_info[1]) == "heard"


def test_all_of_several_waits_for_each_and_keeps_an_error() -> None:
    first: Outcome[int] = Outcome()
    second: Outcome[None] = Outcome()
    together = all_of([first, Outcome.of("now"), second])
    first.fail(ValueError("no"))
    assert not together.done
    second.set(None)
    with pytest.raises(ValueError, match="no"):
        together.result()
    assert all_of([]).done


# --- who waits for the disk


def test_tickets_are_answered_when_the_store_has_served_them(bench: Bench, peer: Peer) -> None:
    durability, store = bench.broker.services.durability, bench.store
    ticket = store.request_sync()
    told: list[str] = []
    durability.reach(ticket).then(lambda _: told.append("first"))
    durability.sync().then(lambda _: told.append("second"))
    bench.broker.progress()
    assert told == []
    bench.disk()
    assert told == ["first", "second"]
    assert durability.reach(ticket).done


def test_to_list_an_exchange_begins_no_count(bench: Bench) -> None:
    """What was deleted while it was listed would be counted, and sampled, for ever."""
    operations = bench.broker.operations
    vhost = operations.vhost("/")
    known(
        bench,
        operations.declare_exchange(
            vhost, "e", "fanout", durable=True, auto_delete=False, internal=False, arguments={}
        ),
    )
    listing = operations.exchanges(vhost)
    exchange = next(one for one in listing if one.name == "e")
    known(bench, operations.delete_exchange(vhost, "e", if_unused=False))
    assert "message_stats" not in operations.exchange_facts(vhost, exchange)
    assert operations.published_to(vhost, exchange) == 0
    assert vhost.exchange_counts() == []
