"""Small models of every architecture of `tests/models.py`, with random weights: each operator compiled, tested and moved.

    architectures.py [--dtype float32] [--target opencl]... [--only ARCHITECTURE]...

Each has two layers and differs from its neighbours as the real ones do: kinds of attention, embedding, normalisation, activation,
experts. What a real checkpoint adds is size, and weights whose values lie elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from measure import brief, save, tapml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.models import CAUSAL_LMS  # noqa: E402

MODEL = """
import sys
sys.path.insert(0, {root!r})
import torch
from tests.models import VOCABULARY, causal_lm

def model():
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(3, VOCABULARY, (2, 11), generator=generator)
    return causal_lm({name!r}, dtype=torch.{dtype}), {{"input_ids": tokens}}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--target", action="append")
    parser.add_argument("--only", action="append", choices=CAUSAL_LMS)
    args = parser.parse_args()
    figures, checks = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.only or CAUSAL_LMS:
            run, file = str(Path(scratch) / name), Path(scratch) / f"{name}.py"
            file.write_text(MODEL.format(root=str(ROOT), name=name, dtype=args.dtype))
            carve = tapml("carve", f"{file}:model", "-o", run, "--decode-steps", "6", "--max-len", "32")
            if carve.code:
                sys.exit(carve.log)
            for target in args.target or ("opencl",):
                done = tapml("migrate", run, "--target", target)
                if not done.data:
                    sys.exit(done.log)
                figures[f"{name} on {target}"] = brief(done)
                print(f"{name} on {target}: {done.data['summary']}, {done.seconds:.0f} s", flush=True)
                checks[f"{name} on {target}: everything passes and moves, tokens equal"] = (
                    done.code == 0 and not done.data["kept_on_source"] and done.data["end_to_end"]["tokens_match"]
                )
    return save(f"architectures-{args.dtype}", figures, checks)


if __name__ == "__main__":
    sys.exit(main())
