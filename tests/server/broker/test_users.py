"""Users, rights and limits as operators set them: rules, texts, what lasts, what is logged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.errors import AMQPError
from qlog.server.broker.access.actor import Actor
from qlog.server.broker.features.parameters import InvalidParameter
from qlog.server.broker.operations import Operations
from qlog.server.broker.outcome import Outcome
from tests.server.broker.support import Bench, Peer

HASH = "AQIDBDB9kM21iEUzN1lZ+6VReCsdNqS0sERdAQTcY6Xs3PMz"  # RabbitMQ's, of "secret"


def done(bench: Bench, outcome: Outcome[Any]) -> Any:
    bench.settle()
    bench.disk()
    return outcome.result()


def snapshot(bench: Bench) -> list[Any]:
    operations = bench.broker.operations
    users = [
        (user.name, user.password_hash, user.tags, dict(user.limits)) for user in operations.users()
    ]
    return [sorted(users), sorted(operations.permissions()), list(operations.topic_permissions())]


def test_what_is_set_lasts(bench: Bench) -> None:
    operations = bench.broker.operations
    made = done(bench, operations.set_user("ann", password="one", tags=["management", " ", "a"]))
    assert made is operations.user("ann") and made.tags == ("management", "a")
    done(bench, operations.add_user("bob", "two"))
    done(bench, operations.set_permissions("/", "ann", "^a", "", ".*"))
    done(bench, operations.set_topic_permissions("/", "ann", "amq.topic", "^{username}", ".*"))
    done(bench, operations.set_user_limits("ann", {"max-connections": 5}))
    done(bench, operations.set_user_limits("ann", {"max-channels": -1}))
    done(bench, operations.set_user_tags("bob", ["monitoring"]))
    assert list(operations.permissions(user="ann")) == [("ann", "/", "^a", "", ".*")]
    assert list(operations.permissions(user="nobody")) == []
    assert list(operations.topic_permissions(vhost="/")) == [
        ("ann", "/", "amq.topic", "^{username}", ".*")
    ]
    before = snapshot(bench)
    bench.kill()
    bench.open()
    assert snapshot(bench) == before
    operations = bench.broker.operations
    assert operations.user("ann").limits == {"max-connections": 5, "max-channels": -1}
    done(bench, operations.clear_user_limits("ann", "max-connections"))
    done(bench, operations.clear_topic_permissions("/", "ann", "amq.topic"))
    done(bench, operations.clear_permissions("/", "ann"))
    done(bench, operations.delete_user("bob"))
    bench.restart()
    operations = bench.broker.operations
    assert {user.name for user in operations.users()} == {"guest", "ann"}
    assert operations.user("ann").limits == {"max-channels": -1}
    assert list(operations.permissions(user="ann")) == []
    assert list(operations.topic_permissions()) == []


def test_rights_go_with_their_vhost(bench: Bench) -> None:
    operations = bench.broker.operations
    done(bench, operations.set_vhost("v"))
    done(bench, operations.set_permissions("v", "guest", "", "", ""))
    done(bench, operations.set_topic_permissions("v", "guest", "x", "", ""))
    done(bench, operations.delete_vhost("v"))
    for _ in range(2):
        assert list(bench.broker.operations.permissions(vhost="v")) == []
        assert list(bench.broker.operations.topic_permissions()) == []
        bench.restart()


def test_passwords(bench: Bench) -> None:
    """Each way to set one: who has it may log in, and nobody else."""
    operations = bench.broker.operations

    def logs_in(password: bytes) -> bool:
        login = operations.authenticate("ann", password, address="here", loopback=True)
        try:
            return bool(login.result())
        except Exception:  # noqa: BLE001 - refused
            return False

    done(bench, operations.set_user("ann", password="one", tags=[]))
    assert logs_in(b"one") and not logs_in(b"two") and not logs_in(b"")
    done(bench, operations.change_password("ann", "two"))
    assert logs_in(b"two") and not logs_in(b"one")
    done(bench, operations.set_user("ann", password_hash=HASH, tags=[]))
    user = operations.user("ann")
    assert user.hashing_algorithm == "rabbit_password_hashing_sha256"
    assert not logs_in(b"two") and user.hashing_algorithm == "rabbit_password_hashing_sha256"
    assert logs_in(b"secret") and user.hashing_algorithm == "argon2id" and logs_in(b"secret")
    kept = user.password_hash
    done(bench, operations.clear_password("ann"))
    assert not logs_in(b"secret") and not logs_in(b"")
    done(
        bench,
        operations.set_user(
            "ann", password_hash=kept.decode(), hashing_algorithm="argon2id", tags=[]
        ),
    )
    assert logs_in(b"secret")
    done(bench, operations.set_user("ann", tags=[]))
    assert not logs_in(b"secret") and not logs_in(b"")


def test_a_deleted_user_is_thrown_out(bench: Bench) -> None:
    operations = bench.broker.operations
    peer = Peer(bench)
    done(bench, operations.delete_user("guest"))
    assert peer.refused() == ("connection", 320, "CONNECTION_FORCED - user 'guest' is deleted")
    greeting = [said.method for said in Peer(bench).greeting]
    assert isinstance(greeting[-1], spec.ConnectionClose) and greeting[-1].reply_code == 403


REFUSED: list[tuple[Callable[[Operations], object], str]] = [
    (lambda o: o.add_user("guest", "x"), 'User "guest" already exists'),
    (lambda o: o.add_user("", "x"), "user name cannot be an empty string"),
    (lambda o: o.add_user("u" * 256, "x"), "user name must not exceed 255 bytes"),
    (lambda o: o.add_user("\ud800", "x"), "user name is not valid UTF-8"),
    (lambda o: o.add_user("u", "x" * 4097), "password must not exceed 4096 bytes"),
    (lambda o: o.add_user("u", "\ud800"), "password is not valid UTF-8"),
    (lambda o: o.set_user("u", tags=["t" * 256]), "tag must not exceed 255 bytes"),
    (
        lambda o: o.set_user("u", tags=[], password="x", password_hash=HASH),
        "both_password_and_password_hash_are_provided",
    ),
    (lambda o: o.set_user("u", tags=[], password_hash="!"), "'password_hash' is no base64"),
    (
        lambda o: o.set_user("u", tags=[], password_hash=HASH, hashing_algorithm="argon2id"),
        "'password_hash' is no hash of argon2id",
    ),
    (
        lambda o: o.set_user_limits("guest", {"max-connections": "x"}),
        'max-connections should be a number, actually was <<"x">>',
    ),
    (
        lambda o: o.set_user_limits("guest", {"max-foo": 4}),
        'Unrecognised terms [{<<"max-foo">>,4}] in user-limits',
    ),
    (lambda o: o.set_user_limits("guest", []), "user-limits should be an object, actually was []"),
    (lambda o: o.set_permissions("/", "guest", "[", "", ""), 'the pattern <<"[">> should be'),
    (lambda o: o.set_permissions("/", "guest", 5, "", ""), "a pattern should be a text"),
    (
        lambda o: o.set_permissions("/", "guest", "", "(a+)+$", ""),
        'the pattern <<"(a+)+$">> takes too long to match',
    ),
    (lambda o: o.set_permissions("/", "guest", "", "", "a" * 4097), "must not exceed 4096 bytes"),
    (
        lambda o: o.set_topic_permissions("/", "guest", "x", "[{username}", ""),
        "should be regular expression",
    ),
    (lambda o: o.user("nobody"), "NOT_FOUND - no user 'nobody'"),
    (lambda o: o.delete_user("nobody"), "NOT_FOUND - no user 'nobody'"),
    (lambda o: o.change_password("nobody", "x"), "NOT_FOUND - no user 'nobody'"),
    (lambda o: o.set_user_tags("nobody", []), "NOT_FOUND - no user 'nobody'"),
    (lambda o: o.set_permissions("/", "nobody", "", "", ""), "NOT_FOUND - no user 'nobody'"),
    (lambda o: o.set_permissions("no", "guest", "", "", ""), "NOT_FOUND - no vhost 'no'"),
    (lambda o: o.clear_permissions("no", "guest"), "NOT_FOUND - no vhost 'no'"),
    (lambda o: o.set_topic_permissions("no", "guest", "x", "", ""), "NOT_FOUND - no vhost 'no'"),
]


@pytest.mark.parametrize(("refused", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_what_is_refused(bench: Bench, refused: Callable[[Operations], object], text: str) -> None:
    before = snapshot(bench)
    with pytest.raises((AMQPError, InvalidParameter)) as caught:
        refused(bench.broker.operations)
    error = caught.value
    assert text in (error.reply_text if isinstance(error, AMQPError) else str(error))
    assert snapshot(bench) == before


def test_changes_are_logged_with_who_and_from_where(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """And never with a password."""
    operations = bench.broker.operations.by(Actor("root", "10.0.0.1:99"))
    vhost = bench.broker.vhosts["/"]
    with caplog.at_level(logging.INFO):
        done(bench, operations.add_user("ann", "hidden", ["management"]))
        done(bench, operations.change_password("ann", "hidden too"))
        done(bench, operations.set_permissions("/", "ann", "a", "b", "c"))
        done(
            bench,
            operations.set_policy(vhost, "policy", "p", pattern="x", definition={"expires": 5}),
        )
        done(bench, operations.set_vhost("v"))
        done(bench, operations.delete_user("ann"))
        done(bench, bench.broker.operations.delete_vhost("v"))
    said = [record.getMessage() for record in caplog.records]
    by = "by='root' from=10.0.0.1:99"
    assert said == [
        f"user made user='ann' tags=management {by}",
        f"password changed user='ann' {by}",
        f"permissions set user='ann' vhost='/' configure='a' write='b' read='c' {by}",
        f"policy set vhost=/ name=p pattern=x {by}",
        f"vhost made name=v {by}",
        f"user deleted user='ann' {by}",
        "vhost deleted name=v by=broker",
    ]
