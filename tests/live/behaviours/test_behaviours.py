"""Every case of cases.py gets RabbitMQ's answers, but where qlog decides otherwise (DIFFERS).

With QLOG_TEST_URL the answers of a RabbitMQ 4.0 there are compared with those that were written
down; `ask.py` writes them anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.live.behaviours.ask import ANSWERS
from tests.live.behaviours.cases import all_cases
from tests.live.behaviours.play import Stage

CASES = all_cases()
KNOWN: dict[str, list[str]] = json.loads(ANSWERS.read_text(encoding="utf-8"))
IS_QLOG = "QLOG_TEST_URL" not in os.environ

_CRASH = "RabbitMQ 4.0.5 meets an error of its own, and closes the connection with 541"
# By case: why qlog says something else, and what it says last.
DIFFERS = {
    "exchange of type 'Direct'": (
        "RabbitMQ says `invalid` of a name that is an atom somewhere in Erlang",
        "reply_text=\"PRECONDITION_FAILED - unknown exchange type 'Direct'\"",
    ),
    "declare stream: x-max-age='a'": (_CRASH, "invalid arg 'x-max-age'"),
    "stream: consume x-stream-filter=[5]": (_CRASH, "Basic.ConsumeOk"),
    **{
        f"stream: offset {offset!r}": (_CRASH, "invalid arg 'x-stream-offset'")
        for offset in ("nonsense", "", 1.5, True, None)
    },
    "cancelled, and yet acknowledged, quorum": (
        "RabbitMQ counts a cancelled consumer until all that it had is settled, and a moment longer",
        "consumer_count=0",
    ),
    "nack at the limit": (
        "bits that mean nothing in a server's nack: `requeue`, and `multiple` for one message",
        "Basic.Nack delivery_tag=2 multiple=False requeue=False",
    ),
}


@pytest.fixture(scope="module")
def stage(broker_url: str) -> Iterator[Stage]:
    with Stage(broker_url) as stage:
        yield stage


@pytest.mark.newer
@pytest.mark.parametrize("name", CASES)
def test_behaviour(stage: Stage, name: str) -> None:
    lines = stage.play(CASES[name])
    if name in DIFFERS and IS_QLOG:
        _, last = DIFFERS[name]
        assert lines[:-1] == KNOWN[name][:-1]
        assert last in lines[-1].replace("\\'", "'")
        assert lines != KNOWN[name]
    else:
        assert lines == KNOWN[name]


def test_there_are_enough_cases() -> None:
    refused = [name for name, lines in KNOWN.items() if lines and "Close" in lines[-1]]
    assert KNOWN.keys() == CASES.keys()
    assert len(CASES) >= 850 and len(refused) >= 500
