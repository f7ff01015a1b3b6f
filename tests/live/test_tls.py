"""`qlog serve` with TLS and a client that many use, over a change of certificates."""

from __future__ import annotations

import ssl
from pathlib import Path

import pika
import pika.exceptions
import pytest

from tests.live.server import BrokerProcess
from tests.server.net.authority import NAME, broker_files, ca_file, client_context


def environment(settings: dict[str, str]) -> dict[str, str]:
    """Settings as the environment has them."""
    return {f"QLOG_{name.upper()}": value for name, value in settings.items()}


def connection(
    broker: BrokerProcess, context: ssl.SSLContext, **more: object
) -> pika.BlockingConnection:
    """pika over TLS."""
    return pika.BlockingConnection(
        pika.ConnectionParameters(
            "127.0.0.1",
            broker.tls_port,
            ssl_options=pika.SSLOptions(context, NAME),
            **more,
        )
    )


def test_pika_over_tls(tmp_path: Path) -> None:
    """A message goes round, a certificate is a login, and SIGHUP ends nobody's connection."""
    settings = broker_files(tmp_path) | {
        "tls_port": "0",
        "tls_ca": ca_file(tmp_path),
        "tls_client_certificates": "optional",
        "tls_login_from": "common_name",
    }
    broker = BrokerProcess(tmp_path / "data", settings=environment(settings), log_level="info")
    broker.start()
    try:
        with connection(broker, client_context()) as old:
            channel = old.channel()
            channel.confirm_delivery()
            channel.queue_declare("q", durable=True)
            body = bytes(range(256)) * 2000
            channel.basic_publish("", "q", body)
            broker_files(tmp_path, NAME, "new.example")
            broker.hang_up()
            broker.wait_for("read again: the certificates of TLS signal=SIGHUP")
            as_guest = connection(
                broker,
                client_context(common_name="guest"),
                credentials=pika.credentials.ExternalCredentials(),
            )
            assert as_guest.channel().basic_get("q", auto_ack=True)[2] == body
            as_guest.close()
            channel.basic_publish("", "q", body)
            assert channel.basic_get("q", auto_ack=True)[2] == body
            (tmp_path / "broker.key").write_text("no key")
            broker.hang_up()
            broker.wait_for("nothing was read again: cannot use ")
            connection(broker, client_context()).close()
            with pytest.raises(pika.exceptions.AMQPConnectionError):
                pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", broker.tls_port))
            broker.wait_for("AMQP without TLS came to the port for TLS")
    finally:
        code, _ = broker.terminate()
    assert code == 0
