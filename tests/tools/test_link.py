"""A connection from a client's side: what it says while nobody calls."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.frames import HEARTBEAT_FRAME, PROTOCOL_HEADER, method_frame
from qlog.tools.transfer import link as link_module
from qlog.tools.transfer.link import Address, Link, LinkFailed
from qlog.tools.transfer.publisher import Publisher
from tests.live.server import BrokerProcess
from tests.server.net.authority import broker_files, ca_file


class Broker:
    """The other side of a link, which says what the test says. `tuned`: what the link has chosen."""

    def __init__(self, heartbeat_s: int) -> None:
        self.ours, self._theirs = socket.socketpair()
        self._theirs.settimeout(20)
        self._heartbeat_s = heartbeat_s
        self._greeter = threading.Thread(target=self._greet)
        self._greeter.start()

    def _greet(self) -> None:
        self.expect(PROTOCOL_HEADER)
        self._say(spec.ConnectionStart(0, 9, {}, b"PLAIN", b"en_US"))
        self._take_frame()
        self._say(spec.ConnectionTune(2047, 131072, self._heartbeat_s))
        self.tuned = int.from_bytes(self._take_frame()[-3:-1], "big")
        self._say(spec.ConnectionOpenOk())
        self._take_frame()

    def _say(self, method: spec.Method) -> None:
        self._theirs.sendall(method_frame(0, method))

    def _take_frame(self) -> bytes:
        head = self._take(7)
        return head + self._take(int.from_bytes(head[3:], "big") + 1)

    def _take(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            taken += self._theirs.recv(size - len(taken))
        return taken

    def expect(self, octets: bytes) -> None:
        """The next octets are these."""
        assert self._take(len(octets)) == octets

    def close(self) -> None:
        """End."""
        self._greeter.join()
        self._theirs.close()


def connected(monkeypatch: pytest.MonkeyPatch, broker: Broker) -> Link:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: broker.ours)
    return Link(Address.parse("amqp://"), "/", "test", lambda *_: False, {})


@pytest.mark.parametrize(("offered", "chosen"), [(1, 1), (60, 30), (0, 30)])
def test_heartbeats_are_agreed_upon(
    monkeypatch: pytest.MonkeyPatch, offered: int, chosen: int
) -> None:
    broker = Broker(offered)
    link = connected(monkeypatch, broker)
    link.close(orderly=False)
    broker.close()
    assert broker.tuned == chosen
    assert not [one for one in threading.enumerate() if one.name == "qlog-heartbeats"]


def test_heartbeats_are_sent_while_nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the program waits for something else: a broker would cut the connection."""
    broker = Broker(1)
    link = connected(monkeypatch, broker)
    broker._greeter.join()
    for _ in range(3):
        broker.expect(HEARTBEAT_FRAME)
    link.close(orderly=False)
    broker.close()


def test_a_broker_that_goes_while_nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(1)
    link = connected(monkeypatch, broker)
    broker.close()
    assert link._pulse is not None
    link._pulse.join(20)
    with pytest.raises(LinkFailed, match="broke|closed"):
        link.ask(1, spec.ChannelOpen(), spec.ChannelOpenOk)
    link.close(orderly=False)


@pytest.fixture
def tls_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrokerProcess]:
    files = broker_files(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", ca_file(tmp_path))
    settings = {f"QLOG_{name.upper()}": value for name, value in files.items()}
    broker = BrokerProcess(tmp_path / "data", settings={**settings, "QLOG_TLS_PORT": "0"})
    yield broker.start()
    broker.kill()


def test_heartbeats_come_between_the_frames_of_a_message(
    tls_broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as can be, beside large messages over TLS: all of them are understood."""
    beat = Link._beat
    monkeypatch.setattr(Link, "_beat", lambda link, _: beat(link, 1e-5))  # type: ignore[arg-type]
    address = Address.parse(f"amqps://127.0.0.1:{tls_broker.tls_port}")
    body = bytes(range(256)) * 4000
    with Publisher(address, "/") as publisher:
        link = publisher._link
        link.ask(
            2, spec.QueueDeclare("q", False, False, False, False, False, {}), spec.QueueDeclareOk
        )
        publisher.find("q")
        for number in range(50):
            publisher.publish("q", Envelope.pack("", "q", b"\0\0", len(body)), body, number)
        publisher.wait()
        assert publisher.open_from is None and publisher._published == 50
        assert link._pulse is not None and link._pulse.is_alive()


def test_a_certificate_that_is_not_trusted_is_one_line(
    tls_broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    address = Address.parse(f"amqps://127.0.0.1:{tls_broker.tls_port}")
    with pytest.raises(LinkFailed, match=r"^no TLS with 127\.0\.0\.1:\d+: .*certificate"):
        Publisher(address, "/")
    plain = Address.parse(f"amqps://127.0.0.1:{tls_broker.port}")
    with pytest.raises(LinkFailed, match=r"^no TLS with 127\.0\.0\.1:\d+: "):
        Publisher(plain, "/")


def test_a_broker_that_is_silent_counts_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that has blocked publishers: it would send heartbeats."""
    broker = Broker(60)
    link = connected(monkeypatch, broker)
    link.blocked = True
    monkeypatch.setattr(link_module, "SILENCE_S_MAX", 0.05)
    with pytest.raises(LinkFailed, match="has said nothing"):
        link.receive()
    link.close(orderly=False)
    broker.close()
