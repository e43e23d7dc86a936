"""MiniLM-L6-v2 (an encoder) and a small convolutional network, migrated to OpenCL and Vulkan."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measure import brief, minilm, save, tapml

MODELS = {
    "minilm": (minilm, ["--prompt", "A sentence to embed."]),
    "convnet": (lambda: f"{Path(__file__).parent.parent / 'examples' / 'convnet.py'}:model", []),
}


def main() -> int:
    figures, checks = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (model, more) in MODELS.items():
            run = str(Path(scratch) / name)
            carve = tapml("carve", model(), "-o", run, *more)
            if carve.code:
                sys.exit(carve.log)
            for target in ("opencl", "vulkan"):
                done = tapml("migrate", run, "--target", target)
                if not done.data:
                    sys.exit(done.log)
                figures[f"{name} on {target}"] = brief(done)
                print(f"{name} on {target}: {done.data['summary']}, {done.seconds:.0f} s")
                checks[f"{name} on {target}: everything passes and moves"] = done.code == 0 and not done.data["kept_on_source"]
    return save("others", figures, checks)


if __name__ == "__main__":
    sys.exit(main())
