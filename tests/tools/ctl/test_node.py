"""The commands against a running broker, as scripts and test suites of clients call them."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from qlog.tools.ctl.commands.objects import pid_of
from qlog.tools.ctl.main import main
from qlog.tools.ctl.top import main as top
from tests.live.server import ROOT, BrokerProcess


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker for these tests."""
    directory = tmp_path_factory.mktemp("broker") / "data"
    process = BrokerProcess(directory).start()
    yield process
    process.terminate()


@pytest.fixture
def ctl(
    broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs a command that has to succeed; what it printed."""
    monkeypatch.setenv("QLOG_DATA_DIR", str(broker.data_dir))

    def run(*words: str, tool: str = "ctl", status: int = 0) -> str:
        assert main(tool, list(words)) == status
        out, err = capsys.readouterr()
        return out if status == 0 else err

    return run


@pytest.fixture
def own(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker of one test's own, which may end."""
    process = BrokerProcess(tmp_path / "data").start()
    yield process
    if process.process is not None and process.process.poll() is None:
        process.kill()


def connect(broker: BrokerProcess) -> Any:
    parameters = pika.URLParameters(broker.url)
    parameters.client_properties = {"connection_name": "mine"}
    return pika.BlockingConnection(parameters)


def test_a_connection_is_closed_by_the_pid_that_is_listed(broker: BrokerProcess, ctl: Any) -> None:
    """What RabbitMQ's Java client does in its tests."""
    with_other, connection = connect(broker), connect(broker)
    port = connection._impl._transport._sock.getsockname()[1]
    listed = ctl(
        "-n", "rabbit@there", "list_connections", "-q", "pid", "peer_port", "client_properties"
    )
    rows = [line.split("\t") for line in listed.splitlines()[1:]]
    (pid,) = [row[0] for row in rows if row[1] == str(port)]
    assert re.fullmatch(r"<qlog\.\d+\.\d+\.0>", pid)
    assert all('{"connection_name","mine"}' in row[2] for row in rows)
    ctl("close_connection", pid, "go away")
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="go away") as closed:
        connection.process_data_events(5)
    assert closed.value.reply_code == 320
    with_other.process_data_events(0)
    with_other.close()


def test_a_connection_is_closed_by_its_name(broker: BrokerProcess, ctl: Any) -> None:
    connection = connect(broker)
    (row,) = json.loads(ctl("list_connections", "name", "host", "state", "--formatter", "json"))
    assert row["host"] == [127, 0, 0, 1]
    ctl("close_connection", row["name"], "go")
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker):
        connection.process_data_events(5)


def test_pids_differ() -> None:
    names = [f"127.0.0.1:{port} -> 127.0.0.1:5672" for port in range(1000)]
    assert len({pid_of("qlog", name) for name in names}) == 1000


def test_the_application_is_stopped_and_started(broker: BrokerProcess, ctl: Any) -> None:
    connection = connect(broker)
    channel = connection.channel()
    channel.queue_declare("kept", durable=True)
    ctl("stop_app")
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as closed:
        connection.process_data_events(5)
    assert closed.value.reply_code == 320
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        connect(broker)
    assert "kept" in ctl("list_queues")  # ctl stays
    assert "not running" in ctl("check_running", tool="diagnostics", status=69)
    ctl("await_startup", "-t", "1", status=69)
    ctl("stop_app")
    ctl("start_app")
    ctl("start_app")
    ctl("await_startup")
    ctl("check_running", tool="diagnostics")
    with_new = connect(broker)  # at the same port
    with_new.channel().queue_delete("kept")
    with_new.close()


def test_listeners_are_suspended(broker: BrokerProcess, ctl: Any) -> None:
    connection = connect(broker)
    ctl("suspend_listeners")
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        connect(broker)
    connection.channel().close()  # who was there stays
    ctl("check_port_listener", str(broker.port), tool="diagnostics", status=69)
    ctl("resume_listeners")
    ctl("check_port_listener", str(broker.port), tool="diagnostics")
    connect(broker).close()
    connection.close()


@pytest.mark.parametrize(
    ("on", "off"),
    [
        (
            ("eval", "rabbit_alarm:set_alarm({{resource_limit, disk, node()}, []})."),
            ("eval", "rabbit_alarm:clear_alarm({resource_limit, disk, node()})."),
        ),
        (
            ("set_vm_memory_high_watermark", "0.000000001"),
            ("set_vm_memory_high_watermark", "0.4"),
        ),
        (("set_disk_free_limit", "900000GB"), ("set_disk_free_limit", "50MB")),
    ],
)
def test_publishers_are_blocked(
    broker: BrokerProcess, ctl: Any, on: tuple[str, ...], off: tuple[str, ...]
) -> None:
    connection = connect(broker)
    heard: list[str] = []
    connection.add_on_connection_blocked_callback(lambda *_: heard.append("blocked"))
    connection.add_on_connection_unblocked_callback(lambda *_: heard.append("unblocked"))
    channel = connection.channel()
    ctl(*on)
    ctl("check_local_alarms", tool="diagnostics", status=69)
    channel.basic_publish("", "nowhere", b"")
    until = time.monotonic() + 20
    while heard != ["blocked"] and time.monotonic() < until:
        connection.process_data_events(0.05)
    ctl(*off)
    while heard != ["blocked", "unblocked"] and time.monotonic() < until:
        connection.process_data_events(0.05)
    assert heard == ["blocked", "unblocked"]
    ctl("check_local_alarms", tool="diagnostics")
    connection.close()


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("node().", "qlog"),
        ("nodes().", "[]"),
        ("rabbit:is_running().", "true"),
        ("rabbit_deprecated_features:is_permitted(amqp_address_v1).", "true"),
        ("application:get_env(rabbit, heartbeat_s).", "{ok,60}"),
        ("application:get_env(rabbit, nosuch).", "undefined"),
        ("{ok, V} = application:get_env(rabbit, heartbeat_s), V.", "60"),
        ("{ok, V} = application:get_env(rabbit, loopback_users), V.", '[<<"guest">>]'),
    ],
)
def test_expressions_that_suites_send(ctl: Any, expression: str, result: str) -> None:
    assert ctl("eval", expression).strip() == result


def test_settings_that_suites_set_for_a_while(broker: BrokerProcess, ctl: Any) -> None:
    ctl("eval", "application:set_env(rabbit, channel_max, 77).")
    connection = connect(broker)
    assert connection._impl.params.channel_max == 77
    connection.close()
    ctl("eval", "application:set_env(rabbit, channel_max, 0).")
    ctl("eval", "application:set_env(rabbit, frame_max, 0).")
    connection = connect(broker)
    assert connection._impl.params.channel_max == 65535
    connection.close()
    ctl("eval", "application:set_env(rabbit, frame_max, 131072).")
    ctl("eval", "application:set_env(rabbit, channel_max, 2047).")
    ctl("eval", 'application:set_env(rabbit, loopback_users, [<<"guest">>]).')
    assert "cannot be set" in ctl("eval", "application:set_env(rabbit, nosuch, 5).", status=69)
    ctl("eval", "application:set_env(rabbit, channel_max, 70000).", status=69)


def test_a_vhost_that_is_protected_from_deletion(ctl: Any) -> None:
    ctl("add_vhost", "kept")
    ctl("enable_vhost_deletion_protection", "kept")
    assert "it is protected from deletion" in ctl("delete_vhost", "kept", status=69)
    rows = json.loads(ctl("list_vhosts", "name", "protected_from_deletion", "--formatter", "json"))
    assert {"name": "kept", "protected_from_deletion": True} in rows
    assert "does not exist" in ctl("enable_vhost_deletion_protection", "nosuch", status=65)
    ctl("disable_vhost_deletion_protection", "kept")
    ctl("delete_vhost", "kept")


def test_policies_that_match(ctl: Any) -> None:
    ctl("set_policy", "low", "amq", '{"alternate-exchange": "x"}', "--apply-to", "exchanges")
    ctl("set_policy", "high", "dir", '{"alternate-exchange": "x"}', "--priority", "5")
    ctl("set_policy", "other", "top", '{"alternate-exchange": "x"}')
    words = ("-q", "list_policies_that_match", "--object-type", "exchange", "amq.direct")
    listed = ctl(*words, tool="diagnostics")
    assert [line.split("\t")[1] for line in listed.splitlines()] == ["name", "high", "low"]
    for name in ("low", "high", "other"):
        ctl("clear_policy", name)


def test_other_expressions_are_refused(ctl: Any) -> None:
    assert "no Erlang" in ctl("eval", 'os:cmd("ls").', status=69)


def test_status_for_people_and_programs(broker: BrokerProcess, ctl: Any) -> None:
    assert f"port: {broker.port}, protocol: amqp," in ctl("status")
    document = json.loads(ctl("status", "--formatter", "json"))
    assert document["pid"] == broker.pid
    assert [item["port"] for item in document["listeners"]] == [broker.port]
    assert document["totals"]["virtual_host_count"] == 1
    cluster = json.loads(ctl("cluster_status", "--formatter", "json"))
    assert cluster["running_nodes"] == ["qlog"]
    assert "data_dir" in ctl("environment")
    assert "password" not in ctl("report").lower()


def test_definitions_go_out_and_in(broker: BrokerProcess, ctl: Any, tmp_path: Path) -> None:
    path = tmp_path / "definitions.json"
    ctl("export_definitions", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    document = json.loads(path.read_text())
    assert document["users"][0]["hashing_algorithm"] == "argon2id"
    printed = json.loads(ctl("-q", "export_definitions", "-", "--reset-passwords"))
    assert {user["password_hash"] for user in printed["users"]} == {""}
    assert {user["hashing_algorithm"] for user in printed["users"]} == {
        "rabbit_password_hashing_sha256"
    }
    document["vhosts"].append({"name": "new"})
    path.write_text(json.dumps(document))
    ctl("import_definitions", str(path))
    assert "new" in ctl("-q", "list_vhosts")
    ctl("delete_vhost", "new")
    path.write_text("{")
    ctl("import_definitions", str(path), status=65)


def test_messages(broker: BrokerProcess, ctl: Any) -> None:
    connection = connect(broker)
    channel = connection.channel()
    channel.confirm_delivery()
    for queue in ("from", "to"):
        channel.queue_declare(queue, durable=True)
    for number in range(120):
        headers = {"even": number % 2 == 0}
        properties = pika.BasicProperties(delivery_mode=2, headers=headers)
        channel.basic_publish("", "from", b"%d\n" % number, properties)
    lines = ctl("-q", "peek", "from", "--offset", "3", "--count", "2").splitlines()
    assert lines[0] == "id\tpublished_at\trouting_key\tpayload_bytes\tpayload"
    assert [line.split("\t")[-1] for line in lines[1:]] == ["3\\n", "4\\n"]
    peeked = json.loads(
        ctl("peek", "from", "--count", "111", "id", "payload", "--formatter", "json")
    )
    assert [row["payload"] for row in peeked] == [f"{number}\n" for number in range(111)]
    said = ctl("-q", "move", "from", "to", "--header", "even=true", "--count", "5")
    assert said == "5 messages moved\n"
    assert json.loads(
        ctl("move", "from", "to", "--header", "even=true", "--formatter", "json")
    ) == {
        "message": "55 messages moved",
        "moved": 55,
        "refused": 0,
    }
    ctl("delete_message", "from", peeked[1]["id"])
    ctl("delete_message", "from", peeked[1]["id"], status=65)
    ctl("edit_message", "from", peeked[3]["id"], "--payload", "changed")
    ctl("edit_message", "from", peeked[3]["id"], status=64)
    last = json.loads(ctl("peek", "from", "--count", "200", "payload", "--formatter", "json"))
    assert len(last) == 59
    assert last[-1] == {"payload": "changed"}
    ctl("peek", "nosuch", status=65)
    ctl("peek", "from", "nosuch", status=64)
    ctl("peek", "from", "--since", "yesterday", status=65)
    assert ctl("-q", "peek", "from", "--until", "1h") == ""
    for queue in ("from", "to"):
        channel.queue_delete(queue)
    connection.close()


def test_top(broker: BrokerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    connection = connect(broker)
    channel = connection.channel()
    for name, count in (("small", 1), ("large", 3)):
        channel.queue_declare(name)
        for _ in range(count):
            channel.basic_publish("", name, b"x")
    channel.queue_declare("large", passive=True)  # all that came before it has arrived
    where = ("--data-dir", str(broker.data_dir))
    assert top([*where, "--once", "--rows", "1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("qlog  qlog ")
    assert "1 connections  1 channels" in said
    assert "queues (2)" in said
    assert re.search(r"^/ +large +classic +running +3 ", said, re.MULTILINE)
    assert "small" not in said
    assert top(["--data-dir", "/nosuch", "--once"]) == 69
    assert top(["nosuch"]) == 64
    for name in ("small", "large"):
        channel.queue_delete(name)
    connection.close()


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("qlog c", "ctl"),
        ("qlog ctl list_que", "list_queues"),
        ("qlog ctl list_queues messages_rea", "messages_ready messages_ready_ram"),
        ("qlog ctl -q delete_queue --if-u", "--if-unused"),
        ("rabbitmqctl help list_vh", "list_vhosts"),
        ("rabbitmqctl list_vhosts --vh", "--vhost"),
        ("qlog serve x", ""),
        ("qlog serve --data-dir x --segment-b", "--segment-bytes-max"),
        ("qlog rest", "restore"),
        ("qlog restore b --data", "--data-dir"),
        ("qlog inspect ver", "verify"),
        ("qlog inspect messages --queue q --fol", "--follow"),
        ("qlog inspect import f --sk", "--skip"),
        ("qlog top --on", "--once"),
    ],
)
def test_completion(ctl: Any, line: str, completed: str, tmp_path: Path) -> None:
    path = tmp_path / "completion"
    path.write_text(ctl("completion", "bash"))
    words = line.split()
    code = (
        f'source {path}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _qlog; '
        'printf "%s\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ("bash", "-c", code, "bash", *words), check=True, capture_output=True, text=True
    )
    assert set(completed.split()) <= set(done.stdout.split())
    assert len(done.stdout.split()) <= 3


def test_deliveries(broker: BrokerProcess, ctl: Any) -> None:
    connection = connect(broker)
    channel = connection.channel()
    channel.queue_declare("held", exclusive=False)
    channel.basic_publish("", "held", b"x")
    while channel.basic_get("held")[0] is None:
        pass
    header, line = ctl("-q", "list_deliveries", "held").splitlines()
    row = dict(zip(header.split("\t"), line.split("\t"), strict=True))
    assert (row["delivery_tag"], row["consumer_tag"]) == ("1", "")
    ctl("extend_deadline", "held", row["id"], "10000")
    (after,) = json.loads(ctl("list_deliveries", "held", "--formatter", "json"))
    assert 9000 < after["left_s"] - float(row["left_s"]) <= 10000
    ctl("extend_deadline", "held", "9-9", "5", status=65)
    ctl("extend_deadline", "held", row["id"], "soon", status=65)
    channel.queue_delete("held")
    connection.close()


def test_a_name_with_control_characters_does_not_reach_the_terminal(
    broker: BrokerProcess, ctl: Any
) -> None:
    connection = connect(broker)
    channel = connection.channel()
    name = "a\x1b[2J\tb"
    channel.queue_declare(name)
    assert "a\\e[2J\\tb" in ctl("-q", "list_queues", "name").splitlines()
    assert json.loads(ctl("list_queues", "name", "--formatter", "json")) == [{"name": name}]
    channel.queue_delete(name)
    connection.close()


def test_nobody_answers(ctl: Any, tmp_path: Path) -> None:
    said = ctl("--data-dir", str(tmp_path), "list_queues", status=69)
    assert said.startswith("Error: unable to perform an operation on node 'qlog'.")
    assert str(tmp_path / "ctl.sock") in said


def test_the_socket_is_for_its_owner_alone(broker: BrokerProcess) -> None:
    assert stat.S_IMODE((broker.data_dir / "ctl.sock").stat().st_mode) == 0o600


def test_aliases(broker: BrokerProcess, tmp_path: Path) -> None:
    directory = tmp_path / "it's a bin"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("QLOG_DATA_DIR", None)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    data_dir = ("--data-dir", str(broker.data_dir))
    install = (sys.executable, "-m", "qlog", "ctl", "install-aliases", *data_dir, str(directory))
    done = run(*install)
    assert done.returncode == 0, done.stderr
    assert run(*install).returncode == 0  # again
    done = run(str(directory / "rabbitmqctl"), "-q", "list_vhosts")
    assert (done.returncode, done.stdout) == (0, "name\n/\n")
    assert run(str(directory / "rabbitmq-diagnostics"), "-q", "ping").stdout == "Ping succeeded\n"
    assert run(str(directory / "rabbitmq-plugins"), "is_enabled", "nosuch").returncode == 69
    (directory / "rabbitmqctl").write_text("mine")
    done = run(*install)
    assert (done.returncode, (directory / "rabbitmqctl").read_text()) == (69, "mine")
    assert run(*install[:-1]).returncode == 64


def test_a_command_imports_little() -> None:
    """A start takes some 0.1 s; what is slow to import is not looked at."""
    code = (
        "import sys; from qlog.tools.ctl.main import main; main('ctl', ['help', 'list_queues']);"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        (sys.executable, "-c", code), check=True, cwd=ROOT, capture_output=True, text=True
    )
    loaded = set(done.stderr.split())
    assert "qlog.tools.ctl.main" in loaded
    assert not loaded & {"typer", "rich", "starlette", "trio", "msgspec", "qlog.server"}


def test_a_reset(own: BrokerProcess, ctl: Any) -> None:
    where = ("--data-dir", str(own.data_dir), "-q")
    connection = connect(own)
    connection.channel().queue_declare("q", durable=True)
    ctl(*where, "add_vhost", "v")
    ctl(*where, "enable_vhost_deletion_protection", "v")
    ctl(*where, "add_user", "u", "p")
    assert "stop_app" in ctl(*where, "reset", status=69)
    ctl(*where, "stop_app")
    ctl(*where, "reset")
    own.kill()
    own.start()
    assert ctl(*where, "list_vhosts") == "name\n/\n"
    assert ctl(*where, "list_users") == "user\ttags\nguest\t[administrator]\n"
    assert ctl(*where, "list_queues") == ""
    connect(own).close()


def test_the_broker_is_ended(own: BrokerProcess, ctl: Any) -> None:
    ctl("--data-dir", str(own.data_dir), "shutdown")
    assert own.process is not None
    assert own.process.wait(10) == 0
    ctl("--data-dir", str(own.data_dir), "stop", status=69)
    ctl("--data-dir", str(own.data_dir), "stop", "--idempotent")


def test_a_backup_is_made_and_restored(broker: BrokerProcess, ctl: Any, tmp_path: Path) -> None:
    """Of a broker that runs; the second one copies less."""
    with connect(broker) as connection:
        connection.channel().queue_declare("kept", durable=True)
    target = tmp_path / "backup"
    assert ctl("backup", str(target), "--bytes-per-s", "0").startswith("Making a backup of node")
    made = json.loads(ctl("-q", "backup", str(target), "--formatter", "json"))
    assert made["state"] == "made" and made["files"] >= made["files_copied"] > 0
    refused = ctl("backup", str(target), "--bytes-per-s", "5", status=69)
    assert "bytes_per_s must be 0 or at least 1048576" in refused
    assert "neither empty nor a backup" in ctl("backup", str(tmp_path), status=69)
    command = [sys.executable, "-m", "qlog", "restore", str(target)]
    directory = str(tmp_path / "new")
    subprocess.run([*command, "--data-dir", directory], cwd=ROOT, check=True, timeout=60)
    other = BrokerProcess(Path(directory)).start()
    try:
        with connect(other) as connection:
            connection.channel().queue_declare("kept", passive=True)
    finally:
        other.terminate()
