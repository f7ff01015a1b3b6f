"""Declaring, deleting and binding exchanges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pamqp.commands import Basic, Exchange, Queue

from tests.live.conversation import Case, Client, Talk, check, table, unchecked, unique

Connect = Callable[..., Client]
X = unique("exchange")
Y = unique("other")
Q = unique("queue")
RS = f"exchange '{X}' in vhost '/'"
DIRECT = Exchange.Declare(exchange=X, exchange_type="direct")
DEFAULT = "ACCESS_REFUSED - operation not permitted on the default exchange"


def different(argument: str, received: str, current: str, **options: Any) -> Case:
    """A row: declared as direct, then otherwise."""
    return Case(
        f"redeclared with other {argument}",
        [DIRECT],
        Exchange.Declare(**{"exchange": X, "exchange_type": "direct", **options}),
        406,
        f"PRECONDITION_FAILED - inequivalent arg '{argument}' for {RS}: "
        f"received {received} but current is {current}",
    )


REFUSALS = [
    different("type", "'fanout'", "'direct'", exchange_type="fanout"),
    different("durable", "'true'", "'false'", durable=True),
    different("auto_delete", "'true'", "'false'", auto_delete=True),
    different("internal", "'true'", "'false'", internal=True),
    different(
        "alternate-exchange",
        "the value 'amq.fanout' of type 'longstr'",
        "none",
        arguments={"alternate-exchange": "amq.fanout"},
    ),
    Case(
        "alternate exchange taken away",
        [Exchange.Declare(exchange=X, arguments={"alternate-exchange": "amq.fanout"})],
        Exchange.Declare(exchange=X),
        406,
        f"PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for {RS}: "
        "received none but current is the value 'amq.fanout' of type 'longstr'",
    ),
    Case(
        "other alternate exchange",
        [Exchange.Declare(exchange=X, arguments={"alternate-exchange": "amq.fanout"})],
        Exchange.Declare(exchange=X, arguments={"alternate-exchange": "amq.direct"}),
        406,
        f"PRECONDITION_FAILED - inequivalent arg 'alternate-exchange' for {RS}: "
        "received 'amq.direct' but current is 'amq.fanout'",
    ),
    Case(
        "the type is compared first",
        [DIRECT],
        Exchange.Declare(exchange=X, exchange_type="topic", durable=True, auto_delete=True),
        406,
        f"PRECONDITION_FAILED - inequivalent arg 'type' for {RS}: "
        "received 'topic' but current is 'direct'",
    ),
    Case(
        "alternate exchange that is no string",
        [],
        Exchange.Declare(exchange=X, arguments={"alternate-exchange": 70_000}),
        406,
        f"PRECONDITION_FAILED - invalid type 'signedint' for arg 'alternate-exchange' in {RS}",
    ),
    Case(
        "passive and missing",
        [],
        Exchange.Declare(exchange=X, passive=True),
        404,
        f"NOT_FOUND - no {RS}",
    ),
    Case(
        "unknown type",
        [],
        Exchange.Declare(exchange=X, exchange_type="nonsense"),
        406,
        "PRECONDITION_FAILED - unknown exchange type 'nonsense'",
        newer=True,
    ),
    Case(
        "reserved prefix",
        [],
        Exchange.Declare(exchange="amq.mine"),
        403,
        "ACCESS_REFUSED - exchange name 'amq.mine' contains reserved prefix 'amq.*'",
    ),
    Case("declare the default exchange", [], Exchange.Declare(exchange=""), 403, DEFAULT),
    Case(
        "declare the default exchange, passive",
        [],
        Exchange.Declare(exchange="", passive=True),
        403,
        DEFAULT,
    ),
    Case("delete the default exchange", [], Exchange.Delete(exchange=""), 403, DEFAULT),
    Case(
        "delete a predeclared exchange",
        [],
        Exchange.Delete(exchange="amq.direct"),
        403,
        "ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '/' not allowed",
    ),
    Case(
        "delete if unused, but bound",
        [
            DIRECT,
            Queue.Declare(queue=Q),
            Queue.Bind(queue=Q, exchange=X, routing_key="k"),
        ],
        Exchange.Delete(exchange=X, if_unused=True),
        406,
        f"PRECONDITION_FAILED - {RS} in use",
    ),
    Case(
        "delete if unused, but bound to an exchange",
        [DIRECT, Exchange.Bind(source=X, destination="amq.fanout", routing_key="k")],
        Exchange.Delete(exchange=X, if_unused=True),
        406,
        f"PRECONDITION_FAILED - {RS} in use",
    ),
    Case(
        "bind: both ends missing",
        [],
        Exchange.Bind(source=X, destination=Y, routing_key=""),
        404,
        f"NOT_FOUND - no {RS}",
    ),
    Case(
        "bind: source missing",
        [Exchange.Declare(exchange=Y)],
        Exchange.Bind(source=X, destination=Y, routing_key=""),
        404,
        f"NOT_FOUND - no {RS}",
    ),
    Case(
        "bind: destination missing",
        [Exchange.Declare(exchange=Y)],
        Exchange.Bind(source=Y, destination=X, routing_key=""),
        404,
        f"NOT_FOUND - no {RS}",
    ),
    Case(
        "bind from the default exchange",
        [DIRECT],
        Exchange.Bind(source="", destination=X, routing_key=""),
        403,
        DEFAULT,
    ),
    Case(
        "bind to the default exchange",
        [DIRECT],
        Exchange.Bind(source=X, destination="", routing_key=""),
        403,
        DEFAULT,
    ),
    Case(
        "unbind from the default exchange",
        [DIRECT],
        Exchange.Unbind(source="", destination=X, routing_key=""),
        403,
        DEFAULT,
    ),
    Case(
        "headers binding with an unknown x-match",
        [],
        Exchange.Bind(
            source="amq.headers", destination="amq.fanout", arguments={"x-match": "some"}
        ),
        406,
        'PRECONDITION_FAILED - Invalid x-match field value <<"some">>; '
        "expected all, any, all-with-x, or any-with-x",
    ),
    Case(
        "headers binding with an x-match that is no string",
        [],
        Exchange.Bind(
            source="amq.headers", destination="amq.fanout", arguments={"x-match": 70_000}
        ),
        406,
        "PRECONDITION_FAILED - Invalid x-match field type signedint (value 70000); "
        "expected longstr",
    ),
    Case(
        "publish to an internal exchange",
        [Exchange.Declare(exchange=X, internal=True)],
        [
            Basic.Publish(exchange=X, routing_key=""),
            b"\x02\x00\x01\x00\x00\x00\x0e\x00\x3c" + bytes(12) + b"\xce",
        ],
        403,
        f"ACCESS_REFUSED - cannot publish to internal {RS}",
    ),
]


@table(REFUSALS)
def test_refusal(talk: Talk, case: Case) -> None:
    check(talk, case)


@pytest.mark.parametrize(
    "name",
    ["amq.direct", "amq.fanout", "amq.topic", "amq.headers", "amq.match", "amq.rabbitmq.trace"],
)
def test_predeclared(talk: Talk, name: str) -> None:
    talk.call(Exchange.Declare(exchange=name, passive=True))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("amq.direct", "direct"),
        ("amq.fanout", "fanout"),
        ("amq.topic", "topic"),
        ("amq.headers", "headers"),
        ("amq.match", "headers"),
    ],
)
def test_predeclared_may_be_declared_as_they_are(talk: Talk, name: str, kind: str) -> None:
    talk.call(Exchange.Declare(exchange=name, exchange_type=kind, durable=True))


@pytest.mark.parametrize("kind", ["direct", "fanout", "topic", "headers"])
@pytest.mark.parametrize("durable", [False, True])
def test_redeclare_the_same(talk: Talk, kind: str, durable: bool) -> None:
    name = talk.exchange(kind, durable=durable)
    talk.call(Exchange.Declare(exchange=name, exchange_type=kind, durable=durable))
    talk.call(Exchange.Declare(exchange=name, passive=True))


def test_other_arguments_are_not_compared(talk: Talk) -> None:
    name = talk.exchange("direct", arguments={"x-mine": 1})
    talk.call(Exchange.Declare(exchange=name, exchange_type="direct", arguments={"x-mine": 2}))
    talk.call(Exchange.Declare(exchange=name, exchange_type="direct"))


def test_passive_declare_compares_nothing(talk: Talk) -> None:
    name = talk.exchange("direct")
    talk.call(Exchange.Declare(exchange=name, exchange_type="fanout", passive=True, durable=True))


def test_delete_is_idempotent(talk: Talk) -> None:
    name = talk.exchange("direct")
    for _ in range(2):
        talk.call(Exchange.Delete(exchange=name))
    talk.call(Exchange.Delete(exchange=name, if_unused=True))


def test_delete_takes_its_bindings_along(talk: Talk) -> None:
    name = talk.exchange("fanout")
    queue = talk.queue()
    talk.bind(queue, name)
    talk.call(Exchange.Delete(exchange=name))
    talk.call(Exchange.Declare(exchange=name, exchange_type="fanout"))
    talk.publish(name, "", b"x", mandatory=True)
    talk.expect(Basic.Return, reply_code=312)


def test_auto_delete_goes_with_its_last_binding(talk: Talk) -> None:
    name = talk.exchange("direct", auto_delete=True)
    queue = talk.queue()
    talk.bind(queue, name, "a")
    talk.bind(queue, name, "b")
    talk.call(Queue.Unbind(queue=queue, exchange=name, routing_key="a"))
    talk.call(Exchange.Declare(exchange=name, passive=True))
    talk.call(Queue.Unbind(queue=queue, exchange=name, routing_key="b"))
    talk.send(Exchange.Declare(exchange=name, passive=True))
    assert talk.refusal().code == 404


def test_auto_delete_goes_with_its_last_queue(talk: Talk) -> None:
    name = talk.exchange("direct", auto_delete=True)
    queue = talk.queue()
    talk.bind(queue, name, "a")
    talk.call(Queue.Delete(queue=queue))
    assert talk.refused(Exchange.Declare(exchange=name, passive=True)).code == 404


def test_auto_delete_spreads_along_exchanges(talk: Talk) -> None:
    first = talk.exchange("fanout", auto_delete=True)
    second = talk.exchange("fanout", auto_delete=True)
    queue = talk.queue()
    talk.call(Exchange.Bind(source=first, destination=second))
    talk.bind(queue, second)
    talk.call(Queue.Delete(queue=queue))
    for name in (second, first):
        assert talk.refused(Exchange.Declare(exchange=name, passive=True)).code == 404
        talk = talk.client.channel(talk.number + 1)


def test_auto_delete_never_bound_stays(talk: Talk) -> None:
    name = talk.exchange("direct", auto_delete=True)
    talk.call(Exchange.Bind(source="amq.fanout", destination=name))
    talk.call(Exchange.Unbind(source="amq.fanout", destination=name))
    talk.call(Exchange.Declare(exchange=name, passive=True))


def test_unbind_of_what_is_not_there_succeeds(talk: Talk) -> None:
    name = talk.exchange("direct")
    talk.call(Exchange.Unbind(source=name, destination="amq.fanout", routing_key="k"))
    talk.call(Exchange.Unbind(source=unique(), destination=name, routing_key="k"))
    talk.call(Exchange.Unbind(source=name, destination=unique(), routing_key="k"))
    talk.call(Exchange.Unbind(source=unique(), destination=unique(), routing_key="k"))


def test_nowait_variants(talk: Talk) -> None:
    name = unique("nowait")
    queue = talk.queue()
    talk.send(
        Exchange.Declare(exchange=name, exchange_type="fanout", nowait=True),
        Exchange.Bind(source=name, destination="amq.fanout", nowait=True),
        Exchange.Unbind(source=name, destination="amq.fanout", nowait=True),
        Queue.Bind(queue=queue, exchange=name, nowait=True),
    )
    talk.publish(name, "", b"x")
    assert talk.get_soon(queue).body == b"x"
    talk.send(Exchange.Delete(exchange=name, nowait=True))
    assert talk.refused(Exchange.Declare(exchange=name, passive=True)).code == 404


def test_newlines_are_stripped_from_names(talk: Talk) -> None:
    name = unique("lines")
    talk.client.exchanges.add(name)
    talk.call(unchecked(Exchange.Declare, exchange=f"{name[:8]}\r\n{name[8:]}\n"))
    talk.call(Exchange.Declare(exchange=name, passive=True))
