"""A soak at a small scale, and what counts as growth."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks import wire
from benchmarks.__main__ import app
from benchmarks.brokers import ROOT, Broker, own_broker
from benchmarks.soak import session
from benchmarks.soak.judge import MIB, SETTLE_S, WINDOWS, Sample, disk_bytes, judge, slope
from benchmarks.soak.visits import BULK, NEW, Kind, Leaving, visit

# 20 minutes, a sample every 5 s.
TIMES_S = [5.0 * number for number in range(241)]
LEVEL = Sample(0.0, 80 * MIB, 60 * MIB, 25, 5, 120 * MIB, 0.0)


def sampled(
    memory: Callable[[float], float], descriptors: Callable[[float], float]
) -> list[Sample]:
    """Samples of a broker whose memory and descriptors follow functions of the time in seconds."""
    return [
        replace(
            LEVEL,
            at_s=at_s,
            anonymous_bytes=int(memory(at_s)),
            descriptors=int(descriptors(at_s)),
        )
        for at_s in TIMES_S
    ]


def growing(samples: list[Sample]) -> set[str]:
    return {verdict.figure for verdict in judge(samples) if verdict.grows}


def test_what_comes_back_to_its_floor_does_not_grow() -> None:
    peaks = random.Random(1)

    def memory(at_s: float) -> float:
        """It fills in the first five minutes; peaks become higher and higher."""
        filled = min(at_s, SETTLE_S) / SETTLE_S * 40 * MIB
        return 60 * MIB + filled + (peaks.random() < 0.7) * at_s * MIB / 10

    assert growing(sampled(memory, lambda at_s: 25 + at_s % 60)) == set()


def test_a_part_that_never_came_down_is_no_growth() -> None:
    samples = sampled(lambda at_s: (200 if 1000 <= at_s < 1150 else 60) * MIB, lambda at_s: 25)
    assert growing(samples) == set()


def test_a_leak_below_peaks_is_growth() -> None:
    peaks = random.Random(2)

    def memory(at_s: float) -> float:
        return 60 * MIB + at_s * 8 * MIB / 900 + (peaks.random() < 0.7) * 100 * MIB

    assert growing(sampled(memory, lambda at_s: 25)) == {"anonymous_bytes"}
    leak = sampled(lambda at_s: 60 * MIB, lambda at_s: 25 + at_s / 120 + at_s % 60)
    assert growing(leak) == {"descriptors"}


def test_what_shrinks_does_not_grow() -> None:
    shrinking = sampled(lambda at_s: (300 - at_s / 10) * MIB, lambda at_s: 300 - at_s / 10)
    assert growing(shrinking) == set()


def test_too_few_samples_are_no_verdict() -> None:
    with pytest.raises(ValueError, match=f"14 samples after 300 s, {WINDOWS} are needed"):
        judge(sampled(lambda at_s: 1, lambda at_s: 1)[:74])


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.randoms(use_true_random=False))
def test_a_slope_is_found_beside_any_few_outliers(
    start: float, rise: float, order: random.Random
) -> None:
    points = [(float(x), start + rise * x) for x in range(WINDOWS)]
    for place in order.sample(range(WINDOWS), 2):
        points[place] = (points[place][0], order.uniform(-1e9, 1e9))
    assert slope(points) == pytest.approx(rise, rel=1e-6, abs=1e-6)


def test_the_room_of_a_directory_is_what_its_files_take_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "written").write_bytes(bytes(8192))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert 8192 <= disk_bytes(tmp_path) < 1 << 20


def test_all_kinds_of_clients_come_and_the_broker_is_looked_at(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("soak.json", "soak.svg")}
    options = ["--minutes", "0.1", "--scale", "0.0005", "--busy", "1", "--every", "0.05"]
    outputs = ["--json", str(files["soak.json"]), "--plot", str(files["soak.svg"])]
    result = CliRunner().invoke(app, ["soak", *options, *outputs, "--directory", str(tmp_path)])
    seen = json.loads(files["soak.json"].read_text())
    assert seen["failures"] == []
    # How many came depends on the machine, but not that they came and left in all ways.
    assert seen["visits"]["every-day"] >= 1 and seen["visits"]["acks"] >= 1
    assert set(seen["leavings"]) == {leaving.value for leaving in Leaving}
    assert len(seen["samples"]) > WINDOWS
    grows = {verdict["figure"]: verdict["grows"] for verdict in seen["verdicts"]}
    assert set(grows) == {"resident_bytes", "anonymous_bytes", "descriptors", "threads"}
    # In its first seconds a broker's memory still grows.
    assert result.exit_code == int(any(grows.values())), result.output
    ElementTree.fromstring(files["soak.svg"].read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with own_broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.mark.parametrize("leaving", Leaving)
@pytest.mark.parametrize("kind", [*BULK, *NEW], ids=lambda kind: kind.name)
def test_a_client_leaves_nothing_however_it_leaves(
    kind: Kind, leaving: Leaving, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every name that it made can be declared anew, with other arguments: it is free."""
    names: list[str] = []

    def noted(purpose: str) -> str:
        names.append(f"{kind.name}.{leaving.name}.{purpose}.{len(names)}")
        return names[-1]

    for module in ("benchmarks.bulk", "benchmarks.operations", "benchmarks.soak.visits"):
        monkeypatch.setattr(f"{module}.fresh_name", noted)
    visit(broker.address, kind, 3, leaving)
    with wire.Connection(broker.address) as connection:
        for name in names:
            connection.declare_exchange(name, "headers")
            connection.delete_exchange(name)
            connection.declare_queue(name, durable=False)
            assert connection.delete_queue(name) == 0


@pytest.mark.parametrize("error", [wire.Refused("no more of it"), AssertionError("no more of it")])
def test_a_client_that_is_not_served_ends_the_soak_with_status_1(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(session, "visit", refused)
    monkeypatch.setattr(session.Soak, "verdicts", lambda soak: [])
    options = ["--minutes", "5", "--directory", str(tmp_path)]
    result = CliRunner().invoke(app, ["soak", *options])
    assert result.exit_code == 1
    assert "no more of it" in result.output


def test_a_soak_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "soak", "--directory", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stderr is not None
    try:
        assert b"0.0 min" in process.stderr.readline()
        process.terminate()
        assert process.wait(90) != 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProcessLookupError):  # nothing of its session is left
        os.killpg(process.pid, 0)


@pytest.mark.parametrize(("rise", "status"), [(0.0, 0), (1.0, 1)])
def test_growth_is_status_1(
    rise: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = sampled(lambda at_s: (60 + rise * at_s) * MIB, lambda at_s: 25)
    seen = session.Soak(session.Settings(TIMES_S[-1]), "qlog", samples)
    monkeypatch.setattr(session, "run_soak", lambda *arguments: seen)
    result = CliRunner().invoke(app, ["soak", "--directory", str(tmp_path)])
    assert result.exit_code == status
