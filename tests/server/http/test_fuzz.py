"""Anything that the API's own description allows: no 5xx but that of health checks, no secret.

Few examples of each operation here; QLOG_FUZZ_EXAMPLES=200 looks longer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, settings

from qlog.server.http.management import TABLE
from qlog.server.http.openapi import document
from tests.server.http.support import Site

EXAMPLES = int(os.environ.get("QLOG_FUZZ_EXAMPLES", "2"))
# Names that lead somewhere, beside those that are made up.
NAMES = {
    "vhost": ["%2F", "v"],
    "queue": ["q"],
    "exchange": ["amq.default", "amq.topic", "x"],
    "destination": ["q", "x"],
    "kind": ["q", "e"],
    "node": ["qlog"],
    "user": ["guest", "u"],
    "component": ["vhost-limits", "operator_policy"],
    "limit": ["max-queues", "max-channels"],
    "unit": ["days", "years"],
}
SCHEMA: Any = schemathesis.openapi.from_dict(document(TABLE.endpoints))
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]
CASES = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A broker with something of everything."""
    site = Site(Path(tmp_path_factory.mktemp("fuzz")) / "data")

    async def fill() -> None:
        await site.ask("PUT", "vhosts/v", {})
        await site.ask("PUT", "users/u", {"password": "hush-hush", "tags": "management"})
        for vhost in ("%2F", "v"):
            await site.ask("PUT", f"queues/{vhost}/q", {"durable": True})
            await site.ask("PUT", f"exchanges/{vhost}/x", {"type": "topic"})

    trio.run(fill)
    yield site
    site.bench.kill()


def known(path: str, number: int) -> str:
    """The path with names that lead somewhere."""
    parts = path.split("/")
    for place, part in enumerate(parts):
        if part.startswith("{"):
            names = NAMES.get(part[1:-1], ["n"])
            parts[place] = names[number % len(names)]
    return "/".join(parts)


def keeps_running(method: str, path: str, body: Any) -> bool:
    """Not asked: to delete the user and the vhost that everything else is asked with."""
    if method == "DELETE" and path in ("/api/vhosts/%2F", "/api/users/guest"):
        return False
    return not (path.endswith("bulk-delete") and "guest" in json.dumps(body, default=str))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method} {each.path}")
def test_operations(fuzzed: Site, operation: Any) -> None:
    numbers = iter(range(1_000_000))

    @CASES
    @given(case=operation.as_strategy())
    def run(case: Any) -> None:
        number = next(numbers)
        path = case.formatted_path if number % 3 == 0 else known(operation.path, number)
        query = case.query or {}
        body = b""
        if isinstance(case.body, dict | list | str | int | float):
            body = json.dumps(case.body).encode()
        if not keeps_running(operation.method.upper(), path, case.body):
            return
        asked = f"{path}?{urlencode(query, errors='replace')}"

        async def ask() -> None:
            reply = await fuzzed.ask(operation.method.upper(), asked, body=body, owner=True)
            allowed = {int(status) for status in operation.definition.raw["responses"]}
            assert reply.status in allowed | {404, 405}, (asked, body, reply)
            assert reply.status < 500 or "health/checks" in path
            assert b"Traceback" not in reply.body
            assert b"hush-hush" not in reply.body
            if reply.status in (400, 404):
                assert {"error", "reason"} <= reply.document.keys()

        trio.run(ask)

    run()
