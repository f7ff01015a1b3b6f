"""The crash-recovery suite at a small scale: kills, counts, figures, the page; nothing stays behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import wire
from benchmarks.__main__ import app
from benchmarks.brokers import ROOT, BrokerFailed
from benchmarks.harness import PEER, SUBJECT
from benchmarks.recovery import daemons, runs
from benchmarks.recovery.cases import PATTERNS, Case, sweep
from benchmarks.recovery.daemons import OwnDaemon, PeerDaemon
from benchmarks.recovery.latency import parse_counts, raw_sync
from benchmarks.recovery.page import BEGIN, END, tables, write_page
from benchmarks.recovery.runs import Backlog, Samples, run_case
from benchmarks.recovery.session import (
    CaseResult,
    LatencyResult,
    RecoverySession,
    merge,
)


def test_a_sweep_has_each_case_once() -> None:
    cases = sweep([100, 1000], [1, 10], ["none", "sparse"], [1000])
    assert cases == [Case(100), Case(1000), Case(1000, 10), Case(1000, 1, "sparse")]


@pytest.mark.parametrize(
    ("name", "least", "most"), [("random", 400, 600), ("sparse", 100, 100), ("most", 900, 900)]
)
def test_patterns_select_their_share(name: str, least: int, most: int) -> None:
    tags = range(1, 1001)
    selected = list(PATTERNS[name].select(tags))
    assert least <= len(selected) <= most
    assert set(selected) <= set(tags)


def test_a_case_is_filled_killed_and_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "SETTLE_S", 0.3)
    monkeypatch.setattr(runs, "PORTIONS", 2)
    monkeypatch.setattr(runs, "verify", lambda data, tell: None)
    told: list[str] = []
    samples: Samples = {}
    with OwnDaemon(tmp_path) as daemon:
        run_case(daemon, Case(60, 2, "in-order"), 1, cold=False, samples=samples, tell=told.append)
    assert samples["acked"] == [15]
    for figure in ("warm_delivery_s", "warm_asked_mib", "rebuild_delivery_s", "written_per_byte"):
        assert len(samples[figure]) == 1 and samples[figure][0] > 0
    assert samples["warm_delivery_s"][0] > samples["warm_start_s"][0]
    assert told[1].startswith("60 messages in")
    assert list(tmp_path.iterdir()) == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_a_peer_is_killed_with_all_that_its_command_started(tmp_path: Path) -> None:
    port = free_port()
    serve = [sys.executable, "-m", "qlog", "serve", "--port", str(port)]
    # A launcher that does not replace itself, as that of an Erlang broker.
    launcher = f"cd {shlex.quote(str(ROOT))}; {shlex.join([*serve, '--data-dir', str(tmp_path / 'data')])}; :"
    address = wire.Address("127.0.0.1", port)
    with PeerDaemon(shlex.join(["sh", "-c", launcher]), address, tmp_path / "log") as daemon:
        backlog = Backlog(daemon, Case(10), {}, lambda line: None)
        assert backlog.broker.memory().anonymous_bytes > 0
        with (
            pytest.raises(BrokerFailed, match="listens on port"),
            PeerDaemon("true", address, tmp_path / "log2") as second,
        ):
            second.start()
        daemon.kill()
        with pytest.raises(OSError):
            wire.Connection(address)


def test_a_peer_that_ends_is_an_error(tmp_path: Path) -> None:
    address = wire.Address("127.0.0.1", free_port())
    command = shlex.join(["sh", "-c", "echo no such node; exit 1"])
    with (
        pytest.raises(BrokerFailed, match="no such node"),
        PeerDaemon(command, address, tmp_path / "log") as daemon,
    ):
        daemon.start()


def test_a_suite_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "recovery", "--messages", "1000000"]
    options = ["--queues", "", "--acks", "", "--no-cold", "--directory", str(tmp_path)]
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stderr is not None
    try:
        assert b"accepts connections" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 130
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):  # nothing of its session is left
        os.killpg(process.pid, 0)


def test_dropping_caches_without_the_right_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemons, "DROP_CACHES", tmp_path / "missing" / "drop_caches")
    assert not daemons.drop_page_cache()


def test_the_disk_alone_is_measured(tmp_path: Path) -> None:
    for allocated in (False, True):
        figures = raw_sync(tmp_path, 2, 0.02, allocated)
        assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p999_ms"]
        assert figures["rate"] > 0


def test_counts_of_strace_are_read() -> None:
    table = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 74.52    0.281337         112      2512           fdatasync
 25.40    0.095893          38      2500        12 pwritev
------ ----------- ----------- --------- --------- ----------------
100.00    0.377230          75      5012        12 total
"""
    assert parse_counts(table) == {"fdatasync": 2512, "pwritev": 2500}


def result(messages: int, queues: int = 1, acks: str = "none", scale: float = 1.0) -> CaseResult:
    def of(factor: float) -> Samples:
        figures = ("warm_delivery_s", "fill_growth_mib", "written_per_byte", "rebuild_delivery_s")
        return {figure: [factor, 1.2 * factor, 1.1 * factor] for figure in figures}

    return CaseResult(messages, queues, acks, {SUBJECT: of(scale), PEER: of(10 * scale)})


def session(*cases: CaseResult) -> RecoverySession:
    confirms = LatencyResult(100, {SUBJECT: {"p50_ms": [1.0], "calls_per_sync": [2.05]}})
    return RecoverySession(
        "2024-01-01", {"processors": "2"}, {"runs": 3}, {SUBJECT: "one"}, [*cases], [confirms]
    )


def test_a_later_session_replaces_cases() -> None:
    first = session(result(10), result(1000), result(1000, 10))
    cases, confirms = merge([first, session(result(1000, scale=2))])
    assert [(one.messages, one.queues) for one in cases] == [(10, 1), (1000, 1), (1000, 10)]
    assert cases[1].samples[SUBJECT]["warm_delivery_s"][0] == 2
    assert len(confirms) == 1


def test_tables_judge_the_largest_backlog_by_the_targets() -> None:
    text = tables([session(result(10, scale=9), result(1000, scale=1), result(1000, 1, "sparse"))])
    assert "With 1,000 messages of 1 KiB in one queue:" in text
    assert "| first delivery after kill -9, s | < 2 | 1.1 (1-1.2) | yes |" in text
    assert "| every 10th | 1.1 (1-1.2) |" in text
    assert "With 100 in flight qlog makes 2.05 system calls" in text
    slow = tables([session(result(1000, scale=9))])
    assert "| first delivery after kill -9, s | < 2 | 9.9 (9-10.8) | **no** |" in slow


def test_a_page_is_written_again_the_same_by_command(tmp_path: Path) -> None:
    page = tmp_path / "recovery.md"
    page.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter\n")
    results = tmp_path / "results.json"
    results.write_text(json.dumps(session(result(10), result(1000), result(1000, 10)).as_json()))
    versions = []
    for _ in range(2):
        called = CliRunner().invoke(app, ["plot", str(results), "--page", str(page)])
        assert called.exit_code == 0, called.output
        plots = sorted((tmp_path / "recovery").iterdir())
        versions.append((page.read_text(), [plot.read_bytes() for plot in plots]))
    assert versions[0] == versions[1]
    text, _ = versions[0]
    assert text.startswith("# Before\n") and text.endswith("\n\nAfter\n") and "old" not in text
    assert [plot.name for plot in plots] == [
        f"{name}.svg" for name in ("acks", "confirms", "memory", "queues", "rebuild", "restart")
    ]
    assert "(recovery/restart.svg)" in text


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines"):
        write_page(page, [session(result(10))])
    assert page.read_text() == "nothing"


@pytest.mark.parametrize(
    "options",
    [
        ["--messages", "0"],
        ["--acks", "backwards"],
        ["--peer", "amqp://127.0.0.1:1/"],
    ],
)
def test_wrong_options_are_refused(options: list[str]) -> None:
    assert CliRunner().invoke(app, ["recovery", *options]).exit_code == 2
