"""The definitions of the new ledger: all that can be had, and none that leads nowhere.

look/directory.py gives the definitions: those of the ledger, or, if the ledger is damaged, what is
left of them over those of the catalog. A queue whose definition is lost gets a new one, so that no
message is out of reach.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgpack

from qlog.server.amqp.values import Table, encode_table
from qlog.server.broker.access.passwords import hash_password
from qlog.server.broker.access.users import User
from qlog.server.broker.definitions import Definitions, lane_ids_of
from qlog.storage.catalog import Catalog, Definition
from qlog.storage.identity import IDENTITY
from qlog.storage.journal import Defined
from qlog.storage.streams.definition import STREAM, pack_first, stream_lanes
from qlog.tools.inspect.look.definitions import entry_text, loose_ends
from qlog.tools.inspect.look.directory import Directory

RECOVERED = "qlog.recovered."  # and the lane: the name of a queue whose own name is lost
NO_ARGUMENTS: Table = {}
_VHOST = "/"


@dataclass(slots=True)
class Mend:
    """`entries` are all definitions but the identity; `actions` what is done to have them so."""

    entries: dict[Definition, bytes] = field(default_factory=dict)
    actions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def lanes(self) -> dict[int, Definition]:
        """Who owns which lane."""
        return {
            lane_id: key
            for key, value in self.entries.items()
            if key[0] in ("queue", "hidden_lane")
            for lane_id in lane_ids_of(value).values()
        }

    def adopt(self, lane_ids: Iterable[int], arguments: Table = NO_ARGUMENTS) -> None:
        """Define a queue for each of these lanes, which have messages that wait."""
        for lane_id in sorted(lane_ids):
            value = {"lane": lane_id, "auto_delete": False, "arguments": encode_table(arguments)}
            name = json.dumps((_VHOST, f"{RECOVERED}{lane_id}"))
            self.entries["queue", name] = msgpack.packb(value)
            self.actions.append(f"define the {entry_text('queue', name)}, for lane {lane_id}")

    def adopt_streams(self, bases: Mapping[int, Sequence[int]], deleted: Collection[int]) -> None:
        """See that the streams with these files, and those that are defined, have queues.

        `bases`: where their files begin, by lane.
        """
        lane_ids = (bases.keys() | stream_lanes(self.entries)) - set(deleted)
        self.adopt(lane_ids - self.lanes.keys(), {"x-queue-type": "stream"})
        for lane_id in sorted(lane_ids):
            key = STREAM, str(lane_id)
            if key not in self.entries:
                self.entries[key] = pack_first(min(bases[lane_id]))
                self.actions.append(f"have lane {lane_id} be a stream again")

    def leave_out(self, key: Definition, why: str) -> None:
        """Leave a definition out; it is in the quarantine."""
        del self.entries[key]
        self.actions.append(f"leave the {entry_text(*key)} out: {why}")


def collect(directory: Directory) -> Mend:
    """What is left, without gaps."""
    mend = Mend({key: one for key, one in directory.definitions.items() if key != IDENTITY})
    lost = directory.ledger.damaged
    if lost:
        _name_sources(mend, directory)
    for key, why in directory.defined.undecodable.items():
        mend.leave_out(key, f"it does not decode ({why})")
    deleted = directory.ledger.deleted
    gone = {key: None for lane_id, key in mend.lanes.items() if lane_id in deleted}
    for key in gone:
        mend.leave_out(key, "the ledger says that it was deleted")
    _close_gaps(mend, lost=lost)
    if lost and not any(kind == "user" for kind, _ in mend.entries):
        _define_guest(mend)
    return mend


def _name_sources(mend: Mend, directory: Directory) -> None:
    """Say what comes from the catalog, and what can have been lost."""
    by_ledger = directory.ledger.file.definitions.entries
    for key, value in mend.entries.items():
        if by_ledger.get(key) != value:
            mend.actions.append(f"take the {entry_text(*key)} over from the catalog")
    for key in directory.catalog_facts.damaged:
        if key not in by_ledger:
            mend.notes.append(f"the {entry_text(*key)} is lost: it is damaged in the catalog, too")
    mend.notes.append(
        "definitions may be lost that were made, and may come back that were deleted, where the "
        "ledger cannot be read"
    )


def _close_gaps(mend: Mend, *, lost: bool) -> None:
    """What leads nowhere goes; vhosts that are named but not there are made.

    `lost`: some vhosts may be; else a directory without any is nobody's.
    """
    for key, kind, _ in list(loose_ends(mend.entries)):
        if kind != "vhost" and key in mend.entries:
            mend.leave_out(key, f"there is no such {kind}")
    if not (lost or any(kind == "vhost" for kind, _ in mend.entries)):
        return
    ends = loose_ends(mend.entries)
    for vhost in {_VHOST: None, **{name: None for _, kind, name in ends if kind == "vhost"}}:
        name = json.dumps((vhost,))
        if ("vhost", name) not in mend.entries:
            mend.entries["vhost", name] = msgpack.packb({})
            mend.actions.append(f"define the {entry_text('vhost', name)} again")


def _define_guest(mend: Mend) -> None:
    """As a first start does it: without a user nobody could get at the messages."""
    made: list[Defined] = []
    definitions = Definitions(Catalog(mend.entries, made.extend))
    permissions = {vhost: (".*", ".*", ".*") for vhost, _ in definitions.vhosts()}
    password = hash_password(b"guest")
    definitions.save_user(User("guest", password, ("administrator",), permissions))
    for kind, name, value in made:
        assert value is not None
        mend.entries[kind, name] = value
    mend.actions.append("define the user 'guest' again, as a first start does it")
