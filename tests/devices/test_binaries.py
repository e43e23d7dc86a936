"""What PoCL made of a text is handed back to it by the next process, and only where this installation put it there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tapml.devices.binaries import Binaries
from tapml.devices.child import ChildDevice
from tapml.devices.interface import Launch
from tapml.devices.opencl import POCL
from tapml.kernels import Kernel
from tests.devices.kernels import COUNT, NBYTES, elementwise

Need = Callable[[str], str]

PLUS_ONE, TIMES_TEN = elementwise("opencl-c", "x[i] + 1"), elementwise("opencl-c", "x[i] * 10")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: Need) -> Path:
    """Where what the driver made is kept; there is nothing yet."""
    need("opencl")
    monkeypatch.setenv("TAPML_CACHE", str(tmp_path))
    device = ChildDevice("opencl")
    driver = device.info.driver
    device.close()
    if not driver.startswith(POCL):
        pytest.skip(f"what PoCL compiled is kept; the driver here is {driver}")
    return tmp_path / "opencl"


def given(kernel: Kernel) -> list[float]:
    """What it makes of 1, 2, 3 in a process of its own."""
    device = ChildDevice("opencl")
    try:
        x, y = device.allocate(NBYTES), device.allocate(NBYTES)
        device.write(x, np.arange(1, COUNT + 1, dtype=np.float32).tobytes())
        device.run([Launch(device.load(kernel), (x, y))])
        return np.frombuffer(device.read(y, NBYTES), np.float32)[:3].tolist()
    finally:
        device.close()


def test_the_next_process_gets_what_the_driver_made(kept: Path) -> None:
    """Shown by what it then computes: what is kept under one text's name was made of another."""
    assert given(PLUS_ONE) == [2, 3, 4]
    [mine] = kept.iterdir()
    assert given(TIMES_TEN) == [10, 20, 30]
    [other] = set(kept.iterdir()) - {mine}
    folder = Binaries("opencl")
    made = folder.get(other.name)
    assert made is not None
    folder.put(mine.name, made)
    assert given(PLUS_ONE) == [10, 20, 30]


def test_what_others_put_there_is_not_loaded(kept: Path) -> None:
    assert given(PLUS_ONE) == [2, 3, 4]
    [mine] = kept.iterdir()
    assert given(TIMES_TEN) == [10, 20, 30]
    [other] = set(kept.iterdir()) - {mine}
    for content in (other.read_bytes(), mine.read_bytes()[:-1], b""):  # sealed for another name, cut, empty
        mine.write_bytes(content)
        assert given(PLUS_ONE) == [2, 3, 4]


def test_what_the_driver_does_not_take_back_is_compiled_again(kept: Path) -> None:
    assert given(PLUS_ONE) == [2, 3, 4]
    [mine] = kept.iterdir()
    Binaries("opencl").put(mine.name, b"no program")
    assert given(PLUS_ONE) == [2, 3, 4]


def test_a_folder_that_takes_no_file_costs_nothing_but_time(kept: Path) -> None:
    kept.write_text("a file where the folder would be")
    assert given(PLUS_ONE) == [2, 3, 4]
