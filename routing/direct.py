"""The direct exchange: a binding matches when its routing key is the message's."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from qlog.routing.binding import NO_ARGUMENTS, Binding
from qlog.routing.message import Message


class Direct:
    """The bindings of one direct exchange by routing key."""

    cacheable: ClassVar[bool] = True

    def __init__(self, arguments: Mapping[str, object] = NO_ARGUMENTS) -> None:
        # Dicts serve as ordered sets: any number of queues may share a key.
        self._by_key: dict[str, dict[Binding, None]] = {}

    def add(self, binding: Binding, place: int | None = None) -> None:
        self._by_key.setdefault(binding.routing_key, {})[binding] = None

    def remove(self, binding: Binding) -> None:
        bindings = self._by_key[binding.routing_key]
        del bindings[binding]
        if not bindings:
            del self._by_key[binding.routing_key]

    def match(self, routing_keys: Sequence[str], message: Message) -> Collection[Binding]:
        if len(routing_keys) == 1:
            return self._by_key.get(routing_keys[0], ())
        return [binding for key in routing_keys for binding in self._by_key.get(key, ())]
