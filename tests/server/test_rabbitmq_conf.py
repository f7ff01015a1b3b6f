"""A rabbitmq.conf: what its lines set, which are named as ignored, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlog.server import config
from qlog.server.config import ConfigError
from qlog.server.rabbitmq_conf import Conf, read
from tests.live.server import BrokerProcess

MEMORY = 10_000_000_000


def conf_of(tmp_path: Path, text: str) -> Conf:
    """What a file with this text says."""
    path = tmp_path / "rabbitmq.conf"
    path.write_text(text)
    return read(path, lambda: MEMORY)


def given(tmp_path: Path, text: str) -> dict[str, Any]:
    """The settings that it gives; nothing of it is ignored."""
    conf = conf_of(tmp_path, text)
    assert conf.ignored == []
    return {name: value for name, (value, _) in conf.given.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# only a comment\n\n   \t\n", {}),
        ("heartbeat = 30", {"heartbeat_s": "30"}),
        ("  heartbeat=30   # why\r\n", {"heartbeat_s": "30"}),
        ("heartbeat = 30\nheartbeat = 40", {"heartbeat_s": "40"}),
        ("default_pass = 'a#b c'", {"default_pass": "a#b c"}),
        ("default_pass = a b", {"default_pass": "a b"}),
        ("listeners.tcp.default = 5673", {"port": 5673, "host": ["::"]}),
        (
            "listeners.tcp.1 = 127.0.0.1:5673\nlisteners.tcp.2 = ::1:5673",
            {"port": 5673, "host": ["127.0.0.1", "::1"]},
        ),
        ("listeners.tcp.local = [::1]:5672", {"port": 5672, "host": ["::1"]}),
        ("listeners.tcp = none", {"plain_listener": False}),
        ("listeners.ssl = none", {}),
        (
            (
                "listeners.tcp = none\nlisteners.ssl.default = 5671\nssl_options.certfile = c.pem\n"
                "ssl_options.keyfile = k.pem\nssl_options.cacertfile = ca.pem\n"
                "ssl_options.password = secret\nssl_options.verify = verify_peer\n"
                "ssl_options.fail_if_no_peer_cert = true\nssl_options.versions.1 = tlsv1.3\n"
                "ssl_options.versions.2 = tlsv1.2\nssl_options.ciphers.1 = ECDHE-A\n"
                "ssl_options.ciphers.2 = TLS_AES_256_GCM_SHA384\nssl_options.ciphers.3 = ECDHE-B\n"
                "ssl_options.honor_cipher_order = true\nssl_cert_login_from = common_name\n"
                "management.ssl.port = 15672"
            ),
            {
                "plain_listener": False,
                "tls_port": 5671,
                "host": ["::"],
                "tls_certificate": "c.pem",
                "tls_key": "k.pem",
                "tls_ca": "ca.pem",
                "tls_key_password": "secret",
                "tls_client_certificates": "required",
                "tls_version_min": "1.2",
                "tls_ciphers": "ECDHE-A:ECDHE-B",
                "tls_login_from": "common_name",
                "management_tls_port": 15672,
            },
        ),
        (
            (
                "listeners.ssl.default = 5671\nssl_options.certfile = c.pem\n"
                "ssl_options.verify = verify_peer"
            ),
            {
                "tls_port": 5671,
                "host": ["::"],
                "tls_certificate": "c.pem",
                "tls_client_certificates": "optional",
            },
        ),
        (
            "management.tcp.port = 15673\nmanagement.tcp.ip = 10.0.0.1\nprometheus.tcp.port = 1",
            {
                "management_port": 15673,
                "management_host": ["10.0.0.1"],
                "metrics_port": 1,
                "metrics_host": ["::"],
            },
        ),
        ("vm_memory_high_watermark.relative = 0.25", {"memory_high_watermark_bytes": MEMORY // 4}),
        ("vm_memory_high_watermark.absolute = 2GB", {"memory_high_watermark_bytes": 2 * 10**9}),
        ("vm_memory_high_watermark.absolute = 2GiB", {"memory_high_watermark_bytes": 2 << 30}),
        ("vm_memory_high_watermark.absolute = 2Gi", {"memory_high_watermark_bytes": 2 << 30}),
        ("disk_free_limit.absolute = 64000", {"disk_free_limit_bytes": 64000}),
        ("disk_free_limit.absolute = 50mb", {"disk_free_limit_bytes": 50_000_000}),
        ("disk_free_limit.absolute = 1 KiB", {"disk_free_limit_bytes": 1024}),
        ("disk_free_limit.relative = 1.5", {"disk_free_limit_bytes": MEMORY // 2 * 3}),
        (
            (
                "default_user = u\ndefault_vhost = v\ndefault_user_tags.monitoring = true\n"
                "default_user_tags.administrator = false\ndefault_permissions.configure = ^a\n"
                "default_permissions.read = .*\ndefault_permissions.write = ''"
            ),
            {
                "default_user": "u",
                "default_vhost": "v",
                "default_user_tags": ["monitoring"],
                "default_permissions_configure": "^a",
                "default_permissions_read": ".*",
                "default_permissions_write": "",
            },
        ),
        ("loopback_users = none", {"loopback_users": []}),
        ("loopback_users.guest = false", {"loopback_users": []}),
        (
            "loopback_users.guest = true\nloopback_users.me = true",
            {"loopback_users": ["guest", "me"]},
        ),
        ("channel_max = 0\nframe_max = 0", {"channel_max": 65535, "frame_bytes_max": 2**31 - 1}),
        ("max_message_size = 1000000", {"message_bytes_max": "1000000"}),
        ("consumer_timeout = 60000", {"consumer_timeout_s": 60.0}),
        ("load_definitions = /etc/d.json", {"load_definitions": "/etc/d.json"}),
        ("management.load_definitions = /d", {"load_definitions": "/d"}),
        (
            "definitions.import_backend = local_filesystem\ndefinitions.local.path = /d",
            {"load_definitions": "/d"},
        ),
        ("log.console = true\nlog.console.level = notice", {"log_level": "info"}),
        (
            (
                "log.dir = /var/log\nlog.file = q.log\nlog.file.level = debug\n"
                "log.file.formatter = json"
            ),
            {"log_file": "/var/log/q.log", "log_level": "debug", "log_format": "json"},
        ),
        (
            "auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = AMQPLAIN",
            {"anonymous_login_user": "none"},
        ),
    ],
)
def test_what_lines_set(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    assert given(tmp_path, text) == expected
    conf = conf_of(tmp_path, text)
    config.load(environment={}, under=conf.given)  # values that qlog takes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cluster_name = x", "line 1: ignored cluster_name: qlog has nothing for it"),
        ("# c\n\nraft.wal_max_size_bytes = 1", "line 3: ignored raft.wal_max_size_bytes"),
        (
            "vm_memory_high_watermark_paging_ratio = 0.5",
            "ignored vm_memory_high_watermark_paging_ratio",
        ),
        (
            "listeners.tcp.1 = 5672\nlisteners.tcp.2 = 5673",
            "line 2: ignored listeners.tcp.2: qlog listens on one port, 5672",
        ),
        ("listeners.tcp = none\nlisteners.tcp.1 = 5672", "ignored listeners.tcp.1"),
        ("ssl_options.certfile = c", "ignored ssl_options.certfile: there is no listeners.ssl"),
        ("ssl_options.depth = 2", "ignored ssl_options.depth"),
        ("management.ssl.port = 15672", "ignored management.ssl.port"),
        (
            "disk_free_limit.relative = 1.0\ndisk_free_limit.absolute = 1",
            "ignored disk_free_limit.relative: disk_free_limit.absolute has precedence",
        ),
        ("auth_mechanisms.1 = PLAIN", "qlog offers AMQPLAIN as well"),
        ("log.file.rotation.count = 5", "ignored log.file.rotation.count"),
        ("vm_memory_calculation_strategy = allocated", "ignored vm_memory_calculation_strategy"),
    ],
)
def test_what_has_no_effect_is_named(tmp_path: Path, text: str, said: str) -> None:
    conf = conf_of(tmp_path, text)
    (line,) = conf.ignored
    assert said in line and line.startswith(f"{tmp_path}/rabbitmq.conf, line ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("heartbeat", "line 1: this is not `key = value`: heartbeat"),
        ("a = 1\n{rabbit, []}.", "line 2: this is not `key = value`"),
        ("default_pass = encrypted:abc", "line 1: default_pass must be in plain text"),
        ("heartbeat =", "line 1: heartbeat has no value"),
        ("include conf.d/*.conf", "line 1: include is not supported"),
        ("disk_free_limit.absolute = 5 zb", "must be a number of bytes, with a unit"),
        ("disk_free_limit.relative = much", "must be a number, not 'much'"),
        ("consumer_timeout = soon", "must be a whole number, not 'soon'"),
        ("listeners.tcp = all", "must be none"),
        ("listeners.tcp.1 = /tmp/socket", "must be a port, or an address and a port"),
        ("listeners.tcp.1 = 70000", "must be a port"),
        ("listeners.ssl.1 = 5671", "listeners.ssl needs ssl_options.certfile"),
        ("loopback_users.guest = maybe", "must be true or false"),
        ("log.console.level = loud", "must be one of debug, info"),
        ("heartbeat = 100000", r"line 1 \(heartbeat\): heartbeat_s must be a whole number, 0 to"),
        (
            "listeners.ssl.1 = 1\nssl_options.certfile = c\nssl_options.versions.1 = tlsv1.1",
            "must be tlsv1.2 or tlsv1.3",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config.load(environment={}, under=conf_of(tmp_path, text).given)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        read(tmp_path / "missing.conf", lambda: MEMORY)


def test_serve_goes_by_it(tmp_path: Path) -> None:
    """Under all other sources; what it cannot do is in the log."""
    path = tmp_path / "rabbitmq.conf"
    path.write_text(
        "listeners.tcp.default = 127.0.0.1:1\ndefault_user = me\ndefault_pass = secret\n"
        "cluster_name = mine\nlog.console.level = debug\nprometheus.tcp.port = 0\n"
    )
    settings = {"QLOG_RABBITMQ_CONF": str(path)}
    broker = BrokerProcess(tmp_path / "data", settings=settings).start()
    try:
        broker.wait_for(f"{path}, line 4: ignored cluster_name: qlog has nothing for it")
        assert broker.port != 1  # an option says otherwise
    finally:
        broker.terminate()
