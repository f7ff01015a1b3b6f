"""Certificates of the tests' own: a CA, the broker's files, and clients that know it.

They are made once for a run, by trustme; nothing outside trusts them.
"""

from __future__ import annotations

import ssl
from functools import cache
from pathlib import Path
from typing import Any

import trustme

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


def client_context(
    *, common_name: str = "", ca: trustme.CA | None = None, version: str = ""
) -> ssl.SSLContext:
    """What a client goes by: it trusts our CA. With a common name it shows a certificate of `ca`."""
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
    if version:
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    return context
