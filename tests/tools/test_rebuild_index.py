"""`qlog inspect rebuild-index`: the same index again, and none where a broker would be refused."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qlog.tools.cli import app
from tests.tools.directories import flip, inspect, killed, opened, segments_of, stopped


def rebuild(directory: Path, *options: str, status: int = 0) -> Result:
    arguments = ["inspect", "rebuild-index", "--data-dir", str(directory), *options]
    result = CliRunner().invoke(app, arguments)
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
        assert (
            "a broker runs on the directory; stop it first"
            in rebuild(tmp_path / "data", status=2).stderr
        )


def test_not_where_a_broker_would_be_refused(tmp_path: Path) -> None:
    directory = killed(tmp_path / "data")
    (path,) = [one for one in segments_of(directory) if b"message 170 " in one.read_bytes()]
    flip(path, path.read_bytes().index(b"message 170 "))
    assert "is damaged at byte" in rebuild(directory, status=1).stderr
    account = json.loads(rebuild(directory, "--json", status=1).stdout)
    assert account["messages"] is None and account["index_bytes"] is None
    assert "is damaged at byte" in account["damage"][0]["what"]
    rebuild(tmp_path, status=2)


def test_an_account_of_it(tmp_path: Path) -> None:
    directory = killed(tmp_path / "data", 10)
    account = json.loads(rebuild(directory, "--json").stdout)
    assert account["schema"] == "qlog.inspect.rebuild-index/1"
    assert account["messages"] == 10 and account["duration_s"] >= 0
    assert account["index_bytes"] == (directory / "index.lmdb" / "data.mdb").stat().st_size


@pytest.mark.parametrize("step", ["mark_doubt", "Examination"])
def test_rights_that_are_missing_are_one_line(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/its/file")

    directory = killed(tmp_path / "data", 10)
    monkeypatch.setattr(f"qlog.tools.inspect.commands.rebuild_index.{step}", refuse)
    (line,) = rebuild(directory, status=2).stderr.splitlines()
    assert "/its/file cannot be" in line
