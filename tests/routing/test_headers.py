"""The headers exchange: RabbitMQ's rules as tables."""

from datetime import UTC, datetime

import pytest

from qlog.routing import Binding, InvalidBinding
from qlog.routing.binding import comparable
from qlog.routing.headers import Headers


class Narrow(int):
    """Stands for an integer of another width."""


def matches(arguments: dict[str, object], headers: dict[str, object]) -> bool:
    exchange = Headers()
    exchange.add(Binding("x", "queue", "q", "", arguments))
    return bool(exchange.match(["ignored"], lambda: headers))


@pytest.mark.parametrize(
    ("arguments", "headers", "matched"),
    [
        ({}, {}, True),
        ({}, {"a": 1}, True),
        ({"x-match": "all"}, {}, True),
        ({"x-match": "any"}, {"a": 1}, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, False),
        ({"x-match": "all", "a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"x-match": "any", "a": 1, "b": 2}, {"b": 2}, True),
        ({"x-match": "any", "a": 1, "b": 2}, {"a": 2, "b": 1}, False),
        # Keys that begin with x-
        ({"x-match": "all", "x-a": 1}, {}, True),
        ({"x-match": "any", "x-a": 1}, {"x-a": 1}, False),
        ({"x-match": "all-with-x", "x-a": 1}, {}, False),
        ({"x-match": "all-with-x", "x-a": 1}, {"x-a": 1}, True),
        ({"x-match": "any-with-x", "x-a": 1}, {"x-a": 1}, True),
        ({"x-match": "any-with-x", "x-a": 1, "b": 1}, {"b": 1}, True),
        ({"x-match": "all-with-x"}, {}, True),
        ({"x-match": "any-with-x"}, {"x-match": "any-with-x"}, False),
        # Void asks for presence
        ({"a": None}, {"a": 1}, True),
        ({"a": None}, {"a": None}, True),
        ({"a": None}, {}, False),
        ({"a": 1}, {"a": None}, False),
        ({"x-match": "any", "a": None, "b": None}, {"b": 0}, True),
    ],
)
def test_rules(arguments: dict[str, object], headers: dict[str, object], matched: bool) -> None:
    assert matches(arguments, headers) == matched


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, 1, True),
        (1, Narrow(1), True),
        (1, 2, False),
        (1, 1.0, False),
        (1, True, False),
        (0, False, False),
        (1.0, True, False),
        (1.5, 1.5, True),
        (True, True, True),
        ("a", "a", True),
        ("a", b"a", True),
        ("1", 1, False),
        ("", None, False),
        ([1, 2], [1, 2], True),
        ([1, 2], [2, 1], False),
        ([1], [Narrow(1)], True),
        ([1], [True], False),
        ([], {}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": 1.0}, False),
        (datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC), True),
    ],
)
def test_equality_of_values(one: object, other: object, equal: bool) -> None:
    assert (comparable(one) == comparable(other)) == equal
    if one is not None and other is not None:
        assert matches({"h": one}, {"h": other}) == equal
        assert matches({"x-match": "any", "h": other}, {"h": one}) == equal


def test_what_is_no_field_value_is_refused() -> None:
    with pytest.raises(TypeError):
        comparable({1, 2})


VALUE = "Invalid x-match field value {}; expected all, any, all-with-x, or any-with-x"
TYPE = "Invalid x-match field type {} (value {}); expected longstr"


@pytest.mark.parametrize(
    ("x_match", "text"),
    [
        ("foo", VALUE.format('<<"foo">>')),
        ("", VALUE.format("<<>>")),
        ("ALL", VALUE.format('<<"ALL">>')),
        ('a"b\\c', VALUE.format('<<"a\\"b\\\\c">>')),
        ("x\ny", VALUE.format('<<"x\\ny">>')),
        (5, TYPE.format("signedint", 5)),
        (2**40, TYPE.format("long", 2**40)),
        (True, TYPE.format("bool", "true")),
        (None, TYPE.format("void", "undefined")),
        (1.5, TYPE.format("double", 1.5)),
        (b"x", TYPE.format("binary", '<<"x">>')),
        ([], TYPE.format("array", "[]")),
    ],
)
def test_bad_x_match(x_match: object, text: str) -> None:
    exchange = Headers()
    with pytest.raises(InvalidBinding) as refused:
        exchange.add(Binding("x", "queue", "q", "", {"x-match": x_match}))
    assert str(refused.value) == text
    assert refused.value.value == x_match
    assert not exchange.match([""], dict)
