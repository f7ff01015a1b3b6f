"""A recorded broker's directory opens after a crash at any step, with all that was promised.

And the images can tell: when syncs are taken out of the same recording, promises are seen broken.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.images import trace
from tests.images.directory import Directory
from tests.images.record import Recording, record
from tests.images.sweep import Image, chosen, in_memory, sweep

SEED = 20_240_301
IMAGES = 30
# A busy machine may hold the broker up for long: what was synced is then known by transactions only.
ACK_WINDOW_S = 30.0


@pytest.fixture
def workspace() -> Iterator[Path]:
    """Where there is memory for it, in memory: hundreds of small files are made, and synced."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def recording() -> Iterator[Recording]:
    """One for all tests here."""
    if reason := trace.missing():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(dir=in_memory()) as directory:
        yield record(Path(directory), seconds=1.5, seed=SEED)


def test_images_open_with_all_that_was_promised(recording: Recording, workspace: Path) -> None:
    choice = random.Random(SEED)
    picked = chosen(recording.kinds, IMAGES, choice)
    swept = list(sweep(recording, picked, workspace, choice, ack_window_s=ACK_WINDOW_S))
    assert [image for image in swept if image.violations] == []
    assert sum(image.messages for image in swept) > IMAGES


@pytest.mark.parametrize(
    "lies",
    [
        pytest.param(lambda name: name.endswith((".qseg", ".qseg.new")), id="segments"),
        pytest.param(lambda name: name == "log", id="log"),
        pytest.param(lambda name: name.endswith((".qack", "next.new")), id="ledger files"),
        pytest.param(lambda name: name == "ledger", id="ledger"),
        pytest.param(lambda name: name == "", id="root"),
        pytest.param(lambda name: name.endswith(".qstr"), id="segments of streams"),
        pytest.param(lambda name: name == "streams", id="streams"),
    ],
)
def test_syncs_that_are_missing_are_noticed(
    lies: Callable[[str], bool], recording: Recording, workspace: Path
) -> None:
    swept = _without_syncs(lies, recording, workspace)
    assert any(image.violations for image in swept), "every image was in order"


@pytest.mark.parametrize(
    "lies",
    [
        pytest.param(lambda name: name.startswith("catalog.lmdb/"), id="catalog"),
        pytest.param(lambda name: name == "catalog.lmdb", id="catalog's name"),
    ],
)
def test_a_catalog_that_is_not_synced_costs_nothing(
    lies: Callable[[str], bool], recording: Recording, workspace: Path
) -> None:
    """The ledger has all definitions."""
    swept = _without_syncs(lies, recording, workspace)
    assert [image for image in swept if image.violations] == []


def _without_syncs(
    lies: Callable[[str], bool], recording: Recording, workspace: Path
) -> Iterator[Image]:
    """Images of a disk that does not sync the files for which `lies` is true."""
    choice = random.Random(SEED)
    places = {kind: at[len(at) // 2 :] for kind, at in recording.kinds.items()}
    picked = chosen(places, 100, choice)
    directory = Directory(recording.data_dir, lies)
    return sweep(recording, picked, workspace, choice, directory, ACK_WINDOW_S)
