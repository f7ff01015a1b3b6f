"""An orderly end, and what a broker on the same directory knows afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pamqp.commands import Basic, Channel, Connection, Exchange, Queue, Tx

from tests.live.conversation import (
    PROTOCOL_HEADER,
    Client,
    Talk,
    Wire,
    connections,
    encode_raw_content,
    refusal,
)
from tests.live.server import BrokerProcess

STOP_S_MAX = 5
SHUTDOWN = refusal(
    320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"
)
Restart = Callable[[], None]


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker of this test's own."""
    broker = BrokerProcess(tmp_path / "data").start()
    yield broker
    if broker.process is not None and broker.process.poll() is None:
        broker.kill()


@pytest.fixture(params=["SIGTERM", "SIGKILL", "SIGKILL, and the catalog is deleted"])
def restart(request: pytest.FixtureRequest, broker: BrokerProcess) -> Restart:
    """End the broker, one way or the other, and start it again."""

    def run() -> None:
        if request.param == "SIGTERM":
            assert broker.terminate()[0] == 0
        else:
            broker.kill()
        if "deleted" in request.param:
            shutil.rmtree(broker.data_dir / "catalog.lmdb")
        broker.start()

    return run


def talk_to(broker: BrokerProcess) -> Talk:
    """A channel on a new connection."""
    return Client(broker.url).channel()


def missing(broker: BrokerProcess, method: Any) -> bool:
    """Whether a passive declare is answered with 404."""
    return talk_to(broker).refused(method).code == 404


def test_connections_are_closed_with_320(broker: BrokerProcess) -> None:
    with connections(broker.url) as connect:
        clients = [connect() for _ in range(5)]
        clients[0].channel().consume(clients[1].channel().queue(durable=True))
        process = broker.process
        assert process is not None
        process.terminate()
        for client in clients:
            assert client.refusal(0) == SHUTDOWN
            assert client.at_end()
        assert process.wait(STOP_S_MAX) == 0
        for client in clients:
            client.queues.clear()


def test_stops_in_time_whatever_the_clients_do(broker: BrokerProcess) -> None:
    """One never answers, one never reads, one is in its handshake, one said nothing."""
    deaf, slow = Client(broker.url), Client(broker.url)
    slow_talk = slow.channel()
    queue = slow_talk.queue(durable=True)
    slow_talk.consume(queue, no_ack=True)
    deaf_talk = deaf.channel()
    for _ in range(100):
        deaf_talk.publish("", queue, b"x" * 100_000)
    shy, mute = Wire(broker.url), Wire(broker.url)
    shy.write(PROTOCOL_HEADER)
    code, took_s = broker.terminate()
    assert code == 0 and took_s < STOP_S_MAX
    for wire in (deaf, slow, shy, mute):
        wire.abort()


def test_second_signal_does_no_harm(broker: BrokerProcess) -> None:
    process = broker.process
    assert process is not None
    process.terminate()
    process.terminate()
    assert process.wait(STOP_S_MAX) == 0


def test_durable_definitions_come_back(broker: BrokerProcess, restart: Restart) -> None:
    talk = talk_to(broker)
    arguments: Any = {"x-expires": 3_600_000, "x-mine": [1, {"deep": None}], "x-max-priority": 5}
    talk.call(Queue.Declare(queue="keep", durable=True, arguments=arguments))
    talk.call(Queue.Declare(queue="keep.auto", durable=True, auto_delete=True))
    talk.call(Queue.Declare(queue="lose"))
    for kind in ("direct", "fanout", "topic", "headers"):
        talk.call(Exchange.Declare(exchange=f"keep.{kind}", exchange_type=kind, durable=True))
    alternate: Any = {"alternate-exchange": "keep.fanout"}
    talk.call(Exchange.Declare(exchange="keep.alternate", durable=True, arguments=alternate))
    talk.call(Exchange.Declare(exchange="lose", exchange_type="topic"))
    talk.bind("keep", "keep.topic", "a.#")
    talk.bind("keep", "keep.headers", "", {"x-match": "any", "kind": 7})
    talk.bind("keep", "keep.fanout")
    talk.bind("keep", "lose", "#")
    talk.call(Exchange.Bind(source="keep.direct", destination="keep.topic", routing_key="a.b"))
    talk.bind("keep", "keep.direct", "unbound")
    talk.call(Queue.Unbind(queue="keep", exchange="keep.direct", routing_key="unbound"))
    talk.call(Queue.Declare(queue="deleted", durable=True))
    talk.call(Queue.Delete(queue="deleted"))
    talk.call(Exchange.Declare(exchange="deleted", durable=True))
    talk.call(Exchange.Delete(exchange="deleted"))
    restart()

    talk = talk_to(broker)
    talk.call(Queue.Declare(queue="keep", durable=True, arguments=arguments))
    talk.call(Queue.Declare(queue="keep.auto", durable=True, auto_delete=True))
    for kind in ("direct", "fanout", "topic", "headers"):
        talk.call(Exchange.Declare(exchange=f"keep.{kind}", exchange_type=kind, durable=True))
    talk.call(Exchange.Declare(exchange="keep.alternate", durable=True, arguments=alternate))
    talk.confirm()
    for exchange, key, headers, routed in [
        ("keep.topic", "a.b.c", None, True),
        ("keep.topic", "b", None, False),
        ("keep.headers", "", {"kind": 7}, True),
        ("keep.headers", "", {"kind": 8}, False),
        ("keep.direct", "a.b", None, True),
        ("keep.direct", "unbound", None, False),
        ("keep.alternate", "anything", None, True),
    ]:
        talk.publish(exchange, key, f"{exchange} {key}".encode(), mandatory=True, headers=headers)
        if not routed:
            talk.expect(Basic.Return)
        talk.expect(Basic.Ack)
    assert len(talk.drain("keep")) == 4
    for name in ("lose", "deleted"):
        assert missing(broker, Queue.Declare(queue=name, passive=True)), name
        assert missing(broker, Exchange.Declare(exchange=name, passive=True)), name


def test_messages_come_back_as_they_were(broker: BrokerProcess, restart: Restart) -> None:
    talk = talk_to(broker)
    talk.confirm()
    talk.call(Queue.Declare(queue="keep", durable=True))
    talk.call(Queue.Declare(queue="also", durable=True))
    talk.call(Exchange.Declare(exchange="fan", exchange_type="fanout", durable=True))
    talk.bind("keep", "fan")
    talk.bind("also", "fan")
    # delivery mode 2, a header with an integer of 16 bits
    raw = b"\x30\x00" + b"\x00\x00\x00\x05\x01hs\x12\x34" + b"\x02"
    bodies = [b"", b"x", bytes(range(256)) * 1000]
    for body in bodies:
        publish = Basic.Publish(exchange="fan", routing_key="some key")
        if len(body) <= 131_064:
            talk.send(publish, encode_raw_content(1, body, raw))
        else:
            talk.publish("fan", "some key", body, delivery_mode=2)
        talk.publish("fan", "some key", b"transient", delivery_mode=1)
    talk.confirmed(6)
    restart()

    talk = talk_to(broker)
    for queue in ("keep", "also"):
        assert talk.ready(queue) == 3
        messages = [talk.get_soon(queue) for _ in bodies]
        assert [message.body for message in messages] == bodies
        assert [message.raw_properties for message in messages[:2]] == [raw] * 2
        for message in messages:
            method = message.method
            assert (method.exchange, method.routing_key) == ("fan", "some key")
            assert method.redelivered is False


def test_redelivered_flag_and_acks_come_back(broker: BrokerProcess, restart: Restart) -> None:
    talk = talk_to(broker)
    talk.confirm()
    talk.call(Queue.Declare(queue="keep", durable=True))
    for number in range(10):
        talk.publish("", "keep", b"%d" % number, delivery_mode=2)
    talk.confirmed(10)
    talk.call(Basic.Qos(prefetch_count=6))
    talk.consume("keep")
    talk.deliveries(6)
    # 1, 3 and 4 are settled; 0, 2, 5 stay with the consumer; 6 to 9 were never delivered.
    talk.send(Basic.Ack(2), Basic.Reject(4, requeue=False), Basic.Ack(5))
    deliveries = talk.deliveries(3)
    assert [message.body for message in deliveries] == [b"6", b"7", b"8"]
    # A confirm of a later message on disk: by then the acks have had their 5 ms.
    other = talk_to(broker)
    other.confirm()
    other.call(Queue.Declare(queue="other", durable=True))
    for _ in range(20):
        other.publish("", "other", b"x", delivery_mode=2)
        other.expect(Basic.Ack)
    restart()

    talk = talk_to(broker)
    assert talk.ready("keep") == 7
    messages = [talk.get_soon("keep") for _ in range(7)]
    assert [(message.body, message.method.redelivered) for message in messages] == [
        *[(b"%d" % number, True) for number in (0, 2, 5, 6, 7, 8)],
        (b"9", False),
    ]


def test_purged_and_requeued(broker: BrokerProcess, restart: Restart) -> None:
    talk = talk_to(broker)
    for queue in ("purged", "requeued", "deleted"):
        talk.call(Queue.Declare(queue=queue, durable=True))
    talk.confirm()
    for queue in ("purged", "requeued", "deleted"):
        for number in range(5):
            talk.publish("", queue, b"%d" % number, delivery_mode=2)
    talk.confirmed(15)
    talk.call(Queue.Purge(queue="purged"))
    talk.publish("", "purged", b"after", delivery_mode=2)
    talk.expect(Basic.Ack)
    tags = [talk.get_soon("requeued").method.delivery_tag for _ in range(5)]
    talk.send(Basic.Nack(tags[-1], multiple=True, requeue=True))
    talk.call(Queue.Delete(queue="deleted"))
    talk.call(Queue.Declare(queue="deleted", durable=True))
    talk.call(Channel.Flow(active=True))
    for _ in range(20):
        talk.publish("", "purged", b"after", delivery_mode=2)
        talk.expect(Basic.Ack)
    restart()

    talk = talk_to(broker)
    assert talk.drain("purged") == [b"after"] * 21
    requeued = [talk.get_soon("requeued") for _ in range(5)]
    assert [(m.body, m.method.redelivered) for m in requeued] == [
        (b"%d" % number, True) for number in range(5)
    ]
    assert talk.ready("deleted") == 0


def test_committed_transaction_comes_back(broker: BrokerProcess, restart: Restart) -> None:
    talk = talk_to(broker)
    talk.call(Queue.Declare(queue="keep", durable=True))
    talk.publish("", "keep", b"first", delivery_mode=2)
    talk.call(Tx.Select())
    held = talk.get_soon("keep")
    talk.send(Basic.Ack(held.method.delivery_tag))
    talk.publish("", "keep", b"second", delivery_mode=2)
    talk.call(Tx.Commit())
    talk.publish("", "keep", b"never committed", delivery_mode=2)
    restart()
    assert talk_to(broker).drain("keep") == [b"second"]


def test_many_restarts(broker: BrokerProcess) -> None:
    for number in range(5):
        talk = talk_to(broker)
        talk.confirm()
        talk.call(Queue.Declare(queue="keep", durable=True))
        talk.publish("", "keep", b"%d" % number, delivery_mode=2)
        talk.expect(Basic.Ack)
        assert talk.ready("keep") == number + 1
        if number % 2:
            broker.kill()
        else:
            assert broker.terminate()[0] == 0
        broker.start()
    assert talk_to(broker).drain("keep") == [b"%d" % number for number in range(5)]


def test_port_is_free_again_at_once(broker: BrokerProcess) -> None:
    """Connections of the broker before linger in the kernel; that must not hinder the next."""
    port = broker.port
    client = Client(broker.url)
    assert broker.terminate()[0] == 0
    broker.start()
    assert broker.port == port
    assert isinstance(client.next(0), Connection.Close)


def test_every_message_comes_back_at_its_priority(broker: BrokerProcess, restart: Restart) -> None:
    talk = talk_to(broker)
    queue = talk.queue(durable=True, arguments={"x-max-priority": 9})
    talk.confirm()
    for number in range(300):
        talk.publish("", queue, b"%d" % number, delivery_mode=2, priority=number % 12)
    talk.confirmed(300)
    first = [talk.get(queue) for _ in range(3)]
    assert [message.body for message in first if message is not None] == [b"9", b"10", b"11"]
    assert first[1] is not None
    talk.send(Basic.Ack(first[1].method.delivery_tag))
    other = talk.client.channel(2)
    talk.ready(queue)  # the ack was obeyed
    other.call(Tx.Select())
    other.call(Tx.Commit())  # and is in the ledger now
    restart()
    talk = talk_to(broker)
    numbers = sorted(range(300), key=lambda number: -min(number % 12, 9))
    numbers.remove(10)
    assert talk.ready(queue) == len(numbers)
    found = [talk.get(queue) for _ in numbers]
    assert [(one.body, one.method.redelivered) for one in found if one is not None] == [
        (b"%d" % number, number in (9, 11)) for number in numbers
    ]
