"""One look at what a hub lists, for the command line and for tests.

    devices = listing(address)               the maps that docs/wire.md describes

Raises what `Connection.open` raises; Unreachable when the hub goes away before it answers.
"""

from __future__ import annotations

from typing import Any

from tapml.remote.address import HubAddress
from tapml.remote.connection import Broken, Connection, Unreachable
from tapml.remote.wire import DEVICE, VERSION, Control, WireError, decode


def listing(address: HubAddress, timeout: float = 10.0) -> list[dict[str, Any]]:
    connection = Connection.open(address, {"version": VERSION, "role": "watch"}, timeout)
    try:
        while True:
            message = decode(connection.receive())
            if isinstance(message, Control) and message.name == "devices":
                devices = list(message.arguments[0])
                if not all(map(DEVICE, devices)):
                    raise WireError("a device in its list is not described as docs/wire.md has it")
                return devices
    except (Broken, WireError) as error:
        raise Unreachable(f"The hub at {address.redacted} said nothing of its devices: {error}. Try again.") from error
    finally:
        connection.close()
