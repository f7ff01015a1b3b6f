"""How long who has failed to log in has to wait before the next attempt is looked at.

A peer that fails again and again for the same user, or for many users, waits longer each time. What
is remembered is bounded, and forgotten after FORGOTTEN_S. Knows no clock but the one passed in.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

from qlog.server.broker.access.hashing import Doubt

# So many failures in a row cost nothing: of one user, and of all users of a peer.
FREE_OF_USER = 3
FREE_OF_PEER = 20
# The first wait, which doubles with each failure, and the longest one.
WAIT_S = 0.25
WAIT_S_MAX = 5.0
FORGOTTEN_S = 60.0
# So many peers, and users of peers, are remembered: some 5 MiB. Then the oldest are forgotten.
RECORDS_MAX = 10_000
NAME_MAX = 64  # so much of a name is remembered: a client may send one of some thousand characters


def peer_of(address: str) -> str:
    """Whose an address is: of IPv6 its /64, all of which one machine may have."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return f"{ip.exploded[:19]}::/64"


@dataclass(slots=True)
class _Record:
    failures: int = 0
    failed_at_s: float = 0.0
    next_s: float = 0.0  # no attempt is looked at before


class Failures:
    """The failures of all peers. A peer is an address, a user a name."""

    def __init__(self) -> None:
        self._records: OrderedDict[tuple[str, str | None], _Record] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def wait_s(self, peer: str, user: str, now_s: float) -> float:
        """How long an attempt has to wait; those of a peer come one after the other."""
        wait_s = 0.0
        user = user[:NAME_MAX]
        for key, free in (((peer, user), FREE_OF_USER), ((peer, None), FREE_OF_PEER)):
            record = self._of(key, now_s)
            if record is None or record.failures < free:
                continue
            starts_s = max(now_s, record.next_s)
            wait_s = max(wait_s, starts_s - now_s)
            if starts_s - now_s <= WAIT_S_MAX:  # else it is refused, and takes nobody's place
                record.next_s = starts_s + _pause_s(record.failures - free)
        return wait_s

    def doubt(self, peer: str, user: str, now_s: float) -> Doubt:
        """What an attempt has against it: failures of the user from there, or very many from there.

        A few of others from there count for nothing: many may come by one address.
        """
        of_user = self._of((peer, user[:NAME_MAX]), now_s)
        of_peer = self._of((peer, None), now_s)
        if of_peer is not None and of_peer.failures >= FREE_OF_PEER:
            return Doubt.MUCH
        if of_user is None:
            return Doubt.NONE
        return Doubt.SOME if of_user.failures < FREE_OF_USER else Doubt.MUCH

    def failed(self, peer: str, user: str, now_s: float) -> int:
        """An attempt has failed. Returns how many in a row did, of this user from this peer."""
        count = 0
        user = user[:NAME_MAX]
        for key, free in (((peer, None), FREE_OF_PEER), ((peer, user), FREE_OF_USER)):
            record = self._of(key, now_s)
            if record is None:
                record = self._records[key] = _Record()
                while len(self._records) > RECORDS_MAX:
                    self._records.popitem(last=False)
            record.failures += 1
            record.failed_at_s = now_s
            self._records.move_to_end(key)
            if record.failures >= free:
                record.next_s = max(record.next_s, now_s + _pause_s(record.failures - free))
            count = record.failures
        return count

    def succeeded(self, peer: str, user: str) -> None:
        """The user has logged in: the failures with this name are forgiven."""
        self._records.pop((peer, user[:NAME_MAX]), None)

    def _of(self, key: tuple[str, str | None], now_s: float) -> _Record | None:
        record = self._records.get(key)
        if record is not None and now_s - record.failed_at_s >= FORGOTTEN_S:
            del self._records[key]
            return None
        return record


def _pause_s(more: int) -> float:
    """The pause after `more` failures than are free."""
    return min(WAIT_S * 2.0 ** min(more, 10), WAIT_S_MAX)
