"""Where the log goes, and how a line of it looks: plain text or JSON, on stderr or in a file.

Promises one line for each message, whatever names clients gave (a traceback may follow in plain
text; in JSON it is a field). Nothing that is wrong with the file keeps the broker from working
(stderr.py). A file can be moved away and made anew (log rotation): `reopen` goes on in the new one.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from qlog.tools.stderr import Stderr

if TYPE_CHECKING:
    from qlog.server.config import LogSettings


class Log:
    """The log of a process, from its making on. Raises OSError when the file cannot be opened."""

    def __init__(self, settings: LogSettings) -> None:
        self._path = settings.path
        self._file = Stderr(_opened(self._path)) if self._path else None
        self._is_json = settings.log_format == "json"
        self._handler = logging.StreamHandler(self._file or sys.stderr)
        self._handler.setFormatter(JSONLines() if self._is_json else OneLine())
        # What no line says need not be found out: it is half of what a line costs.
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
        logging._srcfile = None  # Python's "Logging HOWTO" has this, too
        root = logging.getLogger()
        root.setLevel(settings.log_level.upper())
        root.addHandler(self._handler)

    def announce(self, text: str) -> None:
        """Say something on stderr, whatever the level, and in the log's file if there is one."""
        line = text
        if self._is_json:
            line = json.dumps({"time": _time(datetime.now(UTC)), "level": "info", "msg": text})
        for stream in filter(None, (sys.stderr, self._file)):
            print(line, file=stream)

    def reopen(self) -> str:
        """Go on in the file that is at its path now. Returns the path; empty: there is no file.

        Raises OSError; then the log goes on where it went.
        """
        if self._file is not None:
            file = _opened(self._path)
            # In one step: a line that is being written goes to the one file or the other.
            os.dup2(file, self._file.fileno(), inheritable=False)
            os.close(file)
        return self._path

    def close(self) -> None:
        """Log nothing more, and wait for the last lines, a moment at most."""
        logging.getLogger().removeHandler(self._handler)
        if self._file is not None:
            self._file.finish()


def _opened(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


class OneLine(logging.Formatter):
    """Time, level, logger and message; what is not printable is escaped."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        self._second = 0
        self._time = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """The local time; that of a second is remembered."""
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._time = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._time},{int(record.msecs):03d}"

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line."""
        line = super().formatMessage(record)
        if line.isprintable():
            return line
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


class JSONLines(logging.Formatter):
    """An object: time (UTC), level, logger, msg; exception and its traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, Any] = {
            "time": _time(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
