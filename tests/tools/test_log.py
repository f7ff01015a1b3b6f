"""The log: what a line looks like, and a file that is moved away."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlog.server import config
from qlog.tools.log import JSONLines, Log, OneLine
from qlog.tools.supervisor import Supervisor
from tests.live.server import ROOT, BrokerProcess


def record(text: str, *args: object, failed: bool = False) -> logging.LogRecord:
    """A record, with an exception if it `failed`."""
    error = None
    if failed:
        try:
            raise ValueError("why\nnot")
        except ValueError as caught:
            error = (ValueError, caught, caught.__traceback__)
    return logging.LogRecord("qlog.x", logging.WARNING, __file__, 1, text, args, error)


def test_a_message_is_one_line_in_plain_text() -> None:
    line = OneLine().format(record("queue=%s", "a\nb\x1b[31m"))
    assert line.endswith(r"WARNING qlog.x: queue=a\nb\x1b[31m") and "\n" not in line


def test_a_message_is_one_object_in_json() -> None:
    line = JSONLines().format(record("queue=%s", 'a\nb"', failed=True))
    assert "\n" not in line
    fields = json.loads(line)
    assert fields["msg"] == 'queue=a\nb"'
    assert (fields["level"], fields["logger"]) == ("warning", "qlog.x")
    assert fields["time"].endswith("Z") and fields["exception"].endswith("ValueError: why\nnot")
    assert "exception" not in json.loads(JSONLines().format(record("fine")))


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """The root logger's level is what it was, afterwards."""
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


def test_a_file_that_was_moved_away_is_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "qlog.log"
    path.write_text("before\n")
    log = Log(config.of(log_file=str(path), log_format="json").log)
    logging.getLogger("qlog").warning("one")
    path.rename(tmp_path / "qlog.log.1")
    assert log.reopen() == str(path)
    log.announce("two")
    logging.getLogger("qlog").info("three")
    log.close()
    old = (tmp_path / "qlog.log.1").read_text().splitlines()
    said = [json.loads(line)["msg"] for line in [*old[1:], *path.read_text().splitlines()]]
    assert old[0] == "before" and said == ["one", "two", "three"]
    assert json.loads(path.read_text().splitlines()[-1])["msg"] == "three"
    assert json.loads(capsys.readouterr().err)["msg"] == "two"


def test_a_file_that_cannot_be_opened_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "qlog.log"
    path.parent.mkdir()
    log = Log(config.of(log_file=str(path)).log)
    path.parent.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        log.reopen()
    logging.getLogger("qlog").warning("still")
    log.close()
    assert (tmp_path / "away" / "qlog.log").read_text().endswith("still\n")


class Listener:
    """The supervisor's socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(30)

    def hear(self) -> list[str]:
        """The next message, by lines."""
        return self.socket.recv(4096).decode().splitlines()


@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_supervisor_is_told(tmp_path: Path, is_abstract: bool) -> None:
    name = f"{tmp_path.name}-notify" if is_abstract else str(tmp_path / "notify")
    listener = Listener(f"\0{name}" if is_abstract else name)
    environment = {
        "NOTIFY_SOCKET": f"@{name}" if is_abstract else name,
        "WATCHDOG_USEC": "3000000",
        "OTHER": "1",
    }
    supervisor = Supervisor(environment)
    assert environment == {"OTHER": "1"} and supervisor.watchdog_s == 1.5
    supervisor.ready("all is well")
    supervisor.reloading()
    supervisor.alive()
    supervisor.stopping()
    assert listener.hear() == ["READY=1", "STATUS=all is well"]
    reloading, moment = listener.hear()
    assert reloading == "RELOADING=1" and moment.startswith("MONOTONIC_USEC=")
    assert [listener.hear(), listener.hear()] == [["WATCHDOG=1"], ["STOPPING=1"]]


def test_nobody_is_told_where_nobody_listens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Supervisor({}).ready("x")
    assert Supervisor({"WATCHDOG_USEC": "10", "WATCHDOG_PID": "1"}).watchdog_s == 0.0
    assert not caplog.text
    deaf = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    deaf.ready("x")
    deaf.stopping()
    assert caplog.text.count("the supervisor does not listen") == 1


def test_a_service_says_when_it_is_ready_reads_again_and_stops(tmp_path: Path) -> None:
    """With its log in a file, as JSON, which is rotated on the way."""
    listener = Listener(str(tmp_path / "notify"))
    path = tmp_path / "qlog.log"
    settings = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "QLOG_LOG_FILE": str(path),
        "QLOG_LOG_FORMAT": "json",
    }
    broker = BrokerProcess(tmp_path / "data", settings=settings, log_level="info").start()
    try:
        ready, status = listener.hear()
        assert ready == "READY=1" and status.startswith("STATUS=listening on amqp://127.0.0.1:")
        command = [sys.executable, "-m", "qlog", "ctl", "-q", "log_location"]
        environment = {**os.environ, "QLOG_DATA_DIR": str(broker.data_dir)}
        assert subprocess.check_output(command, cwd=ROOT, env=environment) == f"{path}\n".encode()
        path.rename(tmp_path / "qlog.log.1")
        broker.hang_up()
        assert listener.hear()[0] == "RELOADING=1"
        assert listener.hear()[0] == "READY=1"
    finally:
        code, _ = broker.terminate()
    assert code == 0
    assert listener.hear() == ["STOPPING=1"]
    lines = [json.loads(line)["msg"] for line in path.read_text().splitlines()]
    assert lines[0] == f"read again: the log's file {path} signal=SIGHUP"
    assert f"stopping signal={signal.SIGTERM.name}" in lines
    old = [json.loads(line)["msg"] for line in (tmp_path / "qlog.log.1").read_text().splitlines()]
    assert any(line.startswith("Server startup complete") for line in old)
