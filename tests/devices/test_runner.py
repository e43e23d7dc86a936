"""Programs on a device, the buffer pool, and the faults that can be injected."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from tapml.devices.faulty import Fault, FaultyDevice
from tapml.devices.interface import Device, Launch
from tapml.devices.null import NullDevice
from tapml.devices.open import open_here
from tapml.devices.runner import ProgramRunner
from tapml.errors import DeviceError, DeviceLost, TargetError, UnavailableError, UsageError
from tapml.kernels import Argument, Program, Step
from tapml.remote.open import open_device
from tapml.runtime.buffers import BufferPool, WeightCache, as_bytes
from tapml.tensors import TensorSpec
from tests.devices import kernels
from tests.devices.kernels import COUNT, NBYTES

F32 = TensorSpec((4, 25), "float32")
X, Y, S = Argument("input", 0), Argument("output", 0), Argument("scratch", 0)


def program(first: str, second: str) -> Program:
    """input 0 -first-> scratch 0 -second-> output 0; output 1 is input 1, an integer, unchanged."""
    both = (kernels.elementwise("opencl-c", first), kernels.elementwise("opencl-c", second))
    integers = TensorSpec((2, 3), "int32")
    return Program(
        both, (Step(0, (X, S)), Step(1, (S, Y))), (F32, integers), (F32, integers), (NBYTES,), "by hand", forwards=((1, 1),)
    )


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    try:
        device = open_here("opencl", None)
    except UnavailableError as error:
        pytest.skip(f"not run: {error}")
    yield device
    device.close()


def test_run_once_goes_through_scratch_and_converts(device: Device) -> None:
    runner = ProgramRunner(device)
    x = np.arange(COUNT, dtype=np.float16).reshape(4, 25)
    indices = np.array([[1, 2, 3], [-4, 5, 2**31 - 1]], np.int64)
    y, same = runner.run_once(program("x[i] + 1", "x[i] * 2"), [x, indices])
    np.testing.assert_array_equal(y, (x.astype(np.float32) + 1) * 2)
    assert y.shape == (4, 25) and y.dtype == np.float32
    np.testing.assert_array_equal(same, indices)
    assert same.dtype == np.int32
    assert runner.pool.in_use == 0


def test_run_once_takes_buffers_that_are_there_already(device: Device) -> None:
    runner = ProgramRunner(device)
    weights = WeightCache(runner.pool)
    x = np.full((4, 25), 3, ml_dtypes.bfloat16)
    reads = []
    for _ in range(2):
        buffer = weights.get("digest", "float32", lambda: reads.append(1) or x)
        y, _ = runner.run_once(program("x[i]", "x[i] * 2"), [buffer, np.zeros((2, 3), np.int32)])
        np.testing.assert_array_equal(y, np.float32(6))
    assert len(reads) == 1 and weights.bytes == NBYTES
    weights.get("digest", "float16", lambda: x)
    assert weights.bytes == NBYTES + NBYTES // 2
    weights.clear()
    assert weights.bytes == 0 and runner.pool.in_use == 0


def test_poison_shows_what_is_not_written(device: Device) -> None:
    half = program("x[i]", "x[i]")
    half = half.with_sources((half.kernels[0].source, half.kernels[1].source.replace(f"i < {COUNT}", f"i < {COUNT // 2}")))
    inputs = [np.ones((4, 25), np.float32), np.zeros((2, 3), np.int32)]
    runner = ProgramRunner(device)
    runner.run_once(program("x[i]", "x[i]"), inputs)  # leaves plausible numbers in the pool's buffers
    y = runner.run_once(half, inputs, poison=True)[0].reshape(-1)
    assert np.isnan(y[COUNT // 2 :]).all() and (y[: COUNT // 2] == 1).all()


def test_wrong_inputs_are_refused(device: Device) -> None:
    runner = ProgramRunner(device)
    with pytest.raises(ValueError, match="2 inputs; 1 were given"):
        runner.run_once(program("x[i]", "x[i]"), [np.ones((4, 25), np.float32)])
    with pytest.raises(ValueError, match=r"\(25, 4\) was given for float32\[4, 25\]"):
        runner.run_once(program("x[i]", "x[i]"), [np.ones((25, 4), np.float32), np.zeros((2, 3), np.int32)])
    assert runner.pool.in_use == 0


def test_kernels_are_loaded_once() -> None:
    device = NullDevice()
    runner = ProgramRunner(device)
    first, second = program("x[i]", "x[i] + 1"), program("x[i] + 1", "x[i] + 2")
    buffers = [device.allocate(NBYTES) for _ in range(4)]
    for each in (first, second, first):
        launches = runner.launches(each, buffers[:2], buffers[2:])
        assert [len(launch.buffers) for launch in launches] == [2, 2]
    assert len(device.loaded) == 3
    runner.unload(first)
    runner.launches(second, buffers[:2], buffers[2:])
    assert len(device.loaded) == 4
    assert len(device.launched) == 0


def test_programs_share_scratch() -> None:
    runner = ProgramRunner(NullDevice())
    for k in range(5):
        runner.launches(program("x[i]", f"x[i] + {k}"), [1, 2], [3, 4])
    assert runner.pool.held == NBYTES


def test_a_failed_run_gives_its_buffers_back() -> None:
    inputs = [np.ones((4, 25), np.float32), np.zeros((2, 3), np.int32)]
    runner = ProgramRunner(FaultyDevice(NullDevice(), [Fault("refuse", "run", nth=1)]))
    with pytest.raises(DeviceError):
        runner.run_once(program("x[i]", "x[i]"), inputs)
    assert runner.pool.in_use == 0
    runner.run_once(program("x[i]", "x[i]"), inputs)


def test_a_pool_uses_buffers_again_and_counts() -> None:
    pool = BufferPool(NullDevice())
    a, b = pool.allocate(1000), pool.allocate(1001)
    assert (pool.in_use, pool.held, pool.peak) == (2004, 2004, 2004)
    pool.release(a)
    assert pool.allocate(999) == a
    pool.release(a)
    pool.release(b)
    assert (pool.in_use, pool.held) == (0, 2004)
    assert pool.trim() == 2004
    assert (pool.held, pool.peak) == (0, 2004)
    with pytest.raises(ValueError, match="not in use"):
        pool.release(a)


def test_a_pool_without_room_frees_what_is_idle_first() -> None:
    device = FaultyDevice(NullDevice(), [Fault("memory", "allocate", nth=2)])
    pool = BufferPool(device)
    pool.release(pool.allocate(100))
    assert pool.allocate(200) and pool.held == 200
    empty = BufferPool(FaultyDevice(NullDevice(), [Fault("memory", "allocate")]))
    with pytest.raises(DeviceError, match="out of memory"):
        empty.allocate(100)


def test_bytes_of_arrays_of_any_dtype() -> None:
    for array in (np.ones((2, 2), ml_dtypes.bfloat16), np.ones((), np.float32), np.zeros((0, 3), bool), np.ones(3, np.int64)):
        assert bytes(as_bytes(array)) == array.tobytes()


def test_faults_strike_when_they_are_due() -> None:
    device = FaultyDevice(
        NullDevice(),
        [Fault("corrupt", "read", nth=2), Fault("refuse", "load", entry="bad"), Fault("lose", "synchronize", nth=2)],
    )
    buffer = device.allocate(4)
    device.write(buffer, b"\0\1\2\3")
    assert [device.read(buffer, 4) for _ in range(3)] == [b"\0\1\2\3", b"\xff\xfe\xfd\xfc", b"\0\1\2\3"]
    good = device.load(kernels.elementwise("c", "x[i]"))
    with pytest.raises(DeviceError, match="kernel bad") as caught:
        device.load(kernels.elementwise("c", "x[i]", "bad"))
    assert caught.value.stage == "driver"
    device.synchronize()
    with pytest.raises(DeviceLost, match="synchronize number 2"):
        device.synchronize()
    for call in (lambda: device.read(buffer, 4), lambda: device.run([Launch(good, (buffer, buffer))])):
        with pytest.raises(DeviceLost):
            call()
    device.close()


def test_open_device_says_what_it_cannot_do() -> None:
    for name in ("cuda", "metal", "rocm"):
        with pytest.raises(UnavailableError, match="this version cannot run them"):
            open_device(name)
    with pytest.raises(TargetError, match=r"no device 'phone' here\. Give --device local, or NAME@URL"):
        open_device("opencl", "phone")
    for wrong, why in (
        ("phone@", "not the address of a hub"),
        ("phone@localhost:1", "not the address of a hub"),
        ("phone@http://localhost:1", "has no token"),
        ("@http://localhost:1/?token=abc", "is not NAME@URL"),
        ("any,phone@http://localhost:1/?token=abc", "cannot be combined"),
        ("all@http://localhost:1/?token=abc", "several devices"),
        ("phone,tablet@http://localhost:1/?token=abc", "several devices"),
    ):
        with pytest.raises(UsageError, match=why) as caught:
            open_device("opencl", wrong)
        assert "abc" not in str(caught.value)
    with pytest.raises(TargetError, match="Did you mean opencl"):
        open_device("open-cl")
    open_device("null").close()


def test_a_device_is_picked_by_index_or_name() -> None:
    try:
        first = open_device("opencl:device=0", in_process=True)
    except UnavailableError as error:
        pytest.skip(f"not run: {error}")
    name = first.info.name
    first.close()
    again = open_device(f"opencl:device={name[:7].upper()}", in_process=True)
    assert again.info.name == name
    again.close()
    with pytest.raises(TargetError, match=r"no device with 'no such thing' in the name\. It has: 0 ="):
        open_device("opencl:device=no such thing", in_process=True)
