"""A client that has gone leaves nothing for the collector of cycles, which runs rarely."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.values import Table
from tests.server.broker.support import make, message
from tests.server.net.loop import Loop, Remote, running

CONSUME = make(spec.BasicConsume, queue="q", consumer_tag="c")


def consumes(client: Remote) -> None:
    client.ask(1, CONSUME)
    client.write(message(1, "q", b"x" * 100))


def closes_its_channel(client: Remote) -> None:
    consumes(client)
    client.ask(1, spec.ChannelClose(200, "", 0, 0))


def gets(client: Remote) -> None:
    client.write(message(1, "q", b"x" * 100))
    client.ask(1, make(spec.BasicGet, queue="q"))


def is_refused(client: Remote) -> None:
    client.ask(1, CONSUME)
    client.ask(1, make(spec.QueueDeclare, queue="none", passive=True))


def waits_for_confirms(client: Remote) -> None:
    client.ask(1, make(spec.ConfirmSelect))
    client.write(*[message(1, "q", b"x" * 100)] * 10)
    client.loop.turn()


def waits_for_replies(client: Remote) -> None:
    declares = [make(spec.QueueDeclare, queue=f"q{number}", durable=True) for number in range(20)]
    client.send(1, *declares, make(spec.BasicGet, queue="q1"), spec.ChannelClose(200, "", 0, 0))
    client.loop.turn()


def is_in_a_transaction(client: Remote) -> None:
    client.ask(1, CONSUME)
    client.ask(1, make(spec.TxSelect))
    client.write(message(1, "q", b"x" * 100))
    client.ask(1, make(spec.TxCommit))
    client.write(message(1, "q", b"x" * 100))
    client.send(1, make(spec.BasicAck, delivery_tag=1))


def waits_for_answers(client: Remote) -> None:
    client.ask(1, make(spec.BasicConsume, queue="amq.rabbitmq.reply-to", no_ack=True))


def shares_a_prefetch(client: Remote) -> None:
    client.ask(1, make(spec.BasicQos, prefetch_count=1, global_=True))
    for tag in "abc":
        client.ask(1, make(spec.BasicConsume, queue="q", consumer_tag=tag))
    client.write(*[message(1, "q", b"x" * 100)] * 3)


def owns_a_queue(client: Remote) -> None:
    client.ask(1, make(spec.QueueDeclare, queue="mine", exclusive=True))
    client.ask(1, make(spec.BasicConsume, queue="mine"))


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """A loop without clients."""
    yield from running(tmp_path / "data")


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize(
    "visit",
    [
        consumes,
        closes_its_channel,
        gets,
        is_refused,
        waits_for_confirms,
        waits_for_replies,
        is_in_a_transaction,
        waits_for_answers,
        shares_a_prefetch,
        owns_a_queue,
    ],
)
def test_who_has_gone_leaves_no_cycle(loop: Loop, visit: Callable[[Remote], None]) -> None:
    client = loop.client()
    client.ask(1, make(spec.QueueDeclare, queue="q", durable=True))
    visit(client)
    session = client.session
    parts = [weakref.ref(part) for part in (session.client, *session.client.channels.values())]
    client.socket.close()
    del client, session
    for _ in range(3):
        loop.settle()
        loop.disk()
    assert [part() for part in parts if part() is not None] == []


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"x-max-priority": 5},
        {"x-message-ttl": 60_000, "x-expires": 60_000},
        {"x-max-length": 1, "x-dead-letter-exchange": ""},
        {"x-message-deduplication": True},
        {"x-queue-type": "quorum", "x-delayed-retry-type": "all", "x-delayed-retry-min": 1000},
    ],
    ids=str,
)
def test_a_deleted_queue_leaves_no_cycle(loop: Loop, arguments: Table) -> None:
    client = loop.client()
    client.ask(1, make(spec.QueueDeclare, queue="q", durable=True, arguments=arguments))
    client.write(*[message(1, "q", b"x" * 100)] * 3)
    loop.settle()
    loop.disk()
    client.ask(1, make(spec.BasicQos, prefetch_count=2))
    client.ask(1, CONSUME)
    client.ask(1, make(spec.BasicAck, delivery_tag=1))
    queue = weakref.ref(loop.broker.vhosts["/"].queues["q"])
    client.send(1, make(spec.QueueDelete, queue="q"))
    for _ in range(3):
        loop.settle()
        loop.disk()
    client.socket.close()
    other = loop.client()
    other.ask(1, make(spec.QueueDeclare, queue="other"))
    other.write(message(1, "other", b"x"))  # so that the ways to the queue are forgotten
    for _ in range(3):
        loop.settle()
        loop.disk()
    assert list(loop.broker.vhosts["/"].queues) == ["other"] and queue() is None
