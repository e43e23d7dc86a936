"""ONNX Runtime as a target: any of its execution providers (`provider=webgpu`), with its graph optimisations on or off.

Operators are ONNX models. Its device is the one of the same name; what ORT makes of a graph before it runs it is the level that
`optimise` names, as ORT itself numbers them.
"""

from __future__ import annotations

from tapml.languages import onnx
from tapml.limits import Limits
from tapml.targets.target import Target

PROCESSOR = "cpu"

# What ORT calls each, and the package that has it where that is another than ORT's usual one.
PROVIDERS = {
    PROCESSOR: ("CPUExecutionProvider", ""),
    "webgpu": ("WebGpuExecutionProvider", "onnxruntime-webgpu"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "migraphx": ("MIGraphXExecutionProvider", "onnxruntime-migraphx"),
    "coreml": ("CoreMLExecutionProvider", ""),
    "dml": ("DmlExecutionProvider", "onnxruntime-directml"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "qnn": ("QNNExecutionProvider", "onnxruntime-qnn"),
    "xnnpack": ("XnnpackExecutionProvider", ""),
    "dnnl": ("DnnlExecutionProvider", ""),
    "vitisai": ("VitisAIExecutionProvider", ""),
}



def how_to_have(package: str) -> str:
    """What to do where a provider is not there; `package` is the one that has it, "" for ORT's usual one."""
    if package:
        return f"Try: pip install {package}, in an environment of its own, since it is the same module."
    return "It comes with ONNX Runtime on some systems only, or is built with it."


# The levels of graph optimisation by ORT's own numbers, with its names for them.
LEVELS = {
    "0": "ORT_DISABLE_ALL", "1": "ORT_ENABLE_BASIC", "2": "ORT_ENABLE_EXTENDED", "3": "ORT_ENABLE_LAYOUT", "99": "ORT_ENABLE_ALL",
}  # fmt: skip
USUAL = "99"

# Whether weights are constants of the models, or inputs like the others.
CONSTANT = "constant"

TARGET = Target(
    name="ort",
    language=onnx.LANGUAGE.name,
    device="onnxruntime",
    tvm={},
    storage={},
    schedules=(LEVELS[USUAL],),
    limits=Limits(),
    takes={
        "provider": ", ".join(PROVIDERS),
        "optimise": ", ".join(f"{number} ({name})" for number, name in LEVELS.items()),
        "weights": f"{CONSTANT} or input",
        "threads": "how many the processor's provider uses for one operator",
        "device": "the number of one of the provider's devices",
    },
    values={"provider": tuple(PROVIDERS), "optimise": tuple(LEVELS), "weights": (CONSTANT, "input")},
    opens=("provider", "optimise", "threads", "device"),
    levels=LEVELS,
    elsewhere={word: how_to_have(package) for word, (_, package) in PROVIDERS.items() if word != PROCESSOR},
)
