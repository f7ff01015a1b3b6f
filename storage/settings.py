"""The settings of the storage engine. The defaults are right for nearly everyone.

A field with a `Meta` is a setting for operators. Its help, unit and range stand here and nowhere
else: `qlog serve --help`, the names in the environment, and docs/operations.md are made of them. A
field without a `Meta` is for tests and measurements.
"""

from typing import Annotated

from msgspec import Meta, Struct


class StoreSettings(Struct, frozen=True, kw_only=True):
    """How messages are kept, and for how long changes may stay in memory alone."""

    ack_flush_s: Annotated[
        float,
        Meta(
            ge=0.001,
            le=1,
            description="Acknowledgements younger than this may come back after a kill.",
            extra={"unit": "s"},
        ),
    ] = 0.005
    ledger_sync_s: Annotated[
        float,
        Meta(
            ge=0.001,
            le=60,
            description="Acknowledgements younger than this may come back after a power loss.",
            extra={"unit": "s"},
        ),
    ] = 1.0
    checkpoint_interval_s: Annotated[
        float,
        Meta(
            ge=0.01,
            le=600,
            description="How often the index catches up; a start after a kill replays what came since.",
            extra={"unit": "s"},
        ),
    ] = 1.0
    commit_inline: Annotated[
        bool,
        Meta(
            description="Whether the loop thread makes small commits itself, where syncs take less than "
            "a millisecond. Confirms come sooner, but one slow sync holds up all clients.",
        ),
    ] = True
    segment_bytes_max: Annotated[
        int,
        Meta(
            ge=64 << 10,
            le=(2 << 30) - 1,
            description="Size of a file of the log. Disk space is given back in whole files.",
            extra={"unit": "bytes"},
        ),
    ] = 64 << 20
    ledger_bytes_max: Annotated[
        int,
        Meta(
            ge=64 << 10,
            le=(2 << 30) - 1,
            description="Size of a file of acknowledgements and definitions. The space of the next file "
            "is reserved, so that consumers go on when the disk is full.",
            extra={"unit": "bytes"},
        ),
    ] = 16 << 20
    cache_bytes_max: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 40,
            description="Message bodies kept in memory after they are on disk.",
            extra={"unit": "bytes"},
        ),
    ] = 32 << 20
    compact_share_max: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Files of the log of which less than this share is alive are rewritten "
            "after compact_age_s; 0: none are. While the log takes more than twice what is alive, "
            "files of which less than half is alive are rewritten after a tenth of that time.",
        ),
    ] = 0.3
    compact_age_s: Annotated[
        float,
        Meta(
            ge=0,
            le=10**9,
            description="Files of the log younger than this are not rewritten.",
            extra={"unit": "s"},
        ),
    ] = 60.0
    compact_bytes_per_s: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 40,
            description="The log is rewritten at this speed at most.",
            extra={"unit": "bytes/s"},
        ),
    ] = 32 << 20

    batch_bytes_max: int = 4 << 20
    batch_records_max: int = 4096
    pending_bytes_max: int = 8 << 20  # appended and not on disk: then the store is congested
    checkpoint_operations: int = 100_000
    checkpoint_bytes: int = 64 << 20
    ack_flush_count: int = 1024
    index_map_bytes: int = 64 << 30  # address space, not disk: 160 MB are 10 million messages
    index_reserve_bytes: int = 16 << 20  # of the disk, for when it is full
    catalog_map_bytes: int = 1 << 30
    catalog_reserve_bytes: int = 1 << 20
    # Messages of a stream are moved to its segments when so many wait, or when they have waited so
    # long: each move costs a sync, and what was not moved keeps a segment of the log.
    stream_move_bytes: int = 1 << 20
    stream_move_count: int = 8192
    stream_move_s: float = 1.0
    stream_segment_bytes: int = 64 << 20
    stream_batch_bytes: int = 256 << 10  # what one who reads gets at once
