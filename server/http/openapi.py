"""The OpenAPI document of the API, made of the table that requests are routed by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qlog import __version__
from qlog.server.http.table import Endpoint

_ERROR = {"$ref": "#/components/schemas/Error"}
_WHY = {
    400: "The request makes no sense",
    401: "Nobody, or somebody who may not do that",
    404: "There is no such thing",
    503: "The check has failed, or too many large requests are under way",
}
_TEXT = {"type": "string"}


def document(endpoints: Iterable[Endpoint], prefix: str = "/api") -> dict[str, Any]:
    """The document of these endpoints."""
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        path = paths.setdefault(prefix + endpoint.path, {})
        path[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "qlog",
            "version": __version__,
            "description": "RabbitMQ's management API, as qlog has it.",
        },
        "paths": paths,
        "security": [{"basic": []}],
        "components": {
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
            "schemas": {
                "Error": {
                    "type": "object",
                    "properties": {"error": _TEXT, "reason": {}},
                    "required": ["error", "reason"],
                }
            },
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": _identifier(endpoint),
        "tags": [endpoint.path.split("/")[1] or "root"],
        "description": (endpoint.handler.__doc__ or "").strip(),
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": _TEXT}
                for name in endpoint.parameters
            ),
            *(
                {"name": name, "in": "query", "schema": _TEXT, "description": text}
                for name, text in endpoint.query.items()
            ),
        ],
        "responses": _responses(endpoint),
    }
    if endpoint.tag == "any":
        operation["security"] = []
    else:
        operation["x-user-tag"] = endpoint.tag
    if endpoint.body is not None:
        schema: dict[str, Any] = {"type": "object", "properties": dict(endpoint.body)}
        if endpoint.required:
            schema["required"] = list(endpoint.required)
        operation["requestBody"] = {
            "required": bool(endpoint.required),
            "content": {"application/json": {"schema": schema}},
        }
    if endpoint.content_of_body:
        content = {endpoint.content_of_body: {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"content": content}
    return operation


def _identifier(endpoint: Endpoint) -> str:
    words = [part.strip("{}") for part in endpoint.path.split("/") if part]
    return "_".join([endpoint.method.lower(), *words]).replace("-", "_")


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    answered: dict[str, Any] = {"description": "Done"}
    if endpoint.status == 200:
        answered = {"description": "The answer", "content": {endpoint.content_type: {"schema": {}}}}
    responses: dict[str, Any] = {str(endpoint.status): answered}
    if endpoint.status == 201:
        responses["204"] = {"description": "It was there already"}
    failures = [400, 404, *endpoint.fails]
    if endpoint.tag != "any":
        failures.append(401)
    for status in sorted(failures):
        content = {"application/json": {"schema": _ERROR}} if status != 503 else None
        responses[str(status)] = {"description": _WHY[status]}
        if content is not None:
            responses[str(status)]["content"] = content
    return responses
