"""Streams over a broker: policies, restarts, damage, and what one tick does at most."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Properties, decode_properties, encode_properties
from qlog.server.amqp.values import Table
from qlog.server.broker.queues import cold_reads
from qlog.server.broker.queues.offsets import Filter, filter_of, filter_value, span_ms
from qlog.server.broker.queues.stream import StreamQueue, _with_offsets
from qlog.storage.streams.stream import CHUNK_BYTES
from tests.server.amqp.strategies import TABLES
from tests.server.broker.support import Bench, Peer, make
from tests.server.broker.test_policies import delete_policy, queue, set_policy

STREAM: Table = {"x-queue-type": "stream"}


def stream_of(bench: Bench, name: str = "q") -> Any:
    found = queue(bench, name)
    assert isinstance(found, StreamQueue)
    return found._stream


def declare(peer: Peer, name: str = "q", **arguments: Any) -> None:
    table = {**STREAM, **{key.replace("_", "-"): value for key, value in arguments.items()}}
    peer.declare(name, arguments=table)


def consume(peer: Peer, tag: str = "c", offset: Any = "first", prefetch: int = 1000) -> None:
    peer.ask(1, make(spec.BasicQos, prefetch_count=prefetch), spec.BasicQosOk)
    arguments: Table = {"x-stream-offset": offset}
    consume = make(spec.BasicConsume, queue="q", consumer_tag=tag, arguments=arguments, nowait=True)
    peer.send(1, consume)


def publish(bench: Bench, peer: Peer, *bodies: bytes) -> None:
    """Messages that are on the disk then."""
    peer.publish(1, "q", *bodies)
    bench.disk()


def move(bench: Bench) -> None:
    """All messages are in segments then."""
    while stream_of(bench).lane.alive:
        bench.now_s += 2
        bench.disk()


# --- filters, which go by the headers of the messages, wherever these are


def publish_for(bench: Bench, peer: Peer, *values: str | None) -> None:
    """A message for each filter value, whose body is the value and its number."""
    for number, value in enumerate(values):
        headers: Table | None = None if value is None else {"x-stream-filter-value": value}
        properties = Properties(headers=headers, message_id=str(number))
        peer.publish(1, "q", b"%s%d" % ((value or "-").encode(), number), properties=properties)
    bench.disk()


def filtered(peer: Peer, **arguments: Any) -> list[tuple[bytes | None, Any]]:
    """What a consumer with these arguments gets: bodies and offsets."""
    peer.ask(2, make(spec.BasicQos, prefetch_count=1000), spec.BasicQosOk)
    table: Table = {"x-stream-offset": "first"}
    table.update({key.replace("_", "-"): value for key, value in arguments.items()})
    peer.send(2, make(spec.BasicConsume, queue="q", consumer_tag="f", arguments=table, nowait=True))
    found = []
    for _ in range(20):
        for said in peer.take():
            assert said.properties is not None and said.properties.headers is not None
            found.append((said.body, said.properties.headers["x-stream-offset"]))
        peer.bench.end_tick()
    peer.ask(2, make(spec.BasicCancel, consumer_tag="f"), spec.BasicCancelOk)
    return found


@pytest.mark.parametrize("where", ["in the log", "moved", "after a start", "after a kill"])
def test_filters_hold_wherever_the_messages_are(bench: Bench, peer: Peer, where: str) -> None:
    declare(peer)
    publish_for(bench, peer, *("a", None, "b", "a", None) * 300)
    if where != "in the log":
        move(bench)
    if where == "after a start":
        bench.restart()
    if where == "after a kill":
        bench.kill()
        bench.open()
    reader = Peer(bench)
    expected = {
        value: [(b"%s%d" % (value, at), at) for at in range(1500) if at % 5 in places]
        for value, places in ((b"a", (0, 3)), (b"b", (2,)), (b"-", (1, 4)))
    }
    assert filtered(reader, x_stream_filter="b") == expected[b"b"]
    assert filtered(reader, x_stream_filter="none") == []
    both = sorted(expected[b"a"] + expected[b"-"], key=lambda one: one[1])
    assert filtered(reader, x_stream_filter="a", x_stream_match_unfiltered=True) == both[:1000]
    assert filtered(reader, x_stream_filter="b", x_stream_offset=900) == expected[b"b"][180:]


def test_readers_with_and_without_a_filter_share_a_chunk(bench: Bench, peer: Peer) -> None:
    declare(peer)
    publish_for(bench, peer, *("a", "b") * 50)
    for _ in range(2):
        assert [offset for _, offset in filtered(peer, x_stream_filter="b")] == [*range(1, 100, 2)]
        assert [offset for _, offset in filtered(peer)] == [*range(100)]


# --- settings


def test_policies_and_arguments(bench: Bench, peer: Peer) -> None:
    declare(peer, x_max_age="2h", x_max_length_bytes=80 << 20)
    stream = stream_of(bench)
    hour_ms = 3_600_000
    assert (stream.max_age_ms, stream.max_bytes) == (2 * hour_ms, 80 << 20)
    assert stream.segment_bytes == 10 << 20  # an eighth of the limit
    set_policy(
        bench,
        "p",
        "^q$",
        {"max-age": "3h", "max-length-bytes": 100, "stream-max-segment-size-bytes": 5000},
    )
    assert (stream.max_age_ms, stream.max_bytes) == (3 * hour_ms, 100)
    assert stream.segment_bytes == 5000
    bench.restart()
    stream = stream_of(bench)
    assert (stream.max_age_ms, stream.max_bytes) == (3 * hour_ms, 100)
    delete_policy(bench, "p")
    assert (stream.max_age_ms, stream.max_bytes) == (2 * hour_ms, 80 << 20)


def test_a_policy_for_other_queues_does_not_apply(bench: Bench, peer: Peer) -> None:
    declare(peer)
    set_policy(bench, "p", "^q$", {"max-age": "3h", "message-ttl": 5})
    assert stream_of(bench).max_age_ms is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1Y", 365 * 86400),
        ("2M", 60 * 86400),
        ("7D", 7 * 86400),
        ("3h", 10800),
        ("5m", 300),
        ("9s", 9),
        ("0s", None),
        ("1", None),
        ("h", None),
        ("1 h", None),
        ("-1h", None),
        ("1h\n", None),
    ],
)
def test_spans(text: str, seconds: int | None) -> None:
    assert span_ms(text) == (None if seconds is None else seconds * 1000)


# --- what consumers are told


@given(table=TABLES, kept=st.booleans(), offset=st.integers(0, 1 << 40))
def test_the_offset_is_one_more_header(table: Table, kept: bool, offset: int) -> None:
    properties = Properties(headers=table if kept else None, message_id="id", priority=3)
    envelope = Envelope.pack("exchange", "key", encode_properties(properties), 5)
    for at, told in enumerate(_with_offsets([envelope, envelope], offset)):
        decoded = decode_properties(told.properties)
        headers = dict(decoded.headers or {})
        assert headers.pop("x-stream-offset") == offset + at
        expected = dict(table) if kept else {}
        expected.pop("x-stream-offset", None)
        assert list(map(repr, sorted(headers.items(), key=repr))) == list(
            map(repr, sorted(expected.items(), key=repr))
        )
        assert (decoded.message_id, decoded.priority) == ("id", 3)
        assert (told.exchange, told.routing_key, told.body_size) == ("exchange", "key", 5)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({}, None),
        ({"x-stream-filter": 5}, None),
        ({"x-stream-match-unfiltered": True}, None),
        ({"x-stream-filter": "a"}, Filter(frozenset({"a"}), False)),
        ({"x-stream-filter": ["a", 5, "b"]}, Filter(frozenset({"a", "b"}), False)),
        ({"x-stream-filter": ""}, Filter(frozenset({""}), True)),
        (
            {"x-stream-filter": "a", "x-stream-match-unfiltered": True},
            Filter(frozenset({"a"}), True),
        ),
    ],
)
def test_what_a_consumer_wants(arguments: Table, found: Filter | None) -> None:
    assert filter_of(arguments) == found


@pytest.mark.parametrize(
    ("headers", "value"),
    [
        (None, ""),
        ({}, ""),
        ({"x-stream-filter-value": "é"}, "é"),
        ({"x-stream-filter-value": 5}, ""),
        ({"other": "a"}, ""),
    ],
)
def test_filter_values(headers: Table | None, value: str) -> None:
    properties = encode_properties(Properties(headers=headers))
    assert filter_value(Envelope.pack("", "q", properties, 0)) == value


# --- durable before delivered


def test_a_message_is_delivered_when_it_is_on_the_disk(bench: Bench, peer: Peer) -> None:
    declare(peer)
    consume(peer)
    peer.publish(1, "q", b"a", b"b")
    assert peer.deliveries() == []
    bench.disk()
    assert [body for *_, body in peer.deliveries()] == [b"a", b"b"]


def test_it_is_all_there_after_a_kill(bench: Bench, peer: Peer) -> None:
    declare(peer)
    publish(bench, peer, b"a", b"b")
    move(bench)
    publish(bench, peer, b"c")
    peer.publish(1, "q", b"not durable")
    bench.kill()
    bench.open()
    peer = Peer(bench)
    peer.declare("q", arguments=STREAM)
    publish(bench, peer, b"d")
    consume(peer)
    assert [body for *_, body in said(peer, bench)] == [b"a", b"b", b"c", b"d"]


def said(peer: Peer, bench: Bench) -> list[tuple[str, int, bool, bytes]]:
    """All that is delivered until nothing is left to do."""
    found = peer.deliveries()
    while bench.broker.jobs_left:
        bench.end_tick()
        found += peer.deliveries()
    return found


# --- damage


def test_who_meets_damage_is_told_and_others_go_on(
    bench: Bench, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    declare(peer, x_stream_max_segment_size_bytes=1000)
    for at in range(6):
        publish(bench, peer, b"%d" % at + bytes(2000))
        move(bench)
    files = sorted((bench.directory / "streams").iterdir())
    assert len(files) == 6
    data = bytearray(files[2].read_bytes())
    data[300] ^= 1
    files[2].write_bytes(data)
    unlucky, lucky = Peer(bench), Peer(bench)
    consume(unlucky, offset="first")
    assert unlucky.refused() == (
        "connection",
        541,
        "INTERNAL_ERROR - cannot deliver from queue 'q' in vhost '/'",
    )
    assert "is damaged at byte 64" in caplog.text
    consume(lucky, offset=3)
    publish(bench, peer, b"new")
    assert [body[:1] for *_, body in said(lucky, bench)] == [b"3", b"4", b"5", b"n"]


# --- a tick


def test_readers_from_disk_take_turns(
    bench: Bench, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold_reads, "COLD_BYTES_MAX", CHUNK_BYTES)
    declare(peer)
    for at in range(20):
        publish(bench, peer, *(b"%d.%d" % (at, one) + bytes(20_000) for one in range(10)))
    move(bench)
    before = bench.store.cold_bytes
    readers = [Peer(bench) for _ in range(8)]
    for at, reader in enumerate(readers):
        consume(reader, offset=at * 20)
    counts = [0] * len(readers)
    while bench.broker.jobs_left or not sum(counts):
        cold = bench.store.cold_bytes
        bench.end_tick()
        assert bench.store.cold_bytes - cold <= 3 * CHUNK_BYTES
        for at, reader in enumerate(readers):
            counts[at] += len(reader.deliveries())
    assert counts == [200 - at * 20 for at in range(len(readers))]
    assert bench.store.cold_bytes > before


def test_many_readers_share_the_time_of_a_tick(bench: Bench, peer: Peer) -> None:
    """The clock says that the time is up after each look: one reader is served in a tick."""
    declare(peer)
    publish(bench, peer, *(b"%d" % at for at in range(10)))
    readers = [Peer(bench) for _ in range(5)]
    ticks = iter(range(1000))
    bench.broker.services.delivery.time.clock_s = lambda: float(next(ticks))
    served = []
    for reader in readers:
        consume(reader)
    for _ in range(20):
        for reader in readers:
            served += [len(reader.deliveries())]
        bench.end_tick()
    assert set(served) == {0, 10} and sum(served) == 50
    assert not bench.broker.jobs_left
