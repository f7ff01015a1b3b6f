"""`qlog serve` with everything small: python -m tests.images.serve --data-dir DIR --port 0

The real command, but that files are full after a few dozen messages: within seconds segments roll,
are sealed, compacted and given back, the ledger rolls, checkpoints are written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import trio
from msgspec import structs

from qlog.server import config
from qlog.server.config import HttpSettings, Settings
from qlog.storage.settings import StoreSettings
from qlog.storage.space import compactor
from qlog.storage.store import Store
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
    stream_move_count=20,
    stream_move_s=0.1,
    stream_segment_bytes=32 * 1024,
    stream_batch_bytes=8 * 1024,
)

# In the environment: storage does its work on the loop's thread, job by job. The n-th system call is
# then the same in every run, which strace, that counts by thread, could not tell otherwise.
ONE_THREAD = "QLOG_TEST_ONE_THREAD"


class InlineWorker:
    """Runs each job at once, on the caller's thread."""

    def __init__(self, name: str, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._results: list[object] = []

    def submit(self, job: Callable[[], object]) -> None:
        """Run it; what it raises is its result, as with a thread."""
        try:
            result = job()
        except BaseException as error:  # noqa: BLE001 - handed over
            result = error
        self._results.append(result)
        self._notify()

    def take(self) -> list[object]:
        """The results since the last call."""
        results, self._results = self._results, []
        return results

    def wait(self, timeout_s: float | None = None) -> bool:
        """Nothing is ever under way."""
        return bool(self._results)

    def stop(self) -> None:
        """Nothing to end."""


async def at_once(work: Callable[..., object], *arguments: object) -> object:
    """Instead of trio's threads."""
    return work(*arguments)


def load_small(load: Callable[..., Settings] = config.load, **given: object) -> Settings:
    """The settings, with the storage's own smaller than an operator may set them, and no HTTP."""
    http = HttpSettings(management_port=0, management_tls_port=0, metrics_port=0)
    return structs.replace(load(**given), storage=SMALL, http=http)


if __name__ == "__main__":
    if os.environ.get(ONE_THREAD):
        Store.open.__func__.__kwdefaults__["new_worker"] = InlineWorker  # type: ignore[attr-defined]
        trio.to_thread.run_sync = at_once  # type: ignore[assignment]
        trio.from_thread.check_cancelled = lambda: None
    config.load = load_small
    compactor._LOOK_S = COMPACT_LOOK_S
    app(["serve", *sys.argv[1:]])
