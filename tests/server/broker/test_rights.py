"""Rights as they change under open channels: a changed one counts from the next operation on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qlog.server.amqp import spec
from qlog.server.amqp.errors import AMQPError
from qlog.server.amqp.properties import Properties
from qlog.server.broker.access.permissions import Rights
from qlog.server.broker.outcome import Outcome
from tests.server.broker.support import Bench, Peer, make

EVERYTHING = (".*", ".*", ".*")


def done(bench: Bench, outcome: Outcome[Any]) -> Any:
    bench.settle()
    bench.disk()
    return outcome.result()


def allow(bench: Bench, configure: str, write: str, read: str, user: str = "guest") -> None:
    done(bench, bench.broker.operations.set_permissions("/", user, configure, write, read))


def refused(right: str, what: str) -> tuple[str, int, str]:
    text = f"ACCESS_REFUSED - {right} access to {what} in vhost '/' refused for user 'guest'"
    return "channel", 403, text


def test_a_revoked_right_counts_for_ways_that_are_remembered(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    peer.publish(1, "q", b"a")
    peer.publish(1, "q", b"b")
    assert queue.ready == 2
    allow(bench, "", "", "")
    peer.publish(1, "q", b"c")
    assert peer.refused() == refused("write", "exchange 'amq.default'")
    assert queue.ready == 2
    allow(bench, "", "^amq.default$", "")
    peer.publish(2, "q", b"d")
    peer.publish(2, "q", b"e")
    assert queue.ready == 4 and not peer.hear()
    done(bench, bench.broker.operations.clear_permissions("/", "guest"))
    peer.publish(2, "q", b"f")
    assert peer.refused() == refused("write", "exchange 'amq.default'")
    assert queue.ready == 4


def test_one_user_cannot_use_the_ways_of_another(bench: Bench, peer: Peer) -> None:
    """In whatever order they publish, each is asked for its own rights."""
    queue = peer.declare("q")
    operations = bench.broker.operations
    done(bench, operations.add_user("ann", "ann"))
    allow(bench, "", "^other$", "", user="ann")
    ann = Peer(bench, login=b"\0ann\0ann")
    for _ in range(2):
        peer.publish(1, "q", b"a")
    ann.publish(1, "q", b"b")
    assert ann.refused()[1] == 403 and queue.ready == 2
    allow(bench, "", "^amq[.]", "", user="ann")
    for body in (b"c", b"d"):
        ann.publish(2, "q", body)
    allow(bench, "", "^other$", "")
    peer.publish(1, "q", b"e")
    assert peer.refused() == refused("write", "exchange 'amq.default'")
    ann.publish(2, "q", b"f")
    assert queue.ready == 5 and not ann.hear()


def test_topics_are_asked_for_each_key_and_remembered(bench: Bench, peer: Peer) -> None:
    queue = peer.declare("q")
    bind = make(spec.QueueBind, queue="q", exchange="amq.topic", routing_key="#")
    peer.ask(1, bind, spec.QueueBindOk)
    operations = bench.broker.operations
    done(bench, operations.set_topic_permissions("/", "guest", "amq.topic", "^{username}[.]", ".*"))
    for _ in range(2):
        peer.publish(1, "guest.a", b"a", exchange="amq.topic")
    headers = Properties(headers={"CC": ["guest.b"]})
    peer.publish(1, "guest.a", b"a", exchange="amq.topic", properties=headers)
    assert queue.ready == 3 and not peer.hear()
    headers = Properties(headers={"BCC": ["other.b"]})
    peer.publish(1, "guest.a", b"a", exchange="amq.topic", properties=headers)
    assert peer.refused() == (
        "channel",
        403,
        (
            "ACCESS_REFUSED - write access to topic 'other.b' in exchange 'amq.topic' in vhost '/' "
            "refused for user 'guest'"
        ),
    )
    peer.publish(2, "guest.a", b"a", b"b", exchange="amq.topic")
    done(bench, operations.set_topic_permissions("/", "guest", "amq.topic", "^other[.]", ".*"))
    peer.publish(2, "guest.a", b"a", exchange="amq.topic")
    assert peer.refused()[1] == 403 and queue.ready == 5
    done(bench, operations.clear_topic_permissions("/", "guest"))
    peer.publish(3, "guest.a", b"a", exchange="amq.topic")
    assert queue.ready == 6


def test_rights_of_headers_exchanges_are_remembered(bench: Bench, peer: Peer) -> None:
    """Their messages are routed one by one, but asked for once."""
    queue = peer.declare("q")
    bind = make(spec.QueueBind, queue="q", exchange="amq.headers", arguments={"a": 1})
    peer.ask(1, bind, spec.QueueBindOk)
    allow(bench, "", "^amq[.]headers$", "")
    for number in range(3):
        properties = Properties(headers={"a": 1, "n": number})
        peer.publish(1, "", b"a", exchange="amq.headers", properties=properties)
    assert queue.ready == 3
    allow(bench, "", "", "")
    peer.publish(1, "", b"a", exchange="amq.headers", properties=Properties(headers={"a": 1}))
    assert peer.refused() == refused("write", "exchange 'amq.headers'")


def test_a_new_secret_is_a_new_look_at_the_rights(bench: Bench, peer: Peer) -> None:
    peer.declare("q")
    peer.declare("r")
    update = make(spec.ConnectionUpdateSecret, new_secret=b"x", reason="r")
    for channel, queue in ((1, "q"), (2, "r")):
        peer.ask(channel, make(spec.BasicConsume, queue=queue), spec.BasicConsumeOk)
    assert peer.ask(0, update, spec.ConnectionUpdateSecretOk)
    allow(bench, "", "", "^r$")
    peer.send(0, update)
    closed, ok = peer.hear()
    assert isinstance(closed, spec.ChannelClose) and closed.reply_code == 403
    assert closed.reply_text == refused("read", "queue 'q'")[2]
    assert isinstance(ok, spec.ConnectionUpdateSecretOk)
    done(bench, bench.broker.operations.clear_permissions("/", "guest"))
    peer.send(0, update)
    assert peer.refused() == (
        "connection",
        530,
        "NOT_ALLOWED - access to vhost '/' refused for user 'guest'",
    )


def test_server_named_queues_are_asked_by_their_name(bench: Bench, peer: Peer) -> None:
    allow(bench, "^amq[.]gen-", "", "")
    assert peer.declare("").name.startswith("amq.gen-")
    allow(bench, "^q$", "", "")
    peer.send(1, make(spec.QueueDeclare))
    assert peer.refused()[2].startswith("ACCESS_REFUSED - configure access to queue 'amq.gen-")


LIMITS = [
    ({"max-connections": 0}, "user connection limit (0) is reached"),
    ({"max-connections": 1}, "user connection limit (1) is reached"),
    ({"max-connections": 2}, None),
    ({"max-connections": -1}, None),
]


@pytest.mark.parametrize(("limits", "text"), LIMITS)
def test_connections_of_a_user(bench: Bench, limits: dict[str, int], text: str | None) -> None:
    first = Peer(bench)
    done(bench, bench.broker.operations.set_user_limits("guest", limits))
    answer = Peer(bench).greeting[-1].method
    if text is None:
        assert isinstance(answer, spec.ConnectionOpenOk)
    else:
        assert isinstance(answer, spec.ConnectionClose) and answer.reply_code == 530
        assert answer.reply_text == f"NOT_ALLOWED - connection refused for user 'guest': {text}"
    first.send(0, make(spec.ConnectionClose))
    bench.settle()
    assert bench.broker.users["guest"].connections == (1 if text is None else 0)


def test_channels_of_a_user(bench: Bench) -> None:
    """Of all connections together; one that closes makes room."""
    first, second = Peer(bench), Peer(bench)
    first.send(1)
    second.send(1)
    done(bench, bench.broker.operations.set_user_limits("guest", {"max-channels": 2}))
    second.ask(1, make(spec.ChannelClose), spec.ChannelCloseOk)
    first.send(2)
    second.receive(b"\1\0\3\0\0\0\5\0\x14\0\x0a\0\xce")  # channel.open
    assert second.refused() == (
        "connection",
        530,
        (
            "NOT_ALLOWED - number of channels opened for user 'guest' has reached the maximum "
            "allowed user limit of (2)"
        ),
    )
    bench.settle()
    assert bench.broker.users["guest"].channels == 2
    first.client.lost()
    bench.settle()
    assert bench.broker.users["guest"].channels == 0
    assert bench.broker.users["guest"].connections == 0


# --- patterns

FOUND = [
    (".*", "q", True),
    ("", "q", False),
    ("q", "a queue", True),  # it is looked for anywhere
    ("^q", "aq", False),
    ("^(?!secret).*$", "secret.a", False),
    ("^ä.$", "ä!", True),
    ("[", "[", False),  # broken: an old directory may have it
    ("a" * 10_000, "a" * 10_000, False),
]


@pytest.mark.parametrize(("pattern", "name", "found"), FOUND)
def test_patterns(pattern: str, name: str, found: bool) -> None:
    rights = Rights("u", "/", (pattern, pattern, pattern), {"x": (pattern, pattern)})
    checks: list[Callable[[], None]] = [
        lambda: rights.check("read", "queue", name),
        lambda: rights.check_topic("read", "x", name),
    ]
    for check in checks:
        if found:
            check()
        else:
            with pytest.raises(AMQPError) as error:
                check()
            assert error.value.code == 403


def test_a_pattern_that_takes_too_long_refuses() -> None:
    """However it got there: setting it is refused."""
    rights = Rights("u", "/", ("(a+)+$", "", ""), {})
    rights.check("configure", "queue", "aaaa")
    for _ in range(50):
        with pytest.raises(AMQPError):
            rights.check("configure", "queue", "a" * 200 + "!")


VARIABLES = [
    ("^{username}$", "a.b", True),
    ("^{username}$", "axb", False),  # a name is no pattern
    ("^{vhost}-{client_id}$", "v-c.1", True),
    ("^{vhost}-{client_id}$", "v-cx1", False),
    ("^{other}$", "{other}", True),
]


@pytest.mark.parametrize(("pattern", "key", "found"), VARIABLES)
def test_variables_in_topics(pattern: str, key: str, found: bool) -> None:
    rights = Rights("a.b", "v", EVERYTHING, {"x": (pattern, "")})
    try:
        rights.check_topic("write", "x", key, "c.1")
    except AMQPError:
        assert not found
    else:
        assert found
    with pytest.raises(AMQPError, match="topic"):  # without a client id it stands for itself
        rights.check_topic("write", "x", "v-")
