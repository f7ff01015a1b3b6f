"""`qlog inspect messages --follow`: the log as it grows.

A message is shown when it is known to be on disk: when a later batch, or the index's checkpoint (a
second later at most), says that the log had been synced beyond it. The command goes on from segment
to segment. Where a segment was given up before it was read, a note says which messages were not
shown. The command ends with Ctrl-C, with the broker, or after a number of messages.

Settlements are not followed, so states of messages are left out.
"""

import json
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import typer

from qlog.storage.bytes.batch import FILE_HEADER_BYTES
from qlog.storage.start.examine import FileView, Verdict
from qlog.storage.start.fold import COMPACTED
from qlog.storage.write.segment import Batch
from qlog.tools.inspect.command import stop, writing_stdout
from qlog.tools.inspect.look.decode import Bodies, decoded, lines_of, target_lines
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.environment import Unreadable, is_in_use, open_index, read
from qlog.tools.inspect.look.log import views_of
from qlog.tools.inspect.look.reader import Entry, entries_of, messages
from qlog.tools.inspect.look.selection import Selection
from qlog.tools.inspect.rows import counted, printable

_POLL_S = 0.1
_ASK_S = 0.5  # how often the index is asked how far the log is durable, while something waits
_NAMES_S = 2.0  # and the ledger, for the names of new queues


def follow_log(
    directory: Directory,
    from_lsn: int | None,
    selection: Selection,
    limit: int | None,
    bodies: Bodies | None,
    *,
    as_json: bool,
) -> None:
    """Print messages until something ends the command. `from_lsn` None: only new messages."""
    if not directory.in_use:
        stop(f"no broker runs on {directory.root}: there is nothing to follow")
    tail = _Tail(directory, from_lsn)
    shown = 0
    names_asked_s = time.monotonic()
    try:
        if not as_json:
            _say(f"following {directory.root} from LSN {tail.from_lsn} on; Ctrl-C ends it")
        for entry in tail.entries():
            record = entry.record
            if record is not None:
                lane_ids = record.targets[0::2]
                unknown = any(lane_id not in directory.owners for lane_id in lane_ids)
                if unknown and time.monotonic() > names_asked_s + _NAMES_S:
                    names_asked_s = time.monotonic()
                    directory.refresh()
                ours = selection.lane_ids
                if ours is not None and ours.isdisjoint(lane_ids):
                    continue
                if not selection.takes(directory, record):
                    continue
            item = decoded(directory, entry)
            for target in item.get("targets", ()):
                target["state"] = None
            more = [] if bodies is None or record is None else bodies.add(item, record)
            with writing_stdout():
                if as_json:
                    print(json.dumps({"schema": "qlog.inspect.messages.follow/1", **item}))
                else:
                    print(_line(item, more))
            shown += 1
            if shown == limit:
                return
        _say("the broker has stopped")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would be told as an error
        if not as_json:
            print(file=sys.stderr)  # behind the terminal's ^C
    if tail.damaged:
        raise typer.Exit(1)


def _say(text: str) -> None:
    print(f"qlog: {printable(text)}", file=sys.stderr, flush=True)


def _line(item: dict[str, Any], more: list[str]) -> str:
    queues = ", ".join(target_lines(item.get("targets", ())))
    parts = [str(item["lsn"]), str(item.get("time")), "; ".join(lines_of(item)), f"-> {queues}"]
    if more:
        parts.append("; ".join(more))
    return "  ".join(map(printable, parts))


class _Tail:
    """The place in the log up to which messages were read."""

    def __init__(self, directory: Directory, from_lsn: int | None) -> None:
        self.damaged = False
        self.from_lsn = directory.attested_lsn if from_lsn is None else from_lsn
        self._directory = directory
        self._durable_lsn = directory.attested_lsn
        self._asked_s = 0.0
        self._view: FileView | None = None
        self._position = FILE_HEADER_BYTES
        self._lsn = self.from_lsn  # of the next message to be read
        self._waiting: deque[tuple[FileView, Batch]] = deque()  # read, and perhaps not durable

    def entries(self) -> Iterator[Entry]:
        """Messages as they become durable; ends with the broker."""
        directory = self._directory
        for entry in messages(directory, views_of(directory), self._lsn):
            if entry.lsn >= self._durable_lsn or entry.lsn_end is None:
                break
            self.damaged = self.damaged or entry.damage is not None
            self._lsn = entry.lsn_end
            yield entry
        while True:
            alive = is_in_use(directory.paths.catalog)
            moved = False
            for batch in self._read():
                moved = True
                self._durable_lsn = max(self._durable_lsn, batch.header.durable)
                yield from self._durable()
            if self._waiting and not (moved and alive):
                if not alive or time.monotonic() >= self._asked_s + _ASK_S:
                    self._ask(alive)
                yield from self._durable()
            if not alive and not moved:
                break
            if not moved:
                time.sleep(_POLL_S)
        if self._waiting:
            count = sum(batch.header.count for _, batch in self._waiting)
            _say(f"{counted(count, 'message')} more may not have been confirmed: not shown")

    def _durable(self) -> Iterator[Entry]:
        """The messages of the batches that are known to be on disk."""
        waiting = self._waiting
        while waiting:
            header = waiting[0][1].header
            if header.base + header.count > self._durable_lsn:
                return
            for entry in entries_of(*waiting.popleft()):
                if entry.lsn >= self.from_lsn:
                    yield entry

    def _ask(self, alive: bool) -> None:
        """Learn from the index how far the log is durable; all of it, if the broker has ended."""
        directory = self._directory
        self._asked_s = time.monotonic()
        asked = 0
        if alive:
            with suppress(Unreadable):
                asked = read(directory.paths.index, _checkpoint_lsn)
        else:
            directory.refresh()
            asked = directory.attested_lsn
        self._durable_lsn = max(self._durable_lsn, asked)

    def _read(self) -> Iterator[Batch]:
        """The whole batches that came since the last call, also from the segments that follow."""
        while True:
            following = self._following()  # looked for first: what is missing then stays missing
            with suppress(FileNotFoundError):  # given back: all of it is settled
                yield from self._read_view()
            if following is None:
                return
            assert following.header is not None
            base = following.header.base
            if base > self._lsn:
                still_there = self._view is not None and self._view.path.exists()
                what = "cannot be read" if still_there else "were settled and given back"
                self.damaged = self.damaged or still_there
                _say(f"messages {self._lsn} to {base - 1} {what}: not shown")
            self._view = following
            self._position = FILE_HEADER_BYTES
            self._lsn = max(self._lsn, base)

    def _read_view(self) -> Iterator[Batch]:
        if self._view is None:
            return
        with self._directory.opened(self._view) as file:
            for batch in file.batches(self._position):
                self._position = batch.end
                end = batch.header.base + batch.header.count
                if end > self._lsn:
                    self._lsn = end
                    self._waiting.append((self._view, batch))
                    yield batch

    def _following(self) -> FileView | None:
        """The segment to go on with; None as long as the current one is the last."""
        current = self._view
        read_upto = 0 if current is None else current.file_id
        best: FileView | None = None
        for segment_id in self._directory.segment_ids():
            if not read_upto < segment_id < COMPACTED:
                continue
            with suppress(FileNotFoundError):
                view = self._directory.segment(segment_id)
                if view.header is None or view.header_verdict is not Verdict.WHOLE:
                    continue
                if current is not None:
                    return view
                if best is None or view.header.base <= self._lsn:
                    best = view  # the last that begins at or before our place, else the first
        return best


def _checkpoint_lsn(directory: Path, lock: bool) -> int:
    with closing(open_index(directory, lock)) as index:
        checkpoint = index.checkpoint()
        return 0 if checkpoint is None else checkpoint.lsn
