"""Vhosts, and what is set about them."""

from __future__ import annotations

from typing import Any

from qlog.server.broker.operations import VHost
from qlog.server.http.answers import Listing
from qlog.server.http.ask import Ask
from qlog.server.http.table import Endpoint


async def list_vhosts(ask: Ask) -> Listing[VHost]:
    """All vhosts."""
    return Listing(
        ask.vhosts(),
        ask.operations.vhost_facts,
        name=lambda vhost: vhost.name,
        order=lambda vhost: vhost.name,
    )


async def show_vhost(ask: Ask) -> dict[str, Any]:
    """One vhost."""
    return ask.operations.vhost_facts(ask.vhost())


ENDPOINTS = [
    Endpoint("GET", "/vhosts", list_vhosts, "All vhosts"),
    Endpoint("GET", "/vhosts/{vhost}", show_vhost, "One vhost"),
]
