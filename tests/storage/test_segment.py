"""Reading files of batches: what is whole behind damage, and where the zeros at the end begin."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlog.storage.bytes.batch import BATCH_MAGIC_BYTES, FILE_HEADER_BYTES, pack_batch
from qlog.storage.bytes.checks import place_seed
from qlog.storage.bytes.disk import OSDisk
from qlog.storage.write import segment
from qlog.storage.write.segment import BatchFile


class CountingDisk(OSDisk):
    """Counts the bytes read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_bytes = 0

    def read(self, file: int, size: int, offset: int) -> bytes:
        data = super().read(file, size, offset)
        self.read_bytes += len(data)
        return data


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300).filter(lambda data: not data.endswith(b"\0")),
    st.integers(0, 2000),
    st.lists(st.integers(0, 2300), min_size=1, max_size=5),
)
def test_the_zeros_at_the_end_are_found_from_anywhere_and_read_once(
    tmp_path: Path, data: bytes, zeros: int, positions: list[int]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data + bytes(zeros))
    disk = CountingDisk()
    window_bytes = segment._WINDOW_BYTES
    segment._WINDOW_BYTES = 64
    try:
        file = BatchFile(disk, path, b"u" * 16, 1)
        disk.read_bytes = 0
        for position in positions:
            assert file.used_end(position) == max(position, len(data))
        file.close()
    finally:
        segment._WINDOW_BYTES = window_bytes
    assert disk.read_bytes <= zeros + 64 * (len(positions) + 1)


UUID = b"u" * 16


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(
        st.one_of(
            st.binary(max_size=90),
            st.just(BATCH_MAGIC_BYTES),
            st.just(pack_batch(7, 1, 1, 1, 1, b"a" * 20)),
            st.binary(max_size=90).map(lambda body: (body,)),
        ),
        max_size=12,
    ),
    window_bytes=st.integers(1, 200),
    start=st.integers(0, 100),
)
def test_every_whole_batch_is_found_behind_any_damage(
    tmp_path: Path, parts: list[bytes | tuple[bytes]], window_bytes: int, start: int
) -> None:
    data = b""
    due = []
    for part in parts:
        if isinstance(part, tuple):  # a batch
            if len(data) >= start:
                due.append((len(data), part[0]))
            data += pack_batch(place_seed(UUID, 1, len(data)), 1, 1, 1, 1, *part) + part[0]
        else:
            data += part
    path = tmp_path / "file"
    path.write_bytes(data + bytes(100))
    before = segment._WINDOW_BYTES
    segment._WINDOW_BYTES = window_bytes
    try:
        file = BatchFile(OSDisk(), path, UUID, 1)
        found = list(file.whole_batches_after(start))
        file.close()
    finally:
        segment._WINDOW_BYTES = before
    assert [(batch.position, batch.body) for batch in found] == due


@pytest.mark.parametrize("pitch", [48, 52, 53])
def test_a_body_full_of_headers_is_gone_through_once(tmp_path: Path, pitch: int) -> None:
    """They claim bodies that reach to the end of what is reserved for the file."""
    count = 80_000
    size = 48 << 20
    fakes = []
    for at in range(count):
        header = bytearray(pack_batch(at, 1, 2, 3, 1 << 40, b"").ljust(pitch, b"x"))
        header[8:12] = (size - pitch * count).to_bytes(4, "little")
        fakes.append(bytes(header))
    random_bytes = random.Random(1).randbytes(pitch * count)
    times_s = []
    for body in (random_bytes, b"".join(fakes)):
        path = tmp_path / "file"
        path.write_bytes(bytes(FILE_HEADER_BYTES) + body)
        with path.open("r+b") as stream:
            stream.truncate(size)
        disk = CountingDisk()
        file = BatchFile(disk, path, UUID, 1)
        file.used_end(0)
        disk.read_bytes = 0
        started_s = time.process_time()
        assert list(file.whole_batches_after(FILE_HEADER_BYTES)) == []
        times_s.append(time.process_time() - started_s)
        file.close()
        assert disk.read_bytes < len(body) + 3 * segment._WINDOW_BYTES
    # To read what each of them claims would take a hundred thousand times as long.
    assert times_s[1] < 1000 * times_s[0]
