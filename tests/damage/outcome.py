"""What a start makes of a directory, tried in a process of its own: it must never crash."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from qlog.server.broker.broker import Broker
from qlog.server.broker.settings import BrokerSettings
from qlog.storage.errors import CorruptLog, StorageError
from tests.damage.directories import Place, opened

T = TypeVar("T")

_SECONDS_MAX = 60


class Crash(Exception):
    """The process ended by a signal, or with a traceback: `str()` has it."""


@dataclass(slots=True)
class Outcome:
    """`refused` is the error's line, else it started. `unread` are errors of reading by place."""

    refused: str = ""
    queues: dict[str, int] = field(default_factory=dict)  # name -> lane
    messages: dict[Place, bytes] = field(default_factory=dict)
    unread: dict[Place, str] = field(default_factory=dict)
    redelivered: set[Place] = field(default_factory=set)
    index_rebuilt: str = ""
    catalog_rebuilt: str = ""
    log_bytes_cut: int = 0
    lsn: int = 0
    next_qseqs: dict[int, int] = field(default_factory=dict)


def start(directory: Path, qseq_end: int) -> Outcome:
    """Start a broker's core on the directory, read every message of it, and stop. Raises Crash."""
    return in_child(lambda: _start(directory, qseq_end))


def _start(directory: Path, qseq_end: int) -> Outcome:
    outcome = Outcome()
    try:
        with opened(directory) as store:
            broker = Broker(store, BrokerSettings())
            outcome.index_rebuilt = store.report.index_rebuilt
            outcome.catalog_rebuilt = store.report.catalog_rebuilt
            outcome.log_bytes_cut = store.report.log_bytes_cut
            outcome.lsn = store.lsn
            for vhost in broker.vhosts.values():
                for queue in vhost.queues.values():
                    lane = queue.lane
                    outcome.queues[queue.name] = lane.id
                    outcome.next_qseqs[lane.id] = lane.next_qseq
                    for qseq in range(qseq_end):
                        try:
                            part = lane.read(qseq, 1, 1 << 20)
                        except CorruptLog as error:
                            outcome.unread[lane.id, qseq] = str(error)
                            continue
                        if part is None:
                            break
                        place = (lane.id, part.first_qseq)
                        if part.first_qseq == qseq:
                            outcome.messages[place] = part.bodies[0]
                            if qseq < lane.delivered:
                                outcome.redelivered.add(place)
    except StorageError as error:
        outcome.refused = str(error)
    return outcome


def in_child(work: Callable[[], T]) -> T:
    """What `work` returns, in a forked process. Raises Crash."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_SECONDS_MAX)
            try:
                answer: object = (True, work())
            except BaseException:  # noqa: BLE001 - the parent tells
                answer = (False, traceback.format_exc())
            with os.fdopen(into, "wb") as stream:
                pickle.dump(answer, stream)
            status = 0
        finally:
            os._exit(status)
    os.close(into)
    with os.fdopen(out, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(child, 0)
    if not data:
        raise Crash(f"ended by signal {os.WTERMSIG(status)}")
    good, found = pickle.loads(data)
    if not good:
        raise Crash(found)
    result: T = found
    return result
