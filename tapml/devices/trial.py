"""Whether a device really computes: one small kernel by hand in each language, run and checked.

That a driver loads and lists a device says little. `try_device` uploads, launches twice in one batch so that the second launch
reads what the first wrote, downloads and compares; every number must be exactly right.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tapml.devices.child import ChildDevice
from tapml.devices.interface import Device, DeviceInfo, Launch
from tapml.devices.known import WITHOUT_RUNTIME
from tapml.devices.open import open_local
from tapml.devices.sandbox import Sandbox
from tapml.errors import UnavailableError
from tapml.kernels import Kernel
from tapml.languages import LANGUAGES
from tapml.languages.language import TRIAL, TRIAL_BLOCK, TRIAL_COUNT
from tapml.runtime.buffers import as_bytes
from tapml.targets.parse import TargetChoice, parse

SECONDS = 60.0


def trial_kernel(language: str) -> Kernel:
    """y = 2 x + 1 over `TRIAL_COUNT` float32. ValueError for a language that no device here takes."""
    known = LANGUAGES[language]
    if not known.trial:
        raise ValueError(f"no trial kernel in {language}")
    grid, block = (-(-TRIAL_COUNT // TRIAL_BLOCK), TRIAL_BLOCK) if known.threads else (1, 1)
    return Kernel(language, TRIAL, known.trial, ("read", "read_write"), (grid, 1, 1), (block, 1, 1), known.trial_uniform)


@dataclass(frozen=True)
class Trial:
    """`ready` is True only when the kernel ran and every number was right; `reason` says what happened otherwise. `info` is there
    as soon as the device could be opened. `seconds`: to open it, compile and run."""

    target: str
    ready: bool
    info: DeviceInfo | None
    reason: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "info": None if self.info is None else self.info.to_json()}


def try_target(target: str | TargetChoice, seconds: float = SECONDS, sandbox: Sandbox | None = None) -> Trial:
    """Opens the target's device in a child process, confined where a `sandbox` is given, and tries it, each step within
    `seconds`. Raises TargetError for a name that does not exist, nothing else."""
    start = time.monotonic()
    try:
        choice = parse(target) if isinstance(target, str) else target
    except UnavailableError as error:
        return Trial(str(target), False, None, str(error), time.monotonic() - start)

    def outcome(ready: bool, info: DeviceInfo | None, reason: str) -> Trial:
        return Trial(str(choice), ready, info, reason, time.monotonic() - start)

    try:
        if choice.name in WITHOUT_RUNTIME:
            open_local(choice)  # raises, with the reason
        device = ChildDevice(choice.name, choice.opened_with, deadline=seconds, open_seconds=seconds, sandbox=sandbox)
    except UnavailableError as error:
        return outcome(False, None, str(error))
    try:
        wrong = try_device(device, choice.target.language)
    except UnavailableError as error:
        return outcome(False, device.info, f"The device opened, but a small kernel failed on it: {error}")
    finally:
        device.close()
    return outcome(not wrong, device.info, wrong)


def try_device(device: Device, language: str) -> str:
    """Runs the trial kernel; returns "" when every number is right, else what is wrong. Raises DeviceError and DeviceLost."""
    x = np.arange(TRIAL_COUNT, dtype=np.float32) - 500.0
    buffers = [device.allocate(x.nbytes) for _ in range(3)]
    kernel = device.load(trial_kernel(language))
    device.write(buffers[0], as_bytes(x))
    device.run([Launch(kernel, (buffers[0], buffers[1])), Launch(kernel, (buffers[1], buffers[2]))])
    y = np.frombuffer(device.read(buffers[2], x.nbytes), np.float32)
    device.unload(kernel)
    for buffer in buffers:
        device.free(buffer)
    expected = 4.0 * x + 3.0
    wrong = np.flatnonzero(y != expected)
    if not wrong.size:
        return ""
    at = int(wrong[0])
    return f"A small kernel ran, but {wrong.size} of {TRIAL_COUNT} numbers are wrong: number {at} is {y[at]}, not {expected[at]}."
