"""Values of JSON as Erlang prints them (`~tp`), for RabbitMQ's error texts."""

from __future__ import annotations

from collections.abc import Mapping


def term(value: object) -> str:
    """A value of JSON as a term, on one line: RabbitMQ breaks lines of 80 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'<<"{quoted}">>' if value.isascii() else f'<<"{quoted}"/utf8>>'
    if isinstance(value, Mapping):
        pairs = (f"{term(key)} => {term(value[key])}" for key in sorted(value))
        return f"#{{{','.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{','.join(map(term, value))}]"
    return str(value)


def pairs_term(pairs: Mapping[str, object]) -> str:
    """A list of pairs (a proplist) as a term, by key."""
    return f"[{','.join(f'{{{term(key)},{term(pairs[key])}}}' for key in sorted(pairs))}]"
