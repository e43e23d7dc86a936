"""How many of the 28 fault classes are detected in float32, float16 and bfloat16, and how many false alarms there are.

    detection.py [--target T]... [--model NAME]... [--dtype D]... [--operators N]   faults (default: opencl, block, all dtypes, 1)
    detection.py --clean [--runs 20]                                                no fault: models with other weights and inputs

`faults.py` also asks for the operator, the stage and the smallest input; this only asks whether anything was noticed, so it takes
seconds a fault: each altered operator is tested on its recorded calls, then the model is checked as a whole. Of a fault that is
not noticed it says by how much it changes what the operators give, in roundings of the output's dtype. Writes
results/DATE-detection.json.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fault_models
import numpy as np
from measure import PROMPTS, save, smollm2

import tapml
from tapml.backends.rewrite import Rewrite
from tapml.carving.folder import RunFolder
from tapml.diagnose.bench.own_method import OwnMethod
from tapml.diagnose.bench.stage import DEADLINE, spread
from tapml.diagnose.faults.catalogue import CATALOGUE, changed, put_in, sites
from tapml.diagnose.faults.fault import FaultClass
from tapml.diagnose.probes.reference_backends import ReferenceBackends
from tapml.diagnose.probes.trials import recorded
from tapml.errors import DeviceError, DeviceLost
from tapml.migrate.operator_test import OperatorTester
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Operator
from tapml.tensors import EPSILON, dtype_name, spec_of

DTYPES = ("float32", "float16", "bfloat16")
SMOL = "smollm2"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [SMOL, *(f.__name__ for f in fault_models.MODELS)]
    parser.add_argument("--target", action="append", help="default: opencl")
    parser.add_argument("--model", action="append", choices=names, help="default: block")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: all")
    parser.add_argument("--operators", type=int, default=1, help="operators a class is put into")
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--name", default="detection", help="of the file that is written: results/DATE-NAME.json")
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.model or ["block"]:
            for dtype in args.dtype or DTYPES:
                for seed in range(args.runs if args.clean else 1):
                    run = carved(model, dtype, seed, Path(scratch) / f"{model}-{dtype}-{seed}")
                    for target in args.target or ["opencl"]:
                        each = clean(run, target) if args.clean else faults(run, target, args.operators)
                        found.append({"model": model, "dtype": dtype, "seed": seed, "target": target, **each})
                        tell(found[-1], args.clean)
    alarms = sum(len(f["alarms"]) for f in found)
    checks = {"no false alarm": alarms == 0}
    save(args.name, {"results": found}, checks)
    return 0 if all(checks.values()) else 1


def carved(model: str, dtype: str, seed: int, out: Path) -> RunFolder:
    """A run of the model in this dtype. Seeds make other weights and inputs, or for a real model another prompt."""
    if model == SMOL:
        prompts = [PROMPTS[seed % len(PROMPTS)] + (f" ({seed})" if seed >= len(PROMPTS) else "")]
        return tapml.carve(smollm2(), prompts=prompts, out=out, dtype=dtype, decode_steps=8).folder
    if model == "block":
        module, inputs = fault_models.block(seed)
        return tapml.carve(module, inputs, out=out, dtype=dtype).folder
    module, given = getattr(fault_models, model)()
    if isinstance(given, dict):
        tokens = np.random.default_rng(seed).integers(3, 1000, given["input_ids"].shape)
        given = {"input_ids": given["input_ids"] if seed == 0 else given["input_ids"].new_tensor(tokens)}
        return tapml.carve(module, given, out=out, dtype=dtype, decode_steps=8, max_len=32, chunk=8).folder
    return tapml.carve(module, given, out=out, dtype=dtype).folder


def clean(run: RunFolder, target: str) -> dict[str, Any]:
    """Verdicts without a fault, alone and one after another, and the check of the whole model."""
    started = time.monotonic()
    alarms: list[str] = []
    counts: Counter[str] = Counter()
    with Workbench.on(run, target) as bench:
        tester = OperatorTester.over(run, bench)
        for mode, verdicts in (("alone", tester.test_all()), ("cumulative", tester.test_cumulative())):
            for verdict in verdicts:
                counts[verdict.status] += 1
                if verdict.status not in ("pass", "skipped"):
                    alarms.append(f"{mode} {verdict.operator}: {verdict.status}: {verdict.reason}")
        with ReferenceBackends(run, bench) as backends:
            wrong = OwnMethod(run, bench, backends, ()).model_is_wrong()
    if wrong:
        alarms.append(f"whole model: {wrong}")
    return {"verdicts": dict(counts), "alarms": alarms, "seconds": time.monotonic() - started}


def faults(run: RunFolder, target: str, operators: int) -> dict[str, Any]:
    """Each class in up to so many operators: detected or not, and by what."""
    rows: list[dict[str, Any]] = []
    with Workbench.on(run, target, deadline=DEADLINE) as bench, ReferenceBackends(run, bench) as backends:
        tester = OperatorTester.over(run, bench)
        alarms = [f"{v.operator}: {v.status}: {v.reason}" for v in tester.test_all() if v.status not in ("pass", "skipped")]
        whole = OwnMethod(run, bench, backends, ())
        if wrong := whole.model_is_wrong():
            alarms.append(f"whole model: {wrong}")
        for fault in CATALOGUE:
            places_of = dict(sites(fault, bench))
            chosen = spread([o for o in run.operators if o.name in places_of], operators, random.Random(fault.number))
            if fault.level in ("state",) and not chosen:
                chosen = [o for o in run.operators if o.name in places_of][:operators]
            for operator in chosen:
                rows.append(detected(run, bench, whole, fault, operator, places_of[operator.name]))
    return {"rows": rows, "alarms": alarms}


def detected(
    run: RunFolder, bench: Workbench, whole: OwnMethod, fault: FaultClass, operator: Operator, rewrite: Rewrite
) -> dict[str, Any]:
    row: dict[str, Any] = {"class": fault.number, "name": fault.name, "operator": operator.name, "by": "", "roundings": None}
    put_in(bench, rewrite)
    bench.losses = 0
    try:
        altered = [o for o in run.operators if changed(bench, o)]
        tester = OperatorTester.over(run, bench)
        verdict = next((v for v in (tester.test(o.name) for o in altered) if v.status not in ("pass", "skipped")), None)
        if verdict is not None:
            row |= {"by": "operator", "reason": verdict.reason[:300]}
        elif reason := whole.model_is_wrong():
            row |= {"by": "model", "reason": reason[:300]}
        else:
            wrong = outputs(run, bench, altered)
            put_in(bench, None)
            right = outputs(run, bench, altered)
            if wrong is not None and right is not None:
                row["roundings"] = max((roundings(a, b) for a, b in zip(wrong, right, strict=True)), default=0.0)
    finally:
        put_in(bench, None)
    return row


def outputs(run: RunFolder, bench: Workbench, operators: list[Operator]) -> list[np.ndarray] | None:
    found: list[np.ndarray] = []
    try:
        for operator in operators:
            program = bench.program(operator)
            if program is None:
                return None
            for trial in recorded(run, bench.model, operator):
                for attempt in bench.attempts():
                    with attempt:
                        found += bench.run(operator, program, trial.inputs, [spec_of(r) for r in trial.expected])
    except (DeviceError, DeviceLost):
        return None
    return found


def roundings(wrong: np.ndarray, right: np.ndarray) -> float:
    """The largest difference in roundings of the dtype, relative to each element; integers: 0 or inf."""
    dtype = dtype_name(right)
    if dtype not in EPSILON:
        return 0.0 if (wrong == right).all() else float("inf")
    a, b = wrong.astype(np.float64), right.astype(np.float64)
    with np.errstate(all="ignore"):
        off = np.where(a == b, 0.0, np.abs(a - b) / (np.abs(b) * EPSILON[dtype] + 1e-300))
    return float(np.nan_to_num(off, nan=0.0).max(initial=0.0))


def tell(result: dict[str, Any], is_clean: bool) -> None:
    where = f"{result['model']} {result['dtype']} {result['target']} seed {result['seed']}"
    if is_clean:
        print(where, result["verdicts"], f"{len(result['alarms'])} alarms", *result["alarms"][:3], sep="  ", flush=True)
        return
    rows = result["rows"]
    classes = sorted({row["class"] for row in rows})
    noticed = {row["class"] for row in rows if row["by"]}
    found = sum(bool(row["by"]) for row in rows)
    lines = [f"{where}: {len(noticed)} of {len(classes)} classes detected, {found} of {len(rows)} faults"]
    for row in rows:
        if not row["by"]:
            lines.append(f"   missed {row['class']} {row['name']} in {row['operator']}: changes {row['roundings']} roundings")
    lines += [f"   ALARM {alarm}" for alarm in result["alarms"]]
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
