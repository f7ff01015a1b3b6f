"""`qlog inspect` on sound, damaged, empty, copied and running directories."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pika
import pytest
from typer.testing import CliRunner

from qlog.storage.bytes.datadir import Paths
from qlog.storage.lmdb.catalog import CatalogFile
from qlog.tools.cli import app
from tests.live.server import BrokerProcess
from tests.tools.directories import (
    NOW_MS,
    body,
    fill,
    fingerprint,
    flip,
    inspect,
    killed,
    opened,
    segments_of,
    stopped,
)


def lsns(document: dict[str, Any]) -> list[int]:
    return [message["lsn"] for message in document["messages"]]


# -- sound directories


@pytest.mark.parametrize("make", [stopped, killed])
def test_segments_cover_the_log_and_count_what_is_alive(make: Any, tmp_path: Path) -> None:
    directory = make(tmp_path / "data", settled=120)
    document = inspect(directory, "segments")
    found = [item for item in document["segments"] if item["state"] != "reserved"]
    assert found[0]["base_lsn"] == 0 and found[-1]["end_lsn"] == 200
    for before, after in pairwise(found):
        assert before["end_lsn"] == after["base_lsn"]
    # A broker can be killed after it began a segment, and before it sealed the one before.
    states = {item["state"] for item in found[:-1]}
    assert states == {"sealed"} or (make is killed and states == {"sealed", "active"})
    assert found[-1]["state"] == ("sealed" if make is stopped else "active")
    assert all(item["verified"] for item in found)
    totals = document["totals"]  # all of them still wait in `audit`
    assert (totals["records"], totals["live"], totals["dead"]) == (200, 200, 0)


def test_a_segment_is_dead_where_no_queue_waits(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as store:
        fill(store, 200)
        for lane_id in (1, 2):
            store.lane(lane_id).settle(3, 7)
        assert store.settle_down()
    first = inspect(tmp_path / "data", "segments")["segments"][0]
    assert (first["live"], first["dead"]) == (first["records"] - 7, 7)


@pytest.mark.parametrize("make", [stopped, killed])
def test_queues_know_their_offsets(make: Any, tmp_path: Path) -> None:
    document = inspect(make(tmp_path / "data", settled=120), "queues")
    audit, orders = document["queues"]
    assert orders["queue"] == "orders" and orders["vhost"] == "/" and orders["lanes"] == [1]
    assert (orders["unsettled"], orders["first_offset"], orders["next_offset"]) == (80, 120, 200)
    assert (orders["handed_out"], orders["delivered_below"]) == (1, 121)
    assert (audit["unsettled"], audit["first_offset"], audit["handed_out"]) == (200, 0, 0)
    assert audit["stored_bytes"] > orders["stored_bytes"] > 80_000


@pytest.mark.parametrize("make", [stopped, killed])
@pytest.mark.parametrize("start", [0, 57, 195])
def test_messages_decode_from_an_offset(make: Any, start: int, tmp_path: Path) -> None:
    directory = make(tmp_path / "data", settled=120)
    document = inspect(directory, "messages", "--from", str(start), "--limit", "8", "--body")
    assert lsns(document) == list(range(start, min(start + 8, 200)))
    assert document["next_lsn"] == (start + 8 if start + 8 < 200 else None)
    for message in document["messages"]:
        lsn = message["lsn"]
        assert message["body"].encode() == body(lsn) and message["body_encoding"] == "utf-8"
        assert (message["exchange"], message["routing_key"]) == ("amq.topic", "orders.new")
        assert message["timestamp_ms"] == NOW_MS and message["time"] == "2023-11-14T22:13:20.000Z"
        assert message["properties"] == {
            "content_type": "text/plain",
            "headers": {"n": 1, "raw": {"base64": "/w=="}},
            "delivery_mode": 2,
        }
        assert [(target["queue"], target["offset"]) for target in message["targets"]] == [
            ("orders", lsn),
            ("audit", lsn),
        ]
        assert [target["state"] for target in message["targets"]] == [
            "settled" if lsn < 120 else "unsettled",
            "unsettled",
        ]


def test_messages_of_one_queue(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as store:
        fill(store, 100)
        from qlog.server.amqp.envelope import Envelope

        meta = Envelope.pack("", "audit", b"\0\0", 3)
        store.append([store.lane(2)], [meta], [b"\xff\0\1"], persistent=True, now_ms=NOW_MS)
    directory = tmp_path / "data"
    arguments = ("messages", "--from", "99", "--body", "--queue")
    assert lsns(inspect(directory, *arguments, "orders")) == [99]
    document = inspect(directory, *arguments, "audit")
    assert lsns(document) == [99, 100]
    assert document["messages"][1]["body"] == "/wAB"
    assert document["messages"][1]["body_encoding"] == "base64"


def test_a_deleted_queue_leaves_dead_messages(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as store:
        fill(store, 100)
        store.catalog.delete("queue", '["/", "orders"]')
        store.drop(store.lane(1))
    directory = tmp_path / "data"
    assert [queue["queue"] for queue in inspect(directory, "queues")["queues"]] == ["audit"]
    target = inspect(directory, "messages")["messages"][0]["targets"][0]
    assert (target["lane"], target["queue"], target["state"]) == (1, None, "deleted")


def test_a_log_that_was_given_back_is_not_damage(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with opened(directory) as store:
        fill(store, 200)
        for lane_id in (1, 2):
            store.lane(lane_id).settle(0, 200)
        for _ in range(4):  # given up, synced, unlinked: a checkpoint apart
            assert store.checkpoint()
    inspect(directory, "segments")
    assert inspect(directory, "messages")["messages"] == []
    assert [queue["unsettled"] for queue in inspect(directory, "queues")["queues"]] == [0, 0]


def test_a_directory_never_used(tmp_path: Path) -> None:
    with opened(tmp_path / "data"):
        pass
    for command in ("segments", "queues", "messages"):
        inspect(tmp_path / "data", command)


def test_a_copy_without_lock_files_gets_none(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    for path in directory.rglob("lock.mdb"):
        path.unlink()
    (directory / "LOCK").unlink()
    assert len(inspect(directory, "queues")["queues"]) == 2


# -- damaged ones


@pytest.mark.parametrize("make", [stopped, killed])
@pytest.mark.parametrize("which", [0, 1])
def test_a_flipped_bit_in_a_body_is_named_and_the_rest_is_read(
    make: Any, which: int, tmp_path: Path
) -> None:
    directory = make(tmp_path / "data")
    path = segments_of(directory)[which]
    position = path.read_bytes().index(b"message 55 " if which else b"message 15 ") + 500
    flip(path, position)
    hurt = 55 if which else 15
    document = inspect(directory, "segments", status=1)
    (damage,) = document["damage"]
    assert damage["file"] == f"log/{path.name}"
    assert damage["position"] <= position < damage["end"]
    assert damage["lsn_first"] <= hurt < damage["lsn_end"] and damage["messages_lost"] == 1
    assert [item["damaged"] for item in document["segments"]].count(True) == 1
    document = inspect(directory, "messages", "--limit", "200", status=1)
    assert lsns(document) == list(range(200))
    assert [item["lsn"] for item in document["messages"] if item["damage"]] == [hurt]


def test_every_byte_of_the_log_is_covered(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", 60)
    for path in segments_of(directory):
        whole = path.read_bytes()
        if not whole.strip(b"\0"):
            continue
        for position in range(0, len(whole), max(len(whole) // 40, 1)):
            flip(path, position)
            inspect(directory, "segments", status=1)
            path.write_bytes(whole)


def test_after_a_kill_all_but_the_last_batch_is_attested(tmp_path: Path) -> None:
    directory = killed(tmp_path / "data", 80)
    last = inspect(directory, "segments")["segments"][1]
    path = directory / last["file"]
    whole = path.read_bytes()
    last_batch = whole.rindex(b"\x7c\xb4\x51\x8f")
    for position in range(0, last_batch, last_batch // 40):
        flip(path, position)
        inspect(directory, "segments", status=1)
        path.write_bytes(whole)
    flip(path, last_batch + 500)  # by all that is known, a write that nobody was told of
    document = inspect(directory, "segments")
    assert document["totals"]["records"] == 70
    assert "never confirmed" in document["notes"][0]
    assert lsns(inspect(directory, "messages", "--from", "60")) == list(range(60, 70))


@pytest.mark.parametrize("make", [stopped, killed])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_segment_cut_off(make: Any, share: float, tmp_path: Path) -> None:
    directory = make(tmp_path / "data")
    path = segments_of(directory)[1]
    os.truncate(path, int(path.stat().st_size * share))
    document = inspect(directory, "segments", status=1)
    assert {item["file"] for item in document["damage"]} == {f"log/{path.name}"}
    document = inspect(directory, "messages", "--limit", "300", status=1)
    assert lsns(document)[-1] == 199


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_segment_that_is_gone(which: int, tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    path = [path for path in segments_of(directory) if path.read_bytes().strip(b"\0")][which]
    path.unlink()
    for command in ("segments", "queues", "messages"):
        document = inspect(
            directory, command, *(["--limit", "300"] * (command == "messages")), status=1
        )
        assert f"log/{path.name}" in {item["file"] for item in document["damage"]}


def test_a_torn_tail_is_not_damage(tmp_path: Path) -> None:
    directory = killed(tmp_path / "data")
    path = segments_of(directory)[-1]
    while not path.read_bytes().strip(b"\0"):
        path = segments_of(directory)[segments_of(directory).index(path) - 1]
    data = path.read_bytes()
    used = len(data.rstrip(b"\0"))
    path.write_bytes(data[:used] + b"\x7c\xb4\x51\x8f" + b"half a batch" + data[used + 16 :])
    document = inspect(directory, "segments")
    assert "never confirmed" in " ".join(document["notes"])
    assert inspect(directory, "messages", "--from", "199")["next_lsn"] is None


def test_without_the_index_all_is_known(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", settled=120)
    before = inspect(directory, "queues")["queues"]
    shutil.rmtree(directory / "index.lmdb")
    document = inspect(directory, "queues")
    assert document["queues"] == before
    assert "index.lmdb is missing" in document["notes"][0]


def test_without_the_catalog_all_is_known(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", settled=120)
    before = inspect(directory, "queues")["queues"]
    shutil.rmtree(directory / "catalog.lmdb")
    document = inspect(directory, "queues")
    assert document["queues"] == before
    assert "catalog.lmdb is missing; the next start makes it anew" in document["notes"][0]


def test_without_a_ledger_definitions_are_those_of_the_catalog(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", settled=120)
    shutil.rmtree(directory / "ledger")
    queues = inspect(directory, "queues", status=1)["queues"]
    assert [(queue["queue"], queue["unsettled"]) for queue in queues] == [
        ("audit", 200),
        ("orders", 200),
    ]
    shutil.rmtree(directory / "catalog.lmdb")
    document = inspect(directory, "messages", "--limit", "200", status=1)
    assert lsns(document) == list(range(200))
    queues = inspect(directory, "queues", status=1)["queues"]
    assert [(queue["queue"], queue["unsettled"]) for queue in queues] == [(None, 200)] * 2


@pytest.mark.parametrize("name", ["catalog.lmdb", "index.lmdb"])
@pytest.mark.parametrize("keep", [0, 100, 9000])
def test_an_environment_cut_off_does_not_kill_the_process(
    name: str, keep: int, tmp_path: Path
) -> None:
    directory = stopped(tmp_path / "data")
    os.truncate(directory / name / "data.mdb", keep)
    document = inspect(directory, "messages", "--limit", "200", status=1)
    assert lsns(document) == list(range(200))
    assert {item["file"] for item in document["damage"]} == {name}


def test_an_environment_full_of_flips_does_not_kill_the_process(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    path = directory / "catalog.lmdb" / "data.mdb"
    whole = path.read_bytes()
    for step in range(5, 60, 5):
        data = bytearray(whole)
        for position in range(step, len(data), 97 + step):
            data[position] ^= 1 << step % 8
        path.write_bytes(data)
        inspect(directory, "messages", status=1)


@pytest.mark.parametrize("name", ["orders", "o" * 500])
def test_a_damaged_definition_is_named(name: str, tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", 10)
    catalog = CatalogFile(Paths(directory).catalog, map_bytes=1 << 24)
    checkpoint = catalog.checkpoint()
    assert checkpoint is not None
    catalog.apply({("queue", json.dumps(["/", name])): b"damage me"}, checkpoint)
    catalog.close()
    path = directory / "catalog.lmdb" / "data.mdb"
    data = path.read_bytes().replace(b"damage me", b"damaged..")
    path.write_bytes(data)
    (damage,) = inspect(directory, "queues", status=1)["damage"]
    assert damage["file"] == "catalog.lmdb" and name[:300] in damage["what"]


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", settled=120)
    (path,) = (directory / "ledger").glob("*.qack")
    flip(path, 64 + 60)
    document = inspect(directory, "queues", status=1)
    assert document["damage"][0]["file"] == f"ledger/{path.name}"
    path.unlink()
    assert inspect(directory, "queues", status=1)["damage"][0]["file"] == "ledger"


# -- wrong options


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["segments", "--data-dir", "nowhere"], "nowhere does not exist"),
        (["segments", "--data-dir", "."], "is not a data directory"),
        (["queues", "--data-dir", "file"], "is not a directory"),
        (["messages", "--data-dir", "data", "--queue", "other"], "no durable queue 'other'"),
        (["messages", "--data-dir", "data", "--limit", "0"], "limit"),
        (["messages", "--data-dir", "data", "--from", "x"], "from"),
    ],
)
def test_wrong_options_end_with_one_line(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path / "here" / "data", 10)
    monkeypatch.chdir(tmp_path / "here")
    Path("file").touch()
    result = CliRunner().invoke(app, ["inspect", *arguments])
    assert result.exit_code == 2 and result.stdout == ""
    assert text in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 2


# -- for people


@pytest.mark.parametrize("command", ["verify", "verify --json", "export"])
@pytest.mark.parametrize(
    ("stdout", "why"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")]
)
def test_a_report_that_cannot_be_written_is_no_damage(
    command: str, stdout: str, why: str, tmp_path: Path
) -> None:
    directory = killed(tmp_path / "data", 10)
    call = f"{sys.executable} -m qlog inspect {command} --data-dir {directory} {stdout}"
    result = subprocess.run(call, check=False, shell=True, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.endswith(f"stdout cannot be written: {why}")
    assert command == "export" or "sound" in line  # what was found is told


def test_piped_output_is_one_line_a_message_and_cannot_steer_a_terminal(tmp_path: Path) -> None:
    from qlog.server.amqp.envelope import Envelope

    directory = tmp_path / "data"
    with opened(directory) as store:
        fill(store, 10)
        meta = Envelope.pack("", "\x1b[31mred\n", b"\0\0", 3)
        store.append([store.lane(2)], [meta], [b"\x1b[0"], persistent=True, now_ms=NOW_MS)
    result = CliRunner().invoke(
        app, ["inspect", "messages", "--body", "--data-dir", str(directory)]
    )
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 14 and lines[0].split()[:2] == ["LSN", "time"]
    assert "\x1b" not in result.stdout and "\\x1b[31mred\\n" in result.stdout


@pytest.mark.parametrize("command", ["segments", "queues", "messages"])
@pytest.mark.parametrize("columns", [30, 80])
def test_a_terminal_is_never_overrun(
    command: str, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    from qlog.tools.inspect import rows

    directory = stopped(tmp_path / "data")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(rows, "_is_terminal", lambda: True)
    result = CliRunner().invoke(app, ["inspect", command, "--data-dir", str(directory)])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in result.stdout


def test_it_starts_without_the_broker() -> None:
    code = (
        "import sys, qlog.tools.inspect.look.directory, qlog.tools.inspect.look.log; "
        "print([name for name in ('trio', 'qlog.server.app', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- a running broker


def run(directory: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "qlog",
            "inspect",
            *arguments,
            "--data-dir",
            str(directory),
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_running_broker(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "data").start()
    try:
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("tasks", durable=True)
        channel.queue_declare("passing", durable=False)
        persistent = pika.BasicProperties(delivery_mode=2, headers={"try": 1})
        for number in range(30):
            channel.basic_publish("", "tasks", b"%d" % number, persistent)
        for _ in range(10):
            method, _, _ = channel.basic_get("tasks")
            channel.basic_ack(method.delivery_tag)
        document = run(broker.data_dir, "messages", "--queue", "tasks", "--body")
        assert document["in_use"] and [item["body"] for item in document["messages"]] == [
            str(number) for number in range(20)
        ]
        assert run(broker.data_dir, "segments")["totals"]["records"] == 30
        assert run(broker.data_dir, "queues")["queues"][0]["next_offset"] == 30
        connection.close()
    finally:
        code, _ = broker.terminate()
    assert code == 0
    before = fingerprint(broker.data_dir)
    (queue,) = run(broker.data_dir, "queues")["queues"]
    assert (queue["queue"], queue["unsettled"], queue["first_offset"]) == ("tasks", 20, 10)
    assert fingerprint(broker.data_dir) == before


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["sevre"], " Did you mean 'serve'?"),
        (["list_queues"], " Did you mean `qlog ctl list_queues`?"),
        (["queues"], " Did you mean `qlog inspect queues`?"),
        (["inspect", "sumary"], " Did you mean 'summary'?"),
        (["xyzzy"], ""),
    ],
)
def test_a_command_that_is_not_there(words: list[str], meant: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    group = "qlog inspect" if words[0] == "inspect" else "qlog"
    assert result.stderr.splitlines() == [
        f"qlog: no such command '{words[-1]}'.{meant}",
        f"see `{group} --help`",
    ]
