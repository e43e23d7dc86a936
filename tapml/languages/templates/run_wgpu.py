"""Runs the kernels of this folder over inputs.safetensors and compares with expected.safetensors.

    python run.py [DEVICE]      DEVICE: a part of the device's name. Needs numpy and wgpu.
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
        import wgpu
        found = [a for a in wgpu.gpu.enumerate_adapters_sync() if a.info["backend_type"] in ("Vulkan", "Metal", "D3D12")]
        adapter = ([a for a in found if [*sys.argv, PLAN["device"]][1] in a.info["device"]] or found[: len(sys.argv) == 1])[0]
    except Exception as reason:
        print(f"not run: no Vulkan, Metal or Direct3D 12 adapter {' '.join(sys.argv[1:])} ({reason!r})")
        sys.exit(2)
    print("on", adapter.info["device"], adapter.info["backend_type"], adapter.info["description"])
    limits = {k: v for k, v in adapter.limits.items() if k.startswith("max-compute") or "storage-buffer" in k}
    features = [f for f in ("shader-f16", "subgroup") if f in adapter.features]
    device = adapter.request_device_sync(required_features=features, required_limits=limits)

    def buffer(size, data=b"", usage="STORAGE | COPY_SRC | COPY_DST"):
        return device.create_buffer_with_data(data=data.ljust(max(4, -(-max(size, len(data)) // 4) * 4), b"\xff"), usage=usage)

    arrays = [np.empty(shape, dtype) for shape, dtype in PLAN["outputs"]]
    memories = {"input": [buffer(0, a.tobytes()) for a in inputs], "output": [buffer(a.nbytes) for a in arrays]}
    memories["scratch"] = [buffer(size) for size in PLAN["scratch"]]
    for step, kernel in ((s, PLAN["kernels"][s["kernel"]]) for s in PLAN["steps"]):
        bound = [memories[role][index] for role, index in step["arguments"]]
        types = ["read-only-storage" if mode == "read" else "storage" for mode in kernel["access"]]
        if kernel["uniform"]:
            bound, types = [*bound, buffer(0, np.array(kernel["uniform"], "u4").tobytes(), "UNIFORM")], [*types, "uniform"]
        slots = [{"binding": i, "visibility": "COMPUTE", "buffer": {"type": t}} for i, t in enumerate(types)]
        layout = device.create_pipeline_layout(bind_group_layouts=[group := device.create_bind_group_layout(entries=slots)])
        stage = {"module": device.create_shader_module(code=(HERE / kernel["file"]).read_text()), "entry_point": kernel["entry"]}
        entries = [{"binding": i, "resource": {"buffer": b, "offset": 0, "size": b.size}} for i, b in enumerate(bound)]
        work = (encoder := device.create_command_encoder()).begin_compute_pass()
        work.set_pipeline(device.create_compute_pipeline(layout=layout, compute=stage))
        work.set_bind_group(0, device.create_bind_group(layout=group, entries=entries))
        work.dispatch_workgroups(*kernel["grid"])
        work.end()
        device.queue.submit([encoder.finish()])
    results = zip(arrays, map(device.queue.read_buffer, memories["output"]), strict=True)
    return [np.frombuffer(r[: a.nbytes], a.dtype).reshape(a.shape) for a, r in results]


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
