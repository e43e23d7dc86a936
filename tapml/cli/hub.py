"""`tapml hub`: where devices of other machines and browsers meet the programs that use them.

It runs until Ctrl-C or SIGTERM, then ends with 0. Where it listens goes to stdout, as text or with `--json -` as one line of
JSON, as soon as it does; who comes, goes, works and is refused goes to stderr.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapml.cli.verb import ALL_PASSED, Outcome

if TYPE_CHECKING:
    from tapml.remote.hub.hub import Hub

NAME = "hub"
HELP = "run a hub, where other machines and browsers offer their devices"

PORT = 8765


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="H",
        help="address to listen on; 0.0.0.0 for this machine's network (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port", default=PORT, type=port, metavar="P", help=f"port to listen on; 0 picks a free one (default: {PORT})"
    )
    parser.add_argument("--cert", type=Path, metavar="FILE", help="a certificate of your own, as PEM")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its key, as PEM")
    parser.add_argument(
        "--state", type=Path, metavar="FOLDER", help="where the token and the certificate are kept (default: the cache folder)"
    )
    parser.add_argument("--new-token", action="store_true", help="make a new token; old addresses and paired phones stop working")
    parser.add_argument(
        "--heartbeat", default=5.0, type=heartbeat, metavar="SECONDS",
        help="seconds between checks that the other ends are alive (default: 5)",
    )


def port(text: str) -> int:
    """An argparse type."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def heartbeat(text: str) -> float:
    """An argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.1 <= value <= 60.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 60")
    return value


def run(args: argparse.Namespace) -> Outcome:
    import asyncio

    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> Outcome:
    import asyncio
    import gc
    import logging
    import signal

    # What the event loop has to say of sockets goes through the hub's own log, so many lines a minute.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    hub, listening = _make(args)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await hub.start(args.host, args.port)
    gc.collect()
    gc.freeze()  # what is there now stays: later collections look at connections only
    try:
        told = _show(hub, args, **listening)
        args.tell(told)
        await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)  # a second one ends it at once
        await hub.close()
    return Outcome(ALL_PASSED, told, told=True)


def _make(args: argparse.Namespace) -> tuple[Hub, dict[str, bool]]:
    """The hub, and what to say of it. Raises UsageError, and UnavailableError when packages are missing."""
    from tapml.cache.folder import cache_folder
    from tapml.errors import UnavailableError, UsageError

    if (args.cert is None) != (args.key is None):
        raise UsageError("--cert and --key belong together: give both, or neither: the hub then makes its own certificate.")
    if not args.host:
        raise UsageError("--host is empty. Use 127.0.0.1 for this machine only, 0.0.0.0 for its network.")
    if not (args.host.isascii() and args.host.isprintable()):
        raise UsageError(f"--host {args.host} is not a name or address. Use 127.0.0.1 for this machine only, 0.0.0.0 for others.")
    try:
        from tapml.remote.hub.certificate import Certificate
        from tapml.remote.hub.hosting import Names
        from tapml.remote.hub.hub import Hub
        from tapml.remote.hub.pages import Pages
        from tapml.remote.hub.tokens import Tokens
    except ImportError as error:
        raise UnavailableError(f"The hub needs a package that is missing: {error.name}. Try: pip install 'tapml[hub]'") from error
    state = args.state if args.state is not None else cache_folder() / "hub"
    names = Names.of(args.host)
    certificate = None
    if args.cert is not None:
        certificate = Certificate.given(args.cert, args.key)
        names = names.certified(certificate.names)
    elif not names.local:
        certificate = Certificate.own_in(state, names)
    tokens = Tokens.kept(state, new=args.new_token)
    hub = Hub(tokens, names, Pages.load(names), certificate, args.heartbeat, _log)
    return hub, {"local": names.local, "own": certificate is not None and certificate.own}


def _show(hub: Hub, args: argparse.Namespace, local: bool, own: bool) -> dict[str, Any]:
    """Prints where it is, and gives the same for the JSON. A pairing code is of use to who can reach the hub only."""
    import asyncio
    import sys

    from tapml.report.console import stdout
    from tapml.report.hub import Listening, show_listening, show_pairing

    told: dict[str, Any] = {"url": hub.url, "page": hub.page, "pairing": None}
    console = stdout()
    shown = args.json != "-"
    if shown:
        show_listening(console, Listening(hub.page, hub.address.secret, hub.address.redacted, hub.address.host, local, own))

    interactive = shown and sys.stdin is not None and sys.stdin.isatty() and console.is_terminal

    def pair() -> None:
        offer = hub.pairing()
        told["pairing"] = {"code": offer.code, "url": offer.url, "seconds": offer.seconds}
        if shown:
            show_pairing(console, offer.url, offer.seconds, interactive)

    def entered() -> None:
        if sys.stdin.readline():
            pair()
        else:
            asyncio.get_running_loop().remove_reader(sys.stdin)  # the terminal is gone

    if not local:
        pair()
        if interactive:
            asyncio.get_running_loop().add_reader(sys.stdin, entered)
    console.file.flush()
    return told


def _log(text: str) -> None:
    import sys
    import time

    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)
