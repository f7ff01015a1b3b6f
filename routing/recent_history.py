"""The exchange `x-recent-history`: a fanout whose newest messages new bindings get as well.

To keep the messages is the broker's business; the routing table says which exchanges of this type
a message has passed. (RabbitMQ's rabbitmq_recent_history_exchange.)
"""

from collections.abc import Mapping

from qlog.routing.binding import NO_ARGUMENTS
from qlog.routing.errors import InvalidArguments, erlang_term
from qlog.routing.fanout import Fanout

RECENT_HISTORY = "x-recent-history"
_LENGTH = "x-recent-history-length"
_LENGTH_DEFAULT = 20  # RabbitMQ's


def history_length(arguments: Mapping[str, object]) -> int:
    """How many messages an exchange with these arguments keeps. Raises InvalidArguments."""
    length = arguments.get(_LENGTH, _LENGTH_DEFAULT)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise InvalidArguments(
            f"Invalid argument {erlang_term(length)}, '{_LENGTH}' must be a positive integer"
        )
    return length


class RecentHistory(Fanout):
    """The bindings of one exchange."""

    def __init__(self, arguments: Mapping[str, object] = NO_ARGUMENTS) -> None:
        super().__init__(arguments)
        history_length(arguments)
