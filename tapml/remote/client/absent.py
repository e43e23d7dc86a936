"""Whether a device that a client waits for is there to be waited for: connected to the hub, and offering the target.

    absent = why_absent(hub, "phone", "webgpu")
    absent.reason                   "" where it is there, however busy; else a sentence of cause and one of what to do
    absent.final                    waiting is of no use
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tapml.remote.address import HubAddress
from tapml.remote.client.watching import listing

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Absent:
    reason: str
    final: bool = False


THERE = Absent("")


def why_absent(hub: HubAddress, device: str, target: str) -> Absent:
    """Asks the hub. `device` may be "any". Raises UnavailableError when the hub cannot be asked."""
    return judge(listing(hub), hub.redacted, device, target)


def judge(devices: Sequence[Record], hub: str, device: str, target: str) -> Absent:
    """The same of what the hub lists. Pure."""
    here = [d for d in devices if d["state"] != "away"]
    if device == "any":
        found = [_of_one(d, target) for d in here]
        if any(absent.reason == "" for absent in found):
            return THERE
        told = "; ".join(absent.reason for absent in found) or "none is connected"
        return Absent(f"No device at the hub {hub} offers {target}: {told}. {_START}")
    one = next((d for d in here if d["name"] == device), None)
    if one is not None:
        absent = _of_one(one, target)
        return Absent(f"Device {absent.reason}. {_OTHERS}", absent.final) if absent.reason else THERE
    connected = ", ".join(f"{d['name']} ({_offered(d)})" for d in here) or "none"
    return Absent(f"Device {device} is not connected to the hub {hub}. Connected: {connected}. {_START}")


_START = "Start its agent, or open its page, and run the same command again."
_OTHERS = "tapml devices URL lists what others offer."


def _of_one(device: Record, target: str) -> Absent:
    name, offer = device["name"], device["offers"].get(target)
    if device["state"] == "retired" or (offer is not None and offer["state"] == "retired"):
        return Absent(f"{name} takes no more work")
    if offer is None:
        # What a device offers it names from the start, tried or not. Another target takes another agent.
        known = bool(device["offers"]) and all(o["state"] != "looking" for o in device["offers"].values())
        return Absent(f"{name} offers {_offered(device)}, not {target}", final=known)
    if offer["state"] == "absent":
        return Absent(f"{name} does not offer {target}{': ' if offer['reason'] else ''}{offer['reason'].rstrip('.')}", final=True)
    return THERE


def _offered(device: Record) -> str:
    return ", ".join(t for t, offer in device["offers"].items() if offer["state"] == "ready") or "nothing yet"
