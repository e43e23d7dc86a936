"""A browser tab passes the suite that every implementation of the runtime interface passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tapml.devices.interface import Device
from tapml.remote.open import open_device
from tests.devices import test_conformance
from tests.remote.chromium import Chromium
from tests.remote.processes import running_hub

# Chromium's software driver takes a minute to give out, and take back, 64 GB.
TOO_SLOW = {"test_freed_memory_is_there_again"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def open_one(tmp_path_factory: pytest.TempPathFactory, browser: Chromium) -> Iterator[Callable[[], Device]]:
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        tab = browser.open(hub.url)
        browser.wait_ready(tab)
        yield lambda: open_device("webgpu", f"any@{hub.url}", deadline=120)


@pytest.fixture(scope="module")
def implementation() -> test_conformance.Implementation:
    return test_conformance.Implementation(open_device, "wgsl")


device = test_conformance.device
language = test_conformance.language


def test_freed_memory_is_given_back(device: Device, browser: Chromium) -> None:
    """Chromium does that only when something is submitted, so it must be, where buffers come and go without any launch."""
    for _ in range(8):
        device.free(device.allocate(2**28))
    device.synchronize()
    assert browser.gpu_process().memory_info().rss < 2**30


# After the one above, since the last of them closes the device.
for _name, _test in vars(test_conformance).items():
    if _name.startswith("test_") and _name not in TOO_SLOW:
        globals()[_name] = _test
