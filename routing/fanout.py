"""The fanout exchange: every binding matches."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar

from qlog.routing.binding import Binding


class Fanout:
    """The bindings of one fanout exchange."""

    cacheable: ClassVar[bool] = True

    def __init__(self) -> None:
        self._bindings: dict[Binding, None] = {}

    def add(self, binding: Binding) -> None:
        self._bindings[binding] = None

    def remove(self, binding: Binding) -> None:
        del self._bindings[binding]

    def match(
        self, routing_keys: Sequence[str], headers: Callable[[], Mapping[str, object]]
    ) -> Collection[Binding]:
        return self._bindings
