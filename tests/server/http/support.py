"""The management API without sockets: a broker on a bench, asked in the process."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlog.server.http.context import Context, Listener
from qlog.server.http.management import management
from tests.server.broker.support import Bench, Peer

RESOURCES = {
    "memory_used": 100,
    "memory_limit": 1000,
    "disk_free": 5000,
    "disk_free_limit": 50,
    "descriptors_used": 7,
    "descriptors_max": 1024,
}


@dataclass(frozen=True)
class Reply:
    """What was answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The JSON of it."""
        return json.loads(self.body)

    @property
    def reason(self) -> Any:
        """Why not."""
        return self.document["reason"]


class Site:
    """A broker and its API."""

    def __init__(self, directory: Path) -> None:
        self.bench = Bench(directory)
        self.context = Context(
            is_loopback=lambda host: True,
            listeners=lambda: [
                Listener("amqp", "127.0.0.1", 5672),
                Listener("http", "127.0.0.1", 15672),
            ],
            resources=lambda: RESOURCES,
            uptime_s=lambda: 12.5,
            data_dir=str(directory),
            definitions=self.bench.broker,
        )
        operations = self.bench.broker.operations
        self.api = management(operations, self.context, self.wake)
        self.owners = management(operations, self.context, self.wake, by_owner=True)

    def wake(self) -> None:
        """Turns until all is done that was asked for, however slow the machine is."""
        self.bench.disk()
        while self.bench.broker.services.jobs:
            self.bench.finish_jobs()
            self.bench.disk()

    def peer(self, vhost: str = "/") -> Peer:
        """A client that has logged in."""
        return Peer(self.bench, vhost=vhost)

    async def ask(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        login: str | None = "guest:guest",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        owner: bool = False,
    ) -> Reply:
        """One request; `path` is as in the request line, below /api unless it begins with /."""
        raw, _, query = path.partition("?")
        raw = raw if raw.startswith("/") else f"/api/{raw}"
        if body is None:
            body = b"" if document is None else json.dumps(document).encode()
        sent = {**(headers or {})}
        if login is not None:
            sent["authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        scope = {
            "type": "http",
            "method": method,
            "path": raw,
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), text.encode()) for name, text in sent.items()],
            "client": ("127.0.0.1", 50000),
        }
        messages: list[dict[str, Any]] = []
        asked = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            return next(asked)

        async def send(message: Any) -> None:
            messages.append(message)

        await (self.owners if owner else self.api)(scope, receive, send)
        start = messages[0]
        answered = {name.decode(): text.decode() for name, text in start["headers"]}
        octets = b"".join(message.get("body", b"") for message in messages[1:])
        return Reply(start["status"], answered, octets)

    async def get(self, path: str, **options: Any) -> Any:
        """The document of a successful GET."""
        reply = await self.ask("GET", path, **options)
        assert reply.status == 200, reply
        return reply.document
