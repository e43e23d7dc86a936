"""What `tapml hub` prints when it listens: where it is, how to get devices in, and how to use them.

Addresses are never wrapped or shortened: people copy them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from tapml.remote.credentials import VARIABLE
from tapml.remote.hub.qr import qr_text
from tapml.targets.known import BROWSER


@dataclass(frozen=True)
class Listening:
    """`page` has the token, `place` has not. `local`: only this machine can connect; `own`: with a certificate that it made
    itself."""

    page: str
    token: str
    place: str
    host: str
    local: bool
    own: bool


def show_listening(console: Console, hub: Listening) -> None:
    reach = "for this machine only" if hub.local else "for everybody in its network who has the address below"
    _line(console, ("TapML hub", "bold"), f" at {hub.place}, {reach}")
    _line(console)
    _line(console, ("  page     ", "dim"), (hub.page, "cyan"))
    _line(console, ("  token    ", "dim"), f"export {VARIABLE}={hub.token}")
    _line(console, ("  offer    ", "dim"), f"tapml agent {hub.place}")
    _line(console, ("  use      ", "dim"), f"tapml migrate RUN --target {BROWSER.name} --device any@{hub.place}")
    _line(console)
    if hub.local:
        _line(console, "Phones and other machines cannot reach it. To let them in: ", ("tapml hub --host 0.0.0.0", "cyan"))
    elif hub.own:
        for text in _WARNING:
            _line(console, text.format(host=hub.host))
    _line(console, ("Whoever has the token can run kernels on the devices; it stays the same. Ctrl-C ends the hub.", "dim"))


def show_pairing(console: Console, url: str, seconds: float, more: bool) -> None:
    """`more`: whether Enter gives another code."""
    _line(console)
    if console.is_terminal:
        console.file.write(qr_text(url, colour=not console.no_color) + "\n")
    _line(console, "To add a phone, scan this, or type " if console.is_terminal else "To add a phone, open ", (url, "cyan"))
    again = "Press Enter for another." if more else "The page has more."
    _line(console, (f"It lets in one device, within {seconds / 60:.0f} minutes. {again}", "dim"))


_WARNING = (
    "The phone's browser will warn that the connection is not private. That is expected: browsers allow only HTTPS pages to use",
    "the GPU, and no authority has signed the certificate that the hub made. Tap Advanced, then Proceed to {host} (Chrome), or",
    "Show Details, then visit this website (Safari). Programs check the fingerprint at the end of the token instead.",
)


def _line(console: Console, *parts: str | tuple[str, str]) -> None:
    console.print(Text.assemble(*parts), soft_wrap=True)
