"""A hundred thousand runs made wrong: nothing but RunError and ModelError, no hang, nothing touched beside the run.

    fuzz_runs.py [--changes 100000] [--seed 1] [--seconds 1200] [--runs FOLDER] [--processes 1]

Each time one thing in a run is changed: a value in a table, a journal or a result, bytes, the header of a file of arrays, the
file of the weights, a name; or a pipe, a folder or a link is put in a file's place. All digests are then made right again, as
somebody would who sends such a run (`tests/carving/fuzz.py`). Everything that reads a run reads it: opening, all tables, cases,
weights, states, and of a part of those that still open `tapml health` on the source and `tapml report`. Two runs take turns:
a small convolutional network with results of a test, a migration, an explanation and a health check on the processor, and a
small decoder with those of a test.

The readers are in a child process, which is ended after five seconds of computing without an answer. An audit hook in it
notes what no reading may do: loading a library, starting a process, writing beside the run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from measure import save

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tapml  # noqa: E402
from tests.carving import runs  # noqa: E402
from tests.carving.fuzz import Spoiler, drive  # noqa: E402

SECONDS = 5.0  # of computing for one reading; on a busy machine it waits longer for its turn
WAITED = 60.0  # by the clock: whoever waits for a pipe computes nothing
# Of the runs that still open, the share that goes on to `health` and `report`, which take a hundred times as long.
THOROUGH = 0.01
# Changes in a row on one run.
TURN = 50
MEMORY = 8 * 2**30


def made(folder: Path) -> dict[str, Path]:
    """The two runs, with results in them: made in `folder`, or those that lie there from an earlier time."""
    found = {name: folder / name for name in ("convolution", "decoder")}
    if all(path.is_dir() for path in found.values()):
        return found
    convolution = Path(shutil.copytree(runs.convolution()[0].path, folder / "convolution"))
    run = tapml.Run.open(convolution)
    run.test("cpu")
    run.migrate("cpu", tokens=2)
    run.explain(run.operators[0].name, "cpu")
    decoder = Path(shutil.copytree(runs.decoder()[0].path, folder / "decoder"))
    tapml.Run.open(decoder).test("cpu", operator="decode/layers.0*")
    for path in (convolution, decoder):
        assert drive(path) == "read", "a run that nobody changed must be read"  # leaves its health in it
    return found


def _watch(scratch: Path, wrong: list[str]) -> None:
    """Notes what no reading of a run may do."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("ctypes.dlopen", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
            wrong.append(f"{event}: {str(args)[:200]}")
        elif event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.symlink", "os.truncate"):
            if not str(args[0]).startswith(str(scratch)):
                wrong.append(f"{event}: {str(args)[:200]}")
        elif event == "open" and isinstance(args[0], str) and isinstance(args[2], int):
            written = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if written and not args[0].startswith((str(scratch), "/dev/null")):
                wrong.append(f"open to write: {args[0][:200]}")

    sys.addaudithook(hook)


def read_all(paths: dict[str, Path], scratch: Path, seed: int, first: int, last: int, pipe: Connection) -> None:
    """In the child: changes `first` to `last`, one message each: (number, what, outcome, what was wrong, seconds)."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - warnings of libraries on what they are given
    wrong: list[str] = []
    spoilers = {}
    for name, path in paths.items():
        (scratch / name).mkdir(parents=True)
        spoilers[name] = Spoiler(path, scratch / name, seed + first)
        drive(spoilers[name].run)  # everything is imported once
    _watch(scratch, wrong)
    for number in range(first, last):
        name = "decoder" if number // TURN % 8 == 7 else "convolution"
        spoiler = spoilers[name]
        what = f"{name}: {spoiler.spoil()}"
        pipe.send((number, what, "begun", [], 0.0))
        wrong.clear()
        start = time.process_time()
        try:
            computed = name == "convolution"  # the decoder takes seconds as it is
            outcome = drive(spoiler.run, lambda: computed and spoiler.random.random() < THOROUGH)  # noqa: B023
        except Exception as error:
            outcome = "wrong"
            wrong.append("".join(traceback.format_exception(error)[-6:])[-1500:])
        taken = time.process_time() - start
        found = [*wrong, *([] if spoiler.untouched() else ["something was made or changed beside the run"])]
        spoiler.restore()
        pipe.send((number, what, outcome, found, taken))


def _answers(pipe: Connection, pid: int | None, limit: float) -> bool:
    """Whether there is a message before the child has computed for so many seconds."""
    process, end = psutil.Process(pid), time.monotonic() + max(WAITED, limit)
    before = sum(process.cpu_times()[:2])
    while not pipe.poll(1.0):
        if time.monotonic() > end:
            return False
        try:
            if sum(process.cpu_times()[:2]) - before > limit:
                return False
        except psutil.Error:
            return True  # it ended, which reading will tell
    return True


def fuzz(paths: dict[str, Path], scratch: Path, changes: int, seed: int, seconds: float) -> dict[str, Any]:
    """Watches children until all changes were read, or time is up. One that hangs or dies is named, and the next goes on."""
    outcomes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    wrong: list[str] = []
    slowest, slowest_what, number = 0.0, "", 0
    start = time.monotonic()
    while number < changes and time.monotonic() - start < seconds:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        folder = Path(tempfile.mkdtemp(dir=scratch))
        given = (paths, folder, seed, number, changes, theirs)
        child = multiprocessing.get_context("spawn").Process(target=read_all, args=given)
        child.start()
        theirs.close()
        what, state, limit = "starting", "", 180.0
        while number < changes and time.monotonic() - start < seconds:
            if not _answers(ours, child.pid, limit):
                wrong.append(f"{what}: no answer within {limit:g} s of computing, or {WAITED:g} s by the clock")
                outcomes["hang"] += 1
                number += 1
                break
            try:
                number, what, state, found, taken = ours.recv()
            except EOFError:
                wrong.append(f"{what}: the process died")
                outcomes["died"] += 1
                number += 1
                break
            limit = SECONDS
            if state != "begun":
                outcomes[state] += 1
                kinds[what.split(": ")[1].rpartition("/")[2] if "safetensors" not in what else "arrays"] += 1
                wrong += [f"{what}: {one}" for one in found]
                if taken > slowest:
                    slowest, slowest_what = taken, what
                number += 1
                if number % 2000 == 0:
                    print(f"{number} changes, {dict(outcomes)}, {len(wrong)} wrong, {time.monotonic() - start:.0f} s", flush=True)
        child.kill()
        child.join()
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "changes": number, "outcomes": dict(outcomes), "files": dict(kinds), "seconds": time.monotonic() - start,
        "slowest_seconds": slowest, "slowest": slowest_what[:300], "wrong": wrong[:100], "wrong_count": len(wrong),
    }  # fmt: skip


def fuzz_beside(paths: dict[str, Path], scratch: Path, changes: int, seed: int, seconds: float, processes: int) -> dict[str, Any]:
    """`fuzz` in several children at once, each with its share of the changes and its own seed."""
    shares = [changes // processes + (k < changes % processes) for k in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(lambda k: fuzz(paths, scratch, shares[k], seed + k * changes, seconds), range(processes)))
    slowest = max(parts, key=lambda part: part["slowest_seconds"])
    counted = {key: dict(sum((Counter(part[key]) for part in parts), Counter())) for key in ("outcomes", "files")}
    return {
        "changes": sum(part["changes"] for part in parts), **counted, "seconds": max(part["seconds"] for part in parts),
        "slowest_seconds": slowest["slowest_seconds"], "slowest": slowest["slowest"],
        "wrong": [one for part in parts for one in part["wrong"]][:100],
        "wrong_count": sum(part["wrong_count"] for part in parts),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, help="where the runs are made, and taken from the next time (default: made anew)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="ends earlier, and says how far it came")
    parser.add_argument("--processes", type=int, default=1, help="children that read at once (default: 1)")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="tapml-fuzz-"))
    try:
        paths = made(args.runs or scratch / "made")
        found = fuzz_beside(paths, scratch, args.changes, args.seed, args.seconds, args.processes)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps(found["wrong"][:20], indent=1))
    return save("fuzz-runs", {"seed": args.seed, "processes": args.processes, "thorough": THOROUGH, **found}, {
        f"{args.changes} changed runs were read": found["changes"] >= args.changes,
        "nothing but RunError and ModelError, and nothing done that no reading may do": not found["wrong_count"],
        f"none took longer than {SECONDS:g} s": found["slowest_seconds"] < SECONDS and "hang" not in found["outcomes"],
    })  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
