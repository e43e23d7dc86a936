"""All targets by name. A new target is one new file beside this one and one line here."""

from __future__ import annotations

from tapml.targets import cpu, cuda, metal, opencl, rocm, vulkan, webgpu
from tapml.targets.target import Target

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (cpu.TARGET, opencl.TARGET, vulkan.TARGET, webgpu.TARGET, cuda.TARGET, metal.TARGET, rocm.TARGET)
}

# Targets that this version cannot run kernels on, and what it can do.
WITHOUT_RUNTIME = {
    "cuda": "kernels can be generated for it, but this version cannot run them",
    "metal": "kernels can be generated for it, but this version cannot run them",
    "rocm": "the compiler needs a ROCm installation to generate kernels for it, and this version cannot run them",
}

RUNNABLE = tuple(name for name in TARGETS if name not in WITHOUT_RUNTIME)

SCHEDULES = ("dlight", "blocked", "simple", "serial")
