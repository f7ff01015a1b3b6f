"""Connections, their channels, and the consumers on these."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from qlog.server.broker.operations import Connected, ListedChannel
from qlog.server.http.answers import NO_CONTENT, Answer, Listing
from qlog.server.http.ask import Ask
from qlog.server.http.refusals import not_authorised, not_found
from qlog.server.http.spans import spans
from qlog.server.http.table import HISTORY, LISTED, Endpoint

CLOSED = "Closed via management plugin"


def _connections(ask: Ask) -> Iterator[Connected]:
    """Those that the user may see: all, or the user's own."""
    vhosts = {vhost.name for vhost in ask.vhosts()} if "vhost" in ask.path else None
    for client in ask.operations.connections():
        if not client.is_open or client.vhost is None:
            continue
        if vhosts is not None and client.vhost.name not in vhosts:
            continue
        if ask.identity.monitor or client.user.name == ask.identity.name:
            yield client


def _connection(ask: Ask) -> Connected:
    """The connection of that name. Raises 401 and 404."""
    for client in ask.operations.connections():
        if client.is_open and client.name == ask.path["connection"]:
            if not (ask.identity.monitor or client.user.name == ask.identity.name):
                raise not_authorised("User not authorised to access object")
            return client
    raise not_found()


async def list_connections(ask: Ask) -> Listing[Connected]:
    """All connections."""
    return Listing(
        _connections(ask),
        partial(ask.operations.connection_facts, spans=spans(ask)),
        name=lambda client: client.name,
        order=lambda client: client.name,
        paged=True,
    )


async def show_connection(ask: Ask) -> dict[str, Any]:
    """One connection."""
    return ask.operations.connection_facts(_connection(ask), spans=spans(ask))


async def close_connection(ask: Ask) -> Answer:
    """Close a connection; the header X-Reason is told to the client."""
    reason = ask.headers.get("x-reason") or CLOSED
    ask.operations.close_connection(_connection(ask), reason)
    ask.wake()
    return NO_CONTENT


async def list_connections_of_user(ask: Ask) -> Listing[Connected]:
    """The connections of a user."""
    return Listing(
        (client for client in _connections(ask) if client.user.name == ask.path["user"]),
        lambda client: {name: client.facts()[name] for name in ("name", "node", "user", "vhost")},
    )


async def close_connections_of_user(ask: Ask) -> Answer:
    """Close the connections of a user."""
    reason = ask.headers.get("x-reason") or CLOSED
    for client in _connections(ask):
        if client.user.name == ask.path["user"]:
            ask.operations.close_connection(client, reason)
    ask.wake()
    return NO_CONTENT


def _channels(ask: Ask) -> Iterator[ListedChannel]:
    for client in _connections(ask):
        yield from ask.operations.channels(client)


async def list_channels(ask: Ask) -> Listing[ListedChannel]:
    """All channels."""
    return _listed(ask, _channels(ask))


async def list_channels_of_connection(ask: Ask) -> Listing[ListedChannel]:
    """The channels of a connection."""
    return _listed(ask, ask.operations.channels(_connection(ask)))


def _listed(ask: Ask, channels: Iterator[ListedChannel]) -> Listing[ListedChannel]:
    return Listing(
        channels,
        partial(ask.operations.channel_facts, spans=spans(ask)),
        name=lambda channel: channel.name,
        order=lambda channel: channel.name,
        paged=True,
    )


async def show_channel(ask: Ask) -> dict[str, Any]:
    """One channel."""
    wanted = ask.path["channel"]
    for channel in _channels(ask):
        if channel.name == wanted:
            consumers = [consumer.facts() for consumer in channel.consumers.values()]
            facts = ask.operations.channel_facts(channel, spans=spans(ask))
            return {**facts, "consumer_details": consumers, "publishes": [], "deliveries": []}
    raise not_found()


async def list_consumers(ask: Ask) -> Listing[Any]:
    """All consumers."""
    return Listing(
        (consumer for channel in _channels(ask) for consumer in list(channel.consumers.values())),
        lambda consumer: consumer.facts(),
    )


ENDPOINTS = [
    Endpoint("GET", "/connections", list_connections, "All connections", query=LISTED),
    Endpoint(
        "GET", "/vhosts/{vhost}/connections", list_connections, "Those in a vhost", query=LISTED
    ),
    Endpoint("GET", "/connections/{connection}", show_connection, "One connection", query=HISTORY),
    Endpoint(
        "DELETE", "/connections/{connection}", close_connection, "Close a connection", status=204
    ),
    Endpoint("GET", "/connections/username/{user}", list_connections_of_user, "Those of a user"),
    Endpoint(
        "DELETE",
        "/connections/username/{user}",
        close_connections_of_user,
        "Close those of a user",
        status=204,
    ),
    Endpoint(
        "GET",
        "/connections/{connection}/channels",
        list_channels_of_connection,
        "The channels of a connection",
    ),
    Endpoint("GET", "/channels", list_channels, "All channels", query=LISTED),
    Endpoint("GET", "/vhosts/{vhost}/channels", list_channels, "Those in a vhost", query=LISTED),
    Endpoint("GET", "/channels/{channel}", show_channel, "One channel", query=HISTORY),
    Endpoint("GET", "/consumers", list_consumers, "All consumers"),
    Endpoint("GET", "/consumers/{vhost}", list_consumers, "The consumers of a vhost"),
]
