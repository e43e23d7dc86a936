"""An engine of another package as a device: operators in `tapml.languages.body`, which it compiles and runs as a whole.

A launch hands the engine its buffers as arrays that cannot be written, and copies what comes out to the buffers of the outputs.
What the engine raises, or gives in another shape or dtype, is a DeviceError of the stage "backend", and what it says that it does
not support one of the stage "convert". No agent offers this device: packages of this machine are for texts of this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapml import strict
from tapml.devices.cpu import memory_bytes
from tapml.devices.handles import Handles, check_binding, check_language, check_range
from tapml.devices.host_memory import HostMemory
from tapml.devices.interface import DeviceInfo, Launch
from tapml.errors import DeviceError, DeviceLost, OutOfMemory, TapmlError, UnavailableError, first_line
from tapml.kernels import Kernel
from tapml.limits import Limits
from tapml.operators.engine import Function, OperatorEngine
from tapml.operators.to_json import body_of
from tapml.runtime.buffers import as_bytes
from tapml.targets.packaged import engine_class, entry_of
from tapml.tensors import NUMPY, HostArray, TensorSpec, spec_of

STAGE = "backend"


@dataclass(frozen=True)
class _Loaded:
    entry: str
    access: tuple[str, ...]
    run: Function
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class EngineDevice(HostMemory):
    """Implements `tapml.devices.interface.Device` over an engine that is there. `driver` is for the device's description."""

    def __init__(self, engine: OperatorEngine, platform: str, language: str, driver: str) -> None:
        super().__init__()
        self._engine, self._platform, self._language = engine, platform, language
        self._storage: dict[str, str] = dict(getattr(engine, "storage", {}))
        memory = memory_bytes()
        self._info = DeviceInfo(
            platform=platform, name=str(engine.device), driver=driver, software=False,
            limits=Limits(max_buffer_bytes=memory, max_binding_bytes=memory),
        )
        self._kernels: Handles[_Loaded] = Handles("kernel")

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def load(self, kernel: Kernel) -> int:
        self._check_open()
        check_language(self._platform, self._language, kernel)
        try:
            body = body_of(kernel.source)
        except strict.UNREADABLE as error:
            raise DeviceError(STAGE, f"the text of {kernel.entry} is no operator: {first_line(error)}") from error
        inputs, outputs = self._stored(body.inputs), self._stored(body.output_specs)
        if len(inputs) + len(outputs) != len(kernel.access):
            counts = f"{len(inputs)} inputs and {len(outputs)} outputs"
            raise DeviceError(STAGE, f"{kernel.entry} has {counts}, and is launched with {len(kernel.access)} buffers")
        run = self._asked(kernel.entry, "compiled", lambda: self._engine.compile(body))
        if not callable(run):
            raise DeviceError(STAGE, f"compile gives {type(run).__name__} for {kernel.entry}, which cannot be called")
        return self._kernels.add(_Loaded(kernel.entry, kernel.access, run, inputs, outputs))

    def _stored(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(spec.shape, self._storage.get(spec.dtype, spec.dtype)) for spec in specs)

    def _asked(self, entry: str, what: str, work: Callable[[], Any]) -> Any:
        """What the engine gives. Errors that are TapML's own are what the engine means by them."""
        try:
            return work()
        except MemoryError as error:
            raise OutOfMemory(f"{entry}: {first_line(error)}") from error
        except (DeviceError, DeviceLost):
            raise
        except Exception as error:
            raise DeviceError(STAGE, f"{entry} cannot be {what}: {first_line(error)}") from error

    def unload(self, kernel: int) -> None:
        self._kernels.pop(kernel)

    def run(self, batch: Sequence[Launch]) -> None:
        self._check_open()
        for launch in batch:
            loaded = self._kernels[launch.kernel]
            check_binding(loaded.entry, loaded.access, launch.buffers)
            given = [self._array(*pair) for pair in zip(launch.buffers, loaded.inputs, strict=False)]
            made = self._asked(loaded.entry, "run", lambda run=loaded.run, given=given: list(run(given)))  # type: ignore[misc]
            if len(made) != len(loaded.outputs):
                raise DeviceError(STAGE, f"{loaded.entry} gives {len(made)} outputs, not {len(loaded.outputs)}")
            results = [_checked(loaded.entry, k, *pair) for k, pair in enumerate(zip(made, loaded.outputs, strict=True))]
            for buffer, array in zip(launch.buffers[len(given) :], results, strict=True):
                self.write(buffer, as_bytes(np.ascontiguousarray(array)))

    def _array(self, buffer: int, spec: TensorSpec) -> HostArray:
        memory = self._buffers[buffer].bytes
        check_range(len(memory), 0, spec.nbytes)
        array = memory[: spec.nbytes].view(NUMPY[spec.dtype]).reshape(spec.shape)
        array.flags.writeable = False
        return array

    def close(self) -> None:
        super().close()
        self._kernels.clear()


class PackagedDevice(EngineDevice):
    """The engine that a package offers as the target `platform`. `device` holds the values of the user's options, in the order in
    which the engine lists them, between them a plus. Raises UnavailableError when the package or its engine cannot be used."""

    def __init__(self, platform: str, language: str, device: str | None) -> None:
        entry = entry_of(platform)
        if entry is None:
            raise UnavailableError(f"{platform} is not available: no package here offers it")
        made = engine_class(entry)
        names = list(getattr(made, "options", {}))
        values = (device or "").split("+") if len(names) > 1 else [device or ""]
        options = {name: value for name, value in zip(names, values, strict=False) if value}
        try:
            engine = made(options)
            driver = f"{engine.version}, by {entry.package} {entry.version}"
            super().__init__(engine, platform, language, driver)
        except TapmlError:
            raise
        except ImportError as error:
            raise UnavailableError(f"{platform} is not available: {error}. The {entry} needs it.") from error
        except Exception as error:
            raise UnavailableError(f"{platform} is not available: the {entry} fails at opening: {first_line(error)}") from error


def _checked(entry: str, number: int, array: HostArray, spec: TensorSpec) -> HostArray:
    array = np.asarray(array)
    try:
        found = spec_of(array)
    except ValueError as error:
        raise DeviceError(STAGE, f"output {number} of {entry} is no array of numbers: {error}") from error
    if found != spec:
        raise DeviceError(STAGE, f"output {number} of {entry} is {found}, not {spec}")
    return array
