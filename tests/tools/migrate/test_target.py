"""qlog, as a migration fills it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qlog.tools.ctl.api import Api, ApiError
from qlog.tools.migrate import target as target_module
from qlog.tools.migrate.plan import Plan
from qlog.tools.migrate.run import Migration, Progress
from qlog.tools.migrate.target import Target
from qlog.tools.transfer.link import Address


def giving(answers: list[Any]) -> Callable[..., Any]:
    """A call that gives the next answer each time, or raises it."""

    def call(*_: object, **__: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return call


def test_while_publishers_are_blocked_it_waits_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Any] = [
        *[ApiError(400, "publishers are blocked: low on disk", {"error": "blocked"})] * 3,
        ApiError(503, "too many large requests", {"error": "busy"}),
        {"rejected": [], "ends": "1-0"},
        ApiError(404, "Not Found", {"error": "Object Not Found"}),
    ]

    monkeypatch.setattr(target_module, "BLOCKED_S", 0)
    api = Api("nowhere")
    monkeypatch.setattr(api, "send", giving(answers))
    said: list[str] = []
    target = Target(api, "amqp://rabbit:5672", "/", "q", said.append)
    assert target.adopt("mark", []) == ([], "1-0")
    assert said == [
        "waiting for qlog, which takes nothing now: publishers are blocked: low on disk"
    ]
    with pytest.raises(ApiError, match="404"):
        target.adopt("mark", [])


def test_definitions_wait_for_a_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = ApiError(503, "too many large requests", {"error": "busy"})
    answers: list[Any] = [busy, busy, {"left_out": ["x"]}, busy, None]

    monkeypatch.setattr(target_module, "BLOCKED_S", 0)
    api = Api("nowhere")
    monkeypatch.setattr(api, "ask", giving(answers))
    migration = Migration(api, Address.parse("amqp://"), 1, Progress(quiet=False))
    plan = Plan({}, [], 0)
    migration.check(plan)
    migration.define(plan)
    assert plan.notes == ["definitions: x"] and not answers
    waiting = "waiting for qlog, which takes nothing now: too many large requests\n"
    assert capsys.readouterr().err.count(waiting) == 2
