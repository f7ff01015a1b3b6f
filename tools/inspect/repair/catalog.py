"""What is left of a catalog that is damaged, and a new one made of it.

Two sources, in this order: the entries that LMDB still reads and whose hashes are right, and the
messages themselves, which name lanes. A queue whose definition is lost gets one again, so that no
message is out of reach.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from qlog.server.amqp.errors import AMQPError
from qlog.server.amqp.values import decode_table, encode_table
from qlog.server.broker.access.users import User, hash_password
from qlog.server.broker.definitions import Definitions
from qlog.storage.bytes.datadir import Identity
from qlog.storage.lmdb.catalog import Catalog, unpack_row
from qlog.storage.lmdb.environment import check_environment
from qlog.storage.lmdb.file_check import Implausible
from qlog.storage.settings import StoreSettings
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.environment import SoundEntries, Unreadable, entry_text, read

RECOVERED = "qlog.recovered."  # and the lane: the name of a queue whose own name is lost
_VHOST = "/"

Entry = tuple[str, str]  # kind, name


@dataclass(slots=True)
class CatalogMend:
    """The new catalog: `entries` are all of it but for the identity."""

    entries: dict[Entry, bytes] = field(default_factory=dict)
    identity: Identity | None = None  # None: a new one has to be made
    damaged: list[tuple[bytes, bytes]] = field(default_factory=list)  # keys and rows, as they are
    actions: list[str] = field(default_factory=list)
    unusable: str = ""  # why the environment as a whole cannot be used

    @property
    def needed(self) -> bool:
        """Anything is to be done."""
        return bool(self.actions)

    @property
    def lanes(self) -> dict[int, Entry]:
        """Who owns which lane."""
        return {
            _definition(value)["lane"]: entry
            for entry, value in self.entries.items()
            if entry[0] == "queue"
        }

    @property
    def lacks_user(self) -> bool:
        """There were some, and none is left: nobody could get at the messages."""
        lost = self.unusable or any(key.startswith(b"user\0") for key, _ in self.damaged)
        return bool(lost) and not any(kind == "user" for kind, _ in self.entries)


def collect(directory: Directory) -> CatalogMend:
    """What the catalog has left."""
    mend = CatalogMend()
    path = directory.paths.catalog
    rows: list[tuple[bytes, bytes]] = []
    try:
        check_environment(path)
        rows = read(path, _raw_rows)
        if not (path / "data.mdb").exists():
            mend.unusable = "it is missing"
    except (Implausible, Unreadable) as error:
        mend.unusable = str(error)
        try:
            rows = read(path, _raw_rows)
        except Unreadable:
            pass
    for key, row in rows:
        entry = unpack_row(key, row)
        if entry.value is None:
            mend.damaged.append((key, row))
        elif entry.kind == "storage":
            mend.identity = Identity.unpack(entry.value)
        else:
            mend.entries[entry.kind, entry.name] = entry.value
    if mend.unusable:
        mend.actions.append(f"make a new catalog: the one there cannot be used ({mend.unusable})")
        for kind, name in mend.entries:
            mend.actions.append(f"take over the {entry_text(kind, name)}")
    for key, row in mend.damaged:
        entry = unpack_row(key, row)
        mend.actions.append(
            f"move out the damaged definition of {entry_text(entry.kind, entry.name)}"
        )
    return mend


def give_back(
    mend: CatalogMend, orphans: Collection[int], identity: Identity, *, lane_end: int
) -> None:
    """Give each lane without a queue one, and leave nothing that names what is not there.

    `orphans`: lanes with messages that wait. `identity`: what the new one has at least.
    """
    for lane_id in sorted(orphans):
        name, value = _queue_for(mend, lane_id)
        mend.entries["queue", name] = value
        mend.actions.append(f"define the {entry_text('queue', name)} again, for lane {lane_id}")
    _close_gaps(mend)
    if mend.lacks_user:
        mend.actions.append("define the user 'guest' again, as a first start does it")
    if mend.identity is None:
        mend.actions.append(
            f"make the directory's identity again: {identity.uuid.hex()}, epoch {identity.epoch}"
        )
        mend.identity = identity
    if mend.identity.epoch < identity.epoch:
        mend.actions.append(
            f"raise the catalog's epoch to {identity.epoch}: it is an older copy, and what it does "
            "not know is not defined"
        )
    mend.identity.lane_ids_reserved = max(mend.identity.lane_ids_reserved, lane_end)
    mend.identity.epoch = max(mend.identity.epoch, identity.epoch)


def renew_lanes(mend: CatalogMend, lane_ids: Iterable[int], first_id: int) -> int:
    """Give the queues of these lanes new ones, from `first_id` on; behind the last.

    They were deleted after this catalog was copied: what the log still has of them must not come
    back, and their numbers are not to be used again.
    """
    owners = mend.lanes
    for lane_id in sorted(lane_ids):
        entry = owners[lane_id]
        mend.entries[entry] = msgpack.packb({**_definition(mend.entries[entry]), "lane": first_id})
        mend.actions.append(f"define the {entry_text(*entry)} anew, and empty: it was deleted")
        first_id += 1
    return first_id


def write(mend: CatalogMend, directory: Path) -> None:
    """A new environment in a new directory, synced."""
    assert mend.identity is not None
    catalog = Catalog(directory, map_bytes=StoreSettings().catalog_map_bytes)
    try:
        with catalog.transaction():
            for (kind, name), value in mend.entries.items():
                catalog.put(kind, name, value)
            mend.identity.save(catalog)
            if mend.lacks_user:
                _save_default_user(catalog)
    finally:
        catalog.close()


def _save_default_user(catalog: Catalog) -> None:
    """As a first start does it: without a user nobody could get at the messages."""
    definitions = Definitions(catalog)
    permissions = {vhost: (".*", ".*", ".*") for vhost in definitions.vhosts()}
    password = hash_password(b"guest")
    definitions.save_user(User("guest", password, ("administrator",), permissions))


def _raw_rows(directory: Path, lock: bool) -> list[tuple[bytes, bytes]]:
    catalog = SoundEntries(directory, lock)
    try:
        return catalog.raw_rows()
    finally:
        catalog.close()


def _queue_for(mend: CatalogMend, lane_id: int) -> tuple[str, bytes]:
    """A name and a definition for a lane: its own, if a damaged entry still has both."""
    plain = msgpack.packb({"lane": lane_id, "auto_delete": False, "arguments": encode_table({})})
    for key, row in mend.damaged:
        kind, _, key_name = key.partition(b"\0")
        try:
            name, value = msgpack.unpackb(row[8:])
            definition = _definition(value)
            # The name stands there twice: where both agree, it is not what was damaged.
            ours = kind == b"queue" and name.encode() == key_name and definition["lane"] == lane_id
            vhost, queue = json.loads(name)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if ours:
            return json.dumps((vhost, queue)), value if _is_sound(definition) else plain
    return json.dumps((_VHOST, f"{RECOVERED}{lane_id}")), plain


def _is_sound(definition: dict[str, Any]) -> bool:
    """Whether a queue's definition can be used, as far as its form says it."""
    try:
        decode_table(definition["arguments"])
    except (KeyError, TypeError, AMQPError):
        return False
    return isinstance(definition.get("auto_delete"), bool)


def _definition(value: bytes) -> dict[str, Any]:
    definition: dict[str, Any] = msgpack.unpackb(value)
    return definition


def _close_gaps(mend: CatalogMend) -> None:
    """Vhosts that are named but not there are made; bindings that lead nowhere go."""
    vhosts = {name for kind, name in mend.entries if kind == "vhost"}
    named: dict[str, None] = {}
    known = set()
    for kind, name in mend.entries:
        if kind in ("exchange", "queue"):
            vhost, one = json.loads(name)
            named[vhost] = None
            known.add((vhost, kind, one))
    for kind, name in list(mend.entries):
        if kind != "binding":
            continue
        vhost, source, destination_kind, destination, *_ = json.loads(name)
        for end in ((vhost, "exchange", source), (vhost, destination_kind, destination)):
            if end not in known and not (end[1] == "exchange" and end[2].startswith("amq.")):
                mend.actions.append(
                    f"move out the {entry_text(kind, name)}: there is no such {end[1]}"
                )
                del mend.entries[kind, name]
                break
        else:
            named[vhost] = None
    if mend.unusable or vhosts:
        named[_VHOST] = None
    for vhost in named:
        name = json.dumps((vhost,))
        if name not in vhosts and (mend.actions or vhosts):
            mend.entries["vhost", name] = msgpack.packb({})
            mend.actions.append(f"define the {entry_text('vhost', name)} again")
