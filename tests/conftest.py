"""Fixtures that several test folders share: a broker to talk to, and connections to it.

The broker is a `qlog serve` subprocess, one a worker; with QLOG_TEST_URL it is whatever listens
there, and QLOG_TEST_REFERENCE=1 says that this is a RabbitMQ 3.10, against which the tests
themselves are tested.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.live.conversation")

from qlog.server.broker.access import passwords
from tests.live.conversation import Client, Talk, connections
from tests.live.server import NO_HTTP, BrokerProcess

# How long an example takes says something of the machine's load only, and to look for a smaller one
# that takes as long would take minutes.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# For `qlog serve` that a test starts without BrokerProcess.
os.environ.update(NO_HTTP)

# Brokers inside the tests' process hash hundreds of passwords, of which nobody else may know.
passwords.COST = passwords.Cost(memory_kib=8, passes=1)


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers used here; let children be stopped by Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "slow: takes several seconds because a timeout is tested")
    config.addinivalue_line("markers", "unfinished: RabbitMQ does it, qlog does not do it yet")
    config.addinivalue_line("markers", "newer: expects what RabbitMQ after 3.10 does")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what the reference is too old for; expect to fail what qlog does not do yet."""
    is_reference = os.environ.get("QLOG_TEST_REFERENCE") == "1"
    for item in items:
        if is_reference and item.get_closest_marker("newer"):
            item.add_marker(pytest.mark.skip(reason="RabbitMQ 3.10 differs by design"))
        if not is_reference and item.get_closest_marker("unfinished"):
            item.add_marker(pytest.mark.xfail(strict=True, reason="not done yet"))


@pytest.fixture(scope="session")
def is_reference() -> bool:
    """Whether the peer is a real RabbitMQ 3.10."""
    return os.environ.get("QLOG_TEST_REFERENCE") == "1"


@pytest.fixture(scope="session")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker that all tests of this worker share."""
    given = os.environ.get("QLOG_TEST_URL")
    if given:
        yield given
        return
    broker = BrokerProcess(tmp_path_factory.mktemp("broker") / "data").start()
    yield broker.url
    code, _ = broker.terminate()
    assert code == 0, "\n".join(broker.lines[-200:])


@pytest.fixture
def connect(broker_url: str) -> Iterator[Callable[..., Client]]:
    """A maker of raw connections; what they declare is deleted afterwards."""
    with connections(broker_url) as maker:
        yield maker


@pytest.fixture
def talk(connect: Callable[..., Client]) -> Talk:
    """Channel 1 of a new connection."""
    return connect().channel()
