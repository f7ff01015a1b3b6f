"""`qlog inspect rebuild-index`: the same index again, and none where a broker would be refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qlog.tools.cli import app
from tests.tools.directories import flip, inspect, killed, opened, segments_of, stopped


def rebuild(directory: Path, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["inspect", "rebuild-index", "--data-dir", str(directory)])
    assert result.exit_code == status, result.output
    return result


@pytest.mark.parametrize("make", [stopped, killed])
@pytest.mark.parametrize("damage", ["none", "missing", "cut"])
def test_the_index_is_made_anew(make: Any, damage: str, tmp_path: Path) -> None:
    directory = make(tmp_path / "data", settled=120)
    before = inspect(directory, "queues")["queues"]
    data = directory / "index.lmdb" / "data.mdb"
    if damage == "missing":
        shutil.rmtree(directory / "index.lmdb")
    elif damage == "cut":
        data.write_bytes(data.read_bytes()[:9000])
    assert "made anew from 200 messages" in rebuild(directory).stdout
    document = inspect(directory, "verify")
    pointers = {item["name"]: item["checked"] for item in document["checks"]}["index pointers"]
    assert pointers == 280
    assert inspect(directory, "queues")["queues"] == before


def test_not_while_a_broker_runs(tmp_path: Path) -> None:
    with opened(tmp_path / "data"):
        assert "another broker runs" in rebuild(tmp_path / "data", status=1).stderr


def test_not_where_a_broker_would_be_refused(tmp_path: Path) -> None:
    directory = killed(tmp_path / "data")
    (path,) = [one for one in segments_of(directory) if b"message 170 " in one.read_bytes()]
    flip(path, path.read_bytes().index(b"message 170 "))
    assert "is damaged at byte" in rebuild(directory, status=1).stderr
    rebuild(tmp_path, status=2)
