"""Bundles of small models of many architectures: clean ones verify, and faults of composition put into them are found and named.

    composition.py [--target opencl]... [--only ARCHITECTURE]... [--places N]

Each class of faults 29 to 34 is put into up to N places of each bundle, one at a time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from measure import save, tapml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from architectures import MODEL  # noqa: E402

from tapml.deploy.bundle import BundleFolder  # noqa: E402
from tapml.deploy.session import Session  # noqa: E402
from tapml.deploy.verify import verify  # noqa: E402
from tapml.diagnose.faults.catalogue import OF_PLANS  # noqa: E402
from tapml.diagnose.faults.fault import FaultClass  # noqa: E402
from tests.models import CAUSAL_LMS  # noqa: E402

SEED = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append")
    parser.add_argument("--only", action="append", choices=CAUSAL_LMS)
    parser.add_argument("--places", type=int, default=1)
    args = parser.parse_args()
    targets = args.target or ["opencl"]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.only or CAUSAL_LMS:
            run, file = str(Path(scratch) / name), Path(scratch) / f"{name}.py"
            file.write_text(MODEL.format(root=str(ROOT), name=name, dtype="float32"))
            ready("carve", f"{file}:model", "-o", run, "--decode-steps", "6", "--max-len", "32")
            for target in targets:
                out = f"{run}-{target}"
                ready("migrate", run, "--target", target)
                ready("build", run, "--target", target, "-o", out)
                figures[f"{name} on {target}"] = found = of_bundle(Path(out), args.places)
                print(f"{name} on {target}: {found}", flush=True)
    clean = [figure["clean"] for figure in figures.values()]
    checks = {f"{len(clean)} clean bundles raise no alarm": all(clean)}
    for fault in OF_PLANS:
        put = [one for figure in figures.values() for one in figure["faults"].get(fault.name, [])]
        checks[f"{fault.number} {fault.name}: {len(put)} put in, all detected and named"] = bool(put) and all(
            one["detected"] and one["named"] and one["cause"] == fault.name for one in put
        )
    return save(f"composition-{'-'.join(targets)}", figures, checks)


def ready(*words: str) -> None:
    done = tapml(*words)
    if done.code:
        sys.exit(done.log)


def of_bundle(path: Path, places: int) -> dict[str, Any]:
    with Session(BundleFolder.open(path)) as session:
        started = time.monotonic()
        verified = verify(session)
        clean = {"clean": verified.passed, "seconds": round(time.monotonic() - started, 1)}
        wrong = [check.to_json() for check in verified.checks if not check.passed]
        faults = {fault.name: of_fault(session, fault, places) for fault in OF_PLANS}
    return clean | {"wrong": wrong, "faults": faults}


def of_fault(session: Session, fault: FaultClass, places: int) -> list[dict[str, Any]]:
    assert fault.compose is not None
    found = []
    for put in islice(fault.compose(session.bundle, SEED), places):
        verified = verify(session, repeat=3, max_tokens=3, composition=put.composition)
        seen = verified.found
        right = {put.operator, put.other} if fault.name == "observer" else {put.operator}
        found.append({
            "operator": put.operator, "detected": not verified.passed, "named": seen is not None and seen.operator in right,
            "cause": None if seen is None else seen.cause, "said": None if seen is None else seen.operator,
        })  # fmt: skip
    return found


if __name__ == "__main__":
    sys.exit(main())
