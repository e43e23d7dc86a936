"""Migrating SmolLM2-135M to OpenCL (PoCL), one prompt, 16 tokens: cold and warm kernel cache, compilations, peak memory."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from carve import WEIGHT_BYTES
from measure import PROMPTS, brief, save, smollm2, tapml


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cache = folder / "cache"
        carve = tapml("carve", smollm2(), "-o", str(folder / "run"), "--decode-steps", "16", "--prompt", PROMPTS[0], cache=cache)
        if carve.code:
            sys.exit(carve.log)
        words = ("migrate", str(folder / "run"), "--target", "opencl", "--tokens", "16", "--fresh")
        cold = tapml(*words, cache=cache)
        warm = tapml(*words, cache=cache)
    if not cold.data or not warm.data:
        sys.exit(cold.log + warm.log)
    limit = 2.5 * WEIGHT_BYTES + 2**30
    signatures = len({v["signature"] for v in cold.data["verdicts"]})
    print(f"{signatures} signatures")
    for name, done in (("cold", cold), ("warm", warm)):
        print(f"{name} {done.seconds:.1f} s, compiled {done.data['compiled']}, peak {done.peak_bytes / 2**30:.2f} GiB")
    return save("migrate", {"cold": brief(cold), "warm": brief(warm), "signatures": signatures}, {
        "everything passed and moved, tokens equal": cold.code == 0 and warm.code == 0 and not cold.data["kept_on_source"],
        "cold within 8 minutes": cold.seconds <= 480,
        "warm within 2 minutes": warm.seconds <= 120,
        "each signature compiled once, none when warm": cold.data["compiled"] == signatures and warm.data["compiled"] == 0,
        f"peak memory at most 2.5 x weights + 1 GiB ({limit / 2**30:.2f} GiB)": max(cold.peak_bytes, warm.peak_bytes) <= limit,
    })


if __name__ == "__main__":
    sys.exit(main())
