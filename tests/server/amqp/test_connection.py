"""Conversations: octets in, events out, at once and one octet at a time.

The refusals are RabbitMQ 3.10.8's, as it gave them to the same octets.
"""

import struct
from collections.abc import Callable

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.connection import (
    Acks,
    BadProtocolHeader,
    Connection,
    Event,
    HeartbeatReceived,
    MethodReceived,
    ProtocolHeaderReceived,
    Publishes,
    State,
    Violation,
)
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.errors import HardError, SoftError
from tests.server.amqp.conversation import (
    CHANNEL_CLOSE,
    CHANNEL_CLOSE_OK,
    CHANNEL_OPEN,
    CLOSE,
    CLOSE_OK,
    HEADER,
    HEARTBEAT,
    OPEN,
    START_OK,
    ack,
    body,
    declare,
    frame,
    header,
    hear,
    longstr,
    message,
    method,
    publish,
    running,
    shortstr,
    starting,
    tune_ok,
    tuning,
)


def told(events: list[Event]) -> list[object]:
    """Events in a form that is the same however the octets were cut."""
    plain: list[object] = []
    for event in events:
        match event:
            case MethodReceived(channel, method_):
                plain.append((channel, method_))
            case Publishes(channel, runs):
                for run in runs:
                    for method_, envelope, octets in zip(
                        run.methods, run.envelopes, run.bodies, strict=True
                    ):
                        plain.append((channel, method_, envelope.packed, octets))
            case Acks(channel, ranges):
                for first, last, multiple in ranges:
                    plain += [(channel, "ack", tag, multiple) for tag in range(first, last + 1)]
            case Violation(error, channel, silent):
                scope = "hard" if isinstance(error, HardError) else "soft"
                ids = (error.class_id, error.method_id)
                plain.append((scope, channel, error.code, error.reply_text, ids, silent))
            case _:
                plain.append(event)
    return plain


def converse(begin: Callable[[], Connection], data: bytes) -> list[object]:
    """What `data` means; checked to mean the same when it comes octet by octet, or in threes."""
    whole = told(hear(begin(), data))
    for step in (1, 3):
        connection = begin()
        events: list[Event] = []
        for at in range(0, len(data), step):
            events += hear(connection, data[at : at + step])
        assert told(events) == whole
    return whole


# --- the handshake


@pytest.mark.parametrize(
    ("octets", "looks_like"),
    [
        (b"AMQP\x00\x01\x00\x00", "AMQP 1.0"),
        (b"AMQP\x03\x01\x00\x00", "AMQP 1.0"),
        (b"AMQP\x00\x00\x09\x02", "unknown"),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", "TLS"),
        (b"\x00" * 100, "unknown"),
    ],
)
def test_other_protocols_are_told_what_is_spoken_here(octets: bytes, looks_like: str) -> None:
    assert converse(Connection, octets) == [BadProtocolHeader(HEADER, looks_like)]


@pytest.mark.parametrize("octets", [HEADER, b"AMQP\x01\x01\x00\x09", b"AMQP\x01\x01\x08\x00"])
def test_protocol_headers_accepted(octets: bytes) -> None:
    assert converse(Connection, octets) == [ProtocolHeaderReceived()]


def test_the_handshake() -> None:
    connection = Connection()
    assert hear(connection, HEADER) == [ProtocolHeaderReceived()]
    connection.send(0, spec.ConnectionStart(0, 9, {}, b"PLAIN", b"en_US"))
    start_ok = spec.ConnectionStartOk({}, "PLAIN", b"\0u\0p", "en_US")
    assert hear(connection, START_OK) == [MethodReceived(0, start_ok)]
    connection.send(0, spec.ConnectionSecure(b"?"))
    secure_ok = method(0, 10, 21, longstr(b"!"))
    assert hear(connection, secure_ok) == [MethodReceived(0, spec.ConnectionSecureOk(b"!"))]
    connection.send(0, spec.ConnectionTune(100, 65536, 30))
    # The client does not wait for answers.
    events = hear(connection, tune_ok(10, 8192, 5) + OPEN + CHANNEL_OPEN + HEARTBEAT)
    assert events == [
        MethodReceived(0, spec.ConnectionTuneOk(10, 8192, 5)),
        MethodReceived(0, spec.ConnectionOpen("/")),
        MethodReceived(1, spec.ChannelOpen()),
        HeartbeatReceived(),
    ]
    assert (connection.channel_max, connection.frame_max, connection.heartbeat_s) == (10, 8192, 5)
    assert connection.state is State.RUNNING
    assert connection.channels() == {1}


def hard(
    code: int,
    text: str,
    ids: tuple[int, int] = (0, 0),
    channel: int = 1,
    silent: bool = False,
) -> list[object]:
    return [("hard", channel, code, text, ids, silent)]


def cannot_decode(frame: bytes) -> str:
    """RabbitMQ's answer to a method frame with malformed arguments, cut as reply texts are."""
    return f"FRAME_ERROR - cannot decode <<{','.join(map(str, frame[11:-1]))}>>"[:255]


NOT_NOW = "CHANNEL_ERROR - unexpected method in connection state"


@pytest.mark.parametrize(
    ("begin", "octets", "refusal"),
    [
        (starting, CLOSE, hard(504, f"{NOT_NOW} starting", (10, 50), 0, True)),
        (starting, tune_ok(), hard(504, f"{NOT_NOW} starting", (10, 31), 0, True)),
        (
            starting,
            CHANNEL_OPEN,
            hard(505, "UNEXPECTED_FRAME - type 1, all octets = <<0,20,0,10,0>>", silent=True),
        ),
        (
            starting,
            struct.pack(">BHI", 1, 0, 8193),
            hard(
                501,
                "FRAME_ERROR - type 1, all octets = <<>>: {frame_too_large,8193,8184}",
                (0, 0),
                0,
                True,
            ),
        ),
        (tuning, OPEN, hard(504, f"{NOT_NOW} tuning", (10, 40), 0, True)),
    ],
)
def test_wrong_before_the_limits_are_agreed(
    begin: Callable[[], Connection], octets: bytes, refusal: list[object]
) -> None:
    assert converse(begin, octets) == refusal


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (
            tune_ok(frame_max=4095),
            "negotiated frame_max = 4095 is lower than the minimum allowed value (4096)",
        ),
        (
            tune_ok(frame_max=0),
            "negotiated frame_max = 0 (no limit) is higher than the maximum allowed value (131072)",
        ),
        (
            tune_ok(frame_max=131073),
            "negotiated frame_max = 131073 is higher than the maximum allowed value (131072)",
        ),
        (
            tune_ok(channel_max=0),
            "negotiated channel_max = 0 (no limit) is higher than the maximum allowed value (2047)",
        ),
        (
            tune_ok(channel_max=2048),
            "negotiated channel_max = 2048 is higher than the maximum allowed value (2047)",
        ),
    ],
)
def test_limits_not_offered(octets: bytes, text: str) -> None:
    assert converse(tuning, octets) == hard(530, f"NOT_ALLOWED - {text}", channel=0, silent=True)


def test_no_limits_offered_and_none_chosen() -> None:
    connection = tuning(0, 0)
    hear(connection, tune_ok(0, 0) + OPEN + CHANNEL_OPEN)
    octets = b"x" * 200_000
    (event,) = hear(connection, message(octets))
    assert isinstance(event, Publishes)
    assert event.runs[0].bodies == [octets]


# --- refusals of a running connection

QUEUE_DECLARE = (50, 10)
PUBLISH = (60, 40)
NO_METHOD = "UNEXPECTED_FRAME - expected method frame, got non method frame instead"
NO_HEADER = (
    "UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead"
)
NO_BODY = "UNEXPECTED_FRAME - expected content body, got non content body frame instead"
UNIMPLEMENTED = "COMMAND_INVALID - unimplemented method"
DEEP = b"\x01kF\x00\x00\x00\x00"
for _ in range(1000):
    DEEP = b"\x01kF" + longstr(DEEP)


@pytest.mark.parametrize(
    ("octets", "refusal"),
    [
        (
            frame(1, 1, b"\0\x32\0\x0a", end=0),
            hard(
                501,
                "FRAME_ERROR - type 1, all octets = <<0,50,0,10>>: {invalid_frame_end_marker,0}",
            ),
        ),
        (
            frame(3, 1, b"a" * 20, end=65),
            hard(
                501,
                'FRAME_ERROR - type 3, first 16 octets = <<"aaaaaaaaaaaaaaaa">>: '
                "{invalid_frame_end_marker,65}",
            ),
        ),
        (
            struct.pack(">BHI", 3, 1, 131073),
            hard(501, "FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,131073,131064}"),
        ),
        (struct.pack(">BHI", 3, 1, 131072), []),  # the tolerance of eight octets
        (
            frame(9, 1, b"abc"),
            hard(501, 'FRAME_ERROR - type 9, all octets = <<"abc">>: unknown_frame'),
        ),
        (
            frame(9, 0, b"abc"),
            hard(501, 'FRAME_ERROR - type 9, all octets = <<"abc">>: unknown_frame', channel=0),
        ),
        (frame(8, 1, b""), hard(505, "UNEXPECTED_FRAME - type 8, all octets = <<>>")),
        (
            frame(8, 0, b"xx"),
            hard(501, 'FRAME_ERROR - type 8, all octets = <<"xx">>: unknown_frame', channel=0),
        ),
        (
            frame(1, 1, b"\0"),
            hard(501, "FRAME_ERROR - type 1, all octets = <<0>>: unknown_frame"),
        ),
        (
            publish() + frame(2, 1, b"\0\x3c\0\0"),
            hard(501, "FRAME_ERROR - type 2, all octets = <<0,60,0,0>>: unknown_frame"),
        ),
        (method(1, 50, 99), hard(503, UNIMPLEMENTED, (50, 99))),
        (method(1, 99, 10), hard(503, UNIMPLEMENTED, (99, 10))),
        (method(1, 50, 11, shortstr("q") + b"\0" * 8), hard(503, UNIMPLEMENTED, (50, 11))),
        (method(1, 10, 70, longstr(b"x") + shortstr("")), hard(503, UNIMPLEMENTED, (10, 70))),
        (method(1, 20, 21, b"\1"), hard(503, UNIMPLEMENTED, (20, 21))),
        (method(1, 60, 31, shortstr("t")), hard(503, UNIMPLEMENTED, (60, 31))),
        (CHANNEL_CLOSE_OK, hard(503, UNIMPLEMENTED, (20, 41))),
        (
            declare(b"\xff\xfe"),
            hard(501, "FRAME_ERROR - Malformed UTF-8 in shortstr"),
        ),
        (
            publish(key="k")[:-3] + b"\xff\0\xce",
            hard(501, "FRAME_ERROR - Malformed UTF-8 in shortstr"),
        ),
        (
            method(1, 50, 10, b"\0"),
            hard(501, "FRAME_ERROR - cannot decode <<0>>", QUEUE_DECLARE),
        ),
        (
            method(1, 60, 80, b"\0" * 11),
            hard(501, "FRAME_ERROR - cannot decode <<0,0,0,0,0,0,0,0,0,0,0>>", (60, 80)),
        ),
        (
            declare(table=b"\x01k?"),
            hard(501, cannot_decode(declare(table=b"\x01k?")), QUEUE_DECLARE),
        ),
        (declare(table=DEEP), hard(501, cannot_decode(declare(table=DEEP)), QUEUE_DECLARE)),
        (
            declare(channel=2),
            hard(504, "CHANNEL_ERROR - expected 'channel.open'", QUEUE_DECLARE, channel=2),
        ),
        (CHANNEL_OPEN, hard(504, "CHANNEL_ERROR - second 'channel.open' seen", (20, 10))),
        (header(0, channel=7), hard(505, NO_METHOD, channel=7)),
        (body(b"x", channel=7), hard(505, NO_METHOD, channel=7)),
        (header(0), hard(505, NO_METHOD)),
        (body(b"x"), hard(505, NO_METHOD)),
        (publish() + declare(), hard(505, NO_HEADER, PUBLISH)),
        (publish() + body(b"x"), hard(505, NO_HEADER, PUBLISH)),
        (publish() + header(0, weight=3), hard(505, NO_HEADER, PUBLISH)),
        (
            publish() + header(0, class_id=50),
            hard(
                505,
                "UNEXPECTED_FRAME - expected content header for class 60, "
                "got one for class 50 instead",
                PUBLISH,
            ),
        ),
        (publish() + header(3) + publish(), hard(505, NO_BODY, PUBLISH)),
        (publish() + header(3) + header(3), hard(505, NO_BODY, PUBLISH)),
        (
            publish() + header(3) + body(b"ab") + body(b"cd"),
            hard(501, "FRAME_ERROR - content body frame exceeds remaining content size", PUBLISH),
        ),
        (
            publish() + header(2**30),
            hard(
                501,
                "FRAME_ERROR - content body size 1073741824 exceeds the maximum of 536870912",
                PUBLISH,
            ),
        ),
        (publish() + header(0, b""), hard(541, "INTERNAL_ERROR")),
        (publish() + header(0, b"\x80\0\x05ab"), hard(541, "INTERNAL_ERROR")),
        (publish() + header(0, b"\0\0xx"), hard(541, "INTERNAL_ERROR")),
        (publish() + header(0, b"\0\1\0\0"), hard(541, "INTERNAL_ERROR")),
        (publish() + header(0, b"\x20\0" + longstr(DEEP)), hard(541, "INTERNAL_ERROR")),
        (declare(channel=0), hard(504, f"{NOT_NOW} running", QUEUE_DECLARE, 0)),
        (OPEN, hard(504, f"{NOT_NOW} running", (10, 40), 0)),
        (CLOSE_OK, hard(504, f"{NOT_NOW} running", (10, 51), 0)),
        (
            body(b"x", channel=0),
            hard(505, 'UNEXPECTED_FRAME - type 3, all octets = <<"x">>', channel=0),
        ),
    ],
)
def test_refusals(octets: bytes, refusal: list[object]) -> None:
    assert converse(running, octets) == refusal


def test_more_channels_than_agreed() -> None:
    text = "NOT_ALLOWED - number of channels opened (1) has reached the negotiated channel_max (1)"
    octets = method(65535, 20, 10, shortstr(""))
    refusal = hard(530, text, channel=65535)
    assert converse(lambda: running(channel_max=1), octets) == refusal


# --- messages


def taken(octets: bytes, key: str = "k", properties: bytes = b"\0\0", channel: int = 1) -> object:
    envelope = Envelope.pack("", key, properties, len(octets))
    return (channel, spec.BasicPublish("", key, False, False), envelope.packed, octets)


def test_a_run_of_equal_messages_is_one_run() -> None:
    octets = [bytes((97 + i,)) * 10 for i in range(5)]
    (event,) = hear(running(), b"".join(map(message, octets)))
    assert isinstance(event, Publishes)
    (run,) = event.runs
    assert run.bodies == octets
    assert {id(envelope) for envelope in run.envelopes} == {id(run.envelopes[0])}
    assert run.envelopes[0].body_size == 10


def test_what_follows_each_other_is_one_run() -> None:
    octets = message(b"a") + message(b"b", key="other") + message(b"c") + message(b"dd")
    connection = running()
    (event,) = hear(connection, octets)
    assert isinstance(event, Publishes)
    (run,) = event.runs
    assert run.bodies == [b"a", b"b", b"c", b"dd"]
    assert run.envelopes[0] is run.envelopes[2]
    assert run.methods[0] is run.methods[2]


@pytest.mark.parametrize(
    ("octets", "events"),
    [
        (message(b""), [taken(b"")]),
        (message(b"") * 3, [taken(b"")] * 3),
        (message(b"abc") * 3 + HEARTBEAT, [taken(b"abc")] * 3 + [HeartbeatReceived()]),
        (
            message(b"a" * 9) * 4 + message(b"b" * 10) * 4,
            [taken(b"a" * 9)] * 4 + [taken(b"b" * 10)] * 4,
        ),
        (publish() + header(3) + body(b"") + body(b"ab") + body(b"c"), [taken(b"abc")]),
        (
            publish() + publish(2) + header(2, channel=2) + header(1) + body(b"xy", 2) + body(b"z"),
            [taken(b"xy", channel=2), taken(b"z")],
        ),
        (publish() + HEARTBEAT + header(1) + body(b"z"), [HeartbeatReceived(), taken(b"z")]),
        (
            message(b"a", b"\x10\0\x02") + ack(1) + message(b"b"),
            [taken(b"a", properties=b"\x10\0\x02"), (1, "ack", 1, False), taken(b"b")],
        ),
        # Text that is not UTF-8 is the affair of those who exchange it.
        (message(b"a", b"\x80\0\x02\xff\xfe"), [taken(b"a", properties=b"\x80\0\x02\xff\xfe")]),
        (
            message(b"aa") * 3 + publish() + header(2) + frame(3, 1, b"aa", end=0) + message(b"aa"),
            [
                *([taken(b"aa")] * 3),
                *hard(
                    501,
                    'FRAME_ERROR - type 3, all octets = <<"aa">>: {invalid_frame_end_marker,0}',
                ),
            ],
        ),
    ],
)
def test_messages(octets: bytes, events: list[object]) -> None:
    def two_channels() -> Connection:
        connection = running()
        hear(connection, method(2, 20, 10, shortstr("")))
        return connection

    assert converse(two_channels, octets) == events


def test_a_body_of_many_frames() -> None:
    octets = bytes(range(256)) * 100
    data = publish() + header(len(octets))
    data += b"".join(body(octets[at : at + 4088]) for at in range(0, len(octets), 4088))
    assert converse(lambda: running(frame_max=4096), data + message(b"next")) == [
        taken(octets),
        taken(b"next"),
    ]


def test_a_message_too_large_closes_its_channel_alone() -> None:
    connection = running()
    hear(connection, method(2, 20, 10, shortstr("")))
    data = publish() + header(300_001) + body(b"x" * 100) + message(b"other", ch=2)
    violation, publishes = hear(connection, data)
    assert isinstance(violation, Violation)
    assert isinstance(violation.error, SoftError)
    text = "PRECONDITION_FAILED - message size 300001 is larger than max size 300000"
    assert violation.error.reply_text == text
    assert (violation.channel, violation.silent) == (1, False)
    assert isinstance(publishes, Publishes)
    assert publishes.channel == 2


def test_forms_are_forgotten_but_not_what_they_mean() -> None:
    octets = b"".join(message(b"x", key=f"key-{i}") for i in range(1000))
    expected = [taken(b"x", key=f"key-{i}") for i in range(1000)]
    assert told(hear(running(), octets * 2)) == expected * 2


# --- acks


@pytest.mark.parametrize(
    ("octets", "ranges"),
    [
        (ack(1), [(1, 1, False)]),
        (ack(1) + ack(2) + ack(3), [(1, 3, False)]),
        (ack(1) + ack(2) + ack(4) + ack(5) + ack(3), [(1, 2, False), (4, 5, False), (3, 3, False)]),
        (ack(7, True), [(7, 7, True)]),
        (ack(1) + ack(5, True) + ack(6), [(1, 1, False), (5, 5, True), (6, 6, False)]),
        (ack(0, True), [(0, 0, True)]),
        (ack(0), [(0, 0, False)]),
        (ack(3) + ack(3), [(3, 3, False), (3, 3, False)]),
    ],
)
def test_acks_in_ranges(octets: bytes, ranges: list[tuple[int, int, bool]]) -> None:
    (event,) = hear(running(), octets)
    assert isinstance(event, Acks)
    assert event.ranges == ranges
    converse(running, octets)


# --- closing


def test_after_channel_close_all_is_ignored_until_close_ok() -> None:
    connection = running()
    connection.send(1, spec.ChannelClose(404, "NOT_FOUND - no queue", 50, 10))
    ignored = declare() + message(b"x") * 3 + ack(1) + body(b"x") + method(1, 99, 1)
    assert hear(connection, ignored) == []
    assert hear(connection, CHANNEL_CLOSE) == [MethodReceived(1, spec.ChannelClose(200, "", 0, 0))]
    assert hear(connection, CHANNEL_CLOSE_OK) == [MethodReceived(1, spec.ChannelCloseOk())]
    assert connection.channels() == frozenset()
    assert hear(connection, CHANNEL_OPEN) == [MethodReceived(1, spec.ChannelOpen())]


def test_a_close_sent_between_two_events_counts_for_the_second() -> None:
    connection = running()
    events = connection.receive(declare("a") + declare("b") + message(b"x") + CHANNEL_CLOSE_OK)
    assert isinstance(next(events), MethodReceived)
    connection.send(1, spec.ChannelClose(404, "NOT_FOUND", 50, 10))
    assert list(events) == [MethodReceived(1, spec.ChannelCloseOk())]


def test_a_channel_closed_by_the_client_can_be_opened_again() -> None:
    connection = running()
    close = MethodReceived(1, spec.ChannelClose(200, "", 0, 0))
    assert hear(connection, CHANNEL_CLOSE) == [close]
    assert not connection.channel(1).closed  # until we say so
    channel = connection.channel(1)
    connection.send(1, spec.ChannelCloseOk())
    assert channel.closed and connection.channels() == frozenset()
    assert hear(connection, CHANNEL_OPEN) == [MethodReceived(1, spec.ChannelOpen())]
    assert channel.closed and not connection.channel(1).closed  # the number's new channel


@pytest.mark.parametrize("answered", [False, True])
def test_a_channel_is_not_opened_before_its_close_ok_has_come(answered: bool) -> None:
    """RabbitMQ refuses it, too, as a second open. In the same read close-ok cannot have come."""
    connection = running()
    events = connection.receive(CHANNEL_CLOSE + CHANNEL_OPEN)
    assert isinstance(next(events), MethodReceived)
    if answered:
        connection.send(1, spec.ChannelCloseOk())
    second_open = hard(504, "CHANNEL_ERROR - second 'channel.open' seen", (20, 10))
    assert told(list(events)) == second_open


def test_a_channel_that_we_closed_is_not_opened_before_the_clients_close_ok() -> None:
    connection = running()
    connection.send(1, spec.ChannelClose(404, "NOT_FOUND", 50, 10))
    assert hear(connection, declare() + message(b"x")) == []
    second_open = hard(504, "CHANNEL_ERROR - second 'channel.open' seen", (20, 10))
    assert told(hear(connection, CHANNEL_OPEN)) == second_open


def test_nothing_else_is_done_on_a_channel_that_the_client_closed() -> None:
    not_open = hard(504, "CHANNEL_ERROR - expected 'channel.open'", (50, 10))
    assert converse(running, CHANNEL_CLOSE + declare())[1:] == not_open


def test_our_close_crosses_the_clients() -> None:
    """What the client sent before its close was refused only after its close had come."""
    connection = running()
    hear(connection, CHANNEL_CLOSE)
    connection.send(1, spec.ChannelClose(404, "NOT_FOUND", 50, 10))
    connection.send(1, spec.ChannelCloseOk())
    assert connection.channels() == {1}
    assert hear(connection, CHANNEL_CLOSE_OK) == [MethodReceived(1, spec.ChannelCloseOk())]
    assert connection.channels() == frozenset()


def test_after_connection_close_all_is_ignored_until_close_ok() -> None:
    connection = running()
    connection.send(0, spec.ConnectionClose(320, "CONNECTION_FORCED - shutdown", 0, 0))
    assert connection.channels() == frozenset()
    assert hear(connection, declare() + message(b"x") + HEARTBEAT + method(0, 99, 1)) == []
    assert hear(connection, CLOSE) == [MethodReceived(0, spec.ConnectionClose(200, "", 0, 0))]
    assert hear(connection, CLOSE_OK) == [MethodReceived(0, spec.ConnectionCloseOk())]
    assert connection.state is State.CLOSED
    assert hear(connection, declare()) == []


def test_nothing_counts_behind_the_clients_connection_close() -> None:
    expected = [(0, spec.ConnectionClose(200, "bye", 0, 0))]
    assert converse(running, CLOSE + declare()) == expected


def test_after_a_violation_the_close_ok_is_still_heard() -> None:
    connection = running()
    (violation,) = hear(connection, OPEN + declare() + message(b"x"))
    assert isinstance(violation, Violation)
    connection.send(0, spec.ConnectionClose(504, violation.error.reply_text, 10, 40))
    assert hear(connection, CLOSE_OK) == [MethodReceived(0, spec.ConnectionCloseOk())]


def test_after_a_broken_frame_nothing_is_heard() -> None:
    connection = running()
    (violation,) = hear(connection, frame(1, 1, b"\0\x32\0\x0a", end=0) + CLOSE_OK)
    assert isinstance(violation, Violation)
    assert hear(connection, CLOSE_OK) == []


# --- sending


def test_what_is_sent_is_cut_into_frames_of_the_agreed_size() -> None:
    connection = running(frame_max=4096)
    octets = b"x" * 10_000
    envelope = Envelope.pack("", "k", b"\0\0", len(octets))
    sent = connection.send_content(1, spec.BasicReturn(312, "NO_ROUTE", "", "k"), envelope, octets)
    no_route = struct.pack(">H", 312) + shortstr("NO_ROUTE") + shortstr("") + shortstr("k")
    pieces = [octets[:4088], octets[:4088], octets[:1824]]
    assert sent == method(1, 60, 50, no_route) + header(10_000) + b"".join(map(body, pieces))
    assert connection.heartbeat() == HEARTBEAT


@pytest.mark.parametrize("event_bytes_max", [1, 60, 500])
def test_events_can_be_had_in_smaller_pieces(event_bytes_max: int) -> None:
    """They mean the same, and none is much larger than it should be."""
    octets = b"".join(
        (
            message(b"x") * 20,
            b"".join(message(b"%d" % number, key=f"k{number % 3}") for number in range(20)),
            message(b"") * 20,
            b"".join(ack(tag) for tag in (3, 1, 2, *range(4, 30))),
            message(b"y" * 2000) * 3,
        )
    )
    whole, pieces = running(), running()
    pieces.event_bytes_max = event_bytes_max
    events = hear(pieces, octets)
    assert told(events) == told(hear(whole, octets))
    for event in events:
        match event:
            case Publishes(runs=runs):
                # The message in which the limit lies is whole.
                sizes = [40 + len(octets) for run in runs for octets in run.bodies]
                assert sum(sizes[:-1]) <= max(event_bytes_max, 1) or len(sizes) == 1
            case Acks(ranges=ranges):
                assert (
                    sum(last - first + 1 for first, last, _ in ranges) <= event_bytes_max // 21 + 1
                )
