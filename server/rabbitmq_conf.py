"""RabbitMQ's configuration file (`rabbitmq.conf`), as far as qlog has what it sets.

    listeners.tcp.default = 5672
    vm_memory_high_watermark.relative = 0.6     # a comment
    default_pass = 'a#b'

A line is a key, `=` and a value; `#` begins a comment, but not inside of single quotes. The last of
two lines with one key counts. Promises that no line is dropped without a word: what qlog has
nothing for is named in `ignored`, a line that is no setting, or whose value makes no sense, is an
error with its number. Values end up as those of qlog's own settings, which are checked there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlog.server.broker.settings import CHANNELS_MAX, FRAME_BYTES_MAX
from qlog.server.config import ConfigError, unreadable

_LINE = re.compile(
    r"\s*(?P<key>[\w-]+(?:(?:\\)?\.[\w-]+)*)\s*=\s*(?:'(?P<quoted>[^']*)'|(?P<value>[^#]*?))\s*(?:#.*)?",
    re.ASCII,
)
_BLANK = re.compile(r"\s*(?:#.*)?")
# kB and k are thousands, since RabbitMQ 3.13; KiB and Ki are 1024.
_SIZE = re.compile(r"(\d+)\s*(?:([kmgtp])(i?)b?)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_LEVELS = {
    "debug": "debug",
    "info": "info",
    "notice": "info",
    "warning": "warning",
    "error": "error",
    "critical": "error",
    "alert": "error",
    "emergency": "error",
    "none": "error",
}
_VERSIONS = {"tlsv1.2": "1.2", "tlsv1.3": "1.3"}
# Set to this, they say what qlog does anyway.
_AS_IT_IS = {
    "ssl_options.client_renegotiation": "false",
    "ssl_options.secure_renegotiate": "true",
    "ssl_options.honor_cipher_order": "true",
    "ssl_options.honor_ecc_order": "true",
    "ssl_options.reuse_sessions": "true",
    "log.console": "true",
    "log.file": "false",
    "definitions.import_backend": "local_filesystem",
    "vm_memory_calculation_strategy": "rss",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A setting as it stands in the file."""

    key: str
    value: str
    source: str  # the file and the number of the line, for errors

    def wrong(self, wanted: str) -> ConfigError:
        """The error that the value is not what is wanted."""
        shown = "" if "pass" in self.key else f", not {self.value!r}"
        return ConfigError(f"{self.source}: {self.key} must be {wanted}{shown}")

    @property
    def last(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    def number(self, kind: Callable[[str], Any] = int, scale: float = 1) -> Any:
        """The value as a number, divided by `scale`."""
        try:
            value = kind(self.value)
        except ValueError:
            raise self.wrong("a whole number" if kind is int else "a number") from None
        return value / scale if scale != 1 else value

    def flag(self) -> bool:
        """The value as true or false."""
        if self.value not in ("true", "false", "on", "off"):
            raise self.wrong("true or false")
        return self.value in ("true", "on")

    def size(self) -> int:
        """The value in bytes, by its unit."""
        found = _SIZE.fullmatch(self.value)
        if found is None:
            raise self.wrong("a number of bytes, with a unit such as MB or GiB if you like")
        count, unit, binary = found[1], (found[2] or "").lower(), found[3]
        base = 1024 if binary else 1000
        return int(count) * int(base ** _POWERS[unit])

    def choice(self, choices: Mapping[str, str]) -> str:
        """What the value means."""
        if self.value not in choices:
            raise self.wrong(f"one of {', '.join(choices)}")
        return choices[self.value]


@dataclass(slots=True)
class Conf:
    """What a file says.

    Attributes:
        given: values of qlog's settings by name, each with where it came from.
        ignored: lines that have no effect, each a line for the log.
    """

    given: dict[str, tuple[Any, str]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def read(path: Path, memory_bytes: Callable[[], int]) -> Conf:
    """Read a file. `memory_bytes` says how much memory the broker may use, for shares of it.

    Raises ConfigError.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error
    translation = _Translation(parse(text, str(path)), memory_bytes)
    translation.run()
    return translation.conf


def parse(text: str, source: str) -> dict[str, Line]:
    """The lines by their keys, in the order of the file. Raises ConfigError."""
    lines: dict[str, Line] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        where = f"{source}, line {number}"
        if _BLANK.fullmatch(raw):
            continue
        if raw.split()[0] == "include":
            raise ConfigError(f"{where}: include is not supported; give one file")
        found = _LINE.fullmatch(raw)
        if found is None:
            raise ConfigError(f"{where}: this is not `key = value`: {raw.strip()}")
        value = found["quoted"] if found["quoted"] is not None else found["value"]
        key = found["key"].replace("\\.", ".")
        if not value and found["quoted"] is None:
            raise ConfigError(f"{where}: {key} has no value")
        lines.pop(key, None)
        lines[key] = Line(key, value, where)
    return lines


class _Translation:
    """From lines to settings: each step takes away the lines that it understands."""

    def __init__(self, lines: dict[str, Line], memory_bytes: Callable[[], int]) -> None:
        self.conf = Conf()
        self._lines = lines
        self._memory_bytes = memory_bytes

    def run(self) -> None:
        self._listeners()
        self._tls()
        self._resources()
        self._users()
        self._log()
        self._simple()
        for line in self._lines.values():
            if _AS_IT_IS.get(line.key) != line.value:
                self._ignore(line, "qlog has nothing for it")

    def _take(self, key: str) -> Line | None:
        return self._lines.pop(key, None)

    def _take_all(self, prefix: str) -> list[Line]:
        """All lines of keys that have one more part."""
        keys = [key for key in self._lines if key.rpartition(".")[0] == prefix]
        return [self._lines.pop(key) for key in keys]

    def _set(self, name: str, value: Any, line: Line) -> None:
        if line.value.startswith("encrypted:"):
            raise line.wrong("in plain text: qlog does not have the key of encrypted values")
        self.conf.given[name] = value, f"{line.source} ({line.key})"

    def _ignore(self, line: Line, why: str) -> None:
        self.conf.ignored.append(f"{line.source}: ignored {line.key}: {why}")

    # -- where clients connect

    def _listeners(self) -> None:
        none = self._take("listeners.tcp")
        plain = self._take_all("listeners.tcp")
        if none is not None:
            if none.value != "none":
                raise none.wrong("none, or listeners.tcp.NAME be used")
            for line in plain:
                self._ignore(line, "listeners.tcp is none")
            self._set("plain_listener", False, none)
            plain = []
        none = self._take("listeners.ssl")
        secure = self._take_all("listeners.ssl")
        if none is not None:
            for line in secure:
                self._ignore(line, "listeners.ssl is none")
            secure = []
        hosts: list[str] = []
        for lines, name in ((plain, "port"), (secure, "tls_port")):
            taken: int | None = None
            for line in lines:
                host, port = _address(line)
                if taken is not None and port != taken:
                    self._ignore(line, f"qlog listens on one port, {taken}, at several addresses")
                    continue
                taken = port
                self._set(name, port, line)
                if host not in hosts:
                    hosts.append(host)
                self._set("host", hosts, line)
        self._secure = bool(secure)
        for protocol, host_name, port_name in (
            ("management.tcp", "management_host", "management_port"),
            ("prometheus.tcp", "metrics_host", "metrics_port"),
        ):
            if (port_line := self._take(f"{protocol}.port")) is not None:
                self._set(port_name, port_line.number(), port_line)
                # RabbitMQ listens at all addresses unless it is told one.
                self._set(host_name, ["::"], port_line)
            if (ip_line := self._take(f"{protocol}.ip")) is not None:
                self._set(host_name, [ip_line.value], ip_line)
        if self._secure and (ssl_line := self._take("management.ssl.port")) is not None:
            self._set("management_tls_port", ssl_line.number(), ssl_line)

    def _tls(self) -> None:
        prefix = "ssl_options"
        certificate = self._take(f"{prefix}.certfile")
        if not self._secure:
            if certificate is not None:
                self._ignore(certificate, "there is no listeners.ssl")
            return
        if certificate is None:
            raise ConfigError("listeners.ssl needs ssl_options.certfile")
        self._set("tls_certificate", certificate.value, certificate)
        for key, name in (
            ("keyfile", "tls_key"),
            ("cacertfile", "tls_ca"),
            ("password", "tls_key_password"),
        ):
            if (line := self._take(f"{prefix}.{key}")) is not None:
                self._set(name, line.value, line)
        verify = self._take(f"{prefix}.verify")
        required = self._take(f"{prefix}.fail_if_no_peer_cert")
        if verify is not None:
            asks = verify.choice({"verify_peer": "optional", "verify_none": "none"})
            if asks == "optional" and required is not None and required.flag():
                asks = "required"
            self._set("tls_client_certificates", asks, verify)
        elif required is not None:
            self._ignore(required, "ssl_options.verify is not verify_peer")
        versions = self._take_all(f"{prefix}.versions")
        known = [_VERSIONS[line.value] for line in versions if line.value in _VERSIONS]
        if versions and not known:
            raise versions[0].wrong("tlsv1.2 or tlsv1.3")
        for line in versions:
            if line.value not in _VERSIONS:
                self._ignore(line, f"qlog does not speak {line.value}")
        if known:
            self._set("tls_version_min", min(known), versions[0])
        ciphers = self._take_all(f"{prefix}.ciphers")
        named = [line.value for line in ciphers if not line.value.startswith("TLS_")]
        if named:
            self._set("tls_ciphers", ":".join(named), ciphers[0])

    # -- limits

    def _resources(self) -> None:
        for prefix, name in (
            ("vm_memory_high_watermark", "memory_high_watermark_bytes"),
            ("disk_free_limit", "disk_free_limit_bytes"),
        ):
            relative = self._take(f"{prefix}.relative")
            absolute = self._take(f"{prefix}.absolute")
            if absolute is not None:  # which wins in RabbitMQ, too
                self._set(name, absolute.size(), absolute)
                if relative is not None:
                    self._ignore(relative, f"{prefix}.absolute has precedence")
            elif relative is not None:
                self._set(name, int(relative.number(float) * self._memory_bytes()), relative)
        if (line := self._take("frame_max")) is not None:
            self._set("frame_bytes_max", line.size() or FRAME_BYTES_MAX, line)
        for key in ("channel_max", "max_channels_per_connection"):
            if (line := self._take(key)) is not None:
                self._set("channel_max", line.number() or CHANNELS_MAX, line)
        if (line := self._take("consumer_timeout")) is not None:
            self._set("consumer_timeout_s", line.number(scale=1000), line)

    # -- who

    def _users(self) -> None:
        none = self._take("loopback_users")
        users = self._take_all("loopback_users")
        if none is not None:
            self._set("loopback_users", [], none)
        elif users:
            named = [line.last for line in users if line.flag()]
            self._set("loopback_users", named, users[0])
        tags = self._take_all("default_user_tags")
        if tags:
            self._set("default_user_tags", [line.last for line in tags if line.flag()], tags[0])
        mechanisms = self._take_all("auth_mechanisms")
        if mechanisms:
            named = [line.value for line in mechanisms]
            if "ANONYMOUS" not in named:
                self._set("anonymous_login_user", "none", mechanisms[0])
            if missing := {"PLAIN", "AMQPLAIN"} - set(named):
                self._ignore(mechanisms[0], f"qlog offers {', '.join(sorted(missing))} as well")

    def _log(self) -> None:
        directory = self._take("log.dir")
        file = self._lines.get("log.file")
        if file is not None and file.value != "false":
            del self._lines["log.file"]
            where = Path(directory.value if directory else ".") / file.value
            self._set("log_file", str(where), file)
        elif directory is not None:
            self._ignore(directory, "there is no log.file")
        place = "console" if file is None or file.value == "false" else "file"
        for key in ("log.default.level", f"log.{place}.level"):  # the last one is the nearest
            if (line := self._take(key)) is not None:
                self._set("log_level", line.choice(_LEVELS), line)
        if (line := self._take(f"log.{place}.formatter")) is not None:
            kinds = {"json": "json", "plaintext": "text", "text": "text"}
            self._set("log_format", line.choice(kinds), line)

    def _simple(self) -> None:
        for key, name in (
            ("default_user", "default_user"),
            ("default_pass", "default_pass"),
            ("default_vhost", "default_vhost"),
            ("default_permissions.configure", "default_permissions_configure"),
            ("default_permissions.write", "default_permissions_write"),
            ("default_permissions.read", "default_permissions_read"),
            ("management.load_definitions", "load_definitions"),
            ("definitions.local.path", "load_definitions"),
            ("load_definitions", "load_definitions"),
            ("anonymous_login_user", "anonymous_login_user"),
            ("anonymous_login_pass", "anonymous_login_pass"),
            ("heartbeat", "heartbeat_s"),
            ("max_message_size", "message_bytes_max"),
            ("product.name", "product"),
            ("product.version", "version"),
            ("ssl_cert_login_from", "tls_login_from"),
            ("ssl_cert_login_san_type", "tls_login_san_type"),
            ("ssl_cert_login_san_index", "tls_login_san_index"),
        ):
            if (line := self._take(key)) is not None:
                self._set(name, line.value, line)


def _address(line: Line) -> tuple[str, int]:
    """The host and the port of a listener: PORT, IP:PORT or [IPv6]:PORT. Raises ConfigError."""
    host, colon, port = line.value.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise line.wrong("a port, or an address and a port as in 127.0.0.1:5672 or [::1]:5672")
    if not colon:
        return "::", int(port)  # all addresses, of both families
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return host, int(port)
