"""What routing refuses: pure exceptions without reply codes.

They say what is impossible; which reply code and scope a client sees is the broker's business.
"""


class RoutingError(Exception):
    """Something asked of a routing table is impossible. Nothing was changed."""


class UnknownExchangeType(RoutingError):
    """No exchange type has this name."""

    def __init__(self, type_name: str) -> None:
        super().__init__(f"unknown exchange type '{type_name}'")
        self.type_name = type_name


class MissingExchange(RoutingError):
    """The table has no exchange of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no exchange '{name}'")
        self.name = name


class MissingQueue(RoutingError):
    """The table has no queue of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no queue '{name}'")
        self.name = name


class DefaultExchangeForbidden(RoutingError):
    """The default exchange cannot be declared, deleted, bound or unbound."""

    def __init__(self) -> None:
        super().__init__("operation not permitted on the default exchange")


class InvalidBinding(RoutingError):
    """The source's exchange type cannot work with these arguments; str() is RabbitMQ's text."""
