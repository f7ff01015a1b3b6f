"""Who gets in, and by which mechanism."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.connection import Connection
from qlog.server.amqp.frames import PROTOCOL_HEADER, method_frame
from qlog.server.amqp.spec import Method
from qlog.server.broker.channels.client import Client
from qlog.server.broker.settings import BrokerSettings
from tests.server.broker.support import CAPABILITIES, Bench, ListSink


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[list[Bench]]:
    """Brokers that are closed at the end."""
    made: list[Bench] = []
    yield made
    for bench in made:
        bench.close()


def log_in(
    bench: Bench, mechanism: str, response: bytes, *, loopback: bool = True
) -> tuple[list[str], Method | None, Client]:
    """What is offered, and the answer to the login, if there is one."""
    core = Connection()
    sink = ListSink(core)
    client = Client(bench.broker, sink, core, peer="test", loopback=loopback)
    for event in core.receive(PROTOCOL_HEADER):
        client.handle(event)
    (start,) = sink.take()
    assert isinstance(start.method, spec.ConnectionStart)
    ok = spec.ConnectionStartOk(CAPABILITIES, mechanism, response, "en_US")
    for event in core.receive(method_frame(0, ok)):
        client.handle(event)
    said = sink.take()
    return start.method.mechanisms.decode().split(), said[-1].method if said else None, client


@pytest.mark.parametrize(
    ("settings", "loopback", "name"),
    [
        ({}, True, "guest"),
        ({}, False, ""),  # guest is one of the `loopback_users`
        ({"loopback_users": frozenset[str]()}, False, "guest"),
        ({"default_pass": "secret"}, True, ""),
        ({"default_pass": "secret", "anonymous_login_pass": "secret"}, True, "guest"),
        ({"default_user": "web"}, True, ""),
        ({"default_user": "web", "anonymous_login_user": "web"}, False, "web"),
    ],
)
def test_anonymous_is_the_user_of_the_setting(
    tmp_path: Path, benches: list[Bench], settings: dict[str, object], loopback: bool, name: str
) -> None:
    """With the password of the setting, and from where that user may come."""
    benches.append(Bench(tmp_path, BrokerSettings(**settings)))  # type: ignore[arg-type]
    offered, answer, client = log_in(benches[0], "ANONYMOUS", b"trace", loopback=loopback)
    assert offered == ["PLAIN", "AMQPLAIN", "ANONYMOUS"]
    if name:
        assert isinstance(answer, spec.ConnectionTune) and client.user.name == name
    else:
        assert isinstance(answer, spec.ConnectionClose)
        assert answer.reply_text == (
            "ACCESS_REFUSED - Login was refused using authentication mechanism ANONYMOUS. "
            "For details see the broker logfile."
        )


ODD_NAMES = [b"", b"\xff\xfe", b"u" * 3000, b"guest ", b"GUEST", "gu\u0435st".encode()]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_nobody(tmp_path: Path, benches: list[Bench], name: bytes) -> None:
    benches.append(Bench(tmp_path))
    _, answer, client = log_in(benches[0], "PLAIN", b"\0" + name + b"\0guest")
    assert isinstance(answer, spec.ConnectionClose) and answer.reply_code == 403
    assert client.account is None and not client.authenticated


def test_anonymous_can_be_turned_off(tmp_path: Path, benches: list[Bench]) -> None:
    """It is an unknown mechanism then, of which clients are not told before they are logged in."""
    benches.append(Bench(tmp_path, BrokerSettings(anonymous_login_user="none")))
    offered, answer, client = log_in(benches[0], "ANONYMOUS", b"")
    assert offered == ["PLAIN", "AMQPLAIN"]
    assert answer is None and not client.authenticated
