"""How much memory the broker may use: the machine's, or what control groups leave of it."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import psutil
import pytest

from qlog.server import resources
from qlog.server.config import ResourceSettings
from qlog.server.resources import ResourceWatch, usable_memory_bytes

MACHINE = 64 << 30
UNLIMITED_V1 = "9223372036854771712"  # what version 1 says where there is no limit


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        (None, {}, MACHINE),  # not Linux
        ("0::/", {}, MACHINE),  # the root of version 2 has no file
        ("0::/", {"memory.max": "1000"}, 1000),  # a container
        ("0::/", {"memory.max": "max"}, MACHINE),
        ("0::/a/b", {"memory.max": "max", "a/memory.max": "500", "a/b/memory.max": "max"}, 500),
        ("0::/a/b", {"a/memory.max": "500", "a/b/memory.max": "400"}, 400),
        ("0::/docker/1f", {"memory.max": "700"}, 700),  # the host's path; not there in a container
        ("0::/../x", {"memory.max": "700"}, 700),  # outside of its namespace
        ("0::/", {"memory.max": str(MACHINE * 2)}, MACHINE),
        ("4:memory:/", {"memory/memory.limit_in_bytes": UNLIMITED_V1}, MACHINE),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "800\n"}, 800),
        ("5:cpu,memory:/a", {"memory/a/memory.limit_in_bytes": "600"}, 600),
        ("4:memory:/docker/1f", {"memory/memory.limit_in_bytes": "900"}, 900),
        ("4:memory:/\n0::/", {"memory/memory.limit_in_bytes": "300"}, 300),  # both at once
        ("9:name=systemd:/memory\n8:cpu:/", {"memory.max": "1"}, MACHINE),
        ("4:memory:/a:b", {"memory/a:b/memory.limit_in_bytes": "200"}, 200),
    ],
)
def test_memory_that_may_be_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cgroup: str | None,
    files: dict[str, str],
    expected: int,
) -> None:
    class Machine:
        total = MACHINE

    monkeypatch.setattr(psutil, "virtual_memory", Machine)
    if cgroup is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup + "\n")
    for name, content in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert usable_memory_bytes(tmp_path) == expected


def test_this_machine() -> None:
    assert 0 < usable_memory_bytes() <= psutil.virtual_memory().total
    assert 0 < resources._resident_bytes() < usable_memory_bytes()


def test_an_alarm_says_how_much_there_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alarms = dict.fromkeys(("low on memory", "low on disk", "low on file descriptors"), False)
    broker = mock.Mock(alarms=alarms, set_alarm=alarms.__setitem__)
    broker.store.take_findings.return_value = []
    limits = ResourceSettings(disk_free_limit_bytes=1 << 60)
    watch = ResourceWatch(broker, limits, tmp_path)
    watch.check()
    (line,) = caplog.messages
    assert line.startswith(
        f"resource alarm set: low on disk; publishers are blocked directory={tmp_path} free_bytes="
    )
    assert line.endswith(f" limit_bytes={1 << 60}")
    watch.disk_limit_bytes = 0
    watch.check()
    assert caplog.messages[-1].startswith("resource alarm cleared: low on disk directory=")
