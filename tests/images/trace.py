"""System calls of a process, as strace wrote them down: what was called, when it began and ended.

It promises: calls in the order of their beginning, each with its place in the order of all begins
and ends (`Step`), data in full. Threads overlap: a call may begin before another one ends. It does
not know what the calls do to files (see directory.py) nor what is said on sockets (see replies.py).
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Whatever can change a file, a name, or what stands behind a descriptor; and what leaves by a socket.
TRACED = (
    *("open", "openat", "creat", "close", "dup", "dup2", "dup3", "fcntl", "lseek"),
    *("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range"),
    *("fsync", "fdatasync", "sync_file_range", "msync", "mmap"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"),
    *("unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "truncate", "ftruncate", "fallocate"),
    *("accept", "accept4", "sendto", "sendmsg"),
)
_DATA_BYTES_MAX = 1 << 26

_LINE = re.compile(rb"(\d+) +(\d+\.\d+) (.*)", re.DOTALL)
_RESUMED = re.compile(rb"<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_RESULT = re.compile(rb"^(.*)\) += (-?\d+|0x[0-9a-f]+|\?)( .*)?$", re.DOTALL)
_STRING = re.compile(rb'"([^"]*)"(\.\.\.)?')
_UNFINISHED = b" <unfinished ...>"


@functools.cache
def missing() -> str:
    """Why calls cannot be traced here; empty when they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = subprocess.run(
        ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=openat", "-o", "/dev/null", "true"],
        check=False,
        capture_output=True,
        text=True,
    )
    return "" if probe.returncode == 0 else f"strace does not work here: {probe.stderr.strip()}"


def command(output: Path) -> list[str]:
    """What to put before a command so that its calls are written to `output`."""
    return [
        *("strace", "-f", "-ttt", "-xx", "-v", "-qq", "--seccomp-bpf", "-e", "signal=none"),
        *("-s", str(_DATA_BYTES_MAX), "-o", str(output), "-e", "trace=" + ",".join(TRACED)),
    ]


@dataclass(slots=True, eq=False)
class Call:
    """One system call. `result` is None when the process died in it, negative when it failed."""

    process: int  # the first of them: all threads of a program count as one
    name: str
    arguments: bytes
    at_s: float  # of the real-time clock, when it began
    result: int | None = None
    injected: bool = False  # strace answered in the kernel's place

    @property
    def failed(self) -> bool:
        """It did nothing (as far as is known here)."""
        return self.result is not None and self.result < 0

    def strings(self) -> list[bytes]:
        """All the strings in the arguments: paths, data."""
        found = []
        for text, cut in _STRING.findall(self.arguments):
            assert not cut, f"{self.name}: strace has cut the data"
            found.append(bytes.fromhex(text.replace(b"\\x", b"").decode()))
        return found

    def numbers(self) -> list[int]:
        """The numbers among the plain arguments, in order; text and structures are left out."""
        plain = re.sub(rb"\"[^\"]*\"|\{[^}]*\}|\[[^]]*\]", b"", self.arguments)
        return [int(word) for word in re.findall(rb"(?<![\w-])-?\d+(?!\w)", plain)]


@dataclass(frozen=True, slots=True)
class Step:
    """A call begins, or ends."""

    call: Call
    ends: bool
    at_s: float


def read(path: Path, process: int = 0) -> list[Step]:
    """The steps of a trace, in the order in which they happened."""
    with path.open("rb") as file:
        return list(_steps(file, process))


def _steps(lines: Iterable[bytes], process: int) -> Iterator[Step]:
    open_calls: dict[bytes, Call] = {}
    for raw in lines:
        match = _LINE.fullmatch(raw.rstrip(b"\n"))
        assert match is not None, raw[:200]
        thread, time, text = match.groups()
        at_s = float(time)
        if text.startswith((b"+++", b"---")):
            continue
        if resumed := _RESUMED.fullmatch(text):
            call = open_calls.pop(thread)
            rest = resumed[2]
        else:
            name, _, rest = text.partition(b"(")
            call = Call(process, name.decode(), b"", at_s)
            if rest.endswith(_UNFINISHED):
                call.arguments = rest.removesuffix(_UNFINISHED)
                open_calls[thread] = call
                yield Step(call, False, at_s)
                continue
            yield Step(call, False, at_s)
        ended = _RESULT.fullmatch(rest)
        if ended is None:  # the process died here, in the middle of a line
            continue
        call.arguments += ended[1]
        if ended[2] != b"?":
            call.result = int(ended[2], 0)
            call.injected = b"(INJECTED)" in (ended[3] or b"")
            yield Step(call, True, at_s)
