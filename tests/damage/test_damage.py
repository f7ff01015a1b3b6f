"""Some damage of every sort; `python -m tests.damage` tries as many as one likes."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlog.storage.start.examine import Verdict as Checksum
from qlog.storage.start.judge import LogScan
from qlog.tools.inspect.look import log
from qlog.tools.inspect.look.directory import Directory
from tests.damage.directories import KINDS, Facts, make, new_place
from tests.damage.judge import mistake_of_foretelling, try_one
from tests.damage.outcome import Crash, Outcome, in_child

CASES = 10  # of each kind


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    place = new_place()
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def sources(root: Path) -> dict[str, Facts]:
    return {kind: make(kind, root / kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_and_nothing_is_lost_silently(
    sources: dict[str, Facts], kind: str, root: Path
) -> None:
    outcomes = Counter[str]()
    for seed in range(CASES):
        verdict = try_one(sources[kind], root / f"{kind}-{seed}", seed)
        if verdict is not None:
            assert verdict.mistake is None, f"seed {seed}: {verdict.strike}: {verdict.mistake}"
            outcomes[verdict.outcome] += 1
    assert outcomes["refused"] and outcomes["no effect"]


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        pytest.param("killed", 77000667, id="a message's targets are damaged, too"),
        pytest.param("compacted", 77002159, id="two blank files, one of which had messages"),
    ],
)
def test_what_was_lost_silently_once(
    sources: dict[str, Facts], kind: str, seed: int, root: Path
) -> None:
    verdict = try_one(sources[kind], root / f"{kind}-{seed}", seed)
    assert verdict is not None and verdict.mistake is None, verdict


def test_the_judge_notices_what_verify_does_not(
    sources: dict[str, Facts], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were damage taken for blank space, many cases would fail."""
    stretches = Directory.stretches

    def blind(self: Directory, view: object) -> object:
        return (item for item in stretches(self, view) if item.verdict is not Checksum.DAMAGED)  # type: ignore[arg-type]

    monkeypatch.setattr(Directory, "stretches", blind)
    monkeypatch.setattr(log._Look, "_tell", lambda *arguments: None)
    monkeypatch.setattr(Directory, "judge_log", lambda self: LogScan())
    mistakes = 0
    for seed in range(CASES):
        verdict = try_one(sources["stopped"], root / f"blind-{seed}", seed)
        mistakes += verdict is not None and verdict.mistake is not None
    assert mistakes > 2


@pytest.mark.parametrize(
    ("outcome", "refusals", "doubt"),
    [
        (Outcome(), ["why"], ""),
        (Outcome("why"), [], ""),
        (Outcome("why"), ["something else"], ""),
        (Outcome(), [], "why"),
        (Outcome(catalog_rebuilt="why"), [], ""),
    ],
)
def test_a_start_that_was_foretold_otherwise_is_noticed(
    outcome: Outcome, refusals: list[str], doubt: str
) -> None:
    assert mistake_of_foretelling(outcome, refusals, doubt) is not None
    assert mistake_of_foretelling(Outcome("why"), ["why", "and this"], "") is None
    assert mistake_of_foretelling(Outcome(catalog_rebuilt="why"), [], "so") is None


def test_a_crash_is_noticed() -> None:
    with pytest.raises(Crash, match="signal 6"):
        in_child(lambda: __import__("os").abort())
    with pytest.raises(Crash, match="ZeroDivisionError"):
        in_child(lambda: 1 // 0)
