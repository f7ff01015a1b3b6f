"""docs/compatibility.md: each feature says how it works, and names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# What the page calls the table of conversations that RabbitMQ has answered.
BEHAVIOURS = ("behaviours", "live/behaviours")
STATES = ("works", "differs", "not", "qlog's own")
_ROW = re.compile(r"^\| (.+) \|$", re.MULTILINE)
_CELLS = re.compile(r" \| ")
_CODE = re.compile(r"`([^`]+)`")


def rows() -> list[list[str]]:
    """The rows of the tables of features under "Every feature": feature, state, tests."""
    page = (ROOT / "docs/compatibility.md").read_text()
    _, _, part = page.partition("\n## Every feature\n")
    assert part
    found: list[list[str]] = []
    for table in part.split("\n\n"):
        head, *cells = [_CELLS.split(row) for row in _ROW.findall(table)] or [[""]]
        if head[-2:] == ["state", "test"]:
            found += [[" ".join(row[:-2]), *row[-2:]] for row in cells]
    return found


ROWS = [pytest.param(*row, id=row[0]) for row in rows()]


def test_there_are_rows() -> None:
    assert len(ROWS) > 90


@pytest.mark.parametrize(("feature", "state", "tests"), ROWS)
def test_a_feature_names_its_tests(feature: str, state: str, tests: str) -> None:
    assert state.startswith(STATES), state
    if tests == "–":
        assert state.startswith("not")
        return
    names = _CODE.findall(tests)
    assert names
    for name in names:
        path = TESTS / dict([BEHAVIOURS]).get(name, name)
        assert path.is_file() or any(path.glob("test_*.py")), f"there is no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_are_there(page: Path) -> None:
    named = {name for name in _CODE.findall(page.read_text()) if name.startswith("tests/")}
    missing = {name for name in named if not (ROOT / name.rstrip("/")).exists()}
    assert not missing
