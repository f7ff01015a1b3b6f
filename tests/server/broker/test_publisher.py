"""Publishing: when confirms come, in which order, and what a transaction holds back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.budget import Budget
from qlog.server.amqp.envelope import Record
from qlog.server.amqp.properties import Properties, encode_properties
from qlog.server.amqp.values import Table, Value
from qlog.server.broker.queues.mail import Mail, Receipt
from qlog.server.broker.queues.targets import Routes
from qlog.server.broker.queues.type import QueueType
from tests.server.broker.support import Bench, Peer, make, message


def acked(peer: Peer) -> list[tuple[int, bool]]:
    """(tag, multiple) of the confirms that came; nothing else may have."""
    result = []
    for method in peer.hear():
        assert isinstance(method, spec.BasicAck), method
        result.append((method.delivery_tag, method.multiple))
    return result


@pytest.fixture
def confirming(peer: Peer) -> Peer:
    """A client in confirm mode with a durable queue q and a transient one t."""
    peer.declare("q")
    peer.declare("t", durable=False)
    peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    peer.bench.disk()
    return peer


# --- confirms


def test_confirm_only_after_the_sync(bench: Bench, confirming: Peer) -> None:
    confirming.publish(1, "q", b"a", b"b", b"c")
    assert acked(confirming) == []
    bench.workers[0].run_one()  # synced, but the loop has not heard of it
    assert acked(confirming) == []
    bench.disk()
    assert acked(confirming) == [(3, True)]
    bench.disk()
    assert acked(confirming) == []


def test_confirm_of_one_is_not_multiple(bench: Bench, confirming: Peer) -> None:
    confirming.publish(1, "q", b"a")
    bench.disk()
    assert acked(confirming) == [(1, False)]


@pytest.mark.parametrize(
    ("key", "persistent"), [("t", True), ("t", False), ("q", False), ("nowhere", True)]
)
def test_what_needs_no_disk_is_confirmed_at_once(
    confirming: Peer, key: str, persistent: bool
) -> None:
    confirming.publish(1, key, b"a", persistent=persistent)
    assert acked(confirming) == [(1, False)]


@pytest.mark.parametrize("key", ["t", "q", "nowhere"])
def test_transient_confirms_wait_for_persistent_ones_before(
    bench: Bench, confirming: Peer, key: str
) -> None:
    confirming.publish(1, "q", b"slow")
    confirming.publish(1, key, b"fast", persistent=False)
    assert acked(confirming) == []
    bench.disk()
    assert acked(confirming) == [(2, True)]


def test_persistent_to_durable_and_transient_queues_waits(bench: Bench, confirming: Peer) -> None:
    for name in ("q", "t"):
        bind = make(spec.QueueBind, queue=name, exchange="amq.fanout")
        confirming.ask(1, bind, spec.QueueBindOk)
    confirming.publish(1, "", b"a", exchange="amq.fanout")
    assert acked(confirming) == []
    bench.disk()
    assert acked(confirming) == [(1, False)]


def test_batches_are_confirmed_as_they_get_durable(bench: Bench, confirming: Peer) -> None:
    confirming.publish(1, "q", b"first")
    confirming.publish(1, "q", b"second", b"third")  # the disk is at work on the first
    bench.disk_once()
    assert acked(confirming) == [(1, False)]
    bench.disk_once()
    assert acked(confirming) == [(3, True)]


def test_channels_are_confirmed_apart(bench: Bench, confirming: Peer) -> None:
    confirming.ask(2, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    confirming.publish(1, "q", b"a", b"b")
    confirming.publish(2, "q", b"c")
    bench.disk()
    said = [(said.channel, said.method) for said in confirming.take()]
    assert said == [
        (1, spec.BasicAck(2, True)),
        (2, spec.BasicAck(1, False)),
    ]


def test_return_precedes_the_confirm(confirming: Peer) -> None:
    confirming.publish(1, "nowhere", b"a", b"b", mandatory=True)
    first, second, ack = confirming.take()
    assert isinstance(first.method, spec.BasicReturn) and first.body == b"a"
    assert isinstance(second.method, spec.BasicReturn) and second.body == b"b"
    assert first.method.reply_code == 312 and first.method.reply_text == "NO_ROUTE"
    assert ack.method == spec.BasicAck(2, True)


def test_refused_publish_keeps_those_before_it(bench: Bench, confirming: Peer) -> None:
    confirming.send(1, message(1, "q", b"kept"), message(1, "q", b"refused", exchange="nowhere"))
    assert confirming.refused() == (
        "channel",
        404,
        "NOT_FOUND - no exchange 'nowhere' in vhost '/'",
    )
    bench.disk()
    assert acked(confirming) == []  # the channel is gone
    assert bench.broker.vhosts["/"].queues["q"].ready == 1


def test_channel_that_is_gone_gets_no_confirm(bench: Bench, confirming: Peer) -> None:
    confirming.publish(1, "q", b"a")
    confirming.ask(1, spec.ChannelClose(200, "", 0, 0), spec.ChannelCloseOk)
    bench.disk()
    assert confirming.take() == []


def test_nothing_is_confirmed_after_a_failed_sync(bench: Bench, confirming: Peer) -> None:
    bench.faulty.fail = lambda operation: OSError(5, "I/O error") if "sync" in operation else None
    confirming.publish(1, "q", b"a")
    bench.disk()
    assert bench.store.failure is not None and acked(confirming) == []


def test_queue_deleted_before_the_sync_still_confirms(bench: Bench, confirming: Peer) -> None:
    confirming.publish(1, "q", b"a")
    confirming.send(1, make(spec.QueueDelete, queue="q"))
    bench.disk()
    confirm, deleted = confirming.hear()
    assert confirm == spec.BasicAck(1, False) and isinstance(deleted, spec.QueueDeleteOk)


def test_second_confirm_select_does_not_count_anew(bench: Bench, confirming: Peer) -> None:
    confirming.publish(1, "q", b"a")
    bench.disk()
    confirming.take()
    confirming.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    confirming.publish(1, "q", b"b")
    bench.disk()
    assert acked(confirming) == [(2, False)]


# --- messages that need more than an append


def picky(queue: QueueType, refused: Sequence[bytes]) -> None:
    """Let a queue reject the messages with these bodies."""

    def publish(mail: Mail) -> Receipt:
        receipt = Receipt(0)
        rejected = [number for number, body in enumerate(mail.bodies) if body in refused]
        for number in range(len(mail.bodies)):
            if number not in rejected:
                receipt = publish_all(mail.part(number, number + 1))
        return Receipt(receipt.lsn, rejected)

    publish_all, queue.publish = queue.publish, publish  # type: ignore[method-assign]


TIMED = Properties(delivery_mode=2, expiration="100000")


def answered(peer: Peer) -> list[tuple[str, int, bool]]:
    """(ack or nack, tag, multiple) of the confirms that came; nothing else may have."""
    result = []
    for method in peer.hear():
        assert isinstance(method, spec.BasicAck | spec.BasicNack), method
        kind = "ack" if isinstance(method, spec.BasicAck) else "nack"
        result.append((kind, method.delivery_tag, method.multiple))
    return result


def test_what_a_queue_rejects_gets_a_nack_in_its_order(bench: Bench, confirming: Peer) -> None:
    picky(bench.broker.vhosts["/"].queues["q"], [b"2", b"3", b"5"])
    confirming.publish(1, "q", b"0")
    confirming.publish(1, "q", b"1", b"2", b"3", b"4", b"5", properties=TIMED)
    assert answered(confirming) == []
    bench.disk()
    assert answered(confirming) == [
        ("ack", 1, False),
        ("ack", 2, False),
        ("nack", 4, True),
        ("ack", 5, False),
        ("nack", 6, False),
    ]
    assert bench.broker.vhosts["/"].queues["q"].ready == 3


def test_a_message_is_rejected_if_any_of_its_queues_rejects_it(
    bench: Bench, confirming: Peer
) -> None:
    queues = bench.broker.vhosts["/"].queues
    for name in ("q", "t"):
        bind = make(spec.QueueBind, queue=name, exchange="amq.fanout")
        confirming.ask(1, bind, spec.QueueBindOk)
    picky(queues["q"], [b"a"])
    picky(queues["t"], [b"b"])
    confirming.publish(1, "", b"a", b"b", b"c", exchange="amq.fanout", properties=TIMED)
    bench.disk()
    assert answered(confirming) == [("nack", 2, True), ("ack", 3, False)]
    assert (queues["q"].ready, queues["t"].ready) == (2, 2)


# --- routes


def test_route_follows_bindings(peer: Peer) -> None:
    queue = peer.declare("q")
    for count in (0, 1):
        peer.publish(1, "k", b"a", exchange="amq.direct")
        assert queue.ready == count
        peer.ask(
            1,
            make(spec.QueueBind, queue="q", exchange="amq.direct", routing_key="k"),
            spec.QueueBindOk,
        )
    peer.ask(
        1,
        make(spec.QueueUnbind, queue="q", exchange="amq.direct", routing_key="k"),
        spec.QueueUnbindOk,
    )
    peer.publish(1, "k", b"a", exchange="amq.direct")
    assert queue.ready == 1


def test_what_is_remembered_of_ways_is_bounded(peer: Peer) -> None:
    budget = Budget(5000)
    vhost = peer.bench.broker.vhosts["/"]
    vhost.routes = Routes(budget)
    for number in range(30):
        peer.declare(f"q{number}")
    peer.ask(2, make(spec.ConfirmSelect), spec.ConfirmSelectOk)  # a channel with these routes
    for _ in range(3):
        for number in range(30):
            peer.publish(2, f"q{number}", b"a")
    assert 0 < budget.bytes_held <= 5000
    assert 0 < len(vhost.routes.known) < 30
    assert all(queue.ready == 3 for queue in vhost.queues.values())


def test_carbon_copies(peer: Peer) -> None:
    queues = [peer.declare(name) for name in ("a", "b", "c")]
    headers = Properties(headers={"CC": ["b", "a"], "BCC": ["c"]})
    peer.publish(1, "a", b"x", properties=headers)
    assert [queue.ready for queue in queues] == [1, 1, 1]
    peer.send(1, make(spec.BasicGet, queue="c"))
    (got,) = peer.take()
    assert got.properties is not None and got.properties.headers == {"CC": ["b", "a"]}


# --- transactions


@pytest.fixture
def transacting(peer: Peer) -> Peer:
    """A client in tx mode with a durable queue q."""
    peer.declare("q")
    peer.ask(1, spec.TxSelect(), spec.TxSelectOk)
    peer.bench.disk()
    return peer


def ready(bench: Bench, name: str = "q") -> int:
    return bench.broker.vhosts["/"].queues[name].ready


def test_commit_answers_after_the_sync(bench: Bench, transacting: Peer) -> None:
    transacting.publish(1, "q", b"a", b"b")
    bench.disk()
    assert ready(bench) == 0 and transacting.take() == []
    transacting.send(1, spec.TxCommit())
    assert ready(bench) == 2 and transacting.take() == []
    bench.disk()
    assert transacting.hear() == [spec.TxCommitOk()]
    bench.disk()
    assert transacting.take() == []


def test_commit_of_transient_messages_is_answered(bench: Bench, transacting: Peer) -> None:
    transacting.publish(1, "q", b"a", persistent=False)
    transacting.send(1, spec.TxCommit())
    bench.disk()
    assert transacting.hear() == [spec.TxCommitOk()]


def test_empty_commit_is_answered(bench: Bench, transacting: Peer) -> None:
    transacting.send(1, spec.TxCommit())
    bench.disk()
    assert transacting.hear() == [spec.TxCommitOk()]


def test_what_follows_a_commit_waits_for_it(bench: Bench, transacting: Peer) -> None:
    transacting.send(
        1,
        message(1, "q", b"first"),
        spec.TxCommit(),
        message(1, "q", b"second"),
        spec.TxCommit(),
        make(spec.QueueDeclare, queue="q", passive=True),
    )
    transacting.ask(
        2, make(spec.QueueDeclare, queue="q", passive=True), spec.QueueDeclareOk
    )  # others go on
    assert ready(bench) == 1
    bench.disk()
    assert transacting.hear() == [
        spec.TxCommitOk(),
        spec.TxCommitOk(),
        spec.QueueDeclareOk("q", 2, 0),
    ]


def test_closing_the_channel_waits_for_the_commit(bench: Bench, transacting: Peer) -> None:
    transacting.send(
        1,
        message(1, "q", b"first"),
        spec.TxCommit(),
        message(1, "q", b"second"),
        spec.TxCommit(),
        spec.ChannelClose(200, "", 0, 0),
    )
    assert transacting.take() == []
    bench.disk()
    assert transacting.hear() == [spec.TxCommitOk(), spec.TxCommitOk(), spec.ChannelCloseOk()]
    assert ready(bench) == 2


def test_channel_closed_behind_a_commit(bench: Bench, transacting: Peer) -> None:
    """Its close-ok waits like all else, and so does the number."""
    transacting.send(1, spec.TxCommit(), spec.ChannelClose(200, "", 0, 0))
    assert transacting.hear() == []
    bench.disk()
    assert transacting.hear() == [spec.TxCommitOk(), spec.ChannelCloseOk()]
    transacting.send(1, make(spec.ChannelOpen), make(spec.QueueDeclare, queue="q", passive=True))
    assert transacting.hear() == [spec.ChannelOpenOk(), spec.QueueDeclareOk("q", 0, 0)]


def test_channel_opened_again_before_its_commit_is_answered(
    bench: Bench, transacting: Peer
) -> None:
    transacting.send(1, spec.TxCommit(), spec.ChannelClose(200, "", 0, 0), make(spec.ChannelOpen))
    assert transacting.refused()[:2] == ("connection", 504)
    bench.disk()
    assert transacting.hear() == []


def test_error_behind_a_commit_and_before_a_close(bench: Bench, transacting: Peer) -> None:
    """Both sides close: ours first, and the client's close is answered."""
    transacting.send(1, spec.TxCommit(), spec.BasicAck(99, False), spec.ChannelClose(200, "", 0, 0))
    bench.disk()
    ok, close, close_ok = transacting.hear()
    assert isinstance(close, spec.ChannelClose)
    assert (ok, close_ok) == (spec.TxCommitOk(), spec.ChannelCloseOk())
    transacting.send(1, spec.ChannelCloseOk(), make(spec.ChannelOpen))
    assert transacting.hear() == [spec.ChannelOpenOk()]


def test_error_behind_a_commit_ends_what_follows(bench: Bench, transacting: Peer) -> None:
    transacting.send(
        1,
        spec.TxCommit(),
        spec.BasicAck(99, False),
        message(1, "q", b"ignored"),
        spec.BasicAck(100, False),
        spec.TxCommit(),
    )
    bench.disk()
    ok, close = transacting.hear()
    assert ok == spec.TxCommitOk()
    assert isinstance(close, spec.ChannelClose)
    assert close.reply_text == "PRECONDITION_FAILED - unknown delivery tag 99"
    assert ready(bench) == 0 and not transacting.core.ended


def test_connection_lost_while_a_commit_waits(bench: Bench, transacting: Peer) -> None:
    transacting.send(1, message(1, "q", b"a"), spec.TxCommit(), make(spec.BasicGet, queue="q"))
    transacting.client.lost()
    bench.disk()
    assert transacting.take() == [] and ready(bench) == 1


def test_rollback_forgets_publishes_and_gives_acks_back(bench: Bench, transacting: Peer) -> None:
    transacting.publish(1, "q", b"a")
    transacting.send(1, spec.TxCommit())
    bench.disk()
    transacting.take()
    transacting.send(1, make(spec.BasicGet, queue="q"))
    transacting.take()
    transacting.send(1, message(1, "q", b"b"), spec.BasicAck(1, False), spec.TxRollback())
    assert transacting.hear() == [spec.TxRollbackOk()]
    queue = bench.broker.vhosts["/"].queues["q"]
    assert (queue.ready, queue.unacked) == (0, 1)
    transacting.send(1, spec.BasicAck(1, False), spec.TxCommit())
    bench.disk()
    assert transacting.hear() == [spec.TxCommitOk()]
    assert (queue.ready, queue.unacked) == (0, 0)


@pytest.mark.parametrize(
    ("settle", "after_close"),
    [
        (spec.BasicAck(1, False), 1),
        (spec.BasicNack(1, False, False), 1),
        (spec.BasicReject(1, True), 1),
    ],
)
def test_uncommitted_settlements_are_undone_by_closing(
    bench: Bench, transacting: Peer, settle: spec.Method, after_close: int
) -> None:
    transacting.publish(1, "q", b"a")
    transacting.send(1, spec.TxCommit())
    bench.disk()
    transacting.send(1, make(spec.BasicGet, queue="q"))
    transacting.take()
    transacting.send(1, settle)
    assert ready(bench) == 0
    transacting.ask(1, spec.ChannelClose(200, "", 0, 0), spec.ChannelCloseOk)
    assert ready(bench) == after_close


def test_nack_requeues_with_the_commit(bench: Bench, transacting: Peer) -> None:
    transacting.publish(1, "q", b"a")
    transacting.send(1, spec.TxCommit())
    bench.disk()
    transacting.send(1, make(spec.BasicGet, queue="q"))
    transacting.send(1, spec.BasicNack(1, False, True))
    assert ready(bench) == 0
    transacting.send(1, spec.TxCommit())
    assert ready(bench) == 1


def test_unroutable_messages_come_back_once_each(bench: Bench, transacting: Peer) -> None:
    transacting.send(
        1,
        message(1, "x", b"1", mandatory=True),
        message(1, "y", b"2", mandatory=True),
        message(1, "x", b"3", mandatory=True),
    )
    assert transacting.take() == []
    transacting.send(1, spec.TxCommit())
    returned = [(said.method, said.body) for said in transacting.take()]
    assert returned == [
        (spec.BasicReturn(312, "NO_ROUTE", "", key), body)
        for key, body in (("x", b"1"), ("y", b"2"), ("x", b"3"))
    ]


def test_queue_deleted_before_the_commit_gets_nothing(bench: Bench, transacting: Peer) -> None:
    other = transacting.declare("other")
    for name in ("q", "other"):
        transacting.ask(
            1, make(spec.QueueBind, queue=name, exchange="amq.fanout"), spec.QueueBindOk
        )
    transacting.publish(1, "", b"to both", exchange="amq.fanout")
    transacting.publish(1, "q", b"to q")
    queue = bench.broker.vhosts["/"].queues["q"]
    transacting.ask(1, make(spec.QueueDelete, queue="q"), spec.QueueDeleteOk)
    transacting.send(1, spec.TxCommit())
    bench.disk()
    assert transacting.hear() == [spec.TxCommitOk()]
    assert (other.ready, queue.lane.alive) == (1, 0)


def take_one(bench: Bench, transacting: Peer) -> None:
    """A message that the client has to acknowledge."""
    transacting.publish(1, "q", b"a")
    transacting.send(1, spec.TxCommit())
    bench.disk()
    transacting.take()
    transacting.send(1, make(spec.BasicGet, queue="q"))
    transacting.take()


def test_acks_of_a_commit_wait_for_its_publishes(bench: Bench, transacting: Peer) -> None:
    """The disk is full for the log, though not for the ledger; then the broker is killed."""
    transacting.declare("target")
    take_one(bench, transacting)
    with bench.full_log():
        transacting.send(
            1, message(1, "target", b"moved"), spec.BasicAck(1, False), spec.TxCommit()
        )
        bench.disk_thrice()
        assert bench.store.shortage is not None and transacting.take() == []
        bench.kill()
    bench.open()
    assert (ready(bench), ready(bench, "target")) == (1, 0)
    bench.close()


def test_commit_of_publishes_and_acks_is_answered_when_both_last(
    bench: Bench, transacting: Peer
) -> None:
    transacting.declare("target")
    take_one(bench, transacting)
    transacting.send(1, message(1, "target", b"moved"), spec.BasicAck(1, False), spec.TxCommit())
    while not transacting.take():
        assert bench.disk_once()
    bench.kill()
    bench.open()
    assert (ready(bench), ready(bench, "target")) == (0, 1)
    bench.close()


@pytest.mark.parametrize(
    ("methods", "text"),
    [
        ([spec.TxSelect(), make(spec.ConfirmSelect)], "cannot switch from tx to confirm mode"),
        ([make(spec.ConfirmSelect), spec.TxSelect()], "cannot switch from confirm to tx mode"),
        ([spec.TxCommit()], "channel is not transactional"),
        ([spec.TxRollback()], "channel is not transactional"),
    ],
)
def test_modes_exclude_each_other(peer: Peer, methods: list[spec.Method], text: str) -> None:
    peer.send(1, *methods)
    assert peer.refused() == ("channel", 406, f"PRECONDITION_FAILED - {text}")


def test_what_could_not_be_stored_is_not_confirmed(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.declare("q")
    peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)

    append = bench.broker.store.append
    calls: list[object] = []

    def fail_once(*args: Any, **options: Any) -> int:
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("append failed")
        return append(*args, **options)

    monkeypatch.setattr(bench.broker.store, "append", fail_once)
    # Two batches in one read: the first fails, and neither is it tried again nor anything confirmed.
    peer.send(1, message(1, "q", b"lost"), message(1, "q", b"kept", persistent=False))
    said = peer.hear()
    assert len(calls) == 1
    assert not [method for method in said if isinstance(method, spec.BasicAck)]
    assert isinstance(said[-1], spec.ConnectionClose) and said[-1].reply_code == 541


def test_a_channel_that_cannot_be_confirmed_keeps_no_other_waiting(bench: Bench) -> None:
    class Broken:
        def confirm_through(self, durable_lsn: int) -> bool:
            raise RuntimeError("broken")

    publisher = Peer(bench)
    publisher.declare("q")
    publisher.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    bench.broker.services.durability.await_confirms(Broken())
    publisher.publish(1, "q", b"body")
    with pytest.raises(RuntimeError, match="broken"):
        bench.disk()  # the turns log it, and go on
    bench.disk()
    assert publisher.hear() == [spec.BasicAck(1, False)]


def test_a_commit_that_a_queue_rejects_in_part_is_answered_with_an_error(
    bench: Bench, transacting: Peer
) -> None:
    queue = bench.broker.vhosts["/"].queues["q"]
    ready = queue.ready
    picky(queue, [b"b"])
    transacting.publish(1, "q", b"a", b"b", properties=TIMED)
    transacting.send(1, make(spec.TxCommit))
    bench.disk()
    assert transacting.refused() == (
        "channel",
        406,
        "PRECONDITION_FAILED - partial tx completion",
    )
    assert queue.ready == ready + 1


# --- what an import says of a message


def recorded(value: Value) -> bytes:
    headers: Table = {"a": 1, "x-qlog-record": value, "b": 2}
    return message(1, "q", b"x", properties=Properties(delivery_mode=2, headers=headers))


def test_what_an_import_knows_of_a_message_is_believed_of_administrators(
    bench: Bench, confirming: Peer
) -> None:
    record = Record(True, ["k"], ["h"])
    confirming.send(1, recorded(record.as_table()))
    (lane,) = bench.broker.vhosts["/"].queues["q"].lanes
    found = lane.read(0, 9, 999)
    assert found is not None
    (stored,) = found.metas
    assert stored.record == record
    assert stored.properties == encode_properties(
        Properties(delivery_mode=2, headers={"a": 1, "b": 2})
    )
    confirming.client.user.tags = ("management",)
    confirming.send(1, recorded(record.as_table()))
    assert confirming.refused()[:2] == ("channel", 403)


@pytest.mark.parametrize("value", [True, {}, {"died": 1, "keys": [], "hidden": []}])
def test_what_is_no_record_is_refused(confirming: Peer, value: Value) -> None:
    confirming.send(1, recorded(value))
    assert confirming.refused()[:2] == ("channel", 406)
