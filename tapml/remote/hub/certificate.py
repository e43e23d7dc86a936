"""The certificate of a hub that is reached from other machines.

    certificate = Certificate.own_in(folder, names)   made once, kept, renewed before it expires
    certificate = Certificate.given(cert, key)        files that the user has
    context = certificate.context()                   for the server; certificate.fingerprint goes into the hub's address

Browsers offer WebGPU to a page from another machine over HTTPS only, which is why such a hub needs a certificate. Nobody vouches
for one that it made itself: programs trust it by its fingerprint, which is part of the hub's address, and a browser asks its user
once.
"""

from __future__ import annotations

import datetime
import hashlib
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tapml.errors import UnavailableError, UsageError
from tapml.private import private_folder
from tapml.remote.hub.hosting import Names, address_of
from tapml.remote.hub.tokens import write_private

if TYPE_CHECKING:
    from cryptography import x509

GOOD_DAYS = 365
RENEWED_DAYS = 30
OWN_FILE = "certificate.pem"


@dataclass(frozen=True)
class Certificate:
    """Files in PEM; the certificate's file may hold the key too. `own`: made by the hub, so nobody vouches for it. `names` are
    those that it is for."""

    cert: Path
    key: Path
    own: bool
    fingerprint: str
    names: tuple[str, ...] = ()

    @staticmethod
    def given(cert: Path, key: Path) -> Certificate:
        """The user's. Raises UsageError when the files are not a certificate and its key."""
        from cryptography import x509

        certificate = Certificate(cert, key, False, "")
        certificate.context()
        return replace(certificate, names=_names_in(x509.load_pem_x509_certificate(cert.read_bytes())))

    @staticmethod
    def own_in(folder: Path, names: Names) -> Certificate:
        """The one that `folder` keeps, made anew when there is none, when it ends within a month, or when it does not name the
        address that is printed. Raises UnavailableError without the package that it takes, UsageError when the folder cannot be
        used."""
        try:
            from cryptography import x509
        except ImportError as error:
            raise UnavailableError(
                "A hub for other machines makes itself a certificate, for which the package cryptography is missing. "
                "Try: pip install 'tapml[hub]'"
            ) from error
        path = folder / OWN_FILE
        try:
            private_folder(folder, "the hub's folder")
            data = path.read_bytes() if path.exists() else b""
            try:
                found = x509.load_pem_x509_certificate(data)
                good = _good(found, names)
            except ValueError:
                good = False
            if not good:
                data = _make(names)
                write_private(path, data)
        except OSError as error:
            raise UsageError(
                f"The hub's certificate cannot be kept in {folder}: {error.strerror or error}. Choose another with --state."
            ) from error
        der = ssl.PEM_cert_to_DER_cert(data[data.index(b"-----BEGIN CERTIFICATE") :].decode())
        return Certificate(path, path, True, hashlib.sha256(der).hexdigest())

    def context(self) -> ssl.SSLContext:
        """For a server. Raises UsageError when the files do not fit."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.cert, self.key)
        except OSError as error:  # ssl.SSLError is one
            why = "they are not a PEM certificate and its key" if isinstance(error, ssl.SSLError) else (
                f"{error.strerror or error}"
            )
            raise UsageError(
                f"--cert {self.cert} and --key {self.key} cannot be used: {why}. Give both files, or neither: the hub then makes "
                "its own certificate."
            ) from error
        return context


def _good(found: x509.Certificate, names: Names) -> bool:
    now = datetime.datetime.now(datetime.UTC)
    left = found.not_valid_after_utc - now
    return (
        found.not_valid_before_utc <= now
        and left > datetime.timedelta(days=RENEWED_DAYS)
        and names.shown in _names_in(found)
    )


def _names_in(found: x509.Certificate) -> tuple[str, ...]:
    """The names and addresses that a certificate is for."""
    from cryptography import x509

    try:
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(item.value).lower() for item in alternatives if isinstance(item, x509.DNSName | x509.IPAddress))


def _make(names: Names) -> bytes:
    """A new key and the certificate that it signs itself, in PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "TapML hub")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = []
    for name in names.all:
        address = address_of(name)
        alternatives.append(x509.DNSName(name) if address is None else x509.IPAddress(address))
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of phones differ
        .not_valid_after(now + datetime.timedelta(days=GOOD_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
