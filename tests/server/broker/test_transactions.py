"""Transactions: what a commit comes to when the queues have changed since the publishes."""

from __future__ import annotations

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties
from tests.server.broker.support import Bench, Peer, make, message


def set_policy(bench: Bench, **definition: int | str) -> None:
    """For queue `b`."""
    operations = bench.broker.operations
    dashed = {name.replace("_", "-"): value for name, value in definition.items()}
    operations.set_policy(operations.vhost("/"), "policy", "p", pattern="^b$", definition=dashed)
    bench.settle()


@pytest.fixture
def transactional(bench: Bench, peer: Peer) -> Peer:
    """A client in transaction mode; the queues `a`, `b` and `c` are bound to amq.fanout."""
    for name in ("a", "b", "c"):
        peer.declare(name)
        peer.ask(1, make(spec.QueueBind, queue=name, exchange="amq.fanout"), spec.QueueBindOk)
    peer.ask(1, make(spec.TxSelect), spec.TxSelectOk)
    return peer


@pytest.mark.parametrize("expiration", [None, "100000"])
@pytest.mark.parametrize("before", [True, False])
def test_a_commit_misses_no_queue_though_one_was_deleted_and_a_policy_came_or_went(
    bench: Bench, transactional: Peer, expiration: str | None, before: bool
) -> None:
    if before:
        set_policy(bench, max_length=5)
    properties = Properties(delivery_mode=2, expiration=expiration)
    transactional.send(1, message(1, "", b"m", exchange="amq.fanout", properties=properties))
    if before:
        operations = bench.broker.operations
        operations.delete_policy(operations.vhost("/"), "policy", "p")
        bench.settle()
    else:
        set_policy(bench, max_length=5)
    Peer(bench).ask(1, make(spec.QueueDelete, queue="a"), spec.QueueDeleteOk)
    transactional.send(1, make(spec.TxCommit))
    bench.disk()
    assert transactional.hear() == [spec.TxCommitOk()]
    queues = bench.broker.vhosts["/"].queues
    assert {name: queue.ready for name, queue in queues.items()} == {"b": 1, "c": 1}
    bench.restart()
    queues = bench.broker.vhosts["/"].queues
    assert {name: queue.ready for name, queue in queues.items()} == {"b": 1, "c": 1}


def test_a_commit_keeps_a_limit_that_came_after_the_publishes(
    bench: Bench, transactional: Peer
) -> None:
    transactional.publish(1, "b", b"1", b"2")
    set_policy(bench, max_length=1, overflow="reject-publish")
    transactional.send(1, make(spec.TxCommit))
    bench.disk()
    assert transactional.refused()[:2] == ("channel", 406)
    assert bench.broker.vhosts["/"].queues["b"].ready == 1
