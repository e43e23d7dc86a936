"""Metal, through Metal Shading Language source text. Kernels can be generated; this version has no runtime that
launches them.
"""

from __future__ import annotations

from tapml.languages import msl
from tapml.limits import Limits
from tapml.targets.target import Target

TARGET = Target(
    name="metal",
    language=msl.LANGUAGE.name,
    device="metal",
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
        max_workgroup_invocations=1024,
        max_workgroup_memory_bytes=32768,
        max_workgroups_per_dimension=2**31 - 1,
        max_binding_bytes=2**40,
        max_storage_buffers=30,
    ),
)
