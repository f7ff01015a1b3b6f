"""Definitions files: what RabbitMQ exports is loaded, again without effect, all of it or nothing.

The documents are shaped as RabbitMQ 4.0.5 and 3.8 write them.
"""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.broker.definitions_file import Import, read_definitions
from qlog.server.broker.features.policy import Policy
from qlog.server.broker.features.vhost_settings import VHostSettings
from qlog.server.broker.operations import DefinitionsError
from tests.server.broker.support import Bench, Peer, make

# The hash of RabbitMQ 4.0.5 for guest's password.
GUEST = "Kt2wcFR0geYPpWLRMQw2LpWgLvfqyT7R691lJ+hUsUfdEiz5"
SHA256 = "rabbit_password_hashing_sha256"


def user(name: str = "guest", **other: Any) -> dict[str, Any]:
    return {
        "name": name,
        "password_hash": GUEST,
        "hashing_algorithm": SHA256,
        "tags": ["administrator"],
        "limits": {},
        **other,
    }


DOCUMENT: dict[str, Any] = {
    "rabbit_version": "4.0.5",
    "rabbitmq_version": "4.0.5",
    "product_name": "RabbitMQ",
    "original_cluster_name": "rabbit@somewhere",
    "users": [user(limits={"max-connections": 50, "max-channels": -1})],
    "vhosts": [
        {"name": "/", "metadata": {}, "limits": []},
        {
            "name": "shop",
            "limits": [["max-queues", 5]],
            "default_queue_type": "quorum",
            "metadata": {
                "description": "the shop",
                "tags": ["a", "b"],
                "default_queue_type": "quorum",
            },
        },
    ],
    "permissions": [
        {"user": "guest", "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"}
        for vhost in ("/", "shop")
    ],
    "topic_permissions": [
        {
            "user": "guest",
            "vhost": "shop",
            "exchange": "amq.topic",
            "write": "^{username}",
            "read": "",
        }
    ],
    "parameters": [
        {
            "component": "vhost-limits",
            "name": "limits",
            "value": {"max-queues": 5},
            "vhost": "shop",
        },
        {
            "component": "operator_policy",
            "name": "op",
            "value": {
                "apply-to": "all",
                "definition": [["max-length", 5]],  # RabbitMQ 4.0.5 writes pairs here
                "pattern": "^o",
                "priority": 0,
            },
            "vhost": "shop",
        },
    ],
    "global_parameters": [{"name": "cluster_tags", "value": []}],
    "policies": [
        {
            "vhost": "shop",
            "name": "ttl",
            "pattern": "^(?!amq\\.).*",
            "apply-to": "queues",
            "definition": {"message-ttl": 60000},
            "priority": 1,
        }
    ],
    "exchanges": [
        {
            "name": "x",
            "vhost": "shop",
            "type": "topic",
            "durable": True,
            "auto_delete": False,
            "internal": False,
            "arguments": {"alternate-exchange": "amq.fanout"},
        }
    ],
    "queues": [
        {
            "name": "orders",
            "vhost": "shop",
            "type": "classic",
            "durable": True,
            "auto_delete": False,
            "arguments": {"x-queue-type": "classic", "x-max-length": 9, "note": [1, "a", None]},
        },
        {"name": "by-default", "vhost": "shop", "durable": True, "auto_delete": False},
    ],
    "bindings": [
        {
            "source": "x",
            "vhost": "shop",
            "destination": "orders",
            "destination_type": "queue",
            "routing_key": "a.#",
            "arguments": {},
        },
        {
            "source": "amq.topic",
            "vhost": "shop",
            "destination": "x",
            "destination_type": "exchange",
            "routing_key": "k",
            "arguments": {"n": 1},
        },
    ],
}


def without(**changes: Any) -> dict[str, Any]:
    """The document with some sections replaced."""
    return {**copy.deepcopy(DOCUMENT), **changes}


def start(bench: Bench, document: dict[str, Any] | None) -> None:
    """Start again, with definitions to load."""
    bench.close()
    bench.document = document
    bench.open()
    bench.finish_jobs()


def exported(bench: Bench) -> dict[str, Any]:
    outcome = bench.broker.export_definitions()
    bench.finish_jobs()
    return outcome.result()


def contents(bench: Bench) -> dict[str, bytes]:
    """All definitions but the directory's own."""
    catalog = bench.store.catalog
    return {
        f"{record.kind} {record.name}": record.value or b""
        for record in catalog.records()
        if record.kind != "storage" and catalog.get(record.kind, record.name) is not None
    }


def test_a_document_of_rabbitmq_is_loaded(bench: Bench) -> None:
    start(bench, DOCUMENT)
    shop = bench.broker.vhosts["shop"]
    assert shop.settings == VHostSettings("the shop", ("a", "b"), "quorum", {"max-queues": 5})
    assert [policy.name for policy in shop.policies.all("policy")] == ["ttl"]
    (operator_policy,) = shop.policies.all("operator_policy")
    assert operator_policy == Policy("op", "^o", {"max-length": 5})
    orders = shop.queues["orders"]
    assert (orders.effective.max_length, orders.effective.message_ttl_ms) == (5, 60000)
    assert orders.declared.arguments.table["note"] == [1, "a", None]
    assert shop.queues["by-default"].declared.arguments.type == "quorum"
    peer = Peer(bench, vhost="shop")  # with the password that RabbitMQ hashed
    peer.publish(1, "a.b", b"m", exchange="x")
    assert orders.ready == 1
    # An exchange and a binding like any other: a redeclaration meets what was declared.
    declare = make(
        spec.ExchangeDeclare,
        exchange="x",
        type="topic",
        durable=True,
        arguments={"alternate-exchange": "amq.fanout"},
    )
    assert peer.ask(1, declare, spec.ExchangeDeclareOk)


def test_loading_again_changes_nothing(bench: Bench) -> None:
    start(bench, DOCUMENT)
    bench.disk()
    before = contents(bench)
    start(bench, DOCUMENT)
    assert contents(bench) == before
    assert not [key for key in bench.store.catalog.take_changed() if key[0] != "storage"]
    start(bench, None)
    assert contents(bench) == before
    assert set(bench.broker.vhosts["shop"].queues) == {"orders", "by-default"}


def test_what_is_there_stays_and_what_is_set_is_set_again(bench: Bench) -> None:
    start(bench, DOCUMENT)
    changed = without()
    changed["queues"][0]["arguments"] = {"x-max-length": 1}
    changed["exchanges"][0]["type"] = "fanout"
    changed["policies"][0]["definition"] = {"message-ttl": 5}
    changed["users"] = [user(tags="monitoring, management", password="secret")]
    changed["vhosts"][1]["metadata"] = {"description": "new"}
    del changed["vhosts"][1]["default_queue_type"]
    start(bench, changed)
    shop = bench.broker.vhosts["shop"]
    assert shop.queues["orders"].declared.arguments.table["x-max-length"] == 9
    assert shop.exchange("x").type == "topic"
    assert shop.queues["orders"].effective.message_ttl_ms == 5
    assert shop.settings == VHostSettings("new", (), None, {"max-queues": 5})
    guest = bench.broker.users["guest"]
    assert guest.tags == ("monitoring", "management") and guest.check_password(b"secret")
    assert set(guest.permissions) == {"/", "shop"}


def test_a_document_says_whether_a_vhost_is_protected(bench: Bench) -> None:
    document = without()
    document["vhosts"][1]["metadata"]["protected_from_deletion"] = True
    start(bench, document)
    assert bench.broker.vhosts["shop"].settings.protected_from_deletion
    (shop,) = [vhost for vhost in exported(bench)["vhosts"] if vhost["name"] == "shop"]
    assert shop["metadata"]["protected_from_deletion"] is True
    start(bench, DOCUMENT)  # which says nothing of it
    assert bench.broker.vhosts["shop"].settings.protected_from_deletion
    document["vhosts"][1]["metadata"]["protected_from_deletion"] = False
    start(bench, document)
    assert not bench.broker.vhosts["shop"].settings.protected_from_deletion
    (shop,) = [vhost for vhost in exported(bench)["vhosts"] if vhost["name"] == "shop"]
    assert "protected_from_deletion" not in shop["metadata"]


def test_what_is_exported_is_what_was_loaded(bench: Bench) -> None:
    start(bench, DOCUMENT)
    peer = Peer(bench, vhost="shop")
    make_queue = make(spec.QueueDeclare, queue="mine", exclusive=True)
    assert peer.ask(1, make_queue, spec.QueueDeclareOk)
    bind = make(spec.QueueBind, queue="mine", exchange="amq.direct", routing_key="k")
    assert peer.ask(1, bind, spec.QueueBindOk)
    document = json.loads(json.dumps(exported(bench)))
    assert [queue["name"] for queue in document["queues"]] == ["orders", "by-default"]
    assert document["bindings"] == [DOCUMENT["bindings"][1], DOCUMENT["bindings"][0]]
    assert document["exchanges"] == DOCUMENT["exchanges"]
    assert document["policies"] == DOCUMENT["policies"]
    # Its password was looked at when it logged in, and is kept as argon2id since.
    (guest,), (loaded,) = document["users"], DOCUMENT["users"]
    assert guest["hashing_algorithm"] == "argon2id" and guest["password_hash"].startswith("$argon2")
    assert guest == {
        **loaded,
        **{key: guest[key] for key in ("hashing_algorithm", "password_hash")},
    }
    assert document["permissions"] == DOCUMENT["permissions"]
    assert document["topic_permissions"] == DOCUMENT["topic_permissions"]
    assert document["global_parameters"] == DOCUMENT["global_parameters"]
    limits, operator_policy = document["parameters"]
    assert limits == DOCUMENT["parameters"][0]
    assert operator_policy["value"]["definition"] == {"max-length": 5}
    bench.disk()
    before = contents(bench)
    start(bench, document)
    assert contents(bench) == before


# --- all or nothing

BAD: list[tuple[str, Any, str]] = [
    ("users", [user(password_hash="AAAA")], "user 'guest': 'password_hash' is no hash of"),
    ("users", [user(password_hash="!")], "user 'guest': 'password_hash' is no base64"),
    ("users", [user(hashing_algorithm="bcrypt")], "user 'guest': the hashing algorithm 'bcrypt'"),
    ("users", [{"password": "x"}], "users[0]: 'name' is missing"),
    ("users", [user(limits={"max-x": 1})], "user 'guest': Unrecognised terms [{<<\"max-x\">>,1}]"),
    ("users", [user(name="u" * 256)], "user name must not exceed 255 bytes"),
    (
        "users",
        [
            user(
                hashing_algorithm="argon2id",
                password_hash="$argon2id$v=19$m=9999999,t=1,p=1$" + "A" * 22 + "$" + "A" * 43,
            )
        ],
        "user 'guest': 'password_hash' costs more than",
    ),
    (
        "topic_permissions",
        [{"user": "guest", "vhost": "/", "exchange": "x", "write": "["}],
        "topic permission of user 'guest' in vhost '/': the pattern <<\"[\">> should be regular",
    ),
    (
        "topic_permissions",
        [{"user": "guest", "vhost": "/", "exchange": "x", "write": ""}],
        "topic permission of user 'guest' in vhost '/': 'read' is missing",
    ),
    ("users", {"name": "x"}, "'users' is no list"),
    ("users", ["x"], "users[0]: it is no JSON object"),
    ("vhosts", [{"name": 5}], "vhost '5': 'name' has the wrong type"),
    (
        "vhosts",
        [{"name": "v", "default_queue_type": "foo"}],
        "vhost 'v': foo is not a valid queue type",
    ),
    (
        "permissions",
        [{"user": "no", "vhost": "/", "configure": "", "write": "", "read": ""}],
        "permission of user 'no' in vhost '/': there is no user 'no'",
    ),
    (
        "permissions",
        [{"user": "guest", "vhost": "no", "configure": "", "write": "", "read": ""}],
        "permission of user 'guest' in vhost 'no': there is no vhost 'no'",
    ),
    (
        "parameters",
        [{"vhost": "/", "component": "vhost-limits", "name": "limits", "value": {"foo": 1}}],
        "parameter 'vhost-limits' 'limits' in vhost '/': Validation failed Unrecognised terms",
    ),
    (
        "policies",
        [{"vhost": "/", "name": "p", "pattern": "(", "definition": {"expires": 0}}],
        "policy 'p' in vhost '/': Validation failed 0 is not a valid queue expiry pattern should be",
    ),
    (
        "policies",
        [{"vhost": "/", "name": "p", "definition": {"expires": 1}}],
        "policy 'p' in vhost '/': Validation failed pattern should be a binary but was",
    ),
    (
        "exchanges",
        [{"vhost": "/", "name": "e", "type": "foo"}],
        "exchange 'e' in vhost '/': PRECONDITION_FAILED - ",
    ),
    (
        "queues",
        [{"vhost": "/", "name": "q", "arguments": {"x-max-length": -1}}],
        "queue 'q' in vhost '/': PRECONDITION_FAILED - invalid arg 'x-max-length'",
    ),
    (
        "queues",
        [{"vhost": "/", "name": "q", "arguments": {"x-large": 10**30}}],
        "queue 'q' in vhost '/': ",
    ),
    (
        "queues",
        [{"vhost": "/", "name": "q", "durable": "yes"}],
        "queue 'q' in vhost '/': 'durable'",
    ),
    (
        "queues",
        [{"vhost": "shop", "name": f"q{number}"} for number in range(6)],
        "queue 'q5' in vhost 'shop': PRECONDITION_FAILED - cannot declare queue 'q5': queue limit",
    ),
    (
        "bindings",
        [{"vhost": "/", "source": "amq.topic", "destination": "no", "destination_type": "queue"}],
        "binding of 'no' to 'amq.topic' in vhost '/': NOT_FOUND - no queue 'no' in vhost '/'",
    ),
    (
        "bindings",
        [{"vhost": "/", "source": "amq.topic", "destination": "no", "destination_type": "x"}],
        "binding of 'no' to 'amq.topic' in vhost '/': 'destination_type' is 'x'",
    ),
]


@pytest.mark.parametrize(("section", "items", "text"), BAD, ids=[text for *_, text in BAD])
def test_one_item_that_cannot_be_had_and_nothing_is_loaded(
    bench: Bench, section: str, items: Any, text: str
) -> None:
    before = contents(bench)
    bench.close()
    bench.document = without(**{section: items})
    with pytest.raises(DefinitionsError) as refused:
        bench.open()
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)
    assert contents(bench) == before
    start(bench, None)
    assert contents(bench) == before
    assert set(bench.broker.vhosts) == {"/"}


def test_a_crash_while_loading_leaves_all_or_nothing(bench: Bench) -> None:
    before = set(contents(bench))
    for work_done in range(8):
        document = without(
            vhosts=[{"name": f"v{work_done}"}, *DOCUMENT["vhosts"]],
            queues=[{"name": f"q{n}", "vhost": f"v{work_done}"} for n in range(50)],
            bindings=[],
        )
        loading = Import(bench.broker.operations, bench.broker.users, bench.broker.definitions)
        loading.load(document)
        bench.now_s += 1
        bench.store.tick(bench.now_s)
        bench.store.commit()
        for _ in range(work_done):
            bench.disk_once()
        bench.kill()
        bench.open()
        vhost = bench.broker.vhosts.get(f"v{work_done}")
        assert vhost is None or len(vhost.queues) == 50
        if vhost is None:
            assert before <= set(contents(bench))


# --- what is not known


def test_what_is_not_known_is_named_and_left_out(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    document = without(
        shovels=[],
        users=[user(colour="red")],
        policies=[
            {
                "vhost": "/",
                "name": "ha",
                "pattern": "",
                "definition": {"ha-mode": "all", "ha-sync-mode": "automatic"},
            },
            {
                "vhost": "/",
                "name": "half",
                "pattern": "",
                "definition": {"ha-mode": "all", "expires": 5000},
                "priority": 0,
            },
        ],
    )
    document["parameters"].append(
        {"vhost": "/", "component": "federation-upstream", "name": "u", "value": {"uri": "amqp://"}}
    )
    document["queues"].append({"vhost": "/", "name": "amq.gen-1", "durable": True})
    document["bindings"].append(
        {
            "vhost": "/",
            "source": "amq.topic",
            "destination": "amq.gen-1",
            "destination_type": "queue",
            "routing_key": "k",
        }
    )
    with caplog.at_level(logging.WARNING):
        start(bench, document)
    warnings = {record.getMessage() for record in caplog.records}
    upstream = "federation-upstream"
    assert warnings == {
        "definitions: 'shovels' is not known, and left out",
        "definitions: user 'guest': 'colour' is not known, and left out",
        f"definitions: parameter '{upstream}' 'u' in vhost '/': '{upstream}' is not known, and left out",
        "definitions: policy 'ha' in vhost '/': 'ha-mode' is not known, and left out",
        "definitions: policy 'ha' in vhost '/': 'ha-sync-mode' is not known, and left out",
        "definitions: policy 'ha' in vhost '/': nothing of it is left, so it is left out",
        "definitions: policy 'half' in vhost '/': 'ha-mode' is not known, and left out",
        "definitions: queue 'amq.gen-1' in vhost '/': names that begin with 'amq.' are left out",
        "definitions: binding of 'amq.gen-1' to 'amq.topic' in vhost '/': it goes with its queue",
    }
    (policy,) = bench.broker.vhosts["/"].policies.all("policy")
    assert (policy.name, policy.definition) == ("half", {"expires": 5000})


# --- older versions, first starts, passwords


def test_a_document_of_rabbitmq_3_8(bench: Bench) -> None:
    start(
        bench,
        {
            "rabbit_version": "3.8.9",
            "rabbitmq_version": "3.8.9",
            "product_name": "RabbitMQ",
            "product_version": "3.8.9",
            "users": [user("old", tags="administrator")],
            "vhosts": [{"name": "/"}],
            "permissions": [
                {"user": "old", "vhost": "/", "configure": "", "write": "", "read": ""}
            ],
            "topic_permissions": [],
            "parameters": [],
            "global_parameters": [
                {"name": "internal_cluster_id", "value": "rabbitmq-cluster-id-1"}
            ],
            "policies": [],
            "queues": [
                {"name": "q", "vhost": "/", "durable": True, "auto_delete": False, "arguments": {}}
            ],
            "exchanges": [],
            "bindings": [],
        },
    )
    assert bench.broker.users["old"].tags == ("administrator",)
    assert dict(bench.broker.definitions.global_parameters()) == {
        "internal_cluster_id": "rabbitmq-cluster-id-1"
    }


@pytest.mark.parametrize(
    ("document", "users", "vhosts"),
    [
        ({"queues": [{"name": "q", "vhost": "/"}]}, {"guest"}, {"/"}),
        ({"vhosts": [{"name": "v"}]}, set(), {"v"}),
        ({"users": [user("me")]}, {"me"}, set()),
        ({}, {"guest"}, {"/"}),
    ],
)
def test_a_first_start_makes_what_the_file_has_not(
    tmp_path: Path, document: dict[str, Any], users: set[str], vhosts: set[str]
) -> None:
    bench = Bench(tmp_path / "data", document=document)
    assert set(bench.broker.users) == users
    assert set(bench.broker.vhosts) == vhosts
    bench.close()


# Made by RabbitMQ 4.0.5 for the password "secret" and the salt 01020304.
RABBITMQ_HASHES = {
    SHA256: "AQIDBDB9kM21iEUzN1lZ+6VReCsdNqS0sERdAQTcY6Xs3PMz",
    "rabbit_password_hashing_sha512": (
        "AQIDBPhTH2L5HGYB1LWOrn+YpvuQmVOXKGqgsuiJRIZTILRoEvblSJo/WAsym3IZTfuaIaK5KR2o5KwFfTv6KsxfMIE="
    ),
    "rabbit_password_hashing_md5": "AQIDBDgk9ci8Lfh6CKE9Y0AUfmU=",
}


@pytest.mark.parametrize("algorithm", RABBITMQ_HASHES)
def test_passwords_of_all_algorithms(bench: Bench, algorithm: str) -> None:
    hashed = RABBITMQ_HASHES[algorithm]
    start(bench, without(users=[user(password_hash=hashed, hashing_algorithm=algorithm)]))
    guest = bench.broker.users["guest"]
    assert guest.check_password(b"secret") and not guest.check_password(b"Secret")
    (written,) = exported(bench)["users"]
    assert (written["password_hash"], written["hashing_algorithm"]) == (hashed, algorithm)


def test_an_empty_hash_lets_nobody_in(bench: Bench) -> None:
    start(bench, without(users=[user(password_hash="")]))
    for password in (b"", b"guest"):
        assert not bench.broker.users["guest"].check_password(password)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"{", "is not valid JSON"),
        (b"[]", "has no JSON object"),
        (b'{"users": NaN}', "NaN is no number"),
        (b'{"users": "\\ud800"}', "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_files_that_are_no_documents(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "definitions.json"
    path.write_bytes(data)
    with pytest.raises(DefinitionsError, match=text):
        read_definitions(path)
    with pytest.raises(DefinitionsError, match="No such file"):
        read_definitions(tmp_path / "missing")


def test_a_mark_at_the_beginning_is_no_part_of_the_document(tmp_path: Path) -> None:
    path = tmp_path / "definitions.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(DOCUMENT).encode())
    assert read_definitions(path) == DOCUMENT
