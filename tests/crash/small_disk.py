"""A real file system of a few megabytes, which can be full: a tmpfs that only the tests see.

It is mounted in a mount namespace of its own, held by a process that ends with the tests; what is
to use it is started through `launcher`, and the tests reach into it by `outside`. Skips, with the
reason, where the system does not allow that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.live.server import ROOT

_HOLD = 'mount -t tmpfs -o size="$1",mode=0777 tmpfs "$2" && echo ready && cat'
_BALLAST = bytes(1 << 20), bytes(4096)


class SmallDisk:
    """A mounted tmpfs.

    Arguments: `mountpoint` an empty directory; `size_bytes` of the file system.
    """

    def __init__(self, mountpoint: Path, size_bytes: int) -> None:
        mountpoint.mkdir()
        self.inside = mountpoint
        own_user = os.geteuid() != 0
        needed = ("unshare", "nsenter", "mount")
        if missing := [name for name in needed if shutil.which(name) is None]:
            pytest.skip(f"there is no {missing[0]}")
        options = ["--mount"] + (["--user", "--map-root-user"] if own_user else [])
        self._holder = subprocess.Popen(
            ["unshare", *options, "sh", "-c", _HOLD, "sh", str(size_bytes), str(mountpoint)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None and self._holder.stderr is not None
        if self._holder.stdout.readline() != "ready\n":
            reason = self._holder.stderr.read().strip()
            self.close()
            pytest.skip(f"no file system of our own: {reason}")
        self.outside = Path(f"/proc/{self._holder.pid}/root{mountpoint}")
        enter = ["nsenter", "--target", str(self._holder.pid), "--mount"]
        enter += ["--user", "--preserve-credentials"] if own_user else []
        self.launcher = [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(ROOT)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """The holder ends, and with the last process in it the file system."""
        assert self._holder.stdin is not None
        with suppress(BrokenPipeError):
            self._holder.stdin.close()
        self._holder.wait(10)
        for stream in (self._holder.stdout, self._holder.stderr):
            if stream is not None:
                stream.close()

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return shutil.disk_usage(self.outside).free

    def fill(self, name: str = "ballast") -> None:
        """Somebody else takes all that is left."""
        file = os.open(self.outside / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for step in _BALLAST:
                with suppress(OSError):
                    while True:
                        os.write(file, step)
        finally:
            os.close(file)

    def relieve(self, name: str = "ballast") -> None:
        """And gives it back."""
        (self.outside / name).unlink()
