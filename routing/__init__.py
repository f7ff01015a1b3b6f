"""Which queues a message goes to: names in, names out. Pure."""

from qlog.routing.binding import Binding, DestinationKind
from qlog.routing.errors import (
    DefaultExchangeForbidden,
    InvalidArguments,
    InvalidBinding,
    MissingExchange,
    MissingQueue,
    RoutingError,
    UnknownExchangeType,
)
from qlog.routing.exchange import PREDECLARED, TYPES, Exchange
from qlog.routing.table import Removed, Routed, RoutingTable

__all__ = [
    "PREDECLARED",
    "TYPES",
    "Binding",
    "DefaultExchangeForbidden",
    "DestinationKind",
    "Exchange",
    "InvalidArguments",
    "InvalidBinding",
    "MissingExchange",
    "MissingQueue",
    "Removed",
    "Routed",
    "RoutingError",
    "RoutingTable",
    "UnknownExchangeType",
]
