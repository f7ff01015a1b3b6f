"""Who takes part in a session, by which names, and in which order they take turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import harness
from benchmarks.brokers import Broker, BrokerFailed, Installation
from benchmarks.flow import Figures, LoadFailed
from benchmarks.harness import Contender, Session, run_session
from benchmarks.scenarios.scenario import Scenario, Settings
from benchmarks.wire import Address

PEERS = ["amqp://127.0.0.1:4001", "r=amqp://u:p@127.0.0.1:4002/v%3D", "l=amqp://127.0.0.1:4003"]


def test_peers_are_named_by_their_options() -> None:
    contenders = command._peers(PEERS, ["17", "l=18"])
    assert [(one.name, one.running) for one in contenders] == [
        ("peer", Broker("peer", Address("127.0.0.1", 4001), 17)),
        ("r", Broker("r", Address("127.0.0.1", 4002, "u", "p", "v="))),
        ("l", Broker("l", Address("127.0.0.1", 4003), 18)),
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["--peer", "127.0.0.1:5672"],
        ["--peer", "r=127.0.0.1:5672"],
        ["--peer-pid", "12"],
        ["--peer", PEERS[1], "--peer-pid", "r=beam"],
        ["--peer", PEERS[0], "--peer", PEERS[0]],
        ["--peer", "broker=amqp://127.0.0.1:4001"],
        ["--against", "r", "--peer", PEERS[1]],
    ],
)
def test_peers_that_cannot_be_told_apart_or_found_are_refused(options: list[str]) -> None:
    assert CliRunner().invoke(command.app, ["run", "start", *options]).exit_code == 2


def test_contenders_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    started: list[str] = []

    @contextmanager
    def own(directory: Path, installation: Installation | None) -> Iterator[Broker]:
        name = installation.label if installation else "today"
        started.append(name)
        yield Broker(name, Address("127.0.0.1", 1))

    def run(broker: Broker, settings: Settings) -> Figures:
        order.append(broker.label)
        if order.count("r") == 2 and broker.label == "r":
            raise LoadFailed("a message was lost")
        return {"rate": float(len(order))}

    monkeypatch.setattr(harness, "own_broker", own)
    monkeypatch.setattr(harness, "PAUSE_S", 0)
    monkeypatch.setattr(harness, "allow_descriptors", lambda: None)
    monkeypatch.setattr(Broker, "version", lambda self: f"version of {self.label}")
    contenders = [
        Contender("broker"),
        Contender("old", installation=Installation("old", "python", tmp_path)),
        Contender("r", running=Broker("r", Address("127.0.0.1", 2))),
    ]
    kept: list[Session] = []
    session = run_session(
        [Scenario("steady", "", "", run, ("rate",)), Scenario("new", "", "", run, (), fresh=True)],
        Settings(tmp_path, runs=2),
        contenders,
        tell=lambda line: None,
        keep=kept.append,
    )
    assert order == ["today", "old", "r"] * 4
    # One of each for the session, and for each run that needs a fresh one.
    assert started == ["today", "old"] * 3
    assert session.brokers == {
        "broker": "version of today", "old": "version of old", "r": "version of r",
    }  # fmt: skip
    steady, new = session.results
    assert steady.runs == {
        "broker": [{"rate": 1.0}, {"rate": 4.0}],
        "old": [{"rate": 2.0}, {"rate": 5.0}],
        "r": [{"rate": 3.0}, {}],
    }
    assert steady.errors == ["steady 2 on r: a message was lost"]
    assert len(kept) == 2 and new.errors == []


def test_a_commit_that_cannot_be_installed_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(commit: str) -> Installation:
        raise BrokerFailed(f"no {commit}")

    monkeypatch.setattr(command, "install", install)
    options = ["run", "start", "--against", "gone", "--directory", str(tmp_path)]
    monkeypatch.setattr(command, "MEMORY_FILE_SYSTEMS", ())
    done = CliRunner().invoke(command.app, options)
    assert done.exit_code == 1 and "no gone" in done.output
