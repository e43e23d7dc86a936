"""Vulkan, through WGSL source text that wgpu translates for the driver. It differs from `webgpu` in its limits: it
takes what the adapter has, where `webgpu` stays within what every browser has.
"""

from __future__ import annotations

from dataclasses import replace

from tapml.targets import webgpu

TARGET = replace(
    webgpu.TARGET,
    name="vulkan",
    tvm={**webgpu.TARGET.tvm, "max_shared_memory_per_block": 32768},
    limits=replace(webgpu.TARGET.limits, max_workgroup_memory_bytes=32768, max_storage_buffers=32),
)
