"""`tapml agent`: offers this machine's devices at a hub, until it is stopped.

It says on stderr what it offers, what that means for this machine, and who uses it. It needs neither PyTorch nor the compiler:
`pip install 'tapml[agent]'` and the packages of the platform's drivers are enough. Exit code 0 when it was stopped, 2 when it and
the hub are of different versions, 3 when the hub does not let it in.
"""

from __future__ import annotations

import argparse

from tapml.cli.verb import ALL_PASSED, Outcome
from tapml.devices.known import PLATFORMS, is_native
from tapml.targets.known import EXAMPLE

NAME = "agent"
HELP = "offer this machine's devices at a hub"

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def size(text: str) -> int:
    """An argparse type: bytes, as 500M, 1.5G or 1000000."""
    digits, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    try:
        nbytes = int(float(digits) * UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        nbytes = 0
    if nbytes < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 500M or 2G")
    return nbytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the hub's address; the token is read from TAPML_HUB_TOKEN, or asked for")
    parser.add_argument("--name", metavar="NAME", help="the agent's name at the hub (default: the machine's name)")
    parser.add_argument(
        "--target", metavar="TARGET", action="append", default=[],
        help=f"offer this target only, for example {EXAMPLE.name}:device=1; may be repeated (default: all that work here, except "
        f"{' and '.join(filter(is_native, PLATFORMS))} on the processor, whose kernels are native code)",
    )
    parser.add_argument(
        "--memory", metavar="SIZE", type=size, help="the most memory that a client may allocate, for example 500M"
    )
    parser.add_argument(
        "--store", metavar="SIZE", type=size,
        help="memory for weights and kernels, so that they are sent only once (default: an eighth of the machine's, at most 2G)",
    )
    parser.add_argument(
        "--unconfined", action="store_true",
        help="do not confine kernels, for a driver that does not work otherwise: they may then do whatever you may",
    )


def run(args: argparse.Namespace) -> Outcome:
    import signal

    from tapml.remote.address import HubAddress
    from tapml.remote.agent.agent import Agent, say
    from tapml.remote.agent.offers import parse_offered
    from tapml.remote.credentials import guard
    from tapml.words import plural

    address = HubAddress.parse(args.url)
    guard()
    offered = parse_offered(args.target)
    agent = Agent(address, checked_name(args.name), offered, args.memory, args.store, not args.unconfined)
    for line in notices([choice.name for choice in offered.choices] if offered.named else [], args.unconfined):
        say(line)
    before = {number: signal.signal(number, lambda *_: agent.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        agent.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    data = {
        "hub": address.redacted, "name": agent.name, "sessions": agent.sessions, "launches": agent.launches,
        "received": agent.received, "sent": agent.sent,
    }
    work = f"{plural(agent.sessions, 'session')}, {plural(agent.launches, 'launch')}"
    say(f"Stopped after {work}, {agent.received:,} bytes in and {agent.sent:,} out.")
    return Outcome(ALL_PASSED, data)


def notices(named: list[str], unconfined: bool) -> list[str]:
    """What it means to offer the devices of this machine, a line each."""
    from tapml.devices.sandbox import measures

    lines = ["Kernels are programs: whoever may use this hub can run them on this machine."]
    native = [name for name in named if is_native(name)]
    if native:
        lines.append(
            f"Offered by name: {' and '.join(native)}. Where they run on the processor, kernels are native code, as your user."
        )
    if unconfined:
        return [*lines, "Not confined, as requested: kernels can do whatever your user can, with its files and its network."]
    found = measures()
    held = [measure.name for measure in found if not measure.missing]
    if held:
        lines.append(f"Their process is confined in: {', '.join(held)} (tapml doctor says how).")
    return lines + [f"Not confined in {measure.name}: {measure.missing}." for measure in found if measure.missing]


def checked_name(name: str | None) -> str:
    """What the agent wants to be called. Raises UsageError for a name that `--device` could not hold."""
    import socket

    from tapml.errors import UsageError

    if name is None:
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in socket.gethostname().partition(".")[0])[:60] or "agent"
    wrong = "is empty" if not name.strip() else ""
    if name in ("any", "all", "local"):
        wrong = "means something else in --device"
    elif len(name) > 60 or not name.isprintable() or set(name) & set("@, "):
        wrong = "has more than 60 characters, or a space, a comma or an @"
    if wrong:
        raise UsageError(f"--name {name!r} {wrong}. Give a short word, such as bench-2.")
    return name
