"""Certificates of the tests' own: a CA, the broker's files, and clients that know it.

They are made once for a run, by trustme; nothing outside trusts them.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

NAME = "broker.example"
ORGANISATION = 'Ex, "ample"'


@cache
def authority(name: str = "ours") -> trustme.CA:
    """A CA; another name, another CA."""
    return trustme.CA(organization_name=f"{name} of the tests")


def broker_files(
    directory: Path, *names: str, ca: trustme.CA | None = None, stem: str = "broker"
) -> dict[str, Any]:
    """Write a certificate for the names; the settings that show it."""
    made = (ca or authority()).issue_cert(*(names or (NAME, "127.0.0.1")))
    certificate, key = directory / f"{stem}.crt", directory / f"{stem}.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    return {"tls_certificate": str(certificate), "tls_key": str(key)}


def ca_file(directory: Path) -> str:
    """Write the CA's certificate, for the broker to check those of clients."""
    path = directory / "ca.crt"
    authority().cert_pem.write_to_path(path)
    return str(path)


def revocations(path: Path, *serials: int, ca: trustme.CA | None = None, days: int = 1) -> Path:
    """Write a CA's list of revoked certificates, which is valid for so many days from yesterday."""
    ours = ca or authority()
    issuer = x509.load_pem_x509_certificate(ours.cert_pem.bytes())
    key = load_pem_private_key(ours.private_key_pem.bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    begun = datetime.now(UTC) - timedelta(days=1)
    made = x509.CertificateRevocationListBuilder(issuer.subject, begun, begun + timedelta(days + 1))
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder(serial, begun).build()
        made = made.add_revoked_certificate(revoked)
    path.write_bytes(made.sign(key, SHA256()).public_bytes(Encoding.PEM))
    return path


def client_context(
    *,
    common_name: str = "",
    ca: trustme.CA | None = None,
    version: str = "",
    serials: list[int] | None = None,
) -> ssl.SSLContext:
    """What a client goes by: it trusts our CA. With a common name it shows a certificate of `ca`.

    The number of the certificate is added to `serials`.
    """
    context = ssl.create_default_context()
    authority().configure_trust(context)
    if common_name:
        word = common_name.replace(" ", ".")
        made = (ca or authority()).issue_cert(
            f"{word}@example.org",
            f"{word}.example",
            common_name=common_name,
            organization_name=ORGANISATION,
        )
        made.configure_cert(context)
        if serials is not None:
            shown = x509.load_pem_x509_certificate(made.cert_chain_pems[0].bytes())
            serials.append(shown.serial_number)
    if version:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    return context
