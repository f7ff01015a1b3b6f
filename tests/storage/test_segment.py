"""Reading files of batches: where the zeros begin that fill them to their end."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlog.storage import segment
from qlog.storage.disk import OSDisk
from qlog.storage.segment import BatchFile


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
