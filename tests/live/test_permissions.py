"""Who may do what on the wire: the matrix of rights, played against qlog or RabbitMQ 4.0.

With QLOG_TEST_URL the users are made through QLOG_TEST_API, the management API of that broker.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from pamqp.commands import Basic, Channel, Connection, Tx

from tests.live import matrix
from tests.live.conversation import Client, Closed, Message, refusal, show, unchecked, until
from tests.live.matrix import PASSWORD, VHOST, Row
from tests.live.server import BrokerProcess

pytestmark = pytest.mark.newer

API = os.environ.get("QLOG_TEST_API", "http://guest:guest@127.0.0.1:15690/api")


def api(method: str, path: str, document: Any = None, url: str = API) -> None:
    """Ask a management API."""
    parts = urlsplit(url)
    login = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
    request = urllib.request.Request(
        f"{parts.scheme}://{parts.hostname}:{parts.port}{parts.path}{path}",
        data=None if document is None else json.dumps(document).encode(),
        method=method,
        headers={"authorization": f"Basic {login}", "content-type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=60).close()


Admin = Callable[..., None]  # method, path, document


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Admin]]:
    """Host and port of a broker that has the users of the matrix, and its management API."""
    given = os.environ.get("QLOG_TEST_URL")
    document = matrix.document()
    if given:
        with suppress(urllib.error.HTTPError):  # what a run before has left
            api("DELETE", f"/vhosts/{quote(VHOST, '')}")
        api("POST", "/definitions", document)
        yield f"{urlsplit(given).hostname}:{urlsplit(given).port}", api
        names = [user["name"] for user in document["users"]]
        api("POST", "/users/bulk-delete", {"users": names})
        api("DELETE", f"/vhosts/{quote(VHOST, '')}")
        return
    directory: Path = tmp_path_factory.mktemp("matrix")
    path = directory / "definitions.json"
    path.write_text(json.dumps(document))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"QLOG_LOAD_DEFINITIONS": str(path), "QLOG_MANAGEMENT_PORT": str(port)}
    process = BrokerProcess(directory / "data", settings=settings, log_level="error")
    process.start()
    url = f"http://m-root:{PASSWORD}@127.0.0.1:{port}/api"
    until(lambda: _answers(url), "an answer of the management API")
    yield f"127.0.0.1:{process.port}", partial(api, url=url)
    process.kill()


def _answers(url: str) -> bool:
    try:
        api("GET", "/whoami", url=url)
    except (urllib.error.URLError, OSError):
        return False
    return True


@pytest.fixture
def address(broker: tuple[str, Admin]) -> str:
    return broker[0]


@pytest.fixture
def admin(broker: tuple[str, Admin]) -> Admin:
    return broker[1]


def _for(value: Any, user: str) -> Any:
    """What is sent, with the user's name in it."""
    if isinstance(value, Basic.Publish):
        key = value.routing_key.replace("{user}", user)
        return unchecked(Basic.Publish, exchange=value.exchange, routing_key=key)
    return value


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{row.operation.name}: {row.user}") for row in matrix.rows()]
)
def test_matrix(address: str, row: Row) -> None:
    """The first right that is missing is named; with all of them the operation does what it does."""
    with Client(f"amqp://{row.user}:{PASSWORD}@{address}/{quote(VHOST, '')}") as client:
        client.queues, client.exchanges = set(), set()
        talk = client.channel()
        sent = [_for(value, row.user) for value in row.operation.sent]
        talk.send(*sent)
        if row.close is None:
            for value in sent:
                if not isinstance(value, bytes) and value.synchronous:
                    assert not isinstance(talk.next(), Channel.Close)
            talk.send(Channel.Flow(active=True))
            seen = talk.next()
            while isinstance(seen, Message):
                seen = talk.next()
            assert isinstance(seen, Channel.FlowOk), show(seen)
            return
        for value in sent[:-1]:
            if isinstance(value, Tx.Select):
                talk.expect(Tx.SelectOk)
        by = next(value for value in reversed(sent) if not isinstance(value, bytes))
        assert talk.refusal() == refusal(*row.close, by)


# --- logins and limits


def refused_at_the_door(url: str) -> tuple[int, str]:
    """The connection.close that a client gets instead of open-ok, or of tune."""
    client = Client(url, handshake=False)
    client.start()
    client.start_ok()
    answer = client.next(0)
    if isinstance(answer, Connection.Tune):
        client.send(0, Connection.TuneOk(answer.channel_max, answer.frame_max, heartbeat=0))
        client.send(0, Connection.Open(client.virtual_host))
        answer = client.next(0)
    client.abort()
    assert isinstance(answer, Connection.Close), show(answer)
    return int(answer.reply_code or 0), str(answer.reply_text)


NOT_IN = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. "
NOT_IN += "For details see the broker logfile."
LIMIT = "NOT_ALLOWED - connection refused for user '{user}': user connection limit (0) is reached"

DOOR = [
    ("m-any", "wrong", VHOST, 403, NOT_IN),
    ("m-nowhere", PASSWORD, VHOST, 403, NOT_IN),
    ("m-any", "%00", VHOST, 502, ""),
    ("m-any", PASSWORD, "none", 530, "NOT_ALLOWED - vhost none not found"),
    ("m-nobody", PASSWORD, VHOST, 530, LIMIT),
    ("m-nobody", PASSWORD, "none", 530, "NOT_ALLOWED - vhost none not found"),
    ("m-outside", PASSWORD, VHOST, 530, LIMIT),
]


@pytest.mark.parametrize(("user", "password", "vhost", "code", "text"), DOOR)
def test_who_is_not_let_in(
    address: str, user: str, password: str, vhost: str, code: int, text: str
) -> None:
    """With RabbitMQ's texts, and what it looks at first."""
    url = f"amqp://{user}:{password}@{address}/{quote(vhost, '')}"
    if code == 502:  # nothing is said of a response that cannot be understood
        with pytest.raises(Closed):
            refused_at_the_door(url)
    else:
        assert refused_at_the_door(url) == (code, text.replace("{user}", user))


def test_connections_of_a_user_are_limited(address: str) -> None:
    url = f"amqp://m-one:{PASSWORD}@{address}/{VHOST}"
    with Client(url):
        assert refused_at_the_door(url) == (
            530,
            (
                "NOT_ALLOWED - connection refused for user 'm-one': user connection limit (1) is "
                "reached"
            ),
        )
    until(lambda: _enters(url), "room again")


def _enters(url: str) -> bool:
    try:
        Client(url).close()
    except AssertionError:
        return False
    return True


def test_channels_of_a_user_are_limited(address: str) -> None:
    url = f"amqp://m-channels:{PASSWORD}@{address}/{VHOST}"
    with Client(url) as first, Client(url) as second:
        first.channel(1)
        second.channel(1)
        second.send(2, Channel.Open())
        refused = second.refusal(0)
        assert (refused.scope, refused.code) == ("connection", 530)
        # RabbitMQ names its node here instead of the user.
        text = re.sub("user '[^']*'", "user '…'", refused.text)
        assert text == (
            "NOT_ALLOWED - number of channels opened for user '…' has reached the maximum allowed "
            "user limit of (2)"
        )


# --- changes under open connections


def user(admin: Admin, name: str, **rights: str) -> str:
    """A new user; returns the login."""
    admin("PUT", f"/users/{name}", {"password": PASSWORD, "tags": ""})
    allow(admin, name, **rights)
    return f"{name}:{PASSWORD}"


def allow(
    admin: Admin, name: str, configure: str = ".*", write: str = ".*", read: str = ".*"
) -> None:
    rights = {"configure": configure, "write": write, "read": read}
    admin("PUT", f"/permissions/{quote(VHOST, '')}/{name}", rights)


def test_a_user_who_is_deleted_is_thrown_out(address: str, admin: Admin) -> None:
    login = user(admin, "m-gone")
    with Client(f"amqp://{login}@{address}/{VHOST}") as client:
        client.channel()
        admin("DELETE", "/users/m-gone")
        text = "CONNECTION_FORCED - user 'm-gone' is deleted"
        assert client.refusal(0) == refusal(320, text)
    assert refused_at_the_door(f"amqp://{login}@{address}/{VHOST}") == (403, NOT_IN)


def test_a_new_password_counts_at_once_and_connections_stay(address: str, admin: Admin) -> None:
    login = user(admin, "m-changed")
    with Client(f"amqp://{login}@{address}/{VHOST}") as client:
        admin("PUT", "/users/m-changed", {"password": "other", "tags": ""})
        client.channel()
        assert refused_at_the_door(f"amqp://{login}@{address}/{VHOST}") == (403, NOT_IN)
        Client(f"amqp://m-changed:other@{address}/{VHOST}").close()
    admin("DELETE", "/users/m-changed")


def test_changed_rights_count_on_the_next_channel(address: str, admin: Admin) -> None:
    """(In qlog on the old one, too.) Without any the connection stays, and a new one is refused."""
    login = user(admin, "m-less")
    url = f"amqp://{login}@{address}/{VHOST}"
    with Client(url) as client:
        client.channel(1).publish("x", "k", b"a")
        allow(admin, "m-less", write="^$")
        talk = client.channel(2)
        talk.publish("x", "k", b"a")
        refused = talk.refusal()
        text = f"write access to exchange 'x' in vhost '{VHOST}' refused for user 'm-less'"
        assert refused == refusal(403, f"ACCESS_REFUSED - {text}", Basic.Publish)
        admin("DELETE", f"/permissions/{quote(VHOST, '')}/m-less")
        refused = client.channel(3).refused(Basic.Get(queue="q"))
        text = f"read access to queue 'q' in vhost '{VHOST}' refused for user 'm-less'"
        assert refused == refusal(403, f"ACCESS_REFUSED - {text}", Basic.Get)
        text = f"NOT_ALLOWED - access to vhost '{VHOST}' refused for user 'm-less'"
        assert refused_at_the_door(url) == (530, text)
    admin("DELETE", "/users/m-less")
