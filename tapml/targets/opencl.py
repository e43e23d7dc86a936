"""OpenCL, through OpenCL C source text: GPUs of every maker, and processors by PoCL.

64-bit integers and booleans are stored as int32 as on the other GPU targets, so that one set of conversions serves all.
float16 and float64 need the extensions cl_khr_fp16 and cl_khr_fp64: `resolve` adds them where the device has them.
"""

from __future__ import annotations

from tapml.languages import opencl_c
from tapml.limits import Limits
from tapml.targets.target import Target

TARGET = Target(
    name="opencl",
    language=opencl_c.LANGUAGE.name,
    device="opencl",
    tvm={"kind": "opencl", "max_num_threads": 256, "max_shared_memory_per_block": 32768, "thread_warp_size": 1},
    storage={
        "int64": "int32",
        "bool": "int32",
        "float64": "float32",
        "float16": "float32",
        "bfloat16": "float32",
    },
    schedules=("dlight", "simple"),
    limits=Limits(
        max_workgroup_invocations=256,
        max_workgroup_memory_bytes=32768,
        max_workgroups_per_dimension=2**31 - 1,
        max_binding_bytes=2**40,
        max_storage_buffers=64,
    ),
)
