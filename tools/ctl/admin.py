"""`rabbitmqadmin`, as `qlog ctl install-aliases` installs it: the commands of RabbitMQ 3.x's script.

    rabbitmqadmin [options] list|show|declare|delete|close|purge|publish|get|export|import …

Without a host, port, user or URI it asks the socket in the data directory. Values are given as
NAME=VALUE, arguments and definitions as JSON. Exit status: 0, 1 when refused, 64 for wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from qlog.tools.ctl.api import Api, ApiError, BadUrl, Unreachable
from qlog.tools.ctl.command import Option, Status
from qlog.tools.ctl.parse import parse
from qlog.tools.ctl.values import printable, to_json

USAGE = """\
usage: rabbitmqadmin [options] COMMAND

  list OBJECTS [COLUMN...]      users, vhosts, queues, exchanges, bindings, connections, channels,
                                consumers, permissions, policies, operator_policies, parameters,
                                vhost_limits, nodes
  show overview [COLUMN...]
  declare OBJECT NAME=VALUE...  exchange, queue, binding, vhost, user, permission, parameter,
                                policy, operator_policy, vhost_limit
  delete OBJECT NAME=VALUE...
  close connection name=NAME
  purge queue name=NAME
  publish routing_key=KEY [payload=TEXT] [exchange=NAME] [properties=JSON]
  get queue=NAME [count=N] [ackmode=MODE] [encoding=auto]
  export FILE
  import FILE

  -H, --host HOST   -P, --port PORT   -u, --username USER   -p, --password PASSWORD
  -U, --base-uri URI   -V, --vhost VHOST   --data-dir DIR
  -f, --format table|tsv|raw_json|pretty_json|long   -q, --quiet   -S, --sort COLUMN"""

# Those of `qlog ctl` have other short names here.
_OPTIONS = (
    Option("host", aliases=("-H",)),
    Option("port", int, ("-P",)),
    Option("username", aliases=("-u",)),
    Option("password", aliases=("-p",)),
    Option("base_uri", aliases=("-U",)),
    Option("vhost", aliases=("-V",)),
    Option("format", aliases=("-f",)),
    Option("sort", aliases=("-S",)),
    Option("sort_reverse", bool, ("-R",)),
    Option("config", aliases=("-c",)),
    Option("depth", int, ("-d",)),
    Option("ssl", bool, ("-s",)),
)

# The columns that are shown if none are asked for.
_COLUMNS: Mapping[str, str] = {
    "users": "name tags",
    "vhosts": "name",
    "queues": "name messages",
    "exchanges": "name type",
    "bindings": "source destination routing_key",
    "connections": "name user channels",
    "channels": "name user",
    "consumers": "queue.name consumer_tag",
    "permissions": "vhost user configure write read",
    "policies": "vhost name pattern apply-to definition priority",
    "operator_policies": "vhost name pattern apply-to definition priority",
    "parameters": "vhost component name value",
    "vhost_limits": "vhost value",
    "nodes": "name type mem_used",
    "overview": "rabbitmq_version cluster_name queue_totals.messages object_totals.queues",
}
_IN_VHOST = frozenset(
    ("queues", "exchanges", "bindings", "consumers", "policies", "operator_policies")
)
# The path of an object, with the names of values in braces, and what its body takes.
_OBJECTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "exchange": (
        "exchanges/{vhost}/{name}",
        {"type": "", "auto_delete": False, "durable": True, "internal": False, "arguments": {}},
    ),
    "queue": ("queues/{vhost}/{name}", {"auto_delete": False, "durable": True, "arguments": {}}),
    "vhost": ("vhosts/{name}", {"tracing": None, "description": None, "tags": None}),
    "user": ("users/{name}", {"password": None, "password_hash": None, "tags": ""}),
    "permission": ("permissions/{vhost}/{user}", {"configure": "", "write": "", "read": ""}),
    "parameter": ("parameters/{component}/{vhost}/{name}", {"value": {}}),
    "policy": (
        "policies/{vhost}/{name}",
        {"pattern": "", "definition": {}, "priority": 0, "apply-to": None},
    ),
    "operator_policy": (
        "operator-policies/{vhost}/{name}",
        {"pattern": "", "definition": {}, "priority": 0, "apply-to": None},
    ),
    "vhost_limit": ("vhost-limits/{vhost}/{name}", {"value": 0}),
}
_TRUTH = {"true": True, "false": False}


class WrongUsage(Exception):
    """The command line makes no sense."""


class Admin:
    """One call of the command."""

    def __init__(self, api: Api, options: Mapping[str, Any]) -> None:
        self._api = api
        self._options = options
        self._vhost: str = options.get("vhost", "/")

    def run(self, verb: str, args: list[str]) -> None:
        """Obey. Raises WrongUsage, ApiError, Unreachable."""
        verbs = {
            "list": self._list,
            "show": self._show,
            "declare": self._declare,
            "delete": self._delete,
            "close": self._close,
            "purge": self._purge,
            "publish": self._publish,
            "get": self._get,
            "export": self._export,
            "import": self._import,
        }
        if verb not in verbs:
            raise WrongUsage(f"unknown command {verb}")
        verbs[verb](args)

    # -- showing ---------------------------------------------------------------------------------

    def _list(self, args: list[str]) -> None:
        what = args[0] if args else ""
        if what not in _COLUMNS or what == "overview":
            raise WrongUsage(f"cannot list {what}")
        path = [what.replace("_", "-")]
        if what in _IN_VHOST and "vhost" in self._options:
            path.append(self._vhost)
        query = {"sort": self._options["sort"]} if "sort" in self._options else {}
        if self._options.get("sort_reverse"):
            query["sort_reverse"] = "true"
        self._print(self._api.ask("GET", path, query=query), args[1:] or _COLUMNS[what].split())

    def _show(self, args: list[str]) -> None:
        if args[:1] != ["overview"]:
            raise WrongUsage("only overview can be shown")
        shown = self._api.ask("GET", ["overview"])
        self._print([shown], args[1:] or _COLUMNS["overview"].split())

    def _get(self, args: list[str]) -> None:
        values = self._values(args, "queue")
        body = {
            "count": int(values.get("count", 1)),
            "ackmode": values.get("ackmode", "ack_requeue_true"),
            "encoding": values.get("encoding", "auto"),
        }
        found = self._api.ask("POST", ["queues", self._vhost, values["queue"], "get"], body=body)
        columns = [
            "routing_key",
            "exchange",
            "message_count",
            "payload",
            "payload_bytes",
            "redelivered",
        ]
        self._print(found, columns)

    def _print(self, items: list[dict[str, Any]], columns: Sequence[str]) -> None:
        form = self._options.get("format", "table")
        if form == "raw_json":
            print(to_json(items))
        elif form == "pretty_json":
            print(json.dumps(items, indent=2, ensure_ascii=False))
        else:
            rows = [[_cell(item, column) for column in columns] for item in items]
            writers = {"table": _table, "tsv": _tsv, "long": _long}
            if form not in writers:
                raise WrongUsage(f"unknown format {form}")
            for line in writers[form](columns, rows):
                print(line)

    # -- changing --------------------------------------------------------------------------------

    def _values(self, args: list[str], *needed: str) -> dict[str, str]:
        values: dict[str, str] = {}
        for arg in args:
            name, equals, value = arg.partition("=")
            if not equals:
                raise WrongUsage(f"{arg} is not NAME=VALUE")
            values[name] = value
        missing = [name for name in needed if name not in values]
        if missing:
            raise WrongUsage(f"mandatory argument {', '.join(missing)} required")
        return values

    def _place(self, kind: str, values: Mapping[str, str]) -> list[str]:
        """The path of an object; its values may name another vhost."""
        given = {"vhost": self._vhost, **values}
        parts = _OBJECTS[kind][0].split("/")
        named = [part[1:-1] for part in parts if part.startswith("{")]
        missing = [name for name in named if name not in given]
        if missing:
            raise WrongUsage(f"mandatory argument {', '.join(missing)} required")
        return [given[part[1:-1]] if part.startswith("{") else part for part in parts]

    def _declare(self, args: list[str]) -> None:
        kind = args[0] if args else ""
        values = self._values(args[1:])
        if kind == "binding":
            body = {
                "routing_key": values.get("routing_key", ""),
                "arguments": _read("arguments", values.get("arguments", "{}"), {}),
            }
            self._api.ask("POST", self._binding(values), body=body)
        elif kind in _OBJECTS:
            fields = _OBJECTS[kind][1]
            body = {name: default for name, default in fields.items() if default is not None}
            body |= {
                name: _read(name, values[name], fields[name]) for name in fields if name in values
            }
            if "queue_type" in values:
                body["arguments"] = {**body["arguments"], "x-queue-type": values["queue_type"]}
            self._api.ask("PUT", self._place(kind, values), body=body)
        else:
            raise WrongUsage(f"cannot declare {kind}")
        self._say(f"{kind} declared")

    def _binding(self, values: Mapping[str, str]) -> list[str]:
        missing = [name for name in ("source", "destination") if name not in values]
        if missing:
            raise WrongUsage(f"mandatory argument {', '.join(missing)} required")
        kind = "e" if values.get("destination_type") == "exchange" else "q"
        return [
            *("bindings", values.get("vhost", self._vhost)),
            *("e", values["source"], kind, values["destination"]),
        ]

    def _delete(self, args: list[str]) -> None:
        kind = args[0] if args else ""
        values = self._values(args[1:])
        if kind == "binding":
            key = values.get("properties_key", quote(values.get("routing_key", ""), "") or "~")
            self._api.ask("DELETE", [*self._binding(values), key])
        elif kind in _OBJECTS:
            self._api.ask("DELETE", self._place(kind, values))
        else:
            raise WrongUsage(f"cannot delete {kind}")
        self._say(f"{kind} deleted")

    def _close(self, args: list[str]) -> None:
        if args[:1] != ["connection"]:
            raise WrongUsage("only connections can be closed")
        self._api.ask("DELETE", ["connections", self._values(args[1:], "name")["name"]])
        self._say("connection closed")

    def _purge(self, args: list[str]) -> None:
        if args[:1] != ["queue"]:
            raise WrongUsage("only queues can be purged")
        name = self._values(args[1:], "name")["name"]
        self._api.ask("DELETE", ["queues", self._vhost, name, "contents"])
        self._say("queue purged")

    def _publish(self, args: list[str]) -> None:
        values = self._values(args, "routing_key")
        body = {
            "routing_key": values["routing_key"],
            "payload": values["payload"] if "payload" in values else sys.stdin.read(),
            "payload_encoding": values.get("payload_encoding", "string"),
            "properties": _read("properties", values.get("properties", "{}"), {}),
        }
        exchange = values.get("exchange") or "amq.default"
        path = ["exchanges", self._vhost, exchange, "publish"]
        routed = self._api.ask("POST", path, body=body)["routed"]
        self._say("Message published" if routed else "Message published but NOT routed")

    # -- definitions -----------------------------------------------------------------------------

    def _definitions(self) -> list[str]:
        return ["definitions", self._vhost] if "vhost" in self._options else ["definitions"]

    def _export(self, args: list[str]) -> None:
        if len(args) != 1:
            raise WrongUsage("export needs a file")
        text = to_json(self._api.ask("GET", self._definitions()))
        # It has the hashes of passwords.
        descriptor = os.open(args[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        self._say(f'Exported definitions for localhost to "{args[0]}"')

    def _import(self, args: list[str]) -> None:
        if len(args) != 1:
            raise WrongUsage("import needs a file")
        with open(args[0], encoding="utf-8") as file:
            document = _read("the file", file.read(), {})
        self._api.ask("POST", self._definitions(), body=document)
        self._say(f'Uploaded definitions from "localhost" to {args[0]}.')

    def _say(self, text: str) -> None:
        if not self._options.get("quiet"):
            print(text)


def _read(name: str, text: str, default: Any) -> Any:
    """A value by the type of its default. Raises WrongUsage."""
    if isinstance(default, bool):
        if text.lower() not in _TRUTH:
            raise WrongUsage(f"{name} is true or false, not {text}")
        return _TRUTH[text.lower()]
    if isinstance(default, int):
        if not text.lstrip("-").isdigit():
            raise WrongUsage(f"{name} is a number, not {text}")
        return int(text)
    if isinstance(default, dict):
        try:
            return json.loads(text)
        except ValueError:
            raise WrongUsage(f"could not parse JSON: {name}") from None
    return text


def _cell(item: Mapping[str, Any], column: str) -> str:
    """A column, whose name may be a path."""
    value: Any = item
    for name in column.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return printable(",".join(value))
    return printable(to_json(value))


def _table(columns: Sequence[str], rows: list[list[str]]) -> Iterator[str]:
    """A table as the script of RabbitMQ 3.x draws it."""
    if not rows:
        yield "No items"
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    yield rule
    yield (
        "|"
        + "|".join(f" {name:^{width}} " for name, width in zip(columns, widths, strict=True))
        + "|"
    )
    yield rule
    for row in rows:
        yield (
            "|"
            + "|".join(f" {cell:<{width}} " for cell, width in zip(row, widths, strict=True))
            + "|"
        )
    yield rule


def _tsv(columns: Sequence[str], rows: list[list[str]]) -> Iterator[str]:
    yield "\t".join(columns)
    yield from ("\t".join(row) for row in rows)


def _long(columns: Sequence[str], rows: list[list[str]]) -> Iterator[str]:
    width = max(map(len, columns))
    for row in rows:
        yield "-" * 80
        for name, cell in zip(columns, row, strict=True):
            yield f"{name:>{width}}: {cell}"
    yield "-" * 80


def main(argv: list[str]) -> int:
    """Run one command; the exit status."""
    parsed = parse(argv, _OPTIONS)
    if parsed.options.get("help") or not parsed.args:
        print(USAGE)
        return Status.OK if parsed.options.get("help") else Status.USAGE
    if parsed.invalid:
        print(f"unknown option, or no value: {parsed.invalid[0][0]}", file=sys.stderr)
        return Status.USAGE
    try:
        Admin(_api(parsed.options), parsed.options).run(parsed.args[0], parsed.args[1:])
    except (WrongUsage, BadUrl) as error:
        print(f"ERROR: {error}\n{USAGE}", file=sys.stderr)
        return Status.USAGE
    except ApiError as error:
        print(f"*** {error.reason}", file=sys.stderr)
    except (Unreachable, OSError) as error:
        print(f"*** Could not connect, or read: {error}", file=sys.stderr)
    else:
        return Status.OK
    return 1


def _api(options: Mapping[str, Any]) -> Api:
    data_dir = options.get("data_dir") or os.environ.get("QLOG_DATA_DIR") or "qlog-data"
    remote = ("host", "port", "username", "password", "base_uri")
    if not any(name in options for name in remote):
        return Api(data_dir, os.environ.get("QLOG_URL"))
    scheme, host, port = "http", options.get("host", "localhost"), options.get("port", 15672)
    if "base_uri" in options:
        scheme, _, rest = options["base_uri"].rstrip("/").rpartition("://")
        host, _, given = rest.partition(":")
        scheme, port = scheme or "http", int(given or port)
    elif options.get("ssl"):
        scheme = "https"
    user = quote(options.get("username", "guest"), "")
    password = quote(options.get("password", "guest"), "")
    return Api(data_dir, f"{scheme}://{user}:{password}@{host}:{port}")
