"""Small kernels written by hand in each language, for the tests of devices. All work on `COUNT` float32."""

from __future__ import annotations

from tapml.kernels import Extent, Kernel

COUNT = 100
BLOCK = 32
NBYTES = COUNT * 4
RW = ("read", "read_write")

_WGSL_HEAD = """
@group(0) @binding(0) var<storage, read> x : array<f32>;
@group(0) @binding(1) var<storage, read_write> y : array<f32>;
"""


def elementwise(language: str, expression: str, entry: str = "apply") -> Kernel:
    """y[i] = expression of x[i] and y[i], for i below COUNT."""
    grid: Extent = ((COUNT + BLOCK - 1) // BLOCK, 1, 1)
    if language == "c":
        source = f"void {entry}(const float* x, float* y) {{ for (int i = 0; i < {COUNT}; ++i) y[i] = {expression}; }}"
        return Kernel("c", entry, source, RW, (1, 1, 1), (1, 1, 1))
    if language == "opencl-c":
        source = (
            f"__kernel void {entry}(__global const float* x, __global float* y) "
            f"{{ int i = get_global_id(0); if (i < {COUNT}) y[i] = {expression}; }}"
        )
        return Kernel("opencl-c", entry, source, RW, grid, (BLOCK, 1, 1))
    source = (
        f"{_WGSL_HEAD}\nstruct Words {{ unused : u32, count : u32 }}\n@group(0) @binding(2) var<uniform> words : Words;\n"
        f"@compute @workgroup_size({BLOCK}) fn {entry}(@builtin(global_invocation_id) id : vec3<u32>) "
        f"{{ let i = id.x; if (i < words.count) {{ y[i] = {expression}; }} }}"
    )
    return Kernel("wgsl", entry, source, RW, grid, (BLOCK, 1, 1), (7, COUNT))


# One for whoever needs any that computes.
PLUS_ONE = elementwise("c", "x[i] + 1")


def workgroups(language: str) -> Kernel | None:
    """y[group of a 2 x 3 x 2 grid, row by row] = 1 + its number; None where there are no workgroups."""
    if language == "opencl-c":
        source = (
            "__kernel void groups(__global const float* x, __global float* y) { if (get_local_id(0) + get_local_id(1) == 0) {"
            " int g = get_group_id(0) + 2 * (get_group_id(1) + 3 * get_group_id(2)); y[g] = 1.0f + g + 0.0f * x[0]; } }"
        )
        return Kernel("opencl-c", "groups", source, RW, (2, 3, 2), (4, 2, 1))
    if language == "wgsl":
        source = _WGSL_HEAD + (
            "@compute @workgroup_size(4, 2, 1) fn groups(@builtin(workgroup_id) w : vec3<u32>, "
            "@builtin(local_invocation_index) l : u32) { if (l == 0u) { let g = w.x + 2u * (w.y + 3u * w.z); "
            "y[g] = 1.0 + f32(g) + 0.0 * x[0]; } }"
        )
        return Kernel("wgsl", "groups", source, RW, (2, 3, 2), (4, 2, 1))
    return None


def unlaunchable(language: str) -> Kernel | None:
    """A kernel that the driver accepts, with a launch that it must refuse; None where every launch is a plain call."""
    good = elementwise(language, "x[i]")
    if language == "opencl-c":
        source = good.source.replace("__kernel void", "__kernel __attribute__((reqd_work_group_size(8, 1, 1))) void")
        return Kernel("opencl-c", good.entry, source, RW, good.grid, good.block)
    if language == "wgsl":
        return Kernel("wgsl", good.entry, good.source, RW, (2**20, 1, 1), good.block, good.uniform)
    return None


def endless(language: str) -> Kernel:
    """Never returns."""
    if language == "c":
        source = "void spin(volatile float* x) { for (;;) x[0] += 1.0f; }"
        return Kernel("c", "spin", source, ("read_write",), (1, 1, 1), (1, 1, 1))
    assert language == "opencl-c"
    source = "__kernel void spin(__global volatile float* x) { while (x[0] < 2.0f) x[1] += 1.0f; }"
    return Kernel("opencl-c", "spin", source, ("read_write",), (1, 1, 1), (1, 1, 1))
