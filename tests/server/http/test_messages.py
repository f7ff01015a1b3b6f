"""Messages that operators look at, move, send back, change and delete, over the API."""

from __future__ import annotations

from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties
from qlog.server.broker.features import handling
from tests.server.broker.support import Peer, make
from tests.server.http.support import Site

Q = "qlog/queues/%2F/q"


@pytest.fixture
def peer(site: Site) -> Peer:
    """A client, with the durable queues `q` and `other`."""
    peer = site.peer()
    peer.declare("q", durable=True)
    peer.declare("other", durable=True)
    return peer


def fill(peer: Peer, *bodies: bytes, key: str = "q", **properties: Any) -> None:
    for body in bodies:
        peer.publish(1, key, body, properties=Properties(delivery_mode=2, **properties))


def take(peer: Peer, queue: str) -> list[tuple[bytes | None, bool]]:
    """All that is ready in a queue, and whether it is redelivered; taken for good."""
    found: list[tuple[bytes | None, bool]] = []
    while True:
        peer.send(1, make(spec.BasicGet, queue=queue, no_ack=True))
        (said,) = peer.take()
        if not isinstance(said.method, spec.BasicGetOk):
            return found
        found.append((said.body, said.method.redelivered))


async def peek(site: Site, query: str = "", queue: str = Q) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = (await site.get(f"{queue}/messages?{query}"))["messages"]
    return messages


def bodies(messages: list[dict[str, Any]]) -> list[str]:
    return [message["payload"] for message in messages]


async def post(site: Site, path: str, document: Any = None) -> dict[str, Any]:
    reply = await site.ask("POST", path, document or {})
    assert reply.status == 200, reply
    answer: dict[str, Any] = reply.document
    return answer


async def test_a_look_changes_nothing(site: Site, peer: Peer) -> None:
    fill(peer, b"1", b"2", headers={"n": 5, "who": "me"}, message_id="m")
    first, second = await peek(site)
    assert bodies([first, second]) == ["1", "2"]
    assert first["properties"] == {
        "headers": {"n": 5, "who": "me"},
        "delivery_mode": 2,
        "message_id": "m",
    }
    assert (first["routing_key"], first["exchange"], first["redelivered"]) == ("q", "", False)
    assert first["published_at"] == site.bench.now_ms
    assert await peek(site) == [first, second]
    assert take(peer, "q") == [(b"1", False), (b"2", False)]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("count=1", ["1"]),
        ("key=q", ["1", "2", "3"]),
        ("key=x", []),
        ("header=n=2", ["2"]),
        ("header=n=x", []),
        ("header=flag=true", ["3"]),
        ("since={middle}", ["2", "3"]),
        ("until={middle}", ["1", "2"]),
        ("since={middle}&until={middle}", ["2"]),
        ("reason=rejected", []),
        ("count=2&truncate=0", ["", ""]),
    ],
)
async def test_a_look_at_some(site: Site, peer: Peer, query: str, found: list[str]) -> None:
    fill(peer, b"1", headers={"n": 1})
    site.bench.now_ms += 1000
    middle = site.bench.now_ms
    fill(peer, b"2", headers={"n": 2})
    site.bench.now_ms += 1000
    fill(peer, b"3", headers={"flag": True})
    assert bodies(await peek(site, query.format(middle=middle))) == found


async def test_a_look_goes_on_where_it_stopped(
    site: Site, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handling, "LOOKED_AT_MAX", 2)
    monkeypatch.setattr(handling, "AT_ONCE", 2)
    fill(peer, *(b"%d" % number for number in range(7)))
    found: list[str] = []
    start = ""
    for _ in range(10):
        page = await site.get(f"{Q}/messages?count=3&from={start}")
        found += bodies(page["messages"])
        start = page["next"]
        if start is None:
            break
    assert found == list("0123456")


async def test_messages_of_all_priorities_are_seen_the_highest_first(
    site: Site, peer: Peer
) -> None:
    peer.declare("p", durable=True, arguments={"x-max-priority": 5})
    for priority in (1, 4, 1, 0):
        fill(peer, b"%d" % priority, key="p", priority=priority)
    queue = "qlog/queues/%2F/p"
    assert bodies(await peek(site, queue=queue)) == ["4", "1", "1", "0"]
    page = await site.get(f"{queue}/messages?count=2")
    rest = await peek(site, f"from={page['next']}", queue)
    assert bodies(page["messages"]) + bodies(rest) == ["4", "1", "1", "0"]


async def test_what_a_consumer_has_is_not_ready(site: Site, peer: Peer) -> None:
    fill(peer, b"1", b"2")
    peer.send(1, make(spec.BasicGet, queue="q"))
    assert bodies(await peek(site)) == ["2"]
    assert await post(site, f"{Q}/move", {"to": "other"}) | {"ends": []} == {
        "moved": 1,
        "refused": 0,
        "next": None,
        "ends": [],
    }
    peer.take()
    peer.send(1, make(spec.BasicNack, delivery_tag=1, requeue=True))
    assert take(peer, "q") == [(b"1", True)]
    assert take(peer, "other") == [(b"2", False)]


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_a_move(site: Site, peer: Peer, kind: str) -> None:
    peer.declare("from", durable=True, arguments={"x-queue-type": kind})
    fill(peer, *(b"%d" % number for number in range(40)), key="from")
    fill(peer, b"x", key="from", headers={"who": "me"})
    site.bench.disk()
    path = "qlog/queues/%2F/from/move"
    some = await post(site, path, {"to": "other", "match": {"header": "who=me"}})
    assert (some["moved"], some["next"]) == (1, None)
    assert (await post(site, path, {"to": "other", "count": 3}))["moved"] == 3
    assert [body for body, _ in take(peer, "other")] == [b"x", b"0", b"1", b"2"]
    assert (await post(site, path, {"to": "other"}))["moved"] == 37
    assert [body for body, _ in take(peer, "other")] == [b"%d" % n for n in range(3, 40)]
    assert take(peer, "from") == []
    site.bench.disk()
    site.bench.restart()
    vhost = site.bench.broker.vhosts["/"]
    assert vhost.queues["from"].ready == 0


async def test_a_move_into_its_own_queue_ends(site: Site, peer: Peer) -> None:
    fill(peer, b"1", b"2", b"3")
    assert (await post(site, f"{Q}/move", {"to": "q"}))["moved"] == 3
    assert [body for body, _ in take(peer, "q")] == [b"1", b"2", b"3"]


async def test_a_move_goes_on_where_it_stopped(
    site: Site, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handling, "LOOKED_AT_MAX", 2)
    monkeypatch.setattr(handling, "AT_ONCE", 2)
    fill(peer, *(b"%d" % number for number in range(7)))
    asked: dict[str, Any] = {"to": "q"}
    moved = 0
    for _ in range(10):
        answer = await post(site, f"{Q}/move", asked)
        moved += answer["moved"]
        if answer["next"] is None:
            break
        asked |= {"from": answer["next"], "ends": answer["ends"]}
    assert moved == 7
    assert [body for body, _ in take(peer, "q")] == [b"%d" % n for n in range(7)]


async def test_what_the_other_queue_rejects_stays_in_its_place(site: Site, peer: Peer) -> None:
    peer.declare("full", arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    fill(peer, b"1", b"2", b"3", b"4")
    answer = await post(site, f"{Q}/move", {"to": "full"})
    assert (answer["moved"], answer["refused"]) == (2, 2)
    assert take(peer, "q") == [(b"3", False), (b"4", False)]
    assert [body for body, _ in take(peer, "full")] == [b"1", b"2"]


async def test_a_moved_message_is_settled_when_its_copy_is_durable(site: Site, peer: Peer) -> None:
    fill(peer, b"1", b"2")
    site.bench.disk()
    operations = site.bench.broker.operations
    vhost = operations.vhost("/")
    walk = handling_walk(operations.message_ends(vhost, "q"))
    moving = operations.move_messages(vhost, "q", "other", walk)
    site.bench.end_tick()
    assert not moving.done  # the disk has done nothing yet
    site.bench.kill()
    site.bench.open()
    queues = site.bench.broker.vhosts["/"].queues
    assert (queues["q"].ready, queues["other"].ready) == (2, 0)


def handling_walk(ends: handling.Ends) -> Any:
    from qlog.server.broker.message_operations import Walk

    return Walk(None, ends, 100)


async def test_dead_letters_go_back_to_where_they_died(site: Site, peer: Peer) -> None:
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    peer.declare("work", durable=True, arguments=dead)
    peer.declare("dead", durable=True)
    peer.send(1, make(spec.QueueBind, queue="work", exchange="amq.topic", routing_key="a.*"))
    site.bench.disk()
    peer.take()
    peer.publish(1, "a.1", b"1", exchange="amq.topic", properties=Properties(delivery_mode=2))
    fill(peer, b"2", key="work")
    fill(peer, b"mine", key="dead")
    peer.send(1, make(spec.BasicGet, queue="work"), make(spec.BasicGet, queue="work"))
    peer.send(1, make(spec.BasicNack, delivery_tag=2, multiple=True))
    site.bench.settle()
    site.bench.disk()
    peer.take()
    path = "qlog/queues/%2F/dead"
    assert bodies(await peek(site, "reason=rejected&died_in=work", path)) == ["1", "2"]
    assert (await post(site, f"{path}/redrive", {"match": {"reason": "expired"}}))["moved"] == 0
    answer = await post(site, f"{path}/redrive")
    assert (answer["moved"], answer["refused"]) == (2, 1)  # one is no dead letter
    first, second = await peek(site, queue="qlog/queues/%2F/work")
    assert (first["exchange"], first["routing_key"], first["payload"]) == ("amq.topic", "a.1", "1")
    assert (second["exchange"], second["routing_key"], second["payload"]) == ("", "work", "2")
    assert [body for body, _ in take(peer, "dead")] == [b"mine"]
    # They may die again, and what the headers told of the first time counts for nothing.
    peer.send(1, make(spec.BasicGet, queue="work"))
    (said,) = peer.take()
    assert isinstance(said.method, spec.BasicGetOk)
    peer.send(1, make(spec.BasicReject, delivery_tag=said.method.delivery_tag))
    site.bench.settle()
    site.bench.disk()
    (again,) = await peek(site, queue=path)
    (death,) = again["properties"]["headers"]["x-death"]
    assert (death["count"], death["queue"]) == (1, "work")


async def test_one_message_is_deleted(site: Site, peer: Peer) -> None:
    fill(peer, b"1", b"2", b"3")
    middle = (await peek(site))[1]["id"]
    assert (await site.ask("DELETE", f"{Q}/messages/{middle}")).status == 204
    assert (await site.ask("DELETE", f"{Q}/messages/{middle}")).status == 404
    assert (await site.ask("DELETE", f"{Q}/messages/x")).status == 404
    assert take(peer, "q") == [(b"1", False), (b"3", False)]


async def test_one_message_is_changed(site: Site, peer: Peer) -> None:
    fill(peer, b"1", b"2", headers={"a": 1}, message_id="m")
    first = (await peek(site))[0]["id"]
    reply = await site.ask("PUT", f"{Q}/messages/{first}", {"payload": "changed"})
    assert (reply.status, reply.document) == (200, {"changed": True})
    second, changed = await peek(site)
    assert bodies([second, changed]) == ["2", "changed"]
    assert changed["properties"] == second["properties"]
    properties = {"headers": {"a": 2}, "delivery_mode": 2}
    path = f"{Q}/messages/{changed['id']}"
    document = {"properties": properties, "payload": "//4=", "payload_encoding": "base64"}
    assert (await site.ask("PUT", path, document)).status == 200
    again = (await peek(site))[1]
    assert (again["payload"], again["properties"]) == ("//4=", properties)
    assert (await site.ask("PUT", path, {"payload": "x"})).status == 404
    assert [body for body, _ in take(peer, "q")] == [b"2", b"\xff\xfe"]


async def test_the_deadline_of_one_delivery_is_put_off(site: Site, peer: Peer) -> None:
    fill(peer, b"1", b"2", b"3", b"4")
    peer.send(1, make(spec.BasicConsume, queue="q", consumer_tag="c"))
    peer.take()
    site.bench.pass_ms(1000)
    held = await site.get(f"{Q}/deliveries")
    assert [(one["delivery_tag"], one["consumer_tag"], round(one["age_s"])) for one in held] == [
        (number, "c", 1) for number in range(1, 5)
    ]
    assert round(held[0]["left_s"]) == site.bench.settings.consumer_timeout_s - 1
    assert len(await site.get(f"{Q}/deliveries?count=2")) == 2
    path = f"{Q}/deliveries/{held[1]['id']}"
    assert (await site.ask("PUT", path, {"seconds": 500})).status == 204
    assert (await site.ask("PUT", path, {"seconds": 500})).status == 204
    again = await site.get(f"{Q}/deliveries")
    longer = [round(now["left_s"] - then["left_s"]) for now, then in zip(again, held, strict=True)]
    assert longer == [0, 1000, 0, 0]
    for document, status in (({"seconds": 0}, 400), ({"seconds": "x"}, 400)):
        assert (await site.ask("PUT", path, document)).status == status
    assert (await site.ask("PUT", f"{Q}/deliveries/9-9", {"seconds": 5})).status == 404
    # The others are acknowledged: this one alone is out when the timeout is over.
    for tag in (1, 3, 4):
        peer.send(1, make(spec.BasicAck, delivery_tag=tag))
    timeout_ms = site.bench.settings.consumer_timeout_s * 1000
    site.bench.pass_ms(int(timeout_ms))
    peer.take()
    site.bench.pass_ms(900_000)
    assert peer.take() == []
    site.bench.pass_ms(200_000)
    (said,) = peer.take()
    assert isinstance(said.method, spec.ChannelClose)
    assert said.method.reply_code == 406


@pytest.mark.parametrize(
    ("method", "path", "document", "status"),
    [
        ("GET", f"{Q}/messages?count=0", None, 400),
        ("GET", f"{Q}/messages?count=501", None, 400),
        ("GET", f"{Q}/messages?from=x", None, 400),
        ("GET", f"{Q}/messages?header=x", None, 400),
        ("GET", f"{Q}/messages?encoding=x", None, 400),
        ("GET", "qlog/queues/%2F/nosuch/messages", None, 404),
        ("GET", "qlog/queues/nosuch/q/messages", None, 404),
        ("POST", f"{Q}/move", {"to": "nosuch"}, 404),
        ("POST", f"{Q}/move", {"to": "once"}, 400),
        ("POST", f"{Q}/move", {"to": "q", "ends": 5}, 400),
        ("POST", f"{Q}/move", {"to": "q", "match": []}, 200),
        ("POST", f"{Q}/move", {"to": "q", "match": {"since": "x"}}, 400),
        ("PUT", f"{Q}/messages/1-9", {"payload": "x"}, 404),
        ("PUT", f"{Q}/messages/1-0", {"payload": "x", "payload_encoding": "base64"}, 400),
    ],
)
async def test_what_makes_no_sense(
    site: Site, peer: Peer, method: str, path: str, document: Any, status: int
) -> None:
    peer.declare("once", arguments={"x-message-deduplication": True})
    assert (await site.ask(method, path, document)).status == status


@pytest.mark.parametrize("path", ["messages", "move", "redrive"])
async def test_only_administrators_may(site: Site, peer: Peer, path: str) -> None:
    operations = site.bench.broker.operations
    operations.add_user("m", "m", ("monitoring",))
    site.bench.disk()
    method = "GET" if path == "messages" else "POST"
    reply = await site.ask(method, f"{Q}/{path}", {"to": "q"}, login="m:m")
    assert (reply.status, reply.reason) == (401, "Not administrator user")
