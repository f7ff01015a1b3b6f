"""Starting and stopping a broker of one's own, and finding its memory."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from benchmarks import brokers
from benchmarks.brokers import Broker, BrokerFailed, own_broker, process_tree
from benchmarks.harness import file_system
from benchmarks.wire import Address

ADDRESS = Address("127.0.0.1", 4567)


def pretend(root: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `python -m qlog` be this code."""
    (root / "qlog").mkdir()
    (root / "qlog" / "__init__.py").touch()
    (root / "qlog" / "__main__.py").write_text("import signal, sys\n" + code)
    monkeypatch.setattr(brokers, "ROOT", root)


def test_a_broker_is_started_measured_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))\n"
        "assert sys.argv[1:3] == ['serve', '--data-dir']\n"
        "print('Server startup complete: amqp://127.0.0.1:4567', flush=True)\n"
        "signal.pause()\n"
    )
    pretend(tmp_path, code, monkeypatch)
    data = tmp_path / "data"
    data.mkdir()
    with own_broker(data) as broker:
        assert broker.address == ADDRESS
        assert broker.start_s is not None and broker.start_s > 0
        memory = broker.memory()
        assert 0 < memory.anonymous_bytes < memory.resident_bytes
        spent = broker.cpu_s()
        assert spent["broker"] >= spent["loop"] >= 0
    assert list(data.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("sys.exit('no such option')", "no such option"),
        ("print('Server startup complete', flush=True); signal.pause()", "no address"),
    ],
)
def test_a_broker_that_does_not_start_is_an_error(
    code: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, code, monkeypatch)
    with pytest.raises(BrokerFailed, match=text), own_broker(tmp_path):
        raise AssertionError("it did not start")


def test_a_broker_that_fails_when_it_stops_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "print('Server startup complete 127.0.0.1:4567', flush=True); signal.pause()"
    pretend(tmp_path, code, monkeypatch)
    with pytest.raises(BrokerFailed, match="ended with -15"), own_broker(tmp_path):
        pass


def test_processes_without_a_number_have_no_processor_time() -> None:
    assert Broker("peer", ADDRESS).cpu_s() == {}


def test_processor_time_of_the_loop_is_that_of_the_main_thread() -> None:
    # A thread beside the main one, whose time counts for the process alone.
    before = Broker("here", ADDRESS, os.getpid(), one_loop=True).cpu_s()
    thread = threading.Thread(target=_burn, args=(0.2,))
    thread.start()
    thread.join()
    after = Broker("here", ADDRESS, os.getpid(), one_loop=True).cpu_s()
    assert after["broker"] - before["broker"] >= 0.15
    assert after["loop"] - before["loop"] < 0.1
    assert "loop" not in Broker("here", ADDRESS, os.getpid()).cpu_s()


def _burn(seconds: float) -> None:
    """Spend so much processor time in this thread."""
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        sum(range(1000))


def test_a_process_is_the_first_of_its_tree() -> None:
    assert next(process_tree(os.getpid())) == os.getpid()


def test_the_file_system_of_proc_is_proc() -> None:
    assert file_system(Path("/proc")) == "proc"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("amqp://127.0.0.1:4567/", ADDRESS),
        ("amqp://a:b%20c@host/v%2Fw", Address("host", 5672, "a", "b c", "v/w")),
    ],
)
def test_addresses_are_read_from_urls(url: str, address: Address) -> None:
    assert Address.parse(url) == address


@pytest.mark.parametrize("url", ["127.0.0.1:5672", "http://host/", "amqp://"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        Address.parse(url)
