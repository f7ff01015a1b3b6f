"""A backup of a running broker: what it has, and that nobody waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlog.server.amqp import spec
from qlog.server.broker.features.backups import BYTES_PER_S_MIN, LOOK_S
from qlog.server.broker.outcome import Outcome
from qlog.storage.bytes.disk import OSDisk
from qlog.storage.bytes.manifest import MANIFEST, BackupError
from qlog.storage.space.backup import Done
from qlog.storage.start.restore import restore
from tests.server.broker.support import Bench, Peer, make


def go_on(bench: Bench, outcome: Outcome[Done]) -> None:
    """Turns, and time, until the backup is done."""
    for _ in range(100):
        if outcome.done:
            return
        bench.disk()
        bench.pass_ms(int(LOOK_S * 1000) + 1)
    raise AssertionError("no end")


def bodies(bench: Bench, queue: str) -> list[bytes]:
    """What waits in a queue."""
    peer = Peer(bench)
    found = []
    for _ in range(bench.broker.vhosts["/"].queues[queue].ready):
        peer.send(1, make(spec.BasicGet, queue=queue, no_ack=True))
        found += [said.body for said in peer.take() if said.body is not None]
    return found


def test_a_backup_has_what_was_confirmed_before_it(bench: Bench, tmp_path: Path) -> None:
    peer = Peer(bench)
    peer.declare("q")
    peer.publish(1, "q", b"one", b"two")
    bench.disk()
    outcome = bench.broker.operations.back_up(str(tmp_path / "backup"), 0)
    peer.publish(1, "q", b"perhaps")  # under way at the same time
    go_on(bench, outcome)
    peer.publish(1, "q", b"later")
    peer.declare("later")
    bench.disk()
    done = outcome.result()
    assert done.directory == tmp_path / "backup" and done.files == done.files_copied > 0
    restore(OSDisk(), tmp_path / "backup", tmp_path / "new")
    other = Bench(tmp_path / "new")
    try:
        assert set(other.broker.vhosts["/"].queues) == {"q"}
        assert bodies(other, "q")[:2] == [b"one", b"two"]
    finally:
        other.close()


def test_one_at_a_time(bench: Bench, tmp_path: Path) -> None:
    operations = bench.broker.operations
    assert operations.last_backup is None
    for directory, bytes_per_s, said in (
        ("relative", 0, "has to be an absolute path"),
        (str(tmp_path / "b"), BYTES_PER_S_MIN - 1, "bytes_per_s must be 0 or at least"),
    ):
        with pytest.raises(BackupError, match=said):
            operations.back_up(directory, bytes_per_s)
    first = operations.back_up(str(tmp_path / "b"), 0)
    with pytest.raises(BackupError, match="a backup is under way"):
        operations.back_up(str(tmp_path / "c"), 0)
    go_on(bench, first)
    second = operations.back_up(str(tmp_path / "c"), BYTES_PER_S_MIN)
    go_on(bench, second)
    assert second.result().files == first.result().files
    assert operations.last_backup == (tmp_path / "c", second)


def test_what_goes_wrong_is_told(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    operations = bench.broker.operations
    for directory, kind, said in (
        (tmp_path / "file", BackupError, "file.*: (Not a directory|File exists)"),
        (tmp_path / "full", BackupError, "neither empty nor a backup"),
        (tmp_path / "data" / "b", BackupError, "cannot be in the data directory"),
    ):
        outcome = operations.back_up(str(directory), 0)
        go_on(bench, outcome)
        with pytest.raises(kind, match=said):
            outcome.result()
    go_on(bench, operations.back_up(str(tmp_path / "b"), 0))
    assert (tmp_path / "b" / MANIFEST).exists()


def test_a_broker_that_stops_breaks_it_off(bench: Bench, tmp_path: Path) -> None:
    bench.broker.operations.back_up(str(tmp_path / "b"), 0)
    bench.broker.services.backups.close()
    bench.pass_ms(1000)
    assert not (tmp_path / "b" / MANIFEST).exists()
