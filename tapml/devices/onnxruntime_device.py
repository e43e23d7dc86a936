"""ONNX Runtime as a device: models in `tapml.languages.onnx`, one session each, on the execution provider that was asked for.

A launch binds buffers to the model's inputs and outputs, so that nothing is copied where the provider computes in this memory.
What is a constant of the model is in a buffer too: there is a session for each content, made at the first launch with it and kept
as long as the content stays.
Where ORT put each operation is asked of the session: a model of which a part would run on another provider is refused, since ORT
falls back to the processor without an error. Everything that ORT refuses is a DeviceError of the stage "backend". No agent offers
this device: files of strangers are read by native code that is not confined.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapml.devices.cpu import memory_bytes, processor_name
from tapml.devices.handles import Handles, check_binding, check_language, check_range
from tapml.devices.host_memory import HostMemory
from tapml.devices.interface import DeviceInfo, Launch
from tapml.errors import DeviceError, DeviceLost, OutOfMemory, TargetError, UnavailableError
from tapml.kernels import Kernel
from tapml.languages import LANGUAGES
from tapml.limits import Limits
from tapml.targets.onnxruntime import LEVELS, PROCESSOR, PROVIDERS, USUAL, how_to_have

STAGE = "backend"
INSTALL = "pip install 'tapml[ort]'"

# ORT's names of types, as bindings take them: ONNX's numbers, and the bytes of one element.
_TYPES = {
    "tensor(float)": (1, 4), "tensor(uint8)": (2, 1), "tensor(int8)": (3, 1), "tensor(int16)": (5, 2), "tensor(int32)": (6, 4),
    "tensor(int64)": (7, 8), "tensor(bool)": (9, 1), "tensor(float16)": (10, 2), "tensor(double)": (11, 8),
    "tensor(bfloat16)": (16, 2),
}  # fmt: skip

# How many threads the sessions of this process share, 0 for as many as there are cores: ORT makes such a pool once.
_pool: list[int] = []


@dataclass(frozen=True)
class _Value:
    name: str
    type: int
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class _Loaded:
    """`inputs` and `outputs` by the number of their buffer in a launch; `constants` likewise. `session` is None where there are
    constants: see `OnnxRuntimeDevice._made`."""

    entry: str
    access: tuple[str, ...]
    data: bytes
    session: Any
    inputs: dict[int, _Value]
    outputs: dict[int, _Value]
    constants: dict[int, _Value]


class OnnxRuntimeDevice(HostMemory):
    """Implements `tapml.devices.interface.Device`. `device` is "PROVIDER+LEVEL+THREADS+NUMBER", each of which may be empty.
    Raises UnavailableError when ORT or the provider is not there, or the provider does not compute itself; TargetError for a
    value that is no number."""

    def __init__(self, platform: str, language: str, device: str | None) -> None:
        super().__init__()
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise UnavailableError(f"{platform} is not available: {error}. Try: {INSTALL}") from error
        self._onnx: Any = onnx
        self._ort: Any = onnxruntime
        self._language = language
        self._platform = platform
        word, level, threads, number = ((device or "").split("+") + [""] * 4)[:4]
        self._word = word or PROCESSOR
        self._level = LEVELS[level or USUAL]
        self._threads = _count("threads", threads)
        self._provider: Any = _provider(onnxruntime, platform, self._word)
        options = {} if _count("device", number) is None else {"device_id": number}
        self._given = [(self._provider, options)]
        self._shares_threads = _pooled(onnxruntime, self._threads or 0)
        memory = memory_bytes()
        self._info = DeviceInfo(
            platform=platform, name=processor_name() if self._word == PROCESSOR else self._provider,
            driver=f"ONNX Runtime {onnxruntime.__version__}, {self._provider}, {self._level}", software=False,
            limits=Limits(max_buffer_bytes=memory, max_binding_bytes=memory),
            features=_others(onnxruntime),
        )
        self._kernels: Handles[_Loaded] = Handles("kernel")
        self._made: dict[tuple[int, ...], Any] = {}  # by the kernel and the buffers of its constants
        self._holding: dict[int, set[tuple[int, ...]]] = {}  # which of these have a buffer's content as a constant
        self._tried()

    def _tried(self) -> None:
        """A small model, before anything else: some providers are there and find nothing to compute on."""
        with _Heard() as heard:
            try:
                self._session(self._packed(LANGUAGES[self._language].trial)[0])
            except DeviceError as error:
                said = f" It said: {text}" if (text := heard.text()) else ""
                raise UnavailableError(f"{self._platform}:provider={self._word} is not available: {error}{said}") from error

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def free(self, buffer: int) -> None:
        super().free(buffer)
        self._changed(buffer)

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        super().write(buffer, data, offset, keep)
        self._changed(buffer)

    def _changed(self, buffer: int) -> None:
        """Sessions that have its content as a constant are no more."""
        for key in self._holding.pop(buffer, ()):
            self._made.pop(key, None)

    def load(self, kernel: Kernel) -> int:
        self._check_open()
        check_language(self._platform, self._language, kernel)
        data, outside = self._packed(kernel.source)
        count = len(kernel.access)
        places = {_place(value.name, count): value for value in outside}
        # With zeros for now: what ORT or the provider refuses, it says here.
        zeros = [(value, np.zeros(value.nbytes, np.uint8)) for value in outside]
        session = self._session(data, zeros)
        inputs, outputs = (tuple(map(_value, values)) for values in (session.get_inputs(), session.get_outputs()))
        if len(inputs) + len(places) + len(outputs) != count:
            counts = f"{len(inputs) + len(places)} inputs and {len(outputs)} outputs"
            raise DeviceError(STAGE, f"{kernel.entry} has {counts}, and is launched with {count} buffers")
        free = [k for k in range(count) if k not in places]
        return self._kernels.add(_Loaded(
            kernel.entry, kernel.access, data, None if places else session, dict(zip(free, inputs, strict=False)),
            dict(zip(free[len(inputs) :], outputs, strict=True)), places,
        ))  # fmt: skip

    def _packed(self, text: str) -> tuple[bytes, list[_Value]]:
        """The model, and its constants whose values are outside."""
        packed = LANGUAGES[self._language].packed
        assert packed is not None
        try:
            data = packed(text)
        except ValueError as error:
            raise DeviceError(STAGE, f"the text is no model: {_said(error)}") from error
        model = self._onnx.ModelProto.FromString(data)
        external = self._onnx.TensorProto.EXTERNAL
        return data, [_constant(c) for c in model.graph.initializer if c.data_location == external]

    def _session(self, data: bytes, constants: Sequence[tuple[_Value, NDArray[np.uint8]]] = ()) -> Any:
        ort = self._ort
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, self._level)
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # hundreds of sessions are open at once
        held = [_held(ort, value, content) for value, content in constants]
        if held:
            options.add_external_initializers([value.name for value, _ in constants], held)
        options.use_per_session_threads = not self._shares_threads
        if not self._shares_threads:
            options.intra_op_num_threads = self._threads or 0
        proven = self._word == PROCESSOR
        if not proven:
            options.log_severity_level = 2
            if asked := hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
                options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            else:
                options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = ort.InferenceSession(data, options, providers=self._given)
        except Exception as error:
            raise DeviceError(STAGE, f"ONNX Runtime does not take it: {_said(error)}") from error
        if not proven:
            self._check_placed(session, asked)
        return session

    def _check_placed(self, session: Any, asked: bool) -> None:
        """Raises DeviceError unless all of it runs on the provider that was asked for."""
        first = session.get_providers()[0]
        if first != self._provider:
            raise DeviceError(STAGE, f"ONNX Runtime would compute on {first}, and not on {self._provider}")
        if asked:
            elsewhere = [
                f"{node.op_type} on {part.ep_name}" for part in session.get_provider_graph_assignment_info()
                if part.ep_name != self._provider for node in part.get_nodes()
            ]
            if elsewhere:
                listed = ", ".join(dict.fromkeys(elsewhere))
                raise DeviceError(STAGE, f"{self._provider} does not take all of it; ONNX Runtime would compute {listed}")

    def unload(self, kernel: int) -> None:
        self._kernels.pop(kernel)
        for key in [key for key in self._made if key[0] == kernel]:
            del self._made[key]

    def run(self, batch: Sequence[Launch]) -> None:
        self._check_open()
        for launch in batch:
            kernel = self._kernels[launch.kernel]
            check_binding(kernel.entry, kernel.access, launch.buffers)
            session = kernel.session or self._with_constants(launch, kernel)
            binding = session.io_binding()
            for bind, values in ((binding.bind_input, kernel.inputs), (binding.bind_output, kernel.outputs)):
                for place, value in values.items():
                    buffer = self._buffers[launch.buffers[place]]
                    check_range(len(buffer.bytes), 0, value.nbytes)
                    bind(value.name, "cpu", 0, value.type, value.shape, buffer.address)
            for place in kernel.outputs:
                self._changed(launch.buffers[place])
            try:
                session.run_with_iobinding(binding)
            except Exception as error:
                raise _failed(kernel.entry, error) from error

    def _with_constants(self, launch: Launch, kernel: _Loaded) -> Any:
        """The session whose constants are what is in the buffers of this launch."""
        handles = [launch.buffers[place] for place in kernel.constants]
        key = (launch.kernel, *handles)
        if key not in self._made:
            buffers = [self._buffers[handle] for handle in handles]
            for buffer, value in zip(buffers, kernel.constants.values(), strict=True):
                check_range(len(buffer.bytes), 0, value.nbytes)
            pairs = zip(kernel.constants.values(), buffers, strict=True)
            self._made[key] = self._session(kernel.data, [(v, b.bytes[: v.nbytes]) for v, b in pairs])
            for handle in handles:
                self._holding.setdefault(handle, set()).add(key)
        return self._made[key]

    def close(self) -> None:
        super().close()
        self._made.clear()
        self._kernels.clear()


def _pooled(ort: Any, threads: int) -> bool:
    """Whether sessions share so many threads; where the pool has another number, each has its own."""
    if not _pool and hasattr(ort, "set_global_thread_pool_sizes"):
        ort.set_global_thread_pool_sizes(threads, 1)
        _pool.append(threads)
    return _pool == [threads]


def _count(what: str, text: str) -> int | None:
    if not text:
        return None
    if not text.isdecimal() or len(text) > 6:
        raise TargetError(f"{what}={text!r} is no number. Give one such as {what}=1.")
    return int(text)


def _provider(ort: Any, platform: str, word: str) -> str:
    name, package = PROVIDERS[word]
    there = ort.get_available_providers()
    if name in there:
        return name
    has = f"ONNX Runtime {ort.__version__} as it is installed has {', '.join(there)}"
    raise UnavailableError(f"{platform}:provider={word} is not available: {has}. {how_to_have(package)}")


def _others(ort: Any) -> tuple[str, ...]:
    """The providers here besides the processor's, as `--target` has them."""
    return tuple(word for word, (name, _) in PROVIDERS.items() if word != PROCESSOR and name in ort.get_available_providers())


def _value(argument: Any) -> _Value:
    if argument.type not in _TYPES or any(not isinstance(n, int) for n in argument.shape):
        raise DeviceError(STAGE, f"{argument.name} is {argument.type} of shape {argument.shape}, which has no size of its own")
    number, size = _TYPES[argument.type]
    return _Value(argument.name, number, tuple(argument.shape), math.prod(argument.shape) * size)


def _constant(tensor: Any) -> _Value:
    sizes = dict(_TYPES.values())
    if tensor.data_type not in sizes:
        raise DeviceError(STAGE, f"the constant {tensor.name} has ONNX's type {tensor.data_type}, which has no size of its own")
    shape = tuple(tensor.dims)
    return _Value(tensor.name, tensor.data_type, shape, math.prod(shape) * sizes[tensor.data_type])


def _place(name: str, count: int) -> int:
    """The number of the buffer that a constant stands for: 3 for "i3"."""
    if name[:1] != "i" or not name[1:].isdecimal() or len(name) > 6 or int(name[1:]) >= count:
        raise DeviceError(STAGE, f"the constant {name} stands for none of the {count} buffers; they are called i0, i1 and so on")
    return int(name[1:])


def _held(ort: Any, value: _Value, content: NDArray[np.uint8]) -> Any:
    """What ORT takes as a constant, over this memory."""
    array = content.view(f"u{value.nbytes // math.prod(value.shape)}").reshape(value.shape)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, value.type)


def _failed(entry: str, error: Exception) -> Exception:
    text = _said(error)
    lower = text.lower()
    if "failed to allocate memory" in lower or "out of memory" in lower:
        return OutOfMemory(f"{entry}: {text}")
    if "device lost" in lower or "cuda failure" in lower or "device is lost" in lower:
        return DeviceLost(f"{entry} left the device in an error: {text}")
    return DeviceError(STAGE, f"{entry} fails: {text}")


def _said(error: Exception) -> str:
    """What ORT says, in one line, without the name that all of its errors begin with."""
    text = " ".join(str(error).split())
    return text.removeprefix("[ONNXRuntimeError] : ")[:1000]


class _Heard:
    """What native code writes to this process's stderr in the meantime."""

    def __enter__(self) -> _Heard:
        self._file = tempfile.TemporaryFile("w+b")
        self._before = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        return self

    def text(self) -> str:
        self._file.seek(0)
        return " ".join(self._file.read().decode(errors="replace").split())[:600]

    def __exit__(self, *_: object) -> None:
        os.dup2(self._before, 2)
        os.close(self._before)
        self._file.close()


