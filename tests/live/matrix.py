"""The permission matrix: operation × resource × right × tag, as rows that RabbitMQ 4.0 agrees with.

`OPERATIONS` says which rights each operation needs, in the order in which they are asked, and what
it comes to when all are there. `rows` makes the users of the table: one who has all rights of the
operation and nothing else, one for each right that is missing, one who has none, and the same with
the tag that lets an operator do everything else. `DOCUMENT` defines them, and what they work on.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pamqp.commands import Basic, Exchange, Queue, Tx

from qlog.server.broker.access.passwords import hash_for_rabbitmq
from tests.live.conversation import encode_content, unchecked

VHOST = "permission-matrix"
PASSWORD = "matrix"

Need = tuple[str, str, str]  # right, kind, name
Close = tuple[int, str]  # code and text of a close

NO_QUEUE: Close = (404, f"NOT_FOUND - no queue 'none' in vhost '{VHOST}'")
NO_EXCHANGE: Close = (404, f"NOT_FOUND - no exchange 'none' in vhost '{VHOST}'")
ON_DEFAULT: Close = (403, "ACCESS_REFUSED - operation not permitted on the default exchange")


@dataclass(frozen=True)
class Operation:
    """What is sent, which rights it needs in which order, and what comes of it then; None: it works.

    `topics` are a user's topic permissions: exchange -> (write, read).
    """

    name: str
    sent: Sequence[Any]
    needs: Sequence[Need] = ()
    end: Close | None = None
    topics: dict[str, tuple[str, str]] = field(default_factory=dict)


def configure(kind: str, name: str) -> Need:
    return "configure", kind, name


def write(kind: str, name: str) -> Need:
    return "write", kind, name


def read(kind: str, name: str) -> Need:
    return "read", kind, name


def publish(exchange: str, key: str = "k", **properties: Any) -> list[Any]:
    content = encode_content(1, b"x", Basic.Properties(**properties))
    return [unchecked(Basic.Publish, exchange=exchange, routing_key=key), content]


def refused_topic(right: str, key: str, user: str) -> Close:
    return 403, (
        f"ACCESS_REFUSED - {right} access to topic '{key}' in exchange 'topic' in vhost '{VHOST}' "
        f"refused for user '{user}'"
    )


_DLX: Any = {"x-dead-letter-exchange": "dlx"}
_AE: Any = {"alternate-exchange": "ae"}
# The user's name is not known here: `{user}` stands for it.
_OWN = {"topic": (r"^{username}\.", r"^{vhost}\.")}

OPERATIONS = [
    Operation(
        "declare a queue", [Queue.Declare(queue="new", durable=True)], [configure("queue", "new")]
    ),
    Operation(
        "redeclare a queue", [Queue.Declare(queue="q", durable=True)], [configure("queue", "q")]
    ),
    Operation(
        "redeclare a queue that differs",
        [Queue.Declare(queue="q", durable=False)],
        [configure("queue", "q")],
        (
            406,
            (
                "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost "
                f"'{VHOST}': received 'false' but current is 'true'"
            ),
        ),
    ),
    Operation(
        "declare a queue with a dead-letter exchange",
        [Queue.Declare(queue="dead", durable=True, arguments=_DLX)],
        [configure("queue", "dead"), read("queue", "dead"), write("exchange", "dlx")],
    ),
    Operation(
        "redeclare a queue with a dead-letter exchange",
        [Queue.Declare(queue="has-dlx", durable=True, arguments=_DLX)],
        [configure("queue", "has-dlx")],
    ),
    Operation(
        "declare a queue with the default exchange for dead letters",
        [Queue.Declare(queue="dead2", durable=True, arguments={"x-dead-letter-exchange": ""})],
        [configure("queue", "dead2"), read("queue", "dead2"), write("exchange", "amq.default")],
    ),
    Operation(
        "declare a queue with a bad argument",
        [Queue.Declare(queue="bad", durable=True, arguments={**_DLX, "x-expires": 0})],
        [configure("queue", "bad"), read("queue", "bad"), write("exchange", "dlx")],
        (
            406,
            (
                f"PRECONDITION_FAILED - invalid arg 'x-expires' for queue 'bad' in vhost '{VHOST}': "
                "{value_zero,0}"
            ),
        ),
    ),
    Operation("look for a queue", [Queue.Declare(queue="q", passive=True)]),
    Operation("look for no queue", [Queue.Declare(queue="none", passive=True)], end=NO_QUEUE),
    Operation("delete a queue", [Queue.Delete(queue="gone")], [configure("queue", "gone")]),
    Operation("delete no queue", [Queue.Delete(queue="none")], [configure("queue", "none")]),
    Operation("purge a queue", [Queue.Purge(queue="q")], [read("queue", "q")]),
    Operation("purge no queue", [Queue.Purge(queue="none")], [read("queue", "none")], NO_QUEUE),
    Operation("consume", [Basic.Consume(queue="q")], [read("queue", "q")]),
    Operation(
        "consume from no queue", [Basic.Consume(queue="none")], [read("queue", "none")], NO_QUEUE
    ),
    Operation("get", [Basic.Get(queue="q")], [read("queue", "q")]),
    Operation("get from no queue", [Basic.Get(queue="none")], [read("queue", "none")], NO_QUEUE),
    Operation(
        "declare an exchange",
        [Exchange.Declare(exchange="new")],
        [configure("exchange", "new")],
    ),
    Operation(
        "redeclare an exchange",
        [Exchange.Declare(exchange="x", durable=True)],
        [configure("exchange", "x")],
    ),
    Operation(
        "declare an exchange of no type",
        [Exchange.Declare(exchange="new", exchange_type="no-such-type-1")],
        [],
        (406, "PRECONDITION_FAILED - unknown exchange type 'no-such-type-1'"),
    ),
    Operation(
        "declare an exchange with a reserved name",
        [unchecked(Exchange.Declare, exchange="amq.new")],
        [configure("exchange", "amq.new")],
        (
            403,
            "ACCESS_REFUSED - exchange name 'amq.new' contains reserved prefix 'amq.*'",
        ),
    ),
    Operation(
        "declare a queue with a reserved name",
        [unchecked(Queue.Declare, queue="amq.new")],
        [],
        (403, "ACCESS_REFUSED - queue name 'amq.new' contains reserved prefix 'amq.*'"),
    ),
    Operation(
        "declare an exchange with an alternate",
        [Exchange.Declare(exchange="new-ae", arguments=_AE)],
        [configure("exchange", "new-ae"), read("exchange", "new-ae"), write("exchange", "ae")],
    ),
    Operation(
        "redeclare an exchange with an alternate",
        [Exchange.Declare(exchange="has-ae", durable=True, arguments=_AE)],
        [configure("exchange", "has-ae")],
    ),
    Operation("look for an exchange", [Exchange.Declare(exchange="x", passive=True)]),
    Operation(
        "look for no exchange", [Exchange.Declare(exchange="none", passive=True)], end=NO_EXCHANGE
    ),
    Operation(
        "delete an exchange", [Exchange.Delete(exchange="gone")], [configure("exchange", "gone")]
    ),
    Operation(
        "delete no exchange", [Exchange.Delete(exchange="none")], [configure("exchange", "none")]
    ),
    Operation(
        "delete a predeclared exchange",
        [unchecked(Exchange.Delete, exchange="amq.direct")],
        [],
        (
            403,
            (
                f"ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '{VHOST}' "
                "not allowed"
            ),
        ),
    ),
    Operation(
        "declare the default exchange", [unchecked(Exchange.Declare, exchange="")], [], ON_DEFAULT
    ),
    Operation(
        "bind to the default exchange",
        [unchecked(Queue.Bind, queue="q")],
        [write("queue", "q")],
        ON_DEFAULT,
    ),
    Operation(
        "bind the default exchange",
        [unchecked(Exchange.Bind, source="x")],
        [write("exchange", "amq.default")],
        ON_DEFAULT,
    ),
    Operation(
        "bind an exchange to the default exchange",
        [unchecked(Exchange.Bind, destination="x")],
        [write("exchange", "x")],
        ON_DEFAULT,
    ),
    Operation(
        "bind a queue",
        [Queue.Bind(queue="q", exchange="x", routing_key="k")],
        [write("queue", "q"), read("exchange", "x")],
    ),
    Operation(
        "bind no queue",
        [Queue.Bind(queue="none", exchange="x", routing_key="k")],
        [write("queue", "none"), read("exchange", "x")],
        NO_QUEUE,
    ),
    Operation(
        "bind a queue to no exchange",
        [Queue.Bind(queue="q", exchange="none", routing_key="k")],
        [write("queue", "q"), read("exchange", "none")],
        NO_EXCHANGE,
    ),
    Operation(
        "unbind a queue",
        [Queue.Unbind(queue="q", exchange="x", routing_key="k")],
        [write("queue", "q"), read("exchange", "x")],
    ),
    Operation(
        "unbind no queue",
        [Queue.Unbind(queue="none", exchange="none", routing_key="k")],
        [write("queue", "none"), read("exchange", "none")],
    ),
    Operation(
        "bind an exchange",
        [Exchange.Bind(destination="x2", source="x", routing_key="k")],
        [write("exchange", "x2"), read("exchange", "x")],
    ),
    Operation(
        "unbind an exchange",
        [Exchange.Unbind(destination="x2", source="x", routing_key="k")],
        [write("exchange", "x2"), read("exchange", "x")],
    ),
    Operation("publish", publish("x"), [write("exchange", "x")]),
    Operation(
        "publish to the default exchange", publish("", "q"), [write("exchange", "amq.default")]
    ),
    Operation("publish to no exchange", publish("none"), [write("exchange", "none")], NO_EXCHANGE),
    Operation(
        "publish to an internal exchange",
        publish("internal"),
        [write("exchange", "internal")],
        (
            403,
            f"ACCESS_REFUSED - cannot publish to internal exchange 'internal' in vhost '{VHOST}'",
        ),
    ),
    Operation(
        "publish by their headers",
        publish("headers", headers={"a": 1}),
        [write("exchange", "headers")],
    ),
    Operation("publish in a transaction", [Tx.Select(), *publish("x")], [write("exchange", "x")]),
    Operation(
        "publish with a user id of another",
        publish("x", user_id="guest"),
        [write("exchange", "x")],
        (
            406,
            (
                "PRECONDITION_FAILED - user_id property set to 'guest' but authenticated user was "
                "'{user}'"
            ),
        ),
    ),
    # Topics: the exchange's own right is asked before, and other exchanges are free.
    Operation(
        "publish to a topic exchange",
        publish("topic", "a.b"),
        [write("exchange", "topic")],
        topics={"another": ("^$", "^$")},
    ),
    Operation(
        "publish with a topic of another",
        publish("topic", "other.b"),
        [write("exchange", "topic")],
        (403, "topic write other.b"),
        topics=_OWN,
    ),
    Operation(
        "publish with a topic of one's own",
        publish("topic", "{user}.b"),
        [write("exchange", "topic")],
        topics=_OWN,
    ),
    Operation(
        "publish with a topic of another in CC",
        publish("topic", "{user}.b", headers={"CC": ["other.b"]}),
        [write("exchange", "topic")],
        (403, "topic write other.b"),
        topics=_OWN,
    ),
    Operation(
        "publish with a topic for which there is no permission",
        publish("topic", "k"),
        [write("exchange", "topic")],
        (403, "topic write k"),
        topics={"topic": ("", ".*")},
    ),
    Operation(
        "publish without a topic where there is no permission",
        publish("topic", ""),
        [write("exchange", "topic")],
        topics={"topic": ("", ".*")},
    ),
    Operation(
        "publish to an exchange that has topic permissions and no topics",
        publish("x", "other.b"),
        [write("exchange", "x")],
        topics={"x": ("^$", "^$")},
    ),
    Operation(
        "bind with a topic of another",
        [Queue.Bind(queue="q", exchange="topic", routing_key="other.#")],
        [write("queue", "q"), read("exchange", "topic")],
        (403, "topic read other.#"),
        topics=_OWN,
    ),
    Operation(
        "bind with a topic of one's own",
        [Queue.Bind(queue="q", exchange="topic", routing_key=f"{VHOST}.#")],
        [write("queue", "q"), read("exchange", "topic")],
        topics=_OWN,
    ),
    Operation(
        "unbind with a topic of another",
        [Queue.Unbind(queue="q", exchange="topic", routing_key="other.#")],
        [write("queue", "q"), read("exchange", "topic")],
        (403, "topic read other.#"),
        topics=_OWN,
    ),
    Operation(
        "bind an exchange with a topic of another",
        [Exchange.Bind(destination="x2", source="topic", routing_key="other.#")],
        [write("exchange", "x2"), read("exchange", "topic")],
        (403, "topic read other.#"),
        topics=_OWN,
    ),
]


@dataclass(frozen=True)
class Row:
    """One user, one operation, and what must come of it."""

    operation: Operation
    user: str
    tags: tuple[str, ...]
    has: tuple[Need, ...]

    @property
    def close(self) -> Close | None:
        """The close that must come; None: the operation works."""
        for need in self.operation.needs:
            if need not in self.has:
                right, kind, name = need
                return 403, (
                    f"ACCESS_REFUSED - {right} access to {kind} '{name}' in vhost '{VHOST}' "
                    f"refused for user '{self.user}'"
                )
        end = self.operation.end
        if end is None:
            return None
        code, text = end
        if text.startswith("topic "):
            _, right, key = text.split(" ")
            return refused_topic(right, key, self.user)
        if "user_id" in text and "impersonator" in self.tags:
            return None
        return code, text.replace("{user}", self.user)

    def pattern(self, right: str) -> str:
        """What the user may do: exactly the names of the table."""
        names = [name.replace(".", "\\.") for has, _, name in self.has if has == right]
        return f"^({'|'.join(names)})$" if names else ""


def rows() -> Iterator[Row]:
    """All rows; those that delete stand in the order in which they can be played."""
    for number, operation in enumerate(OPERATIONS):
        every = tuple(dict.fromkeys(operation.needs))
        named = f"m{number}"
        if every:
            yield Row(operation, f"{named}-none", (), ())
            yield Row(operation, f"{named}-admin", ("administrator",), ())
        if len(every) > 1:
            for missing in range(len(every)):
                has = every[:missing] + every[missing + 1 :]
                yield Row(operation, f"{named}-but-{missing}", ("management",), has)
        yield Row(operation, f"{named}-all", ("monitoring",), every)
        if operation.end is not None and "user_id" in operation.end[1]:
            yield Row(operation, f"{named}-impersonator", ("impersonator",), every)


# Users with limits, and one who may not enter the vhost: name -> limits.
LIMITED = {
    "m-one": {"max-connections": 1},
    "m-nobody": {"max-connections": 0},
    "m-any": {"max-connections": -1, "max-channels": -5},
    "m-channels": {"max-channels": 2},
    "m-outside": {"max-connections": 0},
}


def document() -> dict[str, Any]:
    """Definitions of all users of the table, and of what they work on."""
    kept = base64.b64encode(hash_for_rabbitmq(PASSWORD.encode())).decode()
    table = list(rows())
    where = {"vhost": VHOST}
    queue = {**where, "durable": True, "auto_delete": False, "arguments": {}}
    exchange = {**queue, "internal": False, "type": "direct"}
    return {
        "users": [
            {
                "name": row.user,
                "password_hash": kept,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": list(row.tags),
                "limits": {},
            }
            for row in table
        ]
        + [
            {
                "name": name,
                "password_hash": kept,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
                "limits": limits,
            }
            for name, limits in LIMITED.items()
        ]
        + [
            {
                "name": "m-root",  # who changes the others
                "password_hash": kept,
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": ["administrator"],
            }
        ],
        "vhosts": [{"name": VHOST}],
        "permissions": [
            {
                **where,
                "user": row.user,
                **{right: row.pattern(right) for right in ("configure", "write", "read")},
            }
            for row in table
        ]
        + [
            {**where, "user": name, "configure": ".*", "write": ".*", "read": ".*"}
            for name in LIMITED
            if name != "m-outside"
        ],
        "topic_permissions": [
            {**where, "user": row.user, "exchange": exchange, "write": write, "read": read}
            for row in table
            for exchange, (write, read) in row.operation.topics.items()
        ],
        "queues": [
            {**queue, "name": "q"},
            {**queue, "name": "gone"},
            {**queue, "name": "has-dlx", "arguments": _DLX},
        ],
        "exchanges": [
            *({**exchange, "name": name} for name in ("x", "x2", "dlx", "ae", "gone")),
            {**exchange, "name": "topic", "type": "topic"},
            {**exchange, "name": "headers", "type": "headers"},
            {**exchange, "name": "internal", "internal": True},
            {**exchange, "name": "has-ae", "arguments": _AE},
        ],
        "bindings": [],
    }
