"""Damages: one stretch of one file is no longer what was written."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from qlog.storage.bytes.batch import BATCH_HEADER_BYTES, FILE_HEADER_BYTES
from qlog.storage.bytes.record import RECORD_HEADER_BYTES
from tests.damage.directories import Facts

FLIP, ZERO, NOISE, CUT, REMOVE = "flip", "zero", "noise", "cut", "remove"
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Strike:
    """What was done: the bytes [position, end) of the file are others now, or gone."""

    how: str
    file: str
    position: int
    end: int

    @property
    def what(self) -> str:
        """What kind of file it hit."""
        name = self.file
        for part, what in (
            ("log/", "log"),
            ("ledger/", "ledger"),
            ("catalog.lmdb/data", "catalog"),
            ("index.lmdb/data", "index"),
        ):
            if name.startswith(part):
                return what
        return "other"

    def __str__(self) -> str:
        return f"{self.how} {self.file} [{self.position}, {self.end})"


def strike(facts: Facts, directory: Path, choice: random.Random) -> Strike | None:
    """Damage something in a copy of the directory; None when nothing changed by it."""
    path = _choose_file(directory, choice)
    file = str(path.relative_to(directory))
    before = path.read_bytes()
    how = choice.choices((FLIP, ZERO, NOISE, CUT, REMOVE), (60, 15, 10, 12, 3))[0]
    if how == REMOVE:
        path.unlink()
        return Strike(how, file, 0, max(len(before), 1))
    if not before:
        return None
    position = min(_choose_position(facts, file, len(before), choice), len(before) - 1)
    data = bytearray(before)
    end = len(before)
    match how:
        case "flip":
            end = position + 1
            data[position] ^= 1 << choice.randrange(8)
        case "cut":
            del data[position:]
        case _:
            if choice.random() < 0.3:
                position -= position % _SECTOR
            end = min(position + choice.choice((1, 8, 64, _SECTOR, 4096)), len(data))
            size = end - position
            data[position:end] = bytes(size) if how == ZERO else choice.randbytes(size)
    if data == before:
        return None
    path.write_bytes(data)
    if how == CUT:
        return Strike(how, file, position, len(before))
    changed = [at for at in range(position, end) if before[at] != data[at]]
    return Strike(how, file, changed[0], changed[-1] + 1)


def _choose_file(directory: Path, choice: random.Random) -> Path:
    kind = choice.choices(("log", "ledger", "catalog", "index", "other"), (50, 20, 14, 12, 4))[0]
    match kind:
        case "log" | "ledger":
            paths = sorted((directory / kind).iterdir())
        case "other":
            paths = [directory / "LOCK", *directory.glob("*.lmdb/lock.mdb")]
            paths += sorted((directory / "spill").iterdir())
        case _:
            paths = [directory / f"{kind}.lmdb" / "data.mdb"]
    return choice.choice(paths)


def _choose_position(facts: Facts, file: str, size: int, choice: random.Random) -> int:
    """Anywhere, but rather where the parts of a format are."""
    batches = [batch for batch in (*facts.log, *facts.ledger) if batch.file == file]
    place = choice.random()
    if not batches:  # LMDB: its meta pages, and the heads of its other pages
        if place < 0.2:
            return choice.randrange(200) + choice.choice((0, 4096))
        page = choice.randrange(max(size // 4096, 1)) * 4096
        return page + choice.randrange(choice.choice((64, 4096)))
    if place < 0.1:
        return choice.randrange(FILE_HEADER_BYTES)
    batch = choice.choice(batches)
    if place < 0.3:
        return batch.position + choice.randrange(BATCH_HEADER_BYTES)
    if place < 0.4:
        return batch.position + BATCH_HEADER_BYTES + choice.randrange(RECORD_HEADER_BYTES + 24)
    if place < 0.6:
        return choice.randrange(batch.position, batch.end)
    if place < 0.8:  # what is behind the last batch: a footer, or nothing
        return choice.randrange(batches[-1].end, max(size, batches[-1].end + 1))
    return choice.randrange(size)
