"""Where a hub listens, and under which names it is reached there.

    listening = listen("0.0.0.0", 8765)
    names = Names.of("0.0.0.0")              names.shown is what is printed: this machine's address on its default route
    names.include(host)                      whether a request's Host is one of its own
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tapml.errors import UsageError

# Addresses kept for documentation (RFC 5737, RFC 3849). Nothing is sent to them: the question is which way it would go.
_FAR = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


@dataclass(frozen=True)
class Names:
    """`shown` is the host of the printed address, `all` every name and address that may stand in a request's Host; `local`:
    only this machine can connect."""

    shown: str
    all: tuple[str, ...]
    local: bool

    @staticmethod
    def of(host: str) -> Names:
        """Of a hub that listens at `host`."""
        addresses = own_addresses()
        machine = socket.gethostname().lower()
        machine = machine if machine.isascii() else ""
        found = ["localhost", "127.0.0.1", "::1", *addresses, *((machine, f"{machine}.local") if machine else ())]
        address = address_of(host)
        everywhere = address is not None and address.is_unspecified
        shown = host
        if everywhere:
            shown = addresses[0] if addresses else machine or "127.0.0.1"
        local = host == "localhost" or (address is not None and address.is_loopback)
        return Names(shown.lower(), tuple(dict.fromkeys([shown.lower(), *found])), local)

    def include(self, host: str) -> bool:
        """Whether a Host of a request, without its port, means this hub. A page of another site whose name was made to lead here
        sends that site's name; an address cannot be made to lead elsewhere, so any address will do."""
        host = host.strip("[]").lower()
        stars = (name[1:] for name in self.all if name.startswith("*."))
        return host in self.all or address_of(host) is not None or any(host.endswith(end) for end in stars)

    def certified(self, names: Sequence[str]) -> Names:
        """With the names of a certificate that somebody vouches for: programs and browsers connect without a warning only to
        those, so one of them is printed."""
        if not names:
            return self
        whole = [name for name in names if not name.startswith("*.")]
        shown = self.shown if self.shown in names or not whole else whole[0]
        return replace(self, shown=shown, all=tuple(dict.fromkeys([*self.all, *names])))


def own_addresses() -> tuple[str, ...]:
    """Addresses of this machine that others may reach it at, the one on the default route first. Asks no name server."""
    found: list[str] = []
    for family, far in _FAR:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far, 9))
                found.append(str(probe.getsockname()[0]))
        except OSError:
            continue  # no route of this family
    return tuple(a for a in dict.fromkeys(found) if not ipaddress.ip_address(a).is_loopback)


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UsageError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        listening = socket.create_server(address[:2], family=family, backlog=128, dualstack_ipv6=both)
        # Connections inherit it. asyncio sets it only on sockets that were made with a protocol; without it every message of 16
        # to 64 KiB waits 40 ms for an acknowledgement of its header.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except socket.gaierror as error:
        raise UsageError(f"--host {host} is neither an address nor a name that is known here ({error.strerror}).") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"Port {port} of {host} is taken, perhaps by another hub. Choose another with --port, or --port 0 for any."
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(
                f"--host {host} is not an address of this machine. Use 127.0.0.1 for this machine only, 0.0.0.0 for its network."
            ) from error
        why = error.strerror or str(error)
        raise UsageError(f"The hub cannot listen on port {port} of {host}: {why}. Choose another with --port.") from error
