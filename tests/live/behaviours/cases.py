"""The cases: what is sent, by name. What RabbitMQ 4.0 answers is in answers.json.

Words in braces are names that each play makes up. Invalid arguments, combinations and
redeclarations are made by rule, all others are written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.live.behaviours.play import GetSoon, On, Send, Step, Sync, Wait

Case = tuple[str, list[Step]]


def send(method: str, **fields: Any) -> Send:
    return Send(method, fields)


def declare(queue: Any = "{q}", **fields: Any) -> Send:
    """A durable queue, unless `fields` say otherwise."""
    return send("Queue.Declare", queue=queue, **{"durable": True, **fields})


def exchange(type_: str = "direct", name: str = "{x}", **fields: Any) -> Send:
    return send("Exchange.Declare", exchange=name, exchange_type=type_, **fields)


def bind(queue: str = "{q}", source: str = "{x}", key: str = "k", **arguments: Any) -> Send:
    return send(
        "Queue.Bind",
        queue=queue,
        exchange=source,
        routing_key=key,
        arguments={name.replace("_", "-"): value for name, value in arguments.items()},
    )


def publish(
    key: str = "{q}", body: bytes = b"x", to: str = "", mandatory: bool = False, **properties: Any
) -> Send:
    fields = {"exchange": to, "routing_key": key, "mandatory": mandatory}
    return Send("Basic.Publish", fields, body, properties)


def get(queue: str = "{q}", no_ack: bool = True) -> Send:
    return send("Basic.Get", queue=queue, no_ack=no_ack)


def consume(queue: str = "{q}", tag: str = "c", **fields: Any) -> Send:
    return send("Basic.Consume", queue=queue, consumer_tag=tag, **fields)


def nack(tag: int, requeue: bool = True, multiple: bool = False) -> Send:
    return send("Basic.Nack", delivery_tag=tag, multiple=multiple, requeue=requeue)


def ack(tag: int, multiple: bool = False) -> Send:
    return send("Basic.Ack", delivery_tag=tag, multiple=multiple)


QUORUM = {"x-queue-type": "quorum"}
UNDEFINED = {"x-queue-type": "undefined"}
STREAM = {"x-queue-type": "stream"}
KINDS: dict[str, dict[str, Any]] = {"classic": {}, "quorum": QUORUM}

# --- arguments of queues, by rule

WRONG: dict[str, list[Any]] = {
    "x-expires": [0, -1, "a", True, 1.5, 10**12, None, [1]],
    "x-message-ttl": [-1, "a", True, 1.5, 10**12, None, {"a": 1}, 0],
    "x-max-length": [-1, "a", True, 1.5, None, 0],
    "x-max-length-bytes": [-1, "a", False, 0.5, None, 0],
    "x-max-priority": [-1, 256, "a", True, 2.5, 0, 255],
    "x-dead-letter-exchange": [1, True, None, ["a"], ""],
    "x-dead-letter-routing-key": [1, "a", None],
    "x-dead-letter-strategy": ["a", 1, "at-least-once"],
    "x-overflow": ["a", 1, "drop-tail", None, "reject-publish-dlx"],
    "x-single-active-consumer": ["a", 1, None, "true", False],
    "x-queue-mode": ["a", 1, "lazy", None],
    "x-queue-version": ["a", 0, 1, 2, 3, True],
    "x-queue-leader-locator": ["a", 1, "balanced"],
    "x-queue-master-locator": ["a", 1, "min-masters"],
    "x-quorum-initial-group-size": [0, -1, "a", 3],
    "x-delivery-limit": [-5, "a", 5],
    "x-max-in-memory-length": [-1, "a", 5],
    "x-max-in-memory-bytes": [-1, "a", 5],
    "x-max-age": ["a", 1, "1D"],
    "x-stream-max-segment-size-bytes": [0, "a", 10**6],
    "x-initial-cluster-size": [0, "a", 1],
    "x-unknown": ["a"],
}
TYPES: list[Any] = ["nonsense", "", "undefined", 1, True, None, "Classic", "rabbit_classic_queue"]


def queue_arguments() -> Iterator[Case]:
    for kind, table in {**KINDS, "stream": STREAM}.items():
        for key, values in WRONG.items():
            for value in values:
                arguments = {**table, key: value}
                yield f"declare {kind}: {key}={value!r}", [declare(arguments=arguments)]
    for value in TYPES:
        yield f"declare: x-queue-type={value!r}", [declare(arguments={"x-queue-type": value})]
    for key in ("x-max-priority", "x-delivery-limit"):
        yield f"declare: undefined type and {key}", [declare(arguments={**UNDEFINED, key: 5})]
    quorum: list[dict[str, Any]] = [
        {"durable": False},
        {"exclusive": True},
        {"auto_delete": True},
        {"queue": ""},
        {"durable": False, "exclusive": True, "auto_delete": True},
    ]
    for flags in quorum:
        for kind, table in {"quorum": QUORUM, "stream": STREAM}.items():
            fields = {"queue": "{q}", "arguments": table, **flags}
            yield f"declare {kind}: {flags}", [declare(**fields)]
    pairs: list[dict[str, Any]] = [
        {"x-dead-letter-routing-key": "k", "x-dead-letter-exchange": ""},
        {"x-dead-letter-routing-key": 5, "x-dead-letter-exchange": 5},
        {"x-expires": 0, "x-message-ttl": -1},
        {"x-message-ttl": -1, "x-dead-letter-exchange": 1},
        {"x-max-priority": 5, "x-queue-version": 1},
        {"x-single-active-consumer": True, "x-max-priority": 5},
        {"x-overflow": "reject-publish", "x-dead-letter-strategy": "at-least-once"},
        {"x-queue-type": "quorum", "x-max-priority": 5, "x-expires": 0},
        {"x-queue-type": "nonsense", "x-expires": 0},
        {"x-queue-type": "quorum", "x-queue-mode": "lazy", "x-max-age": "1D"},
    ]
    for pair in pairs:
        yield f"declare: {pair}", [declare(arguments=pair)]


# --- redeclarations, by rule

VALUES: dict[str, tuple[Any, Any]] = {
    "x-expires": (100_000, 200_000),
    "x-message-ttl": (100_000, 200_000),
    "x-dead-letter-exchange": ("a", "b"),
    "x-dead-letter-routing-key": ("a", "b"),
    "x-max-length": (5, 6),
    "x-max-length-bytes": (500, 600),
    "x-overflow": ("drop-head", "reject-publish"),
    "x-single-active-consumer": (True, False),
    "x-consumer-timeout": (100_000, 200_000),
    "x-queue-leader-locator": ("balanced", "client-local"),
    "x-unknown": ("a", "b"),
}
ONLY: dict[str, dict[str, tuple[Any, Any]]] = {
    "classic": {
        "x-max-priority": (5, 6),
        "x-queue-mode": ("lazy", "default"),
        "x-queue-version": (1, 2),
        "x-queue-master-locator": ("min-masters", "random"),
        "x-message-deduplication": (True, False),
    },
    "quorum": {
        "x-delivery-limit": (5, 6),
        "x-dead-letter-strategy": ("at-most-once", "at-least-once"),
        "x-quorum-initial-group-size": (1, 3),
        "x-max-in-memory-length": (5, 6),
    },
    "stream": {
        "x-max-age": ("1D", "2D"),
        "x-max-length-bytes": (500_000, 600_000),
        "x-stream-max-segment-size-bytes": (1_000_000, 2_000_000),
        "x-initial-cluster-size": (1, 2),
        "x-queue-leader-locator": ("balanced", "client-local"),
        "x-unknown": ("a", "b"),
    },
}


def redeclarations() -> Iterator[Case]:
    for kind, table in {**KINDS, "stream": STREAM}.items():
        values = ONLY[kind] if kind == "stream" else {**VALUES, **ONLY[kind]}
        for key, (one, other) in values.items():
            base = {**table, "x-dead-letter-exchange": "a"} if "routing-key" in key else table
            steps = (
                ("missing", {**base, key: one}, base),
                ("new", base, {**base, key: one}),
                ("other", {**base, key: one}, {**base, key: other}),
                ("same", {**base, key: one}, {**base, key: one}),
            )
            for name, before, after in steps:
                yield (
                    f"redeclare {kind}: {key} {name}",
                    [declare(arguments=before), declare(arguments=after)],
                )
    for before, after in (
        ({}, QUORUM),
        (QUORUM, {}),
        ({}, UNDEFINED),
        (UNDEFINED, {}),
        (UNDEFINED, UNDEFINED),
        (UNDEFINED, {"x-queue-type": "classic"}),
        (QUORUM, UNDEFINED),
        (STREAM, QUORUM),
        (STREAM, {}),
        ({}, STREAM),
        ({}, {"x-queue-type": "classic"}),
        ({"x-queue-type": "classic"}, {}),
        ({"x-max-length": 5}, {"x-max-length": 5.0}),
        ({"x-max-length": 5}, {"x-max-length": "5"}),
        ({"x-max-length": 5}, {"x-max-length": 5_000_000_000}),
        ({"x-expires": 100_000}, {"x-expires": 0}),
    ):
        yield (
            f"redeclare: {before} as {after}",
            [declare(arguments=before), declare(arguments=after)],
        )
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"durable": True}, {"durable": False}),
        ({"durable": False}, {"durable": True}),
        ({"auto_delete": True}, {"auto_delete": False}),
        ({"auto_delete": False}, {"auto_delete": True}),
        ({"exclusive": True}, {"exclusive": False}),
        ({"exclusive": False}, {"exclusive": True}),
        ({"durable": True, "auto_delete": True}, {"durable": False, "auto_delete": False}),
    ]
    for flags, others in pairs:
        yield f"redeclare: {flags} as {others}", [declare(**flags), declare(**others)]


# --- exchanges


def exchanges() -> Iterator[Case]:
    for type_ in ("nonsense", "", "x-nonsense", "Direct", "headers "):
        yield f"exchange of type {type_!r}", [exchange(type_)]
    for type_ in ("direct", "fanout", "topic", "headers"):
        yield f"exchange of type {type_}", [exchange(type_)]
    for name in ("amq.new", "amq.direct", "amq.", ""):
        yield f"exchange named {name!r}", [exchange(name=name, durable=True)]
        yield f"exchange named {name!r}, as fanout", [exchange("fanout", name=name, durable=True)]
    for name in ("amq.direct", "amq.new", "", "{none}"):
        yield f"passive exchange {name!r}", [exchange(name=name, passive=True)]
        yield f"delete exchange {name!r}", [send("Exchange.Delete", exchange=name)]
    for value in (1, True, None, "", "{none}", ["a"]):
        yield (
            f"alternate-exchange={value!r}",
            [exchange(arguments={"alternate-exchange": value})],
        )
    base: dict[str, Any] = {"durable": False, "auto_delete": False, "internal": False}
    for flag in base:
        other = {**base, flag: True}
        yield f"redeclare exchange: {flag} on", [exchange(**base), exchange(**other)]
        yield f"redeclare exchange: {flag} off", [exchange(**other), exchange(**base)]
    for type_ in ("fanout", "nonsense"):
        yield f"redeclare exchange: type {type_}", [exchange(), exchange(type_)]
    alternates: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"alternate-exchange": "a"}),
        ({"alternate-exchange": "a"}, {}),
        ({"alternate-exchange": "a"}, {"alternate-exchange": "b"}),
        ({"alternate-exchange": "a"}, {"alternate-exchange": 1}),
        ({"x-other": 1}, {"x-other": 2}),
    ]
    for before, after in alternates:
        yield (
            f"redeclare exchange: {before} as {after}",
            [exchange(arguments=before), exchange(arguments=after)],
        )
    yield "passive exchange of another type", [exchange(), exchange("fanout", passive=True)]
    yield (
        "publish to an internal exchange",
        [exchange(internal=True), publish("k", to="{x}"), Sync()],
    )
    yield "publish to no exchange", [publish("k", to="{none}"), Sync()]
    yield (
        "delete exchange in use",
        [exchange(), declare(), bind(), send("Exchange.Delete", exchange="{x}", if_unused=True)],
    )
    yield (
        "delete exchange that is a destination only, if unused",
        [
            exchange(),
            exchange(name="{y}"),
            send("Exchange.Bind", source="{y}", destination="{x}", routing_key=""),
            send("Exchange.Delete", exchange="{x}", if_unused=True),
        ],
    )
    yield (
        "auto-delete exchange goes with its last binding",
        [
            exchange(auto_delete=True),
            declare(),
            bind(),
            send("Queue.Unbind", queue="{q}", exchange="{x}", routing_key="k"),
            exchange(passive=True),
        ],
    )
    yield (
        "auto-delete exchange goes with the queue",
        [
            exchange(auto_delete=True),
            declare(),
            bind(),
            send("Queue.Delete", queue="{q}"),
            exchange(passive=True),
        ],
    )
    yield (
        "auto-delete exchange that was never bound stays",
        [exchange(auto_delete=True), exchange(passive=True)],
    )


# --- bindings


def bindings() -> Iterator[Case]:
    def link(source: str, destination: str) -> Send:
        return send("Exchange.Bind", source=source, destination=destination, routing_key="k")

    def unlink(source: str, destination: str) -> Send:
        return send("Exchange.Unbind", source=source, destination=destination, routing_key="k")

    yield "bind to no exchange", [declare(), bind(source="{none}")]
    yield "bind no queue", [bind(queue="{none}", source="amq.direct")]
    yield "bind no queue to no exchange", [bind(queue="{none}", source="{nix}")]
    yield "bind to the default exchange", [declare(), bind(source="")]
    yield "bind the last queue", [declare(), bind(queue="", source="amq.direct", key="")]
    yield "bind without a last queue", [bind(queue="", source="amq.direct", key="")]
    yield (
        "unbind from the default exchange",
        [declare(), send("Queue.Unbind", queue="{q}", exchange="", routing_key="{q}")],
    )
    for queue, source in (("{q}", "{none}"), ("{none}", "amq.direct"), ("{q}", "amq.direct")):
        yield (
            f"unbind {queue} from {source}",
            [declare(), send("Queue.Unbind", queue=queue, exchange=source, routing_key="k")],
        )
    for source, destination in (
        ("{none}", "amq.fanout"),
        ("amq.fanout", "{none}"),
        ("{none}", "{nix}"),
        ("", "amq.fanout"),
        ("amq.fanout", ""),
    ):
        yield f"bind exchange {destination!r} to {source!r}", [link(source, destination)]
        yield f"unbind exchange {destination!r} from {source!r}", [unlink(source, destination)]
    for value in (
        "all",
        "any",
        "all-with-x",
        "any-with-x",
        "none",
        "",
        1,
        300,
        2**40,
        1.5,
        True,
        None,
        ["all", 1],
        {"a": 1},
    ):
        yield f"x-match={value!r}", [declare(), bind(source="amq.headers", x_match=value)]
    yield (
        "bound twice, delivered once",
        [
            exchange("topic"),
            declare(),
            bind(key="a.#"),
            bind(key="#.b"),
            publish("a.b", to="{x}"),
            get(),
            get(),
        ],
    )
    yield (
        "a cycle of exchanges",
        [
            exchange("fanout"),
            exchange("fanout", "{y}"),
            link("{x}", "{y}"),
            link("{y}", "{x}"),
            declare(),
            bind(source="{y}"),
            publish(to="{x}"),
            get(),
            get(),
        ],
    )
    topics = {
        "*": ["", "a", "a.b"],
        "#": ["", "a", "a.b.c"],
        "a.*": ["a", "a.b", "a.b.c", "a."],
        "a.#": ["a", "a.b.c", "b.a"],
        "#.b": ["b", "a.b", "a.b.c"],
        "*.*": [".", "a.b", "a"],
        "a.*.#.c": ["a.b.c", "a.c", "a.b.d.c"],
        "#.#": ["", "a"],
    }
    for pattern, keys in topics.items():
        for key in keys:
            yield (
                f"topic {pattern!r} and {key!r}",
                [
                    exchange("topic"),
                    declare(),
                    bind(key=pattern),
                    publish(key, to="{x}", mandatory=True),
                    Sync(),
                ],
            )
    headers: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"x-match": "all", "a": 1, "b": 2}, {"a": 1, "b": 2}),
        ({"x-match": "all", "a": 1, "b": 2}, {"a": 1}),
        ({"x-match": "any", "a": 1, "b": 2}, {"a": 1}),
        ({"x-match": "any", "a": 1}, {"a": "1"}),
        ({"x-match": "all"}, {"a": 1}),
        ({"x-match": "any"}, {"a": 1}),
        ({"a": None}, {"a": 5}),
        ({"a": None}, {}),
        ({"x-match": "all", "x-a": 1}, {}),
        ({"x-match": "any", "x-a": 1}, {"x-a": 1}),
        ({"x-match": "all-with-x", "x-a": 1}, {}),
        ({"x-match": "any-with-x", "x-a": 1}, {"x-a": 1}),
        ({"x-match": "all", "a": True}, {"a": 1}),
        ({"x-match": "all", "a": 1}, {"a": 1.0}),
    ]
    for arguments, given in headers:
        yield (
            f"headers {arguments} and {given}",
            [
                exchange("headers"),
                declare(),
                send(
                    "Queue.Bind", queue="{q}", exchange="{x}", routing_key="", arguments=arguments
                ),
                publish("", to="{x}", mandatory=True, headers=given),
                Sync(),
            ],
        )


# --- queues and consumers


def queues() -> Iterator[Case]:
    for name in ("amq.new", "amq.gen-x", "amq."):
        yield f"queue named {name!r}", [declare(name)]
        yield f"passive queue {name!r}", [declare(name, passive=True)]
    yield "passive queue that is not there", [declare("{none}", passive=True)]
    yield "passive queue, whatever is asked", [declare(), declare(passive=True, durable=False)]
    yield "server-named queue", [declare("", exclusive=True, durable=False)]
    yield "queue of no name before any was declared", [get("")]
    yield "queue of no name is the last one", [declare(), get("")]
    for method in ("Queue.Delete", "Queue.Purge"):
        yield f"{method} of none", [send(method, queue="{none}")]
    yield "delete in use", [declare(), consume(), send("Queue.Delete", queue="{q}", if_unused=True)]
    yield (
        "delete not empty",
        [declare(), publish(), send("Queue.Delete", queue="{q}", if_empty=True)],
    )
    yield (
        "delete tells how many",
        [declare(), publish(), publish(), send("Queue.Delete", queue="{q}")],
    )
    yield (
        "purge tells how many",
        [declare(), publish(), publish(), send("Queue.Purge", queue="{q}")],
    )
    yield (
        "purge leaves what is out",
        [
            declare(),
            publish(),
            publish(),
            get(no_ack=False),
            send("Queue.Purge", queue="{q}"),
            nack(1),
            get(),
        ],
    )
    for flag in ("if_unused", "if_empty"):
        yield (
            f"delete quorum {flag}",
            [declare(arguments=QUORUM), send("Queue.Delete", queue="{q}", **{flag: True})],
        )
    for method, fields in (
        ("Queue.Declare", {"passive": True}),
        ("Queue.Declare", {"exclusive": True}),
        ("Queue.Declare", {}),
        ("Queue.Delete", {}),
        ("Queue.Purge", {}),
        ("Basic.Get", {}),
        ("Basic.Consume", {"consumer_tag": "c"}),
        ("Queue.Bind", {"exchange": "amq.direct", "routing_key": "k"}),
        ("Queue.Unbind", {"exchange": "amq.direct", "routing_key": "k"}),
    ):
        yield (
            f"exclusive queue of another connection: {method} {fields}",
            [
                declare(exclusive=True, durable=False),
                On(10),
                send(method, queue="{q}", **fields),
            ],
        )
    yield (
        "a binding of an exclusive queue of another connection",
        [
            declare(exclusive=True, durable=False),
            bind(source="amq.direct"),
            On(10),
            send("Queue.Unbind", queue="{q}", exchange="amq.direct", routing_key="k"),
        ],
    )
    yield (
        "auto-delete queue goes with its last consumer",
        [
            declare(auto_delete=True),
            consume(),
            send("Basic.Cancel", consumer_tag="c"),
            declare(passive=True),
        ],
    )
    yield (
        "auto-delete queue without a consumer stays",
        [declare(auto_delete=True), publish(), get(), declare(passive=True)],
    )


def consumers() -> Iterator[Case]:
    yield "consume from none", [consume("{none}")]
    yield "consumer tag twice", [declare(), consume(), consume()]
    yield "consumer of no name", [declare(), consume(tag="")]
    yield "cancel of none", [send("Basic.Cancel", consumer_tag="none")]
    yield "exclusive after another", [declare(), consume(), consume(tag="d", exclusive=True)]
    yield "another after exclusive", [declare(), consume(exclusive=True), consume(tag="d")]
    yield (
        "exclusive, quorum",
        [declare(arguments=QUORUM), consume(exclusive=True), consume(tag="d")],
    )
    for kind, table in KINDS.items():
        single = {**table, "x-single-active-consumer": True}
        yield (
            f"exclusive of a single active consumer, {kind}",
            [declare(arguments=single), consume(exclusive=True)],
        )
        yield f"get with a single active consumer, {kind}", [declare(arguments=single), get()]
        yield (
            f"consumers that a declare tells of, {kind}",
            [declare(arguments=single), consume(), consume(tag="d"), declare(passive=True)],
        )
    tried: dict[str, list[Any]] = {
        "x-priority": [1, -1, "a", 1.5, True, None],
        "x-stream-offset": ["first", 5],
        "x-cancel-on-ha-failover": [True, "a"],
        "x-consumer-timeout": [1000],
        "x-unknown": ["a"],
    }
    for key, values in tried.items():
        for value in values:
            yield f"consume {key}={value!r}", [declare(), consume(arguments={key: value})]
    for size, count, global_ in ((1, 0, False), (0, 5, False), (0, 5, True), (0, 0, False)):
        yield (
            f"qos size={size} count={count} global={global_}",
            [send("Basic.Qos", prefetch_size=size, prefetch_count=count, global_=global_)],
        )
    yield (
        "global prefetch and a quorum queue",
        [
            declare(arguments=QUORUM),
            send("Basic.Qos", prefetch_size=0, prefetch_count=5, global_=True),
            consume(),
        ],
    )
    yield (
        "prefetch bounds what is out",
        [
            declare(),
            *(publish(body=b"%d" % number) for number in range(3)),
            send("Basic.Qos", prefetch_size=0, prefetch_count=1, global_=False),
            consume(),
            Wait(1),
            ack(1),
            Wait(1),
            declare(passive=True),
        ],
    )
    yield (
        "a consumer of a higher priority comes first",
        [
            declare(),
            consume(),
            consume(tag="high", arguments={"x-priority": 5}),
            publish(body=b"1"),
            Wait(1),
            publish(body=b"2"),
            Wait(1),
        ],
    )
    yield (
        "a deleted queue cancels",
        [declare(), consume(), send("Queue.Delete", queue="{q}"), Wait(1)],
    )
    yield "recover without requeue", [send("Basic.Recover", requeue=False)]
    yield (
        "recover",
        [
            declare(),
            publish(),
            consume(),
            Wait(1),
            send("Basic.Recover", requeue=True),
            Wait(1),
        ],
    )
    yield "flow off", [send("Channel.Flow", active=False)]
    yield "channel opened twice", [send("Channel.Open")]


def streams() -> Iterator[Case]:
    prefetch = send("Basic.Qos", prefetch_size=0, prefetch_count=10, global_=False)
    begin = [declare(arguments=STREAM), prefetch]
    yield "stream: no prefetch", [declare(arguments=STREAM), consume()]
    yield "stream: no acknowledgements", [*begin, consume(no_ack=True)]
    yield (
        "stream: global prefetch",
        [
            declare(arguments=STREAM),
            send("Basic.Qos", prefetch_size=0, prefetch_count=10, global_=True),
            consume(),
        ],
    )
    yield "stream: get", [declare(arguments=STREAM), get()]
    yield "stream: purge", [declare(arguments=STREAM), send("Queue.Purge", queue="{q}")]
    for flag in ("if_unused", "if_empty"):
        yield (
            f"stream: delete {flag}",
            [
                declare(arguments=STREAM),
                send("Queue.Delete", queue="{q}", **{flag: True}),
            ],
        )
    yield "stream: exclusive", [*begin, consume(exclusive=True)]
    offsets: list[Any] = ["first", "last", "next", "1h", "nonsense", "", 0, 7, -1, 1.5, True, None]
    for offset in offsets:
        yield f"stream: offset {offset!r}", [*begin, consume(arguments={"x-stream-offset": offset})]
    tried: dict[str, list[Any]] = {
        "x-stream-filter": ["a", ["a", "b"], 5, [5]],
        "x-stream-match-unfiltered": [True, "a"],
        "x-priority": [5],
        "x-single-active-consumer": [True],
    }
    for key, values in tried.items():
        for value in values:
            yield f"stream: consume {key}={value!r}", [*begin, consume(arguments={key: value})]


def acknowledgements() -> Iterator[Case]:
    for name, step in {
        "ack 0": ack(0),
        "ack 1": ack(1),
        "ack 0 multiple": ack(0, multiple=True),
        "ack 5 multiple": ack(5, multiple=True),
        "nack 1": nack(1),
        "nack 5 multiple": nack(5, multiple=True),
        "reject 1": send("Basic.Reject", delivery_tag=1, requeue=False),
    }.items():
        yield f"{name}, nothing is out", [step, Sync()]
    yield "ack twice", [declare(), publish(), get(no_ack=False), ack(1), ack(1), Sync()]
    yield "ack of what needs none", [declare(), publish(), get(), ack(1), Sync()]
    yield (
        "ack on another channel",
        [declare(), publish(), get(no_ack=False), On(1), ack(1), Sync()],
    )
    for kind, table in KINDS.items():
        take = get(no_ack=False) if kind == "classic" else consume()
        more: list[Step] = [] if kind == "classic" else [Wait(1)]
        yield (
            f"requeue tells that it is a redelivery, {kind}",
            [
                declare(arguments=table),
                publish(delivery_mode=2),
                take,
                *more,
                nack(1),
                *([get()] if kind == "classic" else [Wait(1)]),
            ],
        )
    yield (
        "requeue keeps the place",
        [
            declare(),
            *(publish(body=b"%d" % number) for number in range(4)),
            *(get(no_ack=False) for _ in range(3)),
            nack(2),
            get(),
            nack(1),
            get(),
            get(),
        ],
    )
    yield (
        "a closed channel requeues",
        [
            declare(),
            publish(body=b"1"),
            publish(body=b"2"),
            get(no_ack=False),
            ack(9),
            Sync(),
        ],
    )


# --- publishing


def publishing() -> Iterator[Case]:
    yield "immediate", [Send("Basic.Publish", {"routing_key": "k", "immediate": True}, b""), Sync()]
    yield "mandatory to no queue", [publish("{none}", mandatory=True, message_id="m"), Sync()]
    yield (
        "mandatory to an exchange without bindings",
        [exchange(), publish("k", to="{x}", mandatory=True), Sync()],
    )
    for text in ("-1", "", "a", "1.5", "10x", "+5", " 5", "0", "315360000000", "315360000001"):
        yield f"expiration {text!r}", [publish("{none}", expiration=text), Sync()]
    for header in ("CC", "BCC"):
        for value in ("k", 1, ["k", 1], [], None, {"a": 1}):
            yield (
                f"{header}={value!r}",
                [publish("{none}", mandatory=True, headers={header: value}), Sync()],
            )
    yield (
        "CC and BCC are routed, and BCC is not shown",
        [
            declare("{a}"),
            declare("{b}"),
            declare("{c}"),
            publish("{a}", headers={"CC": ["{b}"], "BCC": ["{c}"]}),
            get("{a}"),
            get("{b}"),
            get("{c}"),
        ],
    )
    yield "user-id of another", [publish("{none}", user_id="somebody"), Sync()]
    yield "user-id", [publish("{none}", user_id="guest"), Sync()]
    yield (
        "reply-to without a consumer",
        [publish("{none}", reply_to="amq.rabbitmq.reply-to"), Sync()],
    )
    yield "a reply to nobody", [publish("amq.rabbitmq.reply-to.none", mandatory=True), Sync()]
    yield "passive amq.rabbitmq.reply-to", [declare("amq.rabbitmq.reply-to", passive=True)]
    yield "declare amq.rabbitmq.reply-to", [declare("amq.rabbitmq.reply-to")]
    yield "bind amq.rabbitmq.reply-to", [bind("amq.rabbitmq.reply-to", "amq.direct")]
    yield "delete amq.rabbitmq.reply-to", [send("Queue.Delete", queue="amq.rabbitmq.reply-to")]
    yield "consume replies with acknowledgements", [consume("amq.rabbitmq.reply-to")]
    yield "consume replies", [consume("amq.rabbitmq.reply-to", no_ack=True)]
    yield (
        "consume replies twice",
        [
            consume("amq.rabbitmq.reply-to", no_ack=True),
            consume("amq.rabbitmq.reply-to", tag="d", no_ack=True),
        ],
    )
    yield (
        "consume replies twice with the same tag",
        [
            consume("amq.rabbitmq.reply-to", no_ack=True),
            consume("amq.rabbitmq.reply-to", no_ack=True),
        ],
    )
    yield (
        "a consumer with the tag of that of replies",
        [declare(), consume("amq.rabbitmq.reply-to", no_ack=True), consume()],
    )
    yield (
        "consume replies with the tag of a consumer",
        [declare(), consume(), consume("amq.rabbitmq.reply-to", no_ack=True)],
    )
    yield (
        "a tag of both: the consumer of replies is cancelled first",
        [
            declare(),
            consume("amq.rabbitmq.reply-to", no_ack=True),
            consume(no_ack=True),
            send("Basic.Cancel", consumer_tag="c"),
            publish(),
            Wait(1),
            publish(reply_to="amq.rabbitmq.reply-to"),
            Sync(),
        ],
    )
    yield (
        "the tag of a cancelled consumer of replies",
        [
            declare(),
            consume("amq.rabbitmq.reply-to", no_ack=True),
            send("Basic.Cancel", consumer_tag="c"),
            consume(),
        ],
    )
    yield (
        "a request and its reply",
        [
            declare(),
            consume("amq.rabbitmq.reply-to", no_ack=True),
            publish(body=b"request", reply_to="amq.rabbitmq.reply-to", correlation_id="1"),
            get(),
        ],
    )
    yield "confirm, then tx", [send("Confirm.Select"), send("Tx.Select")]
    yield "tx, then confirm", [send("Tx.Select"), send("Confirm.Select")]
    yield "commit without tx", [send("Tx.Commit")]
    yield "rollback without tx", [send("Tx.Rollback")]
    yield "confirm of what has no queue", [send("Confirm.Select"), publish("{none}"), Wait(1)]
    yield (
        "a return comes before its confirm",
        [send("Confirm.Select"), publish("{none}", mandatory=True), Wait(2)],
    )
    yield "confirm", [declare(), send("Confirm.Select"), publish(delivery_mode=2), Wait(1)]
    yield (
        "nack at the limit",
        [
            declare(arguments={"x-max-length": 1, "x-overflow": "reject-publish"}),
            send("Confirm.Select"),
            publish(),
            Wait(1),
            publish(),
            Wait(1),
        ],
    )
    yield (
        "a transaction",
        [
            declare(),
            send("Tx.Select"),
            publish(body=b"back"),
            send("Tx.Rollback"),
            publish(),
            get(),
            send("Tx.Commit"),
            get(),
            get(),
        ],
    )
    yield (
        "acknowledgements of a transaction come back",
        [
            declare(),
            publish(),
            get(no_ack=False),
            send("Tx.Select"),
            ack(1),
            send("Tx.Rollback"),
            ack(1),
            send("Tx.Commit"),
            declare(passive=True),
        ],
    )


# --- what becomes of messages


def features() -> Iterator[Case]:
    dead: dict[str, Any] = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "{dead}"}
    yield (
        "a rejected message",
        [
            declare("{dead}"),
            declare(arguments=dead),
            publish(headers={"a": 1}, message_id="m"),
            get(no_ack=False),
            nack(1, requeue=False),
            GetSoon("{dead}"),
        ],
    )
    yield (
        "a rejected message keeps its key",
        [
            exchange("topic"),
            declare("{dead}"),
            bind("{dead}", key="#"),
            declare(arguments={"x-dead-letter-exchange": "{x}"}),
            publish(headers={"CC": ["{other}"]}),
            get(no_ack=False),
            nack(1, requeue=False),
            GetSoon("{dead}"),
        ],
    )
    yield (
        "an expired message",
        [
            declare("{dead}"),
            declare(arguments=dead),
            publish(expiration="0"),
            GetSoon("{dead}"),
        ],
    )
    yield (
        "a queue's time of 0",
        [
            declare("{dead}"),
            declare(arguments={**dead, "x-message-ttl": 0}),
            publish(),
            GetSoon("{dead}"),
        ],
    )
    for overflow in ("drop-head", "reject-publish-dlx"):
        yield (
            f"a message too many, {overflow}",
            [
                declare("{dead}"),
                declare(arguments={**dead, "x-max-length": 1, "x-overflow": overflow}),
                publish(body=b"1"),
                publish(body=b"2"),
                GetSoon("{dead}"),
                get(),
            ],
        )
    yield (
        "too many octets",
        [
            declare(arguments={"x-max-length-bytes": 5}),
            publish(body=b"123"),
            publish(body=b"456"),
            publish(body=b"7"),
            get(),
            get(),
            get(),
        ],
    )
    yield (
        "a queue of length 0",
        [declare(arguments={"x-max-length": 0}), publish(), declare(passive=True)],
    )
    yield (
        "dies twice",
        [
            declare(
                "{dead}",
                arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "{end}"},
            ),
            declare("{end}"),
            declare(arguments=dead),
            publish(),
            get(no_ack=False),
            nack(1, requeue=False),
            Sync(),
            On(1),
            consume("{dead}"),
            Wait(1),
            nack(1, requeue=False),
            GetSoon("{end}"),
        ],
    )
    yield (
        "delivery limit",
        [
            declare("{dead}"),
            declare(arguments={**QUORUM, **dead, "x-delivery-limit": 1}),
            publish(),
            consume(),
            Wait(1),
            nack(1),
            Wait(1),
            nack(2),
            GetSoon("{dead}"),
        ],
    )
    yield (
        "a count is told from the second delivery on",
        [
            declare(arguments=QUORUM),
            publish(headers={"a": 1}),
            consume(),
            Wait(1),
            send("Basic.Reject", delivery_tag=1, requeue=True),
            Wait(1),
        ],
    )
    yield (
        "priorities",
        [
            declare(arguments={"x-max-priority": 5}),
            publish(body=b"none"),
            publish(body=b"1", priority=1),
            publish(body=b"9", priority=9),
            publish(body=b"5", priority=5),
            *(get() for _ in range(4)),
        ],
    )
    yield (
        "an alternate exchange",
        [
            exchange("fanout", "{alternate}"),
            exchange(arguments={"alternate-exchange": "{alternate}"}),
            declare(),
            bind(source="{alternate}"),
            publish("k", to="{x}", mandatory=True),
            Sync(),
            get(),
        ],
    )
    yield (
        "an alternate exchange that is not there",
        [
            exchange(arguments={"alternate-exchange": "{none}"}),
            publish("k", to="{x}", mandatory=True),
            Sync(),
        ],
    )
    yield (
        "headers and properties come through",
        [
            declare(),
            publish(
                headers={
                    "text": "a",
                    "int": 5,
                    "big": 2**40,
                    "bool": True,
                    "list": [1, "a"],
                    "table": {"a": 1},
                    "none": None,
                    "float": 1.5,
                },
                content_type="text/plain",
                content_encoding="utf-8",
                delivery_mode=2,
                priority=3,
                correlation_id="c",
                reply_to="r",
                expiration="60000",
                message_id="m",
                message_type="t",
                app_id="a",
            ),
            get(),
        ],
    )
    yield "an empty body", [declare(), publish(body=b""), get()]


# --- more of what becomes of messages


def _rounds(count: int, back: Any) -> list[Step]:
    """A consumer gets a message so often, and gives it back each time."""
    return [step for number in range(1, count + 1) for step in (Wait(1), back(number))]


def outcomes() -> Iterator[Case]:
    dead: dict[str, Any] = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "{dead}"}
    yield (
        "the delivery limit is 20 if nothing is said",
        [
            declare("{dead}"),
            declare(arguments={**QUORUM, **dead}),
            publish(),
            consume(),
            *_rounds(21, nack),
            GetSoon("{dead}"),
        ],
    )
    for limit in (-1, 25):
        yield (
            f"a delivery limit of {limit}",
            [
                declare(arguments={**QUORUM, "x-delivery-limit": limit}),
                publish(),
                consume(),
                *_rounds(23, nack),
                Wait(1),
            ],
        )
    yield (
        "a delivery limit of 0",
        [
            declare("{dead}"),
            declare(arguments={**QUORUM, **dead, "x-delivery-limit": 0}),
            publish(),
            consume(),
            Wait(1),
            nack(1),
            GetSoon("{dead}"),
        ],
    )
    five = [publish(body=b"%d" % number) for number in range(5)]
    yield (
        "quorum: what comes back is delivered in the order in which it came back",
        [
            declare(arguments=QUORUM),
            *five,
            send("Basic.Qos", prefetch_size=0, prefetch_count=3, global_=False),
            consume(),
            Wait(3),
            nack(2),
            Wait(1),
            nack(1),
            Wait(1),
            ack(3),
            Wait(1),
        ],
    )
    yield (
        "classic: what comes back is delivered at its old place",
        [
            declare(),
            *five,
            send("Basic.Qos", prefetch_size=0, prefetch_count=3, global_=False),
            consume(),
            Wait(3),
            nack(3),
            Wait(1),
            nack(1),
            Wait(1),
            ack(2),
            Wait(1),
        ],
    )
    for kind, table in KINDS.items():
        first = [get(no_ack=True), get(no_ack=True)] if kind == "classic" else []
        yield (
            f"get tells how many are left, {kind}",
            [declare(arguments=table), *five, GetSoon("{q}"), *first],
        )
        single = {**table, "x-single-active-consumer": True}
        yield (
            f"the next consumer is active when the first one goes, {kind}",
            [
                declare(arguments=single),
                consume(tag="one"),
                consume(tag="two"),
                publish(body=b"1"),
                Wait(1),
                ack(1),
                Sync(),
                send("Basic.Cancel", consumer_tag="one"),
                publish(body=b"2"),
                Wait(1),
            ],
        )
        yield (
            f"a deleted queue cancels, and its messages are gone, {kind}",
            [
                declare(arguments=table),
                publish(),
                consume(),
                Wait(1),
                send("Queue.Delete", queue="{q}"),
                Wait(1),
                ack(1),
                Sync(),
            ],
        )
        yield (
            f"rejected without a dead-letter exchange, {kind}",
            [
                declare(arguments=table),
                publish(body=b"1"),
                publish(body=b"2"),
                consume(),
                Wait(2),
                nack(1, requeue=False),
                nack(2),
                Wait(1),
            ],
        )
        yield (
            f"a dead-letter exchange that is not there, {kind}",
            [
                declare(arguments={**table, "x-dead-letter-exchange": "{none}"}),
                publish(),
                consume(),
                Wait(1),
                nack(1, requeue=False),
                Sync(),
                declare(passive=True),
            ],
        )
        yield (
            f"many are acknowledged at once, {kind}",
            [
                declare(arguments=table),
                *five,
                consume(),
                Wait(5),
                ack(3, multiple=True),
                nack(0, multiple=True),
                Wait(2),
            ],
        )
        yield (
            f"dead letters by their own keys, {kind}",
            [
                exchange("headers"),
                declare("{dead}"),
                bind("{dead}", x_match="any-with-x", x_first_death_reason="rejected"),
                declare(arguments={**table, "x-dead-letter-exchange": "{x}"}),
                publish(headers={"CC": ["{a}"], "BCC": ["{b}"], "n": 1}, expiration="60000"),
                consume(),
                Wait(1),
                nack(1, requeue=False),
                GetSoon("{dead}"),
            ],
        )
        yield (
            f"an expiration, {kind}",
            [
                declare("{dead}"),
                declare(arguments={**table, **dead}),
                publish(expiration="1", delivery_mode=2),
                GetSoon("{dead}"),
            ],
        )
        yield (
            f"too many, {kind}",
            [
                declare("{dead}"),
                declare(arguments={**table, **dead, "x-max-length": 2}),
                *five,
                GetSoon("{dead}"),
                GetSoon("{dead}"),
                GetSoon("{dead}"),
                GetSoon("{q}"),
                GetSoon("{q}"),
            ],
        )
        yield (
            f"cancelled, and yet acknowledged, {kind}",
            [
                declare(arguments=table),
                publish(),
                consume(),
                Wait(1),
                send("Basic.Cancel", consumer_tag="c"),
                ack(1),
                Sync(),
                declare(passive=True),
            ],
        )
    yield (
        "a cycle of dead letters by expiry ends",
        [
            declare(arguments={"x-dead-letter-exchange": "", "x-message-ttl": 1}),
            publish(),
            publish(body=b"2", expiration="1"),
            Sync(),
            declare("{other}"),
            publish("{other}"),
            GetSoon("{other}"),
        ],
    )
    yield (
        "reject-publish and drop-head on the same exchange",
        [
            exchange("fanout"),
            declare("{a}", arguments={"x-max-length": 1, "x-overflow": "reject-publish"}),
            declare("{b}", arguments={"x-max-length": 1}),
            bind("{a}"),
            bind("{b}"),
            publish("", b"1", to="{x}"),
            publish("", b"2", to="{x}"),
            get("{a}"),
            get("{b}"),
            get("{a}"),
            get("{b}"),
        ],
    )
    yield (
        "an expired message is gone from a priority queue",
        [
            declare(arguments={"x-max-priority": 3}),
            publish(body=b"gone", priority=3, expiration="0"),
            publish(body=b"low", priority=1),
            GetSoon("{q}"),
            get(),
        ],
    )
    yield (
        "a requeued message of a priority queue comes first",
        [
            declare(arguments={"x-max-priority": 3}),
            publish(body=b"low"),
            publish(body=b"high", priority=3),
            get(no_ack=False),
            get(no_ack=False),
            nack(1),
            nack(2),
            get(),
            get(),
        ],
    )
    yield (
        "an exclusive consumer leaves, and another comes",
        [
            declare(),
            consume(exclusive=True),
            send("Basic.Cancel", consumer_tag="c"),
            consume(tag="d"),
            publish(),
            Wait(1),
        ],
    )
    yield (
        "a prefetch for the channel is shared",
        [
            declare("{a}"),
            declare("{b}"),
            *(publish("{a}"), publish("{b}")),
            send("Basic.Qos", prefetch_size=0, prefetch_count=1, global_=True),
            consume("{a}", tag="a"),
            Wait(1),
            consume("{b}", tag="b"),
            declare("{b}", passive=True),
            ack(1),
            Wait(1),
        ],
    )
    yield (
        "an exchange that was bound to others is deleted",
        [
            exchange("fanout"),
            exchange("fanout", "{y}"),
            send("Exchange.Bind", source="{x}", destination="{y}", routing_key=""),
            declare(),
            bind(source="{y}"),
            send("Exchange.Delete", exchange="{y}"),
            publish("", to="{x}", mandatory=True),
            Sync(),
        ],
    )
    yield (
        "an alternate exchange is not asked if a queue has the message",
        [
            exchange("fanout", "{alternate}"),
            declare("{lost}"),
            bind("{lost}", "{alternate}"),
            exchange(arguments={"alternate-exchange": "{alternate}"}),
            declare(),
            bind(key="k"),
            publish("k", b"1", to="{x}"),
            publish("other", b"2", to="{x}"),
            get("{lost}"),
            get("{lost}"),
            get(),
        ],
    )
    yield (
        "alternates in a circle",
        [
            exchange(arguments={"alternate-exchange": "{y}"}),
            exchange(name="{y}", arguments={"alternate-exchange": "{x}"}),
            publish("k", to="{x}", mandatory=True),
            Sync(),
        ],
    )
    yield (
        "the same key in CC and BCC",
        [
            declare(),
            publish(headers={"CC": ["{q}", "{q}"], "BCC": ["{q}"]}),
            get(),
            get(),
        ],
    )
    yield (
        "CC to a topic exchange",
        [
            exchange("topic"),
            declare(),
            bind(key="a.*"),
            publish("b", to="{x}", headers={"CC": ["a.b", "a.c"]}),
            get(),
            get(),
        ],
    )
    for priority in (0, 5, 255):
        yield (
            f"priority {priority} in a queue without priorities",
            [declare(), publish(priority=priority), get()],
        )
    for mode in (0, 1, 2, 3):
        yield f"delivery mode {mode}", [declare(), publish(delivery_mode=mode), get()]
    yield (
        "rejected in a transaction, at commit",
        [
            declare("{dead}"),
            declare(arguments=dead),
            publish(),
            get(no_ack=False),
            send("Tx.Select"),
            nack(1, requeue=False),
            send("Tx.Commit"),
            GetSoon("{dead}"),
        ],
    )
    yield (
        "a transaction that a limit refuses",
        [
            declare(arguments={"x-max-length": 1, "x-overflow": "reject-publish"}),
            send("Tx.Select"),
            publish(body=b"1"),
            send("Tx.Commit"),
            publish(body=b"2"),
            send("Tx.Commit"),
        ],
    )
    yield (
        "confirms count from where they begin",
        [
            declare(),
            publish(),
            send("Confirm.Select"),
            publish(),
            Wait(1),
            send("Confirm.Select"),
            publish(),
            Wait(1),
        ],
    )
    yield (
        "queue.bind twice is one binding",
        [
            exchange(),
            declare(),
            bind(),
            bind(),
            send("Queue.Unbind", queue="{q}", exchange="{x}", routing_key="k"),
            publish("k", to="{x}", mandatory=True),
            Sync(),
        ],
    )
    yield (
        "bindings that differ in arguments alone",
        [
            exchange(),
            declare(),
            bind(),
            bind(a=1),
            send("Queue.Unbind", queue="{q}", exchange="{x}", routing_key="k"),
            publish("k", to="{x}", mandatory=True),
            Sync(),
            get(),
        ],
    )


# --- what frameworks declare


def frameworks() -> Iterator[Case]:
    kinds: dict[str, dict[str, Any]] = {"classic": {}, "quorum": QUORUM}
    for kind, table in kinds.items():
        link = send("Exchange.Bind", source="{Shop:Order}", destination="{orders}", routing_key="")
        yield (
            f"MassTransit: a message type, an endpoint, and its errors, {kind}",
            [
                exchange("fanout", "{Shop:Order}", durable=True),
                exchange("fanout", "{orders}", durable=True),
                link,
                declare("{orders}", arguments=table),
                bind("{orders}", "{orders}", ""),
                link,
                exchange("fanout", "{orders_error}", durable=True),
                declare("{orders_error}", arguments=table),
                bind("{orders_error}", "{orders_error}", ""),
                send("Confirm.Select"),
                publish("", b"order", to="{Shop:Order}", delivery_mode=2, message_id="m"),
                Wait(1),
                send("Basic.Qos", prefetch_size=0, prefetch_count=16, global_=False),
                consume("{orders}"),
                Wait(1),
                publish("", b"order", to="{orders_error}", delivery_mode=2),
                Wait(1),
                ack(1),
                GetSoon("{orders_error}"),
                send(
                    "Exchange.Unbind", source="{Shop:Order}", destination="{orders}", routing_key=""
                ),
                send("Basic.Cancel", consumer_tag="c"),
                declare("{orders}", passive=True),
            ],
        )
    yield (
        "MassTransit: the endpoint of a bus",
        [
            exchange("fanout", "{bus}", durable=False, auto_delete=True),
            declare("{bus}", durable=False, auto_delete=True, arguments={"x-expires": 60_000}),
            bind("{bus}", "{bus}", ""),
            consume("{bus}"),
            publish("", b"reply", to="{bus}"),
            Wait(1),
            send("Basic.Cancel", consumer_tag="c"),
            exchange("fanout", "{bus}", passive=True),
        ],
    )
    yield (
        "Spring: declares, declares passively, and consumes",
        [
            exchange("topic", durable=True),
            declare(arguments={"x-dead-letter-exchange": ""}),
            bind(key="orders.*"),
            declare(passive=True),
            send("Basic.Qos", prefetch_size=0, prefetch_count=250, global_=False),
            consume(tag=""),
            publish("orders.new", to="{x}", priority=0, content_encoding="UTF-8"),
            Wait(1),
            ack(1, multiple=True),
            declare(passive=True),
        ],
    )
    yield "Spring: the queue is missing", [declare("{missing}", passive=True)]
    yield (
        "Spring: other arguments",
        [declare(arguments={"x-max-length": 5}), declare(arguments={"x-max-length": 6})],
    )
    yield "Spring: another type of exchange", [exchange("topic"), exchange("direct")]
    yield (
        "Spring: another consumer is exclusive",
        [declare(), consume(exclusive=True), On(10), consume(exclusive=True)],
    )
    yield (
        "Spring: does the broker have direct reply-to?",
        [declare("amq.rabbitmq.reply-to", passive=True)],
    )
    yield (
        "Spring: retries by a time to live",
        [
            declare(
                "{work}",
                arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "{wait}"},
            ),
            declare(
                "{wait}",
                arguments={
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-routing-key": "{work}",
                    "x-message-ttl": 50,
                },
            ),
            publish("{work}", b"task"),
            consume("{work}"),
            Wait(1),
            send("Basic.Reject", delivery_tag=1, requeue=False),
            Wait(1),
            send("Basic.Reject", delivery_tag=2, requeue=False),
            Wait(1),
        ],
    )
    yield (
        "Celery: the queue of control messages",
        [
            exchange("fanout", "{celery.pidbox}", durable=False),
            declare(
                "{host.celery.pidbox}",
                durable=False,
                auto_delete=True,
                arguments={"x-message-ttl": 300_000, "x-expires": 10_000},
            ),
            bind("{host.celery.pidbox}", "{celery.pidbox}", ""),
            consume("{host.celery.pidbox}", no_ack=True),
            publish("", b"ping", to="{celery.pidbox}"),
            Wait(1),
        ],
    )
    yield "Celery: delayed delivery, all of its 28 levels", list(_celery_levels())


def _celery_levels() -> Iterator[Step]:
    """As kombu's native_delayed_delivery declares them; the task is to be done at once."""
    top = 27
    for level in range(top, -1, -1):
        name = f"{{celery_delayed_{level}}}"
        below = f"{{celery_delayed_{level - 1}}}" if level else "{celery_delayed_delivery}"
        yield exchange("topic", name, durable=True)
        yield declare(
            name,
            arguments={
                "x-queue-type": "classic",
                "x-overflow": "reject-publish",
                "x-message-ttl": 1000 << level,
                "x-dead-letter-exchange": below,
            },
        )
        yield bind(name, name, "*." * (top - level) + "1.#")
    yield exchange("topic", "{celery_delayed_delivery}", durable=True)
    for level in range(top, -1, -1):
        below = f"{{celery_delayed_{level - 1}}}" if level else "{celery_delayed_delivery}"
        yield send(
            "Exchange.Bind",
            source=f"{{celery_delayed_{level}}}",
            destination=below,
            routing_key="*." * (top - level) + "0.#",
        )
    yield declare("{tasks}")
    yield bind("{tasks}", "{celery_delayed_delivery}", "#.tasks")
    yield publish("0." * 28 + "tasks", b"task", to="{celery_delayed_27}", mandatory=True)
    yield Sync()
    yield GetSoon("{tasks}")


def all_cases() -> dict[str, list[Step]]:
    """All cases by their names."""
    found: dict[str, list[Step]] = {}
    for source in (
        queue_arguments,
        redeclarations,
        exchanges,
        bindings,
        queues,
        consumers,
        streams,
        acknowledgements,
        publishing,
        features,
        outcomes,
        frameworks,
    ):
        for name, steps in source():
            assert name not in found, name
            found[name] = steps
    return found
