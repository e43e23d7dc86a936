"""Runs the function of this folder in PyTorch over inputs.safetensors and compares with expected.safetensors.

    python run.py [COMPILER]      COMPILER: a backend of torch.compile in place of the one that was used; "eager" for none.
Exit code 1: the fault shows. 0: it does not. 2: it cannot be run here. It is code: know who sent it.
"""
import json
import runpy
import sys
from pathlib import Path

try:
    import numpy as np
    import torch
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
    """One run of the function. Of an input that is not contiguous the file has the memory."""
    kernel = PLAN["kernels"][0]
    module = runpy.run_path(str(HERE / kernel["file"]))
    compiler = sys.argv[1] if len(sys.argv) > 1 else PLAN["schedule"]
    print(f"PyTorch {torch.__version__}, {compiler}")
    given = []
    for array, (shape, dtype, strides, offset) in zip(inputs, module["inputs"], strict=True):
        try:
            memory = torch.tensor(array).to(module["device"], dtype)
        except (RuntimeError, AssertionError) as error:
            print(f"not run: {error}")
            sys.exit(2)
        given.append(memory if strides is None else memory.as_strided(shape, strides, offset))
    function = module[kernel["entry"]]
    if compiler != "eager":
        torch._dynamo.reset()
        function = torch.compile(function, backend=compiler, fullgraph=True, dynamic=False)
    with torch.inference_mode():
        made = iter([t.cpu() for t in function(*given)])
    handed_on = set(range(len(PLAN["outputs"]))) - {check[0] for check in PLAN["checks"]}
    outputs = [None if k in handed_on else next(made) for k in range(len(PLAN["outputs"]))]
    return [t if t is None else (t.float() if t.dtype == torch.bfloat16 else t).numpy() for t in outputs]


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
