"""Asks a running RabbitMQ what its API answers, for `rabbitmq_shapes.json`.

    python -m tests.server.http.record amqp://guest:guest@127.0.0.1:5672/ http://127.0.0.1:15672/api

It makes a vhost of its own with a queue of each type, an exchange, bindings, a policy, a publisher
and a consumer, waits for RabbitMQ's statistics, writes down the fields of each answer with their
types, and deletes the vhost. What only Erlang has (`LEFT_OUT`) is left out.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

FILE = Path(__file__).with_name("rabbitmq_shapes.json")
VHOST = "shapes"
SETTLED_S = 12.0  # RabbitMQ's statistics are five seconds old, and rates need two of them

# Fields that only Erlang has, or that say something of RabbitMQ's own storage.
LEFT_OUT = re.compile(
    r"(erlang_|garbage_collection|reductions|ra_open|gc_|context_switches|io_|mnesia_|msg_store_"
    r"|queue_index_|metrics_gc|cowboy_opts|ssl_opts|socket_opts|cluster_links|config_files|proc_"
    r"|pending_raft|open_files|disk_reads|disk_writes|message_bytes_(ram|paged|persistent|dlx)"
    r"|messages_(ram|paged|persistent|dlx|ready_ram|unacknowledged_ram|ready_high|ready_normal"
    r"|ready_returned)|head_message|idle_since|publishers$|(mem|fd|sockets|disk)_.*details"
    r"|run_queue|net_ticktime|javascript)"
)
# What is asked for; CONNECTION and CHANNEL stand for the names of the client's.
PATHS = (
    "overview",
    "nodes",
    "nodes/NODE/memory",
    f"queues/{VHOST}",
    f"queues/{VHOST}/classic",
    f"queues/{VHOST}/quorum",
    f"queues/{VHOST}/classic?lengths_age=60&lengths_incr=5&msg_rates_age=60&msg_rates_incr=5",
    f"queues/{VHOST}?lengths_age=60&lengths_incr=5&msg_rates_age=60&msg_rates_incr=5",
    f"queues/{VHOST}?page=1&page_size=1",
    f"queues/{VHOST}?disable_stats=true&enable_queue_totals=true",
    f"queues/{VHOST}/classic/bindings",
    f"exchanges/{VHOST}",
    f"exchanges/{VHOST}/x",
    f"exchanges/{VHOST}/x/bindings/source",
    f"bindings/{VHOST}",
    f"bindings/{VHOST}/e/x/q/classic",
    f"vhosts/{VHOST}/connections",
    "connections/CONNECTION",
    "connections/CONNECTION/channels",
    "connections/username/guest",
    f"vhosts/{VHOST}/channels",
    "channels/CHANNEL",
    f"consumers/{VHOST}",
    f"vhosts/{VHOST}",
    f"vhosts/{VHOST}/permissions",
    "users/guest",
    "users/guest/permissions",
    f"policies/{VHOST}",
    f"definitions/{VHOST}",
    "definitions",
    "whoami",
    "cluster-name",
    "feature-flags",
    "deprecated-features",
    "auth",
    "auth/attempts/NODE",
    "health/checks/alarms",
)


# Objects whose fields are a client's or an operator's.
OPAQUE = {"arguments", "client_properties", "definition", "effective_policy_definition", "value"}


def shape(value: Any, name: str = "") -> Any:
    """The fields of a value with their types; of a list its first item."""
    if isinstance(value, dict) and name in OPAQUE:
        return "object"
    if isinstance(value, dict):
        return {key: shape(item, key) for key, item in value.items() if not LEFT_OUT.match(key)}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "text" if isinstance(value, str) else "null"


def main(amqp: str, api: str) -> None:
    """Record."""
    import pika

    def call(path: str, method: str = "GET", document: Any = None) -> Any:
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"{api}/{path}", body, method=method)
        request.add_header("Authorization", "Basic " + base64.b64encode(b"guest:guest").decode())
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    call(f"vhosts/{VHOST}", "PUT", {})
    try:
        connection = pika.BlockingConnection(pika.URLParameters(f"{amqp}{VHOST}?heartbeat=0"))
        channel = connection.channel()
        channel.confirm_delivery()
        channel.exchange_declare("x", "topic", durable=True)
        channel.queue_declare("classic", durable=True)
        channel.queue_declare("quorum", durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_bind("classic", "x", "a.#")
        channel.queue_bind("quorum", "x", "a.b", arguments={"k": 1})
        policy = {"pattern": "^classic$", "definition": {"max-length": 500}, "apply-to": "queues"}
        call(f"policies/{VHOST}/p", "PUT", policy)
        for _ in range(20):
            channel.basic_publish("x", "a.b", b"hello", pika.BasicProperties(delivery_mode=2))
        channel.basic_qos(prefetch_count=5)
        channel.basic_consume("classic", lambda *_: None, consumer_tag="tag")
        end_s = time.monotonic() + SETTLED_S
        while time.monotonic() < end_s:
            connection.process_data_events(0.5)
        (name,) = [one["name"] for one in call(f"vhosts/{VHOST}/connections")]
        names = {
            "CONNECTION": quote(name, safe=""),
            "CHANNEL": quote(f"{name} (1)", safe=""),
            "NODE": call("overview")["node"],
        }
        shapes = {}
        for path in PATHS:
            asked = path
            for word, meant in names.items():
                asked = asked.replace(word, meant)
            shapes[path] = shape(call(asked))
        connection.close()
    finally:
        call(f"vhosts/{VHOST}", "DELETE")
    text = json.dumps(shapes, indent=1, sort_keys=True)
    FILE.write_text(re.sub(r"\w+@[\w.-]+", "NODE", text) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
