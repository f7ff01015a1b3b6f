"""The checks of what operators set, with RabbitMQ's texts (rabbit_parameter_validation).

Checks return a complaint, or None. RabbitMQ names all complaints at once, the last one first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan

from qlog.server.broker.features.terms import pairs_term, term

Check = Callable[[str, object], str | None]  # name and value -> the complaint, or None


class InvalidParameter(Exception):
    """What an operator has set is impossible; str() is RabbitMQ's text."""


def is_integer(value: object) -> bool:
    """Whether it is a whole number, and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def number(name: str, value: object) -> str | None:
    """Any number."""
    if is_integer(value) or (isinstance(value, float) and not isnan(value)):
        return None
    return f"{name} should be a number, actually was {term(value)}"


def integer(name: str, value: object) -> str | None:
    """A whole number."""
    if is_integer(value):
        return None
    return f"{name} should be a number, actually was {term(value)}"


def check_terms(name: str, checks: Mapping[str, Check], terms: Mapping[str, object]) -> None:
    """Check what is there of these terms; all of them may be left out. Raises InvalidParameter."""
    complaints = [
        complaint
        for key, check in checks.items()
        if key in terms and (complaint := check(key, terms[key])) is not None
    ]
    if others := {key: value for key, value in terms.items() if key not in checks}:
        complaints.append(f"Unrecognised terms {pairs_term(others)} in {name}")
    refuse(complaints)


def refuse(complaints: list[str]) -> None:
    """Raises InvalidParameter if there are complaints."""
    if complaints:
        lines = "\n".join(reversed(complaints))
        raise InvalidParameter(f"Validation failed\n\n{lines}\n")
