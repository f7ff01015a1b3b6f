"""Connections, channels and consumers as operators see them: JSON with RabbitMQ's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from qlog.server.amqp.connection import Connection
from qlog.server.amqp.values import Table
from qlog.server.broker.access.certificate import Secured
from qlog.server.broker.features.firehose import NODE
from qlog.server.broker.listings.values import delivery_counts, json_value
from qlog.server.broker.queues.type import QueueType, Taker
from qlog.server.broker.stats import Counts, Traffic


class Named(Protocol):
    """Something with a name."""

    @property
    def name(self) -> str: ...


class ShownConnection(Protocol):
    """What is shown of a connection."""

    protocol: Connection
    properties: Table
    traffic: Traffic
    secured: Secured | None
    peer: str
    local: str
    connected_at_ms: int

    @property
    def name(self) -> str: ...

    @property
    def user(self) -> Named: ...

    @property
    def vhost(self) -> Named | None: ...

    @property
    def mechanism(self) -> str: ...

    @property
    def blocked(self) -> bool: ...

    @property
    def channels(self) -> Mapping[int, object]: ...


class ShownUnacked(Protocol):
    """What is out on a channel."""

    by_consumers: int
    by_gets: int
    prefetch: int


class ShownTransaction(Protocol):
    """What tx.commit waits for."""

    @property
    def message_count(self) -> int: ...

    @property
    def settlement_count(self) -> int: ...


class ShownConfirms(Protocol):
    """The confirms of a channel."""

    selected: bool
    confirmed: int

    @property
    def published(self) -> int: ...

    @property
    def waiting(self) -> int: ...


class ShownPublisher(Protocol):
    """What is shown of the publishing half of a channel."""

    returned: int
    dropped: int

    @property
    def confirms(self) -> ShownConfirms: ...

    @property
    def transaction(self) -> ShownTransaction | None: ...


class ShownChannel(Protocol):
    """What is shown of a channel."""

    number: int
    counts: Counts

    @property
    def name(self) -> str: ...

    @property
    def client(self) -> Any: ...

    @property
    def vhost(self) -> Named: ...

    @property
    def consumers(self) -> Mapping[str, object]: ...

    @property
    def outstanding(self) -> ShownUnacked: ...

    @property
    def publisher(self) -> ShownPublisher: ...

    @property
    def prefetch(self) -> int: ...


class ShownConsumer(Taker, Protocol):
    """What is shown of a consumer."""

    @property
    def queue(self) -> QueueType: ...


def address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`; what has no port is all host."""
    host, colon, port = text.rpartition(":")
    return (host, int(port)) if colon and port.isdigit() else (text, 0)


def connection_facts(client: ShownConnection) -> dict[str, Any]:
    """One connection."""
    peer_host, peer_port = address(client.peer)
    host, port = address(client.local)
    core, traffic = client.protocol, client.traffic
    return {
        "name": client.name,
        "node": NODE,
        "vhost": "" if client.vhost is None else client.vhost.name,
        "user": client.user.name,
        "user_who_performed_action": client.user.name,
        "peer_host": peer_host,
        "peer_port": peer_port,
        "host": host,
        "port": port,
        "protocol": "AMQP 0-9-1",
        "auth_mechanism": client.mechanism,
        **_tls_facts(client.secured),
        "channels": len(client.channels),
        "channel_max": core.channel_max,
        "frame_max": core.frame_max,
        "timeout": core.heartbeat_s,
        "state": "blocked" if client.blocked else "running",
        "type": "network",
        "connected_at": client.connected_at_ms,
        "client_properties": json_value(client.properties),
        "recv_cnt": traffic.recv_cnt,
        "recv_oct": traffic.recv_oct,
        "send_cnt": traffic.send_cnt,
        "send_oct": traffic.send_oct,
        "send_pend": traffic.send_pend,
    }


def _tls_facts(secured: Secured | None) -> dict[str, Any]:
    """How a connection is encrypted, and whom the client's certificate names."""
    certificate = None if secured is None else secured.certificate
    validity = None
    if certificate is not None:
        validity = f"{certificate.valid_from} - {certificate.valid_to}"
    return {
        "ssl": secured is not None,
        "ssl_protocol": None if secured is None else secured.protocol,
        "ssl_key_exchange": None,
        "ssl_cipher": None if secured is None else secured.cipher,
        "ssl_hash": None,
        "peer_cert_subject": None if certificate is None else certificate.subject,
        "peer_cert_issuer": None if certificate is None else certificate.issuer,
        "peer_cert_validity": validity,
    }


def channel_details(channel: ShownChannel) -> dict[str, Any]:
    """Which channel it is, in the listing of consumers."""
    client = channel.client
    peer_host, peer_port = address(client.peer)
    return {
        "name": channel.name,
        "number": channel.number,
        "connection_name": client.name,
        "peer_host": peer_host,
        "peer_port": peer_port,
        "user": client.user.name,
        "node": NODE,
    }


def channel_facts(channel: ShownChannel) -> dict[str, Any]:
    """One channel."""
    client, publisher = channel.client, channel.publisher
    transaction = publisher.transaction
    peer_host, peer_port = address(client.peer)
    outstanding = channel.outstanding
    return {
        "name": channel.name,
        "number": channel.number,
        "node": NODE,
        "vhost": channel.vhost.name,
        "user": client.user.name,
        "user_who_performed_action": client.user.name,
        "state": "running",
        "connection_details": {
            "name": client.name,
            "peer_host": peer_host,
            "peer_port": peer_port,
        },
        "consumer_count": len(channel.consumers),
        "prefetch_count": channel.prefetch,
        "global_prefetch_count": outstanding.prefetch,
        "messages_unacknowledged": outstanding.by_consumers + outstanding.by_gets,
        "messages_unconfirmed": publisher.confirms.waiting,
        "messages_uncommitted": 0 if transaction is None else transaction.message_count,
        "acks_uncommitted": 0 if transaction is None else transaction.settlement_count,
        "confirm": publisher.confirms.selected,
        "transactional": transaction is not None,
        "message_stats": channel_counts(channel),
    }


def channel_counts(channel: ShownChannel) -> dict[str, int]:
    """What passed a channel; RabbitMQ leaves out what a channel has never done."""
    counts, publisher = channel.counts, channel.publisher
    found: dict[str, int] = {}
    if publisher.confirms.published:
        found["publish"] = publisher.confirms.published
        found["confirm"] = publisher.confirms.confirmed
        found["return_unroutable"] = publisher.returned
        found["drop_unroutable"] = publisher.dropped
    found |= delivery_counts(counts)
    return found


def consumer_facts(consumer: ShownConsumer, details: dict[str, Any]) -> dict[str, Any]:
    """One consumer; `details` say which channel it is on."""
    queue = consumer.queue
    active = queue.active_taker
    is_active = active is None or active is consumer
    return {
        "consumer_tag": consumer.tag,
        "ack_required": not consumer.no_ack,
        "exclusive": consumer.exclusive,
        "prefetch_count": consumer.prefetch,
        "arguments": json_value(consumer.arguments),
        "active": is_active,
        "activity_status": "single_active" if active is consumer else _status(is_active),
        "consumer_timeout": round(consumer.timeout_s * 1000),
        "queue": {"name": queue.name, "vhost": queue.declared.vhost},
        "channel_details": details,
    }


def _status(is_active: bool) -> str:
    return "up" if is_active else "waiting"
