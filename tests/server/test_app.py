"""The broker as an object: opened, closed, and what it leaves behind."""

from __future__ import annotations

import logging
import shutil
import socket
from pathlib import Path

import pytest
import trio

from qlog.server import app, config
from qlog.server.amqp import spec
from qlog.server.amqp.envelope import Envelope
from qlog.server.app import RunningBroker, open_broker
from qlog.server.config import Settings
from qlog.storage.bytes.disk import OSDisk
from qlog.storage.errors import DirectoryLocked
from qlog.storage.store import Store
from tests.server.broker.support import make, message
from tests.server.net.support import connect, declare


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An empty directory, and any free port."""
    return config.of(data_dir=tmp_path / "data", port=0, disk_free_limit_bytes=0, shutdown_s=0.1)


async def test_messages_are_there_when_opened_again(settings: Settings) -> None:
    async with open_broker(settings) as broker:
        peer = await connect(broker)
        await declare(peer, "q")
        await peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
        await peer.write(message(1, "q", b"kept"), message(1, "q", b"gone", persistent=False))
        while (await peer.expect(spec.BasicAck)).delivery_tag < 2:
            pass
    async with open_broker(settings) as broker:
        peer = await connect(broker)
        await peer.send(1, make(spec.BasicGet, queue="q"))
        said = await peer.next()
        assert said is not None and said.body == b"kept"
        await peer.ask(1, make(spec.BasicGet, queue="q"), spec.BasicGetEmpty)


async def test_what_is_unconfirmed_at_the_stop_is_written(settings: Settings) -> None:
    async with open_broker(settings) as broker:
        peer = await connect(broker)
        await declare(peer, "q")
        await peer.write(*[message(1, "q", b"x" * 1000)] * 500)
        await peer.ask(1, make(spec.QueuePurge, queue="nothing"), spec.ChannelClose)
    async with open_broker(settings) as broker:
        assert broker.broker.vhosts["/"].queues["q"].ready == 500


async def test_directory_is_free_again_after_a_failure(settings: Settings) -> None:
    async with open_broker(settings) as broker:
        with pytest.raises(DirectoryLocked):
            async with open_broker(settings):
                pass
        with pytest.raises(OSError):
            other = config.of(data_dir=settings.data_dir / "other", port=broker.port)
            async with open_broker(other):
                pass
        assert not (settings.data_dir / "other").exists()
    async with open_broker(settings):
        pass


async def test_cancelled_broker_is_closed(settings: Settings) -> None:
    with trio.fail_after(10):
        with trio.move_on_after(0.05) as scope:
            async with open_broker(settings):
                await trio.sleep_forever()
        assert scope.cancelled_caught
        async with open_broker(settings):
            pass


async def test_url_can_be_dialled(tmp_path: Path) -> None:
    login = config.of(
        data_dir=tmp_path, port=0, default_user="a@b", default_pass="p/:", default_vhost="v/1"
    )
    async with open_broker(login) as broker:
        assert broker.url == f"amqp://a%40b:p%2F%3A@127.0.0.1:{broker.port}/v%2F1"
        assert broker.urls == [f"amqp://127.0.0.1:{broker.port}"]


async def fill(broker: RunningBroker) -> None:
    """Three messages in one queue, none in another, all of it on disk."""
    peer = await connect(broker)
    await declare(peer, "q")
    await declare(peer, "empty")
    await peer.ask(1, make(spec.ConfirmSelect), spec.ConfirmSelectOk)
    await peer.write(*[message(1, "q", b"kept")] * 3)
    while (await peer.expect(spec.BasicAck)).delivery_tag < 3:
        pass


class CancellingDisk(OSDisk):
    """Cancels who waits for the recovery, as soon as this reads the log."""

    def __init__(self, scope: trio.CancelScope) -> None:
        super().__init__()
        self.scope = scope

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        """Open a file."""
        if path.suffix == ".qseg":
            trio.from_thread.run_sync(self.scope.cancel)
        return super().open(path, write=write, create=create)


async def test_recovery_ends_when_it_is_cancelled(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "CANCEL_INTERVAL_S", 0.0)
    killed = config.of(data_dir=tmp_path / "killed", port=0, disk_free_limit_bytes=0)
    async with open_broker(settings) as broker:
        await fill(broker)
        shutil.copytree(settings.data_dir, killed.data_dir)
    with trio.CancelScope() as scope:
        async with open_broker(killed, disk=CancellingDisk(scope)):
            raise AssertionError("it has started")
    assert scope.cancelled_caught
    async with open_broker(killed) as broker:
        assert broker.broker.vhosts["/"].queues["q"].ready == 3


async def test_long_recovery_says_how_far_it_is(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(app, "CANCEL_INTERVAL_S", 0.0)
    monkeypatch.setattr(app, "PROGRESS_INTERVAL_S", 0.0)
    killed = config.of(data_dir=tmp_path / "killed", port=0, disk_free_limit_bytes=0)
    async with open_broker(settings) as broker:
        await fill(broker)
        shutil.copytree(settings.data_dir, killed.data_dir)
    shutil.rmtree(killed.data_dir / "index.lmdb")
    caplog.set_level(logging.INFO)
    async with open_broker(killed):
        said = [record.getMessage() for record in caplog.records]
    assert "recovering: 3 messages found in the log" in said
    assert "recovering: 1 parts of the index written" in said


async def test_nobody_gets_in_during_recovery(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    refused = []

    def open_store(*args: object, **named: object) -> Store[Envelope]:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        refused.append(port)
        return real(*args, **named)  # type: ignore[arg-type]

    real = Store.open
    monkeypatch.setattr(Store, "open", open_store)
    async with open_broker(config.of(data_dir=settings.data_dir, port=port)) as broker:
        await (await connect(broker)).ask(2, make(spec.ChannelOpen), spec.ChannelOpenOk)
    assert refused == [port]
