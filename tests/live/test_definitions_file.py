"""`qlog serve --load-definitions FILE`, and policies as clients meet them. Brokers of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pika
import pytest

from tests.live.server import BrokerProcess
from tests.server.broker.test_definitions_file import DOCUMENT, without

pytestmark = pytest.mark.newer

Serve = Callable[[dict[str, Any] | None], BrokerProcess]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a broker on the same directory each time, with definitions to load; kill the last."""
    path = tmp_path / "definitions.json"
    with ExitStack() as stack:

        def run(document: dict[str, Any] | None) -> BrokerProcess:
            stack.close()
            settings = {} if document is None else {"QLOG_LOAD_DEFINITIONS": str(path)}
            path.write_text(json.dumps(document))
            broker = BrokerProcess(tmp_path / "data", settings=settings)
            stack.callback(broker.kill)
            return broker.start()

        yield run


def connect(broker: BrokerProcess, vhost: str = "shop") -> Any:
    """A connection of pika's."""
    credentials = pika.PlainCredentials("guest", "guest")
    return pika.BlockingConnection(
        pika.ConnectionParameters("127.0.0.1", broker.port, vhost, credentials)
    )


def test_clients_find_what_the_file_defines_also_after_a_kill(serve: Serve) -> None:
    document = without()
    document["policies"].append(
        {
            "vhost": "shop",
            "name": "lost",
            "pattern": "^amq\\.direct$",
            "apply-to": "exchanges",
            "definition": {"alternate-exchange": "x"},
            "priority": 0,
        }
    )
    broker = serve(document)
    channel = connect(broker).channel()
    channel.confirm_delivery()
    properties = pika.BasicProperties(delivery_mode=2)
    channel.basic_publish("x", "a.b", b"one", properties, mandatory=True)
    channel.basic_publish("amq.direct", "a.c", b"two", properties, mandatory=True)
    assert channel.queue_declare("orders", passive=True).method.message_count == 2
    broker = serve(None)  # killed, and started without the file
    channel = connect(broker).channel()
    channel.tx_select()
    for body in (b"one", b"two"):
        method, _, got = channel.basic_get("orders")
        assert method is not None and got == body
        channel.basic_ack(method.delivery_tag)
    channel.tx_commit()  # a kill may take back what was acknowledged a moment before
    channel = channel.connection.channel()
    channel.confirm_delivery()
    channel.basic_publish("amq.direct", "a.c", b"three", properties, mandatory=True)
    broker = serve(document)  # again, on what is there
    channel = connect(broker).channel()
    assert channel.basic_get("orders", auto_ack=True)[2] == b"three"


def test_limits_of_a_vhost_are_told_to_clients(serve: Serve) -> None:
    document = without()
    document["parameters"][0]["value"] = {"max-queues": 2, "max-connections": 1}
    broker = serve(document)
    connection = connect(broker)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
        connection.channel().queue_declare("more", durable=True)
    assert refused.value.args == (
        406,
        "PRECONDITION_FAILED - cannot declare queue 'more': queue limit in vhost 'shop' (2) is reached",
    )
    limit = "access to vhost 'shop' refused for user 'guest': connection limit .1. is reached"
    with pytest.raises(pika.exceptions.ProbableAccessDeniedError, match=limit):
        connect(broker)
    connection.close()
    connect(broker).close()


def test_a_file_that_cannot_be_loaded_stops_the_start_with_one_line(
    serve: Serve, tmp_path: Path
) -> None:
    bad = without()
    bad["queues"].append({"vhost": "shop", "name": "q", "arguments": {"x-expires": 0}})
    with pytest.raises(RuntimeError) as failed:
        serve(bad)
    last = str(failed.value).splitlines()[-1]
    assert last == (
        "qlog: queue 'q' in vhost 'shop': PRECONDITION_FAILED - invalid arg 'x-expires' for queue "
        "'q' in vhost 'shop': {value_zero,0}"
    )
    broker = serve(None)  # the directory has nothing of it
    with pytest.raises(pika.exceptions.ProbableAccessDeniedError, match="vhost shop not found"):
        connect(broker)
    connect(broker, "/").close()
    assert DOCUMENT["queues"][-1]["name"] == "by-default"
