"""A `qlog serve` of the tests' own: a subprocess with its data directory, started, killed, restarted.

It promises: the broker listens on loopback only, `start` returns when it accepts connections, and
`terminate` says how it ended. It knows the command line, the line `Server startup complete` and
signals; nothing of AMQP.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

STARTUP_LINE = "Server startup complete"
STARTUP_S_MAX = 30.0
STOP_S_MAX = 15.0
# A fuzzed broker has much to say; the end of it is enough.
LINES_MAX = 10_000
ROOT = Path(__file__).resolve().parents[2]

# Many brokers run at the same time: they would fight for the ports of management and metrics.
NO_HTTP = {
    "QLOG_MANAGEMENT_PORT": "0",
    "QLOG_MANAGEMENT_TLS_PORT": "0",
    "QLOG_METRICS_PORT": "0",
}


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class BrokerProcess:
    """One broker on one directory; may be started several times, one after the other.

    Settings go by the environment: QLOG_… and its value. `launcher` is a command that runs the
    command given behind it, as `nice` does.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (),
        log_level: str = "warning",
    ) -> None:
        self.data_dir = data_dir
        self.port = port
        self.tls_port = 0  # known after `start`, if there is one
        self.settings = dict(settings or {})
        self.launcher = launcher
        self.log_level = log_level
        self.process: subprocess.Popen[bytes] | None = None
        self.lines: list[str] = []  # what it said; all of it once it has ended
        self._started = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens; known after `start`."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        """The process id of the running broker."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> BrokerProcess:
        """Start and wait until it accepts connections. Raises RuntimeError if it does not."""
        self.launch()
        self.wait_until_ready()
        return self

    def launch(self) -> None:
        """Start the process and return at once."""
        self._started.clear()
        self.lines = []
        command = [
            *self.launcher,
            sys.executable,
            *("-m", "qlog", "serve", "--data-dir", str(self.data_dir)),
            *("--port", str(self.port), "--log-level", self.log_level),
        ]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **NO_HTTP, **self.settings},
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> None:
        """Return when it accepts connections. Raises RuntimeError if it ends or takes too long."""
        assert self.process is not None
        deadline = time.monotonic() + STARTUP_S_MAX
        while not self._started.wait(0.02):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError("the broker did not start:\n" + "\n".join(self.lines[-30:]))

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        # Read to the end always: a full pipe would stop the broker.
        assert process.stderr is not None
        for raw in process.stderr:
            line = raw.decode("utf-8", "replace").rstrip()
            self.lines.append(line)
            if len(self.lines) > LINES_MAX:
                del self.lines[: LINES_MAX // 2]
            if STARTUP_LINE in line:
                found = re.search(r"amqp://[^\s,]*?:(\d+)", line)
                if found:
                    self.port = int(found[1])
                    if secure := re.search(r"amqps://[^\s,]*?:(\d+)", line):
                        self.tls_port = int(secure[1])
                    self._started.set()

    def hang_up(self) -> None:
        """SIGHUP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def wait_for(self, text: str) -> str:
        """The first line that has the text, when it has come. Raises RuntimeError without it."""
        deadline = time.monotonic() + STARTUP_S_MAX
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if text in line:
                    return line
            time.sleep(0.02)
        raise RuntimeError(f"no line with {text!r}:\n" + "\n".join(self.lines[-30:]))

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone and `lines` has all that it said."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_S_MAX)
        self._reader.join(STOP_S_MAX)

    def terminate(self) -> tuple[int, float]:
        """SIGTERM: exit code and how many seconds it took. Killed if it takes too long."""
        assert self.process is not None
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._reader.join(STOP_S_MAX)
        return code, time.monotonic() - begin
