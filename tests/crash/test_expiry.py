"""Times across kill -9: what has a time expires after the next start, and nothing else does."""

from __future__ import annotations

import random
import time

import pytest
from pika.exceptions import ChannelClosedByBroker, UnroutableError

from tests.crash.test_dead_letters import broker, drain, fill, open_channel
from tests.live.server import BrokerProcess

__all__ = ["broker"]  # a fixture

ROUNDS = 4
DEADLINE_S = 60.0
TTL_MS = 400


@pytest.mark.parametrize("own", [False, True])
def test_messages_expire_whenever_the_broker_is_killed(broker: BrokerProcess, own: bool) -> None:
    """Killed while they wait, while they leave, or when the copies of some are there."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    channel = open_channel(broker)
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    if not own:
        arguments["x-message-ttl"] = TTL_MS  # type: ignore[assignment]
    channel.queue_declare("source", durable=True, arguments=arguments)
    for name in ("dead", "kept"):
        channel.queue_declare(name, durable=True)
    for number in range(ROUNDS):
        kept = fill(channel, "kept", b"kept%d." % number)
        expiration = str(TTL_MS) if own else None
        bodies = fill(channel, "source", b"%d." % number, expiration=expiration)
        time.sleep(chance.random() * TTL_MS * 1.5 / 1000)
        broker.kill()
        broker.start()
        channel = open_channel(broker)
        found: set[bytes] = set()
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            found.update(drain(channel, "dead"))
            waiting = channel.queue_declare("source", passive=True).method.message_count
            if bodies <= found and not waiting:
                break
        assert bodies <= found
        assert not waiting
        assert set(drain(channel, "kept")) == kept


def test_an_expired_queue_stays_deleted(broker: BrokerProcess) -> None:
    channel = open_channel(broker)
    channel.queue_declare("q", durable=True, arguments={"x-expires": 300})
    channel.queue_declare("other", durable=True)
    channel.confirm_delivery()
    deadline = time.monotonic() + DEADLINE_S
    with pytest.raises(UnroutableError):
        while time.monotonic() < deadline:
            channel.basic_publish("", "q", b"", mandatory=True)
            time.sleep(0.02)
    channel.queue_declare("third", durable=True)  # what was defined before is durable with it
    broker.kill()
    broker.start()
    names = [name for name in ("other", "third") if _is_there(broker, name)]
    assert names == ["other", "third"]
    assert not _is_there(broker, "q")


def _is_there(broker: BrokerProcess, name: str) -> bool:
    channel = open_channel(broker)
    try:
        channel.queue_declare(name, passive=True)
    except ChannelClosedByBroker as closed:
        assert closed.reply_code == 404
        return False
    finally:
        channel.connection.close()
    return True
