"""CUDA, through CUDA C++ source text. Kernels can be generated; this version has no runtime that launches them."""

from __future__ import annotations

from tapml.targets.target import Limits, Target

TARGET = Target(
    name="cuda",
    language="cuda",
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
        workgroup_invocations=1024,
        workgroup_memory=49152,
        workgroups_per_dimension=65535,
        binding_bytes=2**40,
        storage_buffers=256,
    ),
)
