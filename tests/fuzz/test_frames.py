"""A small run of the frame fuzzer; a large one is a command of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fuzz.frames import Fuzzer
from tests.live.server import BrokerProcess

FRAMES = int(os.environ.get("QLOG_FUZZ_FRAMES", "10000"))


@pytest.mark.timeout(120 + FRAMES // 500)
def test_mutated_frames(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "data").start()
    try:
        figures = Fuzzer(broker.url, seed=1, frames_max=FRAMES, pid=broker.pid).run()
        assert figures.frames >= FRAMES
        code, _ = broker.terminate()
        assert code == 0, "\n".join(broker.lines[-30:])
    finally:
        if broker.process is not None and broker.process.poll() is None:
            broker.kill()
        print("\n".join(broker.lines[-60:]))
