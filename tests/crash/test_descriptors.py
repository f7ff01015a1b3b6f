"""File descriptors: taken by clients that do nothing, they are not missed by those that do."""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack
from pathlib import Path

from tests.live.conversation import Client, until
from tests.live.server import BrokerProcess

SETTINGS = {"QLOG_SEGMENT_BYTES_MAX": str(1 << 19), "QLOG_CACHE_BYTES_MAX": "0"}
LIMIT = 64
COUNT = 600  # in some 70 segments: more than can be open


def under(option: str) -> list[str]:
    """A launcher that sets a limit for what it runs."""
    return ["sh", "-c", f'ulimit {option}; exec "$@"', "sh"]


def test_as_many_as_may_be_are_allowed(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "data", launcher=under("-Sn 100")).start()
    try:
        soft, hard = resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)
        assert soft == hard > 100
    finally:
        broker.kill()


def test_idle_strangers_stop_neither_writing_nor_reading(tmp_path: Path) -> None:
    broker = BrokerProcess(
        tmp_path / "data", settings=SETTINGS, launcher=under(f"-n {LIMIT}")
    ).start()
    try:
        with ExitStack() as strangers:
            talk = Client(broker.url, deadline_s=20.0).channel()
            queue = talk.queue(durable=True)
            talk.confirm()
            for _ in range(2 * LIMIT):
                address = ("127.0.0.1", broker.port)
                strangers.enter_context(socket.create_connection(address))
            until(lambda: any("limit alarm set" in line for line in broker.lines), "the alarm")
            for number in range(COUNT):
                talk.publish("", queue, b"%d" % number * 20_000, delivery_mode=2)
            assert {answer for *_, answer in talk.confirmed(COUNT)} == {"ack"}
            talk.consume(queue)
            bodies = [message.body for message in talk.deliveries(COUNT)]
            assert bodies == [b"%d" % number * 20_000 for number in range(COUNT)]
        until(lambda: any("alarm cleared" in line for line in broker.lines), "the end of it")
        with Client(broker.url, deadline_s=20.0) as late:
            assert late.channel().ready(queue) == 0
        assert broker.terminate()[0] == 0
        assert not [line for line in broker.lines if "ERROR" in line or "low on" in line]
    finally:
        if broker.process is not None and broker.process.poll() is None:
            broker.kill()
