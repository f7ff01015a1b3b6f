"""The routing table in conversations: bindings, cycles, alternates, auto-delete."""

import pytest

from qlog.routing import (
    Binding,
    DefaultExchangeForbidden,
    InvalidArguments,
    InvalidBinding,
    MissingExchange,
    MissingQueue,
    RoutingTable,
    UnknownExchangeType,
)
from tests.routing.support import Plain


def table_with(*queues: str, **types: str) -> RoutingTable:
    table = RoutingTable()
    for queue in queues:
        table.add_queue(queue)
    for exchange, type_name in types.items():
        table.declare_exchange(exchange, type_name)
    return table


NO_HEADERS = Plain(None)


def routed(table: RoutingTable, exchange: str, *keys: str) -> list[str]:
    return sorted(table.route(exchange, keys or ("k",), NO_HEADERS).queues)


def test_predeclared_exchanges() -> None:
    assert {(x.name, x.type, x.durable, x.internal) for x in RoutingTable().exchanges()} == {
        ("", "direct", True, False),
        ("amq.direct", "direct", True, False),
        ("amq.fanout", "fanout", True, False),
        ("amq.headers", "headers", True, False),
        ("amq.match", "headers", True, False),
        ("amq.rabbitmq.trace", "topic", True, True),
        ("amq.topic", "topic", True, False),
    }


def test_default_exchange_reaches_each_queue_by_its_name() -> None:
    table = table_with("a", "b")
    assert routed(table, "", "a") == ["a"]
    assert routed(table, "", "a", "b", "a", "no") == ["a", "b"]
    assert routed(table, "", "no") == []
    table.remove(table.removal_of_queue("a"))
    assert routed(table, "", "a") == []
    assert list(table.bindings()) == [Binding("", "queue", "b", "b")]


def test_default_exchange_cannot_be_touched() -> None:
    table = table_with("q", x="fanout")
    for forbidden in (
        lambda: table.bind("", "queue", "q", "k"),
        lambda: table.bind("x", "exchange", "", "k"),
        lambda: table.unbind("", "queue", "q", "q"),
        lambda: table.unbind("x", "exchange", "", "k"),
        lambda: table.delete_exchange(""),
        lambda: table.declare_exchange("", "direct"),
    ):
        with pytest.raises(DefaultExchangeForbidden):
            forbidden()


@pytest.mark.parametrize(
    ("type_name", "binding_key", "keys", "reached"),
    [
        ("direct", "k", ["k"], True),
        ("direct", "k", ["K"], False),
        ("direct", "#", ["k"], False),
        ("direct", "cc", ["k", "cc"], True),
        ("fanout", "anything", ["k"], True),
        ("topic", "k.*", ["k.x"], True),
        ("topic", "k.x", ["k.x"], True),
        ("topic", "c.#", ["k", "c.c"], True),
        ("topic", "k.*", ["k"], False),
    ],
)
def test_types(type_name: str, binding_key: str, keys: list[str], reached: bool) -> None:
    table = table_with("q", x=type_name)
    table.bind("x", "queue", "q", binding_key)
    assert table.route("x", keys, NO_HEADERS) == ((("q",) if reached else ()), True, ())


def test_several_keys_reach_a_queue_once() -> None:
    table = table_with("q", "r", x="direct")
    table.bind("x", "queue", "q", "a")
    table.bind("x", "queue", "q", "b")
    table.bind("x", "queue", "r", "b")
    assert routed(table, "x", "a", "b") == ["q", "r"]


def test_bindings_differ_by_key_and_arguments() -> None:
    table = table_with("q", x="direct")
    assert table.bind("x", "queue", "q", "k")
    assert not table.bind("x", "queue", "q", "k", {})
    assert table.bind("x", "queue", "q", "k", {"a": 1})
    assert table.bind("x", "queue", "q", "k", {"a": True})
    assert table.bind("x", "queue", "q", "l")
    assert len(list(table.bindings_from("x"))) == 4
    table.unbind("x", "queue", "q", "k", {"a": 2})  # there is none such
    table.unbind("x", "queue", "q", "k")
    assert routed(table, "x", "k") == ["q"]
    table.unbind("x", "queue", "q", "k", {"a": True})
    table.unbind("x", "queue", "q", "k", {"a": 1})
    assert routed(table, "x", "k") == []
    assert routed(table, "x", "l") == ["q"]


def test_a_queue_and_an_exchange_of_one_name_are_two_destinations() -> None:
    table = table_with("same", "q", x="fanout", same="fanout")
    table.bind("same", "queue", "q", "")
    assert table.bind("x", "queue", "same", "")
    assert table.bind("x", "exchange", "same", "")
    assert routed(table, "x") == ["q", "same"]
    table.unbind("x", "queue", "same", "")
    assert routed(table, "x") == ["q"]


def test_unbinding_the_unknown_is_quiet() -> None:
    table = table_with("q", x="direct")
    version = table.version
    assert table.unbind("x", "queue", "q", "k") == []
    assert table.unbind("no", "queue", "q", "k") == []
    assert table.unbind("x", "queue", "no", "k") == []
    assert table.unbind("x", "exchange", "no", "k", {"a": 1}) == []
    assert table.remove(table.removal_of_queue("no")) == []
    assert table.delete_exchange("no") == []
    assert table.version == version


def test_binding_the_unknown_is_refused() -> None:
    table = table_with("q", x="direct")
    version = table.version
    with pytest.raises(MissingExchange, match="'nox'"):
        table.bind("nox", "queue", "noq", "k")  # both are missing: the source is named
    with pytest.raises(MissingQueue, match="'noq'"):
        table.bind("x", "queue", "noq", "k")
    with pytest.raises(MissingExchange, match="'noy'"):
        table.bind("x", "exchange", "noy", "k")
    with pytest.raises(MissingExchange):
        table.route("nox", ["k"], NO_HEADERS)
    assert table.version == version


def test_a_refused_headers_binding_leaves_nothing() -> None:
    table = table_with("q", x="headers")
    with pytest.raises(InvalidBinding):
        table.bind("x", "queue", "q", "", {"x-match": "foo"})
    assert not table.in_use("x")
    assert [binding.source for binding in table.bindings_to("queue", "q")] == [""]


def test_declaring_again_returns_what_is_there() -> None:
    table = RoutingTable()
    first = table.declare_exchange("x", "direct", durable=True, arguments={"a": 1})
    version = table.version
    assert table.declare_exchange("x", "fanout", auto_delete=True) is first
    assert table.exchange("x") is first
    assert table.exchange("y") is None
    assert table.version == version
    with pytest.raises(UnknownExchangeType, match="unknown exchange type 'foo'"):
        table.declare_exchange("x", "foo")


def test_headers_are_asked_for_only_on_the_way_through_a_headers_exchange() -> None:
    table = table_with("q", x="topic", h="headers")
    table.bind("x", "exchange", "h", "h.#")
    table.bind("h", "queue", "q", "", {"a": 1})
    assert table.route("x", ["other"], NO_HEADERS) == ((), True, ())
    assert table.route("x", ["h.1"], Plain({"a": 1})) == (("q",), False, ())
    assert table.route("x", ["h.1"], Plain({})) == ((), False, ())


def test_cycles_end_and_reach_each_queue_once() -> None:
    table = table_with("q", "r", x="fanout", y="fanout", z="direct")
    for source, destination in ("xx", "xy", "yz", "zx", "xz"):
        table.bind(source, "exchange", destination, "k")
    table.bind("y", "queue", "q", "k")
    table.bind("z", "queue", "q", "k")
    table.bind("z", "queue", "r", "k")
    for start in "xyz":
        assert table.route(start, ["k"], NO_HEADERS).queues.count("q") == 1
        assert routed(table, start, "k") == ["q", "r"]


class TestAlternates:
    def table(self, **alternates: str) -> RoutingTable:
        """Direct exchanges, each with an alternate."""
        table = table_with("q")
        for name, alternate in alternates.items():
            table.declare_exchange(name, "direct", arguments={"alternate-exchange": alternate})
        return table

    def test_a_chain_is_followed_to_the_first_match(self) -> None:
        table = self.table(a="b", b="c", c="d")
        table.bind("c", "queue", "q", "k")
        assert routed(table, "a", "k") == ["q"]
        table.add_queue("r")
        table.bind("b", "queue", "r", "k")
        assert routed(table, "a", "k") == ["r"]

    def test_a_match_keeps_the_message_from_the_alternate(self) -> None:
        table = self.table(a="b", b="")
        table.bind("b", "queue", "q", "k")
        assert routed(table, "a", "k") == ["q"]
        # An exchange that leads nowhere is a match as well.
        table.declare_exchange("nowhere", "fanout")
        table.bind("a", "exchange", "nowhere", "k")
        assert routed(table, "a", "k") == []

    def test_an_exchange_further_down_has_its_own(self) -> None:
        table = self.table(a="b")
        table.declare_exchange("x", "fanout")
        table.bind("x", "exchange", "a", "")
        table.declare_exchange("b", "fanout")
        table.bind("b", "queue", "q", "")
        assert routed(table, "x") == ["q"]

    def test_cycles_end(self) -> None:
        table = self.table(a="b", b="a", own="own")
        assert routed(table, "a") == []
        assert routed(table, "own") == []

    def test_one_that_does_not_exist_is_none_until_it_does(self) -> None:
        table = self.table(a="later")
        assert routed(table, "a") == []
        version = table.version
        table.declare_exchange("later", "fanout")
        assert table.version > version
        table.bind("later", "queue", "q", "")
        assert routed(table, "a") == ["q"]

    def test_the_default_exchange_is_none(self) -> None:
        assert routed(self.table(a=""), "a", "q") == []

    def test_a_headers_exchange_as_alternate_makes_the_route_uncacheable(self) -> None:
        table = self.table(a="amq.headers")
        assert table.route("a", ["k"], Plain({})) == ((), False, ())

    def test_an_alternate_is_not_a_use(self) -> None:
        assert not self.table(a="b", b="a").in_use("a")


def test_exchanges_that_keep_a_history_are_named() -> None:
    table = table_with("q", x="fanout", y="x-recent-history", z="x-recent-history")
    table.bind("x", "exchange", "y", "")
    table.bind("x", "exchange", "z", "")
    table.bind("y", "exchange", "z", "")
    table.bind("z", "queue", "q", "")
    assert table.route("x", ["k"], NO_HEADERS) == (("q",), True, ("y", "z"))
    assert table.route("z", ["k"], NO_HEADERS) == (("q",), True, ("z",))
    table.unbind("z", "queue", "q", "")
    assert table.route("z", ["k"], NO_HEADERS) == ((), True, ("z",))


@pytest.mark.parametrize(
    ("length", "term"),
    [
        (0, "0"),
        (-1, "-1"),
        ("5", '<<"5">>'),
        (True, "true"),
        (None, "undefined"),
        (2.5, "2.5"),
        ([], "[]"),
    ],
)
def test_the_length_of_a_history_is_a_positive_integer(length: object, term: str) -> None:
    table = RoutingTable()
    arguments = {"x-recent-history-length": length}
    with pytest.raises(InvalidArguments) as refused:
        table.declare_exchange("x", "x-recent-history", arguments=arguments)
    text = f"Invalid argument {term}, 'x-recent-history-length' must be a positive integer"
    assert str(refused.value) == text


class TestAutoDelete:
    def table(self) -> RoutingTable:
        """Auto-delete exchanges: top to middle to bottom, which has the queue."""
        table = table_with("q")
        for name in ("top", "middle", "bottom"):
            table.declare_exchange(name, "fanout", auto_delete=True)
        table.bind("bottom", "queue", "q", "")
        table.bind("middle", "exchange", "bottom", "")
        table.bind("top", "exchange", "middle", "")
        return table

    def names(self, table: RoutingTable) -> set[str]:
        return {x.name for x in table.exchanges() if x.auto_delete}

    def test_never_bound_survives(self) -> None:
        table = self.table()
        table.declare_exchange("lonely", "fanout", auto_delete=True)
        table.bind("amq.fanout", "exchange", "lonely", "")
        table.unbind("amq.fanout", "exchange", "lonely", "")
        table.unbind("lonely", "queue", "q", "")
        assert "lonely" in self.names(table)

    def test_a_queue_takes_the_whole_chain_with_it(self) -> None:
        table = self.table()
        removed = table.remove(table.removal_of_queue("q"))
        assert removed == ["bottom", "middle", "top"]
        assert removed.bindings == [
            Binding("", "queue", "q", "q"),
            Binding("bottom", "queue", "q", ""),
            Binding("middle", "exchange", "bottom", ""),
            Binding("top", "exchange", "middle", ""),
        ]
        assert self.names(table) == set()
        assert list(table.bindings()) == []

    def test_unbinding_cascades(self) -> None:
        table = self.table()
        assert table.unbind("middle", "exchange", "bottom", "") == ["middle", "top"]
        assert self.names(table) == {"bottom"}

    def test_deleting_an_exchange_cascades_to_its_sources(self) -> None:
        table = self.table()
        removed = table.delete_exchange("bottom")
        assert removed == ["middle", "top"]
        assert len(removed.bindings) == 3
        assert [binding.source for binding in table.bindings()] == [""]

    def test_another_binding_keeps_it(self) -> None:
        table = self.table()
        table.bind("bottom", "queue", "q", "", {"other": 1})
        assert table.unbind("bottom", "queue", "q", "") == []
        assert table.unbind("bottom", "queue", "q", "", {"other": 1}) == ["bottom", "middle", "top"]

    def test_a_binding_to_itself_counts(self) -> None:
        table = self.table()
        table.declare_exchange("own", "fanout", auto_delete=True)
        table.bind("own", "exchange", "own", "")
        table.bind("own", "queue", "q", "")
        assert table.unbind("own", "queue", "q", "") == []
        removed = table.unbind("own", "exchange", "own", "")
        assert removed == ["own"]
        assert len(removed.bindings) == 1

    def test_deleting_one_bound_to_itself(self) -> None:
        table = self.table()
        table.declare_exchange("own", "fanout", auto_delete=True)
        table.bind("own", "exchange", "own", "")
        removed = table.delete_exchange("own")
        assert removed == []
        assert removed.bindings == [Binding("own", "exchange", "own", "")]


def test_in_use_means_as_a_source() -> None:
    table = table_with("q", x="fanout", y="fanout")
    table.bind("x", "exchange", "y", "")
    assert table.in_use("x")
    assert not table.in_use("y")
    assert not table.in_use("unknown")


def test_bindings_are_listed_from_both_ends() -> None:
    table = table_with("q", x="fanout", y="fanout")
    table.bind("x", "exchange", "y", "k")
    table.bind("y", "queue", "q", "k", {"a": 1})
    assert list(table.bindings_from("x")) == [Binding("x", "exchange", "y", "k")]
    assert list(table.bindings_to("exchange", "y")) == [Binding("x", "exchange", "y", "k")]
    assert [(b.source, dict(b.arguments)) for b in table.bindings_to("queue", "q")] == [
        ("", {}),
        ("y", {"a": 1}),
    ]
    assert list(table.bindings_from("unknown")) == []
    assert list(table.bindings_to("queue", "unknown")) == []
    assert len(list(table.bindings())) == 3


@pytest.mark.parametrize(
    ("let", "queues", "cacheable"), [(None, ["q"], True), (True, ["q"], False), (False, [], False)]
)
def test_a_gate_lets_all_messages_pass_or_is_asked_for_each(
    let: bool | None, queues: list[str], cacheable: bool
) -> None:
    table = table_with("q")
    table.declare_exchange("d", "x-delayed-message", arguments={"x-delayed-type": "direct"})
    table.bind("d", "queue", "q", "k")
    assert table.has_gates
    found = table.route("d", ["k"], NO_HEADERS, lambda name: let)
    assert (list(found.queues), found.cacheable) == (queues, cacheable)
