"""Health checks, with what RabbitMQ 4.0.5 answered."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.http.support import Site

OK = {"status": "ok"}
UNITS = "Time unit not recognised. Supported units: days, weeks, months, years."


@pytest.mark.parametrize(
    ("check", "status", "document"),
    [
        ("alarms", 200, OK),
        ("local-alarms", 200, OK),
        ("virtual-hosts", 200, OK),
        ("node-is-quorum-critical", 200, {**OK, "reason": "single node cluster"}),
        ("port-listener/5672", 200, {**OK, "port": 5672}),
        (
            "port-listener/99",
            503,
            {
                "status": "failed",
                "reason": "No active listener",
                "missing": 99,
                "ports": [5672, 15672],
            },
        ),
        ("port-listener/x", 400, {"error": "bad_request", "reason": "Invalid port"}),
        ("protocol-listener/amqp091", 200, {**OK, "protocol": "amqp"}),
        (
            "protocol-listener/mqtt",
            503,
            {
                "status": "failed",
                "reason": "No active listener",
                "missing": "mqtt",
                "protocols": ["amqp", "http"],
            },
        ),
        ("certificate-expiration/1/days", 200, OK),
        ("certificate-expiration/99999/years", 400, None),
        (
            "certificate-expiration/x/days",
            400,
            {"error": "bad_request", "reason": "Invalid expiration value."},
        ),
        ("certificate-expiration/1/foo", 400, {"error": "bad_request", "reason": UNITS}),
        ("ready-to-serve-clients", 200, OK),
        ("is-in-service", 200, OK),
    ],
)
async def test_checks(site: Site, check: str, status: int, document: Any) -> None:
    reply = await site.ask("GET", f"health/checks/{check}")
    assert reply.status == status
    if document is not None:
        assert reply.document == document


async def test_alarms(site: Site) -> None:
    site.bench.broker.set_alarm("low on memory", True)
    site.bench.broker.set_alarm("low on disk", True)
    reply = await site.ask("GET", "health/checks/alarms")
    alarms = [{"node": "qlog", "resource": name} for name in ("memory", "disk space")]
    assert reply.status == 503
    assert reply.document == {
        "status": "failed",
        "reason": "There are alarms in effect in the cluster",
        "alarms": alarms,
    }
    reply = await site.ask("GET", "health/checks/local-alarms")
    assert reply.document["reason"] == "There are alarms in effect on the node"
    node = (await site.get("nodes"))[0]
    assert node["mem_alarm"] and node["disk_free_alarm"]
