"""PyTorch as a target: any device that it has (`device=cuda`, `device=mps`), compiled (`compile=inductor`) or not, in any dtype.

Its device is the one of the same name; what compiles is one of `torch.compile`'s backends. `dtype` computes every floating point
number in that dtype.
"""

from __future__ import annotations

from tapml.languages import pytorch
from tapml.limits import Limits
from tapml.targets.target import Target

EAGER = "eager"

# What PyTorch calls the processor, and the dtypes that `dtype` may ask for.
PROCESSOR = "cpu"
DTYPES = ("float16", "bfloat16", "float32", "float64")

# Its kinds of accelerators, with whose they are.
MAKERS = {"cuda": "NVIDIA's or AMD's GPUs", "mps": "Apple's GPUs", "xpu": "Intel's GPUs"}

TARGET = Target(
    name="torch",
    language=pytorch.LANGUAGE.name,
    device="torch",
    tvm={},
    storage={"float64": "float32"},
    schedules=(EAGER,),
    limits=Limits(),
    takes={
        "device": "a device of PyTorch, such as cuda:1 or mps",
        "compile": "a backend of torch.compile, such as inductor",
        "dtype": ", ".join(DTYPES),
    },
    opens=("device", "compile"),
    elsewhere={name: f"Install the PyTorch for {maker}; pytorch.org says how." for name, maker in MAKERS.items()},
)
