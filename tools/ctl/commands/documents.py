"""JSON that operators give as arguments, and what is said of it when it is none."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from qlog.tools.ctl.command import Failure, Status
from qlog.tools.ctl.values import as_term, binary

# Erlang breaks terms that do not fit on a line of this length, and indents what follows.
_LINE = 80
_PREFIX = "Could not parse JSON document: "
_INDENT = " " * 35


def parsed(text: str) -> Any:
    """What a text says in JSON. Raises Failure."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Failure(_PREFIX + _failed_to_decode(text), Status.UNAVAILABLE) from None


def _failed_to_decode(text: str) -> str:
    inner = f"{{failed_to_decode_json,{binary(text)}}}}}"
    whole = f"{{error,{inner}"
    if len(_PREFIX + whole) < _LINE:
        return whole
    if len(_INDENT + inner) < _LINE:
        return f"{{error,\n{_INDENT}{inner}"
    head, rest = inner.split(",", 1)
    return f"{{error,\n{_INDENT}{head},\n{_INDENT}    {rest}"


def limits(text: str, known: Collection[str], unknown: str) -> Mapping[str, Any]:
    """Limits, as an object. Raises Failure; `unknown` says that a name (`{}`) is not known."""
    value = parsed(text)
    if not isinstance(value, dict):
        raise Failure(f"limits must be a JSON object, not {text}", Status.UNAVAILABLE)
    others = {name: item for name, item in value.items() if name not in known}
    if others:
        raise Failure(unknown.format(as_term(others)), Status.UNAVAILABLE)
    return value
