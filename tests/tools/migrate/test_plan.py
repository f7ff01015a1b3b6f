"""What is said of a RabbitMQ, or of what is none; and of a wrong command line."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from qlog.tools.ctl.command import Failure
from qlog.tools.ctl.main import main
from qlog.tools.migrate.plan import Management, of_vhost, plan_of
from qlog.tools.migrate.run import counted

DOCUMENT: dict[str, Any] = {
    "users": [{"name": "ann"}, {"name": "bob"}],
    "vhosts": [{"name": "/"}, {"name": "v"}],
    "permissions": [{"user": "ann", "vhost": "v"}, {"user": "bob", "vhost": "/"}],
    "topic_permissions": [{"user": "ann", "vhost": "v"}, {"user": "bob", "vhost": "v"}],
    "parameters": [],
    "global_parameters": [{"name": "n", "value": 1}],
    "policies": [{"name": "p", "vhost": "/"}],
    "exchanges": [{"name": "late", "vhost": "v", "type": "x-delayed-message"}],
    "queues": [{"name": "q", "vhost": "v"}, {"name": "q", "vhost": "/"}],
    "bindings": [],
}
QUEUES: list[dict[str, Any]] = [
    {"name": "orders", "vhost": "v", "type": "classic", "messages": 3},
    {"name": "mine", "vhost": "v", "exclusive": True},
    {"name": "amq.gen-1", "vhost": "v"},
    {"name": "orders.in", "vhost": "/", "arguments": {"x-max-priority": 3}},
    {"name": "got", "vhost": "v", "messages_unacknowledged": 2},
]


class Rabbit(BaseHTTPRequestHandler):
    """Answers as RabbitMQ's API; `answers` has more, by path."""

    answers: ClassVar[dict[str, tuple[int, bytes]]] = {}

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        status, body = self.answers.get(path, (404, b'{"error":"Object Not Found"}'))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def rabbit(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an API."""
    monkeypatch.setattr(
        Rabbit,
        "answers",
        {
            path: (200, json.dumps(document).encode())
            for path, document in {
                "/api/definitions": DOCUMENT,
                "/api/queues": QUEUES,
                "/api/overview": {"node": "rabbit@x"},
                "/api/nodes/rabbit%40x": {"uptime": 1000},
                "/api/exchanges/v/late": {"messages_delayed": 5},
            }.items()
        },
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), Rabbit)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://ann:secret@127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_moves_and_what_does_not(rabbit: str) -> None:
    plan = plan_of(Management(rabbit, 5), None, None)
    assert {(one.vhost, one.name): one.how for one in plan.queues if one.movable} == {
        ("/", "orders.in"): "moves",
        ("v", "got"): "moves; 2 of them are out with basic.get, and stay",
        ("v", "orders"): "moves",
    }
    assert [one.name for one in plan.queues if not one.movable] == ["amq.gen-1", "mine"]
    assert [one.in_order for one in plan.queues] == [False, True, True, True, True]
    (note,) = plan.notes
    assert note.startswith("5 messages wait in the delayed exchange 'late' in vhost 'v'")


def test_a_rabbitmq_that_has_just_started_is_waited_for(
    rabbit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Rabbit.answers["/api/nodes/rabbit%40x"] = (200, b"[]")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            Rabbit.answers["/api/nodes/rabbit%40x"] = (200, b'{"uptime":5000}')

    monkeypatch.setattr(time, "sleep", sleep)
    assert abs(plan_of(Management(rabbit, 5), None, None).started_s - time.time() + 5) < 60
    assert len(waited) == 3


def test_some_queues_of_one_vhost(rabbit: str) -> None:
    plan = plan_of(Management(rabbit, 5), "v", "^ord")
    assert [(one.vhost, one.name) for one in plan.queues] == [("v", "orders")]


def test_the_definitions_of_one_vhost_have_its_users() -> None:
    found = of_vhost(DOCUMENT, "v")
    assert found["users"] == [{"name": "ann"}] and found["vhosts"] == [{"name": "v"}]
    assert found["topic_permissions"] == [{"user": "ann", "vhost": "v"}]
    assert found["queues"] == [{"name": "q", "vhost": "v"}] and not found["policies"]
    assert found["global_parameters"] == []
    with pytest.raises(Failure, match="no vhost 'w'"):
        of_vhost(DOCUMENT, "w")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b'{"error":"not_authorized","reason":"Not_Authorized"}', "wrong name or password"),
        (
            401,
            b'{"error":"not_authorised","reason":"Not administrator user"}',
            "Not administrator user; definitions are for users with the tag administrator",
        ),
        (404, b"nothing", "is no management API of RabbitMQ"),
        (200, b"<html>", "is no management API of RabbitMQ"),
        (500, b'{"error":"x","reason":"broken"}', "500: broken"),
    ],
)
def test_an_api_that_says_something_else(rabbit: str, status: int, body: bytes, said: str) -> None:
    Rabbit.answers["/api/definitions"] = (status, body)
    with pytest.raises(Failure) as caught:
        plan_of(Management(rabbit, 5), None, None)
    assert said in caught.value.text and "secret" not in caught.value.text


def test_nobody_answers() -> None:
    with pytest.raises(Failure, match="rabbitmq-plugins enable rabbitmq_management"):
        plan_of(Management("http://a:secret@127.0.0.1:1", 5), None, None)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 64, "--from http://USER:PASSWORD@HOST:15672 is missing"),
        (["--from", "rabbit"], 65, "--from is an address such as"),
        (["--from", "http://h:x"], 65, "is not an address"),
        (["--from", "http://h", "--amqp", "http://h"], 65, "--amqp is an address such as"),
        (["--from", "http://h", "--prefetch", "0"], 65, "--prefetch is 1 to 5000"),
        (["--from", "http://h", "--queue", "("], 65, "--queue is no pattern"),
        (["--from", "http://h", "--definitions-only", "--messages-only"], 65, "leave nothing"),
    ],
)
def test_wrong_command_lines(
    words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("ctl", ["migrate", *words]) == status
    assert said in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("ctl", ["help", "migrate"]) == 0
    out = capsys.readouterr().out
    assert "--dry-run" in out and "rabbitmqctl migrate --from http://admin:secret@rabbit" in out


def test_definitions_are_counted() -> None:
    assert counted({"users": [{}], "policies": [{}], "queues": [{}, {}]}) == (
        "0 vhosts, 1 user, 1 policy, 0 exchanges, 2 queues, 0 bindings"
    )
