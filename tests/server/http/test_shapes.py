"""Each answer has the fields that RabbitMQ 4.0's had for the same state, with the same types.

`rabbitmq_shapes.json` is what `record.py` has written down of a real one.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from qlog.server.amqp import spec
from tests.server.broker.support import make, message
from tests.server.http.record import FILE, PATHS, VHOST, shape
from tests.server.http.support import Site

SHAPES = json.loads(FILE.read_text())
# A field that is null in one state has another type in the next.
NULLABLE = {
    "online",
    "policy",
    "operator_policy",
    "single_active_consumer_tag",
    "exclusive_consumer_tag",
}


# qlog writes a default type only if one was set; a parameter may be anything.
DIFFERS = {
    "definitions.vhosts[].default_queue_type",
    "definitions.vhosts[].metadata.default_queue_type",
    f"definitions/{VHOST}.metadata.default_queue_type",
    "definitions.global_parameters[].value",
}


def lacking(where: str, theirs: Any, ours: Any) -> list[str]:
    """What RabbitMQ's answer has and ours has not."""
    if isinstance(theirs, dict):
        if not isinstance(ours, dict):
            return [f"{where}: {ours} is no object"]
        found = []
        for key, value in theirs.items():
            if key == "NODE" or f"{where}.{key}" in DIFFERS:
                continue
            if key not in ours:
                found.append(f"{where}.{key}")
            else:
                found += lacking(f"{where}.{key}", value, ours[key])
        return found
    if isinstance(theirs, list):
        if not isinstance(ours, list):
            return [f"{where}: {ours} is no list"]
        return lacking(f"{where}[]", theirs[0], ours[0]) if theirs and ours else []
    key = where.rpartition(".")[2]
    nullable = key in NULLABLE or key.startswith(("ssl_", "peer_cert_"))
    if theirs != ours and not nullable:
        return [f"{where}: {ours} instead of {theirs}"]
    return []


@pytest.fixture
async def state(site: Site) -> Site:
    """What `record.py` makes."""
    site.bench.broker.operations.sampler.start()
    await site.ask("PUT", f"vhosts/{VHOST}", {})
    peer = site.peer(VHOST)
    peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    await site.ask("PUT", f"exchanges/{VHOST}/x", {"type": "topic", "durable": True})
    await site.ask("PUT", f"queues/{VHOST}/classic", {"durable": True})
    quorum = {"durable": True, "arguments": {"x-queue-type": "quorum"}}
    await site.ask("PUT", f"queues/{VHOST}/quorum", quorum)
    await site.ask("POST", f"bindings/{VHOST}/e/x/q/classic", {"routing_key": "a.#"})
    bound = {"routing_key": "a.b", "arguments": {"k": 1}}
    await site.ask("POST", f"bindings/{VHOST}/e/x/q/quorum", bound)
    policy = {"pattern": "^classic$", "definition": {"max-length": 500}, "apply-to": "queues"}
    await site.ask("PUT", f"policies/{VHOST}/p", policy)
    peer.send(1, *[message(1, "a.b", b"hello", exchange="x") for _ in range(20)])
    site.bench.disk()
    peer.send(1, make(spec.BasicQos, prefetch_count=5))
    peer.send(1, make(spec.BasicConsume, queue="classic", consumer_tag="tag"))
    site.bench.pass_ms(5000)
    site.bench.pass_ms(5000)
    return site


@pytest.mark.parametrize("path", PATHS)
async def test_the_fields_of_rabbitmq(state: Site, path: str) -> None:
    (client,) = state.bench.broker.clients
    asked = path
    for word, meant in (
        ("CONNECTION", client.name),
        ("CHANNEL", f"{client.name} (1)"),
        ("NODE", "qlog"),
    ):
        asked = asked.replace(word, quote(meant, safe=""))
    ours = shape(await state.get(asked))
    assert lacking(path, SHAPES[path], ours) == []
