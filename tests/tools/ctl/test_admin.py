"""rabbitmqadmin, as it is installed by `qlog ctl install-aliases`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlog.tools.ctl.admin import main
from tests.live.server import BrokerProcess


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker for these tests."""
    directory = tmp_path_factory.mktemp("broker") / "data"
    process = BrokerProcess(directory).start()
    yield process
    process.terminate()


@pytest.fixture
def admin(
    broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs a command; what it printed."""
    monkeypatch.setenv("QLOG_DATA_DIR", str(broker.data_dir))

    def run(*words: str, status: int = 0) -> str:
        assert main(list(words)) == status
        out, err = capsys.readouterr()
        return out if status == 0 else err

    return run


def test_a_session(admin: Any, tmp_path: Path) -> None:
    assert admin("declare", "vhost", "name=v") == "vhost declared\n"
    admin("declare", "user", "name=u", "password=p", "tags=monitoring")
    admin("declare", "permission", "vhost=v", "user=u", "configure=.*", "write=.*", "read=.*")
    v = ("-V", "v", "-q")
    admin(*v, "declare", "queue", "name=q", "durable=true", 'arguments={"x-max-length": 5}')
    admin(*v, "declare", "queue", "name=quorum", "queue_type=quorum")
    admin(*v, "declare", "exchange", "name=e", "type=topic")
    admin(*v, "declare", "binding", "source=e", "destination=q", "routing_key=a.#")
    admin(*v, "declare", "policy", "name=p", "pattern=.*", 'definition={"max-length": 9}')
    assert admin("-V", "v", "publish", "exchange=e", "routing_key=a.b", "payload=hi") == (
        "Message published\n"
    )
    assert "NOT routed" in admin("-V", "v", "publish", "routing_key=none", "payload=hi")
    assert admin("-V", "v", "list", "queues", "name", "messages", "arguments.x-max-length") == (
        "+--------+----------+------------------------+\n"
        "|  name  | messages | arguments.x-max-length |\n"
        "+--------+----------+------------------------+\n"
        "| q      | 1        | 5                      |\n"
        "| quorum | 0        |                        |\n"
        "+--------+----------+------------------------+\n"
    )
    listed = admin("-V", "v", "-f", "tsv", "list", "bindings").splitlines()
    assert listed[0] == "source\tdestination\trouting_key"
    assert "e\tq\ta.#" in listed
    assert "monitoring" in admin("list", "users")
    (policy,) = json.loads(admin("-V", "v", "-f", "raw_json", "list", "policies"))
    assert policy["definition"] == {"max-length": 9}
    assert "payload: hi" in admin("-V", "v", "-f", "long", "get", "queue=q")
    admin(*v, "purge", "queue", "name=q")
    assert admin("-V", "v", "get", "queue=q") == "No items\n"
    path = tmp_path / "definitions.json"
    admin("export", str(path))
    admin(*v, "delete", "binding", "source=e", "destination=q", "routing_key=a.#")
    admin(*v, "delete", "queue", "name=q")
    admin("import", str(path))
    assert "e\tq\ta.#" in admin("-V", "v", "-f", "tsv", "list", "bindings")
    assert "cluster_name" in admin("show", "overview")
    for words in (("user", "name=u"), ("vhost", "name=v")):
        admin("delete", *words)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("nosuch", 64),
        ("list nosuch", 64),
        ("declare queue durable=true", 64),
        ("declare queue name=q durable=perhaps", 64),
        ("declare queue name=q arguments={", 64),
        ("declare queue q", 64),
        ("declare binding source=x", 64),
        ("--nosuch list queues", 64),
        ("-f nosuch list queues", 64),
        ("delete queue name=nosuch", 1),
        ("declare exchange name=amq.x type=direct", 1),
        ("--host 127.0.0.1 --port 1 list queues", 1),
        ("import /nosuch", 1),
    ],
)
def test_what_is_refused(admin: Any, words: str, status: int) -> None:
    assert admin(*words.split(), status=status)
