"""`qlog serve` as a process: how it starts, how it stops, and how it says why not."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest

from qlog.storage.bytes import batch
from tests.live.conversation import Client, connections, until
from tests.live.server import ROOT, BrokerProcess
from tests.tools.directories import stopped

# A recovery that goes on until it is told to end, and says so on stderr.
ENDLESS_RECOVERY = """
import sys, time
from qlog.storage.store import Store
def recover(*args, progress, **named):
    print("recovering", file=sys.stderr)
    while True:
        progress("messages", 1)
        time.sleep(0.001)
Store.open = recover
from qlog.tools.cli import app
app(sys.argv[1:])
"""

# The line that tells of the start also says how many objects the collector will look at, and ends it.
COUNTED_START = """
import gc, os, signal, sys
from qlog.tools.log import Log
def announce(self, line):
    print(len(gc.get_objects()))
    os.kill(os.getpid(), signal.SIGTERM)
Log.announce = announce
from qlog.tools.cli import app
app(sys.argv[1:])
"""

# SIGTERM comes before anything can be cancelled.
EARLY_SIGNAL = """
import os, signal, sys
from qlog.server import config
load = config.load
def load_and_stop(**given):
    os.kill(os.getpid(), signal.SIGTERM)
    return load(**given)
config.load = load_and_stop
from qlog.tools.cli import app
app(sys.argv[1:])
"""

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


def test_signal_during_recovery_ends_it_with_0(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_RECOVERY, "serve", "--port", "0"],
        cwd=ROOT,
        env={**os.environ, "QLOG_DATA_DIR": str(tmp_path / "data")},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        while "recovering" not in (line := process.stderr.readline()):
            assert line, process.wait(5)
        process.terminate()
        _, said = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "stopping signal=SIGTERM" in said and "complete" not in said and "Traceback" not in said


def serve_by(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """What comes of `qlog serve` on an empty directory, if this script runs it."""
    return subprocess.run(
        [sys.executable, "-c", script, "serve", "--port", "0"],
        cwd=ROOT,
        env={**os.environ, "QLOG_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_signal_before_anything_has_begun_ends_it_with_0(tmp_path: Path) -> None:
    ended = serve_by(EARLY_SIGNAL, tmp_path)
    assert ended.returncode == 0
    (line,) = ended.stderr.splitlines()
    assert line.endswith("stopping signal=SIGTERM")


def test_what_a_start_has_made_is_not_looked_at_by_the_collector(tmp_path: Path) -> None:
    """Of 20,000 queues that is 600,000 objects, and 180 ms in one piece."""
    ended = serve_by(COUNTED_START, tmp_path)
    assert ended.returncode == 0 and int(ended.stdout) < 500


@pytest.mark.parametrize("name", ["HUP", "USR1", "USR2", "TSTP", "TTOU", "PIPE"])
def test_other_signals_do_no_harm(running: BrokerProcess, client: Client, name: str) -> None:
    assert running.process is not None
    talk = client.channel()
    for _ in range(2):
        running.process.send_signal(getattr(signal, f"SIG{name}"))
        talk.declare("there")
    assert running.terminate()[0] == 0


def test_hangup_says_that_nothing_is_read_again(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "data", log_level="info").start()
    assert broker.process is not None
    broker.process.send_signal(signal.SIGHUP)
    with connections(broker.url) as connect:
        connect().channel()
    assert broker.terminate()[0] == 0
    assert [line for line in broker.lines if line.endswith("start only signal=SIGHUP")]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_log_on_a_full_disk(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        assert serves(tmp_path, full) == 0


def test_log_that_nobody_reads(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        assert serves(tmp_path, closed) == 0


def test_log_in_a_pipe_that_is_full(tmp_path: Path) -> None:
    """And nobody empties it: the broker serves, and ends with the rest of its log unwritten."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
        with os.fdopen(writer, "w") as full:
            assert serves(tmp_path, full) == 0
    finally:
        os.close(reader)


def serves(tmp_path: Path, stderr: TextIO) -> int:
    """Start a broker that logs to there, talk to it, stop it; its exit status."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "qlog", "serve", "--port", str(port), "--log-level", "debug"],
        cwd=ROOT,
        env={**os.environ, "QLOG_DATA_DIR": str(tmp_path / "data")},
        stderr=stderr,
    )
    try:
        until(lambda: accepts(port), "the broker accepts")
        for _ in range(3):  # each makes some lines of the log
            with pytest.raises(AssertionError, match="Login was refused"):
                Client(f"amqp://nobody:x@127.0.0.1:{port}/")
        with connections(f"amqp://guest:guest@127.0.0.1:{port}/") as connect:
            connect().channel().queue()
        process.terminate()
        return process.wait(15)
    finally:
        process.kill()
        process.wait()


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


# --- what a start says


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """The directory of a broker that was killed: three messages in one of two queues."""
    broker = BrokerProcess(tmp_path / "data").start()
    with connections(broker.url) as connect:
        talk = connect().channel()
        talk.declare("empty", durable=True)
        talk.declare("full", durable=True)
        talk.confirm()
        for number in range(3):
            talk.publish("", "full", b"%d" % number, delivery_mode=2)
        talk.confirmed(3)
        broker.kill()
    return broker.data_dir


def said_at_start(directory: Path) -> str:
    """The line that says what the start did. The broker is then stopped in good order."""
    broker = BrokerProcess(directory, log_level="info").start()
    assert broker.terminate()[0] == 0
    (line,) = (line for line in broker.lines if " s: " in line)
    return line


def test_start_after_an_orderly_stop(filled: Path) -> None:
    said_at_start(filled)
    line = said_at_start(filled)
    assert re.search(
        r" INFO +qlog\.broker: recovered in \d\.\d{3} s: 3 messages wait in 1 of 2 queues$", line
    )


def test_first_start(tmp_path: Path) -> None:
    line = said_at_start(tmp_path / "data")
    assert re.search(
        r" INFO +qlog.broker: made the data directory in .* s: 0 messages wait in 0 of 0 queues$",
        line,
    )


def test_start_with_garbage_behind_the_last_batch(filled: Path) -> None:
    (segment,) = (filled / "log").glob("*.qseg")
    data = segment.read_bytes()
    end = len(data.rstrip(b"\0"))
    with segment.open("r+b") as file:
        file.seek(end)
        file.write(b"\xff" * 4000)
    line = said_at_start(filled)
    assert " WARNING " in line and "3 messages wait in 1 of 2 queues; cut " in line
    cut = re.search(
        r"cut (\d+) bytes off the end of the log, with 0 messages that were never", line
    )
    assert cut and 4000 <= int(cut[1]) <= 4000 + 8  # a batch may end with zeros


def test_start_without_an_index(filled: Path) -> None:
    shutil.rmtree(filled / "index.lmdb")
    line = said_at_start(filled)
    assert " WARNING " in line
    assert "3 messages wait in 1 of 2 queues; made the index anew: it was missing" in line


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


def test_directory_of_a_newer_qlog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "data"
    with monkeypatch.context() as newer:
        newer.setattr(batch, "FORMAT_VERSION", 99)
        stopped(directory, 10)
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


LARGE_BODIES = """
import sys
from qlog.tools import serve

if sys.argv[1:] == ["tuned"]:
    serve._tune_malloc()

def anonymous_kib():
    status = open("/proc/self/status").read()
    return int(status.partition("RssAnon:")[2].split()[0])

before = anonymous_kib()
b"x" * (16 << 20)  # glibc's limit is as high as that from now on, if nobody has set it
bodies, small = [], []
for _ in range(4):
    bodies.append(b"x" * (16 << 20))
    small.append(b"x" * 100_000)
bodies.clear()
print(anonymous_kib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others give memory back")
def test_the_memory_of_large_messages_is_given_back() -> None:
    """Also if small things that stay came between them."""

    def left_kib(*arguments: str) -> int:
        command = [sys.executable, "-c", LARGE_BODIES, *arguments]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert left_kib("tuned") < 8 << 10
    assert left_kib() > 40 << 10  # what the tuning is for
