"""Fields of JSON documents, checked; what is wrong is said as RabbitMQ's API says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlog.server.http.refusals import bad_request

_FLAGS = {True: True, False: False, "true": True, "false": False}


def flag(document: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A truth value, also as text. Raises 400."""
    value = document.get(name, default)
    if isinstance(value, bool | str) and value in _FLAGS:
        return _FLAGS[value]
    raise bad_request(["not_boolean", value])


def text(document: Mapping[str, Any], name: str, default: str = "") -> str:
    """A text. Raises 400."""
    value = document.get(name, default)
    if not isinstance(value, str):
        raise bad_request(["not_a_string", value])
    return value


def whole(document: Mapping[str, Any], name: str, default: int = 0) -> int:
    """A whole number, also as text. Raises 400."""
    value = document.get(name, default)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    raise bad_request(["not_integer", value])


def table(document: Mapping[str, Any], name: str = "arguments") -> dict[str, Any]:
    """A map; an empty list is an empty one, as RabbitMQ writes it. Raises 400."""
    value = document.get(name) or {}
    if not isinstance(value, dict):
        raise bad_request(["not_a_table", value])
    return value


def texts(document: Mapping[str, Any], name: str) -> list[str]:
    """Several texts: a list, or one text in which commas part them. Raises 400."""
    value = document.get(name) or []
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise bad_request(["not_a_list_of_strings", value])
    return [part.strip() for part in parts if part.strip()]
