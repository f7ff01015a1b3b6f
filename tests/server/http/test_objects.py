"""Queues, exchanges, bindings, vhosts and policies, made and deleted over the API.

Statuses, texts and locations are those that RabbitMQ 4.0.5 answered to the same requests.
"""

from __future__ import annotations

from typing import Any

import pytest

from qlog.server.amqp import spec
from tests.server.broker.support import make
from tests.server.http.support import Site

BAD_REQUEST, NOT_FOUND = "bad_request", "not_found"
NOWHERE = ("Object Not Found", "Not Found")
REFUSED = ("not_authorised", "Access refused.")
PUBLISH = {"routing_key": "q", "properties": {}, "payload": "x", "payload_encoding": "string"}
GET = {"count": 2, "ackmode": "ack_requeue_true", "encoding": "auto"}

RIGHTS = {"configure": "a", "write": "b", "read": "c"}

# What is asked one after the other: method, path, document; status, and error with reason.
TALKS: dict[str, list[tuple[str, str, Any, int, tuple[str, Any] | None]]] = {
    "queues": [
        ("PUT", "queues/%2F/q", {}, 201, None),
        ("PUT", "queues/%2F/q", {"durable": "false"}, 204, None),
        ("PUT", "queues/%2F/a%2Fb", {}, 201, None),
        ("GET", "queues/%2F/a%2Fb", None, 200, None),
        ("GET", "queues/%2F/none/bindings", None, 200, None),
        ("GET", "queues/nosuch/none/bindings", None, 404, NOWHERE),
        ("PUT", "queues/%2F/amq.x", {}, 401, REFUSED),
        ("PUT", "queues/%2F/r", {"durable": "yes"}, 400, (BAD_REQUEST, ["not_boolean", "yes"])),
        (
            "PUT",
            "queues/%2F/r",
            {"arguments": {"x-message-ttl": -1}},
            400,
            (
                BAD_REQUEST,
                "invalid arg 'x-message-ttl' for queue 'r' in vhost '/': {value_negative,-1}",
            ),
        ),
        (
            "PUT",
            "queues/%2F/q",
            {"durable": True},
            400,
            (
                BAD_REQUEST,
                (
                    "inequivalent arg 'durable' for queue 'q' in vhost '/': "
                    "received 'true' but current is 'false'"
                ),
            ),
        ),
        ("POST", "queues/%2F/q/actions", {"action": "x"}, 400, (BAD_REQUEST, ["unknown", "x"])),
        ("DELETE", "queues/%2F/q/contents", None, 204, None),
        ("DELETE", "queues/%2F/none/contents", None, 404, NOWHERE),
        ("POST", "exchanges/%2F/amq.default/publish", PUBLISH, 200, None),
        (
            "DELETE",
            "queues/%2F/q?if-empty=true",
            None,
            400,
            (BAD_REQUEST, "queue 'q' in vhost '/' not empty"),
        ),
        ("DELETE", "queues/%2F/q", None, 204, None),
        ("DELETE", "queues/%2F/q", None, 404, NOWHERE),
        ("GET", "queues/%2F/q", None, 404, NOWHERE),
        ("GET", "queues/nowhere", None, 404, NOWHERE),
        ("GET", "queues/nowhere/q", None, 404, NOWHERE),
        ("PUT", "queues/nowhere/q", {}, 404, NOWHERE),
        ("POST", "rebalance/queues", None, 204, None),
    ],
    "exchanges": [
        ("PUT", "exchanges/%2F/x", {}, 201, None),
        ("PUT", "exchanges/%2F/x", {"type": "direct"}, 204, None),
        (
            "PUT",
            "exchanges/%2F/x",
            {"type": "nope"},
            400,
            (BAD_REQUEST, "unknown exchange type 'nope'"),
        ),
        (
            "PUT",
            "exchanges/%2F/x",
            {"type": "fanout"},
            400,
            (
                BAD_REQUEST,
                (
                    "inequivalent arg 'type' for exchange 'x' in vhost '/': "
                    "received 'fanout' but current is 'direct'"
                ),
            ),
        ),
        ("PUT", "exchanges/%2F/amq.x", {}, 401, REFUSED),
        ("DELETE", "exchanges/%2F/amq.direct", None, 401, REFUSED),
        ("DELETE", "exchanges/%2F/amq.default", None, 401, REFUSED),
        ("DELETE", "exchanges/%2F/none", None, 404, NOWHERE),
        ("PUT", "queues/%2F/q", {}, 201, None),
        ("POST", "bindings/%2F/e/x/q/q", {}, 201, None),
        (
            "DELETE",
            "exchanges/%2F/x?if-unused=true",
            None,
            400,
            (BAD_REQUEST, "exchange 'x' in vhost '/' in use"),
        ),
        ("DELETE", "exchanges/%2F/x", None, 204, None),
        ("GET", "exchanges/%2F/x", None, 404, NOWHERE),
    ],
    "bindings": [
        ("PUT", "exchanges/%2F/x", {}, 201, None),
        ("PUT", "queues/%2F/q", {}, 201, None),
        (
            "POST",
            "bindings/%2F/e/x/q/none",
            {},
            404,
            (NOT_FOUND, "no queue 'none' in vhost '/'"),
        ),
        ("POST", "bindings/%2F/e//q/q", {}, 401, REFUSED),
        ("POST", "bindings/%2F/e/amq.default/q/q", {}, 401, REFUSED),
        ("POST", "bindings/%2F/e/x/e/amq.topic", {"routing_key": "z"}, 201, None),
        ("GET", "bindings/%2F/e/x/e/amq.topic/z", None, 200, None),
        ("POST", "bindings/%2F/e/x/q/q", {}, 201, None),
        ("GET", "bindings/%2F/e/x/q/q/~", None, 200, None),
        ("GET", "bindings/%2F/e/x/q/q/zz", None, 404, NOWHERE),
        ("DELETE", "bindings/%2F/e/x/q/q/zz", None, 404, NOWHERE),
        ("DELETE", "bindings/%2F/e/x/q/q/~", None, 204, None),
        ("DELETE", "bindings/%2F/e/x/q/q/~", None, 404, NOWHERE),
        ("GET", "bindings/%2F/e/none/q/q", None, 200, None),
        ("GET", "bindings/%2F/e/x/z/q", None, 404, NOWHERE),
    ],
    "messages": [
        ("PUT", "queues/%2F/q", {}, 201, None),
        (
            "POST",
            "exchanges/%2F/amq.default/publish",
            {"routing_key": "q"},
            400,
            (
                BAD_REQUEST,
                "[{key_missing,properties},{key_missing,payload},{key_missing,payload_encoding}]",
            ),
        ),
        (
            "POST",
            "exchanges/%2F/amq.default/publish",
            {**PUBLISH, "properties": {"priority": "x"}},
            400,
            (BAD_REQUEST, ["not_int", "priority"]),
        ),
        (
            "POST",
            "exchanges/%2F/amq.default/publish",
            {**PUBLISH, "payload_encoding": "rot13"},
            400,
            (BAD_REQUEST, ["unsupported_encoding", "rot13"]),
        ),
        (
            "POST",
            "exchanges/%2F/amq.default/publish",
            {**PUBLISH, "payload": "###", "payload_encoding": "base64"},
            400,
            (BAD_REQUEST, ["not_base64", "###"]),
        ),
        (
            "POST",
            "exchanges/%2F/none/publish",
            PUBLISH,
            404,
            (NOT_FOUND, "exchange_not_found"),
        ),
        (
            "POST",
            "exchanges/%2F/amq.rabbitmq.trace/publish",
            PUBLISH,
            400,
            (
                BAD_REQUEST,
                (
                    "403 ACCESS_REFUSED - cannot publish to internal exchange 'amq.rabbitmq.trace' "
                    "in vhost '/'"
                ),
            ),
        ),
        (
            "POST",
            "queues/%2F/q/get",
            {},
            400,
            (BAD_REQUEST, "[{key_missing,ackmode},{key_missing,count},{key_missing,encoding}]"),
        ),
        (
            "POST",
            "queues/%2F/q/get",
            {**GET, "encoding": "bad"},
            400,
            (BAD_REQUEST, "Unsupported encoding. Please use auto or base64."),
        ),
        (
            "POST",
            "queues/%2F/q/get",
            {**GET, "count": "x"},
            400,
            (BAD_REQUEST, ["not_integer", "x"]),
        ),
        ("POST", "queues/%2F/none/get", GET, 404, (NOT_FOUND, "queue_not_found")),
    ],
    "vhosts": [
        ("PUT", "vhosts/v", {}, 201, None),
        ("PUT", "vhosts/v", {"tags": "a,b", "description": "d"}, 204, None),
        ("GET", "queues/v", None, 200, None),
        (
            "PUT",
            "vhosts/v",
            {"default_queue_type": "foo"},
            400,
            (BAD_REQUEST, "foo is not a valid queue type"),
        ),
        ("POST", "vhosts/v/deletion/protection", None, 204, None),
        ("PUT", "vhosts/v", {"description": "still protected"}, 204, None),
        (
            "DELETE",
            "vhosts/v",
            None,
            412,
            (
                "precondition_failed",
                "Refusing to delete virtual host 'v' because it is protected from deletion",
            ),
        ),
        ("DELETE", "vhosts/v/deletion/protection", None, 204, None),
        ("DELETE", "vhosts/v/deletion/protection", None, 204, None),
        ("DELETE", "vhosts/v", None, 204, None),
        ("DELETE", "vhosts/v", None, 404, NOWHERE),
        ("POST", "vhosts/v/deletion/protection", None, 404, NOWHERE),
        ("DELETE", "vhosts/v/deletion/protection", None, 404, NOWHERE),
        ("GET", "vhosts/v", None, 404, NOWHERE),
    ],
    "policies": [
        ("PUT", "policies/%2F/p", {"pattern": "a", "definition": {"max-length": 1}}, 201, None),
        ("PUT", "policies/%2F/p", {"pattern": "b", "definition": {"max-length": 1}}, 204, None),
        (
            "PUT",
            "policies/%2F/p",
            {},
            400,
            (BAD_REQUEST, "[{key_missing,pattern},{key_missing,definition}]"),
        ),
        ("PUT", "policies/nowhere/p", {}, 404, (NOT_FOUND, "vhost_not_found")),
        ("GET", "policies/%2F/p", None, 200, None),
        ("GET", "operator-policies/%2F/p", None, 404, NOWHERE),
        ("DELETE", "policies/%2F/p", None, 204, None),
        ("DELETE", "policies/%2F/p", None, 404, NOWHERE),
    ],
    "users": [
        ("PUT", "users/u", {"password": "x"}, 400, (BAD_REQUEST, "tags_not_present")),
        ("PUT", "users/u", {"password": "x", "tags": "a,b"}, 201, None),
        ("PUT", "users/u", {"tags": ["management"]}, 204, None),
        (
            "PUT",
            "users/u",
            {"password": "x", "password_hash": "y", "tags": ""},
            400,
            (BAD_REQUEST, "both_password_and_password_hash_are_provided"),
        ),
        ("GET", "users/none", None, 404, NOWHERE),
        ("GET", "users/u/permissions", None, 200, None),
        ("GET", "users/none/permissions", None, 404, NOWHERE),
        (
            "PUT",
            "permissions/%2F/u",
            {"configure": ".*"},
            400,
            (BAD_REQUEST, "[{key_missing,write},{key_missing,read}]"),
        ),
        ("GET", "permissions/%2F/u", None, 404, NOWHERE),
        ("PUT", "permissions/%2F/u", RIGHTS, 201, None),
        ("PUT", "permissions/%2F/u", RIGHTS, 204, None),
        (
            "PUT",
            "permissions/%2F/none",
            RIGHTS,
            400,
            (BAD_REQUEST, "vhost_or_user_not_found"),
        ),
        ("PUT", "permissions/%2F/u", {**RIGHTS, "read": "("}, 400, None),
        ("DELETE", "permissions/%2F/u", None, 204, None),
        ("DELETE", "permissions/%2F/u", None, 404, NOWHERE),
        ("PUT", "topic-permissions/%2F/u", {**RIGHTS, "exchange": "amq.topic"}, 201, None),
        (
            "PUT",
            "topic-permissions/%2F/u",
            {"exchange": "amq.topic", "write": "a"},
            400,
            (BAD_REQUEST, "[{key_missing,read}]"),
        ),
        ("GET", "topic-permissions/%2F/u/amq.topic", None, 200, None),
        ("DELETE", "topic-permissions/%2F/u/amq.topic", None, 204, None),
        ("DELETE", "topic-permissions/%2F/u", None, 404, NOWHERE),
        ("GET", "topic-permissions/%2F/u", None, 404, NOWHERE),
        (
            "PUT",
            "user-limits/none/max-channels",
            {"value": 5},
            400,
            (BAD_REQUEST, ["no_such_user", "none"]),
        ),
        (
            "PUT",
            "user-limits/u/bad",
            {"value": 5},
            400,
            (BAD_REQUEST, 'Unrecognised terms [{<<"bad">>,5}] in user-limits'),
        ),
        ("PUT", "user-limits/u/max-channels", {"value": 5}, 204, None),
        ("DELETE", "user-limits/u/max-channels", None, 204, None),
        ("POST", "users/bulk-delete", {}, 400, (BAD_REQUEST, "[{key_missing,users}]")),
        ("POST", "users/bulk-delete", {"users": ["u", "none"]}, 204, None),
        ("DELETE", "users/u", None, 404, NOWHERE),
    ],
    "parameters": [
        (
            "PUT",
            "parameters/foo/%2F/x",
            {"value": 1},
            400,
            (BAD_REQUEST, "Validation failed\n\ncomponent foo not found\n"),
        ),
        ("GET", "parameters/foo", None, 200, None),
        ("GET", "parameters/foo/%2F/x", None, 404, NOWHERE),
        ("PUT", "global-parameters/g", {"value": {"a": 1}}, 201, None),
        ("PUT", "global-parameters/g", {"value": 2}, 204, None),
        ("PUT", "global-parameters/g", {}, 400, (BAD_REQUEST, "[{key_missing,value}]")),
        ("DELETE", "global-parameters/g", None, 204, None),
        ("DELETE", "global-parameters/g", None, 404, NOWHERE),
        ("PUT", "vhost-limits/%2F/max-queues", {"value": 5}, 204, None),
        (
            "PUT",
            "vhost-limits/%2F/max-queues",
            {"value": "a"},
            400,
            (
                BAD_REQUEST,
                'Validation failed\n\nmax-queues should be a number, actually was <<"a">>\n',
            ),
        ),
        (
            "PUT",
            "vhost-limits/%2F/bad",
            {"value": 5},
            400,
            (BAD_REQUEST, 'Validation failed\n\nUnrecognised terms [{<<"bad">>,5}] in limits\n'),
        ),
        ("GET", "parameters/vhost-limits/%2F/limits", None, 200, None),
        ("DELETE", "vhost-limits/%2F/max-queues", None, 204, None),
        ("DELETE", "vhost-limits/%2F/max-queues", None, 204, None),
        ("GET", "vhost-limits/%2F/max-queues", None, 405, None),
        ("PUT", "cluster-name", {}, 400, (BAD_REQUEST, "[{key_missing,name}]")),
        ("PUT", "cluster-name", {"name": "ours"}, 204, None),
        (
            "PUT",
            "parameters/operator_policy/%2F/op",
            {"value": {"pattern": "x", "definition": {"max-length": 1}}},
            400,
            (BAD_REQUEST, 'Validation failed\n\nKey "priority" not found in op\n'),
        ),
    ],
}


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS.keys())
async def test_statuses_and_texts(
    site: Site, talk: list[tuple[str, str, Any, int, tuple[str, Any] | None]]
) -> None:
    for method, path, document, status, refusal in talk:
        reply = await site.ask(method, path, document)
        assert reply.status == status, (method, path, reply)
        if refusal is not None:
            assert reply.document == {"error": refusal[0], "reason": refusal[1]}, (method, path)
        elif status in (201, 204):
            assert reply.body == b""


async def test_who_makes_a_vhost_may_use_it(site: Site) -> None:
    await site.ask("PUT", "vhosts/v", {})
    (rights,) = await site.get("vhosts/v/permissions")
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    assert rights == {"user": "guest", "vhost": "v", **everything}
    await site.ask("PUT", "vhosts/w", {}, owner=True)
    assert await site.get("vhosts/w/permissions") == []


async def test_users_are_shown_with_their_limits(site: Site) -> None:
    await site.ask("PUT", "users/u", {"password": "x", "tags": "management"})
    await site.ask("PUT", "user-limits/u/max-channels", {"value": 5})
    shown = await site.get("users/u")
    assert shown["tags"] == ["management"]
    assert shown["limits"] == {"max-channels": 5}
    assert shown["hashing_algorithm"] == "argon2id"
    assert await site.get("user-limits") == [{"user": "u", "value": {"max-channels": 5}}]
    assert [user["name"] for user in await site.get("users/without-permissions")] == ["u"]
    assert await site.get("whoami", login="u:x")
    attempts = await site.get("auth/attempts/qlog")
    assert attempts[0]["protocol"] == "http" and attempts[0]["auth_attempts_succeeded"] > 4


async def test_where_a_binding_is(site: Site) -> None:
    await site.ask("PUT", "exchanges/%2F/x", {"type": "headers"})
    await site.ask("PUT", "queues/%2F/q", {})
    reply = await site.ask(
        "POST", "bindings/%2F/e/x/q/q", {"routing_key": "a b/c", "arguments": {"x": 1}}
    )
    where = reply.headers["location"]
    assert where.startswith("q/a%2Bb%252Fc~")
    binding = await site.get(f"bindings/%2F/e/x/q/{where}")
    assert (binding["routing_key"], binding["arguments"]) == ("a b/c", {"x": 1})
    assert (await site.ask("DELETE", f"bindings/%2F/e/x/q/{where}")).status == 204
    assert await site.get("bindings/%2F/e/x/q/q") == []
    (implied,) = await site.get("bindings/%2F/e//q/q")
    assert implied["properties_key"] == "q"


async def test_a_message_is_published_and_taken(site: Site) -> None:
    await site.ask("PUT", "queues/%2F/q", {"durable": True})
    where = "exchanges/%2F/amq.default/publish"
    properties = {"headers": {"a": 1}, "delivery_mode": 2, "unknown": 1, "timestamp": 5}
    reply = await site.ask("POST", where, {**PUBLISH, "properties": properties})
    assert reply.document == {"routed": True}
    base64 = {**PUBLISH, "payload": "/w==", "payload_encoding": "base64"}
    assert (await site.ask("POST", where, base64)).document == {"routed": True}
    nobody = {**PUBLISH, "routing_key": "nobody"}
    assert (await site.ask("POST", where, nobody)).document == {"routed": False}

    first = {
        "payload_bytes": 1,
        "redelivered": False,
        "exchange": "",
        "routing_key": "q",
        "message_count": 1,
        "properties": {"headers": {"a": 1}, "delivery_mode": 2, "timestamp": 5},
        "payload": "x",
        "payload_encoding": "string",
    }
    second = {
        **first,
        "message_count": 0,
        "properties": [],
        "payload": "/w==",
        "payload_encoding": "base64",
    }
    reply = await site.ask("POST", "queues/%2F/q/get", {**GET, "count": 5})
    assert reply.document == [first, second]
    wanted = {**GET, "ackmode": "ack_requeue_false", "encoding": "base64", "truncate": 0}
    reply = await site.ask("POST", "queues/%2F/q/get", wanted)
    assert [item["redelivered"] for item in reply.document] == [True, True]
    assert [item["payload"] for item in reply.document] == ["", ""]
    assert (await site.ask("POST", "queues/%2F/q/get", GET)).document == []


@pytest.mark.parametrize(
    ("mode", "left"),
    [
        ("ack_requeue_true", 2),
        ("reject_requeue_true", 2),
        ("ack_requeue_false", 0),
        ("reject_requeue_false", 0),
    ],
)
async def test_what_becomes_of_what_was_taken(site: Site, mode: str, left: int) -> None:
    peer = site.peer()
    queue = peer.declare("q")
    peer.publish(1, "q", b"a", b"b")
    await site.ask("POST", "queues/%2F/q/get", {**GET, "ackmode": mode})
    assert (queue.ready, queue.unacked) == (left, 0)
    if left:
        peer.send(1, make(spec.BasicConsume, queue="q", no_ack=True))
        bodies = [said.body for said in peer.take() if said.body is not None]
        assert bodies == [b"a", b"b"]  # in their places


async def test_a_message_that_a_queue_rejects(site: Site) -> None:
    arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
    await site.ask("PUT", "queues/%2F/q", {"arguments": arguments})
    reply = await site.ask("POST", "exchanges/%2F/amq.default/publish", PUBLISH)
    assert reply.status == 400
    assert reply.reason == "rejected Unable to publish message. Check queue limits."


async def test_nothing_is_published_during_an_alarm(site: Site) -> None:
    await site.ask("PUT", "queues/%2F/q", {})
    site.bench.broker.set_alarm("low on disk", True)
    reply = await site.ask("POST", "exchanges/%2F/amq.default/publish", PUBLISH)
    assert (reply.status, reply.reason) == (400, "publishers are blocked: low on disk")


async def test_a_message_that_is_no_text_anywhere(site: Site) -> None:
    """Octets that are no UTF-8 in routing key, properties and headers are shown, not an error."""
    from qlog.server.amqp.properties import Properties
    from tests.server.broker.support import message

    peer = site.peer()
    peer.declare("q")
    deep: Any = "x"
    for _ in range(20):
        deep = {"deeper": [deep]}
    properties = Properties(
        correlation_id="\udcff", headers={"octets": b"\xff", "deep": deep}, delivery_mode=2
    )
    peer.send(1, message(1, "q", b"x", properties=properties))
    (shown,) = (await site.ask("POST", "queues/%2F/q/get", GET)).document
    assert shown["properties"]["headers"]["octets"] == "\ufffd"
    assert shown["properties"]["correlation_id"] == "\ufffd"


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'"x"', b"[" * 100_000])
async def test_a_body_that_is_no_document(site: Site, body: bytes) -> None:
    reply = await site.ask("PUT", "queues/%2F/q", body=body)
    assert (reply.status, reply.document) == (400, {"error": BAD_REQUEST, "reason": "not_json"})


async def test_rights_are_asked_for_messages_and_objects(site: Site) -> None:
    """With the texts that RabbitMQ's API has for each."""
    await site.ask("PUT", "queues/%2F/q", {})
    await site.ask("PUT", "users/u", {"password": "u", "tags": "management"})
    await site.ask("PUT", "permissions/%2F/u", {"configure": "^$", "write": "^$", "read": "^$"})
    reply = await site.ask("POST", "queues/%2F/q/get", GET, login="u:u")
    text = "ACCESS_REFUSED - read access to queue 'q' in vhost '/' refused for user 'u'"
    assert (reply.status, reply.document) == (401, {"error": "not_authorised", "reason": text})
    publish = "exchanges/%2F/amq.default/publish"
    reply = await site.ask("POST", publish, PUBLISH, login="u:u")
    text = (
        "403 ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' "
        "refused for user 'u'"
    )
    assert (reply.status, reply.reason) == (400, text)
    for method, path, document in (
        ("PUT", "queues/%2F/r", {}),
        ("DELETE", "queues/%2F/q", None),
        ("DELETE", "queues/%2F/q/contents", None),
        ("PUT", "exchanges/%2F/x", {}),
        ("POST", "bindings/%2F/e/amq.topic/q/q", {}),
    ):
        reply = await site.ask(method, path, document, login="u:u")
        assert (reply.status, reply.reason) == (401, "Access refused."), (method, path)
    assert [queue["name"] for queue in await site.get("queues")] == ["q"]


async def test_a_body_that_is_too_large(site: Site) -> None:
    """A message may be long; a document that takes long to be understood may not."""
    await site.ask("PUT", "queues/%2F/q", {})
    publish = "exchanges/%2F/amq.default/publish"
    long = await site.ask("POST", publish, {**PUBLISH, "payload": "x" * 1_000_000})
    assert long.document == {"routed": True}
    bomb: dict[str, Any] = {"a": [{}] * 200_000}
    for reply in (
        await site.ask("POST", publish, body=b" " * 20_000_001),
        await site.ask("PUT", "queues/%2F/q", {"arguments": bomb}),
        await site.ask("POST", publish, {**PUBLISH, "properties": {"headers": bomb}}),
    ):
        assert (reply.status, reply.document["error"]) == (400, "payload_too_large")


async def test_methods(site: Site) -> None:
    reply = await site.ask("OPTIONS", "queues", login=None)
    assert (reply.status, reply.headers["allow"]) == (200, "HEAD, GET, OPTIONS")
    reply = await site.ask("POST", "queues")
    assert (reply.status, reply.headers["allow"]) == (405, "HEAD, GET, OPTIONS")
    reply = await site.ask("OPTIONS", "queues/%2F/q")
    assert reply.headers["allow"] == "HEAD, GET, PUT, DELETE, OPTIONS"
    assert (await site.ask("GET", "no/such/thing")).status == 404
    assert (await site.ask("GET", "queues/%2F/" + "x" * 5000)).status == 404


@pytest.mark.parametrize(
    "path", ["/api/../etc/passwd", "/..%2F..%2Fetc%2Fpasswd", "/api/queues/%2F/..%2F..%2Fx", "//x"]
)
async def test_paths_lead_nowhere(site: Site, path: str) -> None:
    assert (await site.ask("GET", path)).status == 404


async def test_the_vhost_of_a_listing(site: Site) -> None:
    await site.ask("PUT", "vhosts/v", {"tracing": True, "tags": ["a"], "description": "d"})
    shown = await site.get("vhosts/v")
    assert (shown["description"], shown["tags"], shown["tracing"]) == ("d", ["a"], True)
    await site.ask("PUT", "vhosts/v", {"tracing": False})
    shown = await site.get("vhosts/v")
    assert (shown["description"], shown["tags"], shown["tracing"]) == ("", [], False)
