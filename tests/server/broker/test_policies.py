"""Policies over a broker: they apply at once to what is there, to what comes, and after a crash."""

from __future__ import annotations

import gc
import logging
from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.errors import AMQPError
from qlog.server.broker.features.parameters import InvalidParameter
from qlog.server.broker.features.policy import PolicyKind
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.arguments import QueueArguments
from qlog.server.broker.queues.effective import Applied, Effective
from qlog.server.broker.queues.type import QueueType
from tests.server.broker.support import Bench, Peer, make


def set_policy(
    bench: Bench,
    name: str,
    pattern: str,
    definition: dict[str, Any],
    *,
    kind: PolicyKind = "policy",
    finish: bool = True,
    **options: Any,
) -> Outcome[None]:
    operations = bench.broker.operations
    outcome = operations.set_policy(
        operations.vhost("/"), kind, name, pattern=pattern, definition=definition, **options
    )
    if finish:
        bench.finish_jobs()
    return outcome


def delete_policy(bench: Bench, name: str, kind: PolicyKind = "policy") -> Outcome[None]:
    operations = bench.broker.operations
    outcome = operations.delete_policy(operations.vhost("/"), kind, name)
    bench.finish_jobs()
    return outcome


def check_consumers(bench: Bench) -> None:
    bench.broker.check_consumers()
    bench.finish_jobs()


def queue(bench: Bench, name: str) -> QueueType:
    return bench.broker.vhosts["/"].queues[name]


# --- what a queue goes by

MINIMUM = {
    "message-ttl": "message_ttl_ms",
    "expires": "expires_ms",
    "max-length": "max_length",
    "max-length-bytes": "max_length_bytes",
}
# Key, field, an argument, a value of a policy.
DECLARED_WINS = [
    ("dead-letter-exchange", "dead_letter_exchange", "a", "p"),
    ("dead-letter-routing-key", "dead_letter_routing_key", "a", "p"),
    ("overflow", "overflow", "reject-publish", "reject-publish-dlx"),
]


def effective(arguments: dict[str, Any], definition: dict[str, Any]) -> Effective:
    return Effective(
        QueueArguments(arguments), Applied("p", None, definition), consumer_timeout_s=30.0
    )


def test_the_smaller_limit_counts() -> None:
    for key, name in MINIMUM.items():
        for argument, policy, counts in ((5, 9, 5), (9, 5, 5), (None, 9, 9), (5, None, 5)):
            arguments = {} if argument is None else {f"x-{key}": argument}
            definition = {} if policy is None else {key: policy}
            assert getattr(effective(arguments, definition), name) == counts, key
        assert getattr(effective({}, {}), name) is None
    assert effective({}, {"expires": 10**30}).expires_ms == 315_360_000_000


def test_the_declared_argument_counts_for_dead_letters_and_overflow() -> None:
    for key, name, argument, policy in DECLARED_WINS:
        assert getattr(effective({f"x-{key}": argument}, {key: policy}), name) == argument
        assert getattr(effective({}, {key: policy}), name) == policy
    strategy = {"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once"}
    found = effective(strategy, {"dead-letter-strategy": "at-most-once"})
    assert found.dead_letter_strategy == "at-least-once"


def test_the_policy_counts_for_overflow_of_quorum_queues_and_for_streams() -> None:
    quorum = {"x-queue-type": "quorum", "x-overflow": "reject-publish"}
    assert effective(quorum, {"overflow": "drop-head"}).overflow == "drop-head"
    assert effective(quorum, {}).overflow == "reject-publish"
    assert effective({"x-queue-type": "quorum"}, {"overflow": "reject-publish-dlx"}).overflow == (
        "drop-head"
    )
    stream = {"x-queue-type": "stream", "x-max-length-bytes": 5, "x-max-age": "1D"}
    found = effective(stream, {"max-length-bytes": 9, "max-age": "2D"})
    assert (found.max_length_bytes, found.max_age) == (9, "2D")


@pytest.mark.parametrize(
    ("argument", "policy", "limit"),
    [
        (None, None, 20),
        (None, 5, 5),
        (5, None, 5),
        (5, 9, 5),
        (-1, 9, 9),
        (5, -1, 5),
        (-1, -7, None),
        (None, 0, 0),
        ("many", None, 20),
    ],
)
def test_delivery_limits(argument: object, policy: int | None, limit: int | None) -> None:
    arguments = {"x-queue-type": "quorum"}
    given = {} if argument is None else {"x-delivery-limit": argument}
    definition = {} if policy is None else {"delivery-limit": policy}
    assert effective({**arguments, **given}, definition).delivery_limit == limit
    assert effective(given, {}).delivery_limit is None  # a classic queue has none


def test_consumer_timeout() -> None:
    assert effective({}, {}).consumer_timeout_s == 30.0
    assert effective({}, {"consumer-timeout": 90_000}).consumer_timeout_s == 90.0
    assert effective({"x-consumer-timeout": 5000}, {"consumer-timeout": 90}).consumer_timeout_s == (
        0.09
    )
    assert effective({}, {"consumer-timeout": 0}).consumer_timeout_s == 0
    assert effective({}, {"consumer-timeout-action": "requeue"}).timeout_requeues
    declared = {"x-consumer-timeout-action": "close"}
    assert not effective(declared, {"consumer-timeout-action": "requeue"}).timeout_requeues


# --- over a broker


def test_policies_apply_to_what_is_there_and_to_what_comes(bench: Bench, peer: Peer) -> None:
    peer.declare("q1", arguments={"x-message-ttl": 500})
    peer.declare("other")
    assert not set_policy(bench, "p", "^q", {"message-ttl": 100, "max-length": 7}).done
    found = queue(bench, "q1").effective  # at once, though it is not durable yet
    assert (found.message_ttl_ms, found.max_length) == (100, 7)
    assert found.applied == Applied("p", None, {"message-ttl": 100, "max-length": 7})
    assert queue(bench, "other").effective.applied == Applied()
    peer.declare("q2", exclusive=True, durable=False)
    assert queue(bench, "q2").effective.max_length == 7
    set_policy(bench, "o", ".*", {"max-length": 5}, kind="operator_policy")
    assert [queue(bench, name).effective.max_length for name in ("q1", "q2", "other")] == [5, 5, 5]
    assert queue(bench, "q1").effective.applied.operator_policy == "o"
    bench.disk()
    assert delete_policy(bench, "p").done is False
    assert queue(bench, "q1").effective.message_ttl_ms == 500
    delete_policy(bench, "o", "operator_policy")
    assert queue(bench, "q1").effective.applied == Applied()
    peer.declare("q1", arguments={"x-message-ttl": 500})  # as declared, whatever policies said


def test_policies_apply_to_consumers_that_are_there(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag="c"))
    peer.publish(1, "q", b"a")
    peer.take()
    bench.now_s += 100
    check_consumers(bench)
    assert not peer.hear()
    set_policy(bench, "p", "", {"consumer-timeout": 5000})
    check_consumers(bench)
    scope, code, text = peer.refused()
    assert (scope, code) == ("channel", 406)
    assert "Timeout value used: 5000 ms" in text


def test_alternate_exchange_by_policy(bench: Bench, peer: Peer) -> None:
    peer.declare("lost")
    peer.declare("declared")
    ask = peer.ask
    for name, arguments in (("x", {}), ("y", {"alternate-exchange": "amq.topic"})):
        declare = make(spec.ExchangeDeclare, exchange=name, type="direct", arguments=arguments)
        ask(1, declare, spec.ExchangeDeclareOk)
    for source, destination in (("amq.fanout", "lost"), ("amq.topic", "declared")):
        bind = make(spec.QueueBind, queue=destination, exchange=source, routing_key="k")
        ask(1, bind, spec.QueueBindOk)
    peer.publish(1, "k", b"before", exchange="x")
    set_policy(bench, "ae", "^[xyz]$", {"alternate-exchange": "amq.fanout"}, apply_to="exchanges")
    peer.publish(1, "k", b"x", exchange="x")
    peer.publish(1, "k", b"y", exchange="y")  # the argument wins
    declare = make(spec.ExchangeDeclare, exchange="z", type="direct")
    ask(1, declare, spec.ExchangeDeclareOk)
    peer.publish(1, "k", b"z", exchange="z")
    assert (queue(bench, "lost").ready, queue(bench, "declared").ready) == (2, 1)
    operations = bench.broker.operations
    vhost = operations.vhost("/")
    assert operations.exchange_policies(vhost, "x").policy == "ae"
    # A redeclaration is compared with what was declared.
    ask(1, make(spec.ExchangeDeclare, exchange="x", type="direct"), spec.ExchangeDeclareOk)
    delete_policy(bench, "ae")
    peer.publish(1, "k", b"x", exchange="x")
    assert queue(bench, "lost").ready == 2


def test_alternate_exchanges_by_policy_are_there_after_a_restart(bench: Bench, peer: Peer) -> None:
    peer.declare("lost")
    bind = make(spec.QueueBind, queue="lost", exchange="amq.fanout", routing_key="")
    peer.ask(1, bind, spec.QueueBindOk)
    declare = make(spec.ExchangeDeclare, exchange="x", type="direct", durable=True)
    peer.ask(1, declare, spec.ExchangeDeclareOk)
    set_policy(bench, "ae", "", {"alternate-exchange": "amq.fanout"}, apply_to="exchanges")
    bench.disk()
    bench.restart()
    again = Peer(bench)
    for exchange in ("x", "amq.direct", ""):  # the default exchange has none
        again.publish(1, "k", b"a", exchange=exchange)
    assert queue(bench, "lost").ready == 2


def test_redeclaration_counts_with_declared_arguments(bench: Bench, peer: Peer) -> None:
    set_policy(bench, "p", "", {"message-ttl": 100})
    peer.declare("q")
    peer.send(1, make(spec.QueueDeclare, queue="q", durable=True, arguments={"x-message-ttl": 100}))
    assert peer.refused()[2].endswith(
        "received the value '100' of type 'signedint' but current is none"
    )


def test_policies_are_listed_with_what_they_yield(bench: Bench) -> None:
    operations = bench.broker.operations
    vhost = operations.vhost("/")
    set_policy(bench, "a", "^q", {"expires": 5})
    set_policy(bench, "b", "^q", {"expires": 6}, priority=3, apply_to="classic_queues")
    set_policy(bench, "a", "^r", {"expires": 7}, kind="operator_policy")
    listed = [
        (policy.name, policy.pattern, policy.priority, policy.apply_to, policy.definition)
        for policy in operations.policies(vhost, "policy")
    ]
    assert listed == [
        ("b", "^q", 3, "classic_queues", {"expires": 6}),
        ("a", "^q", 0, "all", {"expires": 5}),
    ]
    assert [policy.pattern for policy in operations.policies(vhost, "operator_policy")] == ["^r"]


def test_refused_policies_change_nothing_and_are_logged(
    bench: Bench, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    peer.declare("q")
    set_policy(bench, "p", "", {"expires": 5000})
    with caplog.at_level(logging.WARNING), pytest.raises(InvalidParameter):
        set_policy(bench, "p", "(x+x+)+y", {"expires": 6})
    assert "policy refused vhost=/ name=p" in caplog.text
    assert "takes too long to match" in caplog.text
    assert queue(bench, "q").effective.expires_ms == 5000
    with pytest.raises(AMQPError) as missing:
        delete_policy(bench, "p", "operator_policy")
    assert missing.value.code == 404
    bench.disk()
    bench.restart()
    assert queue(bench, "q").effective.expires_ms == 5000


# --- crashes


def test_policies_survive_a_restart_and_count_for_what_was_declared_before(
    bench: Bench, peer: Peer
) -> None:
    peer.declare("q", arguments={"x-max-length": 9})
    exchange = make(spec.ExchangeDeclare, exchange="x", type="direct", durable=True)
    peer.ask(1, exchange, spec.ExchangeDeclareOk)
    outcome = set_policy(
        bench, "ä", "^[qx]", {"max-length": 4, "alternate-exchange": "ae"}, priority=2.5
    )
    set_policy(bench, "o", "^q", {"max-length-bytes": 100}, kind="operator_policy")
    bench.disk()
    assert outcome.done
    bench.kill()
    bench.open()
    found = queue(bench, "q").effective
    assert (found.max_length, found.max_length_bytes) == (4, 100)
    operations = bench.broker.operations
    vhost = operations.vhost("/")
    (policy,) = operations.policies(vhost, "policy")
    assert (policy.name, policy.priority, policy.apply_to) == ("ä", 2.5, "all")
    assert operations.exchange_policies(vhost, "x").definition["alternate-exchange"] == "ae"
    delete_policy(bench, "ä")
    bench.disk()
    bench.kill()
    bench.open()
    assert queue(bench, "q").effective.max_length == 9
    assert queue(bench, "q").effective.applied.operator_policy == "o"


@pytest.mark.parametrize("work_done", range(12))
def test_a_crash_leaves_a_policy_or_the_one_before(
    bench: Bench, peer: Peer, work_done: int
) -> None:
    """Whatever the disk had done by then; what was answered is there."""
    peer.declare("q")
    set_policy(bench, "p", "", {"max-length": 1})
    bench.disk()
    answered = set_policy(bench, "p", "", {"max-length": 2})
    bench.now_s += 1
    bench.store.tick(bench.now_s)
    bench.store.commit()
    for _ in range(work_done):
        bench.disk_once()
    was_answered = answered.done
    bench.kill()
    bench.open()
    limit = queue(bench, "q").effective.max_length
    assert limit == 2 if was_answered else limit in (1, 2)
    if work_done == 11:
        assert was_answered


# --- many queues


def test_many_queues_are_gone_through_in_slices(bench: Bench, peer: Peer) -> None:
    count = 10_000
    vhost = bench.broker.vhosts["/"]
    for number in range(count):
        vhost.declare_queue(
            f"q{number}", None, durable=False, exclusive=False, auto_delete=False, arguments={}
        )
    time_s = 0.0

    def clock_s() -> float:  # each look at the clock is a tenth of a millisecond
        nonlocal time_s
        time_s += 0.0001
        return time_s

    bench.broker.services.jobs.clock_s = clock_s
    outcome = set_policy(bench, "p", "^q", {"max-length": 5}, finish=False)
    turns = 0
    while bench.broker.jobs_left:
        assert not outcome.done
        begin_s = time_s
        bench.broker.work()
        assert time_s - begin_s < 0.006
        turns += 1
        if turns == 10:  # another one in between counts for all of them in the end
            set_policy(bench, "p", "^q", {"max-length": 6}, finish=False)
            peer.send(1, make(spec.QueueDeclare, queue="q-new"))
            assert queue(bench, "q-new").effective.max_length == 6
    assert turns > 100
    bench.disk()
    assert outcome.done
    assert {queue.effective.max_length for queue in vhost.queues.values()} == {6}
    assert len({id(queue.effective) for queue in vhost.queues.values()}) == 1  # in memory once


def test_queues_that_go_while_policies_are_applied_are_left_alone(bench: Bench) -> None:
    vhost = bench.broker.vhosts["/"]
    for number in range(10):
        vhost.declare_queue(
            f"q{number}", None, durable=True, exclusive=False, auto_delete=False, arguments={}
        )
    vhost.declare_exchange(
        "x", "direct", durable=True, auto_delete=False, internal=False, arguments={}
    )
    job = vhost._applying_policies()
    next(job)
    vhost.removals.delete_queue(vhost.queues["q5"])
    vhost.removals.delete_exchange("x")
    for _ in job:
        pass
    assert len(vhost.queues) == 9


def test_routes_are_forgotten_when_settings_change(bench: Bench, peer: Peer) -> None:
    """What is known of targets depends on the settings of their queues."""
    peer.declare("q")
    vhost = bench.broker.vhosts["/"]
    version = vhost.routes_version
    set_policy(bench, "p", "^q", {"max-length": 5})
    assert vhost.routes_version != version
    version = vhost.routes_version
    set_policy(bench, "p", "^q", {"max-length": 5}, priority=4)
    assert vhost.routes_version == version  # the same settings


# --- features by policy


def test_a_limit_by_policy_meets_a_backlog_and_what_comes(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    for number in range(9):
        peer.publish(1, "q", b"%d" % number)
    set_policy(bench, "p", "^q$", {"max-length": 4})
    bench.end_tick()
    assert queue(bench, "q").ready == 4
    peer.publish(1, "q", b"new")  # over a route that was known before
    assert queue(bench, "q").ready == 4
    delete_policy(bench, "p")
    peer.publish(1, "q", b"more")
    assert queue(bench, "q").ready == 5
    peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag="c", no_ack=True))
    bodies = [said.body for said in peer.take() if isinstance(said.method, spec.BasicDeliver)]
    assert bodies == [b"6", b"7", b"8", b"new", b"more"]


def test_publishers_get_nacks_by_policy(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    peer.send(1, make(spec.ConfirmSelect))
    peer.publish(1, "q", b"a")
    bench.disk()
    peer.take()
    set_policy(bench, "p", "", {"max-length": 1, "overflow": "reject-publish"})
    peer.publish(1, "q", b"b")
    bench.disk()
    assert peer.hear() == [spec.BasicNack(2, False, False)]
    delete_policy(bench, "p")
    peer.publish(1, "q", b"c")
    bench.disk()
    assert peer.hear() == [spec.BasicAck(3, False)]


def test_dead_letters_go_where_a_policy_says(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    peer.declare("dead")
    definition = {"dead-letter-exchange": "", "dead-letter-routing-key": "dead"}
    set_policy(bench, "p", "^q$", definition)
    peer.publish(1, "q", b"a")
    peer.send(1, make(spec.BasicGet, queue="q"))
    (got,) = peer.hear()
    assert isinstance(got, spec.BasicGetOk)
    peer.send(1, make(spec.BasicReject, delivery_tag=got.delivery_tag))
    bench.disk()
    assert (queue(bench, "q").ready, queue(bench, "dead").ready) == (0, 1)


def test_what_policies_said_is_not_kept_when_they_are_gone(bench: Bench, peer: Peer) -> None:
    """However many there were, each with a name of its own."""

    def kept() -> int:
        gc.collect()
        return sum(isinstance(one, Effective) for one in gc.get_objects())

    peer.ask(1, make(spec.QueueDeclare, queue="q"), spec.QueueDeclareOk)
    before = kept()
    for number in range(20):
        set_policy(bench, f"p{number}", "", {"max-length": number})
        assert queue(bench, "q").effective.max_length == number
        delete_policy(bench, f"p{number}")
    assert queue(bench, "q").effective.max_length is None
    assert kept() <= before + 1
