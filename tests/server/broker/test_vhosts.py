"""Vhosts through operations: made, changed, limited, and deleted with all that is in them.

Texts and effects are those of a RabbitMQ 4.0.5 that was asked.
"""

from __future__ import annotations

from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.errors import AMQPError
from qlog.server.broker.features.parameters import InvalidParameter
from qlog.server.broker.features.vhost_settings import VHostProtected, VHostSettings
from tests.server.broker.support import Bench, Peer, make


def set_limits(bench: Bench, limits: object) -> None:
    operations = bench.broker.operations
    operations.set_vhost_limits(operations.vhost("/"), limits)


def enter(bench: Bench, vhost: str) -> Peer:
    """A client that may enter another vhost, in that vhost."""
    bench.broker.users["guest"].permissions[vhost] = (".*", ".*", ".*")
    return Peer(bench, vhost=vhost)


def declaration(peer: Peer, **options: Any) -> str | None:
    """Declare on a channel of its own: the text of the refusal, or None."""
    channel = max(peer.opened, default=0) + 1
    peer.send(channel, make(spec.QueueDeclare, **options))
    peer.bench.disk()
    (answer,) = peer.hear()
    if isinstance(answer, spec.QueueDeclareOk):
        return None
    assert isinstance(answer, spec.ChannelClose)
    peer.send(channel, spec.ChannelCloseOk())
    return answer.reply_text


# --- settings


def test_vhosts_are_made_changed_and_kept(bench: Bench) -> None:
    operations = bench.broker.operations
    operations.set_vhost("a", description="x", tags=["t", "u"], default_queue_type="quorum")
    operations.set_vhost("b")
    operations.set_vhost_limits(operations.vhost("a"), {"max-queues": 10**30})
    operations.set_vhost("a", description="y")
    bench.disk()
    bench.kill()
    bench.open()
    vhosts = {vhost.name: vhost.settings for vhost in bench.broker.operations.vhosts()}
    assert vhosts == {
        "/": VHostSettings(),
        "a": VHostSettings("y", (), None, {"max-queues": 10**30}),
        "b": VHostSettings(),
    }


def test_a_protected_vhost_is_not_deleted(bench: Bench) -> None:
    """As since RabbitMQ 4.1; a restart and other changes keep the protection."""
    operations = bench.broker.operations
    operations.set_vhost("a")
    operations.protect_vhost(operations.vhost("a"), True)
    operations.set_vhost("a", description="y")
    operations.set_vhost_limits(operations.vhost("a"), {"max-queues": 1})
    bench.disk()
    bench.kill()
    bench.open()
    operations = bench.broker.operations
    with pytest.raises(VHostProtected, match="'a' because it is protected from deletion"):
        operations.delete_vhost("a")
    assert "a" in bench.broker.vhosts
    operations.protect_vhost(operations.vhost("a"), False)
    operations.delete_vhost("a")
    assert "a" not in bench.broker.vhosts


THREE_COMPLAINTS = """\
Unrecognised terms [{<<"foo">>,1}] in limits
max-queues should be a number, actually was <<"a">>
max-connections should be a number, actually was null"""


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"max-queues": "a"}, 'max-queues should be a number, actually was <<"a">>'),
        ({"max-queues": 1.5}, "max-queues should be a number, actually was 1.5"),
        ({"foo": 1}, 'Unrecognised terms [{<<"foo">>,1}] in limits'),
        (
            {"max-queues": "a", "max-connections": None, "foo": 1},
            THREE_COMPLAINTS,
        ),
    ],
)
def test_impossible_limits_are_refused(bench: Bench, limits: object, text: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        set_limits(bench, limits)
    assert str(refused.value) == f"Validation failed\n\n{text}\n"
    assert bench.broker.vhosts["/"].settings == VHostSettings()


def test_unknown_default_queue_types_are_refused(bench: Bench) -> None:
    for name, text in (
        ("foo", "foo is not a valid queue type"),
        ("", "default_queue_type must not be an empty string"),
    ):
        with pytest.raises(InvalidParameter, match=text):
            bench.broker.operations.set_vhost("a", default_queue_type=name)
    assert "a" not in bench.broker.vhosts


# --- limits


def test_queue_limit(bench: Bench, peer: Peer) -> None:
    refusal = (
        "PRECONDITION_FAILED - cannot declare queue 'b': queue limit in vhost '/' (1) is reached"
    )
    peer.declare("a")
    peer.declare("gone", durable=False)
    set_limits(bench, {"max-queues": 1})  # there are two
    peer.send(1, make(spec.QueueDelete, queue="gone"))
    peer.bench.disk()
    peer.take()
    assert declaration(peer, queue="b", durable=True) == refusal
    assert declaration(peer, queue="b", exclusive=True) == refusal
    assert declaration(peer, queue="a", durable=True) is None
    text = declaration(peer, queue="b", durable=True, arguments={"x-message-ttl": -1})
    assert text is not None and "invalid arg 'x-message-ttl'" in text
    set_limits(bench, {"max-queues": 0})
    text = declaration(peer, queue="c")
    assert text is not None and text.endswith("queue limit in vhost '/' (0) is reached")
    for limits in ({"max-queues": -1}, {}):
        set_limits(bench, limits)
        assert declaration(peer, queue="c") is None
    bench.restart()
    assert set(bench.broker.vhosts["/"].queues) == {"a"}


def test_connection_limit(bench: Bench, peer: Peer) -> None:
    set_limits(bench, {"max-connections": 2})
    second = Peer(bench)
    assert isinstance(second.greeting[-1].method, spec.ConnectionOpenOk)
    third = Peer(bench)
    refused = third.greeting[-1].method
    assert isinstance(refused, spec.ConnectionClose)
    assert (refused.reply_code, refused.class_id, refused.method_id) == (530, 10, 40)
    assert refused.reply_text == (
        "NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection limit (2) is reached"
    )
    second.send(0, make(spec.ConnectionClose))
    assert isinstance(Peer(bench).greeting[-1].method, spec.ConnectionOpenOk)
    peer.client.lost()
    assert isinstance(Peer(bench).greeting[-1].method, spec.ConnectionOpenOk)
    set_limits(bench, {"max-connections": 0})
    assert isinstance(Peer(bench).greeting[-1].method, spec.ConnectionClose)
    assert isinstance(peer, Peer)


# --- default queue type

LASTING = {"durable": True}
TRANSIENT: dict[str, Any] = {}
DIFFERS = "PRECONDITION_FAILED - inequivalent arg '{}' for queue 'q' in vhost '/': received '{}' but current is '{}'"


@pytest.mark.parametrize(
    ("first", "type_", "again", "text"),
    [
        (LASTING, "quorum", LASTING, None),
        (LASTING, "quorum", {**LASTING, "arguments": {"x-queue-type": "quorum"}}, None),
        (
            LASTING,
            "quorum",
            {**LASTING, "arguments": {"x-queue-type": "classic"}},
            DIFFERS.format("x-queue-type", "classic", "quorum"),
        ),
        (LASTING, "quorum", TRANSIENT, DIFFERS.format("durable", "false", "true")),
        (
            {**LASTING, "arguments": {"x-queue-type": "classic"}},
            "classic",
            LASTING,
            DIFFERS.format("x-queue-type", "quorum", "classic"),
        ),
        (TRANSIENT, "classic", TRANSIENT, None),
        ({**LASTING, "exclusive": True}, "classic", {**LASTING, "exclusive": True}, None),
        ({**LASTING, "auto_delete": True}, "classic", {**LASTING, "auto_delete": True}, None),
    ],
)
def test_default_queue_type(
    bench: Bench,
    peer: Peer,
    first: dict[str, Any],
    type_: str,
    again: dict[str, Any],
    text: str | None,
) -> None:
    bench.broker.operations.set_vhost("/", default_queue_type="quorum")
    assert declaration(peer, queue="q", **first) is None
    declared = bench.broker.vhosts["/"].queues["q"].declared
    assert declared.arguments.type == type_
    assert declared.arguments.table["x-queue-type"] == type_  # shown, as in RabbitMQ
    assert declaration(peer, queue="q", **again) == text


def test_default_queue_type_shows_in_refusals(bench: Bench, peer: Peer) -> None:
    bench.broker.operations.set_vhost("/", default_queue_type="quorum")
    foreign = {"x-max-priority": 5}
    assert declaration(peer, queue="q", durable=True, arguments=foreign) == (
        "PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'q' in vhost '/' of queue type "
        "rabbit_quorum_queue"
    )
    assert declaration(peer, queue="", durable=True) == (
        "PRECONDITION_FAILED - Cannot declare a server-named queue for type rabbit_quorum_queue"
    )
    assert declaration(peer, queue="", exclusive=True) is None


def test_a_queue_keeps_the_type_that_was_the_default(bench: Bench, peer: Peer) -> None:
    operations = bench.broker.operations
    operations.set_vhost("/", default_queue_type="quorum")
    peer.declare("q")
    operations.set_vhost("/")
    bench.disk()
    bench.restart()
    assert bench.broker.vhosts["/"].queues["q"].declared.arguments.type == "quorum"


# --- deletion


def filled(bench: Bench, queues: int) -> Peer:
    """A vhost `v` with queues, exchanges, bindings, policies, a message and a client."""
    operations = bench.broker.operations
    operations.set_vhost("v")
    bench.disk()
    peer = enter(bench, "v")
    vhost = operations.vhost("v")
    for number in range(queues):
        vhost.declare_queue(
            f"q{number}", None, durable=True, exclusive=False, auto_delete=False, arguments={}
        )
    for name in ("x", "y"):
        vhost.declare_exchange(
            name, "fanout", durable=True, auto_delete=False, internal=False, arguments={}
        )
    vhost.bind("x", "queue", "q0", "", {})
    vhost.bind("x", "exchange", "y", "", {})
    vhost.bind("amq.topic", "exchange", "amq.fanout", "k", {})
    operations.set_policy(vhost, "policy", "p", pattern="", definition={"expires": 5000})
    bench.finish_jobs()
    bench.disk()
    peer.publish(1, "q0", b"a")
    bench.disk()
    return peer


def left(bench: Bench) -> list[str]:
    """What the catalog has of vhost `v`."""
    catalog = bench.store.catalog
    kinds = ("vhost", "exchange", "queue", "binding", "policy", "operator_policy")
    return [f"{kind} {name}" for kind in kinds for name, _ in catalog.items(kind) if '["v"' in name]


def test_a_vhost_goes_with_all_that_is_in_it(bench: Bench, peer: Peer) -> None:
    inside = filled(bench, 3)
    assert left(bench)
    outcome = bench.broker.operations.delete_vhost("v")
    bench.finish_jobs()
    assert inside.refused() == ("connection", 320, "CONNECTION_FORCED - vhost 'v' is deleted")
    assert not outcome.done
    bench.disk()
    assert outcome.done and left(bench) == []
    assert "v" not in bench.broker.users["guest"].permissions
    with pytest.raises(AMQPError) as missing:
        bench.broker.operations.delete_vhost("v")
    assert missing.value.code == 404
    peer.declare("still")
    bench.restart()
    assert left(bench) == [] and set(bench.broker.vhosts) == {"/"}
    assert set(bench.broker.users["guest"].permissions) == {"/"}


def test_a_vhost_goes_though_the_disk_is_full(bench: Bench) -> None:
    """What was handed on from a queue waits for the disk; it is to be deleted, too."""
    inside = filled(bench, 1)
    vhost = bench.broker.vhosts["v"]
    to_q0 = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q0"}
    declare = make(spec.QueueDeclare, queue="dying", durable=True, arguments=to_q0)
    inside.ask(1, declare, spec.QueueDeclareOk)
    inside.publish(1, "dying", b"x")
    bench.disk()
    with bench.full_log():
        reject = make(spec.BasicReject, delivery_tag=1)
        inside.send(1, make(spec.BasicGet, queue="dying"), reject)
        bench.settle()
        assert vhost.queues["dying"].after_lsn > bench.store.durable_lsn
        outcome = bench.broker.operations.delete_vhost("v")
        bench.disk_thrice()
        assert outcome.done and left(bench) == []
        assert all(queue.deleted for queue in vhost.queues.values())


def test_a_large_vhost_goes_in_slices_and_its_name_is_free_afterwards(bench: Bench) -> None:
    filled(bench, 3000)
    operations = bench.broker.operations
    time_s = 0.0

    def clock_s() -> float:
        nonlocal time_s
        time_s += 0.0001
        return time_s

    bench.broker.services.jobs.clock_s = clock_s
    outcome = operations.delete_vhost("v")
    assert "v" not in bench.broker.vhosts
    again = operations.set_vhost("v", description="new")
    bench.broker.work()
    assert not again.done
    turns = 0
    while bench.broker.jobs_left:
        begin_s = time_s
        bench.broker.work()
        assert time_s - begin_s < 0.006
        turns += 1
    assert turns > 20
    bench.disk()
    assert outcome.done and again.result().settings.description == "new"
    assert left(bench) == ['vhost ["v"]']


def test_a_start_finishes_the_deletion_that_a_crash_cut_off(bench: Bench) -> None:
    filled(bench, 300)
    time_s = 0.0

    def clock_s() -> float:
        nonlocal time_s
        time_s += 0.001
        return time_s

    bench.broker.services.jobs.clock_s = clock_s
    bench.broker.operations.delete_vhost("v")
    bench.now_s += 1
    bench.store.tick(bench.now_s)
    bench.store.commit()
    while sum(worker.run_one() for worker in bench.workers):
        bench.store.advance()
    assert len(left(bench)) > 100
    bench.kill()
    bench.open()
    assert set(bench.broker.vhosts) == {"/"} and left(bench) == []
    bench.disk()
    bench.restart()
    assert left(bench) == []
