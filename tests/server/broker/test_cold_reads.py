"""What consumers get from disk is bounded for each tick, and costs those in memory nothing."""

from pathlib import Path

import pytest

from qlog.server.amqp import spec
from qlog.server.broker.queues import cold_reads
from tests.server.broker.support import Bench, Peer, make

QUEUES = 20
MESSAGES = 10
BOUND = 30_000  # what three of the queues have
# A tick may use up what the tick before left, then what is its own, each with a queue that ends it.
TICK_QUEUES = 2 * 3 + 2


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A broker that was restarted, with queues of which nothing is in memory."""
    monkeypatch.setattr(cold_reads, "COLD_BYTES_MAX", BOUND)
    bench = Bench(tmp_path)
    peer = Peer(bench)
    for number in range(QUEUES):
        peer.declare(f"cold {number}")
        peer.publish(1, f"cold {number}", *bodies_of(number))
        bench.disk()
    peer.declare("warm")
    bench.restart()
    return bench


def bodies_of(queue: int) -> list[bytes]:
    return [(b"%d %d " % (queue, at)).ljust(1000, b".") for at in range(MESSAGES)]


def test_cold_queues_take_turns_tick_by_tick(bench: Bench) -> None:
    peer = Peer(bench)
    peer.send(
        1,
        *(
            make(spec.BasicConsume, queue=f"cold {number}", consumer_tag=str(number), nowait=True)
            for number in range(QUEUES)
        ),
    )
    got: dict[str, list[bytes]] = {}
    ticks = 0
    while True:
        new = peer.deliveries()
        assert len(new) <= TICK_QUEUES * MESSAGES
        for tag, _, _, body in new:
            got.setdefault(tag, []).append(body)
        if not bench.broker.jobs_left:
            break
        bench.end_tick()
        ticks += 1
    assert got == {str(number): bodies_of(number) for number in range(QUEUES)}
    assert list(got) == list(map(str, range(QUEUES)))  # those behind come first in the next tick
    assert ticks >= QUEUES // TICK_QUEUES


def test_what_is_in_memory_is_delivered_in_the_same_tick(bench: Bench) -> None:
    peer = Peer(bench)
    consumes = [
        make(spec.BasicConsume, queue=name, consumer_tag=name, nowait=True)
        for name in ["warm", *(f"cold {number}" for number in range(QUEUES))]
    ]
    peer.send(1, *consumes)
    assert bench.broker.jobs_left
    peer.deliveries()
    peer.publish(1, "warm", b"now", persistent=False)
    assert ("warm", b"now") in [(tag, body) for tag, _, _, body in peer.deliveries()]
    assert bench.broker.jobs_left


def test_basic_get_and_purge_leave_what_is_behind_to_the_next_tick(bench: Bench) -> None:
    peer = Peer(bench)
    names = [f"cold {number}" for number in range(QUEUES)]
    peer.send(1, *(make(spec.BasicConsume, queue=name, nowait=True) for name in names[:-2]))
    assert bench.broker.jobs_left
    peer.deliveries()
    peer.send(1, make(spec.BasicGet, queue=names[-1]), make(spec.QueuePurge, queue=names[-2]))
    said = peer.take()
    (got,) = [one.body for one in said if isinstance(one.method, spec.BasicGetOk)]
    assert got == bodies_of(QUEUES - 1)[0]
    (purged,) = [one.method for one in said if isinstance(one.method, spec.QueuePurgeOk)]
    assert purged.message_count == MESSAGES
    while bench.broker.jobs_left:
        bench.end_tick()
    ready = {name: bench.broker.vhosts["/"].queues[name].ready for name in names}
    assert ready == dict.fromkeys(names[:-2], 0) | {names[-2]: 0, names[-1]: MESSAGES - 1}
