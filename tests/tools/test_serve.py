"""`qlog serve` as a process: how it starts, how it stops, and how it says why not."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qlog.storage.bytes.datadir import Identity, Paths
from qlog.storage.lmdb.catalog import Catalog
from tests.live.conversation import Client, connections
from tests.live.server import ROOT, BrokerProcess

# A disk whose syncs fail from the moment that a file exists.
BROKEN_DISK = """
import os, sys
from qlog.storage.bytes import disk
sync = os.fdatasync
def fail(file):
    if os.path.exists(sys.argv[-1]):
        raise OSError(5, "Input/output error")
    sync(file)
disk.os.fdatasync = fail
broken, sys.argv = sys.argv[-1], sys.argv[:-1]
sys.argv.append(broken)
from qlog.tools.cli import app
app(sys.argv[1:-1])
"""


def serve(
    *options: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end, which must come by itself."""
    return subprocess.run(
        [sys.executable, "-m", "qlog", "serve", *options],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def refused(ended: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line on stderr of a broker that did not start."""
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == status and ended.stdout == ""
    assert line.startswith("qlog: ")
    return line


@pytest.fixture
def running(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker on an empty directory."""
    broker = BrokerProcess(tmp_path / "data").start()
    yield broker
    assert broker.process is not None
    if broker.process.poll() is None:
        broker.kill()


@pytest.fixture
def client(running: BrokerProcess) -> Iterator[Client]:
    """A client of it."""
    with connections(running.url) as connect:
        yield connect()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_closes_clients_and_exits_with_0(
    running: BrokerProcess, client: Client, number: signal.Signals
) -> None:
    assert running.process is not None
    client.channel()
    running.process.send_signal(number)
    running.process.send_signal(number)  # an impatient one breaks nothing off
    close = client.next(0)
    assert (close.reply_code, close.reply_text) == (
        320,
        "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'",
    )
    assert running.process.wait(5) == 0  # though the client does not answer
    assert not [line for line in running.lines if "Traceback" in line or "Error" in line]


def test_signals_to_the_last_moment_do_not_change_the_status(running: BrokerProcess) -> None:
    assert running.process is not None
    while running.process.poll() is None:
        running.process.send_signal(signal.SIGTERM)
    assert running.process.returncode == 0


def test_signal_right_after_the_startup_line(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "data").start()
    code, _ = broker.terminate()
    assert code == 0


def test_failed_disk_exits_with_74(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    options = ["serve", "--port", "0", "--data-dir", str(tmp_path / "data"), str(broken)]
    process = subprocess.Popen(
        [sys.executable, "-c", BROKEN_DISK, *options],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"startup complete.*:(\d+)", line):
                break
        else:
            raise AssertionError("".join(lines))
        client = Client(f"amqp://guest:guest@127.0.0.1:{found[1]}/")
        talk = client.channel()
        queue = talk.queue(durable=True)
        talk.confirm()
        broken.touch()
        talk.publish("", queue, b"a", delivery_mode=2)
        assert client.next(0).reply_code == 541
        client.abort()
        assert process.wait(5) == 74
        rest = process.stderr.read()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()
    assert "Traceback" not in rest and rest.splitlines()[-1].startswith("qlog: the disk failed: ")


def test_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = serve("--data-dir", str(tmp_path / "data"), "--port", str(port))
    assert f"127.0.0.1:{port}" in refused(ended, 1) and "in use" in ended.stderr


def test_locked_directory(running: BrokerProcess) -> None:
    ended = serve("--data-dir", str(running.data_dir), "--port", "0")
    assert str(running.data_dir) in refused(ended, 1)


def test_directory_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no directory")
    assert str(file) in refused(serve("--data-dir", str(file), "--port", "0"), 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unreadable_directory(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    assert str(closed) in refused(serve("--data-dir", str(closed), "--port", "0"), 1)


def test_directory_of_a_newer_qlog(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    assert BrokerProcess(directory).start().terminate()[0] == 0
    catalog = Catalog(Paths(directory).catalog, map_bytes=1 << 24)
    identity = Identity.load(catalog)
    assert identity is not None
    replace(identity, version=99).save(catalog)
    catalog.close()
    assert "format 99" in refused(serve("--data-dir", str(directory), "--port", "0"), 1)


def test_directory_where_none_can_be_made() -> None:
    assert "/proc/qlog" in refused(serve("--data-dir", "/proc/qlog", "--port", "0"), 1)


def test_unknown_host(tmp_path: Path) -> None:
    for host in ("no.such.host.invalid", "a" * 70):
        ended = serve("--data-dir", str(tmp_path / "data"), "--host", host, "--port", "0")
        assert host in refused(ended, 1)


@pytest.mark.parametrize(
    ("options", "environment", "text"),
    [
        (["--port", "70000"], {}, "--port: port must be a whole number, 0 to 65535, not '70000'"),
        (["--log-level", "loud"], {}, "--log-level: log_level must be one of"),
        (["--config", "/nowhere.toml"], {}, "cannot read the configuration /nowhere.toml"),
        (
            [],
            {"QLOG_HEARTBEAT_S": "often"},
            "$QLOG_HEARTBEAT_S: heartbeat_s must be a whole number",
        ),
    ],
)
def test_wrong_settings(options: list[str], environment: dict[str, str], text: str) -> None:
    line = refused(serve(*options, environment=environment), 2)
    assert line.startswith(f"qlog: {text}")


@pytest.mark.parametrize("options", [["--prot", "1"], ["--port", "many"], ["extra"]])
def test_wrong_options(options: list[str]) -> None:
    ended = serve(*options)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert options[-1] in ended.stderr or options[0] in ended.stderr


def test_version() -> None:
    ended = serve("--version")
    assert ended.returncode == 0 and ended.stdout.startswith("qlog ")


def test_first_start_takes_the_names_of_rabbitmq(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("USER", "me"), ("PASS", "secret"), ("VHOST", "mine")):
        monkeypatch.setenv(f"RABBITMQ_DEFAULT_{name}", value)
    broker = BrokerProcess(tmp_path / "data").start()
    try:
        with connections(f"amqp://me:secret@127.0.0.1:{broker.port}/mine") as connect:
            connect().channel().queue()
    finally:
        broker.kill()


def test_names_of_clients_cannot_forge_log_lines(running: BrokerProcess) -> None:
    with pytest.raises(AssertionError, match="Login was refused"):
        Client(running.url.replace("guest:guest", "evil%0Aname%1B%5B31m:x"))
    running.terminate()
    (line,) = (line for line in running.lines if "evil" in line)
    assert r"evil\nname\x1b[31m" in line
