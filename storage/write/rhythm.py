"""When the next commit of the log begins, and on which thread. Pure: times in, decisions out.

A commit is one write and one sync for everything that waits. A commit that begins a little later
can serve many more publishers. Promises that a commit is held back for at most a quarter of the
time that the last one took, and for at most LAZY_S if nobody waits for it.

- *Hold.* When a commit is done, the publishers that it confirms publish again, most of them within
  the time that a few reads take. The next commit begins when as many wait as before. Without this
  rule publishers part in groups that wait for each other's syncs.
- *Lazy.* Messages that no confirm waits for are written when there are many, or after LAZY_S.
- *Inline.* A small commit on a fast disk is made on the owner's thread: two hand-offs between
  threads cost more than the sync. After a slow sync the commit thread makes the commits again for a
  while, longer each time.
"""

LAZY_S = 0.005
LAZY_BYTES_MAX = 256 << 10
HOLD_S_MAX = 0.002
INLINE_BYTES_MAX = 128 << 10
INLINE_MEAN_S_MAX = 0.001  # where syncs take longer on average, a hand-off costs little beside them
_SLOW_S = 0.020  # an inline commit that takes longer has held everybody up too long
_BANISHED_S = 0.25  # no commit is inline for so long after a slow one, then for twice as long
_BANISHED_S_MAX = 60.0
_WEIGHT = 0.1  # the weight of the newest commit in the average


class Rhythm:
    """See the head of this file. All times are of the owner's monotonic clock, in seconds."""

    def __init__(self, *, inline: bool) -> None:
        self._inline = inline
        self._expected = 0  # publishers that waited for the commit before
        self._hold_until_s = 0.0
        self._lazy_since_s: float | None = None
        self._begun_s = 0.0
        self._mean_s: float | None = None  # what a commit takes
        self._inline_from_s = 0.0
        self._banished_s = _BANISHED_S

    def begun(self, now_s: float) -> None:
        """A commit was handed over."""
        self._begun_s = now_s
        self._lazy_since_s = None

    def done(self, now_s: float, waiting: int, *, inline: bool) -> None:
        """The commit is done; `waiting` publishers wait for it or for the next one."""
        took_s = now_s - self._begun_s
        mean_s = took_s if self._mean_s is None else self._mean_s
        self._mean_s = mean_s + _WEIGHT * (took_s - mean_s)
        self._expected = waiting
        self._hold_until_s = now_s + min(took_s / 4, HOLD_S_MAX)
        if inline and took_s > _SLOW_S:
            self._inline_from_s = now_s + self._banished_s
            self._banished_s = min(2 * self._banished_s, _BANISHED_S_MAX)

    def delay_s(self, now_s: float, waiting: int, pending_bytes: int) -> float:
        """For how long the next commit is held back from now on; 0: it begins now."""
        if not waiting:
            if pending_bytes >= LAZY_BYTES_MAX:
                return 0.0
            if self._lazy_since_s is None:
                self._lazy_since_s = now_s
            return max(self._lazy_since_s + LAZY_S - now_s, 0.0)
        if waiting >= self._expected:
            return 0.0
        return max(self._hold_until_s - now_s, 0.0)

    def may_be_inline(self, now_s: float, waiting: int, pending_bytes: int) -> bool:
        """Whether the next commit may be made on the owner's thread."""
        return (
            self._inline
            and waiting > 0
            and pending_bytes <= INLINE_BYTES_MAX
            and now_s >= self._inline_from_s
            and self._mean_s is not None
            and self._mean_s <= INLINE_MEAN_S_MAX
        )
