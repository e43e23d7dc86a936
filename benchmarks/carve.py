"""Carving SmolLM2-135M with 5 prompts and 32 decode steps: time, recording overhead, bytes, peak memory.

Run twice: with an empty cache folder (the GGUF file is converted) and again (the converted copy is used). The checks are on
the cold run.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measure import PROMPTS, brief, save, smollm2, tapml

WEIGHT_BYTES = 134_515_008 * 4  # parameters of SmolLM2-135M (the output head is tied), float32


def main() -> int:
    arguments = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runs = {
            name: tapml("carve", smollm2(), "-o", str(folder / name), "--decode-steps", "32", *arguments, cache=folder / "cache")
            for name in ("cold", "warm")
        }
    cold = runs["cold"]
    if cold.code:
        sys.exit(cold.log)
    ratio = cold.data["stages"]["record"] / cold.data["source_seconds"]
    share = cold.data["bytes"] / cold.data["naive_bytes"]
    figures = {name: brief(run) for name, run in runs.items()} | {"record_over_source": ratio, "bytes_over_naive": share}
    print(f"cold {cold.seconds:.1f} s, warm {runs['warm'].seconds:.1f} s, recording {ratio:.2f} x source")
    print(f"run {share:.2%} of all activations, peak memory {cold.peak_bytes / 2**30:.2f} GiB")
    limit = 2.5 * WEIGHT_BYTES + 2**30
    return save("carve", figures, {
        "carve within 90 s, load, export and oracle included": cold.seconds <= 90,
        "recording at most 4 times the source's own steps": ratio <= 4,
        "run at most 5% of the bytes of all calls' activations": share <= 0.05,
        f"peak memory at most 2.5 x weights + 1 GiB ({limit / 2**30:.2f} GiB)": cold.peak_bytes <= limit,
    })


if __name__ == "__main__":
    sys.exit(main())
