"""The headers exchange: a binding's arguments are conditions on the message's headers.

`x-match` says how they combine: `all` (the default) and `any` pass over keys that begin with
`x-`; `all-with-x` and `any-with-x` heed them too. A condition without a value (void) asks only
that the header is there. No conditions at all: `all` is true, `any` is false.
(RabbitMQ's rules; AMQP 0-9-1, section 3.1.3.4, leaves most of this open.)

Promises that matching costs what the message's headers demand, not what the exchange holds. A
binding stands under conditions: one of them, if all must hold, each of them, if any is enough. A
message finds the bindings under what its headers have. Of several conditions that must hold, that
one is taken that the fewest other bindings stand under. So a message looks at bindings in vain only
if they have no condition of their own: all of them ask for the same values, or for presence alone.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import ClassVar

from qlog.routing.binding import NO_ARGUMENTS, Binding, comparable
from qlog.routing.errors import InvalidMatch
from qlog.routing.message import Message

_X_MATCH = ("all", "any", "all-with-x", "any-with-x")
# What a header or an argument of that name has: a value, or (void) anything.
_Condition = tuple[str, Hashable]


class _Conditions:
    """The conditions of one binding. Raises InvalidMatch for an `x-match` that RabbitMQ refuses.

    `under` are those that the binding stands under.
    """

    __slots__ = ("all_must_hold", "conditions", "under")

    def __init__(self, binding: Binding) -> None:
        x_match = binding.arguments.get("x-match", "all")
        if not isinstance(x_match, str) or x_match not in _X_MATCH:
            raise InvalidMatch(x_match)
        with_x = x_match.endswith("-with-x")
        self.all_must_hold = x_match.startswith("all")
        self.conditions: list[_Condition] = [
            (key, comparable(value))
            for key, value in binding.arguments.items()
            if key != "x-match" and (with_x or not key.startswith("x-"))
        ]
        self.under: Sequence[_Condition] = self.conditions

    def hold(self, headers: Mapping[str, Hashable]) -> bool:
        """Whether a message with these headers matches, given that one condition holds."""
        if not self.all_must_hold:
            return True
        return all(
            key in headers and value in (None, headers[key]) for key, value in self.conditions
        )


class Headers:
    """The bindings of one headers exchange with their conditions."""

    cacheable: ClassVar[bool] = False

    def __init__(self, arguments: Mapping[str, object] = NO_ARGUMENTS) -> None:
        self._conditions: dict[Binding, _Conditions] = {}
        self._under: dict[_Condition, dict[Binding, _Conditions]] = {}
        self._always: dict[Binding, None] = {}  # all of no conditions hold

    def add(self, binding: Binding, place: int | None = None) -> None:
        conditions = self._conditions[binding] = _Conditions(binding)
        if conditions.all_must_hold:
            if not conditions.conditions:
                self._always[binding] = None
            conditions.under = self._rarest(conditions.conditions)
        for condition in conditions.under:
            self._under.setdefault(condition, {})[binding] = conditions

    def remove(self, binding: Binding) -> None:
        self._always.pop(binding, None)
        for condition in self._conditions.pop(binding).under:
            bindings = self._under[condition]
            del bindings[binding]
            if not bindings:
                del self._under[condition]

    def match(self, routing_keys: Sequence[str], message: Message) -> Collection[Binding]:
        found = list(self._always)
        if not self._under:
            return found
        headers = {key: comparable(value) for key, value in message.headers().items()}
        for condition in _met(headers):
            for binding, conditions in self._under.get(condition, {}).items():
                if conditions.hold(headers):
                    found.append(binding)
        return found

    def _rarest(self, conditions: list[_Condition]) -> list[_Condition]:
        """The condition with the fewest bindings under it; one that asks for a value, if any."""

        def cost(condition: _Condition) -> tuple[bool, int]:
            return condition[1] is None, len(self._under.get(condition, ()))

        return [min(conditions, key=cost)] if conditions else []


def _met(headers: Mapping[str, Hashable]) -> Iterable[_Condition]:
    """The conditions that a message with these headers meets."""
    for key, value in headers.items():
        yield key, None
        if value is not None:
            yield key, value
