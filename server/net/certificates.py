"""Which certificates a port for TLS shows, and whom it trusts: files, read at the start and again.

A file that cannot be used ends the start with one line. When they are read again (SIGHUP), such a
file leaves everything as it was. Connections that are there keep what they have agreed on.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import Iterator
from pathlib import Path

from qlog.server.broker.settings import NO_FILE
from qlog.server.config import TLSSettings
from qlog.server.net.certificate_dates import ends_s
from qlog.server.net.tls import TLSTransport

logger = logging.getLogger("qlog.network")

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENTS = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
# A directory of a name has its chain and its key under these names: certbot's, and Kubernetes'.
_LAYOUTS = (("fullchain.pem", "privkey.pem"), ("tls.crt", "tls.key"))


class TLSUnusable(OSError):
    """A file or a setting of TLS that cannot be used; str() is one line that names it."""


class Certificates:
    """The contexts of one port. Raises TLSUnusable when something cannot be read.

    `ends_s`: when each certificate ends, by its file, in seconds since 1970.
    """

    ends_s: dict[str, float]

    def __init__(self, settings: TLSSettings) -> None:
        self._settings = settings
        self._default, self._named = self._read()

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._default

    def transport(self) -> TLSTransport:
        """TLS for a new connection."""
        return TLSTransport(lambda: self._default)

    def read_again(self) -> None:
        """Read all files again, for connections from now on.

        Raises TLSUnusable; then nothing has changed.
        """
        self._default, self._named = self._read()

    def _read(self) -> tuple[ssl.SSLContext, dict[str, ssl.SSLContext]]:
        settings = self._settings
        certificate = Path(settings.tls_certificate)
        key = certificate if settings.tls_key == NO_FILE else Path(settings.tls_key)
        self.ends_s = {str(certificate): _ends_s(certificate)}
        default = self._context(certificate, key)
        named: dict[str, ssl.SSLContext] = {}
        for name, files in self._by_name():
            named[name] = self._context(*files)
            self.ends_s[str(files[0])] = _ends_s(files[0])
        if named:
            default.sni_callback = self._choose
        return default, named

    def _by_name(self) -> Iterator[tuple[str, tuple[Path, Path]]]:
        """Names of hosts, with the files of their certificates and keys."""
        if self._settings.tls_names_directory == NO_FILE:
            return
        directory = Path(self._settings.tls_names_directory)
        try:
            entries = sorted(directory.iterdir())
        except OSError as error:
            raise TLSUnusable(f"cannot read {directory}: {error.strerror}") from error
        for entry in entries:
            if entry.suffix == ".pem" and entry.is_file():
                yield entry.stem.lower(), (entry, entry)
            for chain, key in _LAYOUTS:
                if (entry / chain).is_file():
                    yield entry.name.lower(), (entry / chain, entry / key)
                    break

    def _choose(
        self, tls: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext
    ) -> None:
        """Show the certificate of the host that the client has asked for, or the default one."""
        if name:
            name = name.lower()
            context = self._named.get(name) or self._named.get(f"*.{name.partition('.')[2]}")
            if context is not None:
                tls.context = context

    def _context(self, certificate: Path, key: Path) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[settings.tls_version_min]
        context.options |= ssl.OP_NO_RENEGOTIATION
        if settings.tls_ciphers != "default":
            try:
                context.set_ciphers(settings.tls_ciphers)
            except ssl.SSLError as error:
                raise TLSUnusable(f"tls_ciphers: OpenSSL knows none of them: {error}") from error
        # Given in any case: without one, OpenSSL would ask the terminal for it.
        password = settings.tls_key_password or "no password was given"
        try:
            context.load_cert_chain(certificate, key, password)
        except OSError as error:
            raise TLSUnusable(_why_not(certificate, key, error)) from error
        if settings.tls_client_certificates != "none":
            if settings.tls_ca == NO_FILE:
                raise TLSUnusable("tls_client_certificates needs tls_ca: who signs them")
            try:
                context.load_verify_locations(settings.tls_ca)
            except OSError as error:
                raise TLSUnusable(_why_not(Path(settings.tls_ca), None, error)) from error
            _look_at_revoked(context, settings.tls_revoked)
            context.verify_mode = _CLIENTS[settings.tls_client_certificates]
        return context


def _look_at_revoked(context: ssl.SSLContext, path: str) -> None:
    """Refuse the certificates of clients that a list has. Raises TLSUnusable."""
    if path == NO_FILE:
        return
    before = context.cert_store_stats()["crl"]
    try:
        context.load_verify_locations(path)
    except OSError as error:
        raise TLSUnusable(_why_not(Path(path), None, error)) from error
    if context.cert_store_stats()["crl"] == before:
        raise TLSUnusable(f"cannot use {path} for TLS: it has no list of revoked certificates")
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _ends_s(certificate: Path) -> float:
    """When a certificate ends, in seconds since 1970; infinite if that cannot be read."""
    try:
        return ends_s(certificate.read_text("ascii", "replace"))
    except (OSError, ValueError):
        return math.inf  # `_context` says what is wrong with the file


def _why_not(certificate: Path, key: Path | None, error: OSError) -> str:
    files = [str(certificate)]
    if key is not None and key != certificate:
        files.append(str(key))
    what = f"cannot use {' with '.join(files)} for TLS"
    if not isinstance(error, ssl.SSLError):
        return f"{what}: {error.strerror}"  # Python does not say which of the files
    match error.reason:
        case "KEY_VALUES_MISMATCH":
            return f"{what}: the key is not that of the certificate"
        case "BAD_DECRYPT" | "BAD_PASSWORD_READ":
            return f"{what}: tls_key_password does not open the key"
    return f"{what}: no PEM with what is needed ({error.reason or error})"
