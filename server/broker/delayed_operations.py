"""The part of operations.py about messages that wait at exchanges (features/delayed.py)."""

from __future__ import annotations

from collections.abc import Iterator

from qlog.server.amqp.errors import AMQPError, not_found
from qlog.server.broker.features.delayed import Delayed, DelayedMessage
from qlog.server.broker.outcome import Outcome
from qlog.server.broker.services import Services
from qlog.server.broker.vhost import VHost


class DelayedOperations:
    """See the head of this file."""

    _services: Services

    def delayed_count(self, vhost: VHost, exchange: str) -> int:
        """How many messages wait at an exchange. Raises 404."""
        vhost.exchange(exchange)
        delayed = vhost.delayed.find(exchange)
        return 0 if delayed is None else delayed.count

    def delayed_messages(
        self, vhost: VHost, exchange: str, first: int = 0
    ) -> Iterator[DelayedMessage]:
        """What waits at an exchange, in the order in which it came, from a number on.

        Raises 404, and, while it is walked, CorruptLog and OutOfDescriptors.
        """
        vhost.exchange(exchange)
        delayed = vhost.delayed.find(exchange)
        return iter(()) if delayed is None else delayed.messages(first)

    def cancel_delayed(self, vhost: VHost, exchange: str, number: int) -> Outcome[None]:
        """A message that waits at an exchange is not released. Raises 404, also if it has been."""
        delayed = self._delayed(vhost, exchange, number)
        if not delayed.cancel(number):
            raise _no_delayed(vhost, exchange, number)
        return self._services.durability.sync()

    def reschedule_delayed(
        self, vhost: VHost, exchange: str, number: int, due_ms: int
    ) -> Outcome[int]:
        """A message that waits is released at another time: wall clock, in ms since 1970.

        Known, when durable, is its new number. Raises 404, CorruptLog and OutOfDescriptors.
        """
        again = self._delayed(vhost, exchange, number).reschedule(number, due_ms)
        if again is None:
            raise _no_delayed(vhost, exchange, number)
        outcome: Outcome[int] = Outcome()
        synced = self._services.durability.sync(again[1])
        synced.then(lambda _: outcome.set(again[0]))
        return outcome

    def purge_delayed(self, vhost: VHost, exchange: str) -> Outcome[int]:
        """Nothing that waits at an exchange is released; how much it was. Raises 404."""
        vhost.exchange(exchange)
        delayed = vhost.delayed.find(exchange)
        if delayed is None:
            return Outcome.of(0)
        return self._services.jobs.start(delayed.cancelling_all())

    def _delayed(self, vhost: VHost, exchange: str, number: int) -> Delayed:
        vhost.exchange(exchange)
        delayed = vhost.delayed.find(exchange)
        if delayed is None or number < 0:
            raise _no_delayed(vhost, exchange, number)
        return delayed


def _no_delayed(vhost: VHost, exchange: str, number: int) -> AMQPError:
    return not_found(f"no delayed message {number} at {vhost.rs_exchange(exchange)}")
