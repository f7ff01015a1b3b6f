"""Standard error: whatever is wrong with it, who writes goes on, and the log says what it lacks."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from qlog.tools.stderr import Stderr
from tests.live.server import ROOT


class Pipe:
    """A pipe that holds little, and what came out of it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)
        self.data = b""

    def read_until(self, end: bytes) -> bytes:
        """All that came, until it ends like this."""
        while not self.data.endswith(end):
            part = os.read(self.reader, 1 << 16)
            assert part, self.data
            self.data += part
        return self.data

    def close(self) -> None:
        """Close what is still open."""
        for end in (self.reader, self.writer):
            try:
                os.close(end)
            except OSError:
                pass


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe."""
    made = Pipe()
    yield made
    made.close()


def test_lines_come_out_whole_and_in_order(pipe: Pipe) -> None:
    stream = Stderr(pipe.writer)
    for text in ("one\ntw", "o\n", "thr", "\N{EURO SIGN}e\n\udcff\n"):
        assert stream.write(text) == len(text)
    assert pipe.read_until(b"dcff\n") == "one\ntwo\nthr€e\n".encode() + b"\\udcff\n"
    stream.write("without an end")
    stream.finish()
    assert pipe.read_until(b"end\n").endswith(b"dcff\nwithout an end\n")


def test_reader_that_is_stuck_delays_nobody_and_the_log_says_what_it_lacks(pipe: Pipe) -> None:
    stream = Stderr(pipe.writer, queue_bytes_max=20_000)
    lines = [f"{number:>98}" for number in range(2000)]
    for line in lines:  # some 200 kB: more than pipe and queue can take
        stream.write(f"{line}\n")
    stream.write("last\n")
    said = [*lines, "last"]
    heard = lost = 0
    while heard < len(said):  # how often the pipe was full is up to the scheduler
        pipe.data = b""
        for line in pipe.read_until(b"\n").decode().splitlines():
            if gap := re.fullmatch(r"\((\d+) lines? of the log could not be written\)", line):
                lost += int(gap[1])
                heard += int(gap[1])
            else:
                assert line == said[heard]
                heard += 1
    assert heard == len(said) and 0 < lost <= len(said) - 200
    stream.write("again\n")
    pipe.read_until(b"\nagain\n")
    stream.finish()


def test_descriptor_that_does_not_block(pipe: Pipe) -> None:
    """Who shares it may have made it so."""
    os.set_blocking(pipe.writer, False)
    stream = Stderr(pipe.writer)
    text = "".join(f"{number}\n" for number in range(5000))
    stream.write(text)
    assert pipe.read_until(b"\n4999\n").decode() == text
    stream.finish()


def test_lines_that_failed_are_counted(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full for a while: a line is torn, others are lost, then it goes on."""
    real = os.write
    failures = ["half", "no", "no"]
    failed = threading.Semaphore(0)

    def write(descriptor: int, data: bytes) -> int:
        if descriptor != pipe.writer or not failures:
            return real(descriptor, data)
        if failures[0] == "half":
            failures[0] = "no"
            return real(descriptor, bytes(data)[:4])
        failures.pop()
        failed.release()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    stream = Stderr(pipe.writer)
    for text in ("first line\n", "second\n", "third\n"):
        stream.write(text)
        failed.acquire()
    stream.write("fourth\n")
    said = pipe.read_until(b"fourth\n").decode()
    assert said == "firs\n(3 lines of the log could not be written)\nfourth\n"
    stream.finish()


def test_reader_that_has_gone(pipe: Pipe) -> None:
    os.close(pipe.reader)
    stream = Stderr(pipe.writer)
    for _ in range(3):
        stream.write("nobody reads this\n")
    stream.finish()


CLOSED = """
import os, sys
from qlog.tools import stderr
stderr.take_over()
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
print("to stderr", file=sys.stderr)
os.write(2, b"what a library says")
os.write(file, b"data")
"""


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-", ">&-"])
def test_closed_descriptors_are_never_a_file(
    tmp_path_factory: pytest.TempPathFactory, closed: str
) -> None:
    """What is written to standard error must not get into a data file that has its number."""
    file = tmp_path_factory.mktemp("closed") / "file"
    command = f'"$0" -c "$1" "$2" {closed}'
    subprocess.run(
        ["sh", "-c", command, sys.executable, CLOSED, str(file)], cwd=ROOT, timeout=30, check=True
    )
    assert file.read_bytes() == b"data"


CRASH = """
import sys
from qlog.tools import stderr
stderr.take_over()
print("a line", file=sys.stderr)
raise ValueError("a bug")
"""


def test_all_is_written_at_the_end_tracebacks_too() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CRASH],
        cwd=ROOT,
        timeout=30,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("a line\nTraceback ") and ended.stderr.endswith("a bug\n")
