"""The exchange types of RabbitMQ's plugins, alternates, and what headers compare with what.

Runs against RabbitMQ 4.0.5 too, with rabbitmq_consistent_hash_exchange, rabbitmq_random_exchange,
rabbitmq_sharding and rabbitmq_recent_history_exchange.
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from pamqp.commands import Basic, Exchange, Queue

from tests.live.conversation import (
    METHOD,
    Case,
    Talk,
    check,
    encode_frame,
    encode_raw_content,
    table,
    unique,
    until,
)

pytestmark = pytest.mark.newer

HASH = "x-consistent-hash"
X = unique("typed")
Q = unique("typed.queue")
RS = f"exchange '{X}' in vhost '/'"
ALTERNATE = "alternate-exchange"


def declare(kind: str, **arguments: Any) -> Exchange.Declare:
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    return Exchange.Declare(exchange=X, exchange_type=kind, arguments=named)


def bind(key: str) -> Queue.Bind:
    return Queue.Bind(queue=Q, exchange=X, routing_key=key)


def weight(key: str, complaint: str) -> Case:
    before = [declare(HASH), Queue.Declare(queue=Q)]
    return Case(f"weight {key!r}", before, bind(key), 406, f"PRECONDITION_FAILED - {complaint}")


def not_integer(key: str, term: str) -> Case:
    return weight(key, f"The binding key must be an integer: {term}")


def unknown(kind: str, adjective: str = "unknown") -> Case:
    text = f"PRECONDITION_FAILED - {adjective} exchange type '{kind}'"
    return Case(f"type {kind!r}", [], declare(kind), 406, text)


def bad_argument(kind: str, text: str, **arguments: Any) -> Case:
    name = f"{kind} with {arguments}"
    return Case(name, [], declare(kind, **arguments), 406, f"PRECONDITION_FAILED - {text}")


def bad_local_random(before: Sequence[Any], offending: Any, text: str) -> Case:
    before = [declare("x-local-random"), *before]
    return Case(f"local random: {text}", before, offending, 406, f"PRECONDITION_FAILED - {text}")


def typed_queue(kind: str) -> Queue.Declare:
    arguments: dict[str, Any] = {"x-queue-type": kind}
    return Queue.Declare(queue=Q, durable=True, arguments=arguments)


REFUSALS = [
    unknown("x-jms-topic"),
    unknown("x-event"),
    unknown("Direct"),
    unknown("X-RANDOM"),
    unknown("", "invalid"),
    weight("0", "The binding key must be greater than 0"),
    weight("-1", "The binding key must be greater than 0"),
    not_integer("abc", '<<"abc">>'),
    not_integer("", "<<>>"),
    not_integer("1.5", '<<"1.5">>'),
    not_integer(" 1", '<<" 1">>'),
    not_integer("1 ", '<<"1 ">>'),
    not_integer("1_0", '<<"1_0">>'),
    not_integer("é", '<<"é"/utf8>>'),
    bad_argument(HASH, "Unsupported property: foo", hash_property="foo"),
    bad_argument(HASH, "Unsupported property: reply_to", hash_property="reply_to"),
    bad_argument(
        HASH,
        "hash-header and hash-property are mutually exclusive",
        hash_header="h",
        hash_property="message_id",
    ),
    bad_local_random(
        [Queue.Declare(queue=Q)], bind("k"), "Non empty binding 'k' key not permitted"
    ),
    bad_local_random(
        [],
        Exchange.Bind(source=X, destination="amq.fanout", routing_key="k"),
        "Non empty binding 'k' key not permitted",
    ),
    bad_local_random(
        [],
        Exchange.Bind(source=X, destination="amq.fanout", routing_key=""),
        "Destination not found",
    ),
    bad_local_random(
        [typed_queue("quorum")],
        bind(""),
        "Queue type rabbit_quorum_queue not valid for this exchange type",
    ),
    bad_local_random([typed_queue("quorum")], bind("k"), "Non empty binding 'k' key not permitted"),
    Case(
        "an unknown type is found before a reserved name",
        [],
        Exchange.Declare(exchange="amq.mine", exchange_type="nonsense"),
        406,
        "PRECONDITION_FAILED - unknown exchange type 'nonsense'",
    ),
    Case(
        "alternate of another type, redeclared",
        [declare("direct")],
        declare("direct", alternate_exchange=70_000),
        406,
        f"PRECONDITION_FAILED - inequivalent arg '{ALTERNATE}' for {RS}: "
        "received the value '70000' of type 'signedint' but current is none",
    ),
    Case(
        "empty alternate, redeclared without",
        [declare("direct", alternate_exchange="")],
        declare("direct"),
        406,
        f"PRECONDITION_FAILED - inequivalent arg '{ALTERNATE}' for {RS}: "
        "received none but current is the value '' of type 'longstr'",
    ),
    Case(
        "void alternate",
        [],
        declare("direct", alternate_exchange=None),
        406,
        f"PRECONDITION_FAILED - invalid type 'void' for arg '{ALTERNATE}' in {RS}",
    ),
]


@table(REFUSALS)
def test_refusal(talk: Talk, case: Case) -> None:
    check(talk, case)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (HASH, {"hash-header": ""}),
        (HASH, {"hash-header": "h"}),
        (HASH, {"hash-property": "correlation_id"}),
        (HASH, {"hash-property": "message_id"}),
        (HASH, {"hash-property": "timestamp"}),
        (HASH, {"hash-on": "x"}),
        ("x-random", {}),
        ("x-local-random", {}),
        ("x-modulus-hash", {}),
    ],
)
def test_arguments_are_checked_once_and_not_compared(
    talk: Talk, kind: str, arguments: dict[str, Any]
) -> None:
    name = talk.exchange(kind, arguments=arguments)
    redeclared: list[dict[str, Any]] = [{}, {"hash-header": "i"}, {"hash-property": "bad"}]
    for others in redeclared:
        talk.call(Exchange.Declare(exchange=name, exchange_type=kind, arguments=others))


def spread(talk: Talk, queues: Sequence[str], count: int) -> list[int]:
    """How many messages each queue has got, when they are `count` in all; the queues are empty."""
    until(lambda: sum(map(talk.ready, queues)) == count, f"{count} messages in all")
    return [len(talk.drain(queue)) for queue in queues]


def bound(talk: Talk, exchange: str, *keys: str) -> list[str]:
    """A new queue for each binding key."""
    queues = []
    for key in keys:
        queues.append(talk.queue())
        talk.bind(queues[-1], exchange, key)
    return queues


def test_weights_are_shares(talk: Talk) -> None:
    exchange = talk.exchange(HASH)
    queues = bound(talk, exchange, "1", "3")
    for number in range(2000):
        talk.publish(exchange, f"key {number}")
    light, heavy = spread(talk, queues, 2000)
    assert 380 < light < 620
    assert heavy == 2000 - light


def test_the_same_key_always_goes_the_same_way(talk: Talk) -> None:
    exchange = talk.exchange(HASH)
    queues = bound(talk, exchange, "1", "1", "1")
    for number in range(60):
        talk.publish(exchange, f"key {number % 20}", b"%d" % (number % 20))
    until(lambda: sum(map(talk.ready, queues)) == 60, "all messages")
    bodies = [talk.drain(queue) for queue in queues]
    for number in range(20):
        assert [found.count(b"%d" % number) for found in bodies].count(3) == 1


def test_a_new_destination_moves_keys_only_to_itself(talk: Talk) -> None:
    exchange = talk.exchange(HASH)
    queues = bound(talk, exchange, "1", "1", "1")

    def ways() -> dict[bytes, int]:
        for number in range(400):
            talk.publish(exchange, f"key {number}", b"%d" % number)
        until(lambda: sum(map(talk.ready, queues)) == 400, "all messages")
        return {body: at for at, queue in enumerate(queues) for body in talk.drain(queue)}

    before = ways()
    queues += bound(talk, exchange, "1")
    after = ways()
    assert {after[key] for key in before if before[key] != after[key]} == {3}
    talk.call(Queue.Unbind(queue=queues[3], exchange=exchange, routing_key="1"))
    assert ways() == before


def test_a_queue_counts_once_by_its_first_binding(talk: Talk) -> None:
    exchange = talk.exchange(HASH)
    queues = bound(talk, exchange, "1", "1")
    talk.bind(queues[1], exchange, "9")
    for number in range(1000):
        talk.publish(exchange, f"key {number}")
    counts = spread(talk, queues, 1000)
    assert min(counts) > 400


AT = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("arguments", "properties"),
    [
        ({"hash-header": "h"}, lambda n: {"headers": {"h": str(n)}}),
        ({"hash-header": "h"}, lambda n: {"headers": {"h": n}}),
        ({"hash-header": "x-h"}, lambda n: {"headers": {"x-h": str(n)}}),
        ({"hash-property": "message_id"}, lambda n: {"message_id": str(n)}),
        ({"hash-property": "correlation_id"}, lambda n: {"correlation_id": str(n)}),
        (
            {"hash-property": "timestamp"},
            lambda n: {"timestamp": AT + datetime.timedelta(seconds=n)},
        ),
    ],
)
def test_what_is_hashed(talk: Talk, arguments: dict[str, Any], properties: Any) -> None:
    exchange = talk.exchange(HASH, arguments=arguments)
    queues = bound(talk, exchange, "1", "1")
    for number in range(300):
        talk.publish(exchange, "the same key", b"", **properties(number))
    assert min(spread(talk, queues, 300)) > 100
    for number in range(100):
        talk.publish(exchange, f"key {number}")  # without the header, or the property
    assert sorted(spread(talk, queues, 100)) == [0, 100]


def test_of_several_routing_keys_the_first_is_hashed(talk: Talk) -> None:
    exchange = talk.exchange(HASH)
    queues = bound(talk, exchange, "1", "1")
    for number in range(50):
        talk.publish(exchange, "the same key", headers={"CC": [f"key {number}"]})
    assert sorted(spread(talk, queues, 50)) == [0, 50]


@pytest.mark.parametrize("kind", ["x-random", "x-modulus-hash"])
def test_shares_go_by_bindings(talk: Talk, kind: str) -> None:
    exchange = talk.exchange(kind)
    queues = bound(talk, exchange, "a", "a")
    for key in ("b", "c"):
        talk.bind(queues[1], exchange, key)
    for number in range(2000):
        talk.publish(exchange, f"key {number}")
    few, many = spread(talk, queues, 2000)
    assert 380 < few < 620
    assert many == 2000 - few


def test_the_modulus_hash_heeds_all_routing_keys(talk: Talk) -> None:
    exchange = talk.exchange("x-modulus-hash")
    queues = bound(talk, exchange, "", "")
    for number in range(200):
        talk.publish(exchange, "the same key", headers={"CC": [f"key {number}"]})
    assert min(spread(talk, queues, 200)) > 50


def test_local_random(talk: Talk) -> None:
    exchange = talk.exchange("x-local-random")
    queues = bound(talk, exchange, "", "")
    for number in range(400):
        talk.publish(exchange, f"key {number}", headers={"CC": ["a", "b"]})
    assert min(spread(talk, queues, 400)) > 120


@pytest.mark.parametrize(
    "kind", [HASH, "x-random", "x-modulus-hash", "x-local-random", "headers", "fanout"]
)
def test_what_an_unbound_exchange_gets_goes_to_its_alternate(talk: Talk, kind: str) -> None:
    alternate = talk.exchange("fanout", internal=True)
    (queue,) = bound(talk, alternate, "")
    exchange = talk.exchange(kind, arguments={ALTERNATE: alternate})
    talk.publish(exchange, "k", b"x", mandatory=True)
    assert talk.get_soon(queue).body == b"x"
    talk.quiet(queue)  # no return


def test_an_alternate_that_leads_nowhere_returns_what_is_mandatory(talk: Talk) -> None:
    first = talk.exchange("direct", arguments={ALTERNATE: talk.exchange("fanout")})
    talk.publish(first, "k", b"x", mandatory=True)
    assert talk.expect(Basic.Return, reply_code=312, exchange=first).body == b"x"


def test_alternates_in_a_chain_and_in_a_circle(talk: Talk) -> None:
    names = [unique("chain") for _ in range(3)]
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        arguments: dict[str, Any] = {ALTERNATE: following}
        talk.call(Exchange.Declare(exchange=name, exchange_type="direct", arguments=arguments))
    queue = talk.queue()
    talk.bind(queue, names[2], "k")
    talk.publish(names[0], "k", b"chained")
    assert talk.get_soon(queue).body == b"chained"
    talk.publish(names[0], "other", b"circled", mandatory=True)
    talk.expect(Basic.Return, reply_code=312)


# -- recent history


HISTORY = "x-recent-history"


def got(talk: Talk, queue: str, count: int) -> list[bytes]:
    """What the queue has, once it has so many messages."""
    until(lambda: talk.ready(queue) == count, f"{count} messages")
    return talk.drain(queue)


def publish_all(talk: Talk, exchange: str, *bodies: bytes, **properties: Any) -> None:
    for body in bodies:
        talk.publish(exchange, "k", body, **properties)
    talk.call(Exchange.Declare(exchange=exchange, passive=True))  # all are there


@pytest.mark.parametrize(
    ("length", "term"),
    [(0, "0"), (-1, "-1"), ("5", '<<"5">>'), (True, "true"), (None, "undefined"), (2.5, "2.5")],
)
def test_the_length_of_a_history_is_a_positive_integer(talk: Talk, length: Any, term: str) -> None:
    text = (
        f"PRECONDITION_FAILED - Invalid argument {term}, "
        "'x-recent-history-length' must be a positive integer"
    )
    check(talk, Case("", [], declare(HISTORY, x_recent_history_length=length), 406, text))


def test_what_is_bound_gets_the_newest_messages_in_order(talk: Talk) -> None:
    exchange = talk.exchange(HISTORY, arguments={"x-recent-history-length": 3})
    publish_all(talk, exchange, *(b"%d" % number for number in range(5)))
    queue = talk.queue()
    talk.bind(queue, exchange, "any")
    publish_all(talk, exchange, b"later")
    assert got(talk, queue, 4) == [b"2", b"3", b"4", b"later"]
    talk.bind(queue, exchange, "any")  # nothing new
    talk.bind(queue, exchange, "other")
    assert got(talk, queue, 3) == [b"3", b"4", b"later"]
    for length in (1, -1):  # neither compared nor checked, once the exchange is there
        arguments: dict[str, Any] = {"x-recent-history-length": length}
        talk.call(Exchange.Declare(exchange=exchange, exchange_type=HISTORY, arguments=arguments))


def test_twenty_messages_are_kept_if_nothing_else_is_said(talk: Talk) -> None:
    exchange = talk.exchange(HISTORY)
    publish_all(talk, exchange, *(b"%d" % number for number in range(25)))
    (queue,) = bound(talk, exchange, "")
    assert got(talk, queue, 20) == [b"%d" % number for number in range(5, 25)]


def test_history_is_as_it_was_published(talk: Talk) -> None:
    exchange = talk.exchange(HISTORY)
    headers = {"h": 1, "CC": ["a"], "BCC": ["b"]}
    publish_all(talk, exchange, b"x", delivery_mode=2, expiration="60000", headers=headers)
    (queue,) = bound(talk, exchange, "")
    message = talk.get_soon(queue)
    assert (message.method.exchange, message.method.routing_key) == (exchange, "k")
    assert not message.method.redelivered
    assert message.properties.delivery_mode == 2
    assert message.properties.expiration == "60000"
    assert message.properties.headers == {"h": 1, "CC": ["a"]}


def test_messages_may_ask_not_to_be_kept(talk: Talk) -> None:
    exchange = talk.exchange(HISTORY)
    for value in (True, False, "true", 1):
        headers = {"x-recent-history-no-store": value}
        publish_all(talk, exchange, str(value).encode(), headers=headers)
    (queue,) = bound(talk, exchange, "")
    assert got(talk, queue, 3) == [b"False", b"true", b"1"]


def test_history_is_kept_of_what_comes_over_other_exchanges(talk: Talk) -> None:
    exchange = talk.exchange(HISTORY)
    source = talk.exchange("fanout")
    talk.call(Exchange.Bind(source=source, destination=exchange))
    unrouted = talk.exchange("direct", arguments={ALTERNATE: exchange})
    publish_all(talk, source, b"bound")
    publish_all(talk, unrouted, b"alternate")
    (queue,) = bound(talk, exchange, "")
    assert got(talk, queue, 2) == [b"bound", b"alternate"]


def test_a_limit_of_the_queue_holds_for_history(talk: Talk) -> None:
    exchange = talk.exchange(HISTORY)
    publish_all(talk, exchange, *(b"%d" % number for number in range(5)))
    queue = talk.queue(arguments={"x-max-length": 2})
    talk.bind(queue, exchange)
    assert got(talk, queue, 2) == [b"3", b"4"]


def test_an_exchange_that_is_bound_passes_history_on(talk: Talk) -> None:
    exchange = talk.exchange(HISTORY)
    publish_all(talk, exchange, b"1", b"2")
    fanout = talk.exchange("fanout")
    (queue,) = bound(talk, fanout, "")
    talk.call(Exchange.Bind(source=exchange, destination=fanout))
    assert sorted(got(talk, queue, 2)) == [b"1", b"2"]  # RabbitMQ: the newest first


def test_history_goes_with_its_exchange(talk: Talk) -> None:
    exchange = talk.exchange(HISTORY)
    publish_all(talk, exchange, b"1")
    talk.call(Exchange.Delete(exchange=exchange))
    talk.call(Exchange.Declare(exchange=exchange, exchange_type=HISTORY))
    (queue,) = bound(talk, exchange, "")
    publish_all(talk, exchange, b"2")
    assert got(talk, queue, 1) == [b"2"]


# -- headers


def _short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _long(octets: bytes) -> bytes:
    return struct.pack(">I", len(octets)) + octets


ONE = [b"b\1", b"B\1", b"s\0\1", b"u\0\1", b"I\0\0\0\1", b"i\0\0\0\1", b"l" + b"\0" * 7 + b"\1"]
VALUES = {
    "integer": ONE,
    "float": [b"f" + struct.pack(">f", 1), b"d" + struct.pack(">d", 1)],
    "true": [b"t\1"],
    "false": [b"t\0"],
    "text": [b"S" + _long(b"1"), b"x" + _long(b"1")],
    "no text": [b"S\0\0\0\0"],
    "decimal": [b"D\0\0\0\0\1"],
    "longer decimal": [b"D\1\0\0\0\x0a"],
    "array": [b"A" + _long(b"I\0\0\0\1")],
    "array of a float": [b"A" + _long(b"d" + struct.pack(">d", 1))],
    "table": [b"F" + _long(_short(b"a") + b"t\1")],
    "large integer": [b"l" + struct.pack(">q", 2**53 + 1)],
    "large float": [b"d" + struct.pack(">d", 2.0**53)],
}


def test_which_headers_are_equal(talk: Talk) -> None:
    """Values match those of their row, whatever their width, and of no other."""
    exchange = talk.exchange("headers")
    rows = [(row, value) for row, values in VALUES.items() for value in values]
    queues = []
    for _, value in [*rows, ("any", b"V")]:
        queues.append(talk.queue())
        # A raw method, as a client library would choose the type.
        names = _short(queues[-1].encode()) + _short(exchange.encode()) + _short(b"")
        arguments = _long(_short(b"h") + value)
        payload = struct.pack(">HHH", 50, 20, 0) + names + b"\0" + arguments
        talk.send(encode_frame(METHOD, talk.number, payload))
        talk.expect(Queue.BindOk)
    for row, value in rows:
        headers = _long(_short(b"h") + value)
        talk.send(
            Basic.Publish(exchange=exchange, routing_key=""),
            encode_raw_content(talk.number, row.encode(), b"\x20\x00" + headers),
        )
    until(lambda: talk.ready(queues[-1]) == len(rows), "void is met by any value")
    for (row, _), queue in zip(rows, queues, strict=False):
        assert talk.drain(queue) == [row.encode()] * len(VALUES[row])
