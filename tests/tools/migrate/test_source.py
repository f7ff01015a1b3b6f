"""RabbitMQ, as a migration reads it: a qlog speaks the same protocol."""

from __future__ import annotations

from qlog.tools.migrate.source import Source
from qlog.tools.transfer.link import Address
from tests.live.conversation import Talk


def test_between_two_messages_something_else_may_be_asked(talk: Talk, broker_url: str) -> None:
    """A migration that goes on decides by the first message, and looks at the queue, too."""
    queue = talk.queue()
    for number in range(5):
        talk.publish("", queue, b"%d" % number)
    assert talk.ready(queue) == 5
    with Source(Address.parse(broker_url), "/") as source:
        arrived = source.get(queue, 4)
        first = next(arrived)
        assert source.look(queue) == (1, 0)
        assert [one.body for one in (first, *arrived)] == [b"0", b"1", b"2", b"3"]
        assert [one.body for one in source.get(queue, 4)] == [b"4"]
