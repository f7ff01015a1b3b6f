"""`qlog inspect rebuild-index`: make the index anew from log and ledger, while no broker runs.

It is a start and a stop of the storage that finds its index in doubt: recovery's own code, and what
a broker does by itself in that case. A directory that a broker would refuse is refused here too.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from qlog.tools.inspect.options import DATA_DIR_DEFAULT, DataDir, stop

if TYPE_CHECKING:
    from qlog.storage.datadir import Paths

_POINTER_BYTES = 16
_LOOK_S = 0.2


def rebuild_index(data_dir: DataDir = DATA_DIR_DEFAULT) -> None:
    """Make the index anew from log and ledger. The broker must not run.

    The index says where the messages are. Everything in it is derived: nothing can be lost by this.
    A broker does the same when it starts and finds the index missing or wrong.
    """
    from qlog.server.amqp.envelope import Envelope
    from qlog.storage.datadir import Paths, mark_doubt, prepare
    from qlog.storage.disk import OSDisk
    from qlog.storage.errors import StorageError
    from qlog.storage.store import Store

    paths = Paths(data_dir.absolute())
    if not paths.catalog.is_dir():
        stop(f"{data_dir} is not a data directory; name the broker's with --data-dir")
    disk = OSDisk()
    began_s = time.monotonic()
    try:
        lock = prepare(disk, paths)  # a broker's index is not to be doubted while it runs
        try:
            mark_doubt(disk, paths)
        finally:
            disk.close(lock)
        with _shown(paths):
            store = Store.open(paths.root, decode=Envelope.unpack, notify=lambda: None)
            replayed = store.report.records_replayed
            store.close()
    except StorageError as error:
        print(f"qlog: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    if store.failure is not None:
        stop(f"the index could not be written: {store.failure}")
    size = (paths.index / "data.mdb").stat().st_size
    print(
        f"the index of {data_dir} was made anew from {replayed:,} messages in "
        f"{time.monotonic() - began_s:.1f} s ({size:,} bytes)"
    )


@contextmanager
def _shown(paths: Paths) -> Iterator[None]:
    """A bar that follows the size of the new index, which is only roughly known before."""
    from qlog.storage.examine import Examination
    from qlog.tools.inspect.report import progress

    examination = Examination(paths.root)
    trailers = (examination.segment(one).trailer for one in examination.segment_ids())
    total = sum(_POINTER_BYTES * trailer.record_count for trailer in trailers if trailer)
    done = threading.Event()
    data = paths.index / "data.mdb"

    with progress("rebuilding", total) as bar:

        def follow() -> None:
            shown = 0
            while not done.wait(_LOOK_S):
                size = data.stat().st_size if data.exists() else 0
                if shown < size <= total:
                    bar.advance(size - shown)
                    shown = size

        follower = threading.Thread(target=follow, name="qlog-progress")
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join()
