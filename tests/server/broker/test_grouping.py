"""Grouping: disjoint sets of queues may change places, but each queue's messages never do."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from qlog.server.amqp.envelope import Envelope
from qlog.server.broker.channels.grouping import Grouping
from qlog.server.broker.queues.arguments import QueueArguments
from qlog.server.broker.queues.effective import Effective
from qlog.server.broker.queues.targets import Targets
from qlog.server.broker.queues.type import Declaration, QueueType

NAMES = "abcd"


class NamedQueue:
    """As much of a queue as grouping looks at."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lane = object()
        self.declared = Declaration(
            "/",
            name,
            durable=True,
            auto_delete=False,
            exclusive=False,
            arguments=QueueArguments({}),
        )
        self.effective = Effective(self.declared.arguments, consumer_timeout_s=0.0)


QUEUES = {name: NamedQueue(name) for name in NAMES}
SETS = st.sets(st.sampled_from(NAMES), min_size=1).map(frozenset)


def targets_of(known: dict[frozenset[str], Targets], names: frozenset[str]) -> Targets:
    if names not in known:
        queues = tuple(cast(QueueType, QUEUES[name]) for name in sorted(names))
        known[names] = Targets(queues)
    return known[names]


def grouped(messages: list[tuple[frozenset[str], bool, bool]]) -> Grouping:
    grouping = Grouping()
    known: dict[frozenset[str], Targets] = {}
    for number, (names, persistent, plain) in enumerate(messages):
        group = grouping.group(targets_of(known, names), persistent, plain)
        if plain:
            assert grouping.open[group.targets] is group
        group.envelopes.append(Envelope.pack("", "", b"\0\0", 1))
        group.bodies.append(b"%d" % number)
    return grouping


@given(st.lists(st.tuples(SETS, st.booleans(), st.booleans()), max_size=40))
def test_each_queue_gets_its_messages_in_order(
    messages: list[tuple[frozenset[str], bool, bool]],
) -> None:
    got: dict[str, list[tuple[bytes, bool, bool]]] = {name: [] for name in NAMES}
    grouping = grouped(messages)
    for group in grouping.groups:
        assert len(group.envelopes) == len(group.bodies) > 0
        for queue in group.targets.queues:
            got[queue.name] += [(body, group.persistent, group.plain) for body in group.bodies]
    for name in NAMES:
        assert got[name] == [
            (b"%d" % number, persistent, plain)
            for number, (names, persistent, plain) in enumerate(messages)
            if name in names
        ]


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=40))
def test_disjoint_sets_are_one_group_each(names: list[str]) -> None:
    grouping = grouped([(frozenset(name), True, True) for name in names])
    assert len(grouping.groups) == len(set(names))


def test_sets_that_overlap_are_parted_where_they_meet() -> None:
    ab, a, c = frozenset("ab"), frozenset("a"), frozenset("c")
    grouping = grouped([(names, True, True) for names in (ab, c, ab, a, c, a, ab)])
    assert [group.bodies for group in grouping.groups] == [
        [b"0", b"2"],
        [b"1", b"4"],
        [b"3", b"5"],
        [b"6"],
    ]


def test_persistent_and_transient_messages_for_one_queue_keep_their_order() -> None:
    grouping = grouped(
        [(frozenset("a"), persistent, True) for persistent in (True, False, False, True)]
    )
    assert [group.bodies for group in grouping.groups] == [[b"0"], [b"1", b"2"], [b"3"]]


def test_messages_that_need_more_than_an_append_keep_their_order_among_the_others() -> None:
    grouping = grouped([(frozenset("a"), True, plain) for plain in (True, False, False, True)])
    assert [(group.bodies, group.plain) for group in grouping.groups] == [
        ([b"0"], True),
        ([b"1", b"2"], False),
        ([b"3"], True),
    ]
