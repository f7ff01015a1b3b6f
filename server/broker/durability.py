"""Who waits for the disk: confirms for the log, replies for log and ledger.

The store says how far the disk is (`durable_lsn`, `synced`); `progress` tells those who waited for
that, in the order in which they came. Nothing is told before.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.outcome import Outcome
from qlog.storage.store import Store

# So many waits for definitions end in one call of `progress`: some milliseconds.
ANSWERS_AT_ONCE = 500


class Confirming(Protocol):
    """Confirms of one channel."""

    def confirm_through(self, durable_lsn: int) -> bool:
        """The log is durable up to `durable_lsn`: send what is due.

        True: nothing waits any more.
        """


class Durability:
    """See the head of this file."""

    def __init__(self, store: Store[Envelope]) -> None:
        self._store = store
        self._confirmed_lsn = store.durable_lsn
        self._unconfirmed: dict[Confirming, None] = {}
        self._syncing: deque[tuple[int, Outcome[None]]] = deque()  # by their tickets
        self._defining: deque[tuple[int, Outcome[None]]] = deque()  # by counts of definitions
        self._logging: list[tuple[int, int, Outcome[None]]] = []  # a heap by LSN
        self._numbers = count()

    @property
    def waiting(self) -> int:
        """How many channels wait for confirms."""
        return len(self._unconfirmed)

    def await_confirms(self, confirms: Confirming) -> None:
        """Tell these confirms when the log gets further."""
        self._unconfirmed[confirms] = None

    def sync(self, after_lsn: int = 0) -> Outcome[None]:
        """Done when everything done so far is durable, in the log and in the ledger.

        Settlements that wait until the log is durable up to `after_lsn` are done only then, and the
        sync is asked for then.
        """
        if after_lsn <= self._store.durable_lsn:
            return self.reach(self._store.request_sync())
        outcome: Outcome[None] = Outcome()
        heappush(self._logging, (after_lsn, next(self._numbers), outcome))
        return outcome

    def defined(self) -> Outcome[None]:
        """Done when every definition so far is durable: a declare-ok is a promise."""
        count = self._store.definitions
        if self._store.definitions_synced >= count:
            return Outcome.of(None)
        if not self._defining or self._defining[-1][0] != count:
            self._defining.append((count, Outcome()))
        return self._defining[-1][1]

    def reach(self, ticket: int) -> Outcome[None]:
        """Done when the store has served a ticket of `Store.request_sync`. Tickets only grow."""
        outcome: Outcome[None] = Outcome()
        if self._store.synced >= ticket and not self._syncing:
            outcome.set(None)
        else:
            self._await_ticket(ticket, outcome)
        return outcome

    def _await_ticket(self, ticket: int, outcome: Outcome[None]) -> None:
        assert not self._syncing or self._syncing[-1][0] <= ticket
        self._syncing.append((ticket, outcome))

    def progress(self) -> None:
        """The disk got further: confirm what is durable, answer those who waited for that."""
        store = self._store
        if store.durable_lsn != self._confirmed_lsn or self._syncing:
            self._confirm(store.durable_lsn)
        while self._syncing and store.synced >= self._syncing[0][0]:
            self._syncing.popleft()[1].set(None)
        if not self._defining:
            return
        for _ in range(ANSWERS_AT_ONCE):
            if not self.left:
                break
            self._defining.popleft()[1].set(None)

    @property
    def left(self) -> bool:
        """`progress` can answer more."""
        return bool(self._defining) and self._store.definitions_synced >= self._defining[0][0]

    def _confirm(self, durable_lsn: int) -> None:
        for confirms in list(self._unconfirmed):
            # Forgotten first: a channel that fails here must not keep the others waiting.
            del self._unconfirmed[confirms]
            if not confirms.confirm_through(durable_lsn):
                self._unconfirmed[confirms] = None
        self._confirmed_lsn = durable_lsn
        while self._logging and self._logging[0][0] <= durable_lsn:
            self._await_ticket(self._store.request_sync(), heappop(self._logging)[2])
