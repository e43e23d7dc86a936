"""Vulkan, through WGSL source text that wgpu translates for the driver. It differs from `webgpu` in its limits: it
takes what the adapter has, where `webgpu` stays within what every browser has.
"""

from __future__ import annotations

from tapml.languages import wgsl
from tapml.limits import Limits
from tapml.targets.target import Target
from tapml.targets.webgpu import STORAGE

TARGET = Target(
    name="vulkan",
    language=wgsl.LANGUAGE.name,
    device="wgpu",
    tvm={
        "kind": "webgpu",
        "max_num_threads": 256,
        "max_shared_memory_per_block": 32768,
        "thread_warp_size": 1,
        "supports_subgroups": False,
    },
    storage=STORAGE,
    schedules=("dlight", "simple"),
    limits=Limits(
        max_workgroup_invocations=256,
        max_workgroup_memory_bytes=32768,
        max_workgroups_per_dimension=65535,
        max_binding_bytes=2**31,
        max_storage_buffers=32,
    ),
)
