"""A connection from a client's side: what it says while nobody calls."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.frames import HEARTBEAT_FRAME, PROTOCOL_HEADER, method_frame
from qlog.tools.transfer import link as link_module
from qlog.tools.transfer import publisher as publisher_module
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
    beat = Link._beat
    monkeypatch.setattr(Link, "_beat", lambda link, _: beat(link, 0.01))  # type: ignore[arg-type]
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
    beat, write, beaten = Link._beat, Link._write, threading.Event()
    monkeypatch.setattr(Link, "_beat", lambda link, _: beat(link, 1e-5))  # type: ignore[arg-type]

    def noticed(link: Link) -> None:
        beats = link._unsent == HEARTBEAT_FRAME
        write(link)
        if beats and not link._unsent:
            beaten.set()

    monkeypatch.setattr(Link, "_write", noticed)
    address = Address.parse(f"amqps://127.0.0.1:{tls_broker.tls_port}")
    body = bytes(range(256)) * 4000
    with Publisher(address, "/", print) as publisher:
        link = publisher._link
        link.ask(
            2, spec.QueueDeclare("q", False, False, False, False, False, {}), spec.QueueDeclareOk
        )
        publisher.find("q")
        for number in range(50):
            beaten.clear()
            assert beaten.wait(20)
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
        Publisher(address, "/", print)
    plain = Address.parse(f"amqps://127.0.0.1:{tls_broker.port}")
    with pytest.raises(LinkFailed, match=r"^no TLS with 127\.0\.0\.1:\d+: "):
        Publisher(plain, "/", print)


def test_of_a_login_over_tls_that_is_refused_nothing_is_left(
    tls_broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ssl.SSLSocket] = []
    secured = link_module._secured

    def kept(*arguments: Any) -> ssl.SSLSocket:
        made.append(secured(*arguments))
        return made[-1]

    monkeypatch.setattr(link_module, "_secured", kept)
    with pytest.raises(LinkFailed, match="refused"):
        Publisher(Address.parse(f"amqps://guest:no@127.0.0.1:{tls_broker.tls_port}"), "/", print)
    assert [one.fileno() for one in made] == [-1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(60)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(LinkFailed, match="no heartbeats can be sent: can't start new thread"):
        connected(monkeypatch, broker)
    assert broker.ours.fileno() == -1
    with suppress(TimeoutError, OSError):
        broker.close()


class Living:
    """A broker that sends heartbeats, and nothing else unless the test says so."""

    def __init__(self) -> None:
        self.broker = Broker(60)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live)

    def begin(self) -> None:
        """From now on."""
        self.broker._greeter.join()
        self._thread.start()

    def _live(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the link may be closed first
            while not self._over.wait(0.005):
                self.broker._theirs.sendall(HEARTBEAT_FRAME)

    def end(self) -> None:
        """No more."""
        self._over.set()
        self._thread.join()
        self.broker.close()


@pytest.fixture
def living() -> Iterator[Living]:
    living = Living()
    yield living
    living.end()


def test_a_broker_that_lives_and_does_not_answer(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = connected(monkeypatch, living.broker)
    living.begin()
    monkeypatch.setattr(link_module, "SILENCE_S_MAX", 0.1)
    with pytest.raises(LinkFailed, match="has not answered"):
        link.ask(1, spec.ChannelOpen(), spec.ChannelOpenOk)
    link.close(orderly=False)


@pytest.mark.parametrize("blocked", [False, True])
def test_a_broker_that_lives_and_confirms_nothing_is_waited_for(
    living: Living, monkeypatch: pytest.MonkeyPatch, blocked: bool
) -> None:
    """It is said once."""
    monkeypatch.setattr(publisher_module, "SAID_S", 0.05)
    monkeypatch.setattr(Link, "open_channel", lambda *_, **__: None)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: living.broker.ours)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        confirm = method_frame(1, spec.BasicAck(1, True))
        timer = threading.Timer(0.2, living.broker._theirs.sendall, [confirm])
        timer.start()

    publisher = Publisher(Address.parse("amqp://"), "/", say)
    living.begin()
    publisher._queues["q"] = None
    publisher.publish("q", Envelope.pack("", "q", b"\0\0", 1), b"x", 1)
    publisher._link.blocked = blocked
    publisher.wait()
    why = "has blocked publishers" if blocked else "confirms nothing now"
    assert said == [f"waiting for the broker, which {why}"]
    assert publisher.open_from is None
    publisher._link.close(orderly=False)


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


def test_a_broker_that_lives_and_takes_nothing_is_waited_for(
    living: Living, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once; and if it goes on for a minute, and nobody is blocked, it is over."""
    monkeypatch.setattr(publisher_module, "SAID_S", 0.05)
    monkeypatch.setattr(Link, "open_channel", lambda *_, **__: None)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: living.broker.ours)
    said: list[str] = []
    body = bytes(4_000_000)
    reader = threading.Thread(target=lambda: living.broker._take(len(body)))

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 1:
            reader.start()

    publisher = Publisher(Address.parse("amqp://"), "/", say)
    living.begin()
    publisher._queues["q"] = None
    envelope = Envelope.pack("", "q", b"\0\0", len(body))
    publisher.publish("q", envelope, body, 1)
    reader.join()
    assert said == ["waiting for the broker, which takes nothing now"]
    monkeypatch.setattr(link_module, "SILENCE_S_MAX", 0.2)
    with pytest.raises(LinkFailed, match="has taken nothing"):
        publisher.publish("q", envelope, body, 2)
    assert len(said) == 2
    publisher._link.close(orderly=False)
