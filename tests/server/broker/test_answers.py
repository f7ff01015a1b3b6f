"""Replies that wait for the disk: in order, together, and in bounds."""

from __future__ import annotations

from qlog.server.amqp import spec
from qlog.server.amqp.frames import method_frame
from qlog.server.amqp.spec import Method
from qlog.server.broker.channels.answers import WAITING_MAX
from qlog.server.broker.channels.sink import READ, Hold
from tests.server.broker.support import Bench, Peer, make, message


def declare(name: str, **options: object) -> spec.QueueDeclare:
    return make(spec.QueueDeclare, queue=name, **{"durable": True, **options})


def bind(key: str, **options: object) -> spec.QueueBind:
    return make(spec.QueueBind, queue="q", exchange="amq.direct", routing_key=key, **options)


def keys(bench: Bench) -> set[str]:
    """With which the queue "q" is bound."""
    bindings = bench.broker.vhosts["/"].routing.bindings_from("amq.direct")
    return {binding.routing_key for binding in bindings}


def test_what_is_pipelined_shares_the_syncs(bench: Bench, peer: Peer) -> None:
    """Each method sees what those before it did, though their replies have not left."""
    peer.send(1)
    operations: list[str] = []
    bench.faulty.fail = lambda operation: operations.append(operation)
    peer.send(
        1,
        make(spec.ExchangeDeclare, exchange="e", type="fanout", durable=True),
        declare("q"),
        make(spec.QueueBind, exchange="e"),
        *(bind(str(number)) for number in range(50)),
        make(spec.QueueUnbind, queue="q", exchange="amq.direct", routing_key="7"),
        make(spec.QueueDelete, queue="gone"),
        declare("q", passive=True),
    )
    assert peer.hear() == [] and len(keys(bench)) == 49
    bench.disk()
    assert [type(method) for method in peer.hear()] == [
        spec.ExchangeDeclareOk,
        spec.QueueDeclareOk,
        spec.QueueBindOk,
        *[spec.QueueBindOk] * 50,
        spec.QueueUnbindOk,
        spec.QueueDeleteOk,
        spec.QueueDeclareOk,
    ]
    assert operations.count("sync_data") <= 2


def test_a_reply_tells_what_was_when_its_method_was_obeyed(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    peer.publish(1, "q", b"a", b"b")
    peer.send(
        1, bind("k"), declare("q", passive=True), make(spec.QueuePurge, queue="q"), declare("q")
    )
    assert peer.hear() == []
    bench.disk()
    assert peer.hear() == [
        spec.QueueBindOk(),
        spec.QueueDeclareOk("q", 2, 0),
        spec.QueuePurgeOk(2),
        spec.QueueDeclareOk("q", 0, 0),
    ]


def test_an_error_is_told_after_the_replies_before_it(bench: Bench, peer: Peer) -> None:
    """And nothing behind it is obeyed, but for what is on other channels."""
    peer.send(2)
    peer.send(1, declare("q"), bind("k"), declare("q", auto_delete=True), declare("never"))
    assert peer.hear() == []
    peer.ask(2, make(spec.BasicQos, prefetch_count=1), spec.BasicQosOk)
    bench.disk()
    declared, bound, closed = peer.hear()
    assert isinstance(declared, spec.QueueDeclareOk) and isinstance(bound, spec.QueueBindOk)
    assert isinstance(closed, spec.ChannelClose) and closed.reply_code == 406
    assert "never" not in bench.broker.vhosts["/"].queues
    peer.send(1, spec.ChannelCloseOk(), make(spec.ChannelOpen))
    assert [type(method) for method in peer.hear()] == [spec.ChannelOpenOk]


def test_an_error_of_the_connection_waits_for_the_replies_too(bench: Bench, peer: Peer) -> None:
    peer.send(1, declare("q"), make(spec.BasicRecover, requeue=False))
    assert peer.hear() == []
    bench.disk()
    declared, closed = peer.hear()
    assert isinstance(declared, spec.QueueDeclareOk)
    assert isinstance(closed, spec.ConnectionClose) and closed.reply_code == 540


def test_the_end_of_a_channel_waits_for_its_replies(bench: Bench, peer: Peer) -> None:
    peer.send(1, declare("q"), declare("r", nowait=True), make(spec.ChannelClose))
    assert peer.hear() == []
    bench.disk()
    assert [type(method) for method in peer.hear()] == [spec.QueueDeclareOk, spec.ChannelCloseOk]
    peer.send(1, make(spec.ChannelOpen))
    assert [type(method) for method in peer.hear()] == [spec.ChannelOpenOk]


def test_nothing_waits_for_what_wants_no_reply(bench: Bench, peer: Peer) -> None:
    peer.ask(1, spec.ConfirmSelect(nowait=False), spec.ConfirmSelectOk)
    peer.send(
        1,
        declare("q", nowait=True),
        make(spec.QueueBind, exchange="amq.direct", routing_key="k", nowait=True),
        message(1, "k", b"body", exchange="amq.direct"),
        make(spec.BasicQos, prefetch_count=1),
    )
    assert peer.hear() == [spec.BasicQosOk()]
    assert bench.broker.vhosts["/"].queues["q"].ready == 1
    bench.disk()
    assert peer.hear() == [spec.BasicAck(1, multiple=False)]


def test_what_one_client_can_have_waiting_is_bounded(bench: Bench, peer: Peer) -> None:
    """With many channels, and without replies; what is more waits in what was read."""
    peer.declare("q")
    for nowait in (False, True):
        wanted: list[Method] = [
            bind(f"{nowait}{number}", nowait=nowait) for number in range(WAITING_MAX + 100)
        ]
        peer.send(2)
        frames = [method_frame(1 + at % 2, method) for at, method in enumerate(wanted)]
        before = len(keys(bench))
        peer.receive(b"".join(frames))
        waiting = peer.client.answers_waiting
        assert WAITING_MAX <= waiting <= WAITING_MAX + 2
        assert len(keys(bench)) == before + waiting
        assert Hold.COMMIT in peer.sink.why_not_read
        bench.disk()
        bench.disk()
        assert peer.client.answers_waiting == 0 and peer.sink.why_not_read is READ
        assert len(keys(bench)) == before + len(wanted)
        assert len(peer.hear()) == (0 if nowait else len(wanted))


def test_a_client_that_goes_leaves_nothing_waiting(bench: Bench, peer: Peer) -> None:
    peer.send(1, declare("q"), bind("k"), make(spec.BasicQos, prefetch_count=1), bind("never"))
    peer.client.lost()
    bench.disk()
    assert peer.hear() == [] and peer.client.answers_waiting == 0
    assert keys(bench) == {"k"} and peer.sink.why_not_read is READ


def test_order_is_kept_through_an_alarm(bench: Bench, peer: Peer) -> None:
    """A publish that waits for a reply, and meets an alarm then, stays before what came later."""
    peer.send(2)
    bench.broker.set_alarm("low on disk", True)
    peer.send(
        1, declare("q"), message(1, "q", b"first"), message(2, "x", b""), message(1, "q", b"second")
    )
    bench.disk()
    assert [type(method) for method in peer.hear()] == [spec.ConnectionBlocked, spec.QueueDeclareOk]
    assert bench.broker.vhosts["/"].queues["q"].ready == 0
    bench.broker.set_alarm("low on disk", False)
    peer.obey()
    bench.disk()
    peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag="c", no_ack=True))
    bodies = [said.body for said in peer.take() if isinstance(said.method, spec.BasicDeliver)]
    assert bodies == [b"first", b"second"]
