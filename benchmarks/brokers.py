"""The brokers that are measured: one that runs already, or a fresh qlog of the benchmark's own.

A qlog of the benchmark's own is today's, or an older one from an `Installation` (see against.py).
Knows processes, log lines and /proc; nothing of AMQP but an address.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trustme

from benchmarks import wire

START_LINE = "Server startup complete"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
# How often the log is looked at: the resolution of the start-up time.
START_POLL_S = 0.002
SECURE_LISTENER = re.compile(r"amqps://(\d+\.\d+\.\d+\.\d+):(\d+)")
LISTENER = re.compile(r"(\d+\.\d+\.\d+\.\d+|localhost|\[[0-9a-f:]+\]):(\d+)")
ROOT = Path(__file__).resolve().parent.parent


class BrokerFailed(Exception):
    """The broker did not start, or is not what it should be."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A qlog that can be started.

    Attributes:
        label: what tables call it.
        python: the interpreter that runs it.
        directory: where it is started: the interpreter finds the package from there.
    """

    label: str
    python: str
    directory: Path


def todays() -> Installation:
    """The qlog of this source tree, with the libraries of this interpreter."""
    return Installation("qlog", sys.executable, ROOT)


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a process and its children.

    Attributes:
        anonymous_bytes: what the processes allocated (RssAnon).
        resident_bytes: with mapped files and shared libraries (VmRSS).
    """

    anonymous_bytes: int
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that accepts connections.

    Attributes:
        label: what tables call it.
        address: where it listens.
        pid: its process, None when unknown; memory can then not be measured.
        directory: its data directory, None when unknown.
        start_s: from the start of the process to accepting, for a broker of our own.
        secure: where it listens for TLS, None when it does not.
        one_loop: whether its main thread is the loop that serves all clients, as a qlog's is.
    """

    label: str
    address: wire.Address
    pid: int | None = None
    directory: Path | None = None
    start_s: float | None = None
    one_loop: bool = False
    secure: wire.Address | None = None

    def over_tls(self) -> Broker:
        """The same broker, for loads that use TLS."""
        assert self.secure is not None, "it listens for TLS"
        return replace(self, address=self.secure)

    def memory(self) -> Memory:
        """Memory of its process tree now."""
        assert self.pid is not None, "memory is asked for where the process is known"
        anonymous = resident = 0
        for pid in process_tree(self.pid):
            anonymous += status_kib(pid, "RssAnon")
            resident += status_kib(pid, "VmRSS")
        return Memory(anonymous * 1024, resident * 1024)

    def cpu_s(self) -> dict[str, float]:
        """Processor time so far: of its process tree, and of the thread that serves clients.

        Returns:
            Seconds by `broker` (the process tree) and `loop` (the main thread). What is unknown is
            left out: both when the process is, the loop when the broker has no such thread.
        """
        if self.pid is None:
            return {}
        spent = {"broker": sum(map(_cpu_s, (f"/proc/{pid}" for pid in process_tree(self.pid))))}
        if self.one_loop:
            spent["loop"] = _cpu_s(f"/proc/{self.pid}/task/{self.pid}")
        return spent

    def version(self) -> str:
        """What it says of itself: product or platform, and version."""
        with wire.Connection(self.address) as connection:
            names = ("product", "version", "platform")
            return ", ".join(filter(None, map(connection.server_property, names)))


def _cpu_s(process: str) -> float:
    """Processor time of a process or thread so far, by its directory in /proc."""
    fields = Path(f"{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def process_tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from process_tree(int(child))


def status_kib(pid: int, name: str) -> int:
    """A line of /proc/PID/status that is given in kB; 0 when it is not there."""
    found = re.search(rf"\n{name}:\s+(\d+) kB\n", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def io_bytes(pid: int) -> dict[str, int]:
    """What a process and its children have read and written so far, by the names of /proc/PID/io.

    `rchar` is what they asked to read, `read_bytes` what came from the disk, `write_bytes` what
    they gave the disk to write. Pages of mapped files count in `read_bytes` alone.
    """
    totals: dict[str, int] = {}
    for one in process_tree(pid):
        for line in Path(f"/proc/{one}/io").read_text().splitlines():
            name, _, value = line.partition(": ")
            totals[name] = totals.get(name, 0) + int(value)
    return totals


@contextmanager
def own_broker(
    parent: Path,
    installation: Installation | None = None,
    settings: dict[str, str] | None = None,
) -> Iterator[Broker]:
    """A qlog on a free port and an empty directory below `parent`, removed at the end.

    Args:
        parent: where its directory is made.
        installation: which qlog; None for today's.
        settings: for its environment.

    Raises:
        BrokerFailed: it does not start, or does not stop when asked to.
    """
    directory = Path(tempfile.mkdtemp(prefix="qlog-benchmark-", dir=parent))
    log_path = directory / "log"
    data = directory / "data"
    try:
        installation = installation or todays()
        begun_s = time.monotonic()
        given = {**_tls_settings(directory), **(settings or {})}
        process = spawn(data, log_path, installation, given)
        try:
            address = wait_for_start(process, log_path)
            start_s = time.monotonic() - begun_s
            secure = SECURE_LISTENER.search(log_path.read_text(errors="replace"))
            yield Broker(
                installation.label,
                address,
                process.pid,
                data,
                start_s,
                one_loop=True,
                secure=wire.Address(secure[1], int(secure[2]), tls=True) if secure else None,
            )
            _stop(process, log_path)
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(directory)


def _tls_settings(directory: Path) -> dict[str, str]:
    """A certificate for this run, in the environment. An older qlog does not look at it."""
    path = directory / "broker.pem"
    made = trustme.CA().issue_cert("localhost")
    path.write_bytes(made.private_key_and_cert_chain_pem.bytes())
    return {"QLOG_TLS_CERTIFICATE": str(path), "QLOG_TLS_PORT": "0"}


def spawn(
    data: Path,
    log_path: Path,
    installation: Installation | None = None,
    settings: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a qlog, today's or another, on a free port and the directory `data`; its log is new.

    `settings` go by its environment.
    """
    qlog = installation or todays()
    command = [qlog.python, "-m", "qlog", "serve", "--data-dir", str(data), "--port", "0"]
    with log_path.open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=qlog.directory,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(settings or {})},
        )


def wait_for_start(
    process: subprocess.Popen[bytes], log_path: Path, timeout_s: float = START_TIMEOUT_S
) -> wire.Address:
    """Where a spawned qlog listens, as soon as it says so; BrokerFailed when it does not."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for line in log_path.read_text(errors="replace").splitlines(keepends=True):
            if START_LINE in line and line.endswith("\n"):
                listener = LISTENER.search(line)
                if listener is None:
                    raise BrokerFailed(f"no address in the broker's line: {line.strip()}")
                return wire.Address(listener[1].strip("[]"), int(listener[2]))
        if process.poll() is not None:
            raise BrokerFailed(f"the broker ended with {process.returncode}:\n{log_tail(log_path)}")
        time.sleep(START_POLL_S)
    raise BrokerFailed(f"no {START_LINE!r} within {timeout_s:.0f} s:\n{log_tail(log_path)}")


def _stop(process: subprocess.Popen[bytes], log_path: Path) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BrokerFailed(f"no end within {STOP_TIMEOUT_S:.0f} s of SIGTERM") from error
    if code != 0:
        raise BrokerFailed(f"the broker ended with {code}:\n{log_tail(log_path)}")


def log_tail(log_path: Path) -> str:
    """The last lines of a broker's log, for messages of errors."""
    return "\n".join(log_path.read_text(errors="replace").splitlines()[-15:])
