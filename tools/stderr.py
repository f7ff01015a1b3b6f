"""Standard error that never ends, stops or delays the code that writes to it.

The log can be on a full disk, its reader can have gone, a pipe can be full because nobody reads it,
and the descriptor may be closed. None of this may keep a broker from working: a thread of its own
writes, from a bounded queue. Lines for which the queue has no room, and lines that could not be
written, are left out; the log says how many, as soon as it can.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
import time
from collections import deque
from typing import NamedTuple

STDERR = 2
QUEUE_BYTES_MAX = 1 << 20  # some 10,000 lines: a burst, or a minute of a reader that is stuck
WRITE_BYTES_MAX = 64 << 10
# At the end of the process, the last lines get so long to be written.
CLOSE_S = 1.0
POLL_S = 1.0
# After a write others may gather for so long: a thread that is woken for each line of a thousand
# logins would take the interpreter from the loop each time.
GATHER_S = 0.005


class _Line(NamedTuple):
    data: bytes
    stands_for: int  # lines of the log: one, or those that a notice counts


class Stderr(io.TextIOBase):
    """A text stream whose writes only queue. Lines go out whole, in the order of their ends.

    Arguments: `descriptor` where to write; `queue_bytes_max` how much may wait for it.
    """

    def __init__(self, descriptor: int, queue_bytes_max: int = QUEUE_BYTES_MAX) -> None:
        self._descriptor = descriptor
        self._queue_bytes_max = queue_bytes_max
        self._changed = threading.Condition()
        self._begun = ""  # a line that has not ended
        self._lines: deque[_Line] = deque()
        self._bytes = 0
        self._left_out = 0  # lines of which no notice is queued yet
        self._torn = False  # the last line was written only in part
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="qlog-stderr", daemon=True)
        self._thread.start()

    def writable(self) -> bool:
        """True: always."""
        return True

    def write(self, text: str) -> int:
        """Queue what `text` ends; never raises and never waits for the descriptor."""
        with self._changed:
            *lines, self._begun = (self._begun + text).split("\n")
            for line in lines:
                self._queue(line)
            if lines:
                self._changed.notify()
        return len(text)

    def fileno(self) -> int:
        """The descriptor that the lines go to."""
        return self._descriptor

    def finish(self) -> None:
        """End the thread: wait until all is written, but no longer than `CLOSE_S`."""
        with self._changed:
            if self._begun:
                self._queue(self._begun)
                self._begun = ""
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_S)

    def _queue(self, text: str) -> None:
        if self._bytes > self._queue_bytes_max:
            self._left_out += 1
            return
        self._queue_notice()
        self._append(_Line(f"{text}\n".encode(errors="backslashreplace"), 1))

    def _queue_notice(self) -> None:
        if self._left_out:
            notice = b"(%d lines of the log could not be written)\n" % self._left_out
            self._append(_Line(notice, self._left_out))
            self._left_out = 0

    def _append(self, line: _Line) -> None:
        self._lines.append(line)
        self._bytes += len(line.data)

    def _run(self) -> None:
        while (lines := self._take()) is not None:
            written = self._write(b"".join(line.data for line in lines))
            with self._changed:
                self._left_out += sum(line.stands_for for line in lines[written:])
            if not self._closing:
                time.sleep(GATHER_S)

    def _take(self) -> list[_Line] | None:
        """The next lines; None at the end."""
        with self._changed:
            while not self._lines:
                if self._closing:
                    return None
                self._changed.wait()
            lines = []
            size = 0
            while self._lines and size < WRITE_BYTES_MAX:
                lines.append(self._lines.popleft())
                size += len(lines[-1].data)
            self._bytes -= size
            if not self._lines:  # what was left out came behind all of these
                self._queue_notice()
            return lines

    def _write(self, data: bytes) -> int:
        """Write it to the descriptor; how many lines got there."""
        rest = memoryview(b"\n" + data if self._torn else data)
        done = -1 if self._torn else 0
        while rest:
            try:
                count = os.write(self._descriptor, rest)
            except BlockingIOError:  # somebody else made the descriptor so
                poll = select.poll()  # select.select takes no number above 1023
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll(POLL_S * 1000)
                continue
            except OSError:
                break
            done += bytes(rest[:count]).count(b"\n")
            self._torn = rest[count - 1] != ord("\n")
            rest = rest[count:]
        return max(done, 0)


def take_over() -> None:
    """Have everything that is written to `sys.stderr` go through such a stream, to the end."""
    occupy_standard_descriptors()
    stream = Stderr(STDERR)
    sys.stderr = stream
    # Not earlier: what ends the process may have a traceback to print.
    atexit.register(stream.finish)


def occupy_standard_descriptors() -> None:
    """Open /dev/null for each of 0, 1 and 2 that is closed.

    The next file that is opened gets the lowest number that is free. Were this a file of the data
    directory, what a library prints on standard error would be written into it.
    """
    for descriptor in range(STDERR + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
