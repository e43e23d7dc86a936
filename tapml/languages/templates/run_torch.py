"""Runs the function of this folder in PyTorch over inputs.safetensors and compares with expected.safetensors.

    python run.py [COMPILER]      COMPILER: a backend of torch.compile in place of the one that was used; "eager" for none.
Exit code 1: the fault shows. 0: it does not. 2: it cannot be run here. It is code: know who sent it.
"""
import json
import runpy
import sys
from pathlib import Path

try:
    import torch
except ImportError:
    print("not run: torch is not installed")
    sys.exit(2)

HERE = Path(__file__).resolve().parent
PLAN = json.loads((HERE / "launch.json").read_text())
TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read(name):
    """Tensors of a safetensors file: 8 bytes that say how long the header is, the header in JSON, the data."""
    data = (HERE / name).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, item in json.loads(data[8:start]).items():
        begin, end = item["data_offsets"]
        dtype, shape = TYPES[item["dtype"]], item["shape"]
        if begin == end:
            tensors[name] = torch.empty(shape, dtype=dtype)
        else:
            tensors[name] = torch.frombuffer(bytearray(data[start + begin : start + end]), dtype=dtype).view(shape)
    return tensors


def laid_out(tensor, what, device):
    """The tensor on the device. Of one that is not contiguous the file has the memory."""
    shape, dtype, strides, offset = what
    memory = tensor.to(device, dtype)
    return memory if strides is None else memory.as_strided(shape, strides, offset)


def launch(inputs, compiler):
    kernel = PLAN["kernels"][0]
    module = runpy.run_path(str(HERE / kernel["file"]))
    function = module[kernel["entry"]]
    try:
        given = [laid_out(t, what, torch.device(module["device"])) for t, what in zip(inputs, module["inputs"], strict=True)]
    except (RuntimeError, AssertionError) as error:
        print(f"not run: {error}")
        sys.exit(2)
    if compiler != "eager":
        torch._dynamo.reset()
        function = torch.compile(function, backend=compiler, fullgraph=True, dynamic=False)
    with torch.inference_mode():
        return [t.cpu() for t in function(*given)]


def error(actual, expected, judged, scale):
    """How far each element is off: |actual - expected| / (|expected| + mean |expected|), inf where NaN or infinity differ."""
    y, r = actual.double(), expected.double()
    off = (y - r).abs() / (r.abs() + scale) if expected.is_floating_point() else torch.full(y.shape, torch.inf)
    off = torch.where(y.isfinite() & r.isfinite(), off, torch.inf)
    return torch.where((y == r) | (y.isnan() & r.isnan()) | ~judged, 0.0, off)


def main():
    given, wanted = read("inputs.safetensors"), read("expected.safetensors")
    compiler = sys.argv[1] if len(sys.argv) > 1 else PLAN["schedule"]
    print(f"PyTorch {torch.__version__}, {compiler}")
    shows = 0
    for _ in range(PLAN["repeats"]):
        try:
            outputs = launch([given[f"i{k}"] for k in range(len(given))], compiler)
        except Exception as refusal:
            print(f"PyTorch refuses: {refusal}")
            return 1
        for made, (k, bound, scale) in zip(outputs, PLAN["checks"], strict=True):
            expected = wanted[f"o{k}"]
            off = error(made, expected, ~wanted[f"m{k}"] if f"m{k}" in wanted else torch.tensor(True), scale).reshape(-1)
            at = int(off.argmax())
            shows += bool(off[at] > bound)
            worst = f"element {at} of {off.numel()} is {made.reshape(-1)[at]}, not {expected.reshape(-1)[at]}"
            print(f"output {k}: error {float(off[at]):.3g}, bound {bound:.3g}; worst {worst}")
    print("the fault shows" if shows else "the fault does not show")
    return 1 if shows else 0


sys.exit(main())
