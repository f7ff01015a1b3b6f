"""The exchange `x-delayed-message`: another exchange type, in front of which messages may wait.

The argument `x-delayed-type` names the type by which messages are routed. What waits, and for how
long, is the broker's business (`Exchange.gated`). Texts are those of RabbitMQ's plugin
rabbitmq_delayed_message_exchange.
"""

from collections.abc import Mapping

from qlog.routing.errors import InvalidArguments

DELAYED = "x-delayed-message"
_TYPE = "x-delayed-type"


def delayed_type(arguments: Mapping[str, object]) -> str:
    """The type that an exchange with these arguments routes by. Raises InvalidArguments.

    It may be a type that does not exist.
    """
    name = arguments.get(_TYPE)
    if name == DELAYED:
        raise InvalidArguments(f"Invalid argument, '{DELAYED}' can't be used for '{_TYPE}'")
    if not isinstance(name, str):
        raise InvalidArguments(f"Invalid argument, '{_TYPE}' must be an existing exchange type")
    return name
