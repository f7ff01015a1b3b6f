"""What a RabbitMQ has, by its management API: the definitions, and which queues can move how."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from qlog.tools.ctl.api import Api, ApiError, NoApi, Unreachable
from qlog.tools.ctl.command import Failure, Status

MOVES = "moves"
BY_GET = "moves, without a consumer (auto-delete)"
READ = "read from the remembered offset; stays at RabbitMQ"
# RabbitMQ has statistics some 5 s after its start.
STATISTICS_LOOKS = 10
_COLUMNS = (
    "name,vhost,type,auto_delete,exclusive,arguments,messages,messages_unacknowledged,consumers"
)
_SECTIONS = ("parameters", "policies", "exchanges", "queues", "bindings")
_BY_USER = ("permissions", "topic_permissions")


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """One queue: how it moves, or (`movable` is false) why not."""

    vhost: str
    name: str
    type: str
    messages: int
    movable: bool
    how: str
    arguments: Mapping[str, Any]

    @property
    def by_get(self) -> bool:
        """Nobody may consume from it."""
        return self.how.startswith(BY_GET)

    @property
    def shared(self) -> bool:
        """It allows no exclusive consumer."""
        return bool(self.arguments.get("x-single-active-consumer"))

    @property
    def in_order(self) -> bool:
        """It has no priorities."""
        return not self.arguments.get("x-max-priority")


@dataclass(slots=True)
class Plan:
    """What can move. `notes`: what cannot, beside queues; `started_s` as in `Setting`."""

    definitions: dict[str, Any]
    queues: list[QueuePlan]
    started_s: int
    notes: list[str] = field(default_factory=list)


class Management:
    """RabbitMQ's management API. Raises Failure, which says what to do."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._api = Api("", url, timeout_s)
        self._user = unquote(urlsplit(url).username or "")

    def ask(self, *parts: str, **query: str) -> Any:
        """What a path has."""
        address = self._api.address
        try:
            return self._api.ask("GET", parts, query=query)
        except NoApi:
            raise self._no_api() from None
        except Unreachable as error:
            raise Failure(
                f"RabbitMQ's management API at {address} does not answer: {error}\n"
                "Is RabbitMQ running there, with its plugin on "
                "(rabbitmq-plugins enable rabbitmq_management)?",
                Status.UNAVAILABLE,
            ) from None
        except ApiError as error:
            if error.status == 401:
                raise self._not_allowed(error) from None
            if error.status == 404 and parts == ("definitions",):
                raise self._no_api() from None
            raise Failure(f"RabbitMQ at {address}: {error}", Status.UNAVAILABLE) from None

    def _no_api(self) -> Failure:
        return Failure(
            f"{self._api.address} answers, but is no management API of RabbitMQ: "
            "its port is 15672, if nothing else was set",
            Status.UNAVAILABLE,
        )

    def _not_allowed(self, error: ApiError) -> Failure:
        if error.reason.lower() in ("not_authorized", "login failed"):
            why = "wrong name or password"
        else:
            why = f"{error.reason}; definitions are for users with the tag administrator"
        return Failure(
            f"RabbitMQ at {self._api.address} refuses user '{self._user}': {why}",
            Status.UNAVAILABLE,
        )


def plan_of(management: Management, vhost: str | None, pattern: str | None) -> Plan:
    """Look at a RabbitMQ: all of it, or one vhost; of the queues those whose names match."""
    document = management.ask("definitions")
    if vhost is not None:
        document = of_vhost(document, vhost)
    plan = Plan(document, [], _started_s(management))
    for one in management.ask("queues", columns=_COLUMNS):
        if vhost in (None, one["vhost"]) and re.search(pattern or "", one["name"]):
            plan.queues.append(_planned(one))
    plan.queues.sort(key=lambda queue: (queue.vhost, queue.name))
    for exchange in document["exchanges"]:
        if exchange["type"] == "x-delayed-message":
            _note_delayed(management, exchange, plan)
    return plan


def of_vhost(document: Mapping[str, Any], vhost: str) -> dict[str, Any]:
    """The part of definitions that is about one vhost, and the users who may enter it."""
    found = dict(document)
    found["vhosts"] = [one for one in document["vhosts"] if one["name"] == vhost]
    if not found["vhosts"]:
        raise Failure(f"RabbitMQ has no vhost '{vhost}'", Status.DATA)
    for section in (*_SECTIONS, *_BY_USER):
        found[section] = [one for one in document.get(section, ()) if one["vhost"] == vhost]
    names = {one["user"] for one in found["permissions"]}
    found["users"] = [one for one in document["users"] if one["name"] in names]
    found["topic_permissions"] = [one for one in found["topic_permissions"] if one["user"] in names]
    found["global_parameters"] = []
    return found


def _planned(one: Mapping[str, Any]) -> QueuePlan:
    type_ = one.get("type", "classic")
    consumers, unacked = one.get("consumers") or 0, one.get("messages_unacknowledged") or 0
    movable, how = True, MOVES
    if one.get("exclusive"):
        movable, how = False, "exclusive: it ends with its connection"
    elif one["name"].startswith("amq."):
        movable, how = False, "its name was given by RabbitMQ (amq.…)"
    elif type_ == "stream":
        how = READ
    elif consumers:
        how = f"{consumers} consumers: stop them first"
    elif one.get("auto_delete"):
        how = BY_GET
    if how in (MOVES, BY_GET) and unacked:
        how += f"; {unacked} of them are out with basic.get, and stay"
    return QueuePlan(
        one["vhost"],
        one["name"],
        type_,
        one.get("messages") or 0,
        movable,
        how,
        one.get("arguments") or {},
    )


def _note_delayed(management: Management, exchange: Mapping[str, Any], plan: Plan) -> None:
    facts = management.ask("exchanges", exchange["vhost"], exchange["name"])
    waiting = facts.get("messages_delayed") or 0
    if waiting:
        plan.notes.append(
            f"{waiting} messages wait in the delayed exchange '{exchange['name']}' in vhost "
            f"'{exchange['vhost']}': nobody can read them there before their time"
        )


def _started_s(management: Management) -> int:
    """When RabbitMQ was started; 0 if it does not say, which no two looks agree on."""
    node = management.ask("overview", columns="node")["node"]
    for _ in range(STATISTICS_LOOKS):
        facts = management.ask("nodes", node, columns="uptime")
        if facts:  # an empty list, while a RabbitMQ that has just started has no statistics
            return int(time.time() - facts["uptime"] / 1000)
        time.sleep(1)
    return 0
