"""The first message of an end, parsed: what the hub goes by afterwards.

    hello = parse_hello(data)          ClientHello | DeviceHello | WatchHello; raises Refusal

`tapml.remote.wire` has checked the shape of all fields. Here texts of strangers become short lines of printable characters, since
people will read them in a terminal and on the page, and a device's wish becomes a name that can be typed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tapml.remote.hub.leases import Joining, Offer, Offers, Wish
from tapml.remote.wire import CONTROL_LIMIT, VERSION, Control, WireError, decode, is_session

LONGEST_NAME = 60
LONGEST_LINE = 200
LONGEST_REASON = 400
# More than any device has: what is more is left out, so that no device fills what watchers and clients are told.
MOST_TARGETS, MOST_WORDS = 16, 64


class Refusal(Exception):
    """Why the hub will not talk to this end: a code of docs/wire.md, and a sentence for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class ClientHello:
    token: str
    session: bytes
    wish: Wish


@dataclass(frozen=True)
class DeviceHello:
    """`token` or `pair` is "". `kind` is "agent" or "browser"."""

    token: str
    pair: str
    joining: Joining
    kind: str
    system: str


@dataclass(frozen=True)
class WatchHello:
    token: str


Hello = ClientHello | DeviceHello | WatchHello


def parse_hello(data: bytes | str) -> Hello:
    message = parse_control(data)
    if message.name != "hello":
        raise Refusal("protocol", f"The first message must be hello, not {message.name}.")
    fields: dict[str, Any] = message.arguments[0]
    if fields["version"] != VERSION:
        raise Refusal(
            "version",
            f"This hub speaks version {VERSION} of the wire format, not {fields['version']}. Install the same TapML on both.",
        )
    token = fields.get("token", "")
    if fields["role"] == "client":
        wish = Wish(line(fields["device"]), line(fields["target"]), line(fields["label"]))
        return ClientHello(token, fields["session"], wish)
    if fields["role"] == "device":
        joining = Joining(name_of(fields["name"]), fields["boot"], parse_offers(fields["offers"]), fields["session"])
        return DeviceHello(token, fields.get("pair", ""), joining, fields["kind"], line(fields["system"]))
    return WatchHello(token)


def parse_control(data: bytes | str) -> Control:
    """A control message. Raises Refusal for anything else."""
    if isinstance(data, str):
        raise Refusal("protocol", "A text message came. All messages are binary.")
    if len(data) > CONTROL_LIMIT and not is_session(data):
        raise Refusal("size", f"A control message of {len(data)} bytes came. At most {CONTROL_LIMIT} are allowed.")
    try:
        message = decode(data)
    except WireError as error:
        raise Refusal("protocol", f"A malformed message came: {error}. Do both sides run the same TapML?") from error
    if not isinstance(message, Control):
        raise Refusal("protocol", "A packet of a session came where none belongs.")
    return message


def parse_offers(offers: Mapping[str, Mapping[str, Any]]) -> Offers:
    return {
        line(target, LONGEST_NAME): Offer(offer["state"], _info(offer["info"]), line(offer["reason"], LONGEST_REASON))
        for target, offer in islice(offers.items(), MOST_TARGETS)
    }


def _info(info: dict[str, Any] | None) -> dict[str, Any] | None:
    if info is None:
        return None
    words = {name: line(info[name]) for name in ("platform", "name", "driver")}
    limits = {line(name, LONGEST_NAME): value for name, value in islice(info["limits"].items(), MOST_WORDS)}
    features = [line(name, LONGEST_NAME) for name in info["features"][:MOST_WORDS]]
    return {**info, **words, "limits": limits, "features": features}


def line(text: str, longest: int = LONGEST_LINE) -> str:
    """On one line, without characters that steer a terminal or turn the direction of writing, and not too long."""
    if not text.isprintable():
        text = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)
    short = " ".join(text.split())
    return short if len(short) <= longest else short[: longest - 1] + "…"


def name_of(wish: str) -> str:
    """A device's name as it can be typed in NAME@URL: letters, digits, "-", "_" and "."."""
    letters = "".join(c if c.isalnum() or c in "-_." else "-" for c in line(wish, LONGEST_NAME))
    return "-".join(part for part in letters.split("-") if part) or "device"
