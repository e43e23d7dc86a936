"""`tapml bench BUNDLE`: how fast a bundle is on a device, what it takes of it, and how near that is to the speed of memory."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tapml.cli.verb import ALL_PASSED, DEVICE, Outcome, count
from tapml.words import plural

if TYPE_CHECKING:
    from rich.table import Table

    from tapml.deploy.bench import Measured, Spread

NAME = "bench"
HELP = "measure a bundle: tokens a second, the first token, memory, launches, bytes a second"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle made by tapml build")
    parser.add_argument("--device", metavar="D", default="local", help=DEVICE)
    parser.add_argument(
        "--prompt-tokens", metavar="N", type=count,
        help="random tokens of the prompt (default: 32, at most half of the context)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", metavar="N", type=count, help="tokens after the first, a decode call each (default: 32, or what fits)"
    )
    parser.add_argument("--repeat", metavar="N", type=count, default=5, help="after one that is not counted (default: 5)")


def run(args: argparse.Namespace) -> Outcome:
    from tapml.deploy.bench import bench
    from tapml.deploy.bundle import BundleFolder
    from tapml.report.progress import Progress

    bundle = BundleFolder.open(args.bundle)
    with Progress(NAME) as progress:
        measured = bench(bundle, args.device, args.prompt_tokens, args.tokens, args.repeat, progress)
    data = {"bundle": str(bundle.path), "target": str(bundle.choice)} | measured.to_json()
    software = " (a driver on the processor)" if measured.info.software else ""
    title = f"{bundle.path.name} · {bundle.choice} · {measured.info.name}{software} · {_what(measured)}"
    return Outcome(ALL_PASSED, data, (title, "", _table(measured)))


def _what(measured: Measured) -> str:
    times = plural(measured.repeat, "time")
    if measured.prompt is None:
        return f"the run's example {times}"
    return f"{plural(measured.prompt.tokens, 'random token')}, then {measured.tokens}, {times}"


def _table(measured: Measured) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name, justify in (("", "left"), ("median", "right"), ("least – most", "right"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]

    def row(name: str, value: str, spread: str = "", note: str = "") -> None:
        table.add_row(name, value, spread, note)

    call, memory, prompt = measured.call, measured.memory, measured.prompt
    each = "token" if prompt is not None else "call"
    row("load", _seconds(measured.load), "", "files, the driver's compiling, weights")
    if prompt is not None and measured.decode is not None:
        calls = f"{plural(prompt.calls, 'call')}, {prompt.launches:,} launches"
        row("first token", *_pair(prompt.first, _seconds), calls)
        row("prefill", *_pair(prompt.prefill, _rate))
        row("decode", *_pair(measured.decode, _rate))
    row(f"a {each}", *_pair(call.seconds, _seconds), f"{call.launches:,} launches")
    row("  launches alone", *_pair(call.alone, _seconds), "submitted again and again")
    row("  around them", _seconds(call.around), "", "uploads, waiting, reading" + (", choosing" if prompt is not None else ""))
    row(f"read a {each}", _bytes(call.bytes_read), "", "weights, constants and states")
    share = "" if measured.copy_share is None else f"{measured.copy_share:.1%} of copying"
    row("  a second", _bytes(call.bytes_per_second), "", share)
    if measured.copy is None:
        row("copying", "–", "", f"not measured: {measured.no_copy}")
    else:
        copy = measured.copy
        row("copying", _bytes(copy.bytes_per_second), "", f"a second, {_bytes(copy.nbytes)} read and written")
    row("weights", _bytes(memory.weights))
    row("beside them", _bytes(memory.planned), "", "values, constants, states")
    row("most on the device", _bytes(memory.device))
    row("most of the host", "–" if memory.host is None else _bytes(memory.host), "", "this process; a local device has its own")
    return table


def _pair(spread: Spread, shown: Any) -> tuple[str, str]:
    return shown(spread.median), f"{shown(spread.least)} – {shown(spread.most)}"


def _rate(value: float) -> str:
    return f"{value:,.1f} tokens/s"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if abs(value) >= 1 else f"{value * 1e3:.2f} ms"


def _bytes(value: float) -> str:
    """In powers of 1,000, as speeds of memory are given."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:,.3g} {unit}"
    return f"{value:.0f} B"
