"""The exchanges and bindings of one vhost, and the way of a message through them.

Promises that each queue is found once however many ways lead to it, that cycles of exchanges and
of alternates end, and that `version` grows with every change that may alter a route.
Knows queues by name only; does not know users, reply codes, durability rules or reserved names.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple, TypeAlias

from qlog.routing.binding import NO_ARGUMENTS, Binding, DestinationKind
from qlog.routing.errors import (
    DefaultExchangeForbidden,
    MissingExchange,
    MissingQueue,
)
from qlog.routing.exchange import PREDECLARED, TYPES, Exchange, Matcher, assert_type
from qlog.routing.message import Message
from qlog.routing.recent_history import RECENT_HISTORY

# What a binding leads to.
End: TypeAlias = tuple[DestinationKind, str]


class Routed(NamedTuple):
    """Where a message goes: `queues`, each once, none when it is unroutable.

    `cacheable` says that exchange and routing keys alone decided it: callers may remember the
    route until the table's `version` changes. `histories` are the exchanges on the way that keep
    the message, those of the type `x-recent-history`.
    """

    queues: tuple[str, ...]
    cacheable: bool
    histories: tuple[str, ...] = ()


class Removed(list[str]):
    """The auto-delete exchanges that a removal takes with it, by name, in the order they go.

    `queue` or `exchange` is what was to be removed; `bindings` are all the bindings that go, the
    implicit one of a queue (source "") included. `complete`: nothing is left to be removed of what
    was to be. `emptied` are further auto-delete exchanges that lose their last binding: they have
    to be removed next, as too many bindings lead to them for one removal.
    """

    __slots__ = ("bindings", "complete", "emptied", "exchange", "queue")

    def __init__(self, *, queue: str | None = None, exchange: str | None = None) -> None:
        super().__init__()
        self.queue = queue
        self.exchange = exchange
        self.bindings: list[Binding] = []
        self.emptied: list[str] = []
        self.complete = True

    @property
    def exchanges(self) -> list[str]:
        """All exchanges that go, by name."""
        named = [] if self.exchange is None else [self.exchange]
        return [*named, *self, *self.emptied]

    @property
    def going(self) -> list[End]:
        """What is gone for everybody, yet has bindings that further removals have to take away."""
        going: list[End] = [("exchange", name) for name in self.emptied]
        if not self.complete and self.queue is not None:
            going.append(("queue", self.queue))
        elif not self.complete and self.exchange is not None:
            going.append(("exchange", self.exchange))
        return going


class _Source:
    """An exchange in the table, with the bindings that lead out of it."""

    __slots__ = ("alternate", "bindings", "exchange", "gated", "keeps_history", "matcher")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.alternate = exchange.alternate
        self.keeps_history = exchange.type == RECENT_HISTORY
        self.gated = exchange.gated
        self.matcher: Matcher = TYPES[exchange.type](exchange.arguments)
        self.bindings: dict[Binding, None] = {}


class RoutingTable:
    """The exchanges and bindings of one vhost. Starts with the predeclared exchanges.

    The default exchange "" is a direct exchange to which `add_queue` binds each queue by its
    name; these implicit bindings are listed like all others, with source "".

    A removal has two steps: `removal_of_…` works out what goes, and `remove` does it. In between
    the caller can write the removal down. The table must not change between the two steps. A large
    removal may be done in parts, between which the table may change and messages are routed: no
    message finds its way to, or through, what is `going` in parts.
    """

    def __init__(self) -> None:
        self.version = 0
        self._queues: set[str] = set()
        self._sources = {exchange.name: _Source(exchange) for exchange in PREDECLARED}
        self._incoming: dict[End, dict[Binding, None]] = {}
        self._going: set[End] = set()
        self._gated: set[str] = set()

    @property
    def has_gates(self) -> bool:
        """Whether there is an exchange that does not route each message at once."""
        return bool(self._gated)

    # Queues

    def add_queue(self, name: str) -> None:
        """Make a queue known, reachable through the default exchange. Again: no effect."""
        if name not in self._queues:
            self._queues.add(name)
            self._attach(Binding("", "queue", name, name))

    def removal_of_queue(self, name: str, bindings_max: int | None = None) -> Removed:
        """What goes with a queue; nothing when it is unknown.

        With `bindings_max` the result has at most that many bindings. While the result is not
        `complete`, the queue stays, and the caller has to remove more; so it has to with exchanges
        that are `emptied`. The implicit binding of the queue goes first.
        """
        bindings = self._incoming.get(("queue", name), {})
        removed = Removed(queue=name)
        self._cascade(removed, _some(removed, bindings, bindings_max), bindings_max)
        return removed

    # Exchanges

    def declare_exchange(
        self,
        name: str,
        type: str,
        *,
        durable: bool = False,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: Mapping[str, object] = NO_ARGUMENTS,
    ) -> Exchange:
        """Return the exchange of this name, created if there was none.

        An exchange that exists is returned as it is: the caller compares. Raises
        UnknownExchangeType (also when the exchange exists, as RabbitMQ does), InvalidArguments
        (only when it does not) and DefaultExchangeForbidden.
        """
        assert_type(type)
        if name == "":
            raise DefaultExchangeForbidden
        source = self._sources.get(name)
        if source is None:
            exchange = Exchange(name, type, durable, auto_delete, internal, arguments)
            source = self._sources[name] = _Source(exchange)
            if source.gated:
                self._gated.add(name)
            self.version += 1
        return source.exchange

    def set_alternate(self, name: str, alternate: str | None) -> None:
        """The alternate exchange by policy of an exchange that is there; None: there is none.

        One that was given by argument counts instead, also if it is the default exchange (RabbitMQ,
        rabbit_policy:get_arg). The default exchange has no alternate.
        """
        source = self._sources[name]
        if name == "" or "alternate-exchange" in source.exchange.arguments:
            return
        alternate = alternate or None
        if source.alternate != alternate:
            source.alternate = alternate
            self.version += 1

    def removal_of_exchange(self, name: str, bindings_max: int | None = None) -> Removed:
        """What goes with an exchange: all bindings from it and to it; nothing when it is unknown.

        The result names further exchanges only. `bindings_max` as in `removal_of_queue`. Raises
        DefaultExchangeForbidden.
        """
        if name == "":
            raise DefaultExchangeForbidden
        source = self._sources.get(name)
        if source is None:
            return Removed()
        incoming = self._incoming.get(("exchange", name), {})
        bindings = chain(source.bindings, (b for b in incoming if b.source != name))
        removed = Removed(exchange=name)
        self._cascade(removed, _some(removed, bindings, bindings_max), bindings_max)
        return removed

    def delete_exchange(self, name: str) -> Removed:
        """Forget an exchange and what goes with it; unknown: no effect.

        Raises DefaultExchangeForbidden.
        """
        return self.remove(self.removal_of_exchange(name))

    def __contains__(self, name: str) -> bool:
        """Whether there is an exchange of this name."""
        return name in self._sources

    def exchange(self, name: str) -> Exchange | None:
        """Return the exchange of this name, None when there is none."""
        source = self._sources.get(name)
        return None if source is None else source.exchange

    def exchanges(self) -> Iterator[Exchange]:
        """Iterate over all exchanges, the default one and the predeclared included."""
        return (source.exchange for source in self._sources.values())

    def in_use(self, name: str) -> bool:
        """Tell whether the exchange has bindings as a source (what `if-unused` asks)."""
        source = self._sources.get(name)
        return source is not None and bool(source.bindings)

    # Bindings

    def bind(
        self,
        source: str,
        kind: DestinationKind,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, object] = NO_ARGUMENTS,
        place: int | None = None,
    ) -> Binding | None:
        """Bind a queue or an exchange to the exchange `source`.

        Returns the binding, None if it is not new. `place` is what the binding had before a
        restart. Raises MissingExchange, MissingQueue (the source is looked up first),
        InvalidBinding and DefaultExchangeForbidden.
        """
        if source == "" or (kind == "exchange" and destination == ""):
            raise DefaultExchangeForbidden
        if source not in self._sources:
            raise MissingExchange(source)
        if kind == "queue" and destination not in self._queues:
            raise MissingQueue(destination)
        if kind == "exchange" and destination not in self._sources:
            raise MissingExchange(destination)
        binding = Binding(source, kind, destination, routing_key, arguments)
        if binding in self._sources[source].bindings:
            return None
        return self._attach(binding, place)

    def removal_of_binding(
        self,
        source: str,
        kind: DestinationKind,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, object] = NO_ARGUMENTS,
        bindings_max: int | None = None,
    ) -> Removed:
        """What goes with a binding; nothing when there is none, or an end is unknown.

        `bindings_max` as in `removal_of_queue`. Raises DefaultExchangeForbidden.
        """
        if source == "" or (kind == "exchange" and destination == ""):
            raise DefaultExchangeForbidden
        binding = Binding(source, kind, destination, routing_key, arguments)
        known = source in self._sources and binding in self._sources[source].bindings
        removed = Removed()
        self._cascade(removed, [binding] if known else (), bindings_max)
        return removed

    def unbind(
        self,
        source: str,
        kind: DestinationKind,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, object] = NO_ARGUMENTS,
    ) -> Removed:
        """Remove a binding and what goes with it; no effect when there is none.

        Raises DefaultExchangeForbidden.
        """
        return self.remove(
            self.removal_of_binding(source, kind, destination, routing_key, arguments)
        )

    def bound(self, binding: Binding) -> bool:
        """Tell whether there is such a binding."""
        source = self._sources.get(binding.source)
        return source is not None and binding in source.bindings

    def is_going(self, kind: DestinationKind, name: str) -> bool:
        """Tell whether it was removed in part, and not yet whole."""
        return (kind, name) in self._going

    def bindings(self) -> Iterator[Binding]:
        """Iterate over all bindings, the implicit ones (source "") included."""
        return (binding for source in self._sources.values() for binding in source.bindings)

    def bindings_from(self, source: str) -> Iterator[Binding]:
        """Iterate over the bindings that lead out of an exchange; none when it is unknown."""
        known = self._sources.get(source)
        return iter(()) if known is None else iter(known.bindings)

    def binding_count(self, source: str) -> int:
        """How many bindings lead out of an exchange."""
        known = self._sources.get(source)
        return 0 if known is None else len(known.bindings)

    def bindings_to(self, kind: DestinationKind, destination: str) -> Iterator[Binding]:
        """Iterate over the bindings that lead to a queue or an exchange."""
        return iter(self._incoming.get((kind, destination), ()))

    def _attach(self, binding: Binding, place: int | None = None) -> Binding:
        source = self._sources[binding.source]
        place = source.matcher.add(binding, place)  # first, as it alone may refuse
        if place is not None:
            binding = replace(binding, place=place)
        source.bindings[binding] = None
        self._incoming.setdefault((binding.kind, binding.destination), {})[binding] = None
        self.version += 1
        return binding

    def _detach(self, binding: Binding) -> None:
        source = self._sources[binding.source]
        source.matcher.remove(binding)
        del source.bindings[binding]
        incoming = self._incoming[binding.kind, binding.destination]
        del incoming[binding]
        if not incoming:
            del self._incoming[binding.kind, binding.destination]
        self.version += 1

    def _cascade(
        self, removed: Removed, bindings: Iterable[Binding], bindings_max: int | None
    ) -> None:
        """Add bindings, every auto-delete exchange left without any, its bindings, and so on.

        An auto-delete exchange goes when the last binding that had it as source goes. An exchange
        that never had a binding stays (RabbitMQ). One whose bindings would be more than
        `bindings_max` with all the others is `emptied`. One that is going already is left to whoever
        removes it.
        """
        going = dict.fromkeys(bindings)
        todo = list(going)
        left: dict[str, int] = {}
        for binding in todo:  # grows while it is walked
            name = binding.source
            source = self._sources[name]
            left[name] = left.get(name, len(source.bindings)) - 1
            if left[name] or not source.exchange.auto_delete or name == removed.exchange:
                continue
            if ("exchange", name) in self._going:
                continue
            incoming = self._incoming.get(("exchange", name), {})
            if bindings_max is not None and len(todo) + len(incoming) > bindings_max:
                removed.emptied.append(name)
                continue
            removed.append(name)
            further = [b for b in incoming if b not in going]
            going.update(dict.fromkeys(further))
            todo += further
        removed.bindings = todo

    def remove(self, removed: Removed) -> Removed:
        """Forget what a removal takes with it."""
        for binding in removed.bindings:
            self._detach(binding)
        self._going.update(removed.going)
        gone = list(removed)
        if removed.complete:
            if removed.exchange is not None:
                gone.append(removed.exchange)
                self._going.discard(("exchange", removed.exchange))
            if removed.queue is not None:
                self._queues.discard(removed.queue)
                self._going.discard(("queue", removed.queue))
        for name in gone:
            del self._sources[name]
            self._gated.discard(name)
        if gone:
            self.version += 1
        return removed

    # Routing

    def route(
        self,
        exchange: str,
        routing_keys: Sequence[str],
        message: Message,
        passes: Callable[[str], bool | None] | None = None,
    ) -> Routed:
        """Find the queues of a message published to `exchange`. Raises MissingExchange.

        `routing_keys` are the message's own, which comes first, and those of CC and BCC; `message`
        is asked once by each exchange on the way that has to know more. An exchange where no
        binding matches hands the message to its alternate, and so on; an alternate that does not
        exist is ignored (RabbitMQ). `passes` is asked at each exchange on the way that is `gated`:
        if it says False, the message gets no further there; None: it passes, and so do all others. It
        must be given if there is one.
        """
        if exchange not in self._sources:
            raise MissingExchange(exchange)
        queues: dict[str, None] = {}
        histories: list[str] = []
        cacheable = True
        path = {exchange: None}
        todo = [exchange]
        for name in todo:  # grows while it is walked
            source = self._sources.get(name)
            if source is None or (name != exchange and ("exchange", name) in self._going):
                continue  # an alternate that does not exist
            if source.gated:
                assert passes is not None
                let = passes(name)
                cacheable = cacheable and let is None
                if let is False:
                    continue
            if source.keeps_history:
                histories.append(name)
            matcher = source.matcher
            cacheable = cacheable and matcher.cacheable
            matched = matcher.match(routing_keys, message)
            if self._going:
                matched = [b for b in matched if (b.kind, b.destination) not in self._going]
            for binding in matched:
                if binding.kind == "queue":
                    queues[binding.destination] = None
                elif binding.destination not in path:
                    path[binding.destination] = None
                    todo.append(binding.destination)
            if not matched and source.alternate is not None and source.alternate not in path:
                path[source.alternate] = None
                todo.append(source.alternate)
        return Routed(tuple(queues), cacheable, tuple(histories))


def _some(
    removed: Removed, bindings: Iterable[Binding], bindings_max: int | None
) -> Iterable[Binding]:
    """The first of the bindings; the removal is complete if there are no others."""
    if bindings_max is None:
        return bindings
    some = list(islice(bindings, bindings_max + 1))
    removed.complete = len(some) <= bindings_max
    return some[:bindings_max]
