"""How much all queues together may read from the disk in one tick.

The loop thread reads from the disk. Without a limit, draining a backlog of gigabytes would keep all
clients waiting. When a tick has read enough, messages in memory are still delivered, and the queues
whose next message is on disk come first in the next tick. Promises that a tick reads no more than
COLD_BYTES_MAX, plus one take. Knows no queue.
"""

from __future__ import annotations

from qlog.server.amqp.envelope import Envelope
from qlog.storage.store import Store

# So much takes about 5 ms from the page cache and 10 ms from an SSD: as long as a turn's jobs may
# take. It is more than an outbox holds, so that draining to one consumer is not slower for it.
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
