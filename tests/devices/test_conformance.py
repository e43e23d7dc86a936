"""One suite for every implementation of the runtime interface, the fakes included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from tapml.devices.child import ChildDevice
from tapml.devices.faulty import FaultyDevice
from tapml.devices.interface import Device, Launch
from tapml.devices.null import NullDevice
from tapml.devices.open import open_here, probe
from tapml.errors import DeviceError, UnavailableError
from tapml.kernels import Kernel
from tapml.remote.open import open_device
from tapml.tensors import HostArray
from tests.devices import kernels
from tests.devices.kernels import COUNT, NBYTES


@dataclass(frozen=True)
class Implementation:
    """`language` is None for a device that computes nothing. `remote`: the target of the agent's device that `open` gives, which
    gets the hub's address."""

    open: Callable[..., Device]
    language: str | None
    remote: str = ""


def over_hub(target: str, url: str) -> Device:
    return open_device(target, f"bench@{url}", deadline=120)


IMPLEMENTATIONS = {
    "opencl": Implementation(lambda: open_here("opencl", None), "opencl-c"),
    "vulkan": Implementation(lambda: open_here("vulkan", None), "wgsl"),
    "webgpu": Implementation(lambda: open_here("webgpu", None), "wgsl"),
    "cpu": Implementation(lambda: open_here("cpu", None), "c"),
    "null": Implementation(NullDevice, None),
    "faulty(opencl)": Implementation(lambda: FaultyDevice(open_here("opencl", None)), "opencl-c"),
    "child(opencl)": Implementation(lambda: ChildDevice("opencl", deadline=120), "opencl-c"),
    "child(vulkan)": Implementation(lambda: ChildDevice("vulkan", deadline=120), "wgsl"),
    "child(cpu)": Implementation(lambda: ChildDevice("cpu", deadline=120), "c"),
    "remote(opencl)": Implementation(partial(over_hub, "opencl"), "opencl-c", remote="opencl"),
    "remote(cpu)": Implementation(partial(over_hub, "cpu"), "c", remote="cpu"),
}


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(scope="module")
def open_one(implementation: Implementation, request: pytest.FixtureRequest) -> Callable[[], Device]:
    """Opens another one of the same kind; a device at a hub must have been closed before."""
    place: list[str] = []
    if implementation.remote:
        found = probe(implementation.remote)
        if not found.available:
            pytest.skip(f"not run: {found.reason}")
        hub, agent = request.getfixturevalue("served")
        agent.wait_ready(implementation.remote)
        place.append(hub.url)

    def opened() -> Device:
        try:
            return implementation.open(*place)
        except UnavailableError as error:
            pytest.skip(f"not run: {error}")

    return opened


@pytest.fixture(scope="module")
def device(open_one: Callable[[], Device]) -> Iterator[Device]:
    device = open_one()
    yield device
    device.close()


@pytest.fixture
def language(implementation: Implementation) -> str:
    if implementation.language is None:
        pytest.skip("not run: this device computes nothing")
    return implementation.language


def filled(device: Device, value: HostArray | float) -> int:
    array = np.broadcast_to(np.asarray(value, np.float32), COUNT).copy()
    buffer = device.allocate(NBYTES)
    device.write(buffer, array.tobytes())
    return buffer


def floats(device: Device, buffer: int) -> HostArray:
    return np.frombuffer(device.read(buffer, NBYTES), np.float32)


def test_info_is_complete(device: Device) -> None:
    info = device.info
    assert info.platform and info.name and info.driver
    assert info.limits.to_json()["max_buffer_bytes"] >= 2**26
    assert all(isinstance(v, int) and v > 0 for v in info.limits.to_json().values())


@pytest.mark.parametrize("nbytes", [1, 2, 3, 4, 5, 63, 64, 1000, 65537, 3 * 2**20 + 1])
def test_bytes_come_back(device: Device, nbytes: int) -> None:
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8).tobytes()
    buffer = device.allocate(nbytes)
    device.write(buffer, data)
    assert device.read(buffer, nbytes) == data
    device.free(buffer)


def test_large_transfers(device: Device) -> None:
    """More than the pieces that transfers are split into, and not a multiple of them."""
    data = np.random.default_rng(0).integers(0, 256, 40 * 2**20 + 3, np.uint8).tobytes()
    buffer = device.allocate(len(data))
    device.write(buffer, data)
    assert device.read(buffer, len(data)) == data
    assert device.read(buffer, 20 * 2**20, 17 * 2**20 + 1) == data[17 * 2**20 + 1 : 37 * 2**20 + 1]
    device.free(buffer)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 7, 250])
@pytest.mark.parametrize("nbytes", [0, 1, 3, 4, 5, 8, 13])
def test_writes_touch_nothing_else(device: Device, offset: int, nbytes: int) -> None:
    background = bytes(range(1, 251)) + b"\7" * 50
    data = bytes([255]) * nbytes
    buffer = device.allocate(len(background))
    device.write(buffer, background)
    device.write(buffer, data, offset)
    expected = background[:offset] + data + background[offset + nbytes :]
    assert device.read(buffer, len(background)) == expected
    assert device.read(buffer, nbytes, offset) == data
    device.free(buffer)


def test_data_may_be_reused_after_a_write(device: Device) -> None:
    data = bytearray(b"a" * 4096)
    buffer = device.allocate(4096)
    device.write(buffer, memoryview(data))
    data[:] = b"b" * 4096
    assert device.read(buffer, 4096) == b"a" * 4096
    device.free(buffer)


def test_several_reads_together(device: Device) -> None:
    data = np.random.default_rng(1).integers(0, 256, 18 * 2**20, np.uint8).tobytes()
    x, y = device.allocate(len(data)), device.allocate(16)
    device.write(x, data)
    device.write(y, b"0123456789abcdef")
    parts = [(y, 16, 0), (x, len(data), 0), (y, 0, 3), (x, 5, 2**20 - 2), (y, 2, 14)]
    assert device.read_many(parts) == [b"0123456789abcdef", data, b"", data[2**20 - 2 : 2**20 + 3], b"ef"]
    assert device.read_many([]) == []
    with pytest.raises(ValueError, match="outside"):
        device.read_many([(y, 16, 0), (y, 16, 1)])
    assert device.read(y, 4) == b"0123"
    for buffer in (x, y):
        device.free(buffer)


@pytest.mark.parametrize("nbytes", [3, 5000, 2**20 + 70001])
def test_writes_that_are_kept_are_writes(device: Device, nbytes: int) -> None:
    """Content, and runs of one byte, which a device across a connection gets in another way."""
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8).tobytes()
    buffer = device.allocate(nbytes + 2)
    for content in (data, data, bytes([7]) * nbytes):
        device.write(buffer, b"\1" * (nbytes + 2))
        device.write(buffer, content, 1, keep=True)
        assert device.read(buffer, nbytes + 2) == b"\1" + content + b"\1"
    device.free(buffer)


def test_an_empty_buffer(device: Device) -> None:
    buffer = device.allocate(0)
    device.write(buffer, b"")
    assert device.read(buffer, 0) == b""
    device.free(buffer)


def test_a_kernel_computes(device: Device, language: str) -> None:
    x, y = filled(device, np.arange(COUNT)), filled(device, -1)
    kernel = device.load(kernels.elementwise(language, "x[i] * 3 + y[i]"))
    device.run([Launch(kernel, (x, y))])
    np.testing.assert_array_equal(floats(device, y), np.arange(COUNT, dtype=np.float32) * 3 - 1)
    device.unload(kernel)


def test_workgroups_go_over_all_three_dimensions(device: Device, language: str) -> None:
    source = kernels.workgroups(language)
    if source is None:
        pytest.skip(f"not run: {language} kernels have no workgroups")
    x, y = filled(device, 0), filled(device, 0)
    device.run([Launch(device.load(source), (x, y))])
    np.testing.assert_array_equal(floats(device, y)[:13], [*range(1, 13), 0])


def test_later_launches_see_earlier_writes(device: Device, language: str) -> None:
    one = device.load(kernels.elementwise(language, "x[i] + 1", "plus"))
    double = device.load(kernels.elementwise(language, "x[i] * 2", "twice"))
    a, b = filled(device, 0), filled(device, 0)
    expected = 0.0
    batch = []
    for _ in range(10):  # a -> b by +1, b -> a by *2
        batch += [Launch(one, (a, b)), Launch(double, (b, a))]
        expected = (expected + 1) * 2
    device.run(batch)
    np.testing.assert_array_equal(floats(device, a), np.float32(expected))


def test_batches_and_writes_keep_their_order(device: Device, language: str) -> None:
    kernel = device.load(kernels.elementwise(language, "y[i] * 2 + x[i]"))
    x, y = filled(device, 1), filled(device, 0)
    expected = 0.0
    for value in (1, 5, -3, 7):
        device.write(x, np.full(COUNT, value, np.float32).tobytes())
        device.run([Launch(kernel, (x, y))])
        expected = expected * 2 + value
    device.write(x, np.full(COUNT, 1000, np.float32).tobytes())  # after the last launch: must not reach it
    np.testing.assert_array_equal(floats(device, y), np.float32(expected))


def test_many_launches(device: Device, language: str) -> None:
    kernel = device.load(kernels.elementwise(language, "y[i] + x[i]"))
    x, y = filled(device, 1), filled(device, 0)
    for _ in range(4):
        device.run([Launch(kernel, (x, y))] * 500)
    device.synchronize()
    np.testing.assert_array_equal(floats(device, y), np.float32(2000))


def test_a_batch_that_comes_again(device: Device, language: str) -> None:
    """The very same tuple, as a decoder's step: it sees what buffers hold now, whatever came and went in between."""
    double = device.load(kernels.elementwise(language, "x[i] * 2", "twice"))
    add = device.load(kernels.elementwise(language, "x[i] + 1", "more"))
    x, y, z = filled(device, 1.0), filled(device, 0.0), filled(device, 0.0)
    batch = (Launch(double, (x, y)), Launch(add, (y, z)))
    for count in range(1, 6):
        device.write(x, np.full(COUNT, count, np.float32).tobytes())
        device.run(batch)
        assert np.all(floats(device, z) == 2 * count + 1)
        other = filled(device, 9.0)
        device.run((Launch(double, (x, other)),))
        device.free(other)
    device.free(z)
    with pytest.raises(ValueError):
        device.run(batch)
    w = filled(device, 0.0)
    device.run((Launch(double, (x, y)), Launch(add, (y, w))))
    assert np.all(floats(device, w) == 11.0)
    device.unload(add)
    with pytest.raises(ValueError):
        device.run((Launch(double, (x, y)), Launch(add, (y, w))))


def test_an_empty_batch(device: Device) -> None:
    device.run([])
    device.synchronize()


def test_buffers_read_twice_in_a_launch(device: Device, language: str) -> None:
    """Reading one buffer through two arguments is allowed; see below for writing."""
    kernel = sum_of_two(language)
    x, y = filled(device, 4), filled(device, 0)
    device.run([Launch(device.load(kernel), (x, x, y))])
    np.testing.assert_array_equal(floats(device, y), np.float32(8))


def sum_of_two(language: str) -> Kernel:
    access = ("read", "read", "read_write")
    if language == "c":
        source = f"void sum(const float* a, const float* b, float* y) {{ for (int i = 0; i < {COUNT}; ++i) y[i] = a[i] + b[i]; }}"
        return Kernel("c", "sum", source, access, (1, 1, 1), (1, 1, 1))
    if language == "opencl-c":
        source = (
            "__kernel void sum(__global const float* a, __global const float* b, __global float* y) "
            "{ int i = get_global_id(0); y[i] = a[i] + b[i]; }"
        )
        return Kernel("opencl-c", "sum", source, access, (COUNT, 1, 1), (1, 1, 1))
    source = """
        @group(0) @binding(0) var<storage, read> a : array<f32>;
        @group(0) @binding(1) var<storage, read> b : array<f32>;
        @group(0) @binding(2) var<storage, read_write> y : array<f32>;
        @compute @workgroup_size(1) fn sum(@builtin(workgroup_id) id : vec3<u32>) { y[id.x] = a[id.x] + b[id.x]; }"""
    return Kernel("wgsl", "sum", source, access, (COUNT, 1, 1), (1, 1, 1))


def test_a_written_buffer_is_bound_once(device: Device, implementation: Implementation) -> None:
    kernel = device.load(kernels.elementwise(implementation.language or "c", "x[i]"))
    x = filled(device, 1)
    with pytest.raises(ValueError, match="also bound to another argument"):
        device.run([Launch(kernel, (x, x))])
    assert device.read(x, 4)


def test_a_refused_kernel_leaves_the_device_alive(device: Device, language: str) -> None:
    good = kernels.elementwise(language, "x[i]")
    for bad, what in (
        (kernels.elementwise(language, "no_such_name[i]"), "no_such_name"),
        (Kernel(language, "missing", good.source, good.access, good.grid, good.block, good.uniform), "missing"),
        (Kernel("msl", "apply", "", good.access, good.grid, good.block), "msl"),
    ):
        with pytest.raises(DeviceError, match=what) as caught:
            device.load(bad)
            device.synchronize()
        assert caught.value.stage == "driver"
    test_a_kernel_computes(device, language)


def test_a_refused_launch_leaves_the_device_alive(device: Device, language: str) -> None:
    bad = kernels.unlaunchable(language)
    if bad is None:
        pytest.skip(f"not run: a launch in {language} is a plain call that nothing refuses")
    kernel = device.load(bad)
    x, y = filled(device, 1), filled(device, 0)
    with pytest.raises(DeviceError) as caught:
        device.run([Launch(kernel, (x, y))])
        device.synchronize()
    assert caught.value.stage == "launch"
    device.synchronize()
    test_a_kernel_computes(device, language)


def test_no_room_leaves_the_device_alive(device: Device) -> None:
    with pytest.raises(DeviceError) as caught:
        device.allocate(2**45)
    assert caught.value.stage == "launch"
    buffer = device.allocate(16)
    device.write(buffer, b"0123456789abcdef")
    assert device.read(buffer, 16) == b"0123456789abcdef"
    device.free(buffer)


def test_freed_memory_is_there_again(device: Device) -> None:
    """Allocates and frees, in sum, far more than any machine has."""
    for _ in range(1000):
        device.free(device.allocate(2**26))


def test_free_right_after_a_launch(device: Device, language: str) -> None:
    kernel = device.load(kernels.elementwise(language, "y[i] + x[i]"))
    y = filled(device, 0)
    for _ in range(20):
        x = filled(device, 1)
        device.run([Launch(kernel, (x, y))])
        device.free(x)
    np.testing.assert_array_equal(floats(device, y), np.float32(20))


def test_a_kernel_may_be_unloaded_and_loaded_again(device: Device, language: str) -> None:
    kernel = kernels.elementwise(language, "y[i] + x[i]")
    x, y = filled(device, 1), filled(device, 0)
    first = device.load(kernel)
    device.run([Launch(first, (x, y))])
    device.unload(first)
    second = device.load(kernel)
    assert second != first
    device.run([Launch(second, (x, y))])
    np.testing.assert_array_equal(floats(device, y), np.float32(2))
    with pytest.raises(ValueError, match=f"kernel {first}"):
        device.run([Launch(first, (x, y))])


def test_mistakes_of_the_caller_are_named(device: Device, implementation: Implementation) -> None:
    kernel = device.load(kernels.elementwise(implementation.language or "c", "x[i]"))
    x, y = filled(device, 1), filled(device, 2)
    freed = device.allocate(8)
    device.free(freed)
    for bad in (freed, 10**9):
        for call in (
            lambda b=bad: device.write(b, b"1234"),
            lambda b=bad: device.read(b, 4),
            lambda b=bad: device.free(b),
            lambda b=bad: device.run([Launch(kernel, (x, b))]),
        ):
            with pytest.raises(ValueError, match=f"buffer {bad}"):
                call()
    with pytest.raises(ValueError, match="kernel 1000000"):
        device.run([Launch(10**6, (x, y))])
    with pytest.raises(ValueError, match="kernel 1000000"):
        device.unload(10**6)
    with pytest.raises(ValueError, match="takes 2 buffers"):
        device.run([Launch(kernel, (x,))])
    for offset, nbytes in ((NBYTES, 1), (-4, 4), (0, NBYTES + 1)):
        with pytest.raises(ValueError, match="outside"):
            device.write(x, bytes(nbytes), offset)
        with pytest.raises(ValueError, match="outside"):
            device.read(x, nbytes, offset)
    assert device.read(x, 4) == np.float32(1).tobytes()


def test_closing_twice(device: Device, open_one: Callable[[], Device]) -> None:
    device.close()  # the last test of a device: one at a hub is had once
    device = open_one()
    buffer = filled(device, 1)
    device.close()
    device.close()
    for call in (lambda: device.allocate(4), lambda: device.run([]), device.synchronize, lambda: device.read(buffer, 4)):
        with pytest.raises(ValueError):
            call()
