"""`qlog inspect repair`: what it says, what it does, and that a broker starts on what it leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pika
import pytest
from typer.testing import CliRunner, Result

from qlog.server.amqp.values import encode_table
from qlog.storage.bytes.disk import OSDisk
from qlog.storage.errors import CorruptLog, StorageError
from qlog.storage.index.index import Index, LaneUpdate
from qlog.storage.lmdb.catalog import CatalogFile
from qlog.storage.space.sparse import SparseWriter
from qlog.storage.start.fold import COMPACTED
from qlog.tools.cli import app
from qlog.tools.inspect.look.directory import Directory
from qlog.tools.inspect.look.unreadable import ForgivingDisk
from qlog.tools.inspect.repair import act as repair_act
from tests.live.server import BrokerProcess
from tests.tools.directories import (
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


def plan(directory: Path, status: int = 1) -> dict[str, Any]:
    """What a dry run says; it changes nothing."""
    return inspect(directory, "repair", status=status)


def repair(directory: Path, status: int = 0) -> dict[str, Any]:
    """Do it; `verify` has no finding afterwards."""
    result = run("repair", "--accept-loss", "--json", "--data-dir", str(directory), status=status)
    document: dict[str, Any] = json.loads(result.stdout)
    if not status:
        assert document["done"] and Path(document["quarantine"]).is_dir()
        inspect(directory, "verify")
    return document


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["inspect", *arguments])
    assert result.exit_code == status, result.output
    return result


def waiting(directory: Path) -> dict[str, list[int]]:
    """The numbers of the messages that each queue gives to consumers, after a start."""
    found: dict[str, list[int]] = {}
    with opened(directory) as store:
        for name, value in store.catalog.items("queue"):
            lane = store.lane(msgpack.unpackb(value)["lane"])
            numbers = []
            qseq = 0
            while (part := lane.read(qseq, 100, 1 << 20)) is not None:
                numbers += [int(text.split()[1]) for text in part.bodies]
                assert list(part.bodies) == [
                    body(number) for number in numbers[-len(part.bodies) :]
                ]
                qseq = part.first_qseq + len(part.bodies)
            found[json.loads(name)[1]] = numbers
    return found


def lost(document: dict[str, Any]) -> list[tuple[str, int]]:
    return sorted(
        (queue["queue"], queue["offset"]) for loss in document["losses"] for queue in loss["queues"]
    )


def file_of(directory: Path, number: int) -> Path:
    """The segment that has this message."""
    text = b"message %d " % number
    (path,) = [one for one in segments_of(directory) if text in one.read_bytes()]
    return path


def test_a_sound_directory_is_left_alone(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    assert plan(directory, status=0)["actions"] == []
    before = fingerprint(directory)
    document = json.loads(
        run("repair", "--accept-loss", "--json", "--data-dir", str(directory)).stdout
    )
    after = fingerprint(directory)
    assert not document["done"] and "quarantine" not in {path.name for path in directory.iterdir()}
    assert {path: one[2] for path, one in before.items()} == {
        path: one[2] for path, one in after.items()
    }


@pytest.mark.parametrize("make", [stopped, killed])
@pytest.mark.parametrize("number", [7, 160])
def test_of_a_damaged_batch_one_message_is_lost(make: Any, number: int, tmp_path: Path) -> None:
    """In a sealed segment, and in one that was being written."""
    directory = make(tmp_path / "data", settled=3)
    path = file_of(directory, number)
    flip(path, path.read_bytes().index(b"message %d " % number) + 40)
    document = plan(directory)
    assert lost(document) == [("audit", number), ("orders", number)]
    (loss,) = document["losses"]
    assert (loss["lsn"], loss["routing_key"], loss["messages"]) == (number, "orders.new", 1)
    assert loss["body_bytes"] == len(body(number))
    assert "whole, 1 message lost" in document["actions"][0]
    original = path.read_bytes()
    done = repair(directory)
    assert done["losses"] == document["losses"]
    assert (Path(done["quarantine"]) / "log" / path.name).read_bytes() == original
    account = json.loads((Path(done["quarantine"]) / "repair.json").read_text())
    assert account["losses"] == document["losses"]
    rest = [one for one in range(200) if one != number]
    assert waiting(directory) == {"orders": rest[3:], "audit": rest}


def test_a_message_whose_targets_are_damaged_is_lost_all_the_same(tmp_path: Path) -> None:
    """Nobody waits for it in the lanes that it seems to have gone to: there are none of those."""
    directory = killed(tmp_path / "data")
    path = file_of(directory, 160)
    data = bytearray(path.read_bytes())
    targets = data.index(b"\x93\xa9amq.topic", data.index(b"message 160 ") - 100) - 24
    data[targets - 8 : targets + 24] = bytes(range(100, 132))  # its hash, too
    path.write_bytes(data)
    (loss,) = plan(directory)["losses"]
    assert (loss["lsn"], loss["messages"], loss["queues"]) == (160, 1, [])
    assert not [
        queue
        for item in inspect(directory, "verify", status=1)["damage"]
        for queue in item["queues"]
    ]
    assert repair(directory)["losses"] == [loss]
    rest = [one for one in range(200) if one != 160]
    assert waiting(directory) == {"orders": rest, "audit": rest}


@pytest.mark.parametrize("part", ["header", "batch header", "footer"])
def test_what_is_around_messages_costs_none(part: str, tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    path = segments_of(directory)[1]
    flip(path, {"header": 20, "batch header": 70, "footer": path.stat().st_size - 300}[part])
    assert plan(directory)["losses"] == []
    repair(directory)
    assert waiting(directory) == {"orders": [*range(200)], "audit": [*range(200)]}


@pytest.mark.parametrize("make", [stopped, killed])
def test_a_missing_segment_is_named_by_the_index(make: Any, tmp_path: Path) -> None:
    directory = make(tmp_path / "data", settled=10)
    path = segments_of(directory)[0]
    there = [number for number in range(200) if b"message %d " % number in path.read_bytes()]
    path.unlink()
    with pytest.raises(CorruptLog, match="missing"), opened(directory):
        pass
    document = repair(directory)
    if make is stopped:  # the index had a checkpoint
        due = [("audit", one) for one in there] + [("orders", one) for one in there if one >= 10]
        assert lost(document) == sorted(due)
    else:
        assert sum(loss["messages"] for loss in document["losses"]) == len(there)
    rest = [number for number in range(200) if number not in there]
    assert waiting(directory) == {"orders": rest, "audit": rest}


@pytest.mark.parametrize("make", [stopped, killed])
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_without_a_ledger_messages_come_back_as_redelivered(
    make: Any, damage: str, tmp_path: Path
) -> None:
    directory = make(tmp_path / "data", settled=120)
    (path,) = (directory / "ledger").glob("*.qack")
    if damage == "flip":
        flip(path, 70)
    else:
        path.unlink()
    document = repair(directory)
    assert document["losses"] == []
    assert any("marked as redelivered" in note for note in document["notes"])
    with opened(directory) as store:
        assert store.lane(1).delivered == store.lane(1).next_qseq == 200
    found = waiting(directory)
    names = ("orders", "audit")
    if make is killed and damage == "remove":  # no checkpoint of the catalog had come
        names = ("qlog.recovered.1", "qlog.recovered.2")
    assert found[names[1]] == [*range(200)]
    # The index has settlements up to its last checkpoint.
    assert found[names[0]] == [*range(120 if make is stopped else 0, 200)] or damage == "flip"


def test_a_damaged_index_is_moved_out(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", settled=120)
    data = directory / "index.lmdb" / "data.mdb"
    data.write_bytes(data.read_bytes()[:9000])
    document = repair(directory)
    assert document["losses"] == [] and len(document["actions"]) == 1
    assert waiting(directory) == {"orders": [*range(120, 200)], "audit": [*range(200)]}


def test_an_index_that_is_whole_and_wrong_is_moved_out(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", settled=120)
    index = Index(directory / "index.lmdb", map_bytes=1 << 30)
    index.apply([LaneUpdate(1, 200, 200, 130, 0)], (), None)  # settled here, and not in the ledger
    index.close()
    document = repair(directory)
    assert document["losses"] == [] and len(document["actions"]) == 1
    assert waiting(directory) == {"orders": [*range(120, 200)], "audit": [*range(200)]}


def test_a_vhost_that_queues_name_is_defined_again(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    with opened(directory) as store:
        value = {"lane": store.new_lane_id(), "auto_delete": False, "arguments": encode_table({})}
        store.catalog.put("queue", json.dumps(["shop", "one"]), msgpack.packb(value))
    document = repair(directory)
    assert "define the vhost 'shop' again" in document["actions"] and document["losses"] == []
    found = waiting(directory)
    assert found == {"orders": [*range(200)], "audit": [*range(200)], "one": []}
    BrokerProcess(directory).start().terminate()


def damage_entry(directory: Path, name: bytes, offset: int) -> None:
    """In every page that has it, in use or not."""
    path = directory / "catalog.lmdb" / "data.mdb"
    data = path.read_bytes()
    for at in range(len(data)):
        if data.startswith(b"\x00" + name, at):
            flip(path, at + 1 + len(name) + offset)


@pytest.mark.parametrize("damage", ["an entry", "cut", "meta pages", "not LMDB's"])
def test_a_damaged_catalog_is_moved_out_and_costs_nothing(damage: str, tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", settled=120)
    data = directory / "catalog.lmdb" / "data.mdb"
    if damage == "an entry":
        damage_entry(directory, b'["/", "audit"]', 2)
    elif damage == "cut":
        data.write_bytes(data.read_bytes()[:4096])
    elif damage == "meta pages":
        data.write_bytes(bytes(8192) + data.read_bytes()[8192:])
    else:
        data.write_bytes(os.urandom(1 << 15))
    original = data.read_bytes()
    before = inspect(directory, "queues", status=1)["queues"]
    assert before == inspect(stopped(tmp_path / "whole", settled=120), "queues")["queues"]
    document = repair(directory)
    assert document["actions"] == [
        "move the catalog out: it is damaged, and the next start makes it anew"
    ]
    assert (Path(document["quarantine"]) / "catalog.lmdb" / "data.mdb").read_bytes() == original
    assert waiting(directory) == {"orders": [*range(120, 200)], "audit": [*range(200)]}
    inspect(directory, "verify")


def test_a_catalog_that_is_whole_and_wrong_is_moved_out(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    catalog = CatalogFile(directory / "catalog.lmdb", map_bytes=1 << 24)
    checkpoint = catalog.checkpoint()
    assert checkpoint is not None
    catalog.apply({("queue", '["/", "audit"]'): None, ("vhost", '["two"]'): b"\x80"}, checkpoint)
    catalog.close()
    damage = inspect(directory, "verify", status=1)["damage"]
    assert [item["file"] for item in damage] == ["catalog.lmdb"] * 2
    assert "queue 'audit' in vhost '/'" in damage[0]["what"] and "'two'" in damage[1]["what"]
    assert len(repair(directory)["actions"]) == 1
    assert waiting(directory) == {"orders": [*range(200)], "audit": [*range(200)]}


def definitions_of(directory: Path) -> dict[str, list[str]]:
    """The names of what is defined, by kind."""
    document = inspect(directory, "catalog")
    return {
        kind: [item.get(kind[:-1]) or item["destination"] for item in document[kind]]
        for kind in ("vhosts", "users", "exchanges", "queues", "bindings")
    }


@pytest.mark.parametrize("damage", ["remove", "header", "snapshot", "noise"])
def test_with_a_damaged_ledger_a_broker_has_all_definitions_of_the_catalog(
    damage: str, tmp_path: Path
) -> None:
    directory = tmp_path / "data"
    broker = BrokerProcess(directory).start()
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.queue_declare("tasks", durable=True, arguments={"x-max-length": 7})
    channel.exchange_declare("events", "topic", durable=True)
    channel.queue_bind("tasks", "events", "a.#", {"one": 1})
    channel.confirm_delivery()
    channel.basic_publish("events", "a.b", b"kept", pika.BasicProperties(delivery_mode=2))
    connection.close()
    assert broker.terminate()[0] == 0
    before = definitions_of(directory)
    assert before["users"] == ["guest"] and before["bindings"] == ["tasks"]
    ledger = max((directory / "ledger").glob("*.qack"))
    if damage == "remove":
        ledger.unlink()
    elif damage == "noise":
        ledger.write_bytes(os.urandom(ledger.stat().st_size))
    else:
        flip(ledger, {"header": 20, "snapshot": 150}[damage])
    document = repair(directory)
    taken = [one for one in document["actions"] if "over from the catalog" in one]
    assert any("take the queue 'tasks' in vhost '/' over" in one for one in taken) or (
        damage in ("header", "snapshot")  # of the ledger the rest can be read
    )
    assert definitions_of(directory) == before
    broker.start()
    try:
        channel = pika.BlockingConnection(pika.URLParameters(broker.url)).channel()
        channel.queue_declare("tasks", durable=True, arguments={"x-max-length": 7})
        channel.exchange_declare("events", "topic", durable=True)
        channel.basic_publish("events", "a.c", b"new", pika.BasicProperties(delivery_mode=2))
        bodies = [channel.basic_get("tasks", auto_ack=True)[2] for _ in range(2)]
        assert bodies == [b"kept", b"new"]
        assert channel.queue_declare("", exclusive=True).method.queue
    finally:
        assert broker.terminate()[0] == 0
    with opened(directory) as store:
        assert store.new_lane_id() > 1000  # none is given twice


def test_messages_of_a_priority_queue_stay_at_their_levels(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    broker = BrokerProcess(directory).start()
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.queue_declare("tasks", durable=True, arguments={"x-max-priority": 5})
    channel.confirm_delivery()
    for number in range(20):
        properties = pika.BasicProperties(delivery_mode=2, priority=number % 5)
        channel.basic_publish("", "tasks", b"%d" % number, properties)
    connection.close()
    assert broker.terminate()[0] == 0
    rows = inspect(directory, "queues")["queues"]
    found = [(one["queue"], one["priority"], one["unsettled"]) for one in rows]
    assert found == [("tasks", priority, 4) for priority in (4, 3, 2, 1, 0)]
    text = run("queues", "--data-dir", str(directory)).output
    assert "tasks, priority 4" in text and "1 durable queue, 20 unsettled" in text
    assert len(inspect(directory, "messages", "--queue", "tasks")["messages"]) == 20
    inspect(directory, "verify")
    max((directory / "ledger").glob("*.qack")).unlink()
    assert repair(directory)["losses"] == []
    broker.start()
    try:
        channel = pika.BlockingConnection(pika.URLParameters(broker.url)).channel()
        bodies = [channel.basic_get("tasks", auto_ack=True)[2] for _ in range(20)]
        wanted = sorted(range(20), key=lambda number: -(number % 5))
        assert bodies == [b"%d" % number for number in wanted]
    finally:
        assert broker.terminate()[0] == 0


def test_what_the_ledger_still_says_goes_over_what_the_catalog_has(tmp_path: Path) -> None:
    running, directory = tmp_path / "running", tmp_path / "data"
    with opened(running) as store:
        fill(store, 10)
        for name in ("first", "changed", "deleted"):
            store.catalog.put("vhost", json.dumps([name]), b"\x80")
        assert store.checkpoint()
        before = max((running / "ledger").glob("*.qack")).read_bytes().rstrip(b"\0")
        store.catalog.put("vhost", json.dumps(["changed"]), b"\x81\xa1x\x02")
        store.catalog.delete("vhost", json.dumps(["deleted"]))
        store.catalog.put("vhost", json.dumps(["late"]), b"\x80")
        assert store.settle_down()
        shutil.copytree(running, directory)
    (path,) = (directory / "ledger").glob("*.qack")
    data = path.read_bytes()
    path.write_bytes(data[:64].ljust(len(before), b"\x55") + data[len(before) :])
    document = repair(directory)
    assert "take the vhost 'first' over from the catalog" in document["actions"]
    with opened(directory) as store:
        assert store.catalog.items("vhost") == [
            ('["/"]', b"\x80"),
            ('["changed"]', b"\x81\xa1x\x02"),
            ('["first"]', b"\x80"),
            ('["late"]', b"\x80"),
        ]
        assert [name for name, _ in store.catalog.items("queue")] == [
            '["/", "audit"]',
            '["/", "orders"]',
        ]


def test_a_definition_that_neither_has_is_named(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    damage_entry(directory, b'["/", "audit"]', 2)
    shutil.rmtree(directory / "ledger")
    document = repair(directory)
    assert any("queue 'audit'" in note and "is lost" in note for note in document["notes"])
    assert "define the queue 'qlog.recovered.2' in vhost '/', for lane 2" in document["actions"]
    assert waiting(directory) == {"orders": [*range(200)], "qlog.recovered.2": [*range(200)]}


@pytest.mark.parametrize("copied", [("ledger",), ("ledger", "catalog.lmdb")])
def test_queues_that_an_older_ledger_does_not_know_are_defined_again(
    copied: tuple[str, ...], tmp_path: Path
) -> None:
    """By the catalog, if that is not as old."""
    directory = tmp_path / "data"
    with opened(directory) as store:
        store.catalog.put("vhost", json.dumps(["/"]), msgpack.packb({}))
    for name in copied:
        shutil.copytree(directory / name, tmp_path / name)
    with opened(directory) as store:
        fill(store, 100, settled=3)
    shutil.rmtree(directory / "index.lmdb")
    for name in copied:
        shutil.rmtree(directory / name)
        (tmp_path / name).rename(directory / name)
    damage = inspect(directory, "verify", status=1)["damage"]
    assert "catalog.lmdb" not in {item["file"] for item in damage}
    assert any("an older copy, of start 1" in item["what"] for item in damage)
    output = tmp_path / "messages"
    run("export", "-o", str(output), "--data-dir", str(directory), status=1)
    assert len(output.read_text().splitlines()) == 100
    repair(directory)
    names = ["orders", "audit"]
    if "catalog.lmdb" in copied:
        names = ["qlog.recovered.1", "qlog.recovered.2"]
    assert waiting(directory) == {name: [*range(100)] for name in names}


def test_a_queue_that_was_deleted_does_not_come_back_with_an_older_ledger(tmp_path: Path) -> None:
    """The catalog does not have it any more, nor has the index its lane."""
    directory = tmp_path / "data"
    with opened(directory) as store:
        fill(store, 100)
    shutil.copytree(directory / "ledger", tmp_path / "older")
    with opened(directory) as store:
        store.catalog.delete("queue", json.dumps(["/", "orders"]))
        store.drop(store.lane(1))
        assert store.settle_down()
    shutil.rmtree(directory / "ledger")
    (tmp_path / "older").rename(directory / "ledger")
    repair(directory)
    assert waiting(directory) == {"audit": [*range(100)]}


def test_without_a_user_there_is_guest_again(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    BrokerProcess(directory).start().terminate()
    for name in ("ledger", "catalog.lmdb"):
        shutil.rmtree(directory / name)
    actions = "\n".join(repair(directory)["actions"])
    assert "define the user 'guest' again" in actions and "vhost '/' again" in actions
    broker = BrokerProcess(directory).start()
    try:
        pika.BlockingConnection(pika.URLParameters(broker.url)).close()
    finally:
        broker.terminate()


def test_bindings_that_lead_nowhere_and_what_does_not_decode_are_left_out(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    exchange = {"type": "topic", "auto_delete": False, "internal": False}
    with opened(directory) as store:
        for name in ("one", "two"):
            key = json.dumps(["/", name])
            value = exchange | {"arguments": encode_table({})}
            store.catalog.put("exchange", key, msgpack.packb(value))
            binding = json.dumps(["/", name, "queue", "audit", "#", encode_table({}).hex()])
            store.catalog.put("binding", binding, msgpack.packb({}))
        store.catalog.delete("exchange", json.dumps(["/", "two"]))
        store.catalog.put("queue", json.dumps(["/", "three"]), b"\xc1 is not msgpack")
    assert [queue["queue"] for queue in inspect(directory, "catalog")["queues"]] == [
        "audit",
        "orders",
    ]
    document = repair(directory)
    text = "\n".join(document["actions"])
    assert "leave the binding of queue 'audit' to 'two'" in text and "'one'" not in text
    assert "leave the queue 'three' in vhost '/' out: it does not decode" in text
    BrokerProcess(directory).start().terminate()


def test_several_damages_at_once(tmp_path: Path) -> None:
    directory = killed(tmp_path / "data", 300, settled=50)
    segments_of(directory)[1].unlink()
    for number in (7, 150):
        path = file_of(directory, number)
        flip(path, path.read_bytes().index(b"message %d " % number) + 40)
    flip(segments_of(directory)[-2], 10)
    flip(max((directory / "ledger").glob("*.qack")), 90)
    shutil.rmtree(directory / "index.lmdb")
    shutil.rmtree(directory / "catalog.lmdb")
    document = repair(directory)
    gone = sum(loss["messages"] for loss in document["losses"])
    found = waiting(directory)
    assert set(found) == {"orders", "audit"}  # the ledger's first batch is damaged, and no other
    audit = found["audit"]
    assert 7 not in audit and 150 not in audit and len(audit) == 300 - gone
    assert found["orders"] == [number for number in audit if number >= 50]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another broker's directory, of a later epoch."""
    directory = tmp_path_factory.mktemp("other") / "data"
    for _ in range(3):
        with opened(directory):
            pass
    return stopped(directory, 350)


@pytest.mark.parametrize(
    ("make", "source", "place"),
    [
        (killed, "another's", 1),
        (killed, "another's", 6),
        (killed, "another's of this name", 2),
        (killed, "its own", 2),
        (stopped, "its own", 1),
        (stopped, "another's, begun", 2),
    ],
)
def test_a_strange_segment_behind_the_log_is_moved_out(
    make: Any, source: str, place: int, other: Path, tmp_path: Path
) -> None:
    """Another directory's, or one under another's name: no start takes it, and nothing is lost."""
    directory = make(tmp_path / "data")
    *_, last = (int(path.stem) for path in segments_of(directory) if any(path.read_bytes()))
    (directory / "log" / f"{last + 1:010d}.qseg").write_bytes(bytes(1 << 16))  # prepared
    path = directory / "log" / f"{last + place:010d}.qseg"
    data = {
        "another's": segments_of(other)[0],
        "another's, begun": segments_of(other)[0],
        "another's of this name": other / "log" / path.name,
        "its own": segments_of(directory)[1],
    }[source].read_bytes()
    if "begun" in source:
        data = data[:64].ljust(1 << 16, b"\0")
    path.write_bytes(data)
    with pytest.raises(CorruptLog), opened(directory):
        pass
    damage = inspect(directory, "verify", status=1)["damage"]
    assert [(item["file"], item["what"]) for item in damage if "missing" not in item["what"]] == [
        (f"log/{path.name}", "it belongs to another directory, or has another's name")
    ]
    done = repair(directory)
    assert done["losses"] == [] and not path.exists()
    assert (Path(done["quarantine"]) / "log" / path.name).read_bytes() == data
    assert plan(directory, status=0)["actions"] == []
    found = waiting(directory)
    assert found["orders"] == found["audit"] == [*range(200)]


def test_of_a_strange_segment_in_the_place_of_another_nothing_is_taken(
    other: Path, tmp_path: Path
) -> None:
    """Its messages could pass for those that are lost."""
    directory = stopped(tmp_path / "data")
    path = file_of(directory, 60)
    shutil.copy(segments_of(other)[1], path)
    (item, messages) = inspect(directory, "verify", status=1)["damage"]
    assert "another directory" in item["what"] and "50 of 50 messages" in messages["what"]
    output = tmp_path / "messages"
    run("export", "-o", str(output), "--data-dir", str(directory), status=1)
    assert len(output.read_text().splitlines()) == 150
    assert lost(repair(directory)) == sorted(
        (queue, number) for queue in ("orders", "audit") for number in range(50, 100)
    )
    assert waiting(directory)["orders"] == [*range(50), *range(100, 200)]


def test_files_of_other_directories_are_no_evidence_against_the_catalog(
    other: Path, tmp_path: Path
) -> None:
    directory = stopped(tmp_path / "data")
    for name in ("log/*.qseg", "ledger/*.qack"):
        ours, theirs = max(directory.glob(name)), max(other.glob(name))
        assert theirs.name > ours.name
        shutil.copy(theirs, ours.parent)
        shutil.copy(min(other.glob(name)), ours.with_stem(f"{int(ours.stem) + 1:010d}"))
    damage = inspect(directory, "verify", status=1)["damage"]
    assert "catalog.lmdb" not in {item["file"] for item in damage}
    assert not repair(directory)["losses"]
    found = waiting(directory)
    assert found["orders"] == found["audit"] == [*range(200)]


def test_twice_is_as_once(tmp_path: Path) -> None:
    directory = killed(tmp_path / "data")
    path = file_of(directory, 60)
    flip(path, path.read_bytes().index(b"message 60 ") + 40)
    repair(directory)
    assert plan(directory, status=0)["actions"] == []
    first = waiting(directory)
    path = file_of(directory, 61)
    flip(path, path.read_bytes().index(b"message 61 ") + 40)
    document = repair(directory)  # of a segment that a repair had written
    assert lost(document) == [("audit", 61), ("orders", 61)]
    assert waiting(directory) == {
        name: [number for number in numbers if number != 61] for name, numbers in first.items()
    }


def compact(directory: Path, segment_id: int, *, every: int) -> None:
    """What compaction writes of the first segment when so few messages of it wait."""
    looked = Directory(directory)
    view = looked.segment(1)
    assert view.trailer is not None
    base, end = view.trailer.base_lsn, view.trailer.end_lsn
    path = looked.paths.segment(segment_id)
    uuid = looked.identity.uuid
    writer = SparseWriter(OSDisk(), path, uuid, 1, base_lsn=base, durable_lsn=base)
    for stretch in looked.stretches(view):
        assert stretch.batch is not None
        for lsn, position, record in looked.records(stretch.batch):
            if lsn % every == 0:
                lanes, firsts = record.targets[0::2], record.targets[1::2]
                data = looked.read(view, record.length, position)
                writer.add(lsn, lanes, firsts, array("I", [record.length]), data)
    writer.finish(end)


def test_what_is_lost_at_the_end_counts_once(tmp_path: Path) -> None:
    directory = killed(tmp_path / "data", settled=3)
    path = file_of(directory, 199)
    there = sum(b"message %d " % number in path.read_bytes() for number in range(200))
    path.write_bytes(path.read_bytes()[:64] + os.urandom(path.stat().st_size - 64))
    document = repair(directory)
    assert sum(loss["messages"] for loss in document["losses"]) == there
    rest = [*range(200 - there)]
    assert waiting(directory) == {"orders": rest[3:], "audit": rest}


def test_without_a_ledger_what_was_compacted_twice_counts_once(tmp_path: Path) -> None:
    """Between the second compaction and the end of the file that the first one wrote."""
    directory = stopped(tmp_path / "data")
    compact(directory, COMPACTED, every=2)
    compact(directory, COMPACTED + 1, every=4)
    first = segments_of(directory)[0]
    end = min(number for number in range(200) if b"message %d " % number not in first.read_bytes())
    first.unlink()
    max((directory / "ledger").glob("*.qack")).write_bytes(os.urandom(4096))
    shutil.rmtree(directory / "index.lmdb")
    found = [item["what"] for item in inspect(directory, "verify", status=1)["damage"]]
    assert f"it has messages 0 to {end - 1}, and so has the one before it" in found
    assert repair(directory)["losses"] == []
    rest = [*range(0, end, 4), *range(end, 200)]
    assert waiting(directory) == {"orders": rest, "audit": rest}


@pytest.mark.parametrize("all_of_it", [True, False])
def test_what_a_damaged_compacted_segment_is_made_of_counts_instead(
    all_of_it: bool, tmp_path: Path
) -> None:
    """A crash came before the sources were given up, and the ledger is damaged, too."""
    directory = stopped(tmp_path / "data", settled=10)
    compact(directory, COMPACTED, every=1)
    path = directory / "log" / f"{COMPACTED:010d}.qseg"
    flip(path, path.read_bytes().index(b"message 20 "))
    ledger = max((directory / "ledger").glob("*.qack"))
    if all_of_it:
        ledger.write_bytes(os.urandom(4096))
    else:
        looked = Directory(directory)
        stretches = looked.stretches(looked.ledger_file(int(ledger.stem)))
        flip(ledger, [one.position for one in stretches if one.batch is not None][-3] + 60)
        assert Directory(directory).standings([1, COMPACTED]) == {COMPACTED: "unfinished"}
    assert repair(directory)["losses"] == []
    assert waiting(directory)["audit"] == [*range(200)]


def make_unreadable(path: Path, position: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the disk in the place of these 4096 bytes went bad."""
    inode = path.stat().st_ino
    real = os.pread

    def pread(file: int, size: int, offset: int) -> bytes:
        if os.fstat(file).st_ino == inode and offset < position + 4096 and position < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, size, offset)

    monkeypatch.setattr(os, "pread", pread)


@pytest.mark.parametrize(
    ("make", "position"), [(stopped, 0), (killed, 8192), (stopped, -4096), (killed, -4096)]
)
def test_of_an_unreadable_sector_only_that_is_lost(
    make: Any, position: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the begin of a segment, in its middle, and in its footer or where nothing was written."""
    directory = make(tmp_path / "data")
    path = segments_of(directory)[-1 if make is killed else 1]
    position = position if position >= 0 else path.stat().st_size // 4096 * 4096 + position
    make_unreadable(path, position, monkeypatch)
    for command in ("summary", "segments", "queues", "messages", "index"):
        result = CliRunner().invoke(app, ["inspect", command, "--data-dir", str(directory)])
        assert result.exit_code in (0, 1) and isinstance(result.exception, SystemExit | None)
    items = inspect(directory, "verify", status=1)["damage"]
    assert (f"log/{path.name}", position, position + 4096) in [
        (item["file"], item["position"], item["end"]) for item in items if "read:" in item["what"]
    ]
    output = tmp_path / "messages"
    run("export", "-o", str(output), "--data-dir", str(directory), status=1)
    losses = repair(directory)["losses"]
    found = waiting(directory)
    gone = {*range(200)} - {*found["orders"]}
    assert found == dict.fromkeys(("orders", "audit"), sorted({*range(200)} - gone))
    assert len(gone) == sum(loss["messages"] for loss in losses) <= 5
    # Some are only counted: which they were is known if the index has pointers to them.
    assert {loss["lsn"] for loss in losses} - {None} <= gone
    assert len(output.read_text().splitlines()) >= len(found["orders"])


@pytest.mark.parametrize("file", ["ledger/*.qack", "index.lmdb/data.mdb", "catalog.lmdb/data.mdb"])
def test_an_unreadable_sector_elsewhere_costs_no_message(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = stopped(tmp_path / "data", settled=3)
    (path,) = directory.glob(file)
    make_unreadable(path, 4096, monkeypatch)
    assert inspect(directory, "verify", status=1)["damage"]
    assert repair(directory)["losses"] == []
    assert waiting(directory) == {"orders": [*range(3, 200)], "audit": [*range(200)]}


def test_a_forgiving_disk_does_all_that_the_system_does(tmp_path: Path) -> None:
    disk = ForgivingDisk()
    disk.sync_directory(tmp_path)
    disk.release()


def test_where_links_cannot_be_originals_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log may lie on another file system."""
    directory = stopped(tmp_path / "data")
    elsewhere = tmp_path / "elsewhere"
    (directory / "log").rename(elsewhere)
    (directory / "log").symlink_to(elsewhere)
    path = segments_of(directory)[1]
    path.write_bytes(os.urandom(1 << 16))
    original = path.read_bytes()
    make_unreadable(segments_of(directory)[2], 8192, monkeypatch)

    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", link)
    done = repair(directory)
    assert (Path(done["quarantine"]) / "log" / path.name).read_bytes() == original
    assert plan(directory, status=0)["actions"] == []


def test_a_full_disk_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = stopped(tmp_path / "data")
    for number in (7, 70):
        path = file_of(directory, number)
        flip(path, path.read_bytes().index(b"message %d " % number) + 40)
    arguments = ("repair", "--accept-loss", "--data-dir", str(directory))
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
        assert "KiB, and 4.0 KiB are free" in run(*arguments, status=2).stderr
        assert not (directory / "quarantine").exists()

    def write(self: SparseWriter) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(SparseWriter, "_write", write)
        assert "can be repeated" in run(*arguments, status=2).stderr
    assert not [*(directory / "log").glob("*.new")]
    (account,) = directory.glob("quarantine/*/repair.json")
    content = json.loads(account.read_text())
    assert not content["done"] and content["quarantine"] == str(account.parent)
    done = repair(directory)
    account = Path(done["quarantine"]) / "repair.json"
    assert json.loads(account.read_text())["done"]
    rest = [number for number in range(200) if number not in (7, 70)]
    assert waiting(directory) == {"orders": rest, "audit": rest}


def test_a_start_after_a_kill_leaves_the_originals_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker writes in place to files that a repair which was killed had in the quarantine."""
    directory = stopped(tmp_path / "data")
    path = file_of(directory, 60)
    with opened(directory) as store:
        value = {"lane": store.new_lane_id(), "auto_delete": False, "arguments": encode_table({})}
        store.catalog.put("queue", json.dumps(["shop", "one"]), msgpack.packb(value))
    flip(path, path.read_bytes().index(b"message 60 ") + 40)
    names = [path.name, "data.mdb", *(one.name for one in (directory / "ledger").glob("*.qack"))]

    def kill(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killing:
        killing.setattr(repair_act, "mark_doubt", kill)
        CliRunner().invoke(
            app, ["inspect", "repair", "--accept-loss", "--data-dir", str(directory)]
        )
    (quarantine,) = (directory / "quarantine").iterdir()
    before = fingerprint(quarantine / "ledger") | fingerprint(quarantine / "catalog.lmdb")
    before |= fingerprint(quarantine / "log")
    assert {Path(one).name for one in before} >= {*names}
    for number in range(3):
        with opened(directory) as store:
            store.catalog.put("vhost", json.dumps([str(number)]), msgpack.packb({}))
            fill(store, 10, settled=5)
    after = fingerprint(quarantine / "ledger") | fingerprint(quarantine / "catalog.lmdb")
    assert after | fingerprint(quarantine / "log") == before


class Kills:
    """What a kill would leave of a directory, after each thing that is done to a file of it."""

    def __init__(self, directory: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.left: list[Path] = []
        self._copies = copies
        self._seen: list[object] = []
        for name in ("open", "write", "allocate", "truncate", "rename", "unlink"):
            self._watch(monkeypatch, OSDisk, name)
        self._watch(monkeypatch, os, "link")
        self._watch(monkeypatch, os, "unlink")
        self._watch(monkeypatch, os, "rmdir")

    def _watch(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            self._look()
            return result

        monkeypatch.setattr(owner, name, watched)

    def _look(self) -> None:
        state = {
            path: (one[1], one[2])
            for path, one in fingerprint(self.directory).items()
            if not path.endswith(".new")  # what is being written is of no account
        }
        if state not in self._seen:
            self._seen.append(state)
            self.left.append(self._copies / str(len(self.left)))
            shutil.copytree(self.directory, self.left[-1])


def test_a_kill_at_any_time_costs_nothing(tmp_path: Path) -> None:
    """No original is lost, a start refuses or has all there is, and repairing again helps."""
    directory = stopped(tmp_path / "data", settled=120)
    path = file_of(directory, 130)
    flip(path, path.read_bytes().index(b"message 130 ") + 40)
    file_of(directory, 60).write_bytes(os.urandom(1 << 16))
    flip(max((directory / "ledger").glob("*.qack")), 120)
    damage_entry(directory, b'["/", "audit"]', 2)
    originals = {
        one[2]
        for path, one in fingerprint(directory).items()
        if one[1] > 4096 and not path.endswith("lock.mdb")  # LMDB makes it anew
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        kills = Kills(directory, tmp_path / "kills", monkeypatch)
        run("repair", "--accept-loss", "--data-dir", str(directory))
    due = waiting(directory)
    assert set(due) == {"orders", "audit"} and due["orders"][0] == 120 and 130 not in due["audit"]
    refused = 0
    before = None
    for left in kills.left:
        found = fingerprint(left)
        assert originals <= {one[2] for one in found.values()}
        shown = {
            path.removeprefix(str(left)): one[2]
            for path, one in found.items()
            if "quarantine" not in path
        }
        if shown == before:
            continue
        before = shown
        again = left.with_name(left.name + "-again")
        shutil.copytree(left, again)
        try:
            assert waiting(left) == due
        except StorageError:
            refused += 1
            run("repair", "--accept-loss", "--data-dir", str(again))
            assert waiting(again) == due
    assert refused


def test_not_while_a_broker_runs(tmp_path: Path) -> None:
    with opened(tmp_path / "data"):
        result = run("repair", "--accept-loss", "--data-dir", str(tmp_path / "data"), status=2)
        assert "a broker runs on the directory; stop it first" in result.stderr
    run("repair", "--data-dir", str(tmp_path / "none"), status=2)


def test_people_read_what_is_lost(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    path = file_of(directory, 7)
    flip(path, path.read_bytes().index(b"message 7 ") + 40)
    text = run("repair", "--data-dir", str(directory), status=1).stdout
    for part in (
        "to be done",
        "write log/0000000001.qseg again",
        "orders #7 unsettled; audit #7 unsettled",
        "amq.topic / orders.new",
        "nothing was changed; 1 message lost; with --accept-loss it is done",
    ):
        assert part in text
