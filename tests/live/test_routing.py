"""Where messages go: exchange types, exchange-to-exchange bindings, alternates, CC and BCC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pamqp.commands import Basic, Exchange

from tests.live.conversation import Case, Client, Talk, check, encode_content, table, unique

Connect = Callable[..., Client]

# binding key, routing key, whether it matches
DIRECT_KEYS = [("a", "a", True), ("a", "b", False), ("", "", True), ("a.*", "a.b", False)]

TOPIC_KEYS = [
    ("a.b.c", "a.b.c", True),
    ("a.b.c", "a.b", False),
    ("*", "a", True),
    ("*", "", False),
    ("*", "a.b", False),
    ("#", "", True),
    ("#", "a", True),
    ("#", "a.b.c.d", True),
    ("", "", True),
    ("", "a", False),
    ("a.*", "a", False),
    ("a.*", "a.b", True),
    ("a.*", "a.b.c", False),
    ("a.#", "a", True),
    ("a.#", "a.b.c", True),
    ("#.c", "c", True),
    ("#.c", "a.b.c", True),
    ("#.c", "a.c.b", False),
    ("a.#.c", "a.c", True),
    ("a.#.c", "a.b.b.c", True),
    ("a.#.c", "a.b", False),
    ("*.#", "", False),
    ("*.#", "a", True),
    ("#.#", "", True),
    ("#.*.#", "a", True),
    ("*.*", "a.", True),
    ("a.*", "a.", True),
    ("a..b", "a..b", True),
    ("a.*.b", "a..b", True),
    ("a*", "ab", False),
    ("#.a.#", "b.a.c", True),
    ("#.a.#", "b.c", False),
]


def reaches(talk: Talk, exchange: str, key: str, **properties: Any) -> bool:
    """Whether a mandatory message is routed: its confirm comes without a return before it."""
    talk.publish(exchange, key, b"x", mandatory=True, **properties)
    value = talk.next()
    returned = isinstance(getattr(value, "method", None), Basic.Return)
    if returned:
        value = talk.next()
    assert isinstance(value, Basic.Ack)
    return not returned


@pytest.fixture
def confirming(talk: Talk) -> Talk:
    talk.confirm()
    return talk


@pytest.mark.parametrize("kind", ["direct", "topic"])
def test_keys(confirming: Talk, kind: str) -> None:
    for binding, key, matches in DIRECT_KEYS if kind == "direct" else TOPIC_KEYS:
        exchange, queue = confirming.exchange(kind), confirming.declare("", exclusive=True)
        confirming.bind(queue, exchange, binding)
        assert reaches(confirming, exchange, key) == matches, (binding, key)


def test_overlapping_topic_bindings_give_one_copy(talk: Talk) -> None:
    exchange, queue = talk.exchange("topic"), talk.declare("", exclusive=True)
    for key in ("#", "a.#", "*.b", "a.b"):
        talk.bind(queue, exchange, key)
    talk.publish(exchange, "a.b", b"once")
    talk.publish("", queue, b"end")
    talk.get_soon(queue, no_ack=True)
    assert [m.body for m in [talk.get_soon(queue, no_ack=True)]] == [b"end"]


def test_fanout_ignores_keys(talk: Talk) -> None:
    exchange = talk.exchange("fanout")
    queues = [talk.declare("", exclusive=True) for _ in range(3)]
    for number, queue in enumerate(queues):
        talk.bind(queue, exchange, f"key{number}")
    talk.publish(exchange, "elsewhere", b"x")
    assert [talk.get_soon(queue).body for queue in queues] == [b"x"] * 3


# binding arguments, headers, whether they match
HEADERS = [
    ({}, {}, True),
    ({}, None, True),
    ({"x-match": "all"}, {"a": "1"}, True),
    ({"x-match": "any"}, {"a": "1"}, False),
    ({"a": "1"}, {"a": "1"}, True),
    ({"a": "1"}, {"a": "2"}, False),
    ({"a": "1"}, {}, False),
    ({"a": "1"}, None, False),
    ({"x-match": "all", "a": "1", "b": "2"}, {"a": "1"}, False),
    ({"x-match": "all", "a": "1", "b": "2"}, {"a": "1", "b": "2", "c": "3"}, True),
    ({"x-match": "any", "a": "1", "b": "2"}, {"b": "2"}, True),
    ({"x-match": "any", "a": "1", "b": "2"}, {"b": "1"}, False),
    ({"a": None}, {"a": "anything"}, True),
    ({"a": None}, {"b": "1"}, False),
    ({"a": 70_000}, {"a": 70_000}, True),
    ({"a": 1}, {"a": "1"}, False),
    ({"a": True}, {"a": True}, True),
    ({"x-match": "all", "x-a": "1"}, {}, True),
    ({"x-match": "any", "x-a": "1"}, {"x-a": "1"}, False),
    ({"x-match": "all-with-x", "x-a": "1"}, {}, False),
    ({"x-match": "all-with-x", "x-a": "1"}, {"x-a": "1"}, True),
    ({"x-match": "any-with-x", "x-a": "1", "b": "1"}, {"x-a": "1"}, True),
    ({"x-match": "any-with-x", "x-a": "1"}, {"x-a": "2"}, False),
]


def test_headers(confirming: Talk) -> None:
    for arguments, headers, matches in HEADERS:
        exchange, queue = confirming.exchange("headers"), confirming.declare("", exclusive=True)
        confirming.bind(queue, exchange, "", arguments)
        got = reaches(confirming, exchange, "", headers=headers)
        assert got == matches, (arguments, headers)


def test_default_exchange_knows_every_queue_by_name(confirming: Talk) -> None:
    queue = confirming.queue()
    assert reaches(confirming, "", queue)
    assert not reaches(confirming, "", unique("missing"))


def test_exchange_to_exchange(talk: Talk) -> None:
    first, second = talk.exchange("direct"), talk.exchange("topic")
    queue = talk.declare("", exclusive=True)
    talk.call(Exchange.Bind(source=first, destination=second, routing_key="a.b"))
    talk.bind(queue, second, "a.*")
    talk.publish(first, "a.b", b"through")
    message = talk.get_soon(queue)
    assert (message.body, message.method.exchange, message.method.routing_key) == (
        b"through",
        first,
        "a.b",
    )


def test_cycle_of_exchanges_gives_one_copy(talk: Talk) -> None:
    ring = [talk.exchange("fanout") for _ in range(3)]
    queue = talk.declare("", exclusive=True)
    for source, destination in zip(ring, ring[1:] + ring[:1], strict=True):
        talk.call(Exchange.Bind(source=source, destination=destination))
        talk.bind(queue, source)
    talk.call(Exchange.Bind(source=ring[0], destination=ring[0]))
    talk.publish(ring[0], "", b"once")
    talk.publish("", queue, b"end")
    assert [talk.get_soon(queue, True).body, talk.get_soon(queue, True).body] == [b"once", b"end"]


def test_unbound_exchange_no_longer_passes(confirming: Talk) -> None:
    first, second = confirming.exchange("fanout"), confirming.exchange("fanout")
    queue = confirming.declare("", exclusive=True)
    confirming.bind(queue, second)
    confirming.call(Exchange.Bind(source=first, destination=second, routing_key="k"))
    assert reaches(confirming, first, "")
    confirming.call(Exchange.Unbind(source=first, destination=second, routing_key="other"))
    assert reaches(confirming, first, "")
    confirming.call(Exchange.Unbind(source=first, destination=second, routing_key="k"))
    assert not reaches(confirming, first, "")


def test_alternate_takes_what_matches_nothing(confirming: Talk) -> None:
    last, queue = confirming.exchange("fanout"), confirming.declare("", exclusive=True)
    middle = confirming.exchange("direct", arguments={"alternate-exchange": last})
    first = confirming.exchange("direct", arguments={"alternate-exchange": middle})
    matched = confirming.declare("", exclusive=True)
    confirming.bind(matched, first, "known")
    assert not reaches(confirming, first, "unknown"), "the last one has no binding yet"
    confirming.bind(queue, last)
    assert reaches(confirming, first, "unknown")
    assert reaches(confirming, first, "known")
    message = confirming.get_soon(queue)
    assert (message.method.exchange, message.method.routing_key) == (first, "unknown")
    assert confirming.get(queue) is None
    assert confirming.get(matched) is not None


def test_alternates_in_a_circle(confirming: Talk) -> None:
    one, two = unique("one"), unique("two")
    confirming.call(Exchange.Declare(exchange=one, arguments={"alternate-exchange": two}))
    confirming.call(Exchange.Declare(exchange=two, arguments={"alternate-exchange": one}))
    assert not reaches(confirming, one, "k")


def test_alternate_that_does_not_exist(confirming: Talk) -> None:
    name = confirming.exchange("direct", arguments={"alternate-exchange": unique("missing")})
    assert not reaches(confirming, name, "k")


def test_cc_and_bcc_route_too(talk: Talk) -> None:
    queues = [talk.declare("", exclusive=True) for _ in range(4)]
    headers = {"CC": [queues[1], queues[0]], "BCC": [queues[2]], "other": "kept"}
    talk.publish("", queues[0], b"x", headers=headers)
    for queue in queues[:3]:
        message = talk.get_soon(queue)
        assert message.method.routing_key == queues[0]
        assert message.properties.headers == {"CC": [queues[1], queues[0]], "other": "kept"}
        assert talk.get(queue) is None
    assert talk.get(queues[3]) is None


def test_bcc_alone_leaves_an_empty_table(talk: Talk) -> None:
    first, second = (talk.declare("", exclusive=True) for _ in range(2))
    talk.publish("", first, b"x", headers={"BCC": [second]})
    assert talk.get_soon(second).properties.headers == {}


def test_cc_counts_for_mandatory(confirming: Talk) -> None:
    queue = confirming.declare("", exclusive=True)
    assert reaches(confirming, "", unique("missing"), headers={"CC": [queue]})


def test_cc_that_are_no_strings_are_passed_over(talk: Talk) -> None:
    first, second = (talk.declare("", exclusive=True) for _ in range(2))
    talk.publish("", first, b"x", headers={"CC": [70_000, second]})
    assert [talk.get_soon(queue).body for queue in (first, second)] == [b"x", b"x"]


def publish_with(headers: Any, exchange: str = "amq.direct") -> list[object]:
    """A publish on channel 1 with these headers."""
    return [
        Basic.Publish(exchange=exchange, routing_key="k"),
        encode_content(1, b"", Basic.Properties(headers=headers)),
    ]


def unacceptable(name: str, value: object, type_name: str) -> Case:
    """A row: a CC or BCC header of the wrong type."""
    return Case(
        f"{name} is {type_name}: {value!r}",
        [],
        publish_with({name: value}),
        406,
        "PRECONDITION_FAILED - invalid message: "
        f'{{unacceptable_type_in_header,"{name}",{type_name}}}',
    )


REFUSALS = [
    unacceptable("CC", "no array", "longstr"),
    unacceptable("BCC", "no array", "longstr"),
    unacceptable("CC", 70_000, "signedint"),
]


@table(REFUSALS)
def test_refusal(talk: Talk, case: Case) -> None:
    check(talk, case)
