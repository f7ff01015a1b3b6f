"""Publishing many at once gives what publishing one by one gives: in each queue, returned, after a
restart.

The reference is the same broker, told each message in a read of its own, over a connection and a
vhost that remember nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties, encode_properties
from qlog.server.amqp.recognise import PublishForms
from tests.server.amqp.conversation import longstr
from tests.server.amqp.test_recognise import cut
from tests.server.amqp.test_shapes import CELERY
from tests.server.broker.support import Bench, Peer, Said, make, message

QUEUES = {"a": True, "b": True, "c": True, "t": False}  # name, durable
# (exchange, key, queue): some sets of queues overlap.
BINDINGS = [
    ("amq.fanout", "", "a"),
    ("amq.fanout", "", "t"),
    ("amq.topic", "x.*", "a"),
    ("amq.topic", "x.*", "b"),
    ("amq.topic", "#", "c"),
    ("amq.headers", "", "b"),
]
WAYS = [
    *(("", name) for name in (*QUEUES, "nowhere")),
    ("amq.fanout", ""),
    ("amq.topic", "x.1"),
    ("amq.topic", "x.2"),
    ("amq.topic", "y"),
    ("amq.headers", ""),
    ("amq.direct", "unbound"),
]
PROPERTIES = [
    Properties(),
    Properties(delivery_mode=2),
    Properties(delivery_mode=2, headers={"n": 1, "to": "b"}),
    Properties(delivery_mode=2, priority=3, expiration="100000"),
    Properties(delivery_mode=2, user_id="guest"),
    Properties(delivery_mode=2, headers={"CC": ["b", "t"], "BCC": ["c"]}),
    Properties(delivery_mode=2, reply_to="amq.rabbitmq.reply-to", correlation_id="1"),
    CELERY,
]
RAW = [encode_properties(properties) for properties in PROPERTIES]
RAW.append(b"\x30\x00" + longstr(b"\x02toL\0\0\0\0\0\0\0\x05\x02toS" + longstr(b"b")) + b"\x02")


class Message(NamedTuple):
    way: int
    raw: int
    size: int
    mandatory: bool


MESSAGES = st.lists(
    st.builds(
        Message,
        st.integers(0, len(WAYS) - 1),
        st.integers(0, len(RAW) - 1),
        st.integers(0, 2),
        st.booleans(),
    ),
    max_size=20,
)


def octets_of(number: int, published: Message) -> bytes:
    exchange, key = WAYS[published.way]
    body = b"%03d" % number * published.size
    octets = message(1, key, body, exchange=exchange, mandatory=published.mandatory)
    default = encode_properties(Properties(delivery_mode=2))
    at = octets.index(b"\x00\x3c\x00\x00" + len(body).to_bytes(8, "big"))
    raw = RAW[published.raw]
    size = (12 + len(raw)).to_bytes(4, "big")
    return octets[: at - 4] + size + octets[at : at + 12] + raw + octets[at + 12 + len(default) :]


def ready_peer(bench: Bench) -> Peer:
    peer = Peer(bench)
    for name, durable in QUEUES.items():
        peer.declare(name, durable=durable)
    for exchange, key, queue in BINDINGS:
        arguments = {"x-match": "all", "to": "b"} if exchange == "amq.headers" else {}
        bind = make(
            spec.QueueBind, queue=queue, exchange=exchange, routing_key=key, arguments=arguments
        )
        peer.ask(1, bind, spec.QueueBindOk)
    consume = make(spec.BasicConsume, queue="amq.rabbitmq.reply-to", no_ack=True)
    peer.ask(1, consume, spec.BasicConsumeOk)
    peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    bench.disk()
    peer.take()
    return peer


def emptied(peer: Peer, reply_address: str) -> dict[str, list[Said]]:
    """What is in each queue; the address of direct replies, which is random, is masked."""
    contents: dict[str, list[Said]] = {}
    for name in QUEUES:
        if name not in peer.bench.broker.vhosts["/"].queues:
            continue
        contents[name] = []
        while True:
            peer.send(1, make(spec.BasicGet, queue=name, no_ack=True))
            (said,) = peer.take()
            if isinstance(said.method, spec.BasicGetEmpty):
                break
            if said.properties and said.properties.reply_to == reply_address:
                said.properties.reply_to = "reply address"
            contents[name].append(said)
    return contents


class Outcome(NamedTuple):
    returned: list[Said]
    confirmed: int
    contents: dict[str, list[Said]]
    after_restart: dict[str, list[Said]]


def publish(peer: Peer, reads: list[bytes], forgetful: bool) -> list[Said]:
    """Send these octets, each in a read of its own; what the broker said meanwhile."""
    said: list[Said] = []
    for read in reads:
        if forgetful:
            peer.core._forms = PublishForms()
            peer.client.channels[1].publisher._routes.forget()
        peer.receive(read)
        said += peer.take()
    return said


def outcome_of(reads: list[bytes], *, forgetful: bool) -> Outcome:
    """What becomes of these reads; `forgetful`: nothing is remembered from one to the next."""
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        peer = ready_peer(bench)
        address = peer.client.channels[1].publisher.reply_address
        said = publish(peer, reads, forgetful)
        bench.disk()
        said += peer.take()
        returned = [each for each in said if not isinstance(each.method, spec.BasicAck)]
        assert all(isinstance(each.method, spec.BasicReturn) for each in returned)
        for each in returned:
            if each.properties and each.properties.reply_to == address:
                each.properties.reply_to = "reply address"
        confirms = [each.method for each in said if isinstance(each.method, spec.BasicAck)]
        confirmed = confirms[-1].delivery_tag if confirms else 0
        bench.restart()
        after = emptied(Peer(bench), address)
        bench.close()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        peer = ready_peer(bench)
        address = peer.client.channels[1].publisher.reply_address
        publish(peer, reads, forgetful)
        bench.disk()
        peer.take()
        contents = emptied(peer, address)
        bench.close()
    return Outcome(returned, confirmed, contents, after)


@settings(max_examples=30)
@given(MESSAGES, st.lists(st.integers(1, 4000), min_size=1, max_size=4))
def test_many_at_once_are_one_by_one(messages: list[Message], steps: list[int]) -> None:
    octets = [octets_of(number, published) for number, published in enumerate(messages)]
    one_by_one = outcome_of(octets, forgetful=True)
    assert one_by_one.confirmed == len(messages)
    assert outcome_of([b"".join(octets)], forgetful=False) == one_by_one
    assert outcome_of(cut(b"".join(octets), steps), forgetful=False) == one_by_one
