"""The application: who asks, which endpoint, what it answers. An ASGI app, without sockets.

Promises that every answer but a success is JSON with `error` and `reason` (or empty, as
RabbitMQ's), that an error of ours is a 500 without a word of it, and that no answer lets another
site in (no CORS headers).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import trio
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse

from qlog.server.amqp.errors import AMQPError
from qlog.server.broker.operations import Actor, InvalidParameter, Operations, Refused
from qlog.server.http.access import (
    NOBODY,
    THE_OWNER,
    Identity,
    credentials,
    wrong_credentials,
)
from qlog.server.http.answers import Answer, Listing, chunks, encode
from qlog.server.http.ask import Ask, settled
from qlog.server.http.context import Context
from qlog.server.http.listing import answer_listing, reduced, split_columns
from qlog.server.http.query import Query
from qlog.server.http.refusals import (
    Refusal,
    bad_request,
    not_authorised,
    not_found,
    refused_by_broker,
)
from qlog.server.http.table import Endpoint, Table

logger = logging.getLogger("qlog.http")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PREFIX = "/api"
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Api:
    """The management API over one kind of listener.

    `by_owner`: who can connect is the owner of the data directory, and needs no password. `table`
    has the endpoints below `/api`, `pages` those beside. `context` is what handlers need beside
    operations. `wake` has the broker's loop look at what was changed.
    """

    operations: Operations
    table: Table
    pages: Table
    wake: Callable[[], None]
    context: Context
    by_owner: bool = False

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            answer = await self._answered(scope, receive)
        except trio.Cancelled:
            raise
        except Exception:
            logger.exception("internal error path=%s", scope.get("path"))
            answer = Answer(500, encode({"error": "internal_server_error", "reason": ""}))
        await respond(answer, scope, receive, send)

    async def _answered(self, scope: Mapping[str, Any], receive: Receive) -> Answer:
        try:
            return await self._handled(scope, receive)
        except Refusal as refusal:
            return refused(refusal)
        except AMQPError as error:
            return refused(refused_by_broker(error))
        except InvalidParameter as error:
            return refused(bad_request(str(error)))

    async def _handled(self, scope: Mapping[str, Any], receive: Receive) -> Answer:
        raw_path = scope["raw_path"].partition(b"?")[0].decode("ascii", "replace")
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        headers = Headers(raw=list(scope["headers"]))
        if raw_path == PREFIX or raw_path.startswith(f"{PREFIX}/"):
            endpoints, values = self.table.find(raw_path[len(PREFIX) :])
        else:
            endpoints, values = self.pages.find(raw_path)
        if not endpoints:
            raise not_found()
        allow = ", ".join(_allowed(endpoints))
        if method == "OPTIONS":
            return Answer(200, headers={"allow": allow})
        endpoint = endpoints.get(method)
        if endpoint is None:
            return Answer(405, headers={"allow": allow})
        path = dict(zip(endpoint.parameters, values, strict=True))
        identity = await self._identity(endpoint, headers, scope)
        query = Query(scope["query_string"])
        ask = Ask(
            self.operations.by(identity.actor),
            identity,
            method,
            path,
            query,
            receive,
            self.wake,
            headers,
            self.context,
        )
        _check(ask, endpoint)
        try:
            return await _encoded(await endpoint.handler(ask), ask)
        finally:
            ask.done()

    async def _identity(
        self, endpoint: Endpoint, headers: Headers, scope: Mapping[str, Any]
    ) -> Identity:
        if self.by_owner:
            return THE_OWNER
        if endpoint.tag == "any":
            return NOBODY
        name, password = credentials(headers.get("authorization"))
        client = scope.get("client")
        host = client[0] if client else ""
        context = self.context
        login = self.operations.authenticate(
            name, password, address=host, loopback=context.is_loopback(host)
        )
        try:
            user = await settled(login, self.wake)
        except Refused:
            context.attempts.failed += 1
            raise wrong_credentials() from None
        context.attempts.succeeded += 1
        actor = Actor.of(user, f"HTTP {host}")
        return Identity(user.name, frozenset(user.tags), user.permissions, actor)


def _check(ask: Ask, endpoint: Endpoint) -> None:
    """Whether the user may ask for this. Raises 401 and 404."""
    ask.identity.check(endpoint.tag)
    if "vhost" not in ask.path or endpoint.tag in ("any", "administrator"):
        return
    name = ask.path["vhost"]
    if not any(vhost.name == name for vhost in ask.operations.vhosts()):
        if ask.method == "GET":
            raise not_found()
        return
    lets_in = ask.identity.sees if endpoint.method == "GET" else ask.identity.enters
    if not lets_in(name):
        raise not_authorised("User not authorised to access virtual host")


def _allowed(endpoints: Mapping[str, Endpoint]) -> list[str]:
    methods = ["HEAD"] if "GET" in endpoints else []
    methods += [name for name in ("GET", "POST", "PUT", "DELETE") if name in endpoints]
    return [*methods, "OPTIONS"]


async def _encoded(value: Any, ask: Ask) -> Answer:
    if isinstance(value, Answer):
        return value
    if isinstance(value, Listing):
        return await answer_listing(value, ask.query)
    if isinstance(value, Mapping) and "columns" in ask.query:
        value = reduced(value, split_columns(ask.query))
    return Answer(body=encode(value))


def refused(refusal: Refusal) -> Answer:
    """The answer that says no."""
    body = b"" if refusal.document is None else encode(refusal.document)
    return Answer(refusal.status, body, headers=refusal.headers)


async def respond(answer: Answer, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
    """Send an answer; what comes in pieces is sent as it comes."""
    headers = {**_HEADERS, **answer.headers}
    if isinstance(answer.body, bytes):
        has_type = answer.content_type if answer.body else None
        await Response(answer.body, answer.status, headers, has_type)(dict(scope), receive, send)
        return
    async with aclosing(chunks(answer.body)) as body:
        response = StreamingResponse(body, answer.status, headers, answer.content_type)
        await response.stream_response(send)
