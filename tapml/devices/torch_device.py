"""PyTorch as a device: texts of `tapml.languages.pytorch`, run as they are or compiled by `torch.compile`.

A kernel is a module of Python with one function of tensors; a launch views its buffers as the tensors that the text says, calls
it, and copies what it returns to the buffers of the outputs. Everything that PyTorch refuses or gives in another shape is a
DeviceError of the stage "backend", since its own stages cannot be told apart from outside. The text is executed: this device is
for texts of this machine, and no agent offers it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapml.devices.cpu import memory_bytes, processor_name
from tapml.devices.handles import Handles, check_binding, check_range
from tapml.devices.interface import DeviceInfo, Launch, ReadsInTurn
from tapml.errors import DeviceError, DeviceLost, OutOfMemory, TargetError, UnavailableError, first_line, nearest
from tapml.kernels import Kernel
from tapml.limits import Limits
from tapml.runtime.buffers import padded
from tapml.tensors import Layout

if TYPE_CHECKING:
    import torch

STAGE = "backend"

_Input = tuple[tuple[int, ...], Any, tuple[int, ...] | None, int]
_Output = tuple[tuple[int, ...], Any]


@dataclass(frozen=True)
class _Loaded:
    entry: str
    access: tuple[str, ...]
    function: Callable[..., Any]
    inputs: Sequence[_Input]
    outputs: Sequence[_Output]


class TorchDevice(ReadsInTurn):
    """Implements `tapml.devices.interface.Device`. `device` is "PLACE+COMPILER": what PyTorch calls the place ("" is the
    processor), and one of `torch.compile`'s backends ("": not compiled). Raises UnavailableError when PyTorch or the place is not
    there, TargetError for a name that PyTorch does not know."""

    def __init__(self, platform: str, language: str, device: str | None) -> None:
        try:
            import torch
        except ImportError as error:
            raise UnavailableError(f"{platform} is not available: {error}. Try: pip install 'tapml[source]'") from error
        self._torch = torch
        place, _, self._compiler = (device or "").partition("+")
        self._place = _place(torch, platform, place or "cpu")
        if self._compiler and self._compiler not in torch._dynamo.list_backends(None):
            usual = torch._dynamo.list_backends()
            raise TargetError(f"torch.compile has no backend {self._compiler!r}. {nearest(self._compiler, usual)}")
        memory = memory_bytes()
        if self._place.type == "cuda":
            memory = int(torch.cuda.get_device_properties(self._place).total_memory)
        self._info = DeviceInfo(
            platform=platform, name=_name(torch, self._place),
            driver=f"PyTorch {torch.__version__}" + (f", compiled by {self._compiler}" if self._compiler else ""), software=False,
            limits=Limits(max_buffer_bytes=memory, max_binding_bytes=memory),
            features=("float64",) * _has(torch, self._place, torch.float64) + _accelerators(torch),
        )
        self._buffers: Handles[torch.Tensor] = Handles("buffer")
        self._kernels: Handles[_Loaded] = Handles("kernel")
        self._closed = False

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def allocate(self, nbytes: int) -> int:
        self._check_open()
        size = padded(nbytes)
        try:
            return self._buffers.add(self._torch.empty(size, dtype=self._torch.uint8, device=self._place))
        except (RuntimeError, MemoryError) as error:
            raise OutOfMemory(f"could not allocate {size} bytes: {first_line(error)}") from error

    def free(self, buffer: int) -> None:
        self._buffers.pop(buffer)

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        tensor = self._buffers[buffer]
        view = memoryview(data).cast("B")
        check_range(len(tensor), offset, view.nbytes)
        if view.nbytes:
            tensor[offset : offset + view.nbytes] = self._torch.from_numpy(np.frombuffer(view, np.uint8).copy())

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        tensor = self._buffers[buffer]
        check_range(len(tensor), offset, nbytes)
        data: bytes = tensor[offset : offset + nbytes].cpu().numpy().tobytes()
        return data

    def load(self, kernel: Kernel) -> int:
        self._check_open()
        module: dict[str, Any] = {}
        try:
            exec(compile(kernel.source, f"<{kernel.entry}>", "exec"), module)
            function, inputs, outputs = module[kernel.entry], module["inputs"], module["outputs"]
        except Exception as error:
            raise DeviceError(STAGE, f"the text of {kernel.entry} fails with {first_line(error)}") from error
        if len(inputs) + len(outputs) != len(kernel.access):
            counts = f"{len(inputs)} inputs and {len(outputs)} outputs"
            raise DeviceError(STAGE, f"{kernel.entry} has {counts}, and is launched with {len(kernel.access)} buffers")
        if self._compiler:
            function = self._compiled(kernel.entry, function, inputs)
        return self._kernels.add(_Loaded(kernel.entry, kernel.access, function, inputs, outputs))

    def _compiled(self, entry: str, function: Callable[..., Any], inputs: Sequence[_Input]) -> Callable[..., Any]:
        """The function compiled, and tried on zeros: what the compiler refuses is known then. What the function itself makes of
        zeros says nothing."""
        torch = self._torch
        # Every operator is a program of its own. Some versions count them together, and compile no more than eight.
        for limit in ("recompile_limit", "accumulated_recompile_limit"):
            if hasattr(torch._dynamo.config, limit):
                setattr(torch._dynamo.config, limit, 1 << 20)
        compiled: Callable[..., Any] = torch.compile(function, backend=self._compiler, fullgraph=True, dynamic=False)
        zeros = [self._tensor(torch.zeros(padded(_nbytes(i)), dtype=torch.uint8, device=self._place), i) for i in inputs]
        try:
            with torch.inference_mode():
                compiled(*zeros)
        except Exception as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch")):
                raise DeviceError(STAGE, f"{self._compiler} does not compile {entry}: {_said(error)}") from error
        return compiled

    def unload(self, kernel: int) -> None:
        self._kernels.pop(kernel)

    def run(self, batch: Sequence[Launch]) -> None:
        self._check_open()
        for launch in batch:
            kernel = self._kernels[launch.kernel]
            check_binding(kernel.entry, kernel.access, launch.buffers)
            given = [self._tensor(self._buffers[b], i) for b, i in zip(launch.buffers, kernel.inputs, strict=False)]
            made = self._carried_out(kernel, given)
            for buffer, (shape, dtype), tensor in zip(launch.buffers[len(given) :], kernel.outputs, made, strict=True):
                if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                    raise DeviceError(
                        STAGE, f"{kernel.entry} gives {tensor.dtype} of shape {tuple(tensor.shape)}, not {dtype} of shape {shape}"
                    )
                self._tensor(self._buffers[buffer], (shape, dtype, None, 0)).copy_(tensor)

    def _carried_out(self, kernel: _Loaded, given: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        torch = self._torch
        try:
            with torch.inference_mode():
                made = kernel.function(*given)
                self._wait()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"{kernel.entry}: {first_line(error)}") from error
        except Exception as error:
            if self._place.type == "cuda" and "CUDA error" in str(error):
                raise DeviceLost(f"{kernel.entry} left the device in an error: {first_line(error)}") from error
            raise DeviceError(STAGE, f"{kernel.entry} fails with {_said(error)}") from error
        if not isinstance(made, tuple) or len(made) != len(kernel.outputs):
            raise DeviceError(STAGE, f"{kernel.entry} does not give {len(kernel.outputs)} tensors")
        return made

    def _tensor(self, buffer: torch.Tensor, what: _Input) -> torch.Tensor:
        """The buffer as the tensor that a text says."""
        shape, dtype, strides, offset = what
        flat = buffer[: _nbytes(what)].view(dtype)
        return flat.view(shape) if strides is None else flat.as_strided(shape, strides, offset)

    def _wait(self) -> None:
        if self._place.type != "cpu":
            self._torch.accelerator.synchronize()

    def synchronize(self) -> None:
        self._check_open()
        self._wait()

    def close(self) -> None:
        self._closed = True
        self._buffers.clear()
        self._kernels.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the device is closed")


def _place(torch: Any, platform: str, text: str) -> Any:
    try:
        place = torch.device(text)
    except RuntimeError as error:
        raise TargetError(f"PyTorch knows no device {text!r}. Give one such as cuda:1 or mps ({first_line(error)}).") from error
    if place.type == "meta":
        raise TargetError("PyTorch's device meta computes nothing. Give cpu, cuda or mps.")
    try:
        torch.zeros(1, dtype=torch.float32, device=place).add(1).cpu()
    except Exception as error:
        raise UnavailableError(f"{platform}:device={text} is not available: {first_line(error)}.") from error
    return place


def _has(torch: Any, place: Any, dtype: Any) -> bool:
    try:
        torch.zeros(1, dtype=dtype, device=place)
    except (RuntimeError, TypeError):
        return False
    return True


def _accelerators(torch: Any) -> tuple[str, ...]:
    """What PyTorch calls the devices here, besides the processor."""
    if not torch.accelerator.is_available():
        return ()
    kind = torch.accelerator.current_accelerator().type
    return (kind, *(f"{kind}:{number}" for number in range(1, torch.accelerator.device_count())))


def _name(torch: Any, place: Any) -> str:
    if place.type == "cuda":
        return str(torch.cuda.get_device_name(place))
    return processor_name() if place.type == "cpu" else str(place)


def _nbytes(what: _Input) -> int:
    shape, dtype, strides, offset = what
    count = math.prod(shape) if strides is None else Layout(strides, offset).elements(shape)
    return int(count * dtype.itemsize)


def _said(error: Exception) -> str:
    """The class of an error and what it says, without the advice on debugging that follows."""
    text = str(error).partition("\n\nSet TORCHDYNAMO_VERBOSE")[0].strip()
    return f"{type(error).__name__}: {text[:2000]}"
