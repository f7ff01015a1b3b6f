"""`qlog serve` with everything small: python -m tests.images.serve --data-dir DIR --port 0

The real command, but that files are full after a few dozen messages: within seconds segments roll,
are sealed, compacted and given back, the ledger rolls, checkpoints are written.
"""

from __future__ import annotations

import sys

from qlog.server.config import Settings
from qlog.storage import compactor
from qlog.storage.settings import StoreSettings
from qlog.tools.cli import app

LEDGER_SYNC_S = 0.1
COMPACT_LOOK_S = 0.2
SMALL = StoreSettings(
    segment_bytes_max=128 * 1024,
    ledger_bytes_max=2 * 1024,
    batch_bytes_max=64 * 1024,
    cache_bytes_max=64 * 1024,
    checkpoint_interval_s=0.2,
    ledger_sync_s=LEDGER_SYNC_S,
    compact_age_s=0.3,
)

if __name__ == "__main__":
    Settings.store_settings = lambda self: SMALL  # type: ignore[method-assign]
    compactor._LOOK_S = COMPACT_LOOK_S
    app(["serve", *sys.argv[1:]])
