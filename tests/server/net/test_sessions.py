"""Sessions on real sockets: clients that are slow, silent, blocked or gone, and who else notices."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from msgspec import structs
from trio.testing import MockClock, wait_all_tasks_blocked

from qlog.server import config, resources
from qlog.server.amqp import spec
from qlog.server.amqp.frames import HEARTBEAT_FRAME
from qlog.server.app import RunningBroker, StorageFailed, open_broker
from qlog.server.broker.channels.sink import READ, Hold
from qlog.server.config import Settings
from qlog.server.net import outbox
from qlog.server.net.outbox import OUTBOX_BYTES_MAX
from qlog.server.net.session import RECEIVE_BYTES
from qlog.storage.bytes.disk import OSDisk
from qlog.storage.errors import SyncFailed
from tests.server.broker.support import make, message
from tests.server.net.support import (
    Gone,
    SocketPeer,
    connect,
    deadline,
    declare,
    session_of,
    until,
)

SHUTDOWN_S = 0.1  # clients that do not answer at the end are cut soon


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An empty directory, and any free port."""
    return config.of(
        data_dir=tmp_path / "data", port=0, disk_free_limit_bytes=1, shutdown_s=SHUTDOWN_S
    )


class SlowDisk(OSDisk):
    """Its syncs wait while it is told to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()

    def sync_data(self, file: int) -> None:
        assert self.go.wait(60)
        super().sync_data(file)


class PoorDisk(OSDisk):
    """Opens no file to be read while there are no descriptors."""

    def __init__(self) -> None:
        super().__init__()
        self.poor = False
        self.refused = 0

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        if self.poor and not write:
            self.refused += 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().open(path, write=write, create=create)


class LyingDisk(OSDisk):
    """Its syncs fail when told to."""

    broken = False

    def sync_data(self, file: int) -> None:
        if self.broken:
            raise SyncFailed("a sync failed: Input/output error; check the disk")
        super().sync_data(file)


# --- slow clients


async def test_client_that_never_reads_costs_its_outbox(settings: Settings) -> None:
    with deadline():
        async with open_broker(settings) as broker:
            slow, publisher = await connect(broker), await connect(broker)
            await declare(publisher, "q")
            consume = make(spec.BasicConsume, queue="q", no_ack=True)
            await slow.ask(1, consume, spec.BasicConsumeOk)
            for _ in range(30):
                await publisher.write(*[message(1, "q", b"x" * 100_000)] * 10)
            await declare(publisher, "other")  # an answer: all before was taken
            session = session_of(broker, slow)
            assert session._outbox.bytes < OUTBOX_BYTES_MAX + 2 * RECEIVE_BYTES
            queue = broker.broker.vhosts["/"].queues["q"]
            assert queue.ready > 100
            for _ in range(300):  # it is served as soon as it reads
                await slow.expect(spec.BasicDeliver)
            assert queue.ready == 0


async def test_client_is_not_read_while_its_answers_pile_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "OVERFULL_BYTES", 2 * OUTBOX_BYTES_MAX)
    with deadline():
        async with open_broker(settings) as broker, trio.open_nursery() as nursery:
            peer = await connect(broker)
            session = session_of(broker, peer)
            returned = message(1, "nowhere", b"x" * 50_000, mandatory=True)

            async def publish() -> None:
                for _ in range(500):
                    await peer.write(returned)
                written.set()

            written = trio.Event()
            nursery.start_soon(publish)
            await until(lambda: Hold.ANSWERS in session.why_not_read, "held back")
            assert session._outbox.bytes < 3 * OUTBOX_BYTES_MAX
            for _ in range(500):
                await peer.expect(spec.BasicReturn)
            await written.wait()
            await declare(peer, "q")
            assert session.why_not_read is READ


async def test_publisher_waits_for_the_disk_and_others_do_not(settings: Settings) -> None:
    disk = SlowDisk()
    count = 300
    with deadline():
        async with open_broker(settings, disk=disk) as broker, trio.open_nursery() as nursery:
            publisher, other = await connect(broker), await connect(broker)
            await declare(publisher, "q")
            select = make(spec.ConfirmSelect)
            await publisher.ask(1, select, spec.ConfirmSelectOk)
            disk.go.clear()
            try:

                async def publish() -> None:
                    for _ in range(count):
                        await publisher.write(message(1, "q", b"x" * 100_000))

                nursery.start_soon(publish)
                session = session_of(broker, publisher)
                await until(lambda: Hold.DISK in session.why_not_read, "held back")
                pending = broker.broker.store.settings.pending_bytes_max
                taken = broker.broker.vhosts["/"].queues["q"].lane.next_qseq * 100_000
                assert pending / 2 < taken < pending + 8 * RECEIVE_BYTES
                got = await other.ask(1, make(spec.BasicGet, queue="q"), spec.BasicGetOk)
                assert not got.redelivered  # consumers go on
            finally:
                disk.go.set()
            confirmed = 0
            while confirmed < count:
                confirmed = (await publisher.expect(spec.BasicAck)).delivery_tag
            assert confirmed == count and session.why_not_read is READ


async def test_sockets_are_given_back(settings: Settings) -> None:
    with deadline():
        async with open_broker(settings) as broker:
            await (await connect(broker)).stream.aclose()
            await until(lambda: not broker.broker.clients, "the client gone")
            before = len(os.listdir("/proc/self/fd"))
            for number in range(30):
                peer = await connect(broker)
                if number % 3 == 0:
                    await peer.ask(0, spec.ConnectionClose(200, "", 0, 0), spec.ConnectionCloseOk)
                elif number % 3 == 1:
                    await peer.write(b"no frame at all")
                await peer.stream.aclose()
            await until(lambda: not broker.broker.clients, "all clients gone")
            assert len(os.listdir("/proc/self/fd")) <= before


async def test_unexpected_error_ends_one_session_only(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with deadline():
        async with open_broker(settings) as broker:
            victim, other = await connect(broker), await connect(broker)
            session = session_of(broker, victim)
            monkeypatch.setattr(session._core, "receive", lambda data: 1 // 0)
            with caplog.at_level(logging.ERROR):
                await victim.write(HEARTBEAT_FRAME)
                await victim.at_end()
            assert "ZeroDivisionError" in caplog.text
            await declare(other, "q")


# --- time, on a clock of the test's own


async def pass_time(clock: MockClock, seconds: int) -> None:
    """Second by second, with all that is due in each."""
    for _ in range(seconds):
        clock.jump(1)
        await wait_all_tasks_blocked(0.005)


async def test_heartbeats_are_sent_at_half_the_interval(
    settings: Settings, mock_clock: MockClock
) -> None:
    async with open_broker(settings) as broker:
        peer = await connect(broker, heartbeat_s=10)
        await pass_time(mock_clock, 6)
        assert await peer.next() is None
        await pass_time(mock_clock, 6)
        assert await peer.next() is None
        mock_clock.rate = 5


async def test_silent_client_is_dropped_after_two_intervals(
    settings: Settings, mock_clock: MockClock
) -> None:
    async with open_broker(settings) as broker:
        silent, alive = await connect(broker, heartbeat_s=10), await connect(broker, heartbeat_s=10)
        for _ in range(3):
            await pass_time(mock_clock, 7)
            await alive.write(HEARTBEAT_FRAME)
            await wait_all_tasks_blocked(0.005)
        assert session_of(broker, alive) and len(broker.broker.clients) == 1
        await silent.at_end()
        mock_clock.rate = 5


async def test_half_a_handshake_is_dropped(settings: Settings, mock_clock: MockClock) -> None:
    async with open_broker(settings) as broker:
        peers = [SocketPeer(await trio.open_tcp_stream("127.0.0.1", broker.port)) for _ in range(2)]
        await peers[0].write(b"AMQP")
        await wait_all_tasks_blocked(0.005)
        await pass_time(mock_clock, 9)
        assert len(broker.broker.clients) == 2
        await pass_time(mock_clock, 3)
        assert not broker.broker.clients
        for peer in peers:
            await peer.at_end()
        mock_clock.rate = 5


async def test_blocked_publisher_is_not_missed(
    settings: Settings, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(settings) as broker:
        peer = await connect(broker, heartbeat_s=10)
        await declare(peer, "q")
        monkeypatch.setattr(resources, "_resident_bytes", lambda: 1 << 60)
        await pass_time(mock_clock, 1)
        await peer.write(message(1, "q", b"first"))
        assert (await peer.expect(spec.ConnectionBlocked)).reason == "low on memory"
        await peer.write(message(1, "q", b"second"), HEARTBEAT_FRAME)
        await pass_time(mock_clock, 60)
        queue = broker.broker.vhosts["/"].queues["q"]
        assert queue.ready == 0  # it is not read
        monkeypatch.setattr(resources, "_resident_bytes", lambda: 0)
        await pass_time(mock_clock, 1)
        await peer.expect(spec.ConnectionUnblocked)
        await declare(peer, "other")
        assert queue.ready == 2
        mock_clock.rate = 5


async def test_low_disk_blocks_and_lets_go(
    settings: Settings, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(settings) as broker:
        peer, consumer = await connect(broker), await connect(broker)
        await declare(peer, "q")
        consume = make(spec.BasicConsume, queue="q")
        await consumer.ask(1, consume, spec.BasicConsumeOk)

        await peer.write(message(1, "q", b"a"))
        await declare(peer, "q")

        def gone(path: Path) -> None:
            raise FileNotFoundError(path)

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", gone)
            await pass_time(mock_clock, 1)
            await peer.write(message(1, "q", b"b"))
            assert (await peer.expect(spec.ConnectionBlocked)).reason == "low on disk"
            await consumer.expect(spec.BasicDeliver)  # from before
            await consumer.send(1, spec.BasicAck(1, False))
            await consumer.ask(1, make(spec.BasicGet, queue="q"), spec.BasicGetEmpty)
        await pass_time(mock_clock, 1)
        await peer.expect(spec.ConnectionUnblocked)
        mock_clock.rate = 5


# --- the end


@asynccontextmanager
async def stopping(
    settings: Settings, stop: Callable[[trio.CancelScope], None]
) -> AsyncIterator[tuple[RunningBroker, trio.Event]]:
    """A broker in a task of its own, told to stop when the event is set."""
    async with trio.open_nursery() as nursery:
        asked = trio.Event()

        async def run(task_status: trio.TaskStatus[RunningBroker]) -> None:
            with trio.CancelScope() as scope:
                async with open_broker(settings) as broker:
                    task_status.started(broker)
                    await asked.wait()
                    stop(scope)
                    await trio.lowlevel.checkpoint()

        broker = await nursery.start(run)
        yield broker, asked


@pytest.mark.parametrize("cancelled", [False, True])
async def test_clients_are_told_of_the_stop(settings: Settings, cancelled: bool) -> None:
    patient = structs.replace(settings, network=structs.replace(settings.network, shutdown_s=4.0))

    def stop(scope: trio.CancelScope) -> None:
        if cancelled:
            scope.cancel()

    with deadline():
        async with stopping(patient, stop) as (broker, asked):
            peers = [await connect(broker) for _ in range(3)]
            # One that is not read when the end comes.
            broker.broker.set_alarm("low on disk", True)
            await peers[0].write(message(1, "nowhere", b"a"))
            await peers[0].expect(spec.ConnectionBlocked)
            began_s = trio.current_time()
            asked.set()
            for peer in peers:
                close = await peer.expect(spec.ConnectionClose)
                assert (close.reply_code, close.reply_text) == (
                    320,
                    "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'",
                )
                await peer.send(0, spec.ConnectionCloseOk())
                await peer.at_end()
        assert trio.current_time() - began_s < 4.0  # nobody had to be cut off


async def test_clients_that_do_not_answer_are_cut(settings: Settings) -> None:
    with deadline():
        async with stopping(settings, lambda scope: None) as (broker, asked):
            peer = await connect(broker)
            half = SocketPeer(await trio.open_tcp_stream("127.0.0.1", broker.port))
            asked.set()
            await peer.expect(spec.ConnectionClose)
            await peer.at_end()
            await half.at_end()


async def test_failed_disk_confirms_nothing_and_says_so(settings: Settings) -> None:
    disk = LyingDisk()
    with deadline(), pytest.raises(StorageFailed, match="a sync failed"):
        async with trio.open_nursery() as nursery:
            peers: list[SocketPeer] = []

            async def listen_to(peer: SocketPeer) -> None:
                close = await peer.expect(spec.ConnectionClose)  # and no ack before
                assert close.reply_code == 541
                await peer.send(0, spec.ConnectionCloseOk())

            try:
                async with open_broker(settings, disk=disk) as broker:
                    peers += [await connect(broker), await connect(broker)]
                    await declare(peers[0], "q")
                    select = make(spec.ConfirmSelect)
                    await peers[0].ask(1, select, spec.ConfirmSelectOk)
                    for peer in peers:
                        nursery.start_soon(listen_to, peer)
                    disk.broken = True
                    await peers[0].write(message(1, "q", b"a"))
                    await broker.failed.wait()
            except StorageFailed as failure:
                failed = failure
        raise failed


# --- listening


async def test_gone_is_an_end(settings: Settings) -> None:
    """Octets that are no protocol header are answered with ours, then the end."""
    with deadline():
        async with open_broker(settings) as broker:
            peer = SocketPeer(await trio.open_tcp_stream("127.0.0.1", broker.port))
            await peer.write(b"GET / HT")
            assert await peer.stream.receive_some() == b"AMQP\0\0\x09\x01"
            with pytest.raises(Gone):
                await peer.next()


async def test_what_waits_for_a_commit_stays_little(settings: Settings) -> None:
    disk = SlowDisk()
    with deadline():
        async with open_broker(settings, disk=disk) as broker, trio.open_nursery() as nursery:
            peer = await connect(broker)
            await declare(peer, "q")
            await peer.ask(1, spec.TxSelect(), spec.TxSelectOk)
            disk.go.clear()
            try:
                await peer.write(message(1, "q", b"first"))
                await peer.send(1, spec.TxCommit())
                session = session_of(broker, peer)

                async def flood() -> None:
                    for _ in range(100):
                        await peer.write(message(1, "q", b"x" * 100_000))
                    await peer.send(1, spec.TxCommit())

                nursery.start_soon(flood)
                await until(lambda: Hold.COMMIT in session.why_not_read, "held back")
                assert session.client._held_events <= 2 * RECEIVE_BYTES / 100_000
            finally:
                disk.go.set()
            await peer.expect(spec.TxCommitOk)
            await peer.expect(spec.TxCommitOk)
            assert session.client._held_events == 0
            assert broker.broker.vhosts["/"].queues["q"].ready == 101


async def test_delivery_waits_for_a_descriptor(settings: Settings) -> None:
    """Its consumers stay, and nobody else notices."""
    disk = PoorDisk()
    with deadline():
        async with open_broker(settings, disk=disk) as broker:
            peer = await connect(broker)
            await declare(peer, "q")
            await peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
            await peer.write(message(1, "q", b"x"))
            await peer.expect(spec.BasicAck)
        async with open_broker(settings, disk=disk) as broker:
            disk.poor = True
            peer = await connect(broker)
            await peer.ask(1, make(spec.BasicConsume, queue="q"), spec.BasicConsumeOk)
            await until(lambda: disk.refused > 1, "tried again")
            await declare(peer, "other")
            disk.poor = False
            assert (await peer.expect(spec.BasicDeliver)).redelivered is False
            assert broker.broker.vhosts["/"].queues["q"].unacked == 1


async def test_no_file_descriptor_left_is_sat_out(
    settings: Settings, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(settings) as broker:
        peer = await connect(broker)

        def fail() -> int:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(resources, "_resident_bytes", fail)
        await pass_time(mock_clock, 3)
        await declare(peer, "q")
        mock_clock.rate = 5
