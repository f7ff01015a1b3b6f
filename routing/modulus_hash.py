"""The exchange `x-modulus-hash`: a hash of the routing keys picks one of the bindings.

The bindings stand in the order of their destinations, so the same bindings give the same choice
after a restart. When one is added or removed, most keys move; `x-consistent-hash` moves few.
(RabbitMQ's rabbitmq_sharding. The hash function is another one, so keys find other queues than
there.)
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from qlog.routing.binding import NO_ARGUMENTS, Binding
from qlog.routing.hashing import digest, octets_of
from qlog.routing.message import Message


def _order(binding: Binding) -> tuple[str, str, str, bytes]:
    arguments = octets_of(binding.arguments)
    return binding.kind, binding.destination, binding.routing_key, arguments


class ModulusHash:
    """The bindings of one exchange, in their order."""

    cacheable: ClassVar[bool] = True

    def __init__(self, arguments: Mapping[str, object] = NO_ARGUMENTS) -> None:
        self._bindings: list[Binding] = []

    def add(self, binding: Binding, place: int | None = None) -> None:
        insort(self._bindings, binding, key=_order)

    def remove(self, binding: Binding) -> None:
        at = bisect_left(self._bindings, _order(binding), key=_order)
        while self._bindings[at] != binding:
            at += 1
        del self._bindings[at]

    def match(self, routing_keys: Sequence[str], message: Message) -> Collection[Binding]:
        bindings = self._bindings
        if not bindings:
            return ()
        return (bindings[digest(octets_of(list(routing_keys))) % len(bindings)],)
