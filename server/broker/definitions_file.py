"""RabbitMQ's definitions in JSON: what RabbitMQ 3.8 to 4.x export is loaded.

Promises that an import is all or nothing for the directory: the first item that cannot be had
raises DefinitionsError, which names the item and says why, and nothing of the file lasts. The
broker must then not go on, since its memory has what the directory has not. Promises that loading
again changes nothing: vhosts, users, permissions, policies and parameters are set as the file has
them; exchanges, queues and bindings that are there stay as they are (rabbit_definitions). What the
broker does not know is named in a warning and left out.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlog.server.amqp.errors import AMQPError
from qlog.server.amqp.values import encode_table
from qlog.server.broker.access.hashing import Busy, Hashing, InlineHashing
from qlog.server.broker.access.passwords import (
    fingerprint,
    hash_password,
    is_right,
    parse_hash,
)
from qlog.server.broker.access.permissions import check_pattern, check_topic_pattern
from qlog.server.broker.access.users import User
from qlog.server.broker.access_operations import check_user_name, checked_tags, checked_user_limits
from qlog.server.broker.definitions import Definitions
from qlog.server.broker.features.parameters import InvalidParameter
from qlog.server.broker.features.policy import PolicyKind
from qlog.server.broker.features.policy_keys import KEYS, OPERATOR_KEYS
from qlog.server.broker.jobs import Steps
from qlog.server.broker.operations import DefinitionsError, Operations
from qlog.server.broker.removals import RESERVED_PREFIX
from qlog.server.broker.vhost import VHost

logger = logging.getLogger("qlog.broker")

# What RabbitMQ says about the file itself.
_ABOUT = {
    "explanation",
    "original_cluster_name",
    "original_vhost_name",
    "product_name",
    "product_version",
    "rabbit_version",
    "rabbitmq_definition_format",
    "rabbitmq_version",
}
# The sections in the order in which they are loaded, with the keys of their items.
SECTIONS = {
    "users": {"name", "password_hash", "password", "hashing_algorithm", "tags", "limits"},
    "vhosts": {
        "name",
        "description",
        "tags",
        "metadata",
        "default_queue_type",
        "limits",  # they are among the parameters, too, from where RabbitMQ takes them
        "tracing",
    },
    "permissions": {"user", "vhost", "configure", "write", "read"},
    "topic_permissions": {"user", "vhost", "exchange", "write", "read"},
    "parameters": {"vhost", "component", "name", "value"},
    "global_parameters": {"name", "value"},
    "policies": {"vhost", "name", "pattern", "apply-to", "definition", "priority"},
    "exchanges": {"vhost", "name", "type", "durable", "auto_delete", "internal", "arguments"},
    "queues": {"vhost", "name", "durable", "auto_delete", "exclusive", "arguments", "type"},
    "bindings": {
        "vhost",
        "source",
        "destination",
        "destination_type",
        "routing_key",
        "arguments",
        "properties_key",
    },
}
# What the definitions of one vhost have.
VHOST_SECTIONS = ("parameters", "policies", "exchanges", "queues", "bindings")
_METADATA = {
    "description",
    "tags",
    "default_queue_type",
    "protected_from_deletion",
    "tracing",
}
_ABSENT: Any = object()


def read_definitions(path: Path) -> dict[str, Any]:
    """The document of a file. Raises DefinitionsError."""
    try:
        document = json.loads(path.read_bytes().decode("utf-8-sig"), parse_constant=_no_number)
        json.dumps(document, ensure_ascii=False).encode()  # no half of a surrogate pair
    except OSError as error:
        raise DefinitionsError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DefinitionsError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise DefinitionsError(f"{path} has no JSON object")
    return document


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def has_users_and_vhosts(document: dict[str, Any]) -> bool:
    """Whether a new directory needs no default user and vhost beside what the file has."""
    return bool(document.get("users") or document.get("vhosts"))


# --- loading


@dataclass(slots=True)
class Item:
    """One item of a section; `what` is how errors call it."""

    what: str
    fields: dict[str, Any]

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = _ABSENT) -> Any:
        """A value of this type; null stands for the default. Raises ValueError."""
        value = self.fields.get(key)
        if value is None:
            if default is _ABSENT:
                raise ValueError(f"'{key}' is missing")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"'{key}' has the wrong type")
        return value

    def text(self, key: str, default: Any = _ABSENT) -> Any:
        return self.get(key, str, default)

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.get(key, bool, default))

    def table(self, key: str = "arguments") -> dict[str, Any]:
        """A map; RabbitMQ also writes lists of pairs, and [] for an empty one."""
        value = self.get(key, (dict, list), {})
        found = dict(value) if isinstance(value, dict) else _pairs(value)
        if key == "arguments":
            encode_table(found)  # raises what clients could not declare
        return found


def _pairs(value: list[Any]) -> dict[str, Any]:
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError("a list of pairs is expected")
    return {key: item for key, item in value}


@dataclass(slots=True)
class Import:
    """One import into a broker; `warnings` has what was left out."""

    operations: Operations
    users: dict[str, User]
    definitions: Definitions
    warnings: list[str] = field(default_factory=list)
    hashing: Hashing = field(default_factory=InlineHashing)
    _skipped: set[tuple[str, str]] = field(default_factory=set)  # queues: vhost and name
    _counts: dict[str, int] = field(default_factory=dict)  # items of the document, by section

    def load(self, document: dict[str, Any]) -> None:
        """Load all of a document. Raises DefinitionsError."""
        with self.definitions.transaction():
            for _ in self.loading(document):
                pass

    def loading(self, document: dict[str, Any]) -> Steps[None]:
        """The same in steps, which become durable one by one. Raises DefinitionsError."""
        for key in document:
            if key not in SECTIONS and key not in _ABOUT:
                self.warnings.append(f"'{key}' is not known, and left out")
        for section, keys in SECTIONS.items():
            items = document.get(section) or []
            if not isinstance(items, list):
                raise DefinitionsError(f"'{section}' is no list")
            if items:
                self._counts[section] = len(items)
            take = getattr(self, f"_take_{section}")
            for number, fields in enumerate(items):
                with self._named(section, number, fields) as item:
                    self._warn_of_others(item, item.fields, keys)
                    yield from take(item) or ()
                yield

    def log(self) -> None:
        """Say in the log what was loaded, for whom, and what was left out."""
        counts = " ".join(f"{section}={count}" for section, count in self._counts.items())
        logger.info("definitions loaded %s %s", counts, self.operations.actor)
        for warning in self.warnings:
            logger.warning("definitions: %s", warning)

    @contextmanager
    def _named(self, section: str, number: int, fields: Any) -> Iterator[Item]:
        """An error in the block is one of this item."""
        what = f"{section}[{number}]"
        try:
            if not isinstance(fields, dict):
                raise TypeError("it is no JSON object")
            what = _called(section, fields) or what
            yield Item(what, fields)
        except AMQPError as error:
            raise DefinitionsError(f"{what}: {error.reply_text}") from error
        except InvalidParameter as error:
            text = " ".join(str(error).split())
            raise DefinitionsError(f"{what}: {text}") from error
        except (ValueError, TypeError, OverflowError, struct.error) as error:
            raise DefinitionsError(f"{what}: {error}") from error

    def _warn_of_others(self, item: Item, fields: dict[str, Any], keys: set[str]) -> None:
        for key in fields:
            if key not in keys:
                self.warnings.append(f"{item.what}: '{key}' is not known, and left out")

    def _vhost(self, item: Item) -> VHost:
        try:
            return self.operations.vhost(item.text("vhost"))
        except AMQPError:
            raise ValueError(f"there is no vhost '{item.text('vhost')}'") from None

    # -- who and where

    def _take_users(self, item: Item) -> Steps[None] | None:
        return self._taking_user(item)

    def _taking_user(self, item: Item) -> Steps[None]:
        name = item.text("name")
        check_user_name(name)
        tags = checked_tags(as_tags(item.get("tags", (str, list), "")))
        limits = checked_user_limits(item.table("limits"))
        password_hash = yield from self._password_hash(item, self.users.get(name))
        self.operations.put_user(name, password_hash, tags, limits)

    def _password_hash(self, item: Item, user: User | None) -> Steps[bytes]:
        """What to keep of a user's password; what is kept already, if it is the same password."""
        if "password" not in item.fields:
            algorithm = item.text("hashing_algorithm", None)
            given = parse_hash(item.text("password_hash", ""), algorithm)
            known = user is not None and bool(given) and fingerprint(given) == user.replaced
            return user.password_hash if user is not None and known else given
        password = item.text("password").encode()
        kept = b"" if user is None else user.password_hash

        def make() -> bytes:
            return kept if is_right(kept, password) else hash_password(password)

        made = self.hashing.submit(make, "definitions")
        yield made
        try:
            return made.result()
        except Busy:
            raise ValueError("too many passwords wait to be hashed") from None

    def _take_vhosts(self, item: Item) -> None:
        metadata = Item(item.what, item.table("metadata"))
        self._warn_of_others(item, metadata.fields, _METADATA)
        described = metadata.text("description", "")
        tags = item.get("tags", (list, str), metadata.get("tags", (list, str), []))
        self.operations.set_vhost(
            item.text("name"),
            description=item.text("description", described),
            tags=as_tags(tags),
            default_queue_type=queue_type_of(item),
            protected=protection_of(item),
        )
        if item.flag("tracing", False):
            self.warnings.append(f"{item.what}: tracing is not switched on")

    def _user(self, item: Item) -> User:
        user = self.users.get(item.text("user"))
        if user is None:
            raise ValueError(f"there is no user '{item.text('user')}'")
        return user

    def _take_permissions(self, item: Item) -> None:
        user = self._user(item)
        configure, write, read = (
            check_pattern(item.text(right)) for right in ("configure", "write", "read")
        )
        vhost = self._vhost(item).name
        if user.permissions.get(vhost) != (configure, write, read):
            self.operations.set_permissions(vhost, user.name, configure, write, read)

    def _take_topic_permissions(self, item: Item) -> None:
        user = self._user(item)
        write, read = (check_topic_pattern(item.text(right)) for right in ("write", "read"))
        vhost, exchange = self._vhost(item).name, item.text("exchange")
        if user.topic_permissions.get(vhost, {}).get(exchange) != (write, read):
            self.operations.set_topic_permissions(vhost, user.name, exchange, write, read)

    # -- parameters and policies

    def _take_parameters(self, item: Item) -> None:
        component = item.text("component")
        match component:
            case "vhost-limits":
                self._set_limits(item)
            case "operator_policy":
                value = Item(item.what, item.table("value"))
                keys = SECTIONS["policies"] - {"vhost", "name"}
                self._warn_of_others(item, value.fields, keys)
                self._set_policy("operator_policy", item, value)
            case _:
                self.warnings.append(f"{item.what}: '{component}' is not known, and left out")

    def _set_limits(self, item: Item) -> None:
        self.operations.set_vhost_limits(self._vhost(item), item.table("value"))

    def _take_global_parameters(self, item: Item) -> None:
        self.definitions.save_global_parameter(item.text("name"), item.fields.get("value"))

    def _take_policies(self, item: Item) -> None:
        self._set_policy("policy", item, item)

    def _set_policy(self, kind: PolicyKind, item: Item, value: Item) -> None:
        """Older versions have keys that later ones refuse, such as `ha-mode`: they are left out."""
        known = OPERATOR_KEYS if kind == "operator_policy" else KEYS.keys()
        definition = value.table("definition")
        others = [key for key in definition if key not in known]
        for key in others:
            self.warnings.append(f"{item.what}: '{key}' is not known, and left out")
            del definition[key]
        if others and not definition:
            self.warnings.append(f"{item.what}: nothing of it is left, so it is left out")
            return
        self._put_policy(kind, item, value, definition)

    def _put_policy(
        self, kind: PolicyKind, item: Item, value: Item, definition: dict[str, Any]
    ) -> None:
        self.operations.set_policy(
            self._vhost(item),
            kind,
            item.text("name"),
            pattern=value.fields.get("pattern"),
            definition=definition,
            priority=value.fields.get("priority", 0),
            apply_to=value.fields.get("apply-to", "all"),
        )

    # -- exchanges, queues, bindings

    def _take_exchanges(self, item: Item) -> None:
        vhost, name = self._vhost(item), item.text("name")
        if not name or name.startswith(RESERVED_PREFIX) or name in vhost.routing:
            return
        self.operations.declare_exchange(
            vhost,
            name,
            item.text("type"),
            durable=item.flag("durable", True),
            auto_delete=item.flag("auto_delete", False),
            internal=item.flag("internal", False),
            arguments=item.table(),
        )

    def _take_queues(self, item: Item) -> None:
        vhost, name = self._vhost(item), item.text("name")
        if name in vhost.queues or self._is_skipped(item, vhost.name, name):
            return
        self.operations.declare_queue(
            vhost,
            None,
            name,
            durable=item.flag("durable", True),
            exclusive=False,
            auto_delete=item.flag("auto_delete", False),
            arguments=item.table(),
        )

    def _is_skipped(self, item: Item, vhost: str, name: str) -> bool:
        """Whether a queue is left out, with its bindings. Raises ValueError without a name."""
        exclusive = item.flag("exclusive", False)
        if exclusive or name.startswith(RESERVED_PREFIX):
            why = "exclusive queues" if exclusive else "names that begin with 'amq.'"
            self.warnings.append(f"{item.what}: {why} are left out")
            self._skipped.add((vhost, name))
            return True
        if not name:
            raise ValueError("it has no name")
        return False

    def _take_bindings(self, item: Item) -> None:
        kind = item.text("destination_type")
        source, destination = item.text("source"), item.text("destination")
        if kind not in ("queue", "exchange"):
            raise ValueError(f"'destination_type' is '{kind}'")
        if not source:
            return  # every queue has this one
        if kind == "queue" and (item.text("vhost"), destination) in self._skipped:
            self.warnings.append(f"{item.what}: it goes with its queue")
            return
        self._bind(item, source, kind, destination)

    def _bind(self, item: Item, source: str, kind: Any, destination: str) -> None:
        vhost = self._vhost(item)
        key, arguments = item.text("routing_key", ""), item.table()
        self.operations.bind(vhost, None, source, kind, destination, key, arguments)


def as_tags(value: str | list[Any]) -> list[str]:
    """Tags as a list: RabbitMQ also writes one text, with commas."""
    return [str(tag) for tag in (value.split(",") if isinstance(value, str) else value)]


def queue_type_of(item: Item) -> str | None:
    """The default queue type of a vhost; None: RabbitMQ's. Raises ValueError."""
    metadata = Item(item.what, item.table("metadata"))
    type_ = item.text("default_queue_type", metadata.text("default_queue_type", None))
    return None if type_ in (None, "", "undefined") else str(type_)


def protection_of(item: Item) -> bool | None:
    """Whether a vhost is protected from deletion; None: nothing is said of it. Raises ValueError."""
    metadata = Item(item.what, item.table("metadata"))
    protected: bool | None = metadata.get("protected_from_deletion", bool, None)
    return protected


def _called(section: str, fields: dict[str, Any]) -> str:
    """An item as errors name it; empty if it has no name."""
    one = "policy" if section == "policies" else section.removesuffix("s").replace("_", " ")
    where = f" in vhost '{fields['vhost']}'" if "vhost" in fields else ""
    if section == "bindings":
        source, destination = fields.get("source"), fields.get("destination")
        return f"binding of '{destination}' to '{source}'{where}"
    if section in ("permissions", "topic_permissions"):
        return f"{one} of user '{fields.get('user')}'{where}"
    if section == "parameters":
        return f"parameter '{fields.get('component')}' '{fields.get('name')}'{where}"
    return f"{one} '{fields['name']}'{where}" if "name" in fields else ""
