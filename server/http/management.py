"""The management API as a whole: the table of all endpoints, and the applications to serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qlog.server.broker.operations import Operations
from qlog.server.http import qlog
from qlog.server.http.api import Api
from qlog.server.http.ask import Ask
from qlog.server.http.context import Context
from qlog.server.http.endpoints import (
    adoption,
    backups,
    connections,
    definitions,
    exchanges,
    health,
    messages,
    node,
    overview,
    own,
    parameters,
    policies,
    queues,
    users,
    vhosts,
)
from qlog.server.http.metrics.endpoints import METRICS
from qlog.server.http.openapi import document
from qlog.server.http.pages import PAGES
from qlog.server.http.table import Endpoint, Table


async def openapi(ask: Ask) -> dict[str, Any]:
    """The description of the API, for tools."""
    return document(TABLE.endpoints)


TABLE = Table(
    [
        Endpoint("GET", "/openapi.json", openapi, "The description of the API", tag="any"),
        *overview.ENDPOINTS,
        *queues.ENDPOINTS,
        *exchanges.ENDPOINTS,
        *connections.ENDPOINTS,
        *vhosts.ENDPOINTS,
        *users.ENDPOINTS,
        *policies.ENDPOINTS,
        *parameters.ENDPOINTS,
        *node.ENDPOINTS,
        *definitions.ENDPOINTS,
        *own.ENDPOINTS,
        *health.ENDPOINTS,
        *backups.ENDPOINTS,
        *qlog.ENDPOINTS,
        *messages.ENDPOINTS,
        *adoption.ENDPOINTS,
    ]
)


def metrics(operations: Operations, context: Context, wake: Callable[[], None]) -> Api:
    """The application for Prometheus."""
    return Api(operations, Table([]), Table(METRICS), wake, context)


def management(
    operations: Operations, context: Context, wake: Callable[[], None], *, by_owner: bool = False
) -> Api:
    """The application for clients over TCP, or (`by_owner`) for the socket of the owner."""
    return Api(operations, TABLE, Table(PAGES), wake, context, by_owner)
