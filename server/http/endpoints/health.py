"""Health checks: 200 with `ok`, or 503 with why not. A load balancer asks without words."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from typing import Any

from qlog.server.http.answers import Answer, encode
from qlog.server.http.ask import Ask
from qlog.server.http.refusals import bad_request
from qlog.server.http.table import Endpoint

# RabbitMQ's names of what an alarm is about.
_RESOURCES = {
    "low on memory": "memory",
    "low on disk": "disk space",
    "low on file descriptors": "file descriptors",
}
_PROTOCOLS = {
    "amqp091": "amqp",
    "amqp0.9.1": "amqp",
    "amqp0-9-1": "amqp",
    "amqps": "amqp/ssl",
    "amqp/tls": "amqp/ssl",
    "prometheus": "http/prometheus",
}
_UNITS = ("days", "weeks", "months", "years")
DIGITS_MAX = 5


def ok(**more: Any) -> dict[str, Any]:
    """All is well."""
    return {"status": "ok", **more}


def failed(reason: str, **more: Any) -> Answer:
    """Something is not."""
    return Answer(503, encode({"status": "failed", "reason": reason, **more}))


def _alarms(ask: Ask) -> list[dict[str, str]]:
    node = ask.operations.about().node
    return [
        {"node": node, "resource": _RESOURCES[name]}
        for name, on in ask.operations.alarms.items()
        if on
    ]


async def alarms(ask: Ask) -> dict[str, Any] | Answer:
    """No resource alarm."""
    on = _alarms(ask)
    return failed("There are alarms in effect in the cluster", alarms=on) if on else ok()


async def local_alarms(ask: Ask) -> dict[str, Any] | Answer:
    """No resource alarm on this node, which is the only one."""
    on = _alarms(ask)
    return failed("There are alarms in effect on the node", alarms=on) if on else ok()


async def virtual_hosts(ask: Ask) -> dict[str, Any]:
    """All vhosts are there: the broker would not run otherwise."""
    return ok()


async def quorum_critical(ask: Ask) -> dict[str, Any]:
    """Whether the node may be stopped without losing quorums."""
    return ok(reason="single node cluster")


async def port_listener(ask: Ask) -> dict[str, Any] | Answer:
    """Somebody listens on the port."""
    text = ask.path["port"]
    if not (text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX):
        raise bad_request("Invalid port")
    port = int(text)
    ports = sorted({listener.port for listener in ask.context.listeners()})
    if port not in ports:
        return failed("No active listener", missing=port, ports=ports)
    return ok(port=port)


async def protocol_listener(ask: Ask) -> dict[str, Any] | Answer:
    """Somebody listens for the protocol."""
    asked = ask.path["protocol"]
    protocol = _PROTOCOLS.get(asked.lower(), asked.lower())
    protocols = sorted({listener.protocol for listener in ask.context.listeners()})
    if protocol not in protocols:
        return failed("No active listener", missing=asked, protocols=protocols)
    return ok(protocol=protocol)


async def ready(ask: Ask) -> dict[str, Any] | Answer:
    """Clients are let in."""
    if not any(listener.protocol.startswith("amqp") for listener in ask.context.listeners()):
        return failed("The node is not ready to serve clients")
    return ok()


async def below_connection_limit(ask: Ask) -> dict[str, Any]:
    """There is room for more clients: without file descriptors there is an alarm."""
    connections = sum(1 for client in ask.operations.connections() if client.is_open)
    return ok(limit="infinity", connections=connections)


async def quorum_leaders(ask: Ask) -> dict[str, Any]:
    """Quorum queues have their leader here, always."""
    return ok()


async def certificate_expiration(ask: Ask) -> dict[str, Any] | Answer:
    """The certificates of TLS are valid for so long."""
    until = _later(datetime.now(UTC), ask.path["within"], ask.path["unit"])
    expired = [
        {
            "node": ask.operations.about().node,
            "certificate": certificate.path,
            "certificate_expires_on": datetime.fromtimestamp(certificate.ends_s, UTC).isoformat(),
        }
        for certificate in ask.context.certificates()
        if certificate.ends_s < until.timestamp()
    ]
    if expired:
        return failed("Certificates expiring", expired=expired)
    return ok()


def _later(now: datetime, within: str, unit: str) -> datetime:
    """So much later. Raises 400."""
    if unit not in _UNITS:
        raise bad_request(f"Time unit not recognised. Supported units: {', '.join(_UNITS)}.")
    if not (within.isascii() and within.isdigit() and len(within) <= DIGITS_MAX):
        raise bad_request("Invalid expiration value.")
    count = int(within)
    if unit in ("days", "weeks"):
        return now + timedelta(days=count * (7 if unit == "weeks" else 1))
    months = now.month - 1 + count * (12 if unit == "years" else 1)
    year, month = now.year + months // 12, months % 12 + 1
    if year > datetime.max.year:
        raise bad_request("Invalid expiration value.")
    return now.replace(
        year=year, month=month, day=min(now.day, calendar.monthrange(year, month)[1])
    )


def _check(name: str, handler: Any, summary: str) -> Endpoint:
    return Endpoint("GET", f"/health/checks/{name}", handler, summary, fails=(503,))


ENDPOINTS = [
    _check("alarms", alarms, "No resource alarm"),
    _check("local-alarms", local_alarms, "No resource alarm here"),
    _check("virtual-hosts", virtual_hosts, "All vhosts are there"),
    _check("node-is-quorum-critical", quorum_critical, "The node may be stopped"),
    _check("port-listener/{port}", port_listener, "Somebody listens on the port"),
    _check("protocol-listener/{protocol}", protocol_listener, "Somebody speaks the protocol"),
    _check("certificate-expiration/{within}/{unit}", certificate_expiration, "TLS stays possible"),
    _check("ready-to-serve-clients", ready, "Clients are let in"),
    _check("is-in-service", ready, "Clients are let in"),
    _check("below-node-connection-limit", below_connection_limit, "There is room for clients"),
    _check("quorum-queues-without-elected-leaders/all-vhosts", quorum_leaders, "All have a leader"),
    _check(
        "quorum-queues-without-elected-leaders/vhost/{vhost}", quorum_leaders, "All have a leader"
    ),
]
