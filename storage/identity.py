"""Which directory this is: its identity is one of its own definitions.

The uuid and the epoch also stand in the header of every file, so that the files alone tell them.
"""

from dataclasses import dataclass, replace

import msgpack

from qlog.storage.bytes.batch import FORMAT_VERSION
from qlog.storage.bytes.datadir import check_format
from qlog.storage.catalog import Catalog, Definition

IDENTITY: Definition = ("storage", "directory")


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a directory. `epoch` is the number of starts, the present one included."""

    uuid: bytes
    epoch: int
    lane_ids_reserved: int  # no lane has this id or a higher one
    version: int = FORMAT_VERSION

    def pack(self) -> bytes:
        """The identity as the value of a definition."""
        row = [self.version, self.uuid, self.epoch, self.lane_ids_reserved]
        packed: bytes = msgpack.packb(row)
        return packed

    @classmethod
    def unpack(cls, value: bytes) -> "Identity":
        """From the value of a definition. Raises OtherFormat."""
        version, *rest = msgpack.unpackb(value)
        check_format("the data directory", version)
        uuid, epoch, lane_ids_reserved = rest[:3]
        return cls(uuid, epoch, lane_ids_reserved)

    def reserve(self, catalog: Catalog, lane_ids_reserved: int) -> "Identity":
        """The same identity with more ids of lanes reserved. It is put into the catalog."""
        identity = replace(self, lane_ids_reserved=lane_ids_reserved)
        catalog.put(*IDENTITY, identity.pack())
        return identity
