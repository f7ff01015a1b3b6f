"""Who may do what on the wire: the matrix of rights, played against qlog or RabbitMQ 4.0.

With QLOG_TEST_URL the users are made through QLOG_TEST_API, the management API of that broker.
"""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
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


def api(method: str, path: str, document: Any = None) -> None:
    """Ask the management API of a RabbitMQ."""
    parts = urlsplit(API)
    login = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
    request = urllib.request.Request(
        f"{parts.scheme}://{parts.hostname}:{parts.port}{parts.path}{path}",
        data=None if document is None else json.dumps(document).encode(),
        method=method,
        headers={"authorization": f"Basic {login}", "content-type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=60).close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a broker that has the users of the matrix."""
    given = os.environ.get("QLOG_TEST_URL")
    document = matrix.document()
    if given:
        with suppress(urllib.error.HTTPError):  # what a run before has left
            api("DELETE", f"/vhosts/{quote(VHOST, '')}")
        api("POST", "/definitions", document)
        yield f"{urlsplit(given).hostname}:{urlsplit(given).port}"
        names = [user["name"] for user in document["users"]]
        api("POST", "/users/bulk-delete", {"users": names})
        api("DELETE", f"/vhosts/{quote(VHOST, '')}")
        return
    directory: Path = tmp_path_factory.mktemp("matrix")
    path = directory / "definitions.json"
    path.write_text(json.dumps(document))
    broker = BrokerProcess(
        directory / "data", settings={"QLOG_LOAD_DEFINITIONS": str(path)}, log_level="error"
    )
    broker.start()
    yield f"127.0.0.1:{broker.port}"
    broker.kill()


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
