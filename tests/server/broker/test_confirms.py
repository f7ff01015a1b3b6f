"""Confirms: in order, cumulative where outcomes are alike, and none before its ticket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qlog.server.amqp import spec
from qlog.server.amqp.connection import Connection
from qlog.server.amqp.frames import method_frame
from qlog.server.amqp.spec import BasicAck, BasicNack
from qlog.server.broker.channels.confirms import Confirms
from qlog.server.broker.stats import Stats
from tests.server.broker.support import ListSink


class FakeChannel:
    """A channel that is a list of what was sent."""

    number = 7

    def __init__(self) -> None:
        self.sink = ListSink(Connection())
        self.closed = False

    def told(self) -> list[tuple[int, bool, bool]]:
        """(sequence, multiple, nack) of what was sent since the last call."""
        result = []
        for said in self.sink.take():
            assert said.channel == self.number
            assert isinstance(said.method, BasicAck | BasicNack)
            nack = isinstance(said.method, BasicNack)
            result.append((said.method.delivery_tag, said.method.multiple, nack))
        return result


def confirming() -> tuple[FakeChannel, Confirms]:
    channel = FakeChannel()
    confirms = Confirms(channel, Stats())
    confirms.select()
    return channel, confirms


def test_frames_are_those_of_the_generic_encoder() -> None:
    channel, confirms = confirming()
    confirms.sequence = 3
    confirms.note(0, (3,))
    confirms.confirm_through(0)
    assert b"".join(channel.sink.written) == method_frame(7, spec.BasicAck(2, True)) + method_frame(
        7, spec.BasicNack(3, False, False)
    )


def test_alike_neighbours_are_one_answer() -> None:
    channel, confirms = confirming()
    for ticket, rejected in ((1, ()), (2, (3, 4)), (3, (5,)), (4, ())):
        confirms.sequence += 2
        confirms.note(ticket, rejected)
    assert not confirms.confirm_through(3)
    assert channel.told() == [(2, True, False), (5, True, True), (6, False, False)]
    assert confirms.confirm_through(4)
    assert channel.told() == [(8, True, False)]


def test_an_early_ticket_waits_for_a_late_one_before_it() -> None:
    channel, confirms = confirming()
    confirms.sequence = 1
    confirms.note(9)
    confirms.sequence = 2
    confirms.note(0, (2,))
    assert not confirms.confirm_through(8) and channel.told() == []
    assert confirms.confirm_through(9)
    assert channel.told() == [(1, False, False), (2, False, True)]


def test_a_closed_channel_is_told_nothing() -> None:
    channel, confirms = confirming()
    confirms.sequence = 1
    confirms.note(1)
    channel.closed = True
    assert confirms.confirm_through(1)
    assert channel.told() == []


@given(st.lists(st.tuples(st.lists(st.booleans(), max_size=4), st.integers(0, 9), st.booleans())))
def test_every_publish_gets_one_answer(reads: list[tuple[list[bool], int, bool]]) -> None:
    """Told (outcomes of a read, its ticket, whether the disk gets there at once)."""
    channel, confirms = confirming()
    outcomes: list[bool] = []
    tickets: list[int] = []
    answers: list[tuple[int, bool, bool]] = []
    durable = 0
    for rejects, ticket, progress in reads:
        first = len(outcomes) + 1
        outcomes += rejects
        tickets += [ticket] * len(rejects)
        confirms.sequence += len(rejects)
        confirms.note(ticket, tuple(first + i for i, reject in enumerate(rejects) if reject))
        if progress:
            durable = max(durable, ticket)
            confirms.confirm_through(durable)
            told = channel.told()
            answers += told
            if told:
                assert max(tickets[: told[-1][0]]) <= durable
    assert confirms.confirm_through(10)
    answers += channel.told()
    answered: list[bool] = []
    for sequence, multiple, nack in answers:
        count = sequence - len(answered)
        assert count >= 1 and multiple == (count > 1)
        answered += [nack] * count
    assert answered == outcomes
