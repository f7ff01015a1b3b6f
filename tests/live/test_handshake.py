"""From the protocol header to open-ok, and the end of a connection."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from pamqp.commands import Channel, Connection

from tests.live.conversation import (
    HEARTBEAT,
    PROTOCOL_HEADER,
    Client,
    Closed,
    Refusal,
    Wire,
    encode_frame,
    refusal,
    serves,
)

Connect = Callable[..., Client]


def tuning(connect: Connect, **options: Any) -> Client:
    """A client that has read the server's tune."""
    client = connect(handshake=False, **options)
    client.start()
    client.start_ok()
    client.expect(0, Connection.Tune)
    return client


def test_start_names_the_product_and_what_it_can(connect: Connect) -> None:
    start = connect(handshake=False).start()
    assert (start.version_major, start.version_minor) == (0, 9)
    assert start.locales == "en_US"
    assert {"PLAIN", "AMQPLAIN"} <= set(start.mechanisms.split(" "))
    properties = start.server_properties
    assert properties["product"] == "RabbitMQ"
    assert {"version", "platform", "copyright", "information", "cluster_name"} <= set(properties)
    assert all(isinstance(v, str) for k, v in properties.items() if k != "capabilities")
    assert properties["capabilities"] == {
        "publisher_confirms": True,
        "exchange_exchange_bindings": True,
        "basic.nack": True,
        "consumer_cancel_notify": True,
        "connection.blocked": True,
        "consumer_priorities": True,
        "authentication_failure_close": True,
        "per_consumer_qos": True,
        "direct_reply_to": True,
    }


@pytest.mark.newer
def test_start_names_version_and_qlog(connect: Connect) -> None:
    properties = connect(handshake=False).start().server_properties
    assert properties["version"] == "4.2.0"
    assert "qlog" in (properties["platform"] + properties["information"]).lower()


def test_tune_proposes_the_defaults(connect: Connect) -> None:
    client = connect(handshake=False)
    client.start()
    client.start_ok()
    tune = client.expect(0, Connection.Tune)
    assert (tune.channel_max, tune.frame_max, tune.heartbeat) == (2047, 131072, 60)


@pytest.mark.parametrize(
    "sent",
    [
        b"AMQP\x01\x01\x00\x0a",
        b"AMQP\x00\x01\x00\x00",
        b"AMQP\x03\x01\x00\x00",
        b"AMQP\x00\x00\x09\x02",
        b"XXXX\x00\x00\x09\x01",
        b"\x00" * 8,
    ],
)
def test_other_header_is_answered_with_ours(broker_url: str, sent: bytes) -> None:
    wire = Wire(broker_url)
    wire.write(sent)
    assert wire.read_to_end() == PROTOCOL_HEADER


@pytest.mark.parametrize("sent", [b"AMQP\x00\x00\x09\x01", b"AMQP\x01\x01\x00\x09"])
def test_header_of_0_9_and_0_9_1_is_accepted(broker_url: str, sent: bytes) -> None:
    wire = Wire(broker_url)
    wire.write(sent)
    assert wire.read_frame().payload[:4] == b"\x00\x0a\x00\x0a"


def test_amqplain_logs_in(connect: Connect) -> None:
    client = connect(handshake=False)
    client.start()
    response = "\x05LOGINS\x00\x00\x00\x05guest\x08PASSWORDS\x00\x00\x00\x05guest"
    client.start_ok("AMQPLAIN", response)
    client.expect(0, Connection.Tune)


LOGIN_REFUSED = (
    "ACCESS_REFUSED - Login was refused using authentication mechanism {}. "
    "For details see the broker logfile."
)


@pytest.mark.parametrize(
    ("mechanism", "response"),
    [
        ("PLAIN", "\0guest\0wrong"),
        ("PLAIN", "\0nobody\0guest"),
        ("PLAIN", "\0guest\0"),
        ("PLAIN", "\0\0"),
        ("AMQPLAIN", "\x05LOGINS\x00\x00\x00\x05guest\x08PASSWORDS\x00\x00\x00\x05wrong"),
    ],
)
def test_wrong_login_is_told_to_those_who_can_hear_it(
    connect: Connect, mechanism: str, response: str
) -> None:
    client = connect(handshake=False)
    client.start()
    client.start_ok(mechanism, response)
    assert client.refusal(0) == Refusal("connection", 403, LOGIN_REFUSED.format(mechanism), 0, 0)
    assert client.at_end()


@pytest.mark.slow
def test_failure_before_login_closes_in_silence(connect: Connect) -> None:
    """After three seconds, so that guessing takes time."""
    clients = []
    rows: list[tuple[str, str, dict[str, Any]]] = [
        ("PLAIN", "\0guest\0wrong", {"capabilities": {}}),
        ("NTLM", "", {}),
        ("PLAIN", "no separators", {}),
        ("AMQPLAIN", "\x05LOGINS\x00\x00\x00\x05guest", {}),
    ]
    for mechanism, response, options in rows:
        client = connect(handshake=False, **options)
        client.start()
        client.start_ok(mechanism, response)
        clients.append(client)
    for client in clients:
        assert client.at_end()


TUNE_OK_REFUSED = [
    (2047, 4095, "frame_max = 4095 is lower than the minimum allowed value (4096)"),
    (2047, 131073, "frame_max = 131073 is higher than the maximum allowed value (131072)"),
    (2047, 0, "frame_max = 0 is higher than the maximum allowed value (131072)"),
    (2048, 131072, "channel_max = 2048 is higher than the maximum allowed value (2047)"),
    (0, 131072, "channel_max = 0 (no limit) is higher than the maximum allowed value (2047)"),
]


@pytest.mark.slow
def test_tune_ok_beyond_the_limits(connect: Connect) -> None:
    """RabbitMQ 3.10 closes after 3 s without a word, later ones say why: both are right."""
    clients = []
    for channel_max, frame_max, text in TUNE_OK_REFUSED:
        client = tuning(connect)
        client.send(0, Connection.TuneOk(channel_max, frame_max, 0))
        clients.append((client, text))
    for client, text in clients:
        with contextlib.suppress(Closed):
            assert client.refusal(0) == refusal(
                530, f"NOT_ALLOWED - negotiated {text}", Connection.TuneOk
            )
        assert client.at_end()


def test_smallest_frame_max_is_accepted_and_kept(connect: Connect) -> None:
    talk = connect(frame_max=4096).channel()
    queue = talk.declare("", exclusive=True)
    talk.publish("", queue, b"x" * 10_000)
    message = talk.get_soon(queue, no_ack=True)
    assert message.body == b"x" * 10_000
    assert message.body_frame_bytes == (4088, 4088, 1824)


def test_unknown_virtual_host(connect: Connect) -> None:
    client = tuning(connect)
    client.send(0, Connection.TuneOk(2047, 131072, 0), Connection.Open("nowhere"))
    assert client.refusal(0) == refusal(
        530, "NOT_ALLOWED - vhost nowhere not found", Connection.Open
    )
    assert client.at_end()


def test_close_round_trip(connect: Connect) -> None:
    client = connect()
    client.channel()
    client.send(0, Connection.Close(200, "Goodbye", 0, 0))
    client.expect(0, Connection.CloseOk)


def test_close_before_open_is_out_of_turn(connect: Connect) -> None:
    client = tuning(connect)
    client.send(0, Connection.TuneOk(2047, 131072, 0), Connection.Close(200, "No", 0, 0))
    assert client.refusal(0) == refusal(
        504, "CHANNEL_ERROR - unexpected method in connection state opening", Connection.Close
    )


def test_update_secret_is_accepted(connect: Connect) -> None:
    client = connect()
    client.send(0, Connection.UpdateSecret("guest", "because"))
    client.expect(0, Connection.UpdateSecretOk)
    client.channel()


def test_whole_handshake_in_one_write(connect: Connect) -> None:
    """A client in a hurry need not wait for the server's answers."""
    client = connect(handshake=False)
    client.write(PROTOCOL_HEADER)
    client.start_ok()
    client.send(0, Connection.TuneOk(2047, 131072, 0), Connection.Open("/"))
    client.send(1, Channel.Open())
    for kind in (Connection.Start, Connection.Tune, Connection.OpenOk):
        client.expect(0, kind)
    client.expect(1, Channel.OpenOk)


def test_handshake_one_byte_at_a_time(connect: Connect, broker_url: str) -> None:
    client = connect(handshake=False)
    write = client.write

    def dribble(data: bytes) -> None:
        for value in data:
            write(bytes([value]))

    client.write = dribble  # type: ignore[method-assign]
    client.handshake()
    client.channel()
    serves(broker_url)


def test_server_sends_heartbeats_at_half_the_interval(connect: Connect) -> None:
    client = tuning(connect)
    client.send(0, Connection.TuneOk(2047, 131072, 1), Connection.Open("/"))
    client.expect(0, Connection.OpenOk)
    begin = time.monotonic()
    frame = client.read_frame(5)
    assert (frame.kind, frame.channel, frame.payload) == (HEARTBEAT, 0, b"")
    assert time.monotonic() - begin < 4


@pytest.mark.slow
def test_silent_client_is_dropped_after_two_intervals(connect: Connect) -> None:
    client = tuning(connect)
    client.send(0, Connection.TuneOk(2047, 131072, 1), Connection.Open("/"))
    client.expect(0, Connection.OpenOk)
    begin = time.monotonic()
    with pytest.raises(Closed):
        while True:
            frame = client.read_frame(10)
            assert frame.kind == HEARTBEAT
    assert 0.9 < time.monotonic() - begin < 6


@pytest.mark.slow
def test_client_that_sends_anything_is_not_dropped(connect: Connect) -> None:
    client = tuning(connect)
    client.send(0, Connection.TuneOk(2047, 131072, 1), Connection.Open("/"))
    client.expect(0, Connection.OpenOk)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        client.write(encode_frame(HEARTBEAT, 0, b""))
        client.read_frame()
    client.send(1, Channel.Open())
    client.expect(1, Channel.OpenOk)
