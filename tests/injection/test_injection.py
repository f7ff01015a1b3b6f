"""A few errors from the system, as `python -m tests.injection` tries them all."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.images import trace
from tests.images.sweep import in_memory
from tests.injection.run import Fault, run


@pytest.mark.parametrize(
    ("fault", "reaction"),
    [
        (Fault("pwrite64", "EIO", 4), "did not start, 1"),
        (Fault("fdatasync", "EIO", 30), "ended with 74"),
        (Fault("fdatasync", "EIO", 16, onwards=True), "ended with 74"),
        (Fault("pwritev2", "ENOSPC", 20), "went on"),
    ],
    ids=str,
)
def test_errors_of_the_system(fault: Fault, reaction: str) -> None:
    if reason := trace.missing():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(dir=in_memory()) as directory:
        result = run(fault, Path(directory) / "run")
    assert result.violations == []
    assert result.reaction == reaction
