"""Where a hub is, and which devices at it are meant: the texts that people paste, parsed once.

    HubAddress.parse("http://127.0.0.1:8765")      its token is where `tapml.remote.credentials` finds it
    HubAddress.parse("http://127.0.0.1:8765/?token=SECRET")
    HubAddress.parse("https://192.168.1.5:8765/?token=SECRET.FINGERPRINT")     a certificate that the hub made itself
    RemoteName.parse("phone@http://127.0.0.1:8765/?token=SECRET")              also "a,b@…", "any@…", "all@…"

The fingerprint is the SHA-256 of the hub's certificate, in hex. With it no authority is asked: the connection is trusted if, and
only if, the hub shows that certificate. `redacted` is what may be shown and stored: it holds no token.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlsplit

from tapml.errors import UnavailableError, UsageError
from tapml.remote.credentials import FILE, VARIABLE, token_for

FORM = "http://HOST:PORT/?token=TOKEN, as tapml hub prints it"
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class HubAddress:
    """`fingerprint` is "" where the usual authorities vouch for the hub; `pair` is a pairing code in place of a token."""

    scheme: str
    host: str
    port: int
    token: str = ""
    pair: str = ""
    fingerprint: str = ""

    @staticmethod
    def parse(text: str) -> HubAddress:
        """An address without a token gets that of `tapml.remote.credentials`. Raises UsageError for what is not the address of a
        hub, or where there is no token."""
        try:
            parts = urlsplit(text.strip())
            port = parts.port
            (parts.hostname or "").encode("idna")
        except ValueError as error:
            raise UsageError(f"{_shown(text)} is not the address of a hub: {error}. Give {FORM}.") from error
        if parts.scheme not in PORTS or not parts.hostname:
            raise UsageError(f"{_shown(text)} is not the address of a hub. Give {FORM}.")
        query = parse_qs(parts.query)
        token, pair = (query.get(name, [""])[-1].strip() for name in ("token", "pair"))
        if not token and not pair:
            token = token_for(parts.netloc.rpartition("@")[2])
        if not token and not pair:
            raise UsageError(
                f"The address {_shown(text)} has no token. Pass it in {VARIABLE}, in a file that {FILE} names, or with the "
                f"address: {FORM}, in quotes for the shell."
            )
        token, _, fingerprint = token.partition(".")
        if fingerprint and (len(fingerprint) != 64 or set(fingerprint.lower()) - set("0123456789abcdef")):
            raise UsageError(
                f"The token of {_shown(text)} is incomplete: what follows its dot is not a fingerprint of 64 hex digits. "
                "Copy the whole address that tapml hub prints."
            )
        return HubAddress(
            parts.scheme, parts.hostname, PORTS[parts.scheme] if port is None else port, token, pair, fingerprint.lower()
        )

    @property
    def place(self) -> str:
        """"HOST:PORT"."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def redacted(self) -> str:
        return f"{self.scheme}://{self.place}"

    @property
    def secret(self) -> str:
        """The token, with the fingerprint where there is one."""
        return f"{self.token}.{self.fingerprint}" if self.fingerprint else self.token

    @property
    def url(self) -> str:
        """With the token: what a client or an agent is given."""
        query = f"token={quote(self.secret)}" if self.token else f"pair={quote(self.pair)}"
        return f"{self.redacted}/?{query}"

    @property
    def websocket(self) -> str:
        return f"{'wss' if self.scheme == 'https' else 'ws'}://{self.place}/wire"

    def context(self, timeout: float = 10.0) -> ssl.SSLContext | None:
        """How the hub's certificate is checked; None without TLS. With a fingerprint the certificate is fetched first, and only
        that one is trusted. Raises UnavailableError when it is another, OSError when the hub cannot be reached."""
        if self.scheme != "https":
            return None
        if not self.fingerprint:
            return ssl.create_default_context()
        certificate = _certificate(self.host, self.port, timeout)
        if hashlib.sha256(certificate).hexdigest() != self.fingerprint:
            raise UnavailableError(
                f"The hub at {self.redacted} has another certificate than its address says. Copy the address again from "
                "tapml hub; if that does not help, somebody may be intercepting the connection."
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=certificate)
        return context


def _certificate(host: str, port: int, timeout: float) -> bytes:
    """The certificate that is shown there, in DER, not yet trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((host, port), timeout) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        found = secured.getpeercert(binary_form=True)
    if found is None:
        raise OSError("it has no certificate")
    return found


@dataclass(frozen=True)
class RemoteName:
    """Devices at a hub, as `--device` names them. `names` is ("any",) for the first that is free, ("all",) for all that offer the
    target."""

    names: tuple[str, ...]
    hub: HubAddress

    @staticmethod
    def parse(text: str) -> RemoteName:
        """Raises UsageError for what is not NAME@URL."""
        names, at, url = text.partition("@")
        found = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
        if not at or "" in found:
            raise UsageError(
                f"Device {_shown(text)} is not NAME@URL. NAME is any, or a name that tapml devices lists; URL is {FORM}. "
                "This machine itself is local."
            )
        if len(found) > 1 and set(found) & {"any", "all"}:
            raise UsageError(f"Device {_shown(text)}: any and all cannot be combined with other names.")
        return RemoteName(found, HubAddress.parse(url))

    def one(self, name: str) -> RemoteName:
        """The same hub's device of that name."""
        return RemoteName((name,), self.hub)

    def __str__(self) -> str:
        """With the token: what `parse` takes."""
        return f"{','.join(self.names)}@{self.hub.url}"

    @property
    def redacted(self) -> str:
        return f"{','.join(self.names)}@{self.hub.redacted}"


def _shown(text: str) -> str:
    """What was given, without what may be a token."""
    return repr(text.partition("?")[0])
