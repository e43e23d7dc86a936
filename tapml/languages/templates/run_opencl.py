"""Runs the kernels of this folder over inputs.safetensors and compares with expected.safetensors.

    python run.py [DEVICE]      DEVICE: a part of the device's name. Needs numpy and pyopencl.
Exit code 1: the fault shows. 0: it does not. 2: it cannot be run here. Code, as the kernels are: know who sent it.
"""
import json
import sys
from pathlib import Path

try:
    import numpy as np
except ImportError:
    print("not run: numpy is not installed")
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
    """One run of all kernels; outputs and scratch are NaN bytes first."""
    try:
        import pyopencl as cl
        devices = [d for p in cl.get_platforms() for d in p.get_devices()]
        named = sys.argv[1] if len(sys.argv) > 1 else PLAN["device"]
        device = ([d for d in devices if named in d.name] or devices[: len(sys.argv) == 1])[0]
    except Exception as reason:
        print(f"not run: no OpenCL device {' '.join(sys.argv[1:])} ({reason!r})")
        sys.exit(2)
    print(f"on {device.name.strip()}, {device.platform.version}, driver {device.driver_version}")
    context = cl.Context([device])
    queue = cl.CommandQueue(context)

    def buffer(size, data=None):
        memory = cl.Buffer(context, cl.mem_flags.READ_WRITE, max(4, (size + 3) // 4 * 4))
        cl.enqueue_copy(queue, memory, np.full(size, 255, "u1") if data is None else data)
        return memory

    arrays = [np.empty(shape, dtype) for shape, dtype in PLAN["outputs"]]
    memories = {"input": [buffer(a.nbytes, a) for a in inputs], "output": [buffer(a.nbytes) for a in arrays],
                "scratch": [buffer(size) for size in PLAN["scratch"]]}  # fmt: skip
    for step in PLAN["steps"]:
        kernel = PLAN["kernels"][step["kernel"]]
        program = cl.Program(context, (HERE / kernel["file"]).read_text()).build()
        size = [g * b for g, b in zip(kernel["grid"], kernel["block"], strict=True)]
        if 0 not in size:
            getattr(program, kernel["entry"])(queue, size, kernel["block"], *[memories[r][i] for r, i in step["arguments"]])
    for array, memory in zip(arrays, memories["output"], strict=True):
        cl.enqueue_copy(queue, array, memory)
    return arrays


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
