"""Memory and disk: when publishers are blocked because one of them runs out.

The memory that the broker may use is the machine's, or less where a control group (of a container
or a systemd unit) limits it. RabbitMQ 4.0 takes the machine's memory, and its operators have to
say if there is less; a broker in a container would then be killed before it blocks publishers.
"""

from __future__ import annotations

import logging
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

from qlog.server.broker.broker import Broker
from qlog.server.config import ResourceSettings
from qlog.storage.errors import Shortage

logger = logging.getLogger("qlog.broker")

MEMORY_WATERMARK_FRACTION = 0.4  # RabbitMQ's vm_memory_high_watermark before 4.0, 0.6 since

# What operators call the resources, and what the broker calls their alarms.
ALARMS = {
    "memory": "low on memory",
    "disk": "low on disk",
    "file_descriptor_limit": "low on file descriptors",
}


class ResourceWatch:
    """Compares memory and disk space with their limits, and sets and clears the broker's alarms.

    Arguments: `directory` is the data directory, whose disk counts.
    """

    def __init__(self, broker: Broker, settings: ResourceSettings, directory: Path) -> None:
        self.memory_limit_bytes = settings.memory_high_watermark_bytes or int(
            usable_memory_bytes() * MEMORY_WATERMARK_FRACTION
        )
        self._broker = broker
        self._directory = directory
        self.disk_limit_bytes = settings.disk_free_limit_bytes
        self._pretended: set[str] = set()

    def facts(self) -> dict[str, int]:
        """Memory and disk, in octets, and file descriptors, as they are now."""
        process = psutil.Process()
        descriptors_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return {
            "memory_used": _resident_bytes(),
            "memory_limit": self.memory_limit_bytes,
            "disk_free": shutil.disk_usage(self._directory).free,
            "disk_free_limit": self.disk_limit_bytes,
            "descriptors_used": process.num_fds(),
            "descriptors_max": max(descriptors_max, 0),
        }

    def alarms(self) -> list[str]:
        """The resources whose alarms are on."""
        return [name for name, text in ALARMS.items() if self._broker.alarms[text]]

    def pretend(self, name: str, on: bool) -> None:
        """From the next check on the resource counts as short, or as what it is measured to be.

        Raises KeyError.
        """
        text = ALARMS[name]
        if on:
            self._pretended.add(text)
        else:
            self._pretended.discard(text)

    def check(self) -> None:
        """Compare with the limits. Logs changes, and damage that the storage has found."""
        for finding in self._broker.store.take_findings():
            logger.error("%s", finding)
        try:
            resident_bytes = _resident_bytes()
        except (OSError, psutil.Error) as error:  # out of file descriptors: as before, then
            logger.warning("cannot look at the memory error=%s", error)
        else:
            self._set(
                "low on memory",
                resident_bytes > self.memory_limit_bytes,
                f"used_bytes={resident_bytes} limit_bytes={self.memory_limit_bytes}",
            )
        try:
            free_bytes = shutil.disk_usage(self._directory).free
        except OSError as error:  # gone, unmounted: nothing can be kept there
            logger.warning("cannot look at the disk error=%s", error)
            free_bytes = 0
        store = self._broker.store
        full = store.shortage is Shortage.SPACE
        self._set(
            "low on disk",
            full or free_bytes < self.disk_limit_bytes,
            f"directory={self._directory} free_bytes={free_bytes} "
            f"limit_bytes={self.disk_limit_bytes}",
        )
        self._set("low on file descriptors", store.shortage is Shortage.DESCRIPTORS)

    def _set(self, name: str, on: bool, facts: str = "") -> None:
        on = on or name in self._pretended
        if self._broker.alarms[name] != on:
            what = f"set: {name}; publishers are blocked" if on else f"cleared: {name}"
            logger.warning("resource alarm %s", f"{what} {facts}".rstrip())
            self._broker.set_alarm(name, on)


def _resident_bytes() -> int:
    resident_bytes: int = psutil.Process().memory_info().rss
    return resident_bytes


def usable_memory_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or the smallest limit of a control group that this process is in.

    `root` is where /proc and /sys are.
    """
    machine_bytes: int = psutil.virtual_memory().total
    return min([machine_bytes, *_limits_bytes(root)])


def _limits_bytes(root: Path) -> Iterator[int]:
    """Limits of the control groups, of version 1 and 2: of its own one and of all above it.

    A container sees its group as the root of the tree, while /proc may name it by its path on the
    host: groups that are not there are passed over, and the root is always looked at.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux, or no control groups
        return
    mount = root / "sys/fs/cgroup"
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            tree, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            tree, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for above in (group, *group.parents):
            try:
                limit = (tree / above / name).read_text().strip()
            except OSError:
                continue
            if limit.isdigit():  # else "max": none
                yield int(limit)
