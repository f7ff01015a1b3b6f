"""Settings of the daemon: defaults, a TOML file, the environment, the command line.

The last of these sources wins. Each setting is defined once, as a field of a struct; each part of
the broker has its struct, and `Settings` is made of them. From these definitions come the options
of `qlog serve` and their help, the names in the environment (`QLOG_<NAME>`), the names in the
file, and the table in docs/operations.md (tools/settings_table.py).
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta, Struct, structs

from qlog.server.broker.settings import NO_FILE, BrokerSettings
from qlog.storage.settings import StoreSettings

# A setting whose range ends here is shown without an upper end.
LIMITLESS = 1 << 40
TITLES = {"": "Directory", "tls": "TLS"}  # of groups whose names say it otherwise


class ConfigError(Exception):
    """A setting has an impossible value; str() is one line for the operator."""


class NetworkSettings(Struct, frozen=True, kw_only=True):
    """Where clients connect."""

    host: Annotated[
        tuple[str, ...],
        Meta(
            min_length=1,
            description="Addresses to listen on. localhost is 127.0.0.1 and ::1; :: is every "
            "address, IPv4 and IPv6.",
        ),
    ] = ("127.0.0.1",)
    port: Annotated[
        int, Meta(ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    ] = 5672
    plain_listener: Annotated[
        bool,
        Meta(description="Whether to listen without TLS, too; False needs tls_certificate."),
    ] = True
    shutdown_s: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="When the broker stops, clients get this long to answer that they have "
            "heard of it; then they are cut.",
            extra={"unit": "s"},
        ),
    ] = 2.0


class TLSSettings(Struct, frozen=True, kw_only=True):
    """How clients connect with TLS. The files are read again on SIGHUP."""

    tls_port: Annotated[
        int,
        Meta(
            ge=0,
            le=65535,
            description="Port for AMQP with TLS, if there is a certificate; 0 picks a free one.",
        ),
    ] = 5671
    tls_certificate: Annotated[
        str,
        Meta(
            description="The broker's certificate with those that lead to its CA (PEM); none: no "
            "TLS.",
            extra={"metavar": "FILE"},
        ),
    ] = "none"
    tls_key: Annotated[
        str,
        Meta(
            description="The private key (PEM); none: it is in the certificate's file.",
            extra={"metavar": "FILE"},
        ),
    ] = "none"
    tls_key_password: Annotated[
        str, Meta(description="What opens the private key.", extra={"secret": True})
    ] = ""
    tls_names_directory: Annotated[
        str,
        Meta(
            description="A directory of further certificates, for clients that ask for a name "
            "(SNI): NAME.pem with chain and key, or NAME/ with fullchain.pem and privkey.pem, or "
            "with tls.crt and tls.key. NAME may begin with *. for all names in a domain.",
            extra={"metavar": "DIRECTORY"},
        ),
    ] = "none"
    tls_client_certificates: Annotated[
        Literal["none", "optional", "required"],
        Meta(description="Whether clients are asked for a certificate, and have to show one."),
    ] = "none"
    tls_ca: Annotated[
        str,
        Meta(description="Who signs the certificates of clients (PEM).", extra={"metavar": "FILE"}),
    ] = "none"
    tls_revoked: Annotated[
        str,
        Meta(
            description="Which of the certificates of clients are revoked: the current lists (CRL, "
            "PEM) of all who sign them; none: it is not looked at.",
            extra={"metavar": "FILE"},
        ),
    ] = "none"
    tls_version_min: Annotated[
        Literal["1.2", "1.3"], Meta(description="The oldest version of TLS that is spoken.")
    ] = "1.2"
    tls_ciphers: Annotated[
        str,
        Meta(description="The ciphers of TLS 1.2, as OpenSSL lists them; default: its own list."),
    ] = "default"


class HttpSettings(Struct, frozen=True, kw_only=True):
    """Where operators and their tools connect."""

    management_host: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description="Addresses of the management API, as `host` has them."),
    ] = ("127.0.0.1",)
    management_port: Annotated[
        int,
        Meta(
            ge=0,
            le=65535,
            description="Port of the management API; 0: none. A default port that is in use is a "
            "warning, one that was asked for an error.",
        ),
    ] = 15672
    management_tls_port: Annotated[
        int,
        Meta(
            ge=0,
            le=65535,
            description="Port of the management API with TLS, if there is a tls_certificate; 0: "
            "none.",
        ),
    ] = 15671
    metrics_host: Annotated[
        tuple[str, ...], Meta(min_length=1, description="Addresses of the metrics for Prometheus.")
    ] = ("127.0.0.1",)
    metrics_port: Annotated[
        int, Meta(ge=0, le=65535, description="Port of the metrics; 0: none.")
    ] = 15692


class LogSettings(Struct, frozen=True, kw_only=True):
    """What is logged, and where."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="Messages below this level are not logged."),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        Meta(
            description="Lines for people, or an object of JSON a line (time, level, logger, msg)."
        ),
    ] = "text"
    log_file: Annotated[
        str,
        Meta(
            description="The log goes to the end of this file, which SIGHUP opens again; none: to "
            "stderr.",
            extra={"metavar": "FILE"},
        ),
    ] = "none"

    @property
    def path(self) -> str:
        """The absolute path of the log's file; empty: the log goes to stderr."""
        return "" if self.log_file == NO_FILE else os.path.abspath(self.log_file)


class ResourceSettings(Struct, frozen=True, kw_only=True):
    """When publishers are blocked."""

    memory_high_watermark_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=2**62,
            description="Publishers are blocked when the broker uses more memory; 0: 40 % of the "
            "memory that it may use (the machine's, or what its control group is limited to).",
            extra={"unit": "bytes"},
        ),
    ] = 0
    disk_free_limit_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=2**62,
            description="Publishers are blocked when the disk has less space left.",
            extra={"unit": "bytes"},
        ),
    ] = 50_000_000


class Settings(Struct, frozen=True, kw_only=True):
    """All settings of `qlog serve`, each in the group of the part that is set."""

    data_dir: Annotated[
        Path, Meta(description="The directory where everything is kept; made if it is missing.")
    ] = Path("qlog-data")
    network: NetworkSettings = NetworkSettings()
    tls: TLSSettings = TLSSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    broker: BrokerSettings = BrokerSettings()
    resources: ResourceSettings = ResourceSettings()
    storage: StoreSettings = StoreSettings()


class Setting(Struct, frozen=True, kw_only=True):
    """The definition of one setting, taken from the field of its struct."""

    name: str
    group: str  # the field of `Settings`; empty for a setting of its own
    type: Any
    constrained: Any  # the type with its `Meta`
    default: Any
    help: str
    metavar: str  # how the help calls the value; empty: by its type
    unit: str  # "bytes", "s", "bytes/s"; empty where there is none
    low: float | None  # the smallest and largest values, both allowed
    high: float | None
    choices: tuple[str, ...]
    also: str  # RabbitMQ's name in the environment, so that its container recipes work; or empty
    secret: bool  # never in errors
    is_option: bool  # False for secrets, which all users of the machine would see

    @property
    def environment(self) -> tuple[str, ...]:
        """Names in the environment; a later one wins."""
        ours = f"QLOG_{self.name.upper()}"
        return (self.also, ours) if self.also else (ours,)

    @property
    def option(self) -> str:
        """The option of `qlog serve`; empty where there is none."""
        return f"--{self.name.replace('_', '-')}" if self.is_option else ""

    @property
    def is_list(self) -> bool:
        """The value is several texts: a list in the file; elsewhere commas or spaces part them."""
        return get_origin(self.type) in (tuple, frozenset)

    @property
    def title(self) -> str:
        """What the help and the docs call its group."""
        return TITLES.get(self.group) or self.group.capitalize()

    @property
    def default_text(self) -> str:
        """The default, as an operator would write it."""
        if self.is_list:
            return ",".join(sorted(self.default))
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    @property
    def range_text(self) -> str:
        """The range of allowed values; empty for texts."""
        if self.low is None:
            return ""
        assert self.high is not None
        return f"{self.low} to {self.high}" if self.high < LIMITLESS else f"at least {self.low}"

    @property
    def wanted(self) -> str:
        """What the value has to be, in words for an error."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.low is not None:
            return f"{'a whole number' if self.type is int else 'a number'}, {self.range_text}"
        if self.type is Path:
            return "the path of a directory"
        return "a list of texts" if self.is_list else "a text"


@cache
def definitions() -> Mapping[str, Setting]:
    """All settings by their names, in the order of the help."""
    found: dict[str, Setting] = {}
    for part in structs.fields(Settings):
        if isinstance(part.type, type) and issubclass(part.type, Struct):
            settings = _definitions(part.name, part.type)
        else:
            settings = iter([_definition("", part)])
        for setting in settings:
            assert setting.name not in found, f"two settings are called {setting.name}"
            found[setting.name] = setting
    return found


def _definitions(group: str, struct: type[Struct]) -> Iterator[Setting]:
    for field in structs.fields(struct):
        if get_origin(field.type) is Annotated:
            yield _definition(group, field)


def _definition(group: str, field: structs.FieldInfo) -> Setting:
    kind, meta = get_args(field.type)
    extra = meta.extra or {}
    secret = extra.get("secret", False)
    return Setting(
        name=field.name,
        group=group,
        type=kind,
        constrained=field.type,
        default=field.default,
        help=meta.description,
        metavar=extra.get("metavar", ""),
        unit=extra.get("unit", ""),
        low=meta.ge,
        high=meta.le,
        choices=get_args(kind) if get_origin(kind) is Literal else (),
        also=extra.get("also", ""),
        secret=secret,
        is_option=extra.get("option", not secret),
    )


def load(
    *,
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    under: Mapping[str, tuple[Any, str]] | None = None,
) -> Settings:
    """Put the settings together.

    Arguments: `environment`, the process's own if None; `options` of the command line, where None
    and an empty list mean that the option was not given; `under` are values over which all others
    win, each with where it came from. Raises ConfigError, which names the setting and its source.
    """
    return _composed({**(under or {}), **_given(config_file, environment, options)})


def asked_for(
    *,
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    under: Mapping[str, tuple[Any, str]] | None = None,
) -> frozenset[str]:
    """The names of the settings that were given, also of those with their default value."""
    return frozenset({**(under or {}), **_given(config_file, environment, options)})


def _given(
    config_file: Path | None,
    environment: Mapping[str, str] | None,
    options: Mapping[str, Any] | None,
) -> dict[str, tuple[Any, str]]:
    """The values by name, each with where it came from."""
    environment = os.environ if environment is None else environment
    given: dict[str, tuple[Any, str]] = {}
    if config_file is not None:
        given.update(_from_file(config_file))
    for name, setting in definitions().items():
        for variable in setting.environment:
            if variable in environment:
                given[name] = environment[variable], f"${variable}"
    for name, value in (options or {}).items():
        if value not in (None, [], ()):
            given[name] = value, definitions()[name].option
    return given


def of(**values: Any) -> Settings:
    """The settings of a broker that runs inside a program, by their names. Raises ConfigError."""
    return _composed({name: (value, "argument") for name, value in values.items()})


def unreadable(path: Path, error: OSError | UnicodeDecodeError) -> ConfigError:
    """A file of settings cannot be read."""
    why = error.strerror if isinstance(error, OSError) else error
    return ConfigError(f"cannot read the configuration {path}: {why}")


def _from_file(path: Path) -> dict[str, tuple[Any, str]]:
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    if unknown := sorted(set(table) - set(definitions())):
        near = difflib.get_close_matches(unknown[0], definitions(), n=1)
        meant = f"; did you mean '{near[0]}'?" if near else ""
        raise ConfigError(
            f"{path}: unknown setting '{unknown[0]}'{meant} (`qlog serve --help` lists all settings)"
        )
    return {name: (value, str(path)) for name, value in table.items()}


def _composed(given: Mapping[str, tuple[Any, str]]) -> Settings:
    values: dict[str, dict[str, Any]] = {}
    for name, (value, source) in given.items():
        setting = definitions()[name]
        values.setdefault(setting.group, {})[name] = _value(setting, value, source)
    top = values.pop("", {})
    kinds = {field.name: field.type for field in structs.fields(Settings)}
    return Settings(**top, **{group: kinds[group](**named) for group, named in values.items()})


def _value(setting: Setting, given: Any, source: str) -> Any:
    value = given
    try:
        if setting.type is Path:
            if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
                raise msgspec.ValidationError
            return Path(value)
        if setting.is_list:
            texts = msgspec.convert([value] if isinstance(value, str) else value, list[str])
            value = [part for text in texts for part in text.replace(",", " ").split()]
        # The environment and options can hold bytes that are no text; clients are told texts.
        for text in value if setting.is_list else [value]:
            str(text).encode()
        # Not strict: the environment and options are texts, whatever the type of the setting.
        return msgspec.convert(value, setting.constrained, strict=False)
    except (msgspec.ValidationError, UnicodeEncodeError):
        shown = "" if setting.secret else f", not {given!r}"
        raise ConfigError(f"{source}: {setting.name} must be {setting.wanted}{shown}") from None
