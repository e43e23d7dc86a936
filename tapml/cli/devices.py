"""`tapml devices URL`: the devices that are connected to a hub, what each is at, and what it offers.

Exit code 0 when the hub answered, whatever it lists; 3 when it cannot be reached or does not let us in.
"""

from __future__ import annotations

import argparse

from tapml.cli.verb import ALL_PASSED, Outcome

NAME = "devices"
HELP = "list the devices that are connected to a hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the hub's address; the token is read from TAPML_HUB_TOKEN, or asked for")


def run(args: argparse.Namespace) -> Outcome:
    from tapml.errors import UsageError
    from tapml.remote.address import FORM, HubAddress
    from tapml.remote.client.watching import listing
    from tapml.report.devices import draw

    address = HubAddress.parse(args.url)
    if not address.token:
        raise UsageError(f"A pairing code lets one device in and lists nothing. Give {FORM}.")
    devices = listing(address)
    return Outcome(ALL_PASSED, {"devices": devices}, draw(devices, address.redacted))
