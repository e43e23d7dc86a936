"""A hundred thousand bundles with one bit wrong: each is refused with a BundleError, or loads as what was built.

    fuzz_bundle.py [--flips 100000] [--seed 1] [--processes N] [--bundle FOLDER]

Each time one bit of one byte of one file is the other way round; files take turns, so that small ones are not left out.
Everything that running needs is then read: manifest, graphs, plan with its proof, programs, weights, states, tokenizer. Where
nothing refuses it, what was read must be what the sound bundle gives, byte for byte: the flip was in a file that running does not
read, or in white space of the manifest. Of those, a part also answers a prompt. Without `--bundle` a small decoder for the
processor is made.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from measure import save  # noqa: E402

from tapml.deploy.bundle import BundleFolder  # noqa: E402
from tapml.deploy.session import Session  # noqa: E402
from tapml.errors import BundleError  # noqa: E402

# Of the bundles that load, one in so many answers a prompt.
ANSWERED = 50


def made(folder: Path) -> Path:
    import torch

    import tapml
    from tapml.deploy.build import build
    from tests.models import VOCABULARY, causal_lm

    tokens = torch.randint(3, VOCABULARY, (1, 5), generator=torch.Generator().manual_seed(7))
    model = causal_lm("llama", num_hidden_layers=1)
    run = tapml.carve(model, {"input_ids": tokens}, out=folder / "run", decode_steps=3, chunk=4, max_len=16)
    run.migrate("cpu")
    return build(run.folder, "cpu", folder / "bundle").path


def content(path: Path) -> str:
    """A digest of all that running reads."""
    bundle = BundleFolder.open(path)
    text = hashlib.blake2b(digest_size=16)

    def note(*things: object) -> None:
        text.update("\0".join(map(str, things)).encode() + b"\n")

    note(bundle.name, bundle.choice, bundle.protocol, bundle.plan.to_json())
    for name, graph in bundle.model.graphs.items():
        note(name, graph.to_json())
    for operator in bundle.model.operators:
        note(operator.to_json(), bundle.programs[operator.name].digest)
    for key, dtype in sorted(bundle._weights):
        note(key, dtype)
        text.update(bundle.weight(key, dtype).tobytes())
    for key, array in bundle.model.initial_states.items():
        note(key)
        text.update(array.tobytes())
    for name in ("tokenizer.json", "chat.json"):
        if name in bundle.manifest["files"]:
            text.update(bundle.content(name))
    return text.hexdigest()


def answer(path: Path) -> list[int]:
    bundle = BundleFolder.open(path)
    with Session(bundle) as session:
        return list(session.generate(bundle.prompts[0]["tokens"], 3))


def flip(given: tuple[Path, int, int]) -> tuple[Counter[str], Counter[str], list[str], float]:
    """In a child: so many flips on a copy of its own."""
    source, seed, count = given
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared) as scratch:
        path = Path(shutil.copytree(source, Path(scratch) / "bundle"))
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
        sound, expected = content(path), answer(path)
        for number in range(count):
            file = files[number % len(files)]
            place, bit = rng.randrange(file.stat().st_size), 1 << rng.randrange(8)
            what = f"{file.relative_to(path)} byte {place} bit {bit}"
            change(file, place, bit)
            started = time.process_time()
            try:
                outcome = "no effect" if content(path) == sound else "wrong"
                if outcome == "no effect":
                    unread[file.name if file.suffix != ".json" or file.parent == path else "a kernel"] += 1
                    if sum(unread.values()) % ANSWERED == 0 and answer(path) != expected:
                        outcome = "wrong"
            except BundleError as error:
                outcome = "refused" if "\n" not in str(error) else "wrong"
            except Exception as error:
                outcome = "wrong"
                what += f": {type(error).__name__}: {error}"[:300]
            slowest = max(slowest, time.process_time() - started)
            outcomes[outcome] += 1
            if outcome == "wrong":
                wrong.append(what)
            change(file, place, bit)
    return outcomes, unread, wrong, slowest


def change(file: Path, place: int, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(place)
        (byte,) = opened.read(1)
        opened.seek(place)
        opened.write(bytes([byte ^ bit]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bundle", type=Path)
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = args.bundle or made(Path(scratch))
        shares = [args.flips // args.processes + (k < args.flips % args.processes) for k in range(args.processes)]
        with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
            parts = pool.map(flip, [(bundle, args.seed + k, share) for k, share in enumerate(shares)], chunksize=1)
        size = sum(file.stat().st_size for file in bundle.rglob("*"))
    outcomes = sum((part[0] for part in parts), Counter())
    wrong = [one for part in parts for one in part[2]]
    figures: dict[str, Any] = {
        "flips": args.flips, "bundle_bytes": size, "outcomes": dict(outcomes),
        "no_effect_in": dict(sum((part[1] for part in parts), Counter())), "wrong": wrong[:100],
        "slowest_seconds": max(part[3] for part in parts), "seconds": time.monotonic() - started,
    }  # fmt: skip
    print(figures)
    return save("fuzz-bundle", figures, {"each is refused or without effect": not wrong and sum(outcomes.values()) == args.flips})


if __name__ == "__main__":
    sys.exit(main())
