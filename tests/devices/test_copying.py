"""The kernel that copies memory copies, in each language that something here runs, and one that does not copy gives no speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tapml.devices.copying import CopySpeed, copy_kernel, copy_speed
from tapml.devices.interface import Launch
from tapml.devices.null import NullDevice
from tapml.devices.open import open_here
from tapml.errors import DeviceError, NotSupported
from tapml.languages import LANGUAGES
from tapml.runtime.buffers import as_bytes
from tapml.targets.parse import parse

TARGETS = ("cpu", "opencl", "vulkan", "webgpu")
NBYTES = 2**20


@pytest.mark.parametrize("target", TARGETS)
def test_every_byte_is_copied(target: str, need: Callable[[str], str]) -> None:
    device, language = open_here(need(target), None), parse(target).target.language
    try:
        data = np.random.default_rng(1).integers(256, size=NBYTES, dtype=np.uint8)
        x, y = device.allocate(NBYTES), device.allocate(NBYTES)
        device.write(x, as_bytes(data))
        device.run([Launch(device.load(copy_kernel(language, NBYTES)), (x, y))])
        assert device.read(y, NBYTES) == data.tobytes()
        found = copy_speed(device, language, NBYTES, repeat=2, seconds=1e-4)
        assert found.nbytes == NBYTES and len(found.seconds) == 2 and found.copies >= 2
    finally:
        device.close()


def test_bytes_count_twice_and_the_fastest_batch_counts() -> None:
    assert CopySpeed(1000, 4, (0.5, 0.25, 1.0)).bytes_per_second == 2 * 1000 * 4 / 0.25


def test_a_kernel_that_does_not_copy_gives_no_speed(need: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_here(need("cpu"), None)
    own = LANGUAGES["c"]
    assert own.copy is not None
    idle = own.copy(16).replace("y[i] = x[i]", "y[i] = y[i]")
    monkeypatch.setitem(LANGUAGES, "c", replace(own, copy=lambda words: idle))
    with pytest.raises(DeviceError, match="did not copy"):
        copy_speed(device, "c", NBYTES)
    device.close()


def test_a_language_without_such_a_kernel() -> None:
    with pytest.raises(NotSupported, match="no kernel in no language that copies memory"):
        copy_speed(NullDevice(), "null")
