"""Thousands of calls of PyTorch's operators, drawn at random, on each target: right, or refused with the reason; and how many of
the operators of real libraries' models run.

    operators.py [--calls 3000] [--seed 1] [--targets opencl,vulkan] [--processes 1]
        [--libraries transformers,timm,torchvision] [--models 100] [--seconds 600]

The calls are drawn by `tests/compile/drawn.py`, which a sample in the tests uses too. Each is compiled for the target, run on
this machine's device, and judged as an operator of a model is. Children do the work; one that dies, or takes over two minutes
over a call, is counted for that call, and another one goes on.

The libraries' models are made small (a configuration's sizes are cut down), with random weights: `library_models.py`. All their
operators that differ are tried in the same way. A library that is not installed is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from library_models import LIBRARIES, models  # noqa: E402
from measure import save  # noqa: E402

SECONDS = 120.0
START_SECONDS = 300.0
# Number, text, state ("" as it begins), detail, ATen operators.
Told = tuple[int, str, str, str, tuple[str, ...]]
GOOD = ("right", "unchecked", "refused")


def draw_in_child(target: str, seed: int, first: int, last: int, pipe: Connection) -> None:
    """Calls `first` to `last` of the seed: (number, text, state, detail, operators) each."""
    import torch

    from tests.compile.drawn import Bench, draw, tried

    torch.set_num_threads(1)
    bench = Bench(target)
    for number, drawn in enumerate(draw(seed, last)):
        if number < first:
            continue
        pipe.send((number, drawn.text, "", "", ()))
        outcome = tried(drawn, bench)
        pipe.send((number, drawn.text, outcome.state, outcome.detail, outcome.operators))


def library_in_child(target: str, names: list[tuple[str, str]], first: int, last: int, pipe: Connection) -> None:
    """The models `first` to `last` of the list, each followed by its operators that no earlier one had."""
    import torch

    from tapml.errors import ModelError
    from tests.compile.drawn import Bench, tried_module

    torch.set_num_threads(1)
    bench, done = Bench(target), set[str]()
    for number in range(first, last):
        library, name = names[number]
        pipe.send((number, f"{library} {name}", "", "", ()))
        try:
            module, given = models(library)[name]()
        except Exception as error:
            pipe.send((number, name, "not made", f"{type(error).__name__}: {error}"[:200], ()))
            continue
        try:
            for body, outcome in tried_module(module, given, bench, done):
                pipe.send((number, f"{library} {name}: {body.kind}", outcome.state, outcome.detail, outcome.operators))
                pipe.send((number, f"{library} {name}", "", "", ()))
            pipe.send((number, name, "carried", "", ()))
        except ModelError as error:
            pipe.send((number, name, "not carried", str(error)[:300], ()))
        except Exception as error:
            pipe.send((number, name, "crash", f"{type(error).__name__}: {error}"[:300], ()))


def watched(work: Any, target: str, what: Any, first: int, last: int, end: float) -> list[Told]:
    """Everything that children say of `first` to `last` before the time `end`; a child that dies or hangs is an outcome too."""
    found: list[Told] = []
    context = multiprocessing.get_context("spawn")
    number = first
    while number < last and time.monotonic() < end:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=work, args=(target, what, number, last, theirs), daemon=True)
        child.start()
        theirs.close()
        limit, text = START_SECONDS, "starting"
        at, since = number, time.monotonic()
        while time.monotonic() < end:
            try:
                if not ours.poll(1.0):
                    if time.monotonic() - since < limit:
                        continue
                    found.append((at, text, "hang", f"no answer in {limit:g} s", ()))
                    break
                at, text, state, detail, operators = ours.recv()
            except EOFError:
                child.join()
                if child.exitcode:
                    found.append((at, text, "died", f"the process ended with {child.exitcode}", ()))
                break
            limit, since = SECONDS, time.monotonic()
            if state:
                found.append((at, text, state, detail, operators))
        done = child.exitcode == 0
        child.kill()
        child.join()
        number = last if done else at + 1
    return found


def spread(work: Any, target: str, what: list[Any], count: int, processes: int, seconds: float) -> list[Told]:
    """The work in several children at once: with a seed each, or each with its share of one list."""
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(processes) as pool:
        if work is draw_in_child:
            parts = pool.map(lambda seed: watched(work, target, seed, 0, count // processes, end), what)
        else:
            step = -(-count // processes)
            parts = pool.map(lambda at: watched(work, target, what, at, min(at + step, count), end), range(0, count, step))
        return [one for part in parts for one in part]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--targets", default="opencl,vulkan")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--libraries", default=",".join(LIBRARIES))
    parser.add_argument("--models", type=int, default=10_000, help="at most so many of each library")
    parser.add_argument("--seconds", type=float, default=7200, help="for the calls, and for each library, on each target")
    args = parser.parse_args()
    figures: dict[str, Any] = {"seed": args.seed, "processes": args.processes}
    checks: dict[str, bool] = {}
    seeds = [args.seed * 1000 + k for k in range(args.processes)]
    for target in args.targets.split(","):
        start = time.monotonic()
        found = spread(draw_in_child, target, seeds, args.calls, args.processes, args.seconds) if args.calls else []
        states = Counter(state for _, _, state, _, _ in found)
        bad = [f"{state}: {text}: {detail}" for _, text, state, detail, _ in found if state not in GOOD]
        reasons = Counter(detail.split(": ", 2)[-1][:90] for _, _, state, detail, _ in found if state == "refused")
        figures[f"{target}: drawn calls"] = {
            "states": dict(states), "seconds": time.monotonic() - start, "bad": bad[:200],
            "refusals": dict(reasons.most_common(60)),
        }  # fmt: skip
        print(f"{target}: {dict(states)}", *bad[:40], sep="\n  ", flush=True)
        if args.calls:
            checks[f"{target}: {len(found)} drawn calls right, or refused with a reason"] = not bad and len(found) > 0
        for library in filter(None, args.libraries.split(",")):
            names = [(library, name) for name in models(library)]
            random.Random(args.seed).shuffle(names)  # what time or --models leave out is no kind of model
            names = names[: args.models]
            if not names:
                figures[f"{target}: {library}"] = "not installed"
                continue
            tried = spread(library_in_child, target, names, len(names), args.processes, args.seconds)
            figures[f"{target}: {library}"] = summary = shares(tried)
            print(f"{target}: {library}: {json.dumps(summary)[:2000]}", flush=True)
            checks[f"{target}: no operator of {library} wrong"] = not summary["bad"]
    return save("operators", figures, checks)


def shares(tried: list[Told]) -> dict[str, Any]:
    """How many of the library's models could be made and carried, and of the ATen operators in them how many ran right wherever
    they were tried."""
    models_of = {"not made", "carried", "not carried"}
    runs: dict[str, bool] = {}
    for _, _, state, _, operators in tried:
        if state not in models_of:
            for name in operators:
                runs[name] = runs.get(name, True) and state in ("right", "unchecked")
    operators_tried = [state for _, _, state, _, _ in tried if state not in models_of]
    return {
        "models": dict(Counter(state for _, _, state, _, _ in tried if state in models_of)),
        "operators tried": dict(Counter(operators_tried)),
        "ATen operators": len(runs), "of which run": sum(runs.values()),
        "do not run": sorted(n for n, ok in runs.items() if not ok),
        "bad": [f"{s}: {text}: {detail}" for _, text, s, detail, _ in tried if s not in (*GOOD, *models_of)][:100],
        "refused": [f"{text}: {detail}" for _, text, s, detail, _ in tried if s == "refused"][:100],
        "not carried": [f"{text}: {detail}" for _, text, s, detail, _ in tried if s == "not carried"][:100],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
