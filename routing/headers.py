"""The headers exchange: a binding's arguments are conditions on the message's headers.

`x-match` says how they combine: `all` (the default) and `any` pass over keys that begin with
`x-`; `all-with-x` and `any-with-x` heed them too. A condition without a value (void) asks only
that the header is there. No conditions at all: `all` is true, `any` is false.
(RabbitMQ's rules; AMQP 0-9-1, section 3.1.3.4, leaves most of this open.)

Every binding is looked at for every message: conditions have no order that a search could use.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import ClassVar

from qlog.routing.binding import Binding, comparable
from qlog.routing.errors import InvalidBinding

_Conditions = list[tuple[str, Hashable]]

_X_MATCH = ("all", "any", "all-with-x", "any-with-x")


def _conditions(binding: Binding) -> tuple[bool, _Conditions]:
    """Return whether all conditions must hold, and the conditions.

    Raises InvalidBinding for an `x-match` that RabbitMQ refuses.
    """
    x_match = binding.arguments.get("x-match", "all")
    if not isinstance(x_match, str) or x_match not in _X_MATCH:
        raise InvalidBinding(x_match)
    with_x = x_match.endswith("-with-x")
    conditions = [
        (key, comparable(value))
        for key, value in binding.arguments.items()
        if key != "x-match" and (with_x or not key.startswith("x-"))
    ]
    return x_match.startswith("all"), conditions


class Headers:
    """The bindings of one headers exchange with their conditions."""

    cacheable: ClassVar[bool] = False

    def __init__(self) -> None:
        self._conditions: dict[Binding, tuple[bool, _Conditions]] = {}

    def add(self, binding: Binding) -> None:
        self._conditions[binding] = _conditions(binding)

    def remove(self, binding: Binding) -> None:
        del self._conditions[binding]

    def match(
        self, routing_keys: Sequence[str], headers: Callable[[], Mapping[str, object]]
    ) -> Collection[Binding]:
        present = {key: comparable(value) for key, value in headers().items()}
        found = []
        for binding, (all_must_hold, conditions) in self._conditions.items():
            for key, value in conditions:
                holds = key in present and (value is None or present[key] == value)
                if holds != all_must_hold:  # decided: one failed of all, or one held of any
                    break
            else:
                holds = all_must_hold
            if holds:
                found.append(binding)
        return found
