"""The routing table against a list of bindings and a naive search, under random histories."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qlog.routing import Binding, DestinationKind, Exchange, Removed, RoutingTable
from tests.routing import naive
from tests.routing.support import Plain

QUEUES = ["q1", "q2", "q3"]
NAMES = ["x1", "x2", "x3", "x4", "x5"]
queues = st.sampled_from(QUEUES)
names = st.sampled_from(NAMES)
keys = st.sampled_from(["a", "a.b", "#", "*", "a.#", "*.b", ""])
headers = st.dictionaries(
    st.sampled_from(["h", "i", "x-h"]), st.sampled_from(["1", "2"]), max_size=2
)
arguments = st.one_of(
    st.just({}),
    st.builds(
        lambda wanted, x_match: {**wanted, "x-match": x_match},
        headers,
        st.sampled_from(["all", "any", "all-with-x", "any-with-x"]),
    ),
)
# How many bindings go at once.
parts = st.none() | st.integers(1, 4)
ends = st.one_of(st.tuples(st.just("queue"), queues), st.tuples(st.just("exchange"), names))


class Histories(RuleBasedStateMachine):
    """Each rule does the same to the table and to plain collections."""

    def __init__(self) -> None:
        super().__init__()
        self.table = RoutingTable()
        self.exchanges = {exchange.name: exchange for exchange in self.table.exchanges()}
        self.queues: set[str] = set()
        self.bindings: list[Binding] = []
        self.version = self.table.version
        for queue in QUEUES:
            self.add_queue(queue)
        for name, type_name in zip(NAMES, ["direct", "topic", "fanout", "headers"], strict=False):
            self.declare(name, type_name, False, None)

    def add_queue(self, name: str) -> None:
        self.table.add_queue(name)
        if name not in self.queues:
            self.queues.add(name)
            self.bindings.append(Binding("", "queue", name, name))

    @rule(name=queues)
    def add_queue_again(self, name: str) -> None:
        self.add_queue(name)

    @rule(
        name=names,
        type_name=st.sampled_from(["direct", "fanout", "headers", "topic"]),
        auto_delete=st.booleans(),
        alternate=st.none() | names,
    )
    def declare(self, name: str, type_name: str, auto_delete: bool, alternate: str | None) -> None:
        extra = {} if alternate is None else {"alternate-exchange": alternate}
        returned = self.table.declare_exchange(
            name, type_name, auto_delete=auto_delete, arguments=extra
        )
        mine = Exchange(name, type_name, False, auto_delete, False, extra)
        assert returned == self.exchanges.setdefault(name, mine)

    @rule(source=names, end=ends, key=keys, arguments=arguments)
    def bind(
        self, source: str, end: tuple[DestinationKind, str], key: str, arguments: dict[str, object]
    ) -> None:
        kind, destination = end
        known = self.queues if kind == "queue" else self.exchanges
        if source in self.exchanges and destination in known:
            binding = Binding(source, kind, destination, key, arguments)
            new = self.table.bind(source, kind, destination, key, arguments)
            assert (new is None) == (binding in self.bindings)
            if new is not None:
                self.bindings.append(binding)

    @rule(data=st.data(), bindings_max=parts)
    def unbind(self, data: st.DataObject, bindings_max: int | None) -> None:
        explicit = [binding for binding in self.bindings if binding.source]
        if explicit:
            b = data.draw(st.sampled_from(explicit))
            names = b.source, b.kind, b.destination, b.routing_key, b.arguments
            self.remove([b], self.table.removal_of_binding(*names, bindings_max), bindings_max)

    @rule(name=queues, bindings_max=parts)
    def remove_queue(self, name: str, bindings_max: int | None) -> None:
        self.queues.discard(name)
        gone = [b for b in self.bindings if (b.kind, b.destination) == ("queue", name)]
        self.remove(gone, self.table.removal_of_queue(name, bindings_max), bindings_max)

    @rule(name=names, bindings_max=parts)
    def delete_exchange(self, name: str, bindings_max: int | None) -> None:
        removal = self.table.removal_of_exchange(name, bindings_max)
        self.exchanges.pop(name, None)
        gone = [b for b in self.bindings if ("exchange", name) == (b.kind, b.destination)]
        gone += [b for b in self.bindings if b.source == name and b not in gone]
        self.remove(gone, removal, bindings_max)

    def remove(self, gone: list[Binding], first: Removed, bindings_max: int | None) -> None:
        """Take bindings out, and auto-delete exchanges until none is left without bindings."""
        removed = self.whole(first, bindings_max)
        all_gone: list[Binding] = []
        deleted: list[str] = []
        while gone:
            all_gone += gone
            self.bindings = [b for b in self.bindings if b not in gone]
            bound = {b.source for b in self.bindings}
            emptied = {b.source for b in gone if b.source not in bound}
            dying = [n for n in emptied if n in self.exchanges and self.exchanges[n].auto_delete]
            deleted += dying
            for name in dying:
                del self.exchanges[name]
            gone = [b for b in self.bindings if b.kind == "exchange" and b.destination in dying]
        assert sorted(removed) == sorted(deleted)
        assert len(removed.bindings) == len(all_gone)
        assert set(removed.bindings) == set(all_gone)

    def whole(self, part: Removed, bindings_max: int | None) -> Removed:
        """Remove a part, and all that it leaves to be removed; all of that together."""
        whole = Removed()
        going: list[tuple[DestinationKind, str]] = []
        while True:
            assert bindings_max is None or len(part.bindings) <= bindings_max
            self.table.remove(part)
            whole += part
            whole.bindings += part.bindings
            whole.emptied += part.emptied
            if part.complete and going:
                going.pop(0)
            going += [end for end in part.going if end not in going]
            assert all(self.table.is_going(kind, name) for kind, name in going)
            if not going:
                # An exchange that was emptied is removed by its name, later.
                whole += whole.emptied
                return whole
            assert bindings_max is not None
            self.routes_pass_by(going)
            kind, name = going[0]
            table = self.table
            removal = table.removal_of_queue if kind == "queue" else table.removal_of_exchange
            part = removal(name, bindings_max)

    def routes_pass_by(self, going: list[tuple[DestinationKind, str]]) -> None:
        """Messages go as if nothing led to what is removed in parts."""
        gone = {name for kind, name in going if kind == "exchange"}
        exchanges = {x.name: x for x in self.table.exchanges() if x.name not in gone}
        bindings = [b for b in self.table.bindings() if (b.kind, b.destination) not in going]
        for start in exchanges:
            found, cacheable, _ = self.table.route(start, ["a.b"], Plain({"h": "1"}))
            assert len(found) == len(set(found))
            expected = naive.route(exchanges, bindings, start, ["a.b"], {"h": "1"})
            assert (set(found), cacheable) == expected

    @rule(
        asked=st.lists(st.sampled_from(["a", "a.b", "", "q1", "c.b"]), min_size=1, max_size=3),
        headers=headers,
    )
    def route(self, asked: list[str], headers: dict[str, object]) -> None:
        for start in self.exchanges:
            found, cacheable, _ = self.table.route(start, asked, Plain(headers))
            assert len(found) == len(set(found))
            expected = naive.route(self.exchanges, self.bindings, start, asked, headers)
            assert (set(found), cacheable) == expected

    @invariant()
    def lists_what_there_is(self) -> None:
        assert {x.name: x for x in self.table.exchanges()} == self.exchanges
        listed = list(self.table.bindings())
        assert len(listed) == len(self.bindings)
        assert set(listed) == set(self.bindings)
        for name in NAMES:
            outgoing = {b for b in self.bindings if b.source == name}
            assert set(self.table.bindings_from(name)) == outgoing
            assert self.table.in_use(name) == bool(outgoing)
            incoming = {b for b in self.bindings if (b.kind, b.destination) == ("exchange", name)}
            assert set(self.table.bindings_to("exchange", name)) == incoming

    @invariant()
    def version_tells_of_changes(self) -> None:
        now = (list(self.table.exchanges()), list(self.table.bindings()))
        changed = now != getattr(self, "seen", now)
        assert (self.table.version > self.version) >= changed
        self.seen, self.version = now, self.table.version


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase
