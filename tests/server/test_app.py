"""The broker as an object: opened, closed, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from qlog.server import app, config
from qlog.server.amqp import spec
from qlog.server.app import open_broker
from qlog.server.config import Settings
from qlog.storage.errors import DirectoryLocked
from tests.server.broker.support import make, message
from tests.server.net.support import connect, declare


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An empty directory, and any free port."""
    monkeypatch.setattr(app, "CLOSE_S", 0.1)
    return config.of(data_dir=tmp_path / "data", port=0, disk_free_limit_bytes=0)


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
