"""qlog, as a migration fills it."""

from __future__ import annotations

from typing import Any

import pytest

from qlog.tools.ctl.api import Api, ApiError
from qlog.tools.migrate import target as target_module
from qlog.tools.migrate.target import Target


def test_while_publishers_are_blocked_it_waits_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Any] = [
        *[ApiError(400, "publishers are blocked: low on disk", {"error": "blocked"})] * 3,
        ApiError(503, "too many large requests", {"error": "busy"}),
        {"rejected": [], "ends": "1-0"},
        ApiError(404, "Not Found", {"error": "Object Not Found"}),
    ]

    def send(*_: object, **__: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(target_module, "BLOCKED_S", 0)
    api = Api("nowhere")
    monkeypatch.setattr(api, "send", send)
    said: list[str] = []
    target = Target(api, "amqp://rabbit:5672", "/", "q", said.append)
    assert target.adopt("mark", []) == ([], "1-0")
    assert said == [
        "waiting for qlog, which takes nothing now: publishers are blocked: low on disk"
    ]
    with pytest.raises(ApiError, match="404"):
        target.adopt("mark", [])
