"""What can be set about the storage engine; units are in the names."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """The defaults are right for nearly everyone."""

    segment_bytes_max: int = 64 << 20  # the unit in which disk space is given back
    ledger_bytes_max: int = 16 << 20
    batch_bytes_max: int = 4 << 20
    batch_records_max: int = 4096
    cache_bytes_max: int = 32 << 20  # bodies kept in memory after they are on disk
    pending_bytes_max: int = 8 << 20  # appended and not on disk: then the store is congested
    checkpoint_interval_s: float = 1.0
    checkpoint_operations: int = 100_000
    checkpoint_bytes: int = 64 << 20
    ack_flush_s: float = 0.005  # acks younger than this may come back after kill -9
    ack_flush_count: int = 1024
    ledger_sync_s: float = 1.0  # and acks younger than this after a power loss
    index_map_bytes: int = 64 << 30  # address space, not disk: 160 MB are 10 million messages
    index_reserve_bytes: int = 16 << 20  # of the disk, for when it is full
    catalog_map_bytes: int = 1 << 30
    catalog_reserve_bytes: int = 1 << 20
    compact_share_max: float = 0.3  # sealed segments with less alive than this are compacted,
    compact_age_s: float = 60.0  # when they are older than this,
    compact_bytes_per_s: int = 32 << 20  # and at most so many bytes of them in a second
