"""Backoff of quorum queues: which messages wait, how long, and what becomes of them meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.frames import method_frame
from qlog.server.amqp.values import Table
from qlog.server.broker.features import backoff, policy_keys
from tests.server.broker.support import Bench, Peer, make

# Times are rounded up: the end of a wait is looked at so long after it.
GRAIN_MS = 100


def declare(peer: Peer, **arguments: object) -> Any:
    table: Any = {key.replace("_", "-"): value for key, value in arguments.items()}
    return peer.declare("q", arguments={"x-queue-type": "quorum", **table})


def get(peer: Peer, channel: int = 2) -> tuple[bytes | None, Any, int]:
    """Body, x-delivery-count and tag of the next message; (None, None, 0): there is none."""
    peer.send(channel, make(spec.BasicGet, queue="q"))
    (said,) = peer.take()
    if not isinstance(said.method, spec.BasicGetOk):
        return None, None, 0
    assert said.properties is not None
    count = (said.properties.headers or {}).get("x-delivery-count")
    return said.body, count, said.method.delivery_tag


def publish(bench: Bench, peer: Peer, *bodies: bytes) -> None:
    peer.publish(1, "q", *bodies)
    bench.disk()


NACK, REJECT, RECOVER, CLOSE = "nack", "reject", "recover", "close"
MULTIPLE = "nack of all"


def give_back(peer: Peer, how: str, tag: int) -> None:
    methods: dict[str, Any] = {
        NACK: spec.BasicNack(tag, multiple=False, requeue=True),
        MULTIPLE: spec.BasicNack(0, multiple=True, requeue=True),
        REJECT: spec.BasicReject(tag, requeue=True),
        RECOVER: spec.BasicRecover(requeue=True),
        CLOSE: make(spec.ChannelClose),
    }
    peer.send(2, methods[how])
    peer.take()
    if how == CLOSE:
        peer.opened.discard(2)


@pytest.mark.parametrize(
    ("type_", "how", "waits"),
    [
        ("all", NACK, True),
        ("all", REJECT, True),
        ("all", CLOSE, True),
        ("failed", REJECT, True),
        ("failed", CLOSE, True),
        ("failed", NACK, False),
        ("failed", MULTIPLE, False),
        ("failed", RECOVER, False),
        ("returned", NACK, True),
        ("returned", MULTIPLE, True),
        ("returned", RECOVER, True),
        ("returned", REJECT, False),
        ("returned", CLOSE, False),
        ("disabled", REJECT, False),
        ("nonsense", REJECT, False),
        (5, REJECT, False),
    ],
)
def test_which_messages_wait(
    bench: Bench, peer: Peer, type_: object, how: str, waits: bool
) -> None:
    queue = declare(peer, x_delayed_retry_type=type_, x_delayed_retry_min=1000)
    publish(bench, peer, b"1", b"2")
    give_back(peer, how, get(peer)[2])
    assert (queue.ready, queue.unacked) == ((1, 1) if waits else (2, 0))
    assert get(peer)[:2] == ((b"2", None) if waits else (b"1", 1))
    if waits:
        bench.pass_ms(999)
        assert get(peer)[0] is None
        bench.pass_ms(1 + GRAIN_MS)
        assert get(peer)[:2] == (b"1", 1)


def test_each_time_longer(bench: Bench, peer: Peer) -> None:
    declare(peer, x_delayed_retry_type="all", x_delayed_retry_min=1000, x_delayed_retry_max=2500)
    publish(bench, peer, b"x")
    tag = get(peer)[2]
    for attempts, delay_ms in enumerate((1000, 2000, 2500, 2500), 1):
        give_back(peer, NACK, tag)
        bench.pass_ms(delay_ms - 1)
        assert get(peer)[0] is None
        bench.pass_ms(1 + GRAIN_MS)
        body, count, tag = get(peer)
        assert (body, count) == (b"x", attempts)


def test_a_consumer_gets_it_when_it_is_over(bench: Bench, peer: Peer) -> None:
    declare(peer, x_delayed_retry_type="all", x_delayed_retry_min=1000)
    publish(bench, peer, b"1", b"2")
    peer.send(2, make(spec.BasicQos, prefetch_count=1), make(spec.BasicConsume, queue="q"))
    peer.take()
    peer.send(2, spec.BasicNack(1, multiple=False, requeue=True))
    assert [said.body for said in peer.take()] == [b"2"]
    peer.send(2, spec.BasicAck(2, multiple=False))
    assert peer.take() == []
    bench.pass_ms(1000 + GRAIN_MS)
    assert [said.body for said in peer.take()] == [b"1"]


def test_in_the_order_in_which_they_came_back(bench: Bench, peer: Peer) -> None:
    declare(peer, x_delayed_retry_type="all", x_delayed_retry_min=1000)
    publish(bench, peer, *(b"%d" % number for number in range(6)))
    tags = [get(peer)[2] for _ in range(6)]
    for place in (3, 0, 5, 1, 4, 2):
        give_back(peer, NACK, tags[place])
    bench.pass_ms(1000 + GRAIN_MS)
    assert [get(peer)[0] for _ in range(7)] == [b"3", b"0", b"5", b"1", b"4", b"2", None]


def test_the_delivery_limit_counts(bench: Bench, peer: Peer) -> None:
    peer.declare("dead")
    queue = declare(
        peer,
        x_delayed_retry_type="all",
        x_delayed_retry_min=1000,
        x_delivery_limit=1,
        x_dead_letter_exchange="",
        x_dead_letter_routing_key="dead",
    )
    publish(bench, peer, b"x")
    give_back(peer, NACK, get(peer)[2])
    bench.pass_ms(1000 + GRAIN_MS)
    give_back(peer, NACK, get(peer)[2])
    bench.settle()
    bench.disk()
    assert queue.ready == queue.unacked == 0
    assert bench.broker.vhosts["/"].queues["dead"].ready == 1


def test_an_expiration_counts_when_it_is_over(bench: Bench, peer: Peer) -> None:
    queue = declare(peer, x_delayed_retry_type="all", x_delayed_retry_min=1000, x_message_ttl=500)
    publish(bench, peer, b"x")
    give_back(peer, NACK, get(peer)[2])
    bench.pass_ms(900)
    assert queue.unacked == 1
    bench.pass_ms(100 + GRAIN_MS)
    assert get(peer)[0] is None
    bench.settle()
    assert queue.unacked == queue.ready == 0


def test_policies(bench: Bench, peer: Peer) -> None:
    declare(peer, x_delayed_retry_min=3000)
    vhost = bench.broker.vhosts["/"]
    definition = {"delayed-retry-type": "all", "delayed-retry-min": 1000}
    bench.broker.operations.set_policy(
        vhost, "policy", "backoff", pattern="q", definition=definition, apply_to="quorum_queues"
    )
    publish(bench, peer, b"x")
    give_back(peer, NACK, get(peer)[2])
    assert get(peer)[0] is None
    bench.broker.operations.delete_policy(vhost, "policy", "backoff")
    bench.pass_ms(1000 + GRAIN_MS)
    body, _, tag = get(peer)
    assert body == b"x"
    give_back(peer, NACK, tag)
    assert get(peer)[0] == b"x"


def test_purge_and_deletion(bench: Bench, peer: Peer) -> None:
    queue = declare(peer, x_delayed_retry_type="all", x_delayed_retry_min=1000)
    publish(bench, peer, b"1", b"2")
    give_back(peer, NACK, get(peer)[2])
    purged = peer.ask(1, make(spec.QueuePurge, queue="q"), spec.QueuePurgeOk)
    assert purged.message_count == 1
    bench.pass_ms(1000 + GRAIN_MS)
    body, _, tag = get(peer)
    assert body == b"1"
    give_back(peer, NACK, tag)
    peer.ask(1, make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk)
    bench.pass_ms(2000 + GRAIN_MS)
    assert queue.ready == 0


def test_within_a_transaction(bench: Bench, peer: Peer) -> None:
    declare(peer, x_delayed_retry_type="failed", x_delayed_retry_min=1000)
    publish(bench, peer, b"1", b"2")
    tags = [get(peer)[2] for _ in range(2)]
    peer.ask(2, spec.TxSelect(), spec.TxSelectOk)
    peer.receive(
        method_frame(2, spec.BasicReject(tags[0], requeue=True))
        + method_frame(2, spec.BasicNack(tags[1], multiple=False, requeue=True))
        + method_frame(2, spec.TxCommit())
    )
    bench.disk()
    peer.take()
    assert [get(peer)[0], get(peer)[0]] == [b"2", None]
    bench.pass_ms(1000 + GRAIN_MS)
    assert get(peer)[0] == b"1"


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_after_a_restart_it_waits_on(bench: Bench, peer: Peer, how: str) -> None:
    declare(peer, x_delayed_retry_type="all", x_delayed_retry_min=60_000)
    publish(bench, peer, *(b"%d" % number for number in range(5)))
    tags = [get(peer)[2] for _ in range(4)]
    give_back(peer, NACK, tags[2])
    give_back(peer, NACK, tags[0])
    bench.pass_ms(20_000)
    peer.send(2, spec.BasicAck(tags[3], multiple=False))
    give_back(peer, NACK, tags[1])
    for _ in range(2):
        bench.disk()
        if how == "kill":
            bench.kill()
            bench.open()
        else:
            bench.restart()
    peer = Peer(bench)
    queue = bench.broker.vhosts["/"].queues["q"]
    assert (queue.ready, queue.unacked) == (1, 3)
    assert get(peer)[0] == b"4" and get(peer)[0] is None
    bench.pass_ms(39_999)
    assert get(peer)[0] is None
    bench.pass_ms(1 + 10 * GRAIN_MS)
    assert [get(peer)[:2] for _ in range(3)] == [(b"2", 1), (b"0", 1), (None, None)]
    bench.pass_ms(20_000)
    assert get(peer)[:2] == (b"1", 1)
    bench.disk()
    bench.restart()
    assert get(Peer(bench))[1] is not None  # nothing of what has waited waits again


def test_what_waited_before_a_long_stop_is_ready(bench: Bench, peer: Peer) -> None:
    declare(peer, x_delayed_retry_type="all", x_delayed_retry_min=1000)
    publish(bench, peer, b"x")
    give_back(peer, NACK, get(peer)[2])
    bench.disk()
    bench.close()
    bench.now_ms += 1000
    bench.open()
    assert get(Peer(bench))[:2] == (b"x", 1)


def test_a_queue_of_the_same_name_knows_nothing_of_it(bench: Bench, peer: Peer) -> None:
    declare(peer, x_delayed_retry_type="all", x_delayed_retry_min=60_000)
    publish(bench, peer, b"old")
    give_back(peer, NACK, get(peer)[2])
    peer.ask(1, make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk)
    declare(peer, x_delayed_retry_type="all", x_delayed_retry_min=60_000)
    publish(bench, peer, b"new")
    bench.kill()
    bench.open()
    assert get(Peer(bench))[0] == b"new"


def test_a_restart_keeps_nothing_of_what_has_waited(bench: Bench, peer: Peer) -> None:
    """The records of what waits are settled when that is over."""
    declare(peer, x_delayed_retry_type="all", x_delayed_retry_min=1000)
    publish(bench, peer, b"x")
    for _ in range(3):
        give_back(peer, NACK, get(peer)[2])
        bench.pass_ms(3000 + GRAIN_MS)
    ((_, lane),) = bench.broker.vhosts["/"].hidden_lanes
    assert lane.next_qseq == 3 and lane.alive == 0


def test_many_that_wait_are_few_times(bench: Bench, peer: Peer) -> None:
    queue = declare(
        peer,
        x_delayed_retry_type="all",
        x_delayed_retry_min=60_000,
        x_delayed_retry_max=3_600_000,
        x_delivery_limit=-1,
    )
    publish(bench, peer, *(b"x" for _ in range(500)))
    for _ in range(500):
        give_back(peer, NACK, get(peer)[2])
        bench.pass_ms(50)
    assert queue.unacked == 500
    assert len(queue._waits._waiting) <= 500 * 50 * 64 / 60_000 + 2


def test_a_record_of_a_lane_that_the_queue_has_not(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker starts, says so, and forgets the record; other records count."""
    declare(peer, x_delayed_retry_type="all", x_delayed_retry_min=60_000)
    publish(bench, peer, b"1", b"2")
    tags = [get(peer)[2] for _ in range(2)]
    pack = backoff.Record.pack
    with monkeypatch.context() as patch:
        patch.setattr(backoff.Record, "pack", lambda self: pack(self._replace(lane_id=777)))
        give_back(peer, NACK, tags[0])
    give_back(peer, NACK, tags[1])
    bench.disk()
    bench.restart()
    queue = bench.broker.vhosts["/"].queues["q"]
    assert (queue.ready, queue.unacked) == (1, 1)
    assert "messages of lane=777 do not wait on" in caplog.text
    assert get(Peer(bench))[:2] == (b"1", 1)
    ((_, lane),) = bench.broker.vhosts["/"].hidden_lanes
    assert lane.alive == 1


TABLE: list[tuple[Table, str | None]] = [
    ({"delayed-retry-type": "all", "delayed-retry-min": 5, "delayed-retry-max": 9}, None),
    (
        {"delayed-retry-type": "some"},
        '<<"some">> is not a valid delayed retry type. '
        + "Must be one of: all, failed, returned, disabled",
    ),
    (
        {"delayed-retry-min": 0},
        "0 is not a valid delayed retry minimum delay. Must be a positive integer",
    ),
    (
        {"delayed-retry-max": "a"},
        '<<"a">> is not a valid delayed retry maximum delay. Must be a positive integer',
    ),
]


@pytest.mark.parametrize(("definition", "complaint"), TABLE)
def test_what_policies_may_say(definition: Table, complaint: str | None) -> None:
    assert policy_keys.complaint(definition, operator=False) == complaint
