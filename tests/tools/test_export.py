"""`qlog inspect export` and `import`: out of a directory and into a broker, octet for octet."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from qlog.server.amqp.envelope import Envelope, Record
from qlog.server.amqp.frames import header_frame, method_frame
from qlog.server.amqp.properties import Properties, encode_properties
from qlog.server.amqp.spec import (
    BasicAck,
    BasicNack,
    BasicReturn,
    ChannelClose,
    ChannelOpenOk,
    ConfirmSelectOk,
    ConnectionCloseOk,
)
from qlog.server.amqp.values import Int8, LongStr, Timestamp
from qlog.tools.cli import app
from qlog.tools.transfer.exported import (
    SCHEMA,
    Malformed,
    Message,
    as_json,
    as_msgpack,
    item_of,
    read_messages,
)
from qlog.tools.transfer.link import Address, Link, LinkFailed
from qlog.tools.transfer.publisher import Publisher, PublishFailed
from tests.live.server import BrokerProcess
from tests.server.amqp.strategies import PROPERTIES
from tests.tools.directories import body, fingerprint, flip, killed, segments_of, stopped


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["inspect", *arguments])
    assert result.exit_code == status, result.output
    return result


def exported(directory: Path, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
    """The messages of a JSON Lines export, which changes nothing."""
    before = fingerprint(directory)
    result = run("export", "--data-dir", str(directory), *arguments, status=status)
    assert fingerprint(directory) == before
    return [json.loads(line) for line in result.stdout.splitlines()]


def read(data: bytes) -> Iterator[tuple[int, Message]]:
    return read_messages(io.BufferedReader(io.BytesIO(data)))


def test_of_an_export_that_fails_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part looks like a whole one, and takes the space of a disk that is full."""
    directory = stopped(tmp_path)
    output = tmp_path / "all.jsonl"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = run("export", "--data-dir", str(directory), "-o", str(output), status=2)
    assert result.stderr == f"qlog: {output} cannot be written: No space left on device\n"
    assert not output.exists()
    run("export", "--data-dir", str(directory), "-o", str(output))


# -- the format


@pytest.mark.parametrize("packed", [True, False])
def test_what_the_broker_knew_of_a_message_comes_back(packed: bool) -> None:
    raw = encode_properties(Properties(headers={"x-death": []}))
    for record in (Record(True, ["a", "ü"], ["b"]), Record(False, [], ["b"])):
        envelope = Envelope.pack("exchange", "key", raw, 1, record)
        item = item_of(envelope, b"x") | {"schema": SCHEMA, "queues": []}
        ((_, message),) = read((as_msgpack if packed else as_json)(item))
        assert message.envelope == envelope and message.envelope.record == record


@given(properties=PROPERTIES, payload=st.binary(max_size=50), packed=st.booleans())
def test_whatever_amqp_can_carry_comes_back(
    properties: Properties, payload: bytes, packed: bool
) -> None:
    raw = encode_properties(properties)
    item = item_of(Envelope.pack("exchange", "key", raw, len(payload)), payload)
    assert "properties_raw" not in item
    item |= {"schema": SCHEMA, "queues": [{"vhost": "/", "queue": "q", "state": "unsettled"}]}
    data = (as_msgpack if packed else as_json)(item) * 2
    for number, (position, message) in enumerate(read(data), 1):
        assert position == number * len(data) // 2
        assert message.envelope.properties == raw and message.body == payload
        assert message.queues == (("/", "q"),)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x20\x00\0\0\0\x08\x01at\x07\x01at\x01",  # a key twice, and a true that is 7
        b"\x20\x00\0\0\0\x0c\x01ad\x7f\xf8\0\0\0\0\0\x01",  # a NaN of its own
        encode_properties(Properties(correlation_id="\udcff\udc80")),  # octets that are no text
        b"\xff\xff",  # malformed
    ],
)
def test_what_json_cannot_say_exactly_is_there_raw(raw: bytes) -> None:
    item = item_of(Envelope.pack("", "key", raw, 0), b"")
    item |= {"schema": SCHEMA, "queues": []}
    read = json.loads(as_json(item))
    if raw == encode_properties(Properties(correlation_id="\udcff\udc80")):
        assert "properties_raw" not in read  # escapes say it
    else:
        assert base64.b64decode(read["properties_raw"]["base64"]) == raw


@pytest.mark.parametrize(
    "data",
    [
        b"{}\n",
        b"{\n",
        b'{"schema": "else/1"}\n',
        b"\xc1",
        b"\x80",
        b'{"schema":"qlog.message/1"}\n',
        b'{"a":' * 100_000,
        b"\x81\xa1a" * 100_000,
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    result = run("import", str(tmp_path / "file"), status=1)
    assert len(result.stderr.splitlines()) == 1 and "--skip" not in result.stderr


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("properties", None),
        ("properties", {"headers": 5}),
        ("properties", {"headers": {"a": ["F", 5]}}),
        ("properties", {"headers": {"a": ["d", 1 << 2000]}}),
        ("body", 5),
        ("exchange", 1 << 70),
        ("queues", 5),
        ("queues", [{"vhost": 5, "queue": "q", "state": "unsettled"}]),
        ("queues", [{"vhost": "/", "queue": "q" * 256, "state": "unsettled"}]),
    ],
)
def test_a_field_of_another_kind_is_malformed(field: str, value: Any) -> None:
    item = item_of(Envelope.pack("", "k", b"\0\0", 1), b"x") | {"schema": SCHEMA, "queues": []}
    plain = json.loads(as_json(item))
    assert len(list(read(json.dumps(plain).encode()))) == 1
    with pytest.raises(Malformed, match="message 1 is not one of"):
        list(read(json.dumps(plain | {field: value}).encode()))


@given(st.data())
def test_a_file_that_was_cut_off_is_not_taken_for_whole(data: st.DataObject) -> None:
    pack = data.draw(st.sampled_from([as_json, as_msgpack]))
    item = item_of(Envelope.pack("exchange", "key", b"\0\0", 3), b"abc")
    one = pack(item | {"schema": SCHEMA, "queues": []}).rstrip(b"\n")
    length = data.draw(st.integers(0, 3 * len(one)))
    whole, cut = divmod(length, len(one))
    stream = b"\n".join([one] * whole + [one[:cut]]) if pack is as_json else (one * 4)[:length]
    found = read(stream)
    assert len([next(found) for _ in range(whole)]) == whole
    with pytest.raises(Malformed if cut else StopIteration):
        next(found)


# -- export


@pytest.mark.parametrize("make", [stopped, killed])
def test_what_waits_is_exported_with_all_that_belongs_to_it(make: Any, tmp_path: Path) -> None:
    directory = make(tmp_path / "data", settled=120)
    found = exported(directory, "--queue", "orders")
    assert [item["lsn"] for item in found] == list(range(120, 200))
    first = found[0]
    assert first["schema"] == "qlog.message/1"
    assert first["body"] == body(120).decode() and first["body_encoding"] == "utf-8"
    assert (first["exchange"], first["routing_key"]) == ("amq.topic", "orders.new")
    assert first["properties"] == {
        "content_type": "text/plain",
        "headers": {"n": ["I", 1], "raw": ["x", {"base64": "/w=="}]},
        "delivery_mode": 2,
    }
    assert first["queues"] == [
        {
            "vhost": "/",
            "queue": "orders",
            "lane": 1,
            "offset": 120,
            "state": "unsettled",
            "redelivered": True,
        }
    ]
    assert not found[1]["queues"][0]["redelivered"]
    both = exported(directory)
    assert len(both) == 200 and [len(item["queues"]) for item in both] == [1] * 120 + [2] * 80
    states = [item["queues"][0]["state"] for item in exported(directory, "--settled")]
    assert states == ["settled"] * 120 + ["unsettled"] * 80


def test_msgpack_has_octets_as_octets(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", 20)
    file = tmp_path / "out"
    run("export", "--data-dir", str(directory), "--format", "msgpack", "-o", str(file))
    items = list(msgpack.Unpacker(io.BytesIO(file.read_bytes())))
    assert [item["body"] for item in items] == [body(number) for number in range(20)]
    assert items[0]["properties"]["headers"]["raw"] == ["x", b"\xff"]
    again = run("export", "--data-dir", str(directory), "-o", str(file), status=2)
    assert "exists" in again.output


def test_an_account_of_an_export(tmp_path: Path) -> None:
    directory = killed(tmp_path / "data", 20)
    path = segments_of(directory)[0]
    flip(path, path.read_bytes().index(b"message 7 ") + 20)
    arguments = ["export", "--data-dir", str(directory), "--json"]
    assert "give -o FILE" in run(*arguments, status=2).stderr
    file = tmp_path / "out"
    result = run(*arguments, "-o", str(file), status=1)
    account = json.loads(result.stdout)
    assert result.stderr == "" and account["schema"] == "qlog.inspect.export/1"
    assert (account["output"], account["format"], account["messages"]) == (str(file), "jsonl", 19)
    assert account["damage"][0]["lsn_first"] == 7 and len(file.read_bytes().splitlines()) == 19


def test_what_cannot_be_read_is_named_and_the_rest_is_there(tmp_path: Path) -> None:
    directory = killed(tmp_path / "data")
    path = segments_of(directory)[0]
    flip(path, path.read_bytes().index(b"message 7 ") + 20)
    result = run("export", "--data-dir", str(directory), status=1)
    lsns = [json.loads(line)["lsn"] for line in result.stdout.splitlines()]
    assert lsns == [lsn for lsn in range(200) if lsn != 7]
    assert "LSN 7 is not exported: the message's checksum is wrong" in result.stderr


def test_without_definitions_messages_are_exported_with_their_lanes(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    shutil.rmtree(directory / "catalog.lmdb")
    shutil.rmtree(directory / "ledger")
    found = exported(directory, status=1)
    assert len(found) == 200
    assert {(item["queue"], item["lane"]) for item in found[0]["queues"]} == {(None, 1), (None, 2)}


# -- and back


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    running = BrokerProcess(tmp_path / "broker").start()
    yield running
    assert running.terminate()[0] == 0


PROPERTIES_OF_ALL_SORTS = [
    Properties(delivery_mode=2),
    Properties(
        content_type="text/plain",
        headers={"a": Int8(1), "b": LongStr(b"\xff"), "c": {"d": [None, True, 2.5, 1 << 40]}},
        delivery_mode=2,
        priority=3,
        correlation_id="id",
        timestamp=Timestamp(1),
        type="t",
        app_id="app",
    ),
    Properties(delivery_mode=2, headers={"CC": ["other"]}),  # a copy went there when it was new
    Properties(delivery_mode=2, content_encoding="\udcff", message_id="ü"),
]


@pytest.mark.parametrize("format", ["jsonl", "msgpack"])
def test_export_and_import_are_a_round_trip(
    broker: BrokerProcess, tmp_path: Path, format: str
) -> None:
    """A broker's messages, exported while it runs, and imported twice: by name, and to one queue."""
    bodies = [b"", b"text", bytes(range(256)), b"x" * 300_000]
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.confirm_delivery()
    for name in ("source", "other", "copy"):
        channel.queue_declare(name, durable=True)
    raws = [encode_properties(properties) for properties in PROPERTIES_OF_ALL_SORTS]
    first = tmp_path / "first"
    with first.open("wb") as stream:
        for raw, payload in zip(raws, bodies, strict=True):
            item = item_of(Envelope.pack("", "source", raw, len(payload)), payload)
            queue = {"vhost": "/", "queue": "source", "state": "unsettled"}
            stream.write(as_msgpack(item | {"schema": SCHEMA, "queues": [queue]}))
    assert "4 messages published" in run("import", str(first), "--url", broker.url).stdout
    exports: list[list[tuple[bytes, bytes]]] = []
    for name, into in (("source", None), ("source", "copy"), ("copy", None)):
        file = tmp_path / f"{len(exports)}.{format}"
        arguments = ["export", "--data-dir", str(broker.data_dir), "--queue", name]
        run(*arguments, "--format", format, "-o", str(file))
        with file.open("rb") as stream:
            messages = [message for _, message in read_messages(stream)]
        exports.append([(one.envelope.properties, one.body) for one in messages])
        if into is not None:
            done = run("import", str(file), "--url", broker.url, "--queue", into)
            assert done.stdout == "4 messages published and confirmed\n"
    assert exports == [list(zip(raws, bodies, strict=True))] * 3
    counts = {
        name: channel.queue_declare(name, passive=True).method.message_count
        for name in ("source", "other", "copy")
    }
    assert counts == {"source": 4, "other": 0, "copy": 4}
    connection.close()


@pytest.mark.parametrize("format", ["jsonl", "msgpack"])
def test_a_dead_letter_remembers_its_deaths_after_an_import(
    broker: BrokerProcess, tmp_path: Path, format: str
) -> None:
    """Only the broker's record says that `x-death` is its own: a death more is then counted."""
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.confirm_delivery()
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    channel.queue_declare("work", durable=True, arguments=arguments)
    channel.queue_declare("dead", durable=True)
    with_copies = pika.BasicProperties(delivery_mode=2, headers={"CC": ["no"], "BCC": ["hidden"]})
    channel.basic_publish("", "work", b"x", with_copies)
    channel.basic_reject(channel.basic_get("work")[0].delivery_tag, requeue=False)

    file = tmp_path / f"dead.{format}"
    while True:  # until the copy is on the disk
        command = ["export", "--data-dir", str(broker.data_dir), "--queue", "dead"]
        run(*command, "--format", format, "-o", str(file))
        with file.open("rb") as stream:
            before = [message.envelope for _, message in read_messages(stream)]
        if before:
            break
        file.unlink()
    assert [one.record for one in before] == [Record(True, [], ["hidden"])]
    run("import", str(file), "--url", broker.url, "--queue", "work")
    channel.queue_purge("dead")
    got = channel.basic_get("work")
    assert "x-qlog-record" not in got[1].headers and got[1].headers["x-death"][0]["count"] == 1
    channel.basic_reject(got[0].delivery_tag, requeue=False)
    while (properties := channel.basic_get("dead")[1]) is None:
        pass  # it leaves in a turn soon
    (death,) = properties.headers["x-death"]
    assert (death["queue"], death["count"]) == ("work", 2)
    assert "x-qlog-record" not in properties.headers
    connection.close()


def messages_to(queue: str, count: int, file: Path) -> Path:
    """A file with more messages to a queue."""
    item = item_of(Envelope.pack("", "k", b"\0\0", 1), b"x")
    target = {"vhost": "/", "queue": queue, "state": "unsettled"}
    with file.open("ab") as stream:
        stream.write(as_json(item | {"schema": SCHEMA, "queues": [target]}) * count)
    return file


@pytest.mark.parametrize("good", [50, 2400])  # fewer and more than may wait for a confirm
def test_an_import_that_is_refused_says_where_to_go_on(
    broker: BrokerProcess, tmp_path: Path, good: int
) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    connection.channel().queue_declare("here", durable=True)
    file = messages_to("missing", 100, messages_to("here", good, tmp_path / "file"))
    result = run("import", str(file), "--url", broker.url, status=1)
    assert f"message {good + 1}: the broker refused: NOT_FOUND - no queue" in result.stderr
    assert result.stderr.endswith(f"go on with --skip {good}\n")
    the_rest = ["import", str(file), "--url", broker.url, "--skip", str(good)]
    account = json.loads(run(*the_rest, "--json", status=1).stdout)
    assert (account["schema"], account["data_dir"]) == ("qlog.inspect.import/1", None)
    assert (account["messages"], account["next_skip"], account["sent_behind"]) == (0, good, 0)
    assert "no queue 'missing'" in account["failure"]
    connection.channel().queue_declare("missing", durable=True)
    assert run(*the_rest).stdout == "100 messages published and confirmed\n"
    count = connection.channel().queue_declare("here", passive=True).method.message_count
    assert count == good
    connection.close()


def test_an_import_that_is_interrupted_says_where_to_go_on(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.queue_declare("here", durable=True)
    pipe = tmp_path / "pipe"  # whose end the import does not see
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "qlog", "inspect", "import", str(pipe), "--url", broker.url],
        stderr=subprocess.PIPE,
        text=True,
    )
    with suppress(BrokenPipeError), pipe.open("wb") as stream:
        line = messages_to("here", 1, tmp_path / "line").read_bytes()
        stream.write(line * 1500)
        stream.flush()
        while channel.queue_declare("here", passive=True).method.message_count == 0:
            pass  # until it is at it
        process.send_signal(signal.SIGINT)
        stream.write(line)  # if it waits for one
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    count = channel.queue_declare("here", passive=True).method.message_count
    assert err.startswith("qlog: interrupted\n") and err.endswith(f"go on with --skip {count}\n")
    connection.close()


def test_what_was_refused_is_not_confirmed_by_what_came_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: ours)
    monkeypatch.setattr(Link, "_begin", lambda *_: None)
    replies = [(1, ChannelOpenOk()), (2, ChannelOpenOk()), (1, ConfirmSelectOk())]
    theirs.sendall(b"".join(method_frame(*reply) for reply in replies))
    with theirs, Publisher(Address.parse("amqp://"), "/", print) as publisher:
        for number, queue in enumerate(["a", "b", "c", "c", "a", "a"], 1):
            publisher.publish(queue, Envelope.pack("", "k", b"\0\0", 0), b"", number)
        close = method_frame(2, ChannelClose(404, "NOT_FOUND", 50, 10))
        returned = method_frame(1, BasicReturn(312, "NO_ROUTE", "", "a"))
        content = header_frame(1, Envelope.pack("", "a", b"\0\0", 0))
        answers = [BasicAck(6, False), BasicNack(4, True, False), BasicAck(5, False)]
        theirs.sendall(close + method_frame(1, BasicAck(2, True)) + returned + content)
        theirs.sendall(b"".join(method_frame(1, method) for method in answers))
        with pytest.raises(LinkFailed, match="the broker refused: NOT_FOUND"):
            publisher.wait()
        with pytest.raises(PublishFailed, match="^message 3: the broker could not keep it"):
            publisher.wait()
        assert publisher.open_from == 3 and not publisher._waiting
        assert sorted(publisher._refused) == [3, 4, 5]
        with pytest.raises(PublishFailed):
            publisher.wait()
        theirs.sendall(method_frame(0, ConnectionCloseOk()))


def test_no_broker_is_one_line(tmp_path: Path) -> None:
    file = messages_to("q", 1, tmp_path / "file")
    result = run("import", str(file), "--url", "amqp://localhost:1", status=1)
    assert "no broker answers at localhost:1" in result.stderr
    run("import", str(file), "--url", "http://x", status=2)
    result = run("import", str(file), "--skip", "2", status=2)
    assert "has 1 message only" in result.stderr
    assert "0 messages published" in run("import", str(file), "--skip", "1").stdout
    run("import", str(tmp_path / "none"), status=2)


def test_the_wrong_password_is_one_line(broker: BrokerProcess, tmp_path: Path) -> None:
    file = messages_to("q", 1, tmp_path / "file")
    url = broker.url.replace("guest:guest", "guest:wrong")
    result = run("import", str(file), "--url", url, status=1)
    assert "ACCESS_REFUSED" in result.stderr
