"""`qlog inspect summary`, `catalog`, `message` and `history`."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qlog.routing.binding import Binding
from qlog.server.amqp.envelope import Envelope
from qlog.server.amqp.properties import Properties, encode_properties
from qlog.server.amqp.values import Timestamp
from qlog.server.broker.access.passwords import hash_for_rabbitmq
from qlog.server.broker.access.users import User
from qlog.server.broker.definitions import Definitions
from qlog.server.broker.features.policy import Policy
from qlog.server.broker.features.vhost_settings import VHostSettings
from qlog.storage.store import Store
from qlog.tools.cli import app
from tests.tools.directories import (
    NOW_MS,
    SETTINGS,
    body,
    fill,
    flip,
    inspect,
    killed,
    opened,
    segments_of,
    stopped,
)

COMMANDS = (
    ["summary"],
    ["segments"],
    ["queues"],
    ["messages", "--limit", "300"],
    ["message", "55"],
    ["history", "orders"],
    ["ledger", "--full"],
    ["index"],
    ["catalog"],
)


# -- all of them


@pytest.mark.parametrize("columns", [30, 80])
def test_no_view_overruns_a_terminal(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    from qlog.tools.inspect import rows

    directory = stopped(tmp_path / "data", settled=60)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(rows, "_is_terminal", lambda: True)
    for command in COMMANDS:
        result = CliRunner().invoke(app, ["inspect", *command, "--data-dir", str(directory)])
        assert result.exit_code == 0, command
        assert max(map(len, result.stdout.splitlines())) <= columns, command


def damaged_catalog(directory: Path) -> None:
    path = directory / "catalog.lmdb" / "data.mdb"
    path.write_bytes(path.read_bytes().replace(b"arguments", b"argumentz"))


def cut_catalog(directory: Path) -> None:
    path = directory / "catalog.lmdb" / "data.mdb"
    path.write_bytes(path.read_bytes()[:9000])


def cut_index(directory: Path) -> None:
    path = directory / "index.lmdb" / "data.mdb"
    path.write_bytes(path.read_bytes()[:9000])


def no_ledger(directory: Path) -> None:
    shutil.rmtree(directory / "ledger")


def no_log(directory: Path) -> None:
    shutil.rmtree(directory / "log")


def zeroed_segment(directory: Path) -> None:
    path = segments_of(directory)[1]
    path.write_bytes(bytes(path.stat().st_size))


def zeroed_ledger(directory: Path) -> None:
    (path,) = (directory / "ledger").glob("*.qack")
    path.write_bytes(bytes(path.stat().st_size))


def cut_segment(directory: Path) -> None:
    path = segments_of(directory)[0]
    path.write_bytes(path.read_bytes()[:20_000])


def noise_in_segment(directory: Path) -> None:
    path = segments_of(directory)[0]
    data = bytearray(path.read_bytes())
    data[64 : len(data) : 97] = bytes((at * 31) % 256 for at in range(len(data[64::97])))
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "damage"),
    [
        (stopped, damaged_catalog),
        (killed, cut_catalog),
        (stopped, cut_index),
        (killed, no_ledger),
        (stopped, no_log),
        (killed, no_log),
        (stopped, zeroed_segment),
        (killed, zeroed_segment),
        (stopped, zeroed_ledger),
        (killed, cut_segment),
        (stopped, noise_in_segment),
    ],
)
def test_no_view_fails_on_damage(make: Any, damage: Any, tmp_path: Path) -> None:
    directory = make(tmp_path / "data", 120, settled=60)
    damage(directory)
    for command in COMMANDS:
        result = CliRunner().invoke(
            app, ["inspect", *command, "--data-dir", str(directory), "--json"]
        )
        assert result.exit_code in (0, 1, 2), (command, result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit), command
        if result.exit_code == 2:  # what was asked for cannot be known
            assert command[0] in ("message", "history"), (command, result.stderr)
        else:
            json.loads(result.stdout)
    inspect(directory, "summary", status=1)


# -- summary


@pytest.mark.parametrize("make", [stopped, killed])
def test_the_summary_counts(make: Any, tmp_path: Path) -> None:
    document = inspect(make(tmp_path / "data", settled=120), "summary")
    assert document["messages"] == {"in_log": 200, "unsettled": 200}
    assert document["definitions"]["queues"] == 2 and document["end_lsn"] == 200
    assert document["times"]["oldest"] == "2023-11-14T22:13:20.000Z"
    assert document["segments"]["sealed"]["segments"] >= 3 and not document["running"]
    replayed = document["next_start"]["messages_replayed"]
    assert (replayed == 0) == (make is stopped) and not document["next_start"]["refused"]
    assert document["run_next"][0]["command"] == "qlog inspect queues"


def test_the_summary_says_what_a_start_would_do(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    shutil.rmtree(directory / "index.lmdb")
    start = inspect(directory, "summary")["next_start"]
    assert start["rebuilds_index"] == "it is missing" and not start["refused"]
    segments_of(directory)[0].unlink()
    document = inspect(directory, "summary", status=1)
    assert document["next_start"]["refused"]
    assert document["run_next"][0]["command"] == "qlog inspect verify"


def test_the_summary_of_a_directory_never_used(tmp_path: Path) -> None:
    with opened(tmp_path / "data"):
        pass
    document = inspect(tmp_path / "data", "summary")
    assert document["messages"] == {"in_log": 0, "unsettled": 0}
    assert document["times"] == {"oldest": None, "newest": None, "oldest_unsettled": None}


# -- catalog


def test_the_catalog_shows_definitions_and_no_secrets(tmp_path: Path) -> None:
    with opened(tmp_path / "data") as store:
        fill(store, 10)
        definitions = Definitions(store.catalog)
        limits = {"max-queues": 9}
        definitions.save_vhost("/", VHostSettings("main", ("a", "b"), "quorum", limits))
        policy = Policy("p", "^a", {"expires": 5}, 1, "queues")
        definitions.save_policy("/", "policy", policy)
        definitions.save_policy("/", "operator_policy", Policy("o", "", {"max-length": 5}))
        hashed = hash_for_rabbitmq(b"secret", b"salt")
        me = User("me", hashed, ("administrator",), {"/": (".*", "", "")})
        me.topic_permissions["/"] = {"amq.topic": ("a", "")}
        me.limits = {"max-channels": 5}
        definitions.save_user(me)
        definitions.save_binding("/", Binding("amq.topic", "queue", "orders", "a.#", {"x": 1}))
    directory = tmp_path / "data"
    document = inspect(directory, "catalog")
    assert document["users"] == [
        {
            "user": "me",
            "tags": ["administrator"],
            "permissions": {"/": [".*", "", ""]},
            "topic_permissions": {"/": {"amq.topic": ["a", ""]}},
            "limits": {"max-channels": 5},
            "hashing_algorithm": "rabbit_password_hashing_sha256",
        }
    ]
    (vhost,) = document["vhosts"]
    assert vhost == {
        "vhost": "/",
        "description": "main",
        "tags": ["a", "b"],
        "default_queue_type": "quorum",
        "limits": limits,
        "protected_from_deletion": False,
    }
    (shown,) = document["policies"]
    assert (shown["policy"], shown["definition"]) == ("p", {"expires": 5})
    assert [row["policy"] for row in document["operator_policies"]] == ["o"]
    assert [queue["queue"] for queue in document["queues"]] == ["audit", "orders"]
    (binding,) = document["bindings"]
    assert (binding["destination"], binding["routing_key"]) == ("orders", "a.#")
    assert binding["arguments"] == {"x": 1} and document["identity"]["epoch"] == 1
    assert "bindings" not in inspect(directory, "catalog", "queues")
    assert inspect(directory, "catalog", "--vhost", "other")["queues"] == []
    text = CliRunner().invoke(app, ["inspect", "catalog", "--data-dir", str(directory)]).stdout
    assert "1 policy, 1 operator policy" in " ".join(text.split())
    assert "max-length=5" in text and "operator policies" in text
    assert "queue orders" in text and hashed.hex() not in text + json.dumps(document)


# -- message


@pytest.mark.parametrize("make", [stopped, killed])
@pytest.mark.parametrize("which", [["55"], ["--queue", "audit", "--offset", "55"], ["199"]])
def test_a_message_is_taken_apart(make: Any, which: list[str], tmp_path: Path) -> None:
    directory = make(tmp_path / "data", settled=60)
    document = inspect(directory, "message", *which)
    lsn = 199 if which == ["199"] else 55
    assert document["message"]["lsn"] == lsn
    assert document["message"]["body"].encode() == body(lsn)
    assert all(check["right"] for check in document["checksums"])
    names = {check["of"] for check in document["checksums"]}
    assert {"file header", "batch header", "batch", "record"} <= names
    position = document["message"]["position"]
    of_record = [field for field in document["fields"] if field["position"] >= position]
    path = directory / document["message"]["file"]
    data = path.read_bytes()
    for field in document["fields"]:
        octets = bytes.fromhex(field["hex"])
        assert data[field["position"] : field["position"] + len(octets)] == octets
    for before, after in pairwise(of_record):  # no byte of the record is left out
        assert before["position"] + len(before["hex"]) // 2 == after["position"]
    end = position + document["message"]["stored_bytes"]
    assert of_record[-1]["position"] + len(of_record[-1]["hex"]) // 2 == end
    values = {(field["part"], field["name"]): field["value"] for field in document["fields"]}
    assert values["meta", "routing key"] == "'orders.new'"
    assert values["properties", "content_type"] == "text/plain"
    assert values["batch header", "first LSN"] == str(lsn // 10 * 10)


def test_every_property_of_a_message_is_taken_apart(tmp_path: Path) -> None:
    """Fields of every size, one behind the other."""
    texts = ("content_encoding", "correlation_id", "reply_to", "expiration", "message_id", "type")
    properties = Properties(
        content_type="text/plain",
        headers={"n": 1},
        delivery_mode=2,
        priority=7,
        timestamp=Timestamp(1_700_000_000),
        **{name: str(number) for number, name in enumerate(texts, 60)},
    )
    directory = tmp_path / "data"
    with opened(directory) as store:
        fill(store, 10)
        meta = Envelope.pack("", "orders", encode_properties(properties), 4)
        store.append([store.lane(1)], [meta], [b"text"], persistent=True, now_ms=NOW_MS)
    document = inspect(directory, "message", "10")
    found = [field for field in document["fields"] if field["part"] == "properties"]
    for before, after in pairwise(found):
        assert before["position"] + len(before["hex"]) // 2 == after["position"]
    shown = {field["name"]: field["value"] for field in found[1:]}
    plain = document["message"]["properties"] | {"headers": '{"n": 1}'}
    assert shown == {name: str(value) for name, value in plain.items()}


def test_a_damaged_message_is_taken_apart(tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    path = segments_of(directory)[1]
    flip(path, path.read_bytes().index(b"message 55 ") + 500)
    document = inspect(directory, "message", "55", status=1)
    right = {check["of"]: check["right"] for check in document["checksums"]}
    assert right == {
        "file header": True,
        "batch header": True,
        "batch": False,
        "record": False,
        "footer": True,
    }
    assert document["message"]["exchange"] == "amq.topic"


@pytest.mark.parametrize("offset", range(0, 32, 3))
def test_a_damaged_record_header_is_taken_apart(offset: int, tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data", 60)
    position = inspect(directory, "message", "55")["message"]["position"]
    flip(segments_of(directory)[1], position + offset)
    document = inspect(directory, "message", "55", status=1)
    assert document["message"]["damage"] or offset in (12, 14)  # not covered by the record's own
    assert not {check["of"]: check["right"] for check in document["checksums"]}["batch"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name one message"),
        (["5", "--queue", "orders", "--offset", "5"], "name one message"),
        (["--queue", "orders"], "name one message"),
        (["200"], "the log ends before LSN 200"),
        (["--queue", "orders", "--offset", "500"], "has no #500"),
    ],
)
def test_a_message_that_is_not_there(arguments: list[str], text: str, tmp_path: Path) -> None:
    directory = stopped(tmp_path / "data")
    result = CliRunner().invoke(
        app, ["inspect", "message", *arguments, "--data-dir", str(directory)]
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert text in result.stderr and len(result.stderr.splitlines()) == 1


# -- history


def test_the_history_of_messages(tmp_path: Path) -> None:
    now_ms = NOW_MS
    store: Store[Envelope] = Store.open(
        tmp_path / "data",
        decode=Envelope.unpack,
        notify=lambda: None,
        settings=SETTINGS,
        clock_ms=lambda: now_ms,
    )
    fill(store, 10)
    raw = encode_properties(Properties(message_id="mine"))
    meta = Envelope.pack("shop", "order", raw, 4)
    lanes = [store.lane(1), store.lane(2)]
    store.append(lanes, [meta], [b"text"], persistent=True, now_ms=NOW_MS)
    for first, after_ms in ((0, 5000), (1, 5500), (2, 9000)):
        now_ms = NOW_MS + after_ms
        store.lane(1).settle(first, 1)
        store.lane(1).note_delivered(first + 3)
        assert store.settle_down()
    store.close()
    directory = tmp_path / "data"
    messages = inspect(directory, "history", "orders")["messages"]
    assert [message["offset"] for message in messages] == list(range(11))
    times = [
        (message["settled"]["after"][-7:], message["settled"]["before"][-7:])
        for message in messages[:3]
    ]
    assert times == [("25.000Z", "25.000Z"), ("25.000Z", "26.000Z"), ("29.000Z", "29.000Z")]
    assert messages[3]["settled"] is None and messages[3]["delivered"]["after"][-7:] == "25.000Z"
    assert messages[5]["delivered"] is None
    (mine,) = inspect(directory, "history", "orders", "--message-id", "mine")["messages"]
    assert (mine["offset"], mine["published"]["exchange"]) == (10, "shop")
    assert [target["queue"] for target in mine["routed_to"]] == ["orders", "audit"]
    with opened(directory):  # the ledger begins anew: times are forgotten, facts are not
        pass
    messages = inspect(directory, "history", "orders", "--offset", "1-3")["messages"]
    assert [message["settled"] for message in messages] == [
        {"after": None, "before": None, "ledger_batch": None}
    ] * 2 + [None]


def test_the_history_of_a_message_that_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with opened(directory) as store:
        fill(store, 200)
        for lane_id in (1, 2):
            store.lane(lane_id).settle(0, 200)
        for _ in range(4):
            assert store.checkpoint()
    (message,) = inspect(directory, "history", "orders", "--offset", "7")["messages"]
    assert message["published"] is None and message["settled"] is not None
    result = CliRunner().invoke(
        app, ["inspect", "history", "orders", "--offset", "7", "--data-dir", str(directory)]
    )
    assert "the log does not have it" in result.stdout
