"""What systemd is told of a service of `Type=notify`: sd_notify(3), by a datagram.

Written here since the whole protocol is a line of text to a socket that the environment names.
Without that name nothing is said. A supervisor that does not listen is logged once, and is no
reason for a broker to stop.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping

logger = logging.getLogger("qlog")


class Supervisor:
    """Who has started this process, if somebody wants to hear of it.

    Arguments: `environment` loses the supervisor's variables, so that children do not speak for us.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        usec = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "") or str(os.getpid())
        watched = self._address and usec.isdecimal() and pid == str(os.getpid())
        # How often it wants a sign of life at least, halved as sd_notify(3) advises; 0: never.
        self.watchdog_s = int(usec) / 2e6 if watched else 0.0
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def ready(self, status: str) -> None:
        """It has started, or has read its files again."""
        self._say("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """It reads its files again; `ready` follows."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """It stops."""
        self._say("STOPPING=1")

    def alive(self) -> None:
        """The loop goes round."""
        self._say("WATCHDOG=1")

    def _say(self, *lines: str) -> None:
        if self._socket is None:
            return
        # A name in the abstract namespace begins with @, which stands for a zero octet.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            self._socket.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            logger.warning("the supervisor does not listen socket=%s: %s", self._address, error)
            self._socket.close()
            self._socket = None
