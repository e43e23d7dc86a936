"""Runs the operator of this folder in the engine it is wrong in, over inputs.safetensors, and compares with expected.safetensors.

    python run.py [TARGET]                in place of the one that was used, such as another engine of the same kind
Exit code 1: the fault shows. 0: it does not. 2: it cannot be run here.
"""
import json
import sys
from contextlib import closing
from pathlib import Path

try:
    import numpy as np

    from tapml.backends import body_of, open_backend
    from tapml.errors import TapmlError
except ImportError as missing:
    print(f"not run: {missing.name} is not installed")
    sys.exit(2)

HERE = Path(__file__).resolve().parent
PLAN = json.loads((HERE / "launch.json").read_text())
TYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


def read(name):
    """Arrays of a safetensors file: 8 bytes that say how long the header is, the header in JSON, the data."""
    data = (HERE / name).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    arrays = {}
    for name, item in json.loads(data[8:start]).items():
        part = data[start + item["data_offsets"][0] : start + item["data_offsets"][1]]
        arrays[name] = np.frombuffer(part, TYPES[item["dtype"]]).reshape(item["shape"])
    return arrays


def launch(inputs):
    """One run of the operator; None for an output that is an input unchanged."""
    body = body_of((HERE / PLAN["kernels"][0]["file"]).read_text(encoding="utf-8"))
    try:
        engine = open_backend(sys.argv[1] if len(sys.argv) > 1 else PLAN["target"])
    except TapmlError as absent:
        print(f"not run: {absent}")
        sys.exit(2)
    with closing(engine):
        print(engine.info.driver)
        made = iter(engine.run_once(engine.prepare({"": body})[""].compiled, inputs))
    return [next(made) if k in {check[0] for check in PLAN["checks"]} else None for k in range(len(PLAN["outputs"]))]


def error(actual, expected, judged, scale):
    """How far each element is off: |actual - expected| / (|expected| + mean |expected|), inf where NaN or infinity differ."""
    y, r = actual.astype("f8"), expected.astype("f8")
    with np.errstate(all="ignore"):
        off = np.abs(y - r) / (np.abs(r) + scale) if expected.dtype.kind == "f" else np.full(y.shape, np.inf)
    same = (y == r) | (np.isnan(y) & np.isnan(r)) | ~judged
    return np.where(same, 0.0, np.where(np.isfinite(y) & np.isfinite(r), off, np.inf))


def main():
    given, wanted = read("inputs.safetensors"), read("expected.safetensors")
    shows = 0
    for _ in range(PLAN["repeats"]):
        try:
            outputs = launch([given[f"i{k}"] for k in range(len(given))])
        except Exception as refusal:
            print(f"the platform refuses: {refusal}")
            return 1
        for k, bound, scale in PLAN["checks"]:
            expected, actual = wanted[f"o{k}"], outputs[k]
            off = error(actual, expected, ~wanted[f"m{k}"] if f"m{k}" in wanted else np.True_, scale)
            at = tuple(map(int, np.unravel_index(off.argmax(), off.shape)))
            shows += bool(off[at] > bound)
            print(f"output {k}: error {off[at]:.3g}, bound {bound:.3g}; worst element {at} is {actual[at]}, not {expected[at]}")
    print("the fault shows" if shows else "the fault does not show")
    return 1 if shows else 0


sys.exit(main())
