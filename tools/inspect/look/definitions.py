"""The definitions of a directory in the broker's terms, and what is wrong with them.

The broker's own decoder reads them (server/broker/definitions.py). A definition that does not
decode is named and left out.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from qlog.routing.binding import Binding
from qlog.routing.exchange import Exchange
from qlog.server.amqp.errors import AMQPError
from qlog.server.broker.access.users import User
from qlog.server.broker.definitions import Definitions, HiddenLane, QueueDefinition
from qlog.server.broker.features.policy import Policy
from qlog.server.broker.features.vhost_settings import VHostSettings
from qlog.storage.catalog import Catalog, Definition
from qlog.storage.identity import IDENTITY

# The kinds of definitions, by the fields of `Defined`.
KINDS = {
    "vhost": "vhosts",
    "user": "users",
    "policy": "policies",
    "operator_policy": "operator_policies",
    "exchange": "exchanges",
    "queue": "queues",
    "binding": "bindings",
    "hidden_lane": "hidden_lanes",
}
_BUILT_IN = "amq."  # exchanges of this prefix are in every vhost without a definition


@dataclass(slots=True)
class Defined:
    """All definitions that decode, by kind; `undecodable` are the others, with the reason."""

    vhosts: list[tuple[str, VHostSettings]] = field(default_factory=list)
    users: list[User] = field(default_factory=list)
    policies: list[tuple[str, Policy]] = field(default_factory=list)
    operator_policies: list[tuple[str, Policy]] = field(default_factory=list)
    exchanges: list[tuple[str, Exchange]] = field(default_factory=list)
    queues: list[QueueDefinition] = field(default_factory=list)
    bindings: list[tuple[str, Binding]] = field(default_factory=list)
    hidden_lanes: list[HiddenLane] = field(default_factory=list)
    keys: list[Definition] = field(default_factory=list)
    undecodable: dict[Definition, str] = field(default_factory=dict)

    @property
    def owners(self) -> dict[int, QueueDefinition]:
        """By lane the queue that it belongs to; what is delayed, or was seen, is shown as one."""
        hidden = [
            QueueDefinition(lane.vhost, lane.queue_name, {0: lane.lane_id}, False, {})
            for lane in self.hidden_lanes
        ]
        queues = [*self.queues, *hidden]
        return {lane_id: queue for queue in queues for lane_id in queue.lane_ids.values()}


def decode(entries: Mapping[Definition, bytes]) -> Defined:
    """Decode definitions as a directory has them."""
    found = Defined()
    for key, value in sorted(entries.items()):
        if key[0] not in KINDS:
            continue
        kind = KINDS[key[0]]
        definitions = Definitions(Catalog({key: value}, lambda records: None))
        try:
            getattr(found, kind).extend(getattr(definitions, kind)())
        except (ValueError, TypeError, KeyError, AttributeError, AMQPError) as error:
            found.undecodable[key] = str(error)
        else:
            found.keys.append(key)
    return found


def loose_ends(keys: Collection[Definition]) -> Iterator[tuple[Definition, str, str]]:
    """Definitions that are in, belong or lead to what is not defined: with kind and name of that."""
    known = set(keys)
    for kind, name in keys:
        if kind not in KINDS or kind in ("vhost", "user"):
            continue
        vhost, *parts = json.loads(name)
        ends: list[tuple[str, str]] = []
        match kind, parts:
            case "hidden_lane", [owner_kind, owner, _]:
                ends = [(owner_kind, owner)]
            case "binding", [source, to, destination, *_]:
                ends = [("exchange", source), (to, destination)]
        if ("vhost", json.dumps((vhost,))) not in known:
            yield (kind, name), "vhost", vhost
        for end_kind, end in ends:
            is_built_in = end_kind == "exchange" and (not end or end.startswith(_BUILT_IN))
            if not is_built_in and (end_kind, json.dumps((vhost, end))) not in known:
                yield (kind, name), end_kind, end


def problems(defined: Defined) -> Iterator[str]:
    """What does not decode, or names what there is not."""
    for key, why in defined.undecodable.items():
        yield f"the definition of {entry_text(*key)} does not decode: {why}"
    vhosts = {name for name, _ in defined.vhosts}
    ends = [(entry_text(*key), kind, name) for key, kind, name in loose_ends(defined.keys)]
    for user in defined.users:
        named = (vhost for vhost in user.permissions if vhost not in vhosts)
        ends += ((f"user '{user.name}'", "vhost", vhost) for vhost in named)
    for what, kind, name in ends:
        yield f"the {what} names the {kind} '{name}', which is not defined"


def counted_kind(kind: str, count: int) -> str:
    """So many definitions of a kind, which is a field of `Defined`, in words."""
    one = {"policies": "policy", "operator_policies": "operator policy"}.get(kind, kind[:-1])
    return f"{count:,} {one if count == 1 else kind.replace('_', ' ')}"


def entry_text(kind: str, name: str) -> str:
    """A definition as people name it; `name` is what the ledger calls it."""
    if (kind, name) == IDENTITY:
        return "identity of the directory"
    try:
        parts = json.loads(name)
    except ValueError:  # a long name is cut
        return f"{kind} {name!r}"
    match kind, parts:
        case "vhost" | "user", [one]:
            return f"{kind} '{one}'"
        case "queue" | "exchange" | "policy" | "operator_policy", [vhost, one]:
            return f"{kind.replace('_', ' ')} '{one}' in vhost '{vhost}'"
        case "hidden_lane", [vhost, owner, one, role]:
            return f"hidden lane ({role}) of {owner} '{one}' in vhost '{vhost}'"
        case "binding", [vhost, source, to, destination, key, *_]:
            return f"binding of {to} '{destination}' to '{source}' by '{key}' in vhost '{vhost}'"
    return f"{kind} {name!r}"
