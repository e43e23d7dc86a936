"""SmolLM2-135M in float32 on OpenCL and Vulkan: every operator, and 32 greedy tokens for each of 5 chat prompts.

    tokens.py [TARGET …]      default: opencl vulkan
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measure import PROMPTS, brief, save, smollm2, tapml


def main(targets: list[str]) -> int:
    arguments = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    figures, checks = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        run = str(Path(scratch) / "run")
        carve = tapml("carve", smollm2(), "-o", run, "--decode-steps", "32", *arguments)
        if carve.code:
            sys.exit(carve.log)
        for target in targets:
            done = tapml("migrate", run, "--target", target, "--tokens", "32")
            if not done.data:
                sys.exit(done.log)
            figures[target] = brief(done)
            end = done.data["end_to_end"]
            passed, total = done.data["summary"]["pass"], sum(done.data["summary"].values())
            print(f"{target}: {passed} of {total} pass, {done.seconds:.0f} s, tokens match {end['tokens_match']}, ", end="")
            print(f"logit error {end['logit_error']:.2e}, top-1 agreement {end['top1_agreement']}")
            checks[f"{target}: every operator passes"] = passed == total
            checks[f"{target}: everything is offloaded"] = not done.data["kept_on_source"]
            checks[f"{target}: 5 x 32 greedy tokens equal the source's"] = end["tokens_match"] is True
    return save("tokens", figures, checks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["opencl", "vulkan"]))
