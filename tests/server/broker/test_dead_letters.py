"""Dead letters: where they go, what they tell, and what is on the disk at each moment.

What the headers have to be was asked of a RabbitMQ 4.0.5; tests/live/test_dead_letters.py asks it
again.
"""

from __future__ import annotations

from itertools import count as count_from
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope, Record
from qlog.server.amqp.properties import Properties, encode_properties
from qlog.server.amqp.values import Int64, Table, Timestamp
from qlog.server.broker.features.dead_letter import LETTERS_AT_ONCE, PAUSE_S, RETRY_S
from qlog.server.broker.features.deaths import Copy, Death, copy_of
from qlog.server.broker.queues.type import QueueType
from qlog.storage.errors import CorruptLog
from tests.server.broker.support import Bench, Peer, make, message

# --- what a dead letter tells


def envelope(
    properties: Properties, exchange: str = "x", key: str = "k", record: Record | None = None
) -> Envelope:
    raw = encode_properties(properties)
    if record is None:
        return Envelope.pack(exchange, key, raw, 7)
    return Envelope.pack(exchange, key, raw, 7, record)


def die(
    message: Envelope, queue: str = "q", reason: str = "rejected", key: str | None = "dead"
) -> Copy:
    return copy_of(message, Death(queue, reason, "dlx", key, 1000))


def headers_after(message: Envelope, *deaths: tuple[str, str]) -> Table:
    for queue, reason in deaths:
        message = die(message, queue, reason).envelope
    return message.headers()


def entry(queue: str = "q", reason: str = "rejected", **other: Any) -> dict[str, Any]:
    table = {
        "count": 1,
        "reason": reason,
        "queue": queue,
        "time": 1000,
        "exchange": "x",
        "routing-keys": ["k"],
    }
    return {**table, **{name.replace("_", "-"): value for name, value in other.items()}}


def deaths_in(headers: Table | None) -> list[dict[str, Any]]:
    """What `x-death` has."""
    deaths: Any = (headers or {})["x-death"]
    return list(deaths)


def story(first: tuple[str, str, str], last: tuple[str, str, str]) -> dict[str, str]:
    names = ("exchange", "queue", "reason")
    return {
        **{f"x-first-death-{name}": value for name, value in zip(names, first, strict=True)},
        **{f"x-last-death-{name}": value for name, value in zip(names, last, strict=True)},
    }


ONCE = story(("x", "q", "rejected"), ("x", "q", "rejected"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Properties(), {"x-death": [entry()], **ONCE}),
        (Properties(headers={"a": 1}), {"a": 1, "x-death": [entry()], **ONCE}),
        (
            Properties(expiration="+050"),
            {"x-death": [{"original-expiration": "50", **entry()}], **ONCE},
        ),
        (
            Properties(headers={"CC": ["c", 5, "d"]}),
            {
                "CC": ["c", 5, "d"],
                "x-death": [entry(routing_keys=["k", "c", "d"])],
                **ONCE,
            },
        ),
        # What a client wrote itself counts for nothing.
        (
            Properties(headers={"x-death": "junk", "x-first-death-queue": "mine"}),
            {"x-death": [entry()], **ONCE},
        ),
        (
            Properties(headers={"x-death": [entry(count=Int64(5))], "x-last-death-queue": 1}),
            {"x-death": [entry()], **ONCE},
        ),
    ],
)
def test_headers_of_a_first_death(before: Properties, after: Table) -> None:
    assert headers_after(envelope(before), ("q", "rejected")) == after


def test_types_and_order_of_an_entry() -> None:
    (first,) = deaths_in(headers_after(envelope(Properties(expiration="9")), ("q", "expired")))
    assert list(first) == [
        "original-expiration",
        "count",
        "reason",
        "queue",
        "time",
        "exchange",
        "routing-keys",
    ]
    assert type(first["count"]) is Int64 and type(first["time"]) is Timestamp


def test_headers_are_sorted_and_other_properties_stay() -> None:
    before = Properties(
        content_type="t",
        headers={"z": 1, "x-e": 2, "a": 3},
        delivery_mode=2,
        priority=3,
        correlation_id="c",
        reply_to="r",
        expiration="100",
        message_id="m",
        timestamp=Timestamp(5),
        user_id="guest",
    )
    copy = die(envelope(before)).envelope
    after = copy.decoded_properties()
    names = list(after.headers or ())
    assert names == sorted(names) and len(names) == 10
    before.headers = after.headers
    before.expiration = None
    assert after == before
    assert (copy.exchange, copy.routing_key, copy.body_size) == ("dlx", "dead", 7)


def test_deaths_are_listed_with_the_newest_first_and_counted_by_queue_and_reason() -> None:
    message = envelope(Properties(expiration="100"))
    ways = [("q", "rejected"), ("p", "expired"), ("q", "rejected"), ("q", "maxlen")]
    headers = headers_after(message, *ways)
    assert headers == {
        "x-death": [
            entry("q", "maxlen", exchange="dlx", routing_keys=["dead"]),
            {"original-expiration": "100", **entry("q", count=2)},
            entry("p", "expired", exchange="dlx", routing_keys=["dead"]),
        ],
        **story(("x", "q", "rejected"), ("dlx", "q", "maxlen")),
    }


def test_keys_of_cc_and_bcc_are_followed_unless_the_queue_has_a_key_of_its_own() -> None:
    message = envelope(Properties(headers={"CC": ["c"]}), record=Record(False, ["c", "b"], ["b"]))
    by_its_own = die(message, key=None)
    assert by_its_own.keys == ["k", "c", "b"]
    assert by_its_own.envelope.routing_key == "k"
    again = die(by_its_own.envelope, "p", key=None)
    assert again.keys == ["k", "c", "b"]
    by_the_queues = die(again.envelope, "r", key="dead")
    assert by_the_queues.keys == ["dead"]
    last = die(by_the_queues.envelope, "s", key=None)
    assert last.keys == ["dead"]
    deaths = deaths_in(last.envelope.headers())
    assert [each["routing-keys"] for each in deaths] == [
        ["dead"],
        ["k", "c"],
        ["k", "c"],
        ["k", "c"],
    ]


def test_the_record_survives_the_disk() -> None:
    copy = die(envelope(Properties(headers={"CC": ["c"]})), key=None).envelope
    again = Envelope.unpack(copy.packed, copy.body_size)
    assert again == copy and again.record == Record(True, ["c"], [])


@pytest.mark.parametrize(
    ("deaths", "target", "cycles"),
    [
        ([("q", "expired")], "q", True),
        ([("q", "expired")], "p", False),
        ([("q", "rejected")], "q", False),
        ([("p", "expired"), ("q", "maxlen")], "p", True),
        ([("p", "rejected"), ("q", "maxlen")], "q", True),  # no rejection between q and q
        ([("p", "rejected"), ("q", "maxlen")], "p", False),
        ([("p", "expired"), ("q", "rejected"), ("r", "expired")], "p", False),
    ],
)
def test_a_cycle_is_one_without_a_rejection(
    deaths: list[tuple[str, str]], target: str, cycles: bool
) -> None:
    message = envelope(Properties())
    for queue, reason in deaths:
        copy = die(message, queue, reason)
        message = copy.envelope
    assert copy.would_cycle(target) is cycles


QUEUES = st.sampled_from(["q", "p", "queue", "rejected", "q\x05queueS\0\0\0\x01p", "ü"])
REASONS = st.sampled_from(["rejected", "expired", "maxlen", "delivery_limit"])


@given(st.lists(st.tuples(QUEUES, REASONS, st.sampled_from([None, "a", "b"])), max_size=8), QUEUES)
def test_any_number_of_deaths(deaths: list[tuple[str, str, str | None]], target: str) -> None:
    """Against a list of tables, which is what `x-death` is."""
    message = envelope(Properties(headers={"CC": ["c"], "zz": 1}, expiration="7"))
    told: list[dict[str, Any]] = []
    exchange, keys, ttl = "x", ["k", "c"], {"original-expiration": "7"}
    cycles = False
    for queue, reason, key in deaths:
        same = [each for each in told if (each["queue"], each["reason"]) == (queue, reason)]
        others = [each for each in told if each not in same]
        new = {**ttl, **entry(queue, reason, exchange=exchange, routing_keys=keys)}
        told = [{**same[0], "count": same[0]["count"] + 1} if same else new, *others]
        copy = die(message, queue, reason, key)
        message = copy.envelope
        exchange, ttl = "dlx", {}
        keys = keys if key is None else [key]
        assert copy.keys == keys
        assert deaths_in(message.headers()) == told
        reasons = [each["reason"] for each in told]
        queues = [each["queue"] for each in told]
        at = queues.index(target) if target in queues else len(queues)
        cycles = at < len(queues) and "rejected" not in reasons[: at + 1]
        assert copy.would_cycle(target) is cycles


# --- from queue to queue


@pytest.fixture
def queues(peer: Peer) -> dict[str, QueueType]:
    """`source`, whose dead letters go to `dead`."""
    peer.declare("source", arguments={**TO_DEAD})
    peer.declare("dead")
    return peer.bench.broker.vhosts["/"].queues


TO_DEAD: Table = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}


def waiting(queue: QueueType) -> tuple[int, int]:
    return queue.ready, queue.unacked


def take(peer: Peer, queue: str, count: int) -> list[int]:
    """Delivery tags of messages taken by basic.get."""
    tags = []
    for _ in range(count):
        peer.send(1, make(spec.BasicGet, queue=queue))
        method = peer.take()[-1].method
        assert isinstance(method, spec.BasicGetOk)
        tags.append(method.delivery_tag)
    return tags


def bodies(peer: Peer, queue: str) -> list[bytes]:
    """All that is ready, taken."""
    found: list[bytes] = []
    while True:
        peer.send(1, make(spec.BasicGet, queue=queue, no_ack=True))
        (said,) = peer.take()
        if said.body is None:
            return found
        found.append(said.body)


def test_a_rejected_message_is_settled_when_its_copy_is_on_the_disk(
    bench: Bench, peer: Peer, queues: dict[str, QueueType]
) -> None:
    peer.publish(1, "source", b"a", b"b")
    bench.disk()
    tags = take(peer, "source", 2)
    peer.send(1, make(spec.BasicReject, delivery_tag=tags[0]))
    assert waiting(queues["source"]) == (0, 1)
    assert waiting(queues["dead"]) == (1, 0)
    bench.kill()  # nothing of this was written
    bench.open()
    queues = bench.broker.vhosts["/"].queues
    assert waiting(queues["source"]) == (2, 0)
    assert waiting(queues["dead"]) == (0, 0)
    again = Peer(bench)
    tags = take(again, "source", 2)
    again.send(1, make(spec.BasicNack, delivery_tag=tags[1], multiple=True))
    bench.disk()
    bench.restart()
    queues = bench.broker.vhosts["/"].queues
    assert waiting(queues["source"]) == (0, 0)
    assert bodies(Peer(bench), "dead") == [b"a", b"b"]


def test_a_full_disk_loses_no_dead_letter(
    bench: Bench, peer: Peer, queues: dict[str, QueueType]
) -> None:
    peer.publish(1, "source", *(b"%d" % number for number in range(5)))
    bench.disk()
    take(peer, "source", 5)
    with bench.full_log():
        peer.send(1, make(spec.BasicNack, delivery_tag=0, multiple=True))
        bench.disk_thrice()
        assert bench.store.shortage is not None
        assert waiting(queues["dead"]) == (5, 0)
        bench.kill()
    bench.open()
    queues = bench.broker.vhosts["/"].queues
    assert (queues["source"].ready, queues["dead"].ready) == (5, 0)


def test_a_queue_is_deleted_when_its_dead_letters_are_on_the_disk(
    bench: Bench, peer: Peer, queues: dict[str, QueueType]
) -> None:
    """A full disk takes a deletion in reserved space, and the copies later."""
    peer.publish(1, "source", b"a")
    bench.disk()
    (tag,) = take(peer, "source", 1)

    with bench.full_log():
        peer.send(
            1, make(spec.BasicReject, delivery_tag=tag), make(spec.QueueDelete, queue="source")
        )
        bench.disk_thrice()
        assert waiting(queues["dead"]) == (1, 0)
        assert "source" in queues and not peer.hear() and not bench.broker.services.jobs
    bench.disk_thrice()
    assert "source" not in queues and [type(said) for said in peer.hear()] == [spec.QueueDeleteOk]
    bench.kill()
    bench.open()
    assert bodies(Peer(bench), "dead") == [b"a"]


@pytest.mark.parametrize(
    ("durable", "persistent", "at_once"),
    [(True, True, False), (False, True, True), (True, False, True)],
)
def test_what_needs_no_disk_is_settled_at_once(
    bench: Bench, peer: Peer, durable: bool, persistent: bool, at_once: bool
) -> None:
    peer.declare("source", arguments={**TO_DEAD})
    peer.declare("dead", durable=durable)
    peer.publish(1, "source", b"a", persistent=persistent)
    bench.disk()
    (tag,) = take(peer, "source", 1)
    peer.send(1, make(spec.BasicReject, delivery_tag=tag))
    lane = bench.broker.vhosts["/"].queues["source"].lane
    assert (lane.settled.floor == 1) is at_once
    bench.disk()
    assert lane.settled.floor == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-dead-letter-exchange": "missing"},
        {"x-dead-letter-exchange": "amq.direct", "x-dead-letter-routing-key": "nobody"},
        {},
    ],
)
def test_a_message_that_has_nowhere_to_go_is_dropped(
    bench: Bench, peer: Peer, arguments: Table
) -> None:
    source = peer.declare("source", arguments=arguments)
    peer.publish(1, "source", b"a")
    (tag,) = take(peer, "source", 1)
    peer.send(1, make(spec.BasicReject, delivery_tag=tag))
    assert waiting(source) == (0, 0)
    assert source.lane.settled.floor == 1
    unroutable = arguments.get("x-dead-letter-exchange") == "amq.direct"
    assert bench.broker.services.stats.dead_dropped == unroutable


def test_many_dead_letters_leave_in_slices_and_in_their_order(
    bench: Bench, peer: Peer, queues: dict[str, QueueType]
) -> None:
    count = 3 * LETTERS_AT_ONCE + 1
    peer.publish(1, "source", *(b"%d" % number for number in range(count)))
    take(peer, "source", count)
    times = count_from(0)
    bench.broker.services.jobs.clock_s = lambda: float(next(times))  # each step takes its slice
    peer.send(1, make(spec.BasicNack, delivery_tag=0, multiple=True))
    seen = []
    for _ in range(8):
        seen.append(queues["dead"].ready)
        bench.end_tick()
    assert sorted(set(seen)) == [*range(LETTERS_AT_ONCE, count, LETTERS_AT_ONCE), count]
    assert queues["dead"].ready == count
    assert bodies(peer, "dead") == [b"%d" % number for number in range(count)]


def test_dead_letters_wait_while_the_disk_is_behind(
    bench: Bench, peer: Peer, queues: dict[str, QueueType], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.publish(1, "source", b"a")
    (tag,) = take(peer, "source", 1)
    monkeypatch.setattr(type(bench.store), "congested", True)
    peer.send(1, make(spec.BasicReject, delivery_tag=tag))
    assert (waiting(queues["source"]), waiting(queues["dead"])) == ((0, 1), (0, 0))
    pass_time(bench, PAUSE_S)
    assert waiting(queues["dead"]) == (0, 0)
    monkeypatch.undo()
    pass_time(bench, PAUSE_S)
    assert (waiting(queues["source"]), waiting(queues["dead"])) == ((0, 0), (1, 0))


def pass_time(bench: Bench, seconds: float) -> None:
    bench.now_s += seconds
    bench.broker.timers.run(bench.now_s)
    bench.end_tick()


def test_an_automatic_cycle_ends(bench: Bench, peer: Peer) -> None:
    arguments: Table = {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "q",
        "x-max-length": 1,
    }
    queue = peer.declare("q", arguments=arguments)
    peer.publish(1, "q", b"a", b"b")
    bench.disk()
    assert waiting(queue) == (1, 0)
    assert bodies(peer, "q") == [b"b"]
    assert bench.broker.services.stats.dead_dropped == 1


def test_a_rejected_message_may_come_back_to_its_queue(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q", arguments={"x-dead-letter-exchange": ""})
    peer.publish(1, "q", b"a")
    for count in range(1, 4):
        (tag,) = take(peer, "q", 1)
        peer.send(1, make(spec.BasicReject, delivery_tag=tag))
        bench.end_tick()
        assert waiting(queue) == (1, 0)
        peer.send(1, make(spec.BasicGet, queue="q"))
        (said,) = peer.take()
        assert said.properties is not None
        (death,) = deaths_in(said.properties.headers)
        assert death["count"] == count
        assert isinstance(said.method, spec.BasicGetOk)
        peer.send(1, make(spec.BasicReject, delivery_tag=said.method.delivery_tag, requeue=True))


def test_a_rejection_in_a_transaction_counts_with_its_commit(
    bench: Bench, peer: Peer, queues: dict[str, QueueType]
) -> None:
    peer.publish(1, "source", b"a")
    bench.disk()
    peer.ask(1, make(spec.TxSelect), spec.TxSelectOk)
    (tag,) = take(peer, "source", 1)
    peer.send(1, make(spec.BasicReject, delivery_tag=tag))
    assert waiting(queues["dead"]) == (0, 0)
    peer.send(1, make(spec.TxCommit))
    bench.disk()
    assert isinstance(peer.hear()[-1], spec.TxCommitOk)
    assert (waiting(queues["source"]), waiting(queues["dead"])) == ((0, 0), (1, 0))


def test_a_deleted_queue_dead_letters_nothing(
    bench: Bench, peer: Peer, queues: dict[str, QueueType]
) -> None:
    peer.publish(1, "source", b"a", b"b")
    (tag,) = take(peer, "source", 1)
    delete = make(spec.QueueDelete, queue="source")
    peer.ask(1, delete, spec.QueueDeleteOk)
    peer.send(1, make(spec.BasicReject, delivery_tag=tag))
    bench.disk()
    assert waiting(queues["dead"]) == (0, 0)


@pytest.mark.parametrize("many", [1, 3 * LETTERS_AT_ONCE])
def test_what_is_rejected_before_its_queue_is_deleted_is_dead_lettered(
    bench: Bench, peer: Peer, queues: dict[str, QueueType], many: int
) -> None:
    peer.publish(1, "source", *(b"%d" % number for number in range(many)))
    take(peer, "source", many)
    bench.broker.services.jobs.clock_s = map(float, count_from(0)).__next__  # a slice for each step
    peer.send(
        1,
        make(spec.BasicNack, delivery_tag=0, multiple=True),
        make(spec.QueueDelete, queue="source"),
        make(spec.QueueDelete, queue="source"),
    )
    for _ in range(20):
        bench.disk()
    assert [type(method) for method in peer.hear()] == [spec.QueueDeleteOk] * 2
    assert "source" not in queues
    assert bodies(peer, "dead") == [b"%d" % number for number in range(many)]


def test_a_deletion_waits_for_the_disk_and_costs_the_loop_nothing(
    bench: Bench, peer: Peer, queues: dict[str, QueueType], monkeypatch: pytest.MonkeyPatch
) -> None:
    operations, vhost = bench.broker.operations, bench.broker.vhosts["/"]
    peer.publish(1, "source", b"a")
    (tag,) = take(peer, "source", 1)
    source, dead = queues["source"], queues["dead"]
    monkeypatch.setattr(type(bench.store), "congested", True)
    peer.send(1, make(spec.BasicReject, delivery_tag=tag))
    gone = operations.delete_queue(vhost, None, "source", if_unused=False, if_empty=False)
    for _ in range(3):
        pass_time(bench, PAUSE_S)
        assert not bench.broker.services.jobs
    bench.disk()
    assert not gone.done and not source.deleted and dead.ready == 0
    monkeypatch.undo()
    pass_time(bench, PAUSE_S)
    bench.settle()
    bench.disk()
    assert gone.done and source.deleted
    assert bench.broker.services.stats.dead_lettered == 1


@pytest.mark.parametrize("why", ["limit", "rejected"])
def test_a_deletion_ends_though_messages_leave_the_queue_all_the_time(
    bench: Bench, peer: Peer, queues: dict[str, QueueType], why: str
) -> None:
    arguments: Table = {**TO_DEAD, "x-max-length": 1} if why == "limit" else TO_DEAD
    peer.declare("busy", arguments=arguments)
    other = Peer(bench)
    other.publish(1, "busy", *(b"%d" % number for number in range(20)))
    bench.disk()
    other.send(1, make(spec.BasicConsume, queue="busy"))
    other.take()
    peer.send(1, make(spec.QueueDelete, queue="busy"))
    for tag in range(1, 11):
        if why == "limit":
            other.publish(1, "busy", b"x")
        else:
            other.send(1, spec.BasicReject(tag, requeue=False))
        bench.now_s += 0.001
        bench.store.tick(bench.now_s)
        bench.disk_once()
        bench.settle()
    assert "busy" not in queues
    assert [type(said) for said in peer.hear()] == [spec.QueueDeleteOk]


def test_what_left_while_a_deletion_waited_goes_on_if_the_queue_stays(
    bench: Bench, peer: Peer, queues: dict[str, QueueType]
) -> None:
    peer.publish(1, "source", b"a", b"b")
    bench.disk()
    first, second = take(peer, "source", 2)
    other = Peer(bench)
    other.send(1)
    with bench.full_log():
        peer.send(1, spec.BasicReject(first, requeue=False))
        other.send(1, make(spec.QueueDelete, queue="source", if_unused=True))
        peer.send(
            1, make(spec.BasicConsume, queue="source"), spec.BasicReject(second, requeue=False)
        )
        bench.disk_thrice()
        assert queues["dead"].ready == 1 and queues["source"].unacked == 1
    bench.disk_thrice()
    in_use = "PRECONDITION_FAILED - queue 'source' in vhost '/' in use"
    assert other.refused() == ("channel", 406, in_use)
    assert bodies(Peer(bench), "dead") == [b"a", b"b"]


def test_the_deletion_of_a_vhost_waits_for_no_dead_letter(
    bench: Bench, peer: Peer, queues: dict[str, QueueType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All queues that it could go to are deleted, too, and the disk may be full."""
    peer.publish(1, "source", b"a")
    (tag,) = take(peer, "source", 1)
    source = queues["source"]
    monkeypatch.setattr(type(bench.store), "congested", True)
    peer.send(1, make(spec.BasicReject, delivery_tag=tag))
    gone = bench.broker.operations.delete_vhost("/")
    bench.disk()
    assert gone.done and source.deleted and not bench.broker.services.jobs
    monkeypatch.undo()
    pass_time(bench, PAUSE_S)
    bench.settle()
    assert bench.broker.services.stats.dead_lettered == 0


@pytest.mark.parametrize("why", ["expires", "auto-delete"])
def test_a_queue_that_is_used_again_while_the_disk_is_awaited_stays(
    bench: Bench,
    peer: Peer,
    queues: dict[str, QueueType],
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    arguments: Table = {**TO_DEAD, "x-expires": 1000} if why == "expires" else TO_DEAD
    queue = peer.declare("q", auto_delete=why == "auto-delete", arguments=arguments)
    peer.publish(1, "q", b"a")
    peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag="c"))
    bench.end_tick()
    deliver = peer.take()[-1].method
    assert isinstance(deliver, spec.BasicDeliver)
    monkeypatch.setattr(type(bench.store), "congested", True)
    peer.send(
        1,
        make(spec.BasicReject, delivery_tag=deliver.delivery_tag),
        make(spec.BasicCancel, consumer_tag="c"),
    )
    bench.pass_ms(1000)
    assert not queue.deleted and queue.unacked == 1  # it is about to be deleted
    other = Peer(bench)
    other.ask(1, make(spec.BasicConsume, queue="q", consumer_tag="c"), spec.BasicConsumeOk)
    monkeypatch.undo()
    bench.pass_ms(1000)
    bench.disk()
    assert not queue.deleted and bodies(Peer(bench), "dead") == [b"a"]
    other.send(1, make(spec.BasicCancel, consumer_tag="c"))
    bench.pass_ms(1000)
    assert queue.deleted


@pytest.mark.parametrize(
    ("condition", "use"),
    [
        ("if_empty", message(1, "source", b"new")),
        ("if_unused", make(spec.BasicConsume, queue="source")),
    ],
    ids=["if_empty", "if_unused"],
)
def test_a_queue_that_is_used_while_its_dead_letters_leave_is_not_deleted(
    bench: Bench,
    peer: Peer,
    queues: dict[str, QueueType],
    condition: str,
    use: bytes | spec.Method,
) -> None:
    many = 4 * LETTERS_AT_ONCE
    source = queues["source"]
    peer.publish(1, "source", *(b"%d" % number for number in range(many)))
    take(peer, "source", many)
    bench.broker.services.jobs.clock_s = map(float, count_from(0)).__next__  # a slice for each step
    peer.send(1, make(spec.BasicNack, delivery_tag=0, multiple=True))
    while source.unacked > 3 * LETTERS_AT_ONCE:
        bench.end_tick()
    peer.send(1, make(spec.QueueDelete, queue="source", **{condition: True}))
    assert source.unacked and not peer.take()
    other = Peer(bench)
    other.send(1, use)
    for _ in range(10):
        bench.disk()
    assert peer.refused()[:2] == ("channel", 406)
    assert not source.deleted
    assert bodies(Peer(bench), "dead") == [b"%d" % number for number in range(many)]


# --- at least once

AT_LEAST_ONCE: Table = {
    **TO_DEAD,
    "x-queue-type": "quorum",
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


def test_a_target_that_rejects_keeps_the_message_in_its_queue(bench: Bench, peer: Peer) -> None:
    arguments: Table = {**AT_LEAST_ONCE, "x-dead-letter-exchange": "amq.fanout"}
    source = peer.declare("source", arguments=arguments)
    full: Table = {"x-max-length": 1, "x-overflow": "reject-publish"}
    dead = peer.declare("dead", arguments=full)
    other = peer.declare("other")
    for name in ("dead", "other"):
        bind = make(spec.QueueBind, queue=name, exchange="amq.fanout")
        peer.ask(1, bind, spec.QueueBindOk)
    peer.publish(1, "dead", b"in the way")
    peer.publish(1, "source", b"a", b"b")
    bench.disk()
    take(peer, "source", 2)
    peer.send(1, make(spec.BasicNack, delivery_tag=0, multiple=True))
    bench.disk()
    assert (waiting(source), waiting(dead), waiting(other)) == ((0, 2), (1, 0), (1, 0))
    pass_time(bench, RETRY_S)
    assert (waiting(source), waiting(other)) == ((0, 2), (1, 0))  # no second copy
    assert bodies(peer, "dead") == [b"in the way"]
    pass_time(bench, RETRY_S)
    bench.disk()
    assert (waiting(source), waiting(dead), waiting(other)) == ((0, 1), (1, 0), (2, 0))
    assert bodies(peer, "dead") == [b"a"]
    pass_time(bench, RETRY_S)
    bench.disk()
    assert (waiting(source), waiting(other)) == ((0, 0), (2, 0))
    assert bodies(peer, "dead") == [b"b"]


def test_a_message_waits_for_an_exchange_and_for_a_queue(bench: Bench, peer: Peer) -> None:
    source = peer.declare("source", arguments={**AT_LEAST_ONCE, "x-dead-letter-exchange": "late"})
    peer.publish(1, "source", b"a")
    bench.disk()
    (tag,) = take(peer, "source", 1)
    peer.send(1, make(spec.BasicReject, delivery_tag=tag))
    bench.disk()
    assert waiting(source) == (0, 1)
    declare = make(spec.ExchangeDeclare, exchange="late", type="fanout")
    peer.ask(1, declare, spec.ExchangeDeclareOk)
    pass_time(bench, RETRY_S)
    assert waiting(source) == (0, 1)
    bench.disk()
    dead = peer.declare("dead")
    peer.ask(1, make(spec.QueueBind, queue="dead", exchange="late"), spec.QueueBindOk)
    pass_time(bench, RETRY_S)
    bench.disk()
    assert (waiting(source), waiting(dead)) == ((0, 0), (1, 0))


def test_one_that_goes_round_takes_none_with_it_that_has_no_queue(bench: Bench, peer: Peer) -> None:
    arguments = {**AT_LEAST_ONCE, "x-dead-letter-exchange": "amq.direct", "x-message-ttl": 2000}
    del arguments["x-dead-letter-routing-key"]
    source = peer.declare("source", arguments=arguments)
    for exchange, key in (("amq.direct", "round"), ("amq.fanout", "")):
        bind = make(spec.QueueBind, queue="source", exchange=exchange, routing_key=key)
        peer.ask(1, bind, spec.QueueBindOk)
    peer.send(1, *(message(1, key, b"", exchange="amq.fanout") for key in ("round", "nowhere")))
    bench.disk()
    bench.pass_ms(3000)
    bench.disk()
    assert waiting(source) == (0, 1)
    dead = peer.declare("dead")
    bind = make(spec.QueueBind, queue="dead", exchange="amq.direct", routing_key="nowhere")
    peer.ask(1, bind, spec.QueueBindOk)
    pass_time(bench, RETRY_S)
    bench.disk()
    assert (waiting(source), waiting(dead)) == ((0, 0), (1, 0))


def test_without_reject_publish_at_least_once_is_at_most_once(bench: Bench, peer: Peer) -> None:
    arguments = {**AT_LEAST_ONCE, "x-overflow": "drop-head"}
    source = peer.declare("source", arguments=arguments)
    peer.publish(1, "source", b"a")
    bench.disk()
    (tag,) = take(peer, "source", 1)
    peer.send(1, make(spec.BasicReject, delivery_tag=tag))
    assert waiting(source) == (0, 0)
    assert bench.broker.services.stats.dead_dropped == 1


def test_one_that_cannot_be_read_stays_and_the_others_leave(
    bench: Bench, peer: Peer, queues: dict[str, QueueType], caplog: pytest.LogCaptureFixture
) -> None:
    peer.publish(1, "source", b"0", b"1", b"2")
    take(peer, "source", 3)
    backlog = queues["source"].backlogs[0]  # type: ignore[attr-defined]
    read = backlog.lane.read

    def damaged(qseq: int, count: int, *rest: Any, **named: Any) -> Any:
        if qseq <= 1 < qseq + count:
            raise CorruptLog("damaged")
        return read(qseq, count, *rest, **named)

    backlog.lane.read = damaged
    peer.send(1, make(spec.BasicNack, delivery_tag=0, multiple=True))
    bench.disk()
    assert bodies(peer, "dead") == [b"0", b"2"]
    assert waiting(queues["source"]) == (0, 1)
    assert "cannot dead-letter from queue 'source' in vhost '/'" in caplog.text
