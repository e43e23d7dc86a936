"""A hundred thousand devices that answer what they should not: the client ends with its own errors, at once, in bounded memory.

    fuzz_replies.py [--devices 100000] [--seed 1]

Each is a real client and a real session over a device that computes nothing, with what goes back changed in one of the ways of
`tests/remote/mutants.py`; no network is in between, and where the client would wait for an answer that does not come, its clock
jumps (`tests/remote/strange.py`). What is right: the work is done, or UnavailableError with its kin, or TargetError.
"""

from __future__ import annotations

import argparse
import gc
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from measure import save

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tapml.errors import TargetError, UnavailableError  # noqa: E402
from tests.remote.mutants import Mutant  # noqa: E402
from tests.remote.strange import strange, work  # noqa: E402

HANG_SECONDS = 5
# Memory is looked at after so many devices for the first time.
WARM = 5_000
GROWTH_BYTES = 32 * 2**20
LONGEST_TEXT = 10_000


@dataclass
class Tally:
    """What came of the devices: how each was changed, and how each ended."""

    devices: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    slowest: str = ""
    longest_text: int = 0
    rss_start: int = 0
    rss_end: int = 0
    rss_most: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def meet(self, seed: str) -> None:
        mutant = Mutant(random.Random(seed))
        device, start = None, time.perf_counter()
        with strange(mutant) as make:
            try:
                device = make()
                work(device)
                end = "the work was done"
            except (UnavailableError, TargetError) as error:
                end = type(error).__name__
                self.longest_text = max(self.longest_text, len(str(error)))
            except Exception as error:
                end = "wrong"
                self.wrong.append(f"{seed} {mutant.how}: {type(error).__name__}: {str(error)[:300]}")
            finally:
                if device is not None:
                    device.close()
        taken = time.perf_counter() - start
        if taken > self.slowest_seconds:
            self.slowest_seconds, self.slowest = taken, f"{seed} {mutant.how}"
        self.devices += 1
        self.changes[mutant.how] += 1
        self.ends[end] += 1
        if self.devices % 1000 == 0:
            self.look()

    def look(self) -> None:
        gc.collect()
        self.rss_end = psutil.Process().memory_info().rss
        self.rss_most = max(self.rss_most, self.rss_end)
        if self.devices <= WARM:
            self.rss_start = self.rss_end


def _hung(number: int, frame: Any) -> None:
    sys.exit(f"A device took longer than {HANG_SECONDS} s.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    tally, start = Tally(), time.monotonic()
    signal.signal(signal.SIGALRM, _hung)
    for number in range(args.devices):
        signal.alarm(HANG_SECONDS)
        tally.meet(f"{args.seed}-{number}")
        if number % 10_000 == 0:
            print(f"{number} devices, {len(tally.wrong)} wrong, {time.monotonic() - start:.0f} s", flush=True)
    signal.alarm(0)
    tally.look()
    tally.seconds = time.monotonic() - start
    figures = {"seed": args.seed, "msgpack": version("msgpack"), **asdict(tally)}
    figures |= {name: dict(getattr(tally, name).most_common()) for name in ("changes", "ends")}
    return save("fuzz-replies", figures, {
        f"{args.devices} devices": tally.devices == args.devices,
        "nothing but UnavailableError with its kin, and TargetError": not tally.wrong,
        f"no device took longer than {HANG_SECONDS} s": tally.slowest_seconds < HANG_SECONDS,
        f"no error's text is longer than {LONGEST_TEXT:,} characters": tally.longest_text <= LONGEST_TEXT,
        "memory never more than 32 MiB above that after the first 5,000": tally.rss_most - tally.rss_start < GROWTH_BYTES,
    })  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
