"""The processor, through C source text: slow, and there for diagnosis. A kernel that is wrong on a GPU and right
here was broken by the driver or by the GPU's code generation; one that is wrong on both, before that.

Kernels keep 64-bit integers, booleans and float64 as the model has them. Half precision is computed in float32, since
portable C has no type for it.
"""

from __future__ import annotations

from tapml.languages import plain_c
from tapml.limits import Limits
from tapml.targets.target import Target

TARGET = Target(
    name="cpu",
    language=plain_c.LANGUAGE.name,
    device="cpu",
    tvm={"kind": "c"},
    storage={"float16": "float32", "bfloat16": "float32"},
    schedules=("serial",),
    limits=Limits(
        max_workgroup_invocations=1,
        max_workgroup_memory_bytes=2**20,
        max_workgroups_per_dimension=1,
        max_binding_bytes=2**40,
        max_storage_buffers=256,
    ),
)
