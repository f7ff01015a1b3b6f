"""`qlog inspect rebuild-index`: make the index anew from log and ledger, while no broker runs.

This is a start and a stop of the storage with an index in doubt: a broker does the same by itself,
with the same code. A directory that a broker would refuse is refused here, too, with status 1 when
messages or settlements in it are damaged.
"""

import sys
import time

import typer

from qlog.server.amqp.envelope import Envelope
from qlog.storage.bytes.datadir import Paths, mark_doubt, prepare
from qlog.storage.bytes.disk import OSDisk
from qlog.storage.errors import CorruptLog
from qlog.storage.start.examine import Examination
from qlog.storage.start.recovery import INDEX_PARTS, REBUILD_POINTERS
from qlog.storage.store import Store
from qlog.tools.inspect.command import DATA_DIR_DEFAULT, AsJson, DataDir, errors_told, finish, stop
from qlog.tools.inspect.rows import Damage, Report, progress

_POINTER_BYTES = 16


def rebuild_index(data_dir: DataDir = DATA_DIR_DEFAULT, as_json: AsJson = False) -> None:
    """Make the index anew from log and ledger. The broker must not run.

    The index says where the messages are. Everything in it is derived, so nothing is lost by this
    while log and ledger are sound; when they are not, use repair. A broker does the same when it
    starts and finds the index missing or wrong.
    """
    paths = Paths(data_dir.absolute())
    if not (paths.ledger.is_dir() or paths.log.is_dir()):
        stop(f"{data_dir} is not a data directory; name the broker's with --data-dir")
    report = Report("rebuild-index", data_dir=str(data_dir))
    began_s = time.monotonic()
    messages = size = None
    try:
        with errors_told(of_damage=False):
            messages = _rebuild(paths)
            size = (paths.index / "data.mdb").stat().st_size
    except CorruptLog as error:
        if not as_json:
            print(f"qlog: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
        report.damage = [Damage(".", str(error))]
    duration_s = time.monotonic() - began_s
    if messages is not None:
        report.summary = (
            f"the index of {data_dir} was made anew from {messages:,} messages in "
            f"{duration_s:.1f} s ({size:,} bytes)"
        )
    report.content = {"messages": messages, "index_bytes": size, "duration_s": round(duration_s, 3)}
    finish(report, as_json=as_json)


def _rebuild(paths: Paths) -> int:
    """From how many messages. Raises StorageError, OSError."""
    disk = OSDisk()
    lock = prepare(disk, paths)  # a broker's index is not to be doubted while it runs
    try:
        mark_doubt(disk, paths)
    finally:
        disk.close(lock)
    examination = Examination(paths.root)
    trailers = (examination.segment(one).trailer for one in examination.segment_ids())
    # Only roughly known: a message that went to several queues has several pointers.
    total = sum(_POINTER_BYTES * trailer.record_count for trailer in trailers if trailer)
    with progress("rebuilding", total) as advance:

        def told(what: str, count: int) -> None:
            if what == INDEX_PARTS:
                advance(_POINTER_BYTES * REBUILD_POINTERS)

        store = Store.open(paths.root, decode=Envelope.unpack, notify=lambda: None, progress=told)
        store.close()
    if store.failure is not None:
        stop(f"the index could not be written: {store.failure}")
    return store.report.records_replayed
