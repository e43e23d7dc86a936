"""Metal, through Metal Shading Language source text. Kernels can be generated; this version has no runtime that
launches them.
"""

from __future__ import annotations

from tapml.targets.target import Limits, Target

TARGET = Target(
    name="metal",
    language="msl",
    tvm={
        "kind": "metal",
        "max_num_threads": 256,
        "max_shared_memory_per_block": 32768,
        "max_threads_per_block": 1024,
        "thread_warp_size": 32,
    },
    storage={"int64": "int32", "bool": "int32", "float64": "float32", "bfloat16": "float32"},
    schedules=("dlight", "simple"),
    limits=Limits(
        workgroup_invocations=1024,
        workgroup_memory=32768,
        workgroups_per_dimension=2**31 - 1,
        binding_bytes=2**40,
        storage_buffers=30,
    ),
)
