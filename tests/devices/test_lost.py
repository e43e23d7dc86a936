"""A device that is gone says so at whatever it is asked next, so that it is opened anew and no kernel is blamed."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

from tapml.devices.faulty import Fault, FaultyDevice
from tapml.devices.gpu import GpuDevice
from tapml.devices.null import NullDevice
from tapml.devices.server import Server
from tapml.errors import DeviceLost, TargetError
from tapml.migrate.workbench import Workbench
from tests.conftest import MakeRun
from tests.devices import kernels


def test_a_gpu_that_is_lost_does_not_refuse_kernels(need: Callable[[str], str]) -> None:
    need("vulkan")
    device = GpuDevice("vulkan")
    device._device.destroy()
    with pytest.raises(DeviceLost, match="lost"):
        device.load(kernels.elementwise("wgsl", "x[i] + 1.0"))


@pytest.mark.parametrize("request_", [["allocate", 2, 4], ["load", 1, kernels.PLUS_ONE.to_json()], ["read", 1, 0, 4]])
def test_a_loss_that_nobody_waited_for_is_the_next_reply(request_: list[object]) -> None:
    server = Server(FaultyDevice(NullDevice(), [Fault("lose", "write")]))
    assert server.answer(["allocate", 1, 4], bytearray()) == (["ok"], b"")
    assert server.answer(["write", 1, 0], bytearray(4)) is None
    answer = server.answer(request_, bytearray())
    assert answer is not None
    assert answer[0][:2] == ["error", "lost"]


def test_a_bench_that_cannot_be_made_leaves_no_device_behind(make_run: MakeRun, need: Callable[[str], str]) -> None:
    need("cpu")
    run = make_run("encoder")
    before = psutil.Process().children()
    with pytest.raises(TargetError, match="float16"):
        Workbench.on(run, "cpu:f16=1")
    assert psutil.Process().children() == before
