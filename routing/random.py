"""The exchanges that pick one binding at random: `x-random` and `x-local-random`.

Each binding is as likely as any other, so a queue that is bound twice gets twice as much. Routing
keys mean nothing. (RabbitMQ's rabbitmq_random_exchange, and its local random exchange, whose
bindings must have the empty key and lead to queues. qlog is one node: all its queues are local.)
"""

import random
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from qlog.routing.binding import NO_ARGUMENTS, Binding
from qlog.routing.errors import InvalidBinding
from qlog.routing.message import Message


class Random:
    """The bindings of one `x-random` exchange."""

    cacheable: ClassVar[bool] = False

    def __init__(self, arguments: Mapping[str, object] = NO_ARGUMENTS) -> None:
        self._bindings: list[Binding] = []
        self._index: dict[Binding, int] = {}

    def add(self, binding: Binding, place: int | None = None) -> None:
        self._index[binding] = len(self._bindings)
        self._bindings.append(binding)

    def remove(self, binding: Binding) -> None:
        at = self._index.pop(binding)
        last = self._bindings.pop()
        if last != binding:
            self._bindings[at] = last
            self._index[last] = at

    def match(self, routing_keys: Sequence[str], message: Message) -> Collection[Binding]:
        bindings = self._bindings
        return (random.choice(bindings),) if bindings else ()


class LocalRandom(Random):
    """The bindings of one `x-local-random` exchange."""

    def add(self, binding: Binding, place: int | None = None) -> None:
        if binding.routing_key:
            raise InvalidBinding(f"Non empty binding '{binding.routing_key}' key not permitted")
        if binding.kind != "queue":
            raise InvalidBinding("Destination not found")
        super().add(binding)
