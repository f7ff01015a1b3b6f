"""What a broken or hostile peer may send, and that nobody else notices.

After every row the broker must still serve a new client, and an old one that was connected before.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pamqp.commands import Basic, Channel, Confirm, Connection, Exchange, Queue

from tests.live.conversation import (
    BODY,
    HEADER,
    METHOD,
    PROTOCOL_HEADER,
    Client,
    Closed,
    Talk,
    Wire,
    connections,
    encode_content,
    encode_frame,
    encode_method,
    encode_raw_content,
    refusal,
    serves,
    unique,
    until,
)

Connect = Callable[..., Client]


@pytest.fixture(scope="module")
def bystander(broker_url: str) -> Iterator[Talk]:
    """A connection that lives through all tests of this file."""
    with connections(broker_url) as maker:
        yield maker().channel()


@pytest.fixture(autouse=True)
def others_notice_nothing(broker_url: str, bystander: Talk) -> Iterator[None]:
    """After each test: an old and a new connection work."""
    yield
    bystander.call(Channel.Flow(active=True))
    serves(broker_url)


# bytes on the port before any handshake


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", id="HTTP GET"),
        pytest.param(b"POST /api HTTP/1.1\r\nContent-Length: 0\r\n\r\n", id="HTTP POST"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"r" * 509, id="TLS hello"),
        pytest.param(b"AMQP\x00\x01\x00\x00", id="AMQP 1.0"),
        pytest.param(b"AMQP\x03\x01\x00\x00", id="AMQP 1.0 with SASL"),
        pytest.param(b"\x00" * 4096, id="zeros"),
        pytest.param(b"\xff" * 4096, id="ones"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="SSH"),
        pytest.param(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04test", id="MQTT"),
    ],
)
def test_other_protocols_get_our_header(broker_url: str, sent: bytes) -> None:
    wire = Wire(broker_url)
    wire.write(sent)
    assert wire.read(8) == PROTOCOL_HEADER
    assert wire.at_end()


@pytest.mark.parametrize("count", range(8))
def test_header_cut_short(broker_url: str, count: int) -> None:
    wire = Wire(broker_url)
    wire.write(PROTOCOL_HEADER[:count])
    wire.abort()


@pytest.mark.slow
def test_half_a_handshake_and_silence(broker_url: str) -> None:
    """Ten seconds, then the end."""
    begin = time.monotonic()
    wires = []
    for sent in (b"", b"AMQ", PROTOCOL_HEADER, PROTOCOL_HEADER + b"\x01\x00\x00\x00"):
        wires.append(Wire(broker_url, deadline_s=20))
        wires[-1].write(sent)
    for wire in wires:
        wire.read_to_end()
    assert 5 < time.monotonic() - begin < 16


# frames that are no frames


def deep_table(depth: int) -> bytes:
    """`depth` tables, each inside the one before."""
    value = struct.pack(">I", 0)
    for _ in range(depth):
        value = struct.pack(">I", len(value) + 3) + b"\x01aF" + value
    return value


def deep_array(depth: int) -> bytes:
    """A table of one array, with `depth` arrays inside."""
    value = struct.pack(">I", 0)
    for _ in range(depth):
        value = struct.pack(">I", len(value) + 1) + b"A" + value
    return struct.pack(">I", len(value) + 3) + b"\x01aA" + value


def declare_with(arguments: bytes) -> bytes:
    """A queue.declare of an exclusive queue with these raw arguments."""
    return encode_frame(METHOD, 1, b"\x00\x32\x00\x0a\x00\x00\x00\x04" + arguments)


PUBLISH = encode_method(Basic.Publish(exchange="", routing_key="k"), 1)
FLOW = encode_method(Channel.Flow(active=True), 1)
BEFORE_METHOD = "UNEXPECTED_FRAME - expected method frame, got non method frame instead"
BEFORE_HEADER = (
    "UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead"
)
BEFORE_BODY = "UNEXPECTED_FRAME - expected content body, got non content body frame instead"


def head(size: int, properties: bytes = b"\0\0") -> bytes:
    """A content header frame on channel 1."""
    return encode_frame(HEADER, 1, b"\x00\x3c\x00\x00" + struct.pack(">Q", size) + properties)


@dataclass(frozen=True)
class Row:
    """What is sent on an open channel 1, and the connection.close that must come.

    Without a code, RabbitMQ crashes instead of answering: then any hard error will do. Without a
    text, the words do not matter.
    """

    name: str
    sent: bytes
    code: int | None = None
    text: str | None = None
    by: Any = None
    newer: bool = False


ROWS = [
    Row(
        "wrong frame end",
        encode_frame(METHOD, 1, b"\x00\x3c\x00\x50" + bytes(9))[:-1] + b"\x00",
        501,
        "FRAME_ERROR - type 1, all octets = <<0,60,0,80,0,0,0,0,0,0,0,0,0>>: "
        "{invalid_frame_end_marker,0}",
    ),
    Row(
        "wrong frame end of a long frame",
        encode_frame(BODY, 1, bytes(100))[:-1] + b"\xcd",
        501,
        "FRAME_ERROR - type 3, first 16 octets = <<0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0>>: "
        "{invalid_frame_end_marker,205}",
    ),
    Row(
        "frame too large",
        struct.pack(">BHI", BODY, 1, 131073),
        501,
        "FRAME_ERROR - type 3, all octets = <<>>: {frame_too_large,131073,131064}",
    ),
    Row(
        "frame of four gigabytes",
        struct.pack(">BHI", METHOD, 1, 0xFFFFFFFF),
        501,
        "FRAME_ERROR - type 1, all octets = <<>>: {frame_too_large,4294967295,131064}",
    ),
    Row(
        "protocol header again",
        PROTOCOL_HEADER,
        501,
        "FRAME_ERROR - type 65, all octets = <<>>: {frame_too_large,1342177289,131064}",
    ),
    Row(
        "unknown frame type",
        encode_frame(9, 1, b""),
        501,
        "FRAME_ERROR - type 9, all octets = <<>>: unknown_frame",
    ),
    Row(
        "frame type 0",
        encode_frame(0, 1, b"abc"),
        501,
        'FRAME_ERROR - type 0, all octets = <<"abc">>: unknown_frame',
    ),
    Row(
        "heartbeat on a channel",
        encode_frame(8, 1, b""),
        505,
        "UNEXPECTED_FRAME - type 8, all octets = <<>>",
    ),
    Row(
        "heartbeat with a payload",
        encode_frame(8, 0, b"payload"),
        501,
        'FRAME_ERROR - type 8, all octets = <<"payload">>: unknown_frame',
    ),
    Row(
        "empty method frame",
        encode_frame(METHOD, 1, b""),
        501,
        "FRAME_ERROR - type 1, all octets = <<>>: unknown_frame",
    ),
    Row(
        "half a method number",
        encode_frame(METHOD, 1, b"\x00\x32"),
        501,
        "FRAME_ERROR - type 1, all octets = <<0,50>>: unknown_frame",
    ),
    Row(
        "method without its arguments",
        encode_frame(METHOD, 1, b"\x00\x32\x00\x0a"),
        501,
        "FRAME_ERROR - cannot decode <<>>",
        Queue.Declare,
    ),
    Row("unknown method", encode_frame(METHOD, 1, b"\x00\x32\x00\x63")),
    Row("unknown class", encode_frame(METHOD, 1, b"\x03\xe7\x00\x0a")),
    Row(
        "ack on channel 0",
        encode_frame(METHOD, 0, b"\x00\x3c\x00\x50" + bytes(9)),
        504,
        "CHANNEL_ERROR - unexpected method in connection state running",
        Basic.Ack,
    ),
    Row("header first", encode_frame(HEADER, 1, b"\x00\x3c" + bytes(12)), 505, BEFORE_METHOD),
    Row("body first", encode_frame(BODY, 1, b"x"), 505, BEFORE_METHOD),
    Row(
        "body on channel 0",
        encode_frame(BODY, 0, b"x"),
        505,
        'UNEXPECTED_FRAME - type 3, all octets = <<"x">>',
    ),
    Row(
        "header on a channel never opened",
        encode_frame(HEADER, 9, b"\x00\x3c" + bytes(12)),
        505,
        BEFORE_METHOD,
    ),
    Row("publish inside a publish", PUBLISH + PUBLISH, 505, BEFORE_HEADER, Basic.Publish),
    Row(
        "body before its header",
        PUBLISH + encode_frame(BODY, 1, b""),
        505,
        BEFORE_HEADER,
        Basic.Publish,
    ),
    Row(
        "header of another class",
        PUBLISH + encode_frame(HEADER, 1, b"\x00\x0a" + bytes(12)),
        505,
        "UNEXPECTED_FRAME - expected content header for class 60, got one for class 10 instead",
        Basic.Publish,
    ),
    Row("second header", PUBLISH + head(9) + head(9), 505, BEFORE_BODY, Basic.Publish),
    Row("method inside a body", PUBLISH + head(9) + FLOW, 505, BEFORE_BODY, Basic.Publish),
    Row(
        "more body than announced",
        PUBLISH + head(3) + encode_frame(BODY, 1, b"four"),
        501,
        "FRAME_ERROR - content body frame exceeds remaining content size",
        Basic.Publish,
        newer=True,
    ),
    Row("body of a terabyte", PUBLISH + head(1 << 40), 501, newer=True),
    Row(
        "header cut short",
        PUBLISH + encode_frame(HEADER, 1, b"\x00\x3c\x00"),
        501,
        "FRAME_ERROR - type 2, all octets = <<0,60,0>>: unknown_frame",
    ),
    Row("property longer than its frame", PUBLISH + head(0, b"\x80\x00\x09x") + FLOW),
    Row("properties that never end", PUBLISH + head(0, b"\x00\x01" * 20) + FLOW),
    Row(
        "headers with an unknown field type",
        PUBLISH + head(0, b"\x20\x00\x00\x00\x00\x03\x01a?") + FLOW,
    ),
    Row(
        "table longer than its frame",
        declare_with(b"\x00\x00\x00\x09\x01a"),
        501,
        "FRAME_ERROR - cannot decode <<0,0,0,4,0,0,0,9,1,97>>",
        Queue.Declare,
    ),
    Row("unknown field type", declare_with(b"\x00\x00\x00\x03\x01a?")),
    Row("half an integer", declare_with(b"\x00\x00\x00\x05\x01aI\x00\x00")),
    Row(
        "name that is not UTF-8",
        encode_frame(METHOD, 1, b"\x00\x32\x00\x0a\x00\x00\x02\xff\xfe\x00\x00\x00\x00\x00"),
        501,
        "FRAME_ERROR - Malformed UTF-8 in shortstr",
    ),
]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[pytest.mark.newer] if row.newer else [])
        for row in ROWS
    ],
)
def test_bad_frames(connect: Connect, row: Row) -> None:
    client = connect()
    client.channel()
    client.write(row.sent)
    if row.code is None:
        with contextlib.suppress(Closed):
            assert client.refusal(1).scope == "connection"
        return
    got = client.refusal(1)
    assert got.code == row.code
    if row.text is not None:
        # RabbitMQ breaks long terms into lines.
        assert " ".join(got.text.split()).replace(", ", ",") == row.text.replace(", ", ",")
        wanted = refusal(row.code, row.text, row.by)
        assert (got.class_id, got.method_id) == (wanted.class_id, wanted.method_id)
    if not row.name.startswith(("wrong frame end", "frame ", "protocol header")):
        # Behind those, no frame can be told from another: our close-ok is not understood either.
        assert client.at_end()


def test_frame_may_exceed_the_maximum_by_its_own_envelope(connect: Connect) -> None:
    talk = connect().channel()
    queue = talk.queue()
    talk.send(
        Basic.Publish(exchange="", routing_key=queue),
        head(131_072),
        encode_frame(BODY, 1, b"x" * 131_072),
    )
    message = talk.get_soon(queue)
    assert message.body == b"x" * 131_072
    assert message.body_frame_bytes == (131_064, 8)


@pytest.mark.parametrize("depth", [10, 100])
@pytest.mark.parametrize("make", [deep_table, deep_array])
def test_nested_headers_come_back(talk: Talk, depth: int, make: Callable[[int], bytes]) -> None:
    queue = talk.queue()
    raw = b"\x20\x00" + make(depth)
    talk.send(Basic.Publish(exchange="", routing_key=queue), encode_raw_content(1, b"x", raw))
    assert talk.get_soon(queue).raw_properties == raw


@pytest.mark.parametrize("depth", [1000, 20_000])
@pytest.mark.parametrize("make", [deep_table, deep_array])
@pytest.mark.parametrize("place", ["arguments", "headers", "client properties"])
def test_tables_nested_deep(
    connect: Connect, depth: int, make: Callable[[int], bytes], place: str
) -> None:
    """Taken or refused, but answered: no end of the stack."""
    raw = make(depth)
    if place == "client properties":
        client = connect(handshake=False)
        client.start()
        client.write(
            encode_frame(
                METHOD,
                0,
                b"\x00\x0a\x00\x0b" + raw + b"\x05PLAIN\0\0\0\x0c\0guest\0guest\x05en_US",
            )
        )
        with contextlib.suppress(Closed):
            assert isinstance(client.next(0), (Connection.Tune, Connection.Close))
        return
    talk = connect().channel()
    if place == "arguments":
        talk.send(declare_with(raw))
    else:
        talk.send(
            Basic.Publish(exchange="amq.direct", routing_key="k"),
            encode_raw_content(1, b"x", b"\x20\x00" + raw),
            Channel.Flow(active=True),
        )
    talk.client.closed = True
    with contextlib.suppress(Closed):
        wanted = (Queue.DeclareOk, Channel.FlowOk, Channel.Close, Connection.Close)
        assert isinstance(talk.next(), wanted)


def test_many_channels_in_one_write(connect: Connect) -> None:
    client = connect()
    client.write(b"".join(encode_method(Channel.Open(), n) for n in range(1, 1001)))
    for number in range(1, 1001):
        client.expect(number, Channel.OpenOk)


# the states of a handshake, and methods that do not belong there
OUT_OF_TURN = {
    "starting": [
        Channel.Open(),
        Connection.Open("/"),
        Connection.TuneOk(0, 0, 0),
        Connection.Close(200, "", 0, 0),
        Queue.Declare(),
    ],
    "tuning": [
        Channel.Open(),
        Connection.Open("/"),
        Connection.StartOk(),
        Connection.Close(200, "", 0, 0),
        Queue.Declare(),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("state", OUT_OF_TURN)
def test_method_out_of_turn_in_the_handshake(connect: Connect, state: str) -> None:
    """Closed in the end, with or without a word."""
    clients = []
    for method in OUT_OF_TURN[state]:
        client = connect(handshake=False)
        client.start()
        if state == "tuning":
            client.start_ok()
            client.expect(0, Connection.Tune)
        client.send(0, method)
        clients.append(client)
    for client in clients:
        with contextlib.suppress(Closed):
            assert client.refusal(0).scope == "connection"
        client.read_to_end()


@pytest.mark.parametrize(
    "method",
    [
        Connection.StartOk(),
        Connection.TuneOk(2047, 131072, 0),
        Connection.Open("/"),
        Connection.SecureOk(""),
        Connection.OpenOk(),
        Queue.Declare(),
        Basic.Ack(1),
    ],
    ids=lambda method: method.name,
)
def test_method_out_of_turn_when_running(connect: Connect, method: Any) -> None:
    client = connect()
    client.send(0, method)
    assert client.refusal(0) == refusal(
        504, "CHANNEL_ERROR - unexpected method in connection state running", method
    )
    assert client.at_end()


def recorded(queue: str, exchange: str) -> bytes:
    """A whole conversation, as a client in a hurry would write it."""
    parts: list[Any] = [
        Queue.Declare(queue=queue, auto_delete=True),
        Exchange.Declare(exchange=exchange, auto_delete=True),
        Queue.Bind(queue=queue, exchange=exchange, routing_key="k"),
        Confirm.Select(),
        Basic.Qos(prefetch_count=1),
        Basic.Consume(queue=queue, consumer_tag="t"),
        Basic.Publish(exchange=exchange, routing_key="k", mandatory=True),
        encode_content(1, b"body", Basic.Properties(headers={"a": [1, {"b": None}]})),
        Basic.Ack(1),
        Basic.Cancel("t"),
        Channel.Close(200, "", 0, 0),
    ]
    start_ok = Connection.StartOk({"product": "cut"}, "PLAIN", "\0guest\0guest", "en_US")
    return b"".join(
        [
            PROTOCOL_HEADER,
            encode_method(start_ok, 0),
            encode_method(Connection.TuneOk(2047, 131072, 0), 0),
            encode_method(Connection.Open("/"), 0),
            encode_method(Channel.Open(), 1),
            *(part if isinstance(part, bytes) else encode_method(part, 1) for part in parts),
            encode_method(Connection.Close(200, "", 0, 0), 0),
        ]
    )


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_connection_cut_at_every_byte(
    connect: Connect, broker_url: str, is_reference: bool, reset: bool
) -> None:
    names = connect()
    queue, exchange = unique("cut"), unique("cut")
    names.queues.add(queue)
    names.exchanges.add(exchange)
    conversation = recorded(queue, exchange)
    for cut in range(0, len(conversation), 5 if is_reference else 1):
        wire = Wire(broker_url)
        if reset:
            linger = struct.pack("ii", 1, 0)
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        wire.write(conversation[:cut])
        wire.abort()
    talk = names.channel()

    def is_gone() -> bool:
        talk.send(Queue.Delete(queue=queue))
        return bool(talk.expect(Queue.DeleteOk).message_count == 0)

    until(is_gone, "what the cut conversations left behind")


def test_client_that_never_reads(connect: Connect, broker_url: str) -> None:
    """Its consumer gets what fits; others are served as if it were not there."""
    talk = connect().channel()
    queue = talk.queue()
    slow = connect()
    slow.channel().consume(queue, no_ack=True)
    for _ in range(200):
        talk.publish("", queue, b"x" * 100_000)
    serves(broker_url)
    slow.abort()
    talk.call(Queue.Delete(queue=queue))


def test_thousand_connections_opened_and_dropped(broker_url: str) -> None:
    for number in range(1000):
        wire = Wire(broker_url)
        if number % 2:
            wire.write(PROTOCOL_HEADER)
        wire.abort()
