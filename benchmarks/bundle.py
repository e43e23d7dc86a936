"""SmolLM2-135M as a bundle: the source's tokens, what loading, memory and the host cost, and its speed beside two peers.

    bundle.py [--target opencl] [--prompts 20] [--tokens 64] [--rounds 5]

The peers, in turn with the bundle, each with the same prompt and the same number of tokens: the hybrid that the migration
compared (every operator on the target), and transformers' `generate` on the model that was carved, with all of PyTorch's threads.
A token's time is that from token to token, without the first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from measure import save, smollm2, tapml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from faults import PROMPTS  # noqa: E402

from tapml.carving.folder import RunFolder  # noqa: E402
from tapml.deploy.bench import bench  # noqa: E402
from tapml.deploy.bundle import BundleFolder  # noqa: E402
from tapml.deploy.session import Session  # noqa: E402
from tapml.migrate.workbench import Workbench  # noqa: E402
from tapml.runtime.protocol import Generating, generated  # noqa: E402
from tapml.source.load import load  # noqa: E402

# How many times a token of each way takes, in one round.
Times = list[float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="opencl")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run, out = Path(scratch) / "run", Path(scratch) / "bundle"
        asked = [word for prompt in PROMPTS[: args.prompts] for word in ("--prompt", prompt)]
        ready("carve", smollm2(), "-o", str(run), "--decode-steps", str(args.tokens), *asked)
        ready("migrate", str(run), "--target", args.target, "--tokens", "8")
        ready("build", str(run), "--target", args.target, "-o", str(out))
        verified = tapml("verify", str(out))
        figures = {"target": args.target, "verify": verified.data.get("checks"), "verify_seconds": verified.seconds}
        figures |= loading(out) | answers(out) | memory(out)
        figures["bench"] = bench(BundleFolder.open(out)).to_json()
        figures["seconds_a_token"] = times = speeds(run, out, args)
    bundle, hybrid, generate = (statistics.median(times[way]) for way in ("bundle", "hybrid", "generate"))
    figures["ratios"] = {"bundle/hybrid": bundle / hybrid, "generate/bundle": generate / bundle}
    print(figures)
    around = figures["bench"]["call"]["around_seconds"]
    return save(f"bundle-{args.target.partition(':')[0]}", figures, {
        "verify passes": verified.code == 0,
        f"{args.prompts} prompts, {args.tokens} tokens: the source's": not figures["prompts_that_differ"],
        "first token within 2 s after load": figures["first_token_seconds"] < 2,
        "loading takes at most 3 times reading the file": figures["load_seconds"] <= 3 * figures["read_seconds"],
        "planned memory at most weights, caches and 15%": figures["device_bytes"] <= 1.15 * figures["weights_and_caches_bytes"],
        "at most 5 ms of a token beside its launches": around <= 0.005,
        "not slower than the hybrid": bundle <= hybrid,
        "at least 1.4 times generate": generate >= 1.4 * bundle,
    })  # fmt: skip


def ready(*words: str) -> None:
    done = tapml(*words)
    if done.code:
        sys.exit(done.log)
    print(f"{words[0]}: {done.seconds:.0f} s", flush=True)


def loading(path: Path) -> dict[str, float]:
    """Medians of three; the files are in the system's cache."""
    reads, loads, firsts = [], [], []
    for _ in range(3):
        started = time.perf_counter()
        for file in (path / "weights").iterdir():
            with file.open("rb") as data:
                while data.read(2**24):
                    pass
        reads.append(time.perf_counter() - started)
        started = time.perf_counter()
        with Session(BundleFolder.open(path)) as session:
            loads.append(time.perf_counter() - started)
            started = time.perf_counter()
            next(session.generate(session.bundle.prompts[0]["tokens"], 1))
            firsts.append(time.perf_counter() - started)
    median = statistics.median
    return {"read_seconds": median(reads), "load_seconds": median(loads), "first_token_seconds": median(firsts)}


def answers(path: Path) -> dict[str, Any]:
    with Session(BundleFolder.open(path)) as session:
        differ = [
            prompt["text"] for prompt in session.bundle.prompts
            if list(session.generate(prompt["tokens"], len(prompt["generated"]))) != prompt["generated"]
        ]  # fmt: skip
        tokens = sum(len(prompt["generated"]) for prompt in session.bundle.prompts)
    return {"prompts_that_differ": differ, "tokens_compared": tokens}


def memory(path: Path) -> dict[str, int]:
    with Session(BundleFolder.open(path)) as session:
        caches = sum(spec.nbytes for spec in session.bundle.plan.states.values())
        return {
            "weights_and_caches_bytes": session.uploaded + caches, "device_bytes": session.peak,
            "planned_bytes": session.bundle.plan.planned_bytes,
        }  # fmt: skip


def speeds(run: Path, out: Path, args: argparse.Namespace) -> dict[str, Times]:
    folder = RunFolder.open(run)
    model = load(smollm2()).module
    times: dict[str, Times] = {"bundle": [], "hybrid": [], "generate": []}
    with Session(BundleFolder.open(out)) as session, Workbench.on(folder, args.target) as workbench:
        workbench.compile(folder.operators)
        hybrid = workbench.everything()
        protocol = folder.protocol
        assert isinstance(protocol, Generating)
        prompt = list(folder.prompts[0].tokens)
        ways: dict[str, Callable[[], Iterator[int]]] = {
            "bundle": lambda: session.generate(prompt, args.tokens),
            "hybrid": lambda: generated(hybrid, prompt, protocol, args.tokens, lambda row, position: int(row.argmax())),
            "generate": lambda: of_transformers(model, prompt, args.tokens),
        }
        for index in range(args.rounds + 1):
            for name, way in ways.items():
                stamps = [time.perf_counter() for _ in way()]
                if index:  # the first round warms up
                    times[name].append(statistics.median(b - a for a, b in pairwise(stamps)))
    return times


def of_transformers(model: Any, prompt: list[int], tokens: int) -> Iterator[int]:
    """The tokens of `generate`, as its streamer is given them."""
    import queue
    import threading

    class Given:
        def __init__(self) -> None:
            self.tokens: queue.Queue[int | None] = queue.Queue()
            self.prompt = True

        def put(self, value: torch.Tensor) -> None:
            if not self.prompt:
                self.tokens.put(int(value))
            self.prompt = False

        def end(self) -> None:
            self.tokens.put(None)

    given = Given()
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": tokens, "do_sample": False, "streamer": given, "attention_mask": torch.ones_like(ids)}
    thread = threading.Thread(target=lambda: model.generate(ids, **settings))
    thread.start()
    while (token := given.tokens.get()) is not None:
        yield token
    thread.join()


if __name__ == "__main__":
    sys.exit(main())
