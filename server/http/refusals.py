"""What is answered instead: statuses and texts as RabbitMQ's API has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlog.server.amqp.errors import AMQPError


class Refusal(Exception):
    """A request is not obeyed: the status, and the JSON of the answer."""

    def __init__(
        self,
        status: int,
        document: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, document)
        self.status = status
        self.document = document
        self.headers = dict(headers or {})


def refusal(status: int, error: str, reason: Any) -> Refusal:
    """An answer with `error` and `reason`."""
    return Refusal(status, {"error": error, "reason": reason})


def bad_request(reason: Any) -> Refusal:
    """400: the request makes no sense."""
    return refusal(400, "bad_request", reason)


def not_authorised(reason: str) -> Refusal:
    """401: the user may not do that."""
    return refusal(401, "not_authorised", reason)


def not_found() -> Refusal:
    """404: there is no such thing."""
    return refusal(404, "Object Not Found", "Not Found")


def refused_by_broker(error: AMQPError) -> Refusal:
    """What an operation refused, as RabbitMQ's API passes it on."""
    text = error.reply_text
    if error.code == 404:
        return refusal(404, "not_found", _said(text))
    if error.code == 403:
        return not_authorised("Access refused.")
    return bad_request(_said(text))


def _said(reply_text: str) -> str:
    """A reply text without its name."""
    return reply_text.partition(" - ")[2] or reply_text
