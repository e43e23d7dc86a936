"""WebGPU, through WGSL source text: kernels that also run in a browser, so nothing above what the WebGPU
specification guarantees is used, but for the size of buffers, which a page may ask the adapter for.

WGSL has 32-bit integers and float32, with float16 where the device offers it; everything else is stored in one of these.
"""

from __future__ import annotations

from tapml.languages import wgsl
from tapml.limits import Limits
from tapml.targets.target import Target

STORAGE = {
    "int64": "int32",
    "int16": "int32",
    "int8": "int32",
    "uint8": "int32",
    "bool": "int32",
    "float64": "float32",
    "float16": "float32",
    "bfloat16": "float32",
}

TARGET = Target(
    name="webgpu",
    language=wgsl.LANGUAGE.name,
    device="wgpu",
    tvm={
        "kind": "webgpu",
        "max_num_threads": 256,
        "max_shared_memory_per_block": 16384,
        "thread_warp_size": 1,
        "supports_subgroups": False,
    },
    storage=STORAGE,
    schedules=("dlight", "simple"),
    limits=Limits(
        max_workgroup_invocations=256,
        max_workgroup_memory_bytes=16384,
        max_workgroups_per_dimension=65535,
        max_binding_bytes=2**31,
        max_storage_buffers=8,
    ),
)
