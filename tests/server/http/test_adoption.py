"""Messages that a migration brings: put into their queue as they are, and found again by mark."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Properties, encode_properties
from qlog.server.broker.features import adoption
from qlog.server.http.endpoints.adoption import LENGTHS
from tests.server.broker.support import Peer, make
from tests.server.http.support import Reply, Site

Q = "qlog/queues/%2F/q/adopted"
LASTING = encode_properties(Properties(delivery_mode=2, headers={"CC": ["other"], "n": 1}))
PASSING = encode_properties(Properties(content_type="text/plain"))


@pytest.fixture
def peer(site: Site) -> Peer:
    """A client, with the durable queues `q` and `other`, and a stream."""
    peer = site.peer()
    peer.declare("q", durable=True)
    peer.declare("other", durable=True)
    peer.declare("s", durable=True, arguments={"x-queue-type": "stream"})
    return peer


def packed(body: bytes, properties: bytes = LASTING, exchange: str = "ex") -> bytes:
    head = msgpack.packb((exchange, "the.key", properties))
    return LENGTHS.pack(len(head), len(body)) + head + body


def digest(body: bytes, properties: bytes = LASTING) -> str:
    return Envelope.pack("ex", "the.key", properties, len(body)).digest(body)


async def adopt(site: Site, *messages: bytes, mark: str = "m-0", path: str = Q) -> dict[str, Any]:
    reply = await site.ask("POST", f"{path}?mark={mark}", body=b"".join(messages))
    assert reply.status == 200, reply
    answer: dict[str, Any] = reply.document
    return answer


async def refused(site: Site, body: bytes, query: str = "mark=m") -> Reply:
    reply = await site.ask("POST", f"{Q}?{query}", body=body)
    assert reply.status == 400, reply
    return reply


def take(peer: Peer, queue: str) -> list[tuple[Any, bytes | None, Any]]:
    """All that is ready: its method, body and properties."""
    found: list[tuple[Any, bytes | None, Any]] = []
    while True:
        peer.send(1, make(spec.BasicGet, queue=queue, no_ack=True))
        (said,) = peer.take()
        if not isinstance(said.method, spec.BasicGetOk):
            return found
        found.append((said.method, said.body, said.properties))


async def test_messages_come_as_they_are_and_to_this_queue_alone(site: Site, peer: Peer) -> None:
    answer = await adopt(site, packed(b"1"), packed(b"", PASSING), packed(b"3"))
    assert (answer["adopted"], answer["rejected"]) == (3, [])
    (first, body, properties), second, third = take(peer, "q")
    assert (first.exchange, first.routing_key, first.redelivered, body) == (
        *("ex", "the.key", False),
        b"1",
    )
    assert properties == Properties(delivery_mode=2, headers={"CC": ["other"], "n": 1})
    assert second[1:] == (b"", Properties(content_type="text/plain")) and third[1] == b"3"
    assert take(peer, "other") == []


async def test_they_are_on_the_disk_when_that_is_answered(site: Site, peer: Peer) -> None:
    await adopt(site, packed(b"1"), packed(b"2"))
    site.bench.kill()
    site.bench.open()
    assert [body for _, body, _ in take(Peer(site.bench), "q")] == [b"1", b"2"]


async def test_what_came_with_a_mark_is_found(
    site: Site, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "LOOKED_AT_MAX", 2)
    monkeypatch.setattr(adoption, "AT_ONCE", 2)
    peer.publish(1, "q", b"1", properties=Properties(delivery_mode=2))
    ends = (await adopt(site, packed(b"0")))["ends"]
    bodies = [b"%d" % number for number in range(7)]
    await adopt(site, *map(packed, bodies), mark="m-1")
    await adopt(site, packed(b"x"), mark="m-2")
    found: list[str] = []
    start, pages = ends, 0
    while start is not None:
        page = await site.get(f"{Q}?mark=m-1&from={start}")
        found, start, pages = found + page["digests"], page["next"], pages + 1
    assert found == [digest(body) for body in bodies] and pages > 3
    assert (await site.get(f"{Q}?mark=m-0&from={ends}"))["digests"] == []
    peer.send(1, make(spec.BasicGet, queue="q", no_ack=True))  # what is taken is not found
    peer.send(1, make(spec.BasicGet, queue="q", no_ack=True))
    assert (await site.get(f"{Q}?mark=m-0"))["digests"] == []


async def test_a_stream_and_its_mark(site: Site, peer: Peer) -> None:
    path = Q.replace("/q/", "/s/")
    ends = (await adopt(site, packed(b"0"), path=path))["ends"]
    await adopt(site, packed(b"1"), packed(b"2", PASSING), path=path, mark="m-1")
    found = await site.get(f"{path}?mark=m-1&from={ends}")
    assert found == {"digests": [digest(b"1"), digest(b"2", PASSING)], "next": None}


async def test_a_queue_that_is_full_names_what_it_rejects(site: Site, peer: Peer) -> None:
    arguments = {"x-max-length": 2, "x-overflow": "reject-publish"}
    peer.declare("short", durable=True, arguments=arguments)
    answer = await adopt(
        site, *(packed(b"%d" % number) for number in range(5)), path=Q.replace("/q/", "/short/")
    )
    assert (answer["adopted"], answer["rejected"]) == (2, [2, 3, 4])
    assert [body for _, body, _ in take(peer, "short")] == [b"0", b"1"]


async def test_nothing_is_taken_while_publishers_are_blocked(site: Site, peer: Peer) -> None:
    site.bench.broker.set_alarm("memory", True)
    assert (await refused(site, packed(b"1"))).document["error"] == "blocked"
    assert (await adopt(site))["adopted"] == 0  # to ask where the queue ends goes on
    site.bench.broker.set_alarm("memory", False)
    assert (await adopt(site, packed(b"1")))["adopted"] == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (packed(b"1") + packed(b"2")[:5], "message 1 is cut off"),
        (packed(b"1")[:-1], "message 0 is cut off"),
        (LENGTHS.pack(1, 0) + b"\x93", "message 0 is none"),
        (packed(b"1", b"\xff\xff"), "message 0 is none"),
        (packed(b"1", encode_properties(Properties(expiration="x"))), "message 0 is none"),
        (LENGTHS.pack(4, 2**40) + b"", "message_bytes_max"),
        (LENGTHS.pack(2**31, 0), "message 0 is cut off"),
        (LENGTHS.pack(300_000, 0) + bytes(300_000), "message 0 has properties of 300000 bytes"),
        (packed(b"1", exchange=5), "message 0 is none"),  # type: ignore[arg-type]
    ],
    ids=range(9),
)
async def test_bad_bodies_bring_nothing(site: Site, peer: Peer, body: bytes, reason: str) -> None:
    assert reason in (await refused(site, body)).reason
    assert take(peer, "q") == []


@pytest.mark.parametrize("query", ["", "mark=", f"mark={'x' * 200}"])
async def test_bad_marks(site: Site, peer: Peer, query: str) -> None:
    assert "mark has to have" in (await refused(site, packed(b"1"), query)).reason


async def test_who_may_not_and_what_is_not_there(site: Site, peer: Peer) -> None:
    await site.ask("PUT", "users/u", {"password": "p", "tags": "monitoring"})
    assert (await site.ask("POST", f"{Q}?mark=m", login="u:p")).status == 401
    assert (await site.ask("GET", f"{Q}?mark=m", login="u:p")).status == 401
    gone = Q.replace("/q/", "/gone/")
    assert (await site.ask("POST", f"{gone}?mark=m")).status == 404
    assert (await site.ask("GET", f"{gone}?mark=m")).status == 404
    assert (await site.ask("GET", f"{Q}?mark=m&from=x")).status == 400


async def test_a_mark_is_seen_by_nobody(site: Site, peer: Peer) -> None:
    await adopt(site, packed(b"1"), mark="secret-mark")
    (shown,) = (await site.get("qlog/queues/%2F/q/messages"))["messages"]
    assert "secret-mark" not in str(shown)
    assert b"secret-mark" not in str(take(peer, "q")).encode()


async def test_definitions_are_checked_without_a_change(site: Site) -> None:
    document = {
        "vhosts": [{"name": "new"}],
        "parameters": [{"vhost": "new", "component": "shovel", "name": "s", "value": {}}],
    }
    reply = await site.ask("POST", "qlog/definitions/check", document)
    left_out = ["parameter 'shovel' 's' in vhost 'new': 'shovel' is not known, and left out"]
    assert reply.document == {"left_out": left_out}
    assert (await site.ask("GET", "vhosts/new")).status == 404
    bad = {"queues": [{"vhost": "none", "name": "q"}]}
    assert (await site.ask("POST", "qlog/definitions/check", bad)).status == 400
