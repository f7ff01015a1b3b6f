"""Deletions and unbinds beside each other, in parts: what is left is what any order of them leaves."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from qlog.routing.binding import DestinationKind
from qlog.routing.table import End
from qlog.server.broker import removals
from qlog.server.broker.outcome import Outcome
from tests.server.broker.support import Bench

QUEUES = ("q0", "q1")
EXCHANGES = ("x0", "x1", "x2", "x3", "x4")


class Bound(NamedTuple):
    """A binding."""

    source: str
    kind: DestinationKind
    destination: str
    key: str


class Begin(NamedTuple):
    """Delete an end, or unbind, and let all jobs have so many slices."""

    what: End | Bound
    slices: int


ends = st.one_of(
    st.tuples(st.just("queue"), st.sampled_from(QUEUES)),
    st.tuples(st.just("exchange"), st.sampled_from(EXCHANGES)),
)
bounds = st.builds(
    lambda source, end, key: Bound(source, end[0], end[1], key),
    st.sampled_from(EXCHANGES),
    ends,
    st.sampled_from("abc"),
)
beginnings = st.builds(Begin, st.one_of(ends, bounds), st.integers(0, 2))


def left(
    bindings: set[Bound], auto_delete: frozenset[str], begun: list[Begin]
) -> tuple[set[str], set[Bound]]:
    """Exchanges and bindings that are left when all is done."""
    exchanges = set(EXCHANGES)
    sources = {binding.source for binding in bindings}
    gone: set[End | Bound] = {begin.what for begin in begun}
    while True:
        kept = {
            binding
            for binding in bindings
            if binding not in gone
            and (binding.kind, binding.destination) not in gone
            and ("exchange", binding.source) not in gone
        }
        bound = {binding.source for binding in kept}
        emptied: set[End | Bound] = {("exchange", name) for name in auto_delete & sources - bound}
        if emptied <= gone:
            return exchanges - {what[1] for what in gone if what[0] == "exchange"}, kept
        gone |= emptied


@settings(max_examples=60, deadline=None)
@given(
    st.lists(bounds, min_size=10, max_size=30, unique=True),
    st.frozensets(st.sampled_from(EXCHANGES)),
    st.lists(beginnings, min_size=1, max_size=8),
)
def test_deletions_beside_each_other(
    bindings: list[Bound], auto_delete: frozenset[str], begun: list[Begin]
) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(removals, "BINDINGS_AT_ONCE", 2),
    ):
        bench = Bench(Path(directory) / "data")
        try:
            set_up(bench, bindings, auto_delete)
            delete(bench, begun)
            for _ in range(2):
                exchanges, kept = left(set(bindings), auto_delete, begun)
                vhost = bench.broker.vhosts["/"]
                routing = vhost.routing
                assert {x.name for x in routing.exchanges()} & set(EXCHANGES) == exchanges
                found = [
                    Bound(b.source, b.kind, b.destination, b.routing_key)
                    for b in routing.bindings()
                ]
                assert {bound for bound in found if bound.source} == kept
                assert len(list(bench.broker.definitions.bindings())) == len(kept)
                assert not any(routing.is_going("queue", name) for name in QUEUES)
                assert not any(routing.is_going("exchange", name) for name in EXCHANGES)
                assert not any(vhost.removals.leaving("exchange", name) for name in EXCHANGES)
                bench.restart()
        finally:
            bench.close()


def set_up(bench: Bench, bindings: list[Bound], auto_delete: frozenset[str]) -> None:
    """All that is durable, and jobs of which each slice is one step."""
    bench.broker.services.jobs.clock_s = itertools.count().__next__
    vhost = bench.broker.vhosts["/"]
    for name in QUEUES:
        vhost.declare_queue(
            name, None, durable=True, exclusive=False, auto_delete=False, arguments={}
        )
    for name in EXCHANGES:
        vhost.declare_exchange(
            name,
            "direct",
            durable=True,
            auto_delete=name in auto_delete,
            internal=False,
            arguments={},
        )
    for binding in bindings:
        vhost.bind(*binding, {})


def delete(bench: Bench, begun: list[Begin]) -> None:
    """Begin all of it, one after the other, and go on until it is done."""
    operations, vhost = bench.broker.operations, bench.broker.vhosts["/"]
    outcomes: list[Outcome[Any]] = []
    for what, slices in begun:
        if isinstance(what, Bound):
            if what.kind == "exchange" or what.destination in vhost.queues:
                outcomes.append(operations.unbind(vhost, None, *what, {}).effect)
        elif what[0] == "queue":
            deleted = operations.delete_queue(vhost, None, what[1], if_unused=False, if_empty=False)
            outcomes.append(deleted.effect)
        else:
            outcomes.append(operations.delete_exchange(vhost, what[1], if_unused=False).effect)
        for _ in range(slices):
            bench.broker.work()
    while bench.broker.jobs_left:
        bench.broker.work()
    for outcome in outcomes:
        outcome.result()
