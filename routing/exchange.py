"""An exchange, the contract of an exchange type, and the table of types.

A new type is a file with a class that keeps the contract, and a line in `TYPES`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from qlog.routing.binding import NO_ARGUMENTS, Binding
from qlog.routing.consistent_hash import ConsistentHash
from qlog.routing.deduplication import DEDUPLICATION, Deduplication, window_of
from qlog.routing.delayed import DELAYED, delayed_type
from qlog.routing.direct import Direct
from qlog.routing.errors import UnknownExchangeType
from qlog.routing.fanout import Fanout
from qlog.routing.headers import Headers
from qlog.routing.message import Message
from qlog.routing.modulus_hash import ModulusHash
from qlog.routing.random import LocalRandom, Random
from qlog.routing.recent_history import RECENT_HISTORY, RecentHistory
from qlog.routing.topic import Topic


class Matcher(Protocol):
    """An exchange type: the bindings of one exchange, arranged for finding those that match."""

    def __init__(self, arguments: Mapping[str, object] = NO_ARGUMENTS) -> None:
        """`arguments` are the exchange's. Raises InvalidArguments."""

    @property
    def cacheable(self) -> bool:
        """What matches depends on the routing keys alone, so that callers may remember it."""

    def add(self, binding: Binding, place: int | None = None) -> int | None:
        """Take in a binding that is not here yet. Raises InvalidBinding, having changed nothing.

        Returns the place of the binding, if the type has places that last; after a restart the
        binding is added with its `place`, those that have one before all others.
        """

    def remove(self, binding: Binding) -> None:
        """Forget a binding that is here."""

    def match(self, routing_keys: Sequence[str], message: Message) -> Collection[Binding]:
        """Return the bindings that match any of the keys, or what else is in the message.

        The first key is the message's own, the others are those of CC and BCC.

        The result may be a view of the matcher's own state: read it before the next change. A
        binding may be in it twice.
        """


TOPIC = "topic"
ALTERNATE = "alternate-exchange"  # the argument
LOCAL_RANDOM = "x-local-random"


def _delayed(arguments: Mapping[str, object]) -> Matcher:
    """The matcher of the type that an `x-delayed-message` exchange routes by."""
    name = delayed_type(arguments)
    assert_type(name)
    return TYPES[name](arguments)


# Each gets the arguments of the exchange. Raises InvalidArguments, UnknownExchangeType.
TYPES: Mapping[str, Callable[[Mapping[str, object]], Matcher]] = {
    "direct": Direct,
    "fanout": Fanout,
    "headers": Headers,
    TOPIC: Topic,
    "x-consistent-hash": ConsistentHash,
    DEDUPLICATION: Deduplication,
    DELAYED: _delayed,
    LOCAL_RANDOM: LocalRandom,
    "x-modulus-hash": ModulusHash,
    "x-random": Random,
    RECENT_HISTORY: RecentHistory,
}


def assert_type(name: str) -> None:
    """Raises UnknownExchangeType."""
    if name not in TYPES:
        raise UnknownExchangeType(name)


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange as declared. `arguments` must not be changed afterwards."""

    name: str
    type: str
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False
    arguments: Mapping[str, object] = field(default_factory=lambda: NO_ARGUMENTS)

    @property
    def alternate(self) -> str | None:
        """The exchange that gets what this one has no binding for, by argument.

        None if that is the default exchange: RabbitMQ finds no queue through it as an alternate.
        """
        name = self.arguments.get(ALTERNATE)
        if isinstance(name, bytes):
            return None  # it is not UTF-8: no exchange has such a name
        assert name is None or isinstance(name, str), "the broker checks the argument's type"
        return name or None

    @property
    def gated(self) -> bool:
        """Not every message that comes is routed at once: the broker says which ones are.

        Raises InvalidArguments.
        """
        return self.type == DELAYED or window_of(self.type, self.arguments) is not None


# Every vhost has these from the beginning (RabbitMQ; AMQP 0-9-1, section 3.1.3).
PREDECLARED = (
    Exchange("", "direct"),
    Exchange("amq.direct", "direct"),
    Exchange("amq.fanout", "fanout"),
    Exchange("amq.headers", "headers"),
    Exchange("amq.match", "headers"),
    Exchange("amq.rabbitmq.trace", "topic", internal=True),
    Exchange("amq.topic", "topic"),
)
