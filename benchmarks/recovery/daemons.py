"""Brokers that are killed and started again on the same directory.

Knows processes and signals; that a broker is there is known by its log line (ours) or by a connection
that it accepts (the peer's). Promises that no process of its own outlives it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from benchmarks import wire
from benchmarks.brokers import Broker, BrokerFailed, log_tail, spawn, wait_for_start

# A start may have to rebuild everything; one that takes longer than this has failed.
START_TIMEOUT_S = 900.0
CONNECT_POLL_S = 0.005
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class Daemon(Protocol):
    """A broker in our hands."""

    def start(self) -> Broker:
        """Start it, and return when it accepts connections. BrokerFailed when it does not."""

    def kill(self) -> None:
        """kill -9; nothing of it runs when this returns."""


class OwnDaemon:
    """A qlog on an empty directory below `parent`, which is removed in the end."""

    def __init__(self, parent: Path) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="qlog-recovery-", dir=parent))
        self.data = self._directory / "data"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self._directory)

    def start(self) -> Broker:
        """See Daemon."""
        assert self._process is None, "a directory has one broker"
        log_path = self._directory / "log"
        begun_s = time.monotonic()
        self._process = spawn(self.data, log_path)
        address = wait_for_start(self._process, log_path, START_TIMEOUT_S)
        return Broker("qlog", address, self._process.pid, self.data, time.monotonic() - begun_s)

    def kill(self) -> None:
        """See Daemon."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class PeerDaemon:
    """A broker that a command starts in the foreground; its whole process group is killed."""

    def __init__(self, command: str, address: wire.Address, log_path: Path) -> None:
        self._command = shlex.split(command)
        self._address = address
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> Broker:
        """See Daemon."""
        assert self._process is None, "one peer at a time"
        if self._connects():
            raise BrokerFailed(
                f"something listens on port {self._address.port} already: the peer is to be "
                "started, and killed, by this command alone"
            )
        begun_s = time.monotonic()
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        while not self._connects():
            if self._process.poll() is not None:
                raise BrokerFailed(f"the peer ended:\n{log_tail(self._log_path)}")
            if time.monotonic() - begun_s > START_TIMEOUT_S:
                raise BrokerFailed(f"the peer does not start:\n{log_tail(self._log_path)}")
            time.sleep(CONNECT_POLL_S)
        return Broker("peer", self._address, self._process.pid, start_s=time.monotonic() - begun_s)

    def kill(self) -> None:
        """See Daemon."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # all of the group ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        # The launcher is gone at once, its children perhaps a little later.
        while self._connects():
            time.sleep(CONNECT_POLL_S)

    def _connects(self) -> bool:
        try:
            with wire.Connection(self._address):
                return True
        except (OSError, wire.Refused):
            return False


def drop_page_cache() -> bool:
    """Write everything back and forget all that is cached of files; False without the right to."""
    os.sync()
    try:
        DROP_CACHES.write_text("3\n")
    except OSError:
        return False
    return True
