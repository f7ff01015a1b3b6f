"""The fanout exchange: every binding matches."""

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

from qlog.routing.binding import NO_ARGUMENTS, Binding
from qlog.routing.message import Message


class Fanout:
    """The bindings of one fanout exchange."""

    cacheable: ClassVar[bool] = True

    def __init__(self, arguments: Mapping[str, object] = NO_ARGUMENTS) -> None:
        self._bindings: dict[Binding, None] = {}

    def add(self, binding: Binding, place: int | None = None) -> None:
        self._bindings[binding] = None

    def remove(self, binding: Binding) -> None:
        del self._bindings[binding]

    def match(self, routing_keys: Sequence[str], message: Message) -> Collection[Binding]:
        return self._bindings
