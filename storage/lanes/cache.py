"""The bodies in memory, bounded in bytes."""

from collections import OrderedDict, deque
from typing import Generic

from qlog.storage.lanes.page import Page
from qlog.storage.lanes.run import RUN_OVERHEAD_BYTES, M, Run

# So many bodies are freed in one go: more than one turn of the loop can bring.
_FREED_AT_ONCE = 16 * 1024
# All lanes together read ahead at most so much, or a quarter of the limit if that is less.
_PAGES_BYTES_MAX = 16 << 20


class Cache(Generic[M]):
    """The bodies in memory, up to a limit. Runs that all lanes have read go first, then the oldest.

    Bodies that are not on disk yet stay in memory, whatever the limit. `bytes` counts what was read
    ahead, too (`pages_bytes`).
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self.transient_bytes = 0
        self.durable_lsn = 0
        # A checkpoint that is gathering takes all messages below this LSN, and none from it on: no
        # run may be joined over it. -1: none is gathering.
        self.gathering_lsn = -1
        self.transient_serial = 0  # of the newest run that is only in memory
        self.pages_bytes = 0
        self.cold_bytes = 0  # read from disk, since the start
        self._bytes_max = bytes_max
        self._pages_bytes_max = min(_PAGES_BYTES_MAX, bytes_max // 4)
        self._pages: OrderedDict[Page[M], None] = OrderedDict()  # the oldest first
        self._count = 0
        self._queue: deque[Run[M]] = deque()  # in the order of their LSNs
        self._fresh: deque[Run[M]] = deque()  # runs that are not durable yet
        # Bodies and metas that were given up, and have yet to be freed.
        self.garbage: deque[tuple[list[bytes], list[M] | None]] = deque()

    def add(self, run: Run[M]) -> None:
        """A new run, which may grow."""
        if run.lsn_end:
            self.bytes += run.memory_bytes
            self._count += 1
            self._queue.append(run)
            self._fresh.append(run)
        else:
            self.transient_bytes += run.memory_bytes
            self.transient_serial += 1
            run.serial = self.transient_serial

    def grown(self, run: Run[M], size: int) -> None:
        """A run takes so many more bytes."""
        if run.lsn_end:
            self.bytes += size
        else:
            self.transient_bytes += size

    def joined(self, run: Run[M], later: Run[M]) -> None:
        """Make `later` a part of `run`; both are durable, or neither is in the log."""
        if later.bodies is not None:
            if later.lsn_end:
                self.bytes -= RUN_OVERHEAD_BYTES
                self._count -= 1
            else:
                self.transient_bytes -= RUN_OVERHEAD_BYTES
        run.join(later)

    def advance(self, durable_lsn: int) -> None:
        """All records below this LSN are on disk: bodies that nobody waits for can go."""
        self.durable_lsn = durable_lsn
        fresh = self._fresh
        while fresh and fresh[0].lsn_end <= durable_lsn:
            run = fresh.popleft()
            if run.readers <= 0:
                self.drop(run)
        queue = self._queue
        while queue and (queue[0].bodies is None or self.bytes > self._bytes_max):
            if queue[0].lsn_end > durable_lsn:
                break
            self.drop(queue.popleft())
        if len(queue) > 2 * self._count + 1024:  # holes in the middle: keep it in proportion
            self._queue = deque(run for run in queue if run.bodies is not None)

    def was_read(self, run: Run[M]) -> None:
        """A lane read the run to its end."""
        run.readers -= 1
        if run.readers <= 0 and run.segment_id and run.lsn_end <= self.durable_lsn:
            self.drop(run)

    def was_settled(self, run: Run[M]) -> None:
        """A lane needs the run no more."""
        run.owners -= 1
        if run.owners <= 0:
            self.drop(run)

    def drop(self, run: Run[M]) -> None:
        """Give up the copy in memory."""
        if run.bodies is not None:
            self.garbage.append((run.bodies, run.metas))
            run.bodies = None
            run.metas = None
            if run.lsn_end:
                self.bytes -= run.memory_bytes
                self._count -= 1
            else:
                self.transient_bytes -= run.memory_bytes

    def keep(self, page: Page[M]) -> None:
        """A lane read ahead; when there are too many such pages, those of others go."""
        self._pages[page] = None
        self.bytes += page.memory_bytes
        self.pages_bytes += page.memory_bytes
        while self.pages_bytes > self._pages_bytes_max:
            self.drop_page(next(iter(self._pages)))

    def drop_page(self, page: Page[M]) -> None:
        """Give up what was read ahead. Again: no effect."""
        if page.bodies is not None:
            page.bodies = page.metas = None
            del self._pages[page]
            self.bytes -= page.memory_bytes
            self.pages_bytes -= page.memory_bytes

    def free(self) -> bool:
        """Free some of what was given up, for about a millisecond. Returns whether anything is
        left.

        To free the million bodies of a deleted queue at once would take a hundred milliseconds.
        """
        garbage = self.garbage
        left = _FREED_AT_ONCE
        while garbage and left > 0:
            left -= len(garbage.popleft()[0])
        return bool(garbage)
