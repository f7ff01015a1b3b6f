"""Every form of command comes to what it came to with RabbitMQ 4.0 (forms.py, record.py)."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from qlog.tools.ctl.main import main
from tests.live.server import BrokerProcess
from tests.tools.ctl.forms import GROUPS, run_group

RECORDED: dict[str, list[dict[str, Any]]] = json.loads(
    Path(__file__).with_name("recorded.json").read_text()
)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker that all groups share."""
    directory = tmp_path_factory.mktemp("broker") / "data"
    process = BrokerProcess(directory).start()
    try:
        yield process
    finally:
        process.terminate()


def test_all_forms_were_recorded() -> None:
    for group, text in GROUPS.items():
        assert [each["form"] for each in RECORDED[group]] == text.strip().splitlines()


@pytest.mark.parametrize("group", GROUPS)
def test_forms(group: str, broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLOG_DATA_DIR", str(broker.data_dir))
    wrong = []
    for (form, *got), expected in zip(
        run_group(group, _run, broker.url), RECORDED[group], strict=True
    ):
        assert form == expected["form"]
        wanted = [expected["status"], expected["stdout"], expected["stderr"]]
        if got != wanted:
            wrong.append(f"{form}\n  wanted {wanted}\n  got    {got}")
    assert not wrong, "\n".join(wrong)


def _run(tool: str, words: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(tool, words)
    return status, _named(out.getvalue()), _named(err.getvalue())


def _named(text: str) -> str:
    """The text with what stands for the node's name in what was recorded."""
    return re.sub(r"\bqlog\b", "NODE", text)
