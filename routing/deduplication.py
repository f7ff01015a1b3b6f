"""The exchange `x-message-deduplication`: a fanout that passes each message once.

Messages are told apart by a header. An exchange of any other type does the same if its argument
`x-message-deduplication` is true (LavinMQ). Which messages were seen is remembered by the broker
(`Exchange.gated`); this file says what the arguments mean. Texts are those of the community's
plugin rabbitmq_message_deduplication.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qlog.routing.binding import NO_ARGUMENTS
from qlog.routing.errors import InvalidArguments
from qlog.routing.fanout import Fanout

DEDUPLICATION = "x-message-deduplication"  # the type, and the argument
HEADER = "x-deduplication-header"  # what a message is known by; and the argument that renames it
TTL = "x-cache-ttl"
SIZE = "x-cache-size"
_SIZE_DEFAULT = 128  # LavinMQ's, where the size is no required argument
_PERSISTENCE = "x-cache-persistence"


class Window(NamedTuple):
    """What is remembered: the newest `size` messages, each for `ttl_ms`, or until it is pushed out.

    `header` is the name of the header by which messages are told apart.
    """

    size: int
    ttl_ms: int | None
    header: str


def window_of(type_: str, arguments: Mapping[str, object]) -> Window | None:
    """The window of an exchange, None if it passes duplicates. Raises InvalidArguments."""
    if type_ != DEDUPLICATION and arguments.get(DEDUPLICATION) is not True:
        return None
    size = _positive(arguments.get(SIZE))
    if size is None:
        if type_ == DEDUPLICATION or SIZE in arguments:
            raise InvalidArguments(
                f"Missing or invalid argument, '{SIZE}' must be an integer greater than 0"
            )
        size = _SIZE_DEFAULT
    ttl_ms = _positive(arguments.get(TTL))
    if ttl_ms is None and TTL in arguments:
        raise InvalidArguments(f"Invalid argument, '{TTL}' must be an integer greater than 0")
    if arguments.get(_PERSISTENCE, "disk") not in ("disk", "memory"):
        raise InvalidArguments(
            f"Invalid argument, '{_PERSISTENCE}' must be either 'disk' or 'memory'"
        )
    header = arguments.get(HEADER)
    return Window(size, ttl_ms, header if isinstance(header, str) else HEADER)


def _positive(value: object) -> int | None:
    """An integer above 0, or a text that is one; else None."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        return None
    return value


class Deduplication(Fanout):
    """The bindings of one exchange of the type."""

    def __init__(self, arguments: Mapping[str, object] = NO_ARGUMENTS) -> None:
        super().__init__(arguments)
        window_of(DEDUPLICATION, arguments)
