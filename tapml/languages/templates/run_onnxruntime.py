"""Runs the model of this folder in ONNX Runtime over inputs.safetensors and compares with expected.safetensors.

    python run.py [PROVIDER [LEVEL]]      in place of those that were used, such as CPUExecutionProvider and ORT_DISABLE_ALL
Exit code 1: the fault shows. 0: it does not. 2: it cannot be run here, or would be on another provider.
"""
import json
import re
import sys
from pathlib import Path

try:
    import numpy as np
    import onnxruntime as ort
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
    """One run of the model."""
    kernel = PLAN["kernels"][0]
    provider = sys.argv[1] if len(sys.argv) > 1 else re.search(r"\w+ExecutionProvider", PLAN["driver"])[0]
    level = sys.argv[2] if len(sys.argv) > 2 else PLAN["schedule"]
    print(f"ONNX Runtime {ort.__version__}, {provider}, {level}")
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    if provider not in ort.get_available_providers():
        print(f"not run: this ONNX Runtime has {', '.join(ort.get_available_providers())}")
        sys.exit(2)
    names = re.findall(r'(i\d+) = \["location"', (HERE / kernel["file"]).read_text())
    constants = {name: np.array(inputs[int(name[1:])]) for name in names}
    if constants:
        options.add_external_initializers(names, [ort.OrtValue.ortvalue_from_numpy(c) for c in constants.values()])
    session = ort.InferenceSession(str(HERE / kernel["packed"]), options, providers=[provider])
    if session.get_providers()[0] != provider:
        print(f"not run: it would be on {session.get_providers()[0]}")
        sys.exit(2)
    rest = [array for k, array in enumerate(inputs) if f"i{k}" not in constants]
    made = iter(session.run(None, {value.name: array for value, array in zip(session.get_inputs(), rest, strict=True)}))
    handed_on = set(range(len(PLAN["outputs"]))) - {check[0] for check in PLAN["checks"]}
    return [None if k in handed_on else next(made) for k in range(len(PLAN["outputs"]))]


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
