"""Consumers and queues beyond what the delivery machine covers."""

from __future__ import annotations

import logging

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.errors import connection_forced
from qlog.server.broker.queues import backlog, quorum
from qlog.server.broker.queues.classic import ClassicQueue
from qlog.storage.errors import CorruptLog
from tests.server.broker.support import Bench, Peer, make, message


def consume(peer: Peer, channel: int, queue: str, tag: str, **options: object) -> None:
    peer.send(channel, make(spec.BasicConsume, queue=queue, consumer_tag=tag, **options))


def get(peer: Peer, queue: str) -> tuple[bytes | None, bool]:
    """Body and redelivered flag of the next message."""
    peer.send(1, make(spec.BasicGet, queue=queue))
    (said,) = peer.take()
    assert isinstance(said.method, spec.BasicGetOk), said
    return said.body, said.method.redelivered


# --- whose turn it is


def test_equal_consumers_take_turns(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    others = [Peer(bench) for _ in range(3)]
    for other in others:
        consume(other, 1, "q", "c")
        other.take()
    peer.publish(1, "q", *[b"x"] * 9)
    assert [len(other.deliveries()) for other in others] == [3, 3, 3]
    for _ in range(6):
        peer.publish(1, "q", b"x")
    assert [len(other.deliveries()) for other in others] == [2, 2, 2]


def test_higher_priority_takes_all_while_it_can(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    low, high = Peer(bench), Peer(bench)
    consume(low, 1, "q", "low", arguments={"x-priority": -1})
    high.send(1, make(spec.BasicQos, prefetch_count=2))
    consume(high, 1, "q", "high", arguments={"x-priority": 7})
    low.take(), high.take()
    peer.publish(1, "q", *(b"%d" % n for n in range(5)))
    assert [body for *_, body in high.deliveries()] == [b"0", b"1"]
    assert [body for *_, body in low.deliveries()] == [b"2", b"3", b"4"]
    high.send(1, spec.BasicAck(1, False))
    peer.publish(1, "q", b"5")
    assert len(high.deliveries()) == 1 and low.take() == []


def served(peer: Peer, tags: list[str], count: int) -> list[str]:
    """The tags of so many deliveries, each of which is acknowledged when it has come."""
    got: list[str] = []
    while len(got) < count:
        for tag, delivery_tag, _, _ in peer.deliveries():
            got.append(tag)
            peer.send(1, spec.BasicAck(delivery_tag, False))
    return got


def test_queues_of_a_channel_with_one_prefetch_take_turns(bench: Bench, peer: Peer) -> None:
    names = ["a", "b", "c"]
    for name in names:
        peer.declare(name)
        peer.publish(1, name, *[b"x"] * 20)
    peer.send(1, make(spec.BasicQos, prefetch_count=1, global_=True))
    peer.send(1, *(make(spec.BasicConsume, queue=name, consumer_tag=name) for name in names))
    first = [said for said in peer.take() if isinstance(said.method, spec.BasicDeliver)]
    assert len(first) == 1
    peer.send(1, spec.BasicAck(1, False))
    assert served(peer, names, 30) == ["b", "c", "a"] * 10


def test_queue_that_is_published_to_takes_no_turn_of_another(bench: Bench, peer: Peer) -> None:
    """One channel with one prefetch: its first queue always has something new when one is acked."""
    for name in ("busy", "waits"):
        peer.declare(name)
    peer.publish(1, "waits", *[b"x"] * 10)
    peer.send(1, make(spec.BasicQos, prefetch_count=1, global_=True))
    for name in ("busy", "waits"):
        consume(peer, 1, name, name)
    (tag,) = [said.method.delivery_tag for said in peer.take() if said.body]  # type: ignore[attr-defined]
    got = []
    for _ in range(10):
        peer.send(1, message(1, "busy", b"x"), spec.BasicAck(tag, False))
        ((name, tag, _, _),) = peer.deliveries()
        got.append(name)
    assert got == ["waits", "busy"] * 5


def test_no_ack_consumer_waits_while_the_channel_is_full(bench: Bench, peer: Peer) -> None:
    for name in ("acked", "free"):
        peer.declare(name)
    peer.send(1, make(spec.BasicQos, prefetch_count=1, global_=True))
    consume(peer, 1, "acked", "acked")
    consume(peer, 1, "free", "free", no_ack=True)
    peer.take()
    peer.publish(1, "acked", b"a")
    assert peer.deliveries() == [("acked", 1, False, b"a")]
    peer.publish(1, "free", b"b", b"c")
    assert peer.take() == []
    peer.send(1, spec.BasicAck(1, False))
    assert [body for *_, body in peer.deliveries()] == [b"b", b"c"]


def test_settling_much_feeds_a_channel_with_many_consumers_once(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    peer.publish(1, "q", *[b"x"] * 60)
    peer.send(1, make(spec.BasicQos, prefetch_count=40, global_=True))
    for number in range(20):
        consume(peer, 1, "q", f"c{number}")
    peer.take()
    channel = peer.client.channels[1]
    feed, fed = channel.feed_refused, 0

    def count() -> bool:
        nonlocal fed
        fed += 1
        return feed()

    channel.feed_refused = count  # type: ignore[method-assign]
    peer.send(1, *(spec.BasicAck(tag, False) for tag in range(40, 20, -1)))
    assert fed == 1 and len(peer.deliveries()) == 20


def test_full_socket_leaves_messages_to_others(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    stuck, free = Peer(bench), Peer(bench)
    for other in (stuck, free):
        consume(other, 1, "q", "c")
        other.take()
    stuck.sink.full = True
    peer.publish(1, "q", *[b"x"] * 4)
    assert stuck.take() == [] and len(free.deliveries()) == 4


# --- redelivered


def test_only_what_was_delivered_is_redelivered_after_a_restart(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    peer.publish(1, "q", *(b"%d" % n for n in range(9)))
    for _ in range(5):
        get(peer, "q")
    peer.send(1, spec.BasicAck(2, False), spec.BasicAck(3, False), spec.BasicAck(4, False))
    bench.restart()
    again = Peer(bench)
    consume(again, 1, "q", "c")
    again_said = [said for said in again.take() if isinstance(said.method, spec.BasicDeliver)]
    flags = {said.body: said.method.redelivered for said in again_said}  # type: ignore[attr-defined]
    assert flags == {
        b"0": True,
        b"4": True,
        b"5": False,
        b"6": False,
        b"7": False,
        b"8": False,
    }


def test_deliveries_survive_a_kill(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    peer.publish(1, "q", b"a", b"b")
    get(peer, "q")
    bench.disk()
    bench.kill()
    bench.open()
    again = Peer(bench)
    assert get(again, "q") == (b"a", True)
    assert get(again, "q") == (b"b", False)


# --- queues that go


def test_auto_delete_goes_with_the_last_consumer(bench: Bench, peer: Peer) -> None:
    peer.declare("q", auto_delete=True)
    consume(peer, 1, "q", "a")
    consume(peer, 2, "q", "b")
    peer.publish(1, "q", b"unacked")
    peer.take()
    peer.ask(1, make(spec.BasicCancel, consumer_tag="a"), spec.BasicCancelOk)
    assert "q" in bench.broker.vhosts["/"].queues
    peer.ask(2, spec.ChannelClose(200, "", 0, 0), spec.ChannelCloseOk)
    assert "q" not in bench.broker.vhosts["/"].queues
    peer.send(1, make(spec.BasicAck, delivery_tag=1))
    assert peer.take() == []
    bench.restart()
    assert "q" not in bench.broker.vhosts["/"].queues


def test_exclusive_queue_is_gone_before_close_ok(bench: Bench, peer: Peer) -> None:
    peer.declare("mine", exclusive=True)
    gone_when_told = []
    send = peer.sink.send

    def watch(channel: int, method: spec.Method) -> None:
        if isinstance(method, spec.ConnectionCloseOk):
            gone_when_told.append("mine" not in bench.broker.vhosts["/"].queues)
        send(channel, method)

    peer.sink.send = watch  # type: ignore[method-assign]
    peer.send(0, spec.ConnectionClose(200, "", 0, 0))
    assert gone_when_told == [True]


def test_exclusive_queue_is_locked_to_others(bench: Bench, peer: Peer) -> None:
    peer.declare("mine", exclusive=True)
    other = Peer(bench)
    other.send(1, make(spec.QueueDeclare, queue="mine", passive=True))
    scope, code, text = other.refused()
    assert (scope, code) == ("channel", 405)
    assert text.startswith(
        "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'mine' in vhost '/'"
    )


def test_deleting_tells_consumers_after_the_deleter(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    deaf = Peer(bench, properties={})
    consume(peer, 1, "q", "c")
    consume(deaf, 1, "q", "c")
    peer.take(), deaf.take()
    peer.send(1, make(spec.QueueDelete, queue="q"))
    bench.disk()
    assert peer.hear() == [spec.QueueDeleteOk(0), spec.BasicCancel("c", True)]
    assert deaf.take() == []


@pytest.mark.parametrize("type_", ["classic", "quorum"])
def test_a_take_looks_at_few_messages(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch, asked: list[int], type_: str
) -> None:
    """However much is ready, and whatever credit the consumer has."""
    monkeypatch.setattr(backlog, "TAKE_COUNT_MAX", 100)
    monkeypatch.setattr(quorum, "TAKE_COUNT_MAX", 100)
    peer.declare("q", arguments={"x-queue-type": type_})
    peer.publish(1, "q", *(b"x" for _ in range(1000)))
    bench.disk()
    asked.clear()
    consume(peer, 1, "q", "c")
    bench.settle()
    assert len(peer.take()) == 1 + 1000 and max(asked) == 100


# --- direct reply-to


def request(peer: Peer) -> str:
    """Start to wait for replies; the address that a request carries."""
    consume(peer, 1, "amq.rabbitmq.reply-to", "r", no_ack=True)
    assert peer.hear() == [spec.BasicConsumeOk("r")]
    return peer.client.channels[1].publisher.reply_address


def test_reply_goes_past_all_queues(bench: Bench, peer: Peer) -> None:
    address = request(peer)
    server = Peer(bench)
    server.publish(1, address, b"one", b"two")
    assert [body for *_, body in peer.deliveries()] == [b"one", b"two"]
    peer.ask(1, make(spec.BasicCancel, consumer_tag="r"), spec.BasicCancelOk)
    server.publish(1, address, b"three", mandatory=True)
    assert isinstance(server.take()[0].method, spec.BasicReturn) and peer.take() == []


def test_a_requester_that_ends_takes_no_more(bench: Bench, peer: Peer) -> None:
    """Before the channel has let go of what it held, which may take a while."""
    address = request(peer)
    server = Peer(bench)
    server.publish(1, address, b"first")
    assert [body for *_, body in peer.deliveries()] == [b"first"]
    peer.client.channels[1].stop()
    declare = make(spec.QueueDeclare, queue=address, passive=True)
    server.send(1, message(1, address, b"reply", mandatory=True), declare)
    returned, refused = server.hear()
    assert isinstance(returned, spec.BasicReturn) and peer.take() == []
    assert isinstance(refused, spec.ChannelClose) and refused.reply_code == 404


def test_requester_may_leave_before_the_commit(bench: Bench, peer: Peer) -> None:
    address = request(peer)
    server = Peer(bench)
    server.ask(1, spec.TxSelect(), spec.TxSelectOk)
    server.publish(1, address, b"reply")
    peer.ask(1, make(spec.BasicCancel, consumer_tag="r"), spec.BasicCancelOk)
    server.send(1, spec.TxCommit())
    bench.disk()
    assert server.hear() == [spec.TxCommitOk()] and peer.take() == []


@pytest.mark.parametrize(
    ("methods", "text"),
    [
        ([{"no_ack": False}], "reply consumer cannot acknowledge"),
        ([{"no_ack": True}, {"no_ack": True}], "reply consumer already set"),
    ],
)
def test_reply_consumer_refused(peer: Peer, methods: list[dict[str, object]], text: str) -> None:
    for index, options in enumerate(methods):
        consume(peer, 1, "amq.rabbitmq.reply-to", f"r{index}", **options)
    assert peer.refused() == ("channel", 406, f"PRECONDITION_FAILED - {text}")


# --- the consumer ack timeout


def test_overdue_delivery_closes_the_channel(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q", arguments={"x-consumer-timeout": 5000})
    consume(peer, 1, "q", "c")
    peer.publish(1, "q", b"a")
    peer.take()
    bench.now_s += 5
    bench.broker.check_consumers()
    assert peer.take() == [] and queue.unacked == 1
    bench.now_s += 0.1
    bench.broker.check_consumers()
    assert peer.refused() == (
        "channel",
        406,
        (
            "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: "
            "5000 ms. This timeout value can be configured, see consumers doc guide to learn more"
        ),
    )
    assert (queue.ready, queue.unacked, len(queue.takers)) == (1, 0, 0)


def test_timeout_of_the_consumer_beats_that_of_the_queue(bench: Bench, peer: Peer) -> None:
    peer.declare("q", arguments={"x-consumer-timeout": 1000})
    consume(peer, 1, "q", "c", arguments={"x-consumer-timeout": 60_000})
    peer.publish(1, "q", b"a")
    peer.take()
    bench.now_s += 30
    bench.broker.check_consumers()
    assert peer.take() == []


def test_overdue_delivery_goes_back_by_itself_where_asked_for(bench: Bench, peer: Peer) -> None:
    arguments = {"x-consumer-timeout": 5000, "x-consumer-timeout-action": "requeue"}
    queue = peer.declare("q", arguments=arguments)
    peer.send(1, make(spec.BasicQos, prefetch_count=1))
    consume(peer, 1, "q", "c")
    peer.publish(1, "q", b"a", b"b")
    peer.take()
    bench.now_s += 6
    bench.broker.check_consumers()
    bench.end_tick()
    assert peer.deliveries() == [("c", 2, True, b"a")]
    peer.send(1, spec.BasicAck(1, False))  # late: ignored
    assert peer.take() == [] and queue.unacked == 1
    peer.send(1, spec.BasicAck(2, False))
    assert peer.deliveries() == [("c", 3, False, b"b")]
    peer.send(1, spec.BasicAck(1, False))  # but not twice
    assert peer.refused()[2] == "PRECONDITION_FAILED - unknown delivery tag 1"


# --- alarms


def test_alarm_stops_who_publishes(bench: Bench, peer: Peer) -> None:
    """It is told then and not before, and nothing that it publishes gets in before the end."""
    peer.declare("q")
    peer.publish(1, "q", b"before")
    consumer = Peer(bench)
    consume(consumer, 1, "q", "c")
    consumer.take()
    bench.broker.set_alarm("low on disk", True)
    peer.send(1, make(spec.QueueDeclare, queue="q", passive=True))  # it published before
    assert peer.hear() == [spec.QueueDeclareOk("q", 0, 1)] and not peer.client.blocked
    peer.publish(1, "q", b"a", b"b")
    assert peer.hear() == [spec.ConnectionBlocked("low on disk")]
    peer.send(1, message(1, "q", b"c"), make(spec.QueueDeclare, queue="q", passive=True))
    assert peer.take() == [] and consumer.deliveries() == []
    assert peer.client.blocked and not consumer.client.blocked
    bench.broker.set_alarm("low on memory", True)
    bench.broker.set_alarm("low on disk", False)
    assert peer.take() == [] and peer.client.blocked
    bench.broker.set_alarm("low on memory", False)
    peer.obey()
    bench.end_tick()
    assert peer.hear() == [spec.ConnectionUnblocked(), spec.QueueDeclareOk("q", 0, 1)]
    assert not peer.client.blocked
    assert [body for _, _, _, body in consumer.deliveries()] == [b"a", b"b", b"c"]


def test_others_go_on_during_an_alarm(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    peer.publish(1, "q", b"a", b"b")
    consumer = Peer(bench)
    consume(consumer, 1, "q", "c")
    bench.broker.set_alarm("low on disk", True)
    assert len(consumer.take()) == 3  # consume-ok and both
    consumer.send(1, spec.BasicAck(2, True))
    assert queue.unacked == 0 and not consumer.client.blocked
    got = consumer.ask(2, make(spec.BasicGet, queue="q"), spec.BasicGetEmpty)
    assert isinstance(got, spec.BasicGetEmpty)
    consumer.declare("other")


def test_blocked_client_that_is_closed(bench: Bench, peer: Peer) -> None:
    """What it published during the alarm never gets in; its close-ok is heard."""
    queue = peer.declare("q")
    bench.broker.set_alarm("low on disk", True)
    peer.publish(1, "q", b"a")
    bench.broker.close_clients(connection_forced("bye"))
    peer.take()
    peer.send(0, spec.ConnectionCloseOk())
    bench.broker.set_alarm("low on disk", False)
    assert queue.ready == 0 and peer.take() == [] and peer.sink.closed_after_s == 0


def test_alarm_behind_a_commit(bench: Bench, peer: Peer) -> None:
    """What waits for a tx.commit and meets an alarm then is put off, and stays in order."""
    queue = peer.declare("q")
    peer.ask(1, spec.TxSelect(), spec.TxSelectOk)
    peer.send(1, spec.TxCommit(), message(1, "q", b"a"), spec.TxCommit())
    bench.broker.set_alarm("low on disk", True)
    bench.disk()
    assert peer.hear() == [spec.TxCommitOk(), spec.ConnectionBlocked("low on disk")]
    assert queue.ready == 0
    bench.broker.set_alarm("low on disk", False)
    bench.disk()
    assert peer.hear() == [spec.ConnectionUnblocked(), spec.TxCommitOk()] and queue.ready == 1


# --- what must not happen, and does


def test_damaged_message_costs_its_consumers_only(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, sound = peer.declare("damaged"), peer.declare("sound")
    victim, bystander = Peer(bench), Peer(bench)
    consume(victim, 1, "damaged", "c")
    consume(bystander, 1, "sound", "c")
    victim.take(), bystander.take()

    def read(qseq: int, count_max: int, bytes_max: int) -> None:
        raise CorruptLog("log/1.qseg is damaged at byte 4096")

    monkeypatch.setattr(damaged.lane, "read", read)
    with caplog.at_level(logging.ERROR):
        peer.send(1, message(1, "damaged", b"a"), message(1, "sound", b"b"))
    assert victim.refused() == (
        "connection",
        541,
        "INTERNAL_ERROR - cannot deliver from queue 'damaged' in vhost '/'",
    )
    assert len(bystander.deliveries()) == 1 and peer.take() == []
    assert "damaged at byte 4096" in caplog.text and "Traceback" not in caplog.text
    assert (damaged.ready, damaged.unacked, sound.unacked) == (1, 0, 1)
    peer.send(1, make(spec.BasicGet, queue="damaged"))
    assert peer.refused()[:2] == ("connection", 541)
    assert damaged.ready == 1  # never skipped
    assert damaged.purge() == 1  # but given up when told to


def test_unexpected_error_costs_its_client_only(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue = peer.declare("q")
    monkeypatch.setattr(ClassicQueue, "purge", lambda self: 1 // 0)
    victim = Peer(bench)
    victim.send(1, make(spec.QueuePurge, queue="q"), message(1, "q", b"ignored"))
    assert victim.refused()[:2] == ("connection", 541)
    assert "ZeroDivisionError" in caplog.text
    assert queue.ready == 0
    victim.receive(message(1, "q", b"ignored too"))
    victim.send(0, spec.ConnectionCloseOk())
    assert victim.sink.closed_after_s == 0.0
    peer.publish(1, "q", b"a")
    assert queue.ready == 1


def test_what_came_back_one_by_one_goes_out_in_order(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    consume(peer, 1, "q", "c")
    peer.publish(1, "q", *(b"%d" % number for number in range(10)))
    peer.sink.full = True
    for tag in (5, 3, 4, 1, 9, 2, 8):
        peer.send(1, spec.BasicReject(tag, True))
    peer.take()
    peer.sink.full = False
    peer.client.drained()
    bench.end_tick()
    assert [body for *_, body in peer.deliveries()] == [b"0", b"1", b"2", b"3", b"4", b"7", b"8"]


def test_flipped_bit_on_disk_is_reported_and_never_delivered(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    peer.publish(1, "q", b"sound", b"flipped" * 100)
    bench.disk()
    bench.close()
    for segment in (bench.directory / "log").glob("*.qseg"):
        segment.write_bytes(segment.read_bytes().replace(b"flipped" * 3, b"fl1pped" * 3))
    bench.open()
    again = Peer(bench)
    consume(again, 1, "q", "c")
    said = again.take()
    close = said[-1].method
    assert isinstance(close, spec.ConnectionClose) and close.reply_code == 541
    assert not [one.body for one in said if one.body and b"fl1pped" in one.body]
    queue = bench.broker.vhosts["/"].queues["q"]
    assert (queue.ready, queue.unacked) == (2, 0)


# --- queues that nobody takes from


def test_a_queue_that_nobody_takes_from_is_not_asked(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    pump = ClassicQueue.pump

    def noted(queue: ClassicQueue) -> bool:
        asked.append(queue.name)
        return pump(queue)

    monkeypatch.setattr(ClassicQueue, "pump", noted)
    peer.declare("plain")
    peer.declare("timed", arguments={"x-message-ttl": 60_000})
    peer.declare("quorum", arguments={"x-queue-type": "quorum"})
    for name in ("plain", "timed", "quorum"):
        peer.publish(1, name, b"x")
    assert set(asked) == {"timed", "quorum"}
    consume(peer, 1, "plain", "c", no_ack=True)
    assert [said.body for said in peer.take()[1:]] == [b"x"]
    peer.publish(1, "plain", b"y")
    assert [body for *_, body in peer.deliveries()] == [b"y"]
    peer.ask(1, make(spec.BasicCancel, consumer_tag="c"), spec.BasicCancelOk)
    asked.clear()
    peer.publish(1, "plain", b"z")
    assert asked == []
