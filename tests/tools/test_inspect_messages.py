"""`qlog inspect messages`: which messages are chosen, and following a running broker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pika
import pytest
from typer.testing import CliRunner

from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Properties, encode_properties
from qlog.tools.cli import app
from qlog.tools.inspect.look.selection import KeyPattern, parse_offsets, parse_time
from tests.live.server import BrokerProcess
from tests.tools.directories import NOW_MS, fill, flip, inspect, opened, segments_of


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 messages in two queues, of which `orders` settled 60; then 20 with keys and headers."""
    root = tmp_path_factory.mktemp("messages") / "data"
    with opened(root) as store:
        fill(store, 100, settled=60)
        for number in range(20):
            properties = Properties(
                message_id=f"m-{number}", headers={"n": number % 3, "text": "a=b"}
            )
            raw = encode_properties(properties)
            meta = Envelope.pack("shop", f"order.{number % 2}.done", raw, 4)
            body = [b"text", b"\xff\0\1\2"][number % 2]
            lanes = [store.lane(2)]
            store.append(lanes, [meta], [body], persistent=True, now_ms=NOW_MS + number * 1000)
        store.lane(2).settle(0, 3)
    return root


@pytest.mark.parametrize(
    ("options", "lsns"),
    [
        (["--queue", "orders", "--offset", "7"], [7]),
        (["--queue", "orders", "--offset", "7-9"], [7, 8, 9]),
        (["--queue", "audit", "--offset", "118-"], [118, 119]),
        (["--queue", "audit", "--offset", "-2"], [0, 1, 2]),
        (["--queue", "audit", "--settled"], [0, 1, 2]),
        (["--settled"], [0, 1, 2]),  # the others still wait in `audit`
        (["--queue", "orders", "--settled", "--from", "58"], [58, 59]),
        (["--queue", "orders", "--unsettled", "--limit", "2"], [60, 61]),
        (["--since", "2023-11-14T22:13:38Z"], [118, 119]),
        (["--since", "2023-11-14 22:13:20.001", "--until", "2023-11-14 22:13:23"], [101, 102]),
        (["--since", "10m"], []),
        (["--key", "order.1.done", "--limit", "2"], [101, 103]),
        (["--key", "order.#", "--from", "117"], [117, 118, 119]),
        (["--key", "*.0.*", "--from", "117"], [118]),
        (["--key", "order"], []),
        (["--header", "n=2", "--header", "text=a=b", "--limit", "2"], [102, 105]),
        (["--header", "none=1"], []),
    ],
)
def test_messages_are_chosen(options: list[str], lsns: list[int], directory: Path) -> None:
    document = inspect(directory, "messages", *options)
    assert [message["lsn"] for message in document["messages"]] == lsns


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--offset", "1"], "--queue"),
        (["--queue", "orders", "--offset", "9-7"], "ends before"),
        (["--queue", "orders", "--offset", "-"], "no offset"),
        (["--since", "yesterday"], "not a time"),
        (["--header", "name"], "name=value"),
        (["--queue", "orders", "--vhost", "other"], "give --vhost"),
        (["--follow"], "no broker runs"),
    ],
)
def test_wrong_choices_end_with_one_line(options: list[str], text: str, directory: Path) -> None:
    result = CliRunner().invoke(
        app, ["inspect", "messages", "--data-dir", str(directory), *options]
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert text in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("a.b", "a.b", True),
        ("a.b", "axb", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#.c", "c", True),
        ("#.c", "a.b.c", True),
        ("#.c", "a.b", False),
        ("#", "", True),
        ("a.#.d", "a.d", True),
        ("a.#.d", "a.b.c.d", True),
        ("a.#.d", "ad", False),
    ],
)
def test_key_patterns_are_a_topics(pattern: str, key: str, matches: bool) -> None:
    assert KeyPattern(pattern).matches(key) is matches


def test_times_and_offsets() -> None:
    assert parse_time("10m", 1_000_000) == 400_000
    assert parse_time("1.5s", 10_000) == 8_500
    assert parse_time("1970-01-01T00:00:01+01:00", 0) == 1000 - 3_600_000
    assert parse_offsets("5") == (5, 6) and parse_offsets("5-") == (5, 1 << 64)


def test_a_damaged_message_is_shown_whatever_is_asked_of_its_text(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as store:
        fill(store, 20)
    (path, *_) = segments_of(tmp_path / "data")
    flip(path, path.read_bytes().index(b"orders.new"))
    document = inspect(tmp_path / "data", "messages", "--key", "orders.new", status=1)
    assert [item["lsn"] for item in document["messages"]] == list(range(20))


def test_bodies_are_text_or_a_dump(directory: Path) -> None:
    arguments = ["inspect", "messages", "--data-dir", str(directory), "--from", "118"]
    text = CliRunner().invoke(app, [*arguments, "--body"]).stdout
    assert "body text" in text and "ff 00 01 02" in text
    assert "74 65 78 74" in CliRunner().invoke(app, [*arguments, "--hex"]).stdout
    text = CliRunner().invoke(app, [*arguments, "--body", "--body-limit", "2"]).stdout
    assert "te… (4 characters)" in text and "… (4 octets)" in text


# -- following


@contextmanager
def following(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "qlog", "inspect", "messages", "--follow"]
        + ["--data-dir", str(directory), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_following_a_running_broker(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "data", settings={"QLOG_SEGMENT_BYTES_MAX": "65536"}).start()
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare("tasks", durable=True)

    def publish(count: int) -> None:
        for _ in range(count):
            channel.basic_publish("", "tasks", b"x" * 2000, persistent)

    persistent = pika.BasicProperties(delivery_mode=2)
    publish(5)
    with following(broker.data_dir, "--from", "0", "--json", "--body") as process:
        assert process.stdout is not None and process.stderr is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(5)]
        for _ in range(3):  # more than a segment is rolled, acked, given back
            publish(40)
            lines += [json.loads(process.stdout.readline()) for _ in range(40)]
            for _ in range(40):
                method, _, _ = channel.basic_get("tasks")
                channel.basic_ack(method.delivery_tag)
        assert [line["lsn"] for line in lines] == list(range(125))
        assert {line["body"] for line in lines} == {"x" * 2000}
        assert {line["targets"][0]["queue"] for line in lines} == {"tasks"}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0 and process.stderr.read() == ""
    with following(broker.data_dir) as process:
        assert process.stderr is not None and "following" in process.stderr.readline()
        publish(1)
        connection.close()
        assert broker.terminate()[0] == 0
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert [line.split()[0] for line in out.splitlines()] == ["125"]
        assert err == "qlog: the broker has stopped\n"
