"""All targets by name. A new target is one new file beside this one and one line here."""

from __future__ import annotations

from tapml.targets import cpu, cuda, metal, opencl, rocm, vulkan, webgpu
from tapml.targets.target import Target

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (cpu.TARGET, opencl.TARGET, vulkan.TARGET, webgpu.TARGET, cuda.TARGET, metal.TARGET, rocm.TARGET)
}

# Targets whose kernels this version can generate but not launch.
WITHOUT_RUNTIME = ("cuda", "metal", "rocm")

SCHEDULES = ("dlight", "blocked", "simple", "serial")
