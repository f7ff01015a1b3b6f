"""What leaves a vhost: queues, exchanges and bindings, and what goes with them.

A removal is found, taken from the catalog and then from the table in one piece, so that from this
moment on nobody sees what has left. It may have very many bindings: these go after it, some in each
step of a job, and its name is free when the last one has gone. What counts at once is durable when
the ledger is synced behind it; a start finishes what a crash has cut off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

from qlog.routing.binding import Binding, DestinationKind
from qlog.routing.exchange import Exchange
from qlog.routing.table import End, Removed, RoutingTable
from qlog.server.amqp.values import Table
from qlog.server.broker.features.dead_letter import DeadLetters
from qlog.server.broker.features.delayed import DelayedMessages
from qlog.server.broker.features.policy import KINDS, Policies
from qlog.server.broker.hidden_lanes import HiddenLanes
from qlog.server.broker.jobs import Steps, letting_go
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.queues.type import QueueType
from qlog.server.broker.services import Services

RESERVED_PREFIX = "amq."  # exchanges with this prefix are in every vhost
# So many bindings are taken away in one piece: some milliseconds, most of them for the catalog.
BINDINGS_AT_ONCE = 200


class Namespace(Protocol):
    """What removals need of their vhost."""

    name: str
    routing: RoutingTable
    queues: dict[str, QueueType]
    policies: Policies
    hidden_lanes: HiddenLanes
    dead_letters: DeadLetters
    delayed: DelayedMessages

    def find_exchange(self, name: str) -> Exchange | None:
        """The exchange of that name, None if there is none."""

    def forget_kept(self, exchange: str) -> None:
        """Nothing is kept of a deleted exchange."""


class _InUse(Exception):
    """A queue that was to be deleted because nobody used it is used again."""


def _has_no_takers(queue: QueueType) -> bool:
    return not queue.takers


class Removals:
    """Those of one vhost; see the head of this file."""

    def __init__(self, vhost: Namespace, services: Services) -> None:
        self.orphans: list[Binding] = []  # that a start has found, of what was deleted
        self._vhost = vhost
        self._routing = vhost.routing
        self._services = services
        self._definitions = services.definitions
        self._unused: deque[QueueType] = deque()  # auto-delete queues to be looked at
        self._clearing = False  # a job looks at them
        self._leaving: dict[End, Outcome[None]] = {}

    def leaving(self, kind: DestinationKind, name: str) -> Outcome[None] | None:
        """Done when what was deleted under this name has lost all its bindings; None: nothing was.

        Nobody sees it any more, but its name is not free before.
        """
        return self._leaving.get((kind, name)) if self._leaving else None

    # -- exchanges and bindings

    def delete_exchange(self, name: str, check: Callable[[], None] = lambda: None) -> Outcome[None]:
        """Delete an exchange with its bindings.

        `check` raises if it may not be deleted; it is called in the moment of the deletion.
        """
        return self._services.jobs.start(self._deleting_exchange(name, check))

    def _deleting_exchange(
        self, name: str, check: Callable[[], None] = lambda: None
    ) -> Steps[None]:
        exchange = self._routing.exchange(name)

        def find() -> Removed:
            if self._vhost.find_exchange(name) is not exchange:
                return Removed()  # deleted by somebody else, meanwhile
            check()
            return self._routing.removal_of_exchange(name, BINDINGS_AT_ONCE)

        removed = yield from self._vhost.delayed.removal(find)
        if removed.exchange is not None:
            yield from self._removing_exchange(name, removed)

    def _removing_exchange(self, name: str, removed: Removed) -> Steps[None]:
        with self._definitions.transaction():
            self._definitions.delete_exchange(self._vhost.name, name)
            self._forget(removed)
        self._remove(removed)
        yield from self._losing_bindings(removed.going)

    def unbind(
        self, source: str, kind: DestinationKind, destination: str, key: str, arguments: Table
    ) -> Outcome[None]:
        """queue.unbind, exchange.unbind: unknown names and bindings are no error.

        Done when the auto-delete exchanges have gone that go with their last binding.
        """
        find = partial(
            self._routing.removal_of_binding,
            source,
            kind,
            destination,
            key,
            arguments,
            BINDINGS_AT_ONCE,
        )
        return self._services.jobs.start(self._unbinding(find))

    def _unbinding(self, find: Callable[[], Removed]) -> Steps[None]:
        removed = yield from self._vhost.delayed.removal(find)
        with self._definitions.transaction():
            self._forget(removed)
        self._remove(removed)
        yield from self._losing_bindings(removed.going)

    # -- queues

    def unused(self, queue: QueueType) -> None:
        """The last consumer of an auto-delete queue left: it is deleted, unless one comes soon.

        That is at once, unless very many are left in this moment.
        """
        self._unused.append(queue)
        if not self._clearing:
            self._clearing = True
            self._services.jobs.start_in_turn(self._deleting_unused())

    def _deleting_unused(self) -> Steps[None]:
        try:
            while self._unused:
                queue = self._unused.popleft()
                yield from self._deleting_if(queue, partial(_has_no_takers, queue))
                yield
        finally:
            self._clearing = False

    def delete_exclusive(self, queues: Iterator[QueueType]) -> Outcome[None]:
        """The owner of exclusive queues has left. Done when they are deleted."""
        return self._services.jobs.start_in_turn(self._deleting_exclusive(queues))

    def _deleting_exclusive(self, queues: Iterator[QueueType]) -> Steps[None]:
        for queue in queues:
            if not queue.deleted:
                yield from self._deleting_queue(queue)
            yield

    def delete_queue(
        self, queue: QueueType, check: Callable[[], None] = lambda: None
    ) -> Outcome[int]:
        """Delete a queue with its bindings and messages; how many messages were ready.

        `check` raises if the queue may not be deleted; it is called in the moment of the deletion.
        Its consumers are told at the end of the tick: a client that deletes hears of its success
        first.
        """
        return self._services.jobs.start(self._deleting_queue(queue, check))

    def delete_if(self, queue: QueueType, unused: Callable[[], bool]) -> Outcome[bool]:
        """Delete a queue, unless it is used by then; whether it was. See `delete_queue`.

        `unused` is asked now, and again in the moment of the deletion: what has left the queue goes
        first, and waits for the disk.
        """
        return self._services.jobs.start_in_turn(self._deleting_if(queue, unused))

    def _deleting_if(self, queue: QueueType, unused: Callable[[], bool]) -> Steps[bool]:
        def check() -> None:
            if not unused():
                raise _InUse

        try:
            if queue.deleted:
                return False
            check()
            yield from self._deleting_queue(queue, check)
        except _InUse:
            return False
        return True

    def _deleting_queue(
        self, queue: QueueType, check: Callable[[], None] = lambda: None
    ) -> Steps[int]:
        def find() -> Removed:
            if queue.deleted:
                return Removed()  # by somebody else, meanwhile
            check()
            return self._routing.removal_of_queue(queue.name, BINDINGS_AT_ONCE)

        with self._vhost.dead_letters.ending(queue):
            removed = yield from self._vhost.delayed.removal(find, partial(self._handing_on, queue))
            if removed.queue is None:
                return 0
            ready = queue.ready
            yield from self._removing_queue(queue, removed)
        return ready

    def _removing_queue(self, queue: QueueType, removed: Removed) -> Steps[None]:
        with self._definitions.transaction():
            if queue.declared.durable:
                self._definitions.delete_queue(queue.declared)
            self._vhost.hidden_lanes.forget("queue", queue.name)
            self._forget(removed)
        self._remove(removed)
        queue.close()
        self._services.stats.queues_deleted += 1
        del self._vhost.queues[queue.name]
        if queue.owner is not None:
            queue.owner.exclusive_queues.pop(queue.name, None)
            queue.owner = None
        self._services.delivery.gone(queue)
        for lane in queue.lanes:
            self._services.store.drop(lane)
        yield from self._losing_bindings(removed.going)

    def _handing_on(self, queue: QueueType) -> Steps[None]:
        """Wait until what was handed on from a queue is elsewhere, and on the disk there.

        The deletion may get to the disk before the copies do: a full disk takes it in reserved
        space, and then a crash would leave such messages nowhere.
        """
        yield from self._vhost.dead_letters.finishing(queue)
        while not queue.deleted and queue.after_lsn > self._services.store.durable_lsn:
            yield self._services.durability.sync(queue.after_lsn)
            yield from self._vhost.dead_letters.finishing(queue)

    # -- the whole vhost

    def deleting_all(self) -> Steps[None]:
        """Delete all that is in the vhost, which nobody can find any more.

        The definition of the vhost is deleted already, so that a start finishes what a crash cuts
        off (`Definitions.drop_orphans`). Nothing waits for what is handed on: where that goes is
        deleted, too, and a full disk may be why.
        """
        self._vhost.delayed.forget_all()
        for queue in letting_go(self._vhost.queues.values()):
            if not queue.deleted:
                removed = self._routing.removal_of_queue(queue.name, BINDINGS_AT_ONCE)
                yield from self._removing_queue(queue, removed)
            yield
        for exchange in letting_go(self._routing.exchanges()):
            name = exchange.name
            built_in = not name or name.startswith(RESERVED_PREFIX)
            if not built_in and self._vhost.find_exchange(name) is exchange:
                removed = self._routing.removal_of_exchange(name, BINDINGS_AT_ONCE)
                yield from self._removing_exchange(name, removed)
            yield
        while self._leaving:
            yield next(iter(self._leaving.values()))  # deletions that others began before
        for binding in letting_go(self._routing.bindings()):  # between predeclared exchanges
            self._definitions.delete_binding(self._vhost.name, binding)
            yield
        for kind in KINDS:
            for policy in list(self._vhost.policies.all(kind)):
                self._definitions.delete_policy(self._vhost.name, kind, policy.name)
                yield

    # -- what goes afterwards

    def _losing_bindings(self, going: Iterable[End]) -> Steps[None]:
        """What was deleted loses its many bindings, some in each step, and then its name is free.

        An auto-delete exchange that loses its last binding so follows, however many there are one
        behind the other. A crash, or a full disk, leaves bindings to nothing, which the next start
        takes away.
        """
        left: deque[End] = deque()
        self._leave(left, going)
        try:
            while left:
                yield
                kind, name = left[0]
                find = (
                    self._routing.removal_of_queue
                    if kind == "queue"
                    else self._routing.removal_of_exchange
                )
                removed = yield from self._vhost.delayed.removal(
                    partial(find, name, BINDINGS_AT_ONCE)
                )
                with self._definitions.transaction():
                    self._forget(removed)
                self._remove(removed)
                self._leave(left, removed.going)
                if removed.complete:
                    self._leaving.pop(left.popleft()).set(None)
        finally:
            for end in left:
                self._leaving.pop(end).set(None)

    def finish_losing(self, kind: DestinationKind, name: str) -> None:
        """Take away the bindings that a failing disk left to what was deleted: a new one has none."""
        if not self._routing.is_going(kind, name):
            return
        if kind == "queue":
            removed = self._routing.removal_of_queue(name)
        else:
            removed = self._routing.removal_of_exchange(name)
        with self._definitions.transaction():
            self._forget(removed)
        self._remove(removed)

    def _leave(self, left: deque[End], going: Iterable[End]) -> None:
        """Nobody sees any more what is going, but for the job that has it in `left`."""
        for end in going:
            if end not in self._leaving:
                self._leaving[end] = Outcome()
                left.append(end)

    def finish(self) -> None:
        """Take away the bindings that deletions left when the broker was stopped in their middle.

        An auto-delete exchange that has lost its last binding so goes, too.
        """
        orphans, self.orphans = self.orphans, []
        with self._definitions.transaction():
            for binding in orphans:
                self._definitions.delete_binding(self._vhost.name, binding)
            for source in dict.fromkeys(binding.source for binding in orphans):
                exchange = self._routing.exchange(source)
                if exchange and exchange.auto_delete and not self._routing.in_use(source):
                    removed = self._routing.removal_of_exchange(source)
                    self._definitions.delete_exchange(self._vhost.name, source)
                    self._forget(removed)
                    self._remove(removed)

    def _forget(self, removed: Removed) -> None:
        """Take from the catalog what a removal takes from the table, and what is kept of it."""
        for name in removed.exchanges:
            self._vhost.forget_kept(name)
        for name in (*removed, *removed.emptied):
            self._definitions.delete_exchange(self._vhost.name, name)
        for binding in removed.bindings:
            if not binding.source:
                continue  # the default exchange's are implied by the queue
            self._definitions.delete_binding(self._vhost.name, binding)

    def _remove(self, removed: Removed) -> None:
        """Take a removal from the table, after the catalog: it counts from now on."""
        self._routing.remove(removed)
        self._vhost.hidden_lanes.drop()
