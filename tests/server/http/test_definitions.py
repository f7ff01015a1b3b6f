"""Definitions over the API: written, loaded, loaded again, and refused as a whole."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import trio

from qlog.server.http import documents, pace
from qlog.server.http.documents import read_object
from tests.server.http.support import Site

DOCUMENT: dict[str, Any] = {
    "users": [
        {"name": "u", "password_hash": "", "tags": ["management"], "limits": {"max-channels": 5}},
        {"name": "w", "password": "secret", "tags": "monitoring"},
    ],
    "vhosts": [{"name": "v", "default_queue_type": "quorum", "tags": ["a"]}],
    "permissions": [{"user": "w", "vhost": "v", "configure": "", "write": "", "read": ".*"}],
    "topic_permissions": [
        {"user": "u", "vhost": "v", "exchange": "amq.topic", "write": "a", "read": "b"}
    ],
    "parameters": [
        {"vhost": "v", "component": "vhost-limits", "name": "limits", "value": {"max-queues": 9}}
    ],
    "global_parameters": [{"name": "cluster_name", "value": "ours"}],
    "policies": [
        {
            "vhost": "v",
            "name": "p",
            "pattern": "^q",
            "apply-to": "queues",
            "definition": {"max-length": 5},
            "priority": 1,
        }
    ],
    "exchanges": [
        {
            "vhost": "v",
            "name": "x",
            "type": "topic",
            "durable": True,
            "auto_delete": False,
            "internal": False,
            "arguments": {},
        }
    ],
    "queues": [{"vhost": "v", "name": "q", "durable": True, "auto_delete": False, "arguments": {}}],
    "bindings": [
        {
            "vhost": "v",
            "source": "x",
            "destination": "q",
            "destination_type": "queue",
            "routing_key": "a.#",
            "arguments": {},
        }
    ],
}


async def exported(site: Site) -> dict[str, Any]:
    document: dict[str, Any] = await site.get("definitions")
    return {section: document[section] for section in DOCUMENT}


async def test_what_is_loaded_is_written_and_loaded_again(site: Site, tmp_path: Path) -> None:
    assert (await site.ask("POST", "definitions", DOCUMENT)).status == 204
    first = await exported(site)
    assert [vhost["name"] for vhost in first["vhosts"]] == ["/", "v"]
    assert first["policies"] == DOCUMENT["policies"]
    assert first["topic_permissions"] == DOCUMENT["topic_permissions"]
    assert first["queues"][0]["arguments"] == {"x-queue-type": "quorum"}
    assert (await site.get("cluster-name")) == {"name": "ours"}
    assert await site.get("queues/v", login="w:secret")
    assert (await site.ask("POST", "definitions", first)).status == 204
    assert await exported(site) == first
    other = Site(tmp_path / "other")
    try:
        assert (await other.ask("POST", "definitions", first)).status == 204
        assert await exported(other) == first
    finally:
        other.bench.kill()


async def test_the_log_says_who_loaded_what(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """And what changed of users and their rights; loaded again, nothing has changed."""
    document = {**DOCUMENT, "future": []}
    with caplog.at_level(logging.INFO):
        assert (await site.ask("POST", "definitions", document)).status == 204
    by = "by='guest' from=HTTP 127.0.0.1"
    said = [
        record.getMessage().replace(by, "BY")
        for record in caplog.records
        if "definitions" in record.getMessage() or record.name == "qlog.access"
    ]
    assert said == [
        "user made user='u' tags=management BY",
        "user made user='w' tags=monitoring BY",
        "permissions set user='w' vhost='v' configure='' write='' read='.*' BY",
        "topic permissions set user='u' vhost='v' exchange='amq.topic' write='a' read='b' BY",
        (
            "definitions loaded users=2 vhosts=1 permissions=1 topic_permissions=1 parameters=1 "
            "global_parameters=1 policies=1 exchanges=1 queues=1 bindings=1 BY"
        ),
        "definitions: 'future' is not known, and left out",
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO, "qlog.access"):
        assert (await site.ask("POST", "definitions", document)).status == 204
    assert not [record for record in caplog.records if record.name == "qlog.access"]


async def test_rights_of_who_loads_are_not_asked(site: Site) -> None:
    """An administrator needs no permission for a vhost to load queues into it, as in RabbitMQ."""
    root = {"name": "root", "password": "secret", "tags": "administrator"}
    assert (await site.ask("POST", "definitions", {"users": [root]})).status == 204
    assert (await site.ask("POST", "definitions", DOCUMENT, login="root:secret")).status == 204
    assert [queue["name"] for queue in await site.get("queues")] == ["q"]


async def test_one_vhost(site: Site) -> None:
    await site.ask("POST", "definitions", DOCUMENT)
    document = await site.get("definitions/v?download=v.json")
    assert document["rabbitmq_definition_format"] == "single_virtual_host"
    assert document["original_vhost_name"] == "v"
    assert "users" not in document
    assert "vhost" not in document["queues"][0]
    await site.ask("PUT", "vhosts/copy", {})
    assert (await site.ask("POST", "definitions/copy", document)).status == 204
    copied = await site.get("definitions/copy")
    for section in ("parameters", "policies", "exchanges", "queues", "bindings"):
        assert copied[section] == document[section], section
    assert (await site.ask("GET", "definitions/none")).reason == "vhost_not_found"
    assert (await site.ask("POST", "definitions/none", {})).status == 404


async def test_a_file_of_a_form_and_one_for_a_browser(site: Site) -> None:
    text = json.dumps(DOCUMENT)
    body = (
        '--xyz\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n'
        '--xyz\r\nContent-Disposition: form-data; name="file"; filename="d.json"\r\n'
        f"Content-Type: application/json\r\n\r\n{text}\r\n--xyz--\r\n"
    )
    headers = {"content-type": "multipart/form-data; boundary=xyz"}
    reply = await site.ask("POST", "definitions", body=body.encode(), headers=headers)
    assert reply.status == 204
    reply = await site.ask("GET", "definitions?download=a%22b.json")
    assert reply.headers["content-disposition"] == "attachment; filename=a%22b.json"


# One item that cannot be had: the section, the item, what is said.
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("users", {"name": "", "tags": ""}, "user"),
    ("users", {"name": "b", "password_hash": "!!", "tags": ""}, "user 'b'"),
    ("vhosts", {"name": "b", "default_queue_type": "nope"}, "nope is not a valid queue type"),
    (
        "permissions",
        {"user": "nobody", "vhost": "v", "configure": "", "write": "", "read": ""},
        "there is no user 'nobody'",
    ),
    (
        "permissions",
        {"user": "u", "vhost": "none", "configure": "", "write": "", "read": ""},
        "there is no vhost 'none'",
    ),
    (
        "topic_permissions",
        {"user": "u", "vhost": "v", "exchange": "x", "write": "(", "read": ""},
        "pattern",
    ),
    (
        "parameters",
        {"vhost": "v", "component": "vhost-limits", "name": "l", "value": {"max-queues": "x"}},
        "max-queues should be a number",
    ),
    (
        "policies",
        {"vhost": "v", "name": "b", "pattern": "(", "definition": {"max-length": 1}},
        "pattern should be regular expression",
    ),
    ("exchanges", {"vhost": "v", "name": "b", "type": "nope"}, "unknown exchange type 'nope'"),
    ("queues", {"vhost": "v", "name": "b", "arguments": {"x-message-ttl": -1}}, "value_negative"),
    ("queues", {"vhost": "v", "name": "b", "durable": "yes"}, "'durable' has the wrong type"),
    (
        "bindings",
        {"vhost": "v", "source": "x", "destination": "none", "destination_type": "queue"},
        "there is no queue 'none'",
    ),
    (
        "bindings",
        {"vhost": "v", "source": "none", "destination": "q", "destination_type": "queue"},
        "there is no exchange 'none'",
    ),
]


@pytest.mark.parametrize(("section", "item", "reason"), BAD)
async def test_nothing_is_loaded_if_one_item_cannot_be_had(
    site: Site, section: str, item: dict[str, Any], reason: str
) -> None:
    before = await exported(site)
    document = {**DOCUMENT, section: [*DOCUMENT[section], item]}
    reply = await site.ask("POST", "definitions", document)
    assert reply.status == 400
    assert reason in reply.reason
    assert await exported(site) == before


async def test_limits_of_the_document_count(site: Site) -> None:
    queues = [{"vhost": "v", "name": f"q{number}", "arguments": {}} for number in range(10)]
    reply = await site.ask("POST", "definitions", {**DOCUMENT, "queues": queues, "bindings": []})
    assert reply.status == 400 and "queue limit in vhost 'v' (9) is reached" in reply.reason


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"", b'{"a" 1}', b'{"a":[1 2]}', b'{"a":1}x', b"{1:2}", b'{"a":NaN}', b"\xff"],
)
async def test_what_is_no_document(site: Site, body: bytes) -> None:
    reply = await site.ask("POST", "definitions", body=body)
    assert (reply.status, reply.reason) == (400, "failed_to_parse_json")


@pytest.mark.parametrize(
    "document", [{}, {"a": []}, {"a": [1, [2], {"b": "]"}], "c": {"d": [3]}}, DOCUMENT]
)
async def test_a_document_is_read_as_json_reads_it(document: Any) -> None:
    for indent in (None, 2):
        assert await read_object(json.dumps(document, indent=indent).encode()) == document


async def test_a_long_document_is_read_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "SLICE_S", 0.0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    body = json.dumps({"queues": [{"name": str(number)} for number in range(10_000)]}).encode()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await read_object(body)
        nursery.cancel_scope.cancel()
    assert turns >= 10_000 / documents.ITEMS_AT_ONCE
