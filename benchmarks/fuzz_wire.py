"""A million malformed frames for the decoder of the wire: nothing but WireError, no hang, no memory that stays.

    fuzz_wire.py [--frames 1000000] [--seed 1]

Half of them are made from valid messages by spoiling values, structure and bytes (`tests/remote/messages.py`). The other half are
found by coverage: atheris (libFuzzer) keeps what reaches new branches of `tapml/remote/wire.py` and changes that further, by
libFuzzer's own means and by the same spoiling in turn. atheris is no dependency of TapML; to have that half, run
`.venv/bin/python -m pip install atheris`. Without it all frames come from spoiling, and the result says so. Between them, valid
messages go through and back. The decoder of `tapml/web` is given a tenth as many in Node, and must say the same of each.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from measure import save

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

GUIDED = sys.argv[1:2] == ["--guided"]
if GUIDED:  # what is to be guided by has to be instrumented when it is first imported
    import atheris

    with atheris.instrument_imports(include=["tapml.remote.wire"]):
        import tapml.remote.wire  # noqa: F401

from tapml.remote.wire import WireError, decode  # noqa: E402
from tests.remote.messages import (  # noqa: E402
    CONTROL_ARGUMENTS,
    ITEM_ARGUMENTS,
    Maker,
    browsers_answers,
    disagreement,
    repacked,
    spoil,
)

HANG_SECONDS = 10
# Memory is looked at after so many frames for the first time: by then every path has been taken, and all caches are warm.
WARM = 20_000
GROWTH_BYTES = 8 * 2**20
# Frames that one process of Node is given.
BROWSER_FRAMES = 20_000


@dataclass
class Tally:
    """What came of the frames. `blocks` are objects that Python holds memory for."""

    frames: int = 0
    malformed: int = 0
    valid: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    slowest_bytes: int = 0
    rss_start: int = 0
    rss_end: int = 0
    blocks_start: int = 0
    blocks_end: int = 0
    wrong: list[str] = field(default_factory=list)

    def decode(self, data: bytes) -> None:
        """One frame: refused, or decoded and the same after packing it again."""
        start = time.perf_counter()
        try:
            message = decode(data)
        except WireError:
            message = None
            self.malformed += 1
        except Exception as error:
            message = None
            self.wrong.append(f"{type(error).__name__}: {error}: {data[:2000].hex()}")
        taken = time.perf_counter() - start
        if taken > self.slowest_seconds:
            self.slowest_seconds, self.slowest_bytes = taken, len(data)
        if message is not None:
            self.valid += 1
            again = repacked(message)
            if repacked(decode(again)) != again:
                self.wrong.append(f"changed on the way: {data[:2000].hex()}")
        self.frames += 1
        if self.frames == WARM:
            self.look()

    def look(self) -> None:
        gc.collect()
        self.rss_end, self.blocks_end = psutil.Process().memory_info().rss, sys.getallocatedblocks()
        if not self.rss_start:
            self.rss_start, self.blocks_start = self.rss_end, self.blocks_end


def by_spoiling(malformed: int, seed: int) -> Tally:
    """Frames until so many were malformed, a valid one for every tenth of them."""
    rng = random.Random(seed)
    maker, tally, start = Maker(rng), Tally(), time.monotonic()
    round_trips = 0
    signal.signal(signal.SIGALRM, _hung)
    while tally.malformed < malformed:
        signal.alarm(HANG_SECONDS)
        message = maker.message()
        for _ in range(10):
            tally.decode(spoil(rng, message))
        before = tally.valid
        tally.decode(message)
        round_trips += tally.valid - before
        if tally.valid == before:
            tally.wrong.append(f"refused, though valid: {message[:2000].hex()}")
    signal.alarm(0)
    tally.look()
    tally.seconds = time.monotonic() - start
    print(f"spoiled: {tally.malformed} malformed, {tally.valid} valid ({round_trips} made so), {tally.seconds:.0f} s", flush=True)
    return tally


def _hung(number: int, frame: Any) -> None:
    sys.exit(f"A frame took longer than {HANG_SECONDS} s.")


def by_coverage(runs: int, seed: int) -> tuple[Tally, str]:
    """The same in a child process under atheris, and the last line of its statistics."""
    with tempfile.TemporaryDirectory() as scratch:
        corpus, report = Path(scratch) / "corpus", Path(scratch) / "tally.json"
        corpus.mkdir()
        maker = Maker(random.Random(seed))
        for name in CONTROL_ARGUMENTS:
            (corpus / f"control-{name}").write_bytes(maker.control(name))
        for name in ITEM_ARGUMENTS:
            (corpus / f"item-{name}").write_bytes(maker.packet(name))
        flags = [f"-atheris_runs={runs}", f"-seed={seed}", f"-timeout={HANG_SECONDS}", "-max_len=8192", "-rss_limit_mb=0"]
        done = subprocess.run(
            [sys.executable, __file__, "--guided", str(report), str(runs), *flags, f"-artifact_prefix={scratch}/", str(corpus)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not report.exists():
            sys.exit(f"atheris ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
        tally = Tally(**json.loads(report.read_text()))
        statistics = [line for line in done.stderr.splitlines() if "cov: " in line]
    print(f"guided: {tally.malformed} malformed, {tally.valid} valid, {tally.seconds:.0f} s; {statistics[-1]}", flush=True)
    return tally, statistics[-1]


def in_the_browsers_decoder(frames: int, seed: int) -> dict[str, Any]:
    """Frames on which Python and JavaScript must agree: refused, or the same message."""
    rng = random.Random(seed + 1)
    maker = Maker(rng)
    refused, differ = 0, []
    for start in range(0, frames, BROWSER_FRAMES):
        some = [spoil(rng, maker.message()) for _ in range(min(BROWSER_FRAMES, frames - start))]
        for frame, answer in zip(some, browsers_answers(some), strict=True):
            refused += answer == "refused"
            if why := disagreement(frame, answer):
                differ.append(f"{why}: {frame[:2000].hex()}")
    print(f"browser: {refused} of {frames} refused, {len(differ)} seen differently", flush=True)
    return {"frames": frames, "refused": refused, "differ": differ[:100]}


def guided(report: Path, runs: int, flags: list[str]) -> None:
    """In the child: libFuzzer calls back for every frame. It never returns, so the tally is written at the last one."""
    tally, start = Tally(), time.monotonic()

    def one(data: bytes) -> None:
        tally.decode(data)
        if tally.frames == runs:
            tally.look()
            tally.seconds = time.monotonic() - start
            report.write_text(json.dumps(asdict(tally)))

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return spoil(rng, data)[:max_size] if rng.random() < 0.5 else atheris.Mutate(data, max_size)

    atheris.Setup([sys.argv[0], *flags], one, custom_mutator=change)
    atheris.Fuzz()


def main() -> int:
    if GUIDED:
        guided(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000, help="malformed ones, in all")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    figures: dict[str, Any] = {"seed": args.seed, "msgpack": version("msgpack")}
    tallies: dict[str, Tally] = {}
    if find_spec("atheris") is None:
        print("atheris is not installed, so no frame is found by coverage (see the top of this file).")
    else:
        tallies["guided"], figures["statistics"] = by_coverage(args.frames // 2, args.seed)
        figures["atheris"] = version("atheris")
    found = sum(tally.malformed for tally in tallies.values())
    tallies["spoiled"] = by_spoiling(args.frames - found, args.seed)
    if shutil.which("node") is None:
        print("node is not here, so the browser's decoder was not asked.")
        figures["browser"] = "not run: there is no node here"
    else:
        figures["browser"] = in_the_browsers_decoder(args.frames // 10, args.seed)
    figures |= {name: asdict(tally) for name, tally in tallies.items()}
    spoiled = tallies["spoiled"]
    total = sum(tally.malformed for tally in tallies.values())
    return save("fuzz-wire", figures, {
        f"{args.frames} malformed frames": total >= args.frames,
        "nothing but WireError, and valid frames come through unchanged": not any(tally.wrong for tally in tallies.values()),
        "no frame of at most 70 kB took longer than a second": max(t.slowest_seconds for t in tallies.values()) < 1,
        "memory at the end as after the first frames, within 8 MiB": spoiled.rss_end - spoiled.rss_start < GROWTH_BYTES,
        "the browser's decoder sees the same": isinstance(figures["browser"], str) or not figures["browser"]["differ"],
    })  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
