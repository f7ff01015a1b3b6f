"""The headers exchange: RabbitMQ's rules as tables."""

from collections.abc import Hashable, Mapping
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlog.routing import Binding
from qlog.routing.binding import comparable
from qlog.routing.errors import InvalidMatch
from qlog.routing.headers import Headers, _Conditions
from tests.routing.support import Plain


class Narrow(int):
    """Stands for an integer of another width."""


def matches(arguments: dict[str, object], headers: dict[str, object]) -> bool:
    exchange = Headers()
    exchange.add(Binding("x", "queue", "q", "", arguments))
    return bool(exchange.match(["ignored"], Plain(headers)))


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
        ("é", VALUE.format('<<"é"/utf8>>')),
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
    with pytest.raises(InvalidMatch) as refused:
        exchange.add(Binding("x", "queue", "q", "", {"x-match": x_match}))
    assert str(refused.value) == text
    assert refused.value.value == x_match
    assert not exchange.match([""], Plain({}))


VALUES = st.sampled_from([None, 1, "1", True])
TABLES = st.dictionaries(st.sampled_from(["a", "b", "x-a"]), VALUES, max_size=3)
ARGUMENTS = st.builds(
    lambda wanted, x_match: {**wanted, "x-match": x_match},
    TABLES,
    st.sampled_from(["all", "any", "all-with-x", "any-with-x"]),
)


def by_the_rules(arguments: Mapping[str, object], headers: dict[str, object]) -> bool:
    x_match = str(arguments["x-match"])
    outcomes = [
        key in headers and (value is None or comparable(value) == comparable(headers[key]))
        for key, value in arguments.items()
        if key != "x-match" and (x_match.endswith("with-x") or not key.startswith("x-"))
    ]
    return all(outcomes) if x_match.startswith("all") else any(outcomes)


@given(st.lists(st.tuples(ARGUMENTS, st.booleans()), max_size=12), st.lists(TABLES, max_size=4))
def test_the_index_finds_what_the_rules_say(
    bindings: list[tuple[dict[str, object], bool]], messages: list[dict[str, object]]
) -> None:
    exchange = Headers()
    there = {}
    for arguments, stays in bindings:
        binding = Binding("x", "queue", "q", "", arguments)
        if binding not in there:
            exchange.add(binding)
            there[binding] = stays
    for binding, stays in there.items():
        if not stays:
            exchange.remove(binding)
    for headers in messages:
        expected = {b for b, stays in there.items() if stays and by_the_rules(b.arguments, headers)}
        assert set(exchange.match(["k"], Plain(headers))) == expected
    for binding, stays in there.items():
        if stays:
            exchange.remove(binding)
    assert not exchange._under and not exchange._always and not exchange._conditions


@pytest.mark.parametrize("x_match", ["all", "any"])
def test_a_message_looks_only_at_bindings_that_share_a_value_with_it(
    x_match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = Headers()
    for number in range(5000):
        # What all have in common stands first, and last.
        arguments = {"x-match": x_match, "id": number}
        if x_match == "all":
            arguments = {"kind": "order", **arguments, "size": "large"}
        exchange.add(Binding("x", "queue", f"q{number}", "", arguments))
    looked_at = 0
    hold = _Conditions.hold

    def counting(conditions: _Conditions, headers: Mapping[str, Hashable]) -> bool:
        nonlocal looked_at
        looked_at += 1
        return hold(conditions, headers)

    monkeypatch.setattr(_Conditions, "hold", counting)
    headers = {"kind": "order", "size": "large", "id": 4711}
    (found,) = exchange.match([""], Plain(headers))
    assert found.destination == "q4711"
    assert looked_at <= 2  # the first binding stands under what all have
