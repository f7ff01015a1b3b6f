"""The broker as `qlog serve` runs it: its ports, TLS, and the socket of the owner."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from qlog.server import app, config, listeners
from qlog.server.amqp import spec
from qlog.server.amqp.frames import PROTOCOL_HEADER, method_frame
from qlog.server.app import RunningBroker, open_broker
from qlog.server.control import SHUTDOWN
from qlog.server.listeners import SOCKET_NAME
from qlog.server.net.certificate_dates import ends_s
from tests.live.server import free_ports
from tests.server.net.authority import NAME, broker_files, client_context

LOGIN = "authorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n"


@asynccontextmanager
async def running(directory: Path, **settings: Any) -> AsyncIterator[RunningBroker]:
    given = {"data_dir": directory, "port": 0, "disk_free_limit_bytes": 0, **settings}
    async with open_broker(config.of(**given), http=frozenset(settings)) as broker:
        yield broker


async def ask(stream: trio.abc.Stream, path: str, login: str = LOGIN) -> bytes:
    """The body of the answer."""
    await stream.send_all(
        f"GET {path} HTTP/1.1\r\nhost: x\r\n{login}connection: close\r\n\r\n".encode()
    )
    parts = []
    try:
        while data := await stream.receive_some():
            parts.append(bytes(data))
    except trio.BrokenResourceError:
        pass
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    if b"chunked" in head.lower():
        chunks = []
        while body:
            size, _, body = body.partition(b"\r\n")
            chunks.append(body[: int(size, 16)])
            body = body[int(size, 16) + 2 :]
        return b"".join(chunks)
    return body


async def test_management_and_metrics_with_and_without_tls(tmp_path: Path) -> None:
    plain, tls, metrics, amqps = free_ports(4)
    ports = {"management_port": plain, "management_tls_port": tls, "metrics_port": metrics}
    files = broker_files(tmp_path)
    async with running(tmp_path / "data", **ports, tls_port=amqps, **files) as broker:
        overview = json.loads(
            await ask(await trio.open_tcp_stream("127.0.0.1", plain), "/api/overview")
        )
        listening = {(one["protocol"], one["port"]) for one in overview["listeners"]}
        assert listening == {
            ("amqp", broker.port),
            ("amqp/ssl", amqps),
            ("http", plain),
            ("https", tls),
            ("http/prometheus", metrics),
        }
        raw = await trio.open_tcp_stream("127.0.0.1", tls)
        encrypted = trio.SSLStream(
            raw, client_context(), server_hostname=NAME, https_compatible=True
        )
        assert json.loads(await ask(encrypted, "/api/whoami"))["name"] == "guest"
        checks = "/api/health/checks"
        again = trio.open_tcp_stream
        answer = await ask(await again("127.0.0.1", plain), f"{checks}/protocol-listener/https")
        assert json.loads(answer)["status"] == "ok"
        answer = await ask(
            await again("127.0.0.1", plain), f"{checks}/certificate-expiration/1/days"
        )
        assert json.loads(answer) == {"status": "ok"}
        text = (await ask(await again("127.0.0.1", metrics), "/metrics", "")).decode()
        families = {family.name for family in text_string_to_metric_families(text)}
        assert {"rabbitmq_queues", "qlog_loop_lag_seconds"} <= families


async def open_client(port: int) -> trio.abc.Stream:
    """An AMQP client that is connected, and says nothing more."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    said = [
        spec.ConnectionStartOk({}, "PLAIN", b"\0guest\0guest", "en_US"),
        spec.ConnectionTuneOk(1, 131072, 0),
        spec.ConnectionOpen("/"),
    ]
    frames = b"".join(method_frame(0, method) for method in said)
    await stream.send_all(PROTOCOL_HEADER + frames)
    await hear(stream, method_frame(0, spec.ConnectionOpenOk()))
    return stream


async def hear(stream: trio.abc.Stream, octets: bytes) -> None:
    """Wait until the broker has said this."""
    heard = b""
    while octets not in heard:
        part = await stream.receive_some()
        assert part, heard
        heard += part


async def test_health_checks_fail_while_clients_are_waited_for(tmp_path: Path) -> None:
    """Load balancers send nobody any more to a broker that has been told to end."""
    (port,) = free_ports(1)
    seen: dict[str, bytes] = {}

    async def ask_while_it_ends(client: trio.abc.Stream) -> None:
        await hear(client, SHUTDOWN.encode())  # connection.close: it has begun to end
        for check in (
            "ready-to-serve-clients",
            "is-in-service",
            "protocol-listener/amqp",
            "alarms",
        ):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            request = f"GET /api/health/checks/{check} HTTP/1.1\r\nhost: x\r\n{LOGIN}\r\n"
            await stream.send_all(request.encode())
            seen[check] = await stream.receive_some()
        await client.aclose()

    async with (
        trio.open_nursery() as nursery,
        running(tmp_path / "data", management_port=port, shutdown_s=30) as broker,
    ):
        client = await open_client(broker.port)
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        path = "/api/health/checks/ready-to-serve-clients"
        assert json.loads(await ask(stream, path)) == {"status": "ok"}
        nursery.start_soon(ask_while_it_ends, client)
    assert {check: answer[9:12] for check, answer in seen.items()} == {
        "ready-to-serve-clients": b"503",
        "is-in-service": b"503",
        "protocol-listener/amqp": b"503",
        "alarms": b"200",
    }


async def test_the_log_says_who_listens_where(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    management, metrics = free_ports(2)
    caplog.set_level("INFO", "qlog.http")
    async with running(tmp_path / "data", management_port=management, metrics_port=metrics):
        pass
    expected = f"management http://127.0.0.1:{management}, metrics http://127.0.0.1:{metrics}"
    assert expected in caplog.messages


async def test_the_owner_asks_without_a_password(tmp_path: Path) -> None:
    """Nothing listens on TCP: what serves HTTP is imported for the first client."""
    nothing = {"management_port": 0, "metrics_port": 0}
    async with running(tmp_path / "data", **nothing):
        for _ in range(2):
            stream = await trio.open_unix_socket(tmp_path / "data" / SOCKET_NAME)
            assert json.loads(await ask(stream, "/api/whoami", ""))["tags"] == ["administrator"]


async def test_a_directory_without_room_for_a_socket_is_served_without_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def loaded(sockets: object) -> None:
        raise AssertionError("there is nothing to serve")

    monkeypatch.setattr(listeners, "_bound_path", refused)
    monkeypatch.setattr(app, "load_http", loaded)
    async with running(tmp_path / "data", management_port=0, metrics_port=0):
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert "no socket for qlog ctl" in caplog.text


async def test_a_certificate_that_ends_soon(tmp_path: Path) -> None:
    files = broker_files(tmp_path)
    text = Path(files["tls_certificate"]).read_text()
    (port, amqps) = free_ports(2)
    ports = {"management_port": port, "metrics_port": 0, "management_tls_port": 0}
    async with running(tmp_path / "data", **ports, tls_port=amqps, **files):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        with pytest.raises(AssertionError, match="503"):
            await ask(stream, "/api/health/checks/certificate-expiration/5000/years")
    assert ends_s(text) == 32503680000.0  # the year 3000


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----"]
)
def test_what_is_no_certificate(text: str) -> None:
    with pytest.raises(ValueError, match="certificate"):
        ends_s(text)
