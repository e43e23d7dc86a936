"""ROCm. The compiler emits assembly for it, not HIP C++, and needs a ROCm installation for that; generating kernels was not tried
on one. This version has no runtime that launches them.
"""

from __future__ import annotations

from tapml.languages import hip
from tapml.limits import Limits
from tapml.targets.target import Target

TARGET = Target(
    name="rocm",
    language=hip.LANGUAGE.name,
    device="rocm",
    without_device="the compiler needs a ROCm installation to generate kernels for it, and this version cannot run them",
    tvm={
        "kind": "rocm",
        "mcpu": "gfx1100",
        "max_num_threads": 256,
        "max_shared_memory_per_block": 65536,
        "max_threads_per_block": 1024,
        "thread_warp_size": 32,
    },
    storage={"int64": "int32", "bool": "int32", "bfloat16": "float32"},
    schedules=("dlight", "simple"),
    limits=Limits(
        max_workgroup_invocations=1024,
        max_workgroup_memory_bytes=65536,
        max_workgroups_per_dimension=2**31 - 1,
        max_binding_bytes=2**40,
        max_storage_buffers=256,
    ),
)
