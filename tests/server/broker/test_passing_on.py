"""Messages that nobody has to keep go past an empty queue, and nobody can tell that from outside."""

from __future__ import annotations

from contextlib import nullcontext
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlog.server.amqp import spec
from qlog.server.broker.queues.classic import ClassicQueue
from tests.server.broker.support import Bench, Peer, make
from tests.server.broker.test_consumers import consume


def listening(bench: Bench, *, tag: str = "c", no_ack: bool = True, **options: object) -> Peer:
    """One more client, which consumes from q."""
    other = Peer(bench)
    consume(other, 1, "q", tag, no_ack=no_ack, **options)
    other.take()
    return other


def bodies(peer: Peer) -> list[bytes]:
    return [body for *_, body in peer.deliveries()]


def test_what_need_not_be_kept_goes_past_the_queue(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    other = listening(bench)
    peer.publish(1, "q", b"1", b"2", persistent=False)
    peer.publish(1, "q", b"3", persistent=False)
    assert other.deliveries() == [("c", tag, False, b"%d" % tag) for tag in (1, 2, 3)]
    assert queue.lane.next_qseq == 0 and bench.broker.store.cache_bytes == 0
    assert queue.published == queue.counts.deliver_no_ack == 3
    assert queue.ready == queue.unacked == 0


@pytest.mark.parametrize(("durable", "kept"), [(True, 1), (False, 0)])
def test_what_a_durable_queue_has_to_keep_is_kept(
    bench: Bench, peer: Peer, durable: bool, kept: int
) -> None:
    queue = peer.declare("q", durable=durable)
    other = listening(bench)
    peer.publish(1, "q", b"x", persistent=True)
    assert bodies(other) == [b"x"] and queue.lane.next_qseq == kept


def test_what_may_come_back_is_kept(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    other = listening(bench, no_ack=False)
    peer.publish(1, "q", b"x", persistent=False)
    assert bodies(other) == [b"x"] and queue.unacked == 1
    other.send(1, spec.BasicReject(1, True))
    assert other.deliveries() == [("c", 2, True, b"x")]


def test_what_waits_is_before_what_comes(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    other = listening(bench)
    other.sink.full = True
    peer.publish(1, "q", b"1", persistent=False)
    other.sink.full = False
    other.client.drained()
    peer.publish(1, "q", b"2", persistent=False)
    assert queue.ready == 0 and bodies(other) == [b"1", b"2"]
    peer.publish(1, "q", b"3", persistent=False)
    assert bodies(other) == [b"3"] and queue.lane.next_qseq == 2


def test_who_gets_it_at_once_has_had_its_turn(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    others = [listening(bench), listening(bench, no_ack=False), listening(bench)]
    for number in range(6):
        peer.publish(1, "q", b"%d" % number, persistent=False)
    assert [bodies(other) for other in others] == [[b"0", b"3"], [b"1", b"4"], [b"2", b"5"]]
    peer.publish(1, "q", b"a", b"b", b"c", persistent=False)
    assert [bodies(other) for other in others] == [[b"a"], [b"b"], [b"c"]]


def test_what_is_too_much_at_once_is_given_in_hands(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    other = listening(bench)
    large = [bytes([number]) * 60_000 for number in range(6)]
    peer.publish(1, "q", *large, persistent=False)
    assert bodies(other) == large and queue.lane.next_qseq == 6


def test_a_confirm_comes_at_the_end_of_the_tick(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    other = listening(bench)
    peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    peer.publish(1, "q", b"1", persistent=False)
    assert bodies(other) == [b"1"]
    assert peer.hear() == [spec.BasicAck(1, False)]


def by_queue(peer: Peer) -> dict[str, list[tuple[bool, bytes]]]:
    """What came from each queue: between queues there is no order."""
    deliveries: dict[str, list[tuple[bool, bytes]]] = {}
    for tag, _, redelivered, body in peer.deliveries():
        deliveries.setdefault(tag, []).append((redelivered, body))
    return deliveries


def store(*_: object) -> bool:
    """In place of `pass_on`."""
    return False


PUBLISHES = st.lists(
    st.tuples(st.sampled_from(["q", "t"]), st.booleans(), st.integers(1, 3)), max_size=12
)


@given(PUBLISHES, st.lists(st.booleans(), min_size=1, max_size=2), st.sets(st.integers(0, 11)))
@settings(deadline=None, max_examples=50)
def test_passing_on_gives_what_storing_gives(
    tmp_path_factory: pytest.TempPathFactory,
    publishes: list[tuple[str, bool, int]],
    acking: list[bool],
    stuck: set[int],
) -> None:
    """The same traffic, with and without; `stuck`: the consumers' sockets are full then."""
    outcomes = []
    for passing in (True, False):
        bench = Bench(tmp_path_factory.mktemp("passing"))
        peer = Peer(bench)
        queues = [peer.declare("q"), peer.declare("t", durable=False)]
        others = [Peer(bench) for _ in acking]
        for other, acks in zip(others, acking, strict=True):
            for name in ("q", "t"):
                consume(other, 1, name, name, no_ack=not acks)
            other.take()
        heard: list[object] = []
        for number, (name, persistent, count) in enumerate(publishes):
            for other in others:
                other.sink.full = number in stuck
                if not other.sink.full:
                    other.client.drained()
            sent = [b"%d.%d" % (number, at) for at in range(count)]
            with nullcontext() if passing else patch.object(ClassicQueue, "pass_on", store):
                peer.publish(1, name, *sent, persistent=persistent)
            heard.append([by_queue(other) for other in others])
        for queue in queues:
            counts = queue.counts
            heard.append((queue.published, queue.ready, queue.unacked, counts.deliver_no_ack))
        outcomes.append(heard)
        bench.close()
    assert outcomes[0] == outcomes[1]
