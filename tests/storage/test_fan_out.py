"""One message to very many lanes: what is written stays within what a system call takes."""

from pathlib import Path

from qlog.storage.store import Store
from tests.storage.support import Envelope, decode, envelope, ignore

LANES = 2100  # 25 KB of targets a record
MESSAGES = 400  # three pieces each would be more than the 1024 buffers of one write


def test_a_run_to_thousands_of_lanes_is_written(tmp_path: Path) -> None:
    store: Store[Envelope] = Store.open(tmp_path, decode=decode, notify=ignore)
    lanes = [store.lane(store.new_lane_id()) for _ in range(LANES)]
    bodies = [b"%d" % number for number in range(MESSAGES)]
    store.append(lanes, [envelope()] * MESSAGES, bodies, persistent=True, now_ms=1)
    assert store.settle_down()
    assert store.failure is None
    assert store.durable_lsn == store.lsn == MESSAGES
    store.close()
    store = Store.open(tmp_path, decode=decode, notify=ignore)
    for lane_id in (lanes[0].id, lanes[-1].id):
        found = store.lane(lane_id).read(0, MESSAGES, 1 << 30)
        assert found is not None
        assert list(found.bodies) == bodies
    store.close()
