"""Exchanges and bindings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qlog.server.broker.operations import Binding, Exchange, VHost
from qlog.server.http.answers import Listing
from qlog.server.http.ask import Ask
from qlog.server.http.refusals import not_found
from qlog.server.http.table import Endpoint

DEFAULT_EXCHANGE = "amq.default"


def exchange_name(ask: Ask, parameter: str = "exchange") -> str:
    """The name in the path; the default exchange has one there, too."""
    name = ask.path[parameter]
    return "" if name == DEFAULT_EXCHANGE else name


def _exchanges(ask: Ask) -> Iterator[tuple[VHost, Exchange]]:
    for vhost in ask.vhosts():
        for exchange in ask.operations.exchanges(vhost):
            yield vhost, exchange


async def list_exchanges(ask: Ask) -> Listing[Any]:
    """All exchanges."""
    return Listing(
        _exchanges(ask),
        lambda pair: ask.operations.exchange_facts(*pair),
        name=lambda pair: pair[1].name,
        order=lambda pair: (pair[0].name, pair[1].name),
        paged=True,
    )


async def show_exchange(ask: Ask) -> dict[str, Any]:
    """One exchange."""
    vhost = ask.vhost()
    exchange = ask.operations.find_exchange(vhost, exchange_name(ask))
    if exchange is None:
        raise not_found()
    return {**ask.operations.exchange_facts(vhost, exchange), "incoming": [], "outgoing": []}


async def list_bindings(ask: Ask) -> Listing[Any]:
    """All bindings."""

    def bindings() -> Iterator[tuple[VHost, Binding]]:
        for vhost in ask.vhosts():
            for binding in ask.operations.bindings(vhost):
                yield vhost, binding

    return Listing(bindings(), lambda pair: ask.operations.binding_facts(*pair))


async def bindings_from(ask: Ask) -> Listing[Any]:
    """The bindings whose source an exchange is."""
    vhost = ask.vhost()
    return Listing(
        ask.operations.bindings_from(vhost, exchange_name(ask)),
        lambda binding: ask.operations.binding_facts(vhost, binding),
    )


async def bindings_to(ask: Ask) -> Listing[Any]:
    """The bindings whose destination an exchange is."""
    vhost = ask.vhost()
    return Listing(
        ask.operations.bindings_to(vhost, "exchange", exchange_name(ask)),
        lambda binding: ask.operations.binding_facts(vhost, binding),
    )


ENDPOINTS = [
    Endpoint("GET", "/exchanges", list_exchanges, "All exchanges"),
    Endpoint("GET", "/exchanges/{vhost}", list_exchanges, "The exchanges of a vhost"),
    Endpoint("GET", "/exchanges/{vhost}/{exchange}", show_exchange, "One exchange"),
    Endpoint(
        "GET",
        "/exchanges/{vhost}/{exchange}/bindings/source",
        bindings_from,
        "The bindings whose source it is",
    ),
    Endpoint(
        "GET",
        "/exchanges/{vhost}/{exchange}/bindings/destination",
        bindings_to,
        "The bindings whose destination it is",
    ),
    Endpoint("GET", "/bindings", list_bindings, "All bindings"),
    Endpoint("GET", "/bindings/{vhost}", list_bindings, "The bindings of a vhost"),
]
