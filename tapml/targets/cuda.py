"""CUDA, through CUDA C++ source text. Kernels can be generated; this version has no runtime that launches them."""

from __future__ import annotations

from tapml.languages import cuda_c
from tapml.limits import Limits
from tapml.targets.target import Target

TARGET = Target(
    name="cuda",
    language=cuda_c.LANGUAGE.name,
    device="cuda",
    tvm={
        "kind": "cuda",
        "arch": "sm_80",
        "max_num_threads": 1024,
        "max_shared_memory_per_block": 49152,
        "max_threads_per_block": 1024,
        "thread_warp_size": 32,
    },
    storage={"int64": "int32", "bool": "int32", "bfloat16": "float32"},
    schedules=("dlight", "simple"),
    limits=Limits(
        max_workgroup_invocations=1024,
        max_workgroup_memory_bytes=49152,
        max_workgroups_per_dimension=65535,
        max_binding_bytes=2**40,
        max_storage_buffers=256,
    ),
)
