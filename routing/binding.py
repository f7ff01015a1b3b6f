"""A binding, and what makes two of them the same one.

Promises that two bindings are equal when source, destination, routing key and arguments are, the
arguments compared as AMQP does and not as Python does (True is not 1, 1 is not 1.0).
Does not know what an exchange type makes of a routing key or of arguments.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

DestinationKind = Literal["queue", "exchange"]

NO_ARGUMENTS: Mapping[str, object] = MappingProxyType({})


def comparable(value: object) -> Hashable:
    """Return a stand-in for a field value, equal to another's if the values are equal in AMQP.

    Numbers compare within their class: integers whatever their width, floats whatever their
    width, booleans apart from both. As in RabbitMQ a text equals the same octets sent as binary,
    and a timestamp (an int of seconds) equals that integer. Unlike there, 1 is not 1.0, tables
    compare without regard to the order of their keys, and widths do not count inside arrays and
    tables either: a client library chooses those for its user.

    >>> comparable(1) == comparable(True), comparable(1) == comparable(1.0)
    (False, False)
    """
    match value:
        case None | bytes():
            return value
        case str():
            return value.encode()
        case bool():
            return ("bool", value)
        case int():
            return ("int", int(value))
        case float():
            return ("float", float(value))
        case list() | tuple():
            return ("array", tuple(map(comparable, value)))
        case Mapping():
            return ("table", frozenset((key, comparable(item)) for key, item in value.items()))
        case Hashable():
            return (type(value).__name__, value)  # decimal, datetime
    raise TypeError(f"not a field value: {type(value).__name__}")


@dataclass(frozen=True, slots=True)
class Binding:
    """From `source`, an exchange, to the queue or exchange `destination`.

    `arguments` are kept as given and must not be changed afterwards. `place` is where the type of
    the source has put the binding among others, for types that must know it again after a restart.
    """

    source: str
    kind: DestinationKind
    destination: str
    routing_key: str
    arguments: Mapping[str, object] = field(default_factory=lambda: NO_ARGUMENTS, compare=False)
    place: int | None = field(default=None, compare=False)
    _arguments_key: Hashable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        key = comparable(self.arguments) if self.arguments else None
        object.__setattr__(self, "_arguments_key", key)
