"""The processor, through C source text: slow, and there for diagnosis. A kernel that is wrong on a GPU and right
here was broken by the driver or by the GPU's code generation; one that is wrong on both, before that.

Kernels keep 64-bit integers, booleans and float64 as the model has them. Half precision is computed in float32, since
portable C has no type for it.
"""

from __future__ import annotations

from tapml.targets.target import Limits, Target

TARGET = Target(
    name="cpu",
    language="c",
    tvm={"kind": "c"},
    storage={"float16": "float32", "bfloat16": "float32"},
    schedules=("serial",),
    limits=Limits(
        workgroup_invocations=1,
        workgroup_memory=2**20,
        workgroups_per_dimension=1,
        binding_bytes=2**40,
        storage_buffers=256,
    ),
)
