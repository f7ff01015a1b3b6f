"""What `qlog inspect` says of messages that are delayed, and of what exchanges have seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qlog.server.amqp import spec
from qlog.server.amqp.properties import Properties
from qlog.server.amqp.values import Table
from qlog.tools.cli import app
from tests.server.broker.support import Bench, Peer, make
from tests.tools.directories import inspect, opened

DELAY_MS = 3_600_000


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """One message is delayed at the exchange `later`, and was seen by the exchange `once`."""
    bench = Bench(tmp_path / "data")
    peer = Peer(bench)
    arguments: list[tuple[str, str, Table]] = [
        ("later", "x-delayed-message", {"x-delayed-type": "fanout"}),
        ("once", "x-message-deduplication", {"x-cache-size": 10}),
    ]
    for name, type_, table in arguments:
        declare = make(
            spec.ExchangeDeclare, exchange=name, type=type_, durable=True, arguments=table
        )
        peer.ask(1, declare, spec.ExchangeDeclareOk)
    bind = make(spec.ExchangeBind, source="once", destination="later")
    peer.ask(1, bind, spec.ExchangeBindOk)
    headers: Table = {"x-delay": DELAY_MS, "x-deduplication-header": "a"}
    properties = Properties(headers=headers, delivery_mode=2)
    peer.publish(1, "k", b"patience", exchange="once", properties=properties)
    bench.disk()
    bench.close()
    return bench.directory


def test_lanes_are_named_after_their_exchanges(directory: Path) -> None:
    found = {row["queue"]: row for row in inspect(directory, "queues")["queues"]}
    assert found["amq.delayed-later"]["unsettled"] == 1
    assert found["amq.window-once"]["unsettled"] == 1


def test_a_delayed_message_has_its_time(directory: Path) -> None:
    (row,) = inspect(directory, "messages", "--queue", "amq.delayed-later")["messages"]
    assert row["due_ms"] - row["timestamp_ms"] == DELAY_MS
    result = CliRunner().invoke(app, ["inspect", "messages", "--data-dir", str(directory)])
    assert f"due {row['due']}" in result.stdout
    assert row["exchange"] == "once"


@pytest.mark.parametrize("command", ["verify", "repair", "catalog", "summary", "index"])
def test_it_is_no_damage(directory: Path, command: str) -> None:
    inspect(directory, command)


def test_what_belongs_to_nothing_is_left_out_by_a_repair(directory: Path) -> None:
    """As after a damage that has cost the exchange."""
    with opened(directory) as store:
        store.catalog.delete("exchange", json.dumps(["/", "later"]))
        assert store.settle_down()
    damage = str(inspect(directory, "verify", status=1)["damage"])
    lane = "the hidden lane (delayed) of exchange 'later' in vhost '/'"
    assert f"{lane} names the exchange 'later', which is not defined" in damage
    bench = Bench(directory)
    assert [lane.name for lane in bench.broker.definitions.hidden_lanes()] == ["once"]
    bench.close()
    inspect(directory, "verify")
