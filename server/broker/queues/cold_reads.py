"""How much of what consumers get may be read from disk in one tick, by all queues together.

Reading is done by the thread that does all else, so that a backlog of gigabytes which is drained
would keep everybody waiting. When a tick has read enough, what is in memory is delivered as ever, and
the queues whose next message is on disk come first in the next tick. Promises no more than
COLD_BYTES_MAX a tick, and one take; knows no queue.
"""

from __future__ import annotations

from qlog.server.amqp.envelope import Envelope
from qlog.storage.store import Store

# About 5 ms where the page cache has it, 10 ms from an SSD: as long as a turn's jobs may take. More
# than an outbox holds, so that a consumer which is drained to is not slower for it.
COLD_BYTES_MAX = 2 << 20


class ColdReads:
    """See the head of this file."""

    def __init__(self, store: Store[Envelope]) -> None:
        self._store = store
        self._until = store.cold_bytes + COLD_BYTES_MAX

    @property
    def spent(self) -> bool:
        """This tick has read enough."""
        return self._store.cold_bytes >= self._until

    def renew(self) -> None:
        """A new tick begins."""
        self._until = self._store.cold_bytes + COLD_BYTES_MAX
